//! `statefulset`: a StatefulSet in a box. `scripts/statefulset` builds and runs it; see its help.

#[path = "mod.rs"]
mod statefulset;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use statefulset::client::{self, Client};
use statefulset::coredns::Mood;
use statefulset::protocol::{ApiMood, Config, HostPrograms, NetworkMode, Policy, Program, Status};
use statefulset::stand_in::{self, StandInArgs};
use statefulset::{daemon, pod};

/// A StatefulSet in a box: pods as processes with addresses of their own, in a DNS of their own.
#[derive(Parser)]
#[command(name = "statefulset")]
struct Cli {
    /// Where the box's volumes and logs are. Default: statefulset in the folder for temporary files.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings a box up, and waits until all pods are ready.
    Up(UpArgs),
    /// Changes the replicas, of the StatefulSet and in the values file.
    Scale {
        /// Desired replicas.
        replicas: u32,
        /// Leave the values file as it is, as `kubectl scale` does.
        #[arg(long)]
        keep_values: bool,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Deletes a pod, or kills it with SIGKILL, as if its node had lost it. It is replaced by one with another address. (A
    /// process that ends by itself is started again in its place.)
    Kill {
        /// Its ordinal.
        ordinal: u32,
        /// SIGKILL instead of SIGTERM.
        #[arg(short = '9')]
        nine: bool,
    },
    /// Kills a pod and sets its volume aside.
    LoseVolume {
        /// Its ordinal.
        ordinal: u32,
    },
    /// A rolling update: each pod is replaced, from the highest ordinal.
    Roll {
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Two pods do not reach each other any more.
    Partition {
        /// One's ordinal.
        one: u32,
        /// The other's.
        other: u32,
    },
    /// All pods reach each other again.
    Heal,
    /// What DNS does from now on.
    Dns {
        /// How it behaves.
        mood: Mood,
    },
    /// What the host cluster's API server does from now on.
    HostApi {
        /// How it behaves.
        mood: ApiMood,
    },
    /// Shows pods, addresses and partitions.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// An address on this machine's loopback that leads to a pod's port.
    Forward {
        /// The pod's ordinal.
        ordinal: u32,
        /// The port: 8443 (API server), 2379 (etcd).
        port: u16,
    },
    /// Ends the pods and the box; volumes and logs stay.
    Down,
    #[command(hide = true)]
    Serve { config: String },
    #[command(hide = true)]
    Pod { spec: String },
    #[command(hide = true)]
    Process { spec: String },
    #[command(hide = true)]
    StandIn(StandInArgs),
}

#[derive(Args)]
struct UpArgs {
    /// Desired replicas.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// podManagementPolicy.
    #[arg(long, value_enum, default_value = "OrderedReady")]
    policy: Policy,
    /// How pods get their addresses.
    #[arg(long, value_enum, default_value = "auto")]
    network: NetworkMode,
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(long, default_value_t = 10)]
    grace: u64,
    /// Run a host cluster (etcd, kube-apiserver, kube-controller-manager), whose controllers decide.
    #[arg(long)]
    host: bool,
    /// Run a program in the pods that answers probes and does nothing else.
    #[arg(long)]
    stand_in: bool,
    /// The program syncer.
    #[arg(long, env = "BOX_SYNCER", value_name = "FILE")]
    syncer: PathBuf,
    /// The folder of etcd and coredns.
    #[arg(long, env = "BOX_PARTS", value_name = "DIR")]
    parts: PathBuf,
    #[command(flatten)]
    waiting: Waiting,
    /// More arguments of `syncer start`.
    #[arg(last = true, default_value = "--distro=none")]
    args: Vec<String>,
}

#[derive(Args)]
struct Waiting {
    /// Do not wait until all pods are ready.
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait at most.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            // Nothing is left to do if standard error is gone.
            let _ = writeln!(std::io::stderr(), "statefulset: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<u8> {
    let dir = cli.dir.unwrap_or_else(|| std::env::temp_dir().join("statefulset"));
    // Absolute, as the daemon's socket is in it.
    let dir = std::path::absolute(dir)?;
    let client = Client::new(&std::fs::canonicalize(&dir).unwrap_or_else(|_| dir.clone()));
    match cli.command {
        Command::Serve { config } => daemon::serve(&config)?,
        Command::Pod { spec } => pod::launch(&spec)?,
        Command::Process { spec } => return pod::run(&spec),
        Command::StandIn(args) => stand_in::run(&args)?,
        Command::Up(args) => up(args, dir)?,
        Command::Scale { replicas, keep_values, waiting } => {
            if keep_values { client.scale_only(replicas) } else { client.scale(replicas) }?;
            wait(&client, &waiting)?;
        }
        Command::Kill { ordinal, nine: true } => client.kill9(ordinal)?,
        Command::Kill { ordinal, nine: false } => client.delete(ordinal)?,
        Command::LoseVolume { ordinal } => client.lose_volume(ordinal)?,
        Command::Roll { waiting } => {
            client.roll()?;
            wait(&client, &waiting)?;
        }
        Command::Partition { one, other } => client.partition(one, other)?,
        Command::Heal => client.heal()?,
        Command::Dns { mood } => client.dns(mood)?,
        Command::HostApi { mood } => client.host_api(mood)?,
        Command::Status { json: true } => println!("{}", serde_json::to_string_pretty(&client.status()?)?),
        Command::Status { json: false } => show(&client.status()?),
        Command::Forward { ordinal, port } => println!("{}", client.forward(ordinal, port)?),
        Command::Down => client.down()?,
    }
    Ok(0)
}

fn up(args: UpArgs, dir: PathBuf) -> anyhow::Result<()> {
    let program = match args.stand_in {
        true => Program::StandIn,
        false => Program::Syncer {
            file: std::fs::canonicalize(&args.syncer).context("find syncer")?,
            binaries: std::fs::canonicalize(&args.parts).context("find the parts")?,
            args: args.args,
        },
    };
    let config = Config {
        replicas: args.replicas,
        policy: args.policy,
        network: args.network,
        grace_ms: args.grace * 1000,
        // As CoreDNS' plugin for Kubernetes has it.
        ttl: 5,
        negative_ttl: 5,
        host: match args.host {
            true => Some(HostPrograms {
                parts: std::fs::canonicalize(&args.parts).context("find the parts")?,
                certs: std::fs::canonicalize(&args.syncer).context("find syncer")?,
            }),
            false => None,
        },
        die_with_parent: false,
        ..Config::new(&dir, program, args.parts.join("coredns"))
    };
    let (client, _) = client::up(&std::env::current_exe()?, &config)?;
    println!("a box in {}", client.dir().display());
    if args.host {
        let kubectl = std::fs::canonicalize(args.parts.join("kubectl")).context("find kubectl")?;
        println!("{} --kubeconfig {} get pods", kubectl.display(), client.kubeconfig().display());
    }
    wait(&client, &args.waiting)
}

fn wait(client: &Client, waiting: &Waiting) -> anyhow::Result<()> {
    if waiting.no_wait {
        return Ok(());
    }
    let settled = client.settle(Duration::from_secs(waiting.timeout));
    show(&client.status()?);
    let logs = client.dir().join("logs");
    settled
        .map(|_| ())
        .map_err(|_| anyhow!("not all pods are ready after {} s; see {}", waiting.timeout, logs.display()))
}

fn show(status: &Status) {
    println!(
        "{} replicas, {:?}, revision {}, {:?}, DNS {}",
        status.replicas, status.policy, status.revision, status.network, status.dns
    );
    for pod in status.pods.values() {
        let address = pod.address.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let ready = if pod.ready { "ready" } else { "not ready" };
        println!(
            "  {:<8} {address:<14} {:<12} {ready:<10} revision {} failures {} restarts {}",
            pod.name,
            format!("{:?}", pod.phase),
            pod.revision,
            pod.failures,
            pod.restarts
        );
    }
    for (a, b) in &status.partitions {
        println!("  {a} and {b} do not reach each other");
    }
}
