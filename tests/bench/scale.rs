//! A StatefulSet of syncers is scaled and rolled under steady writers, beside the same steps by hand with etcdctl.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Certificate, Client as Etcd, ConnectOptions, GetOptions, Identity, TlsOptions};
use serde_json::{Value, json};

use crate::by_hand::ByHand;
use crate::by_hand_boxed::BoxedByHand;
use crate::peers::Running;
use crate::sample::summary;
use crate::statefulset_box::client::{self, Client};
use crate::statefulset_box::protocol::{Config, Policy, Program};
use crate::store::program;
use crate::writers::{self, Endpoints, Gap, Writers};

/// For whatever must come to an end.
const PATIENCE: Duration = Duration::from_secs(120);
/// In so many runs DNS is watched.
const AT_REST_RUNS: usize = 3;
/// etcd refuses to change the members when one has been connected for less than five seconds.
const ETCD_SETTLES: Duration = Duration::from_secs(6);

/// Some pods or members that come and go: ours, or those that a person looks after.
pub trait Grows {
    /// How to write to the members `0..replicas`.
    fn endpoints(&self, replicas: u32) -> anyhow::Result<Endpoints>;
    /// Goes from `from` to `to` members, and returns when the last one has come or gone.
    fn scale(&mut self, from: u32, to: u32) -> anyhow::Result<()>;
}

/// That are rolled too.
pub trait Fleet: Grows {
    /// Restarts all members, one after the other.
    fn roll(&mut self, replicas: u32) -> anyhow::Result<()>;
    /// Returns when leadership rests on the lowest ordinal.
    fn led_by_the_lowest(&mut self) -> anyhow::Result<()>;
}

/// What one fleet's steps cost, over several runs.
#[derive(Default)]
struct Steps {
    up: Vec<f64>,
    steps: Vec<(&'static str, Vec<Gap>, Vec<f64>)>,
}

impl Steps {
    fn take(&mut self, name: &'static str, gap: Gap, seconds: f64) {
        match self.steps.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, gaps, times)) => {
                gaps.push(gap);
                times.push(seconds);
            }
            None => self.steps.push((name, vec![gap], vec![seconds])),
        }
    }

    fn json(&self) -> Value {
        let steps = self.steps.iter().map(|(name, gaps, times)| {
            let mut step = writers::summary(gaps);
            step["seconds"] = summary(times);
            ((*name).to_owned(), step)
        });
        json!({ "up_to_three_voters_seconds": summary(&self.up), "steps": Value::Object(steps.collect()) })
    }
}

/// The journey `runs` times for both, then joining a store of `join_mib` MiB `join_runs` times; the figures as JSON.
pub fn run(runs: usize, join_runs: usize, join_mib: u64) -> anyhow::Result<Value> {
    let (mut ours, mut hand) = (Steps::default(), Steps::default());
    let mut queries = Vec::new();
    for run in 1..=runs {
        let began = Instant::now();
        let mut boxed = Boxed::up(3)?;
        boxed.voters(3)?;
        ours.up.push(began.elapsed().as_secs_f64());
        journey(&mut boxed, &mut ours)?;
        if run <= AT_REST_RUNS {
            queries.extend(boxed.queries_at_rest(Duration::from_secs(60))?);
        }
        drop(boxed);
        let began = Instant::now();
        let mut by_hand = ByHand::up(3)?;
        hand.up.push(began.elapsed().as_secs_f64());
        journey(&mut by_hand, &mut hand)?;
        eprintln!("bench: scale: run {run} of {runs} is done");
    }
    let mut left = Vec::new();
    for _ in 0..runs {
        left.push(left_with_apiserver()?);
    }
    eprintln!("bench: scale: pods with an API server have left");
    let (mut our_joins, mut hand_joins, mut loopback_joins) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if join_mib == 0 { 0 } else { join_runs } {
        our_joins.push(join(&mut Boxed::up(1)?, join_mib)?);
        hand_joins.push(join(&mut BoxedByHand::up()?, join_mib)?);
        loopback_joins.push(join(&mut ByHand::up(1)?, join_mib)?);
    }
    Ok(json!({
        "bench": "scale",
        "runs": runs,
        "writers": "8, a try limited to 100 ms, on the members that stay",
        "syncer": ours.json(),
        "by_hand": hand.json(),
        "by_hand_differs": "on loopback, no DNS; ours in a network of namespaces, with names (but for joins, which have both)",
        "left_with_apiserver_seconds": summary(&left),
        "join": {
            "store_mib": join_mib,
            "syncer_seconds": summary(&our_joins),
            "by_hand_seconds": summary(&hand_joins),
            "by_hand_on_loopback_seconds": summary(&loopback_joins),
        },
        "dns_queries_a_minute_at_rest": {
            "syncer": queries.iter().map(|(ours, _)| ours).collect::<Vec<_>>(),
            "with_its_etcds": queries.iter().map(|(_, all)| all).collect::<Vec<_>>(),
        },
    }))
}

fn journey(fleet: &mut impl Fleet, steps: &mut Steps) -> anyhow::Result<()> {
    for (name, from, to) in [("3->1", 3, 1), ("1->3", 1, 3), ("3->2", 3, 2), ("2->1", 2, 1), ("1->3", 1, 3)] {
        fleet.led_by_the_lowest()?;
        std::thread::sleep(ETCD_SETTLES);
        let writers = Writers::start(&fleet.endpoints(from.min(to))?, name)?;
        let began = Instant::now();
        fleet.scale(from, to).with_context(|| format!("scale {name}"))?;
        let seconds = began.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_millis(500));
        steps.take(name, writers.finish()?, seconds);
    }
    fleet.led_by_the_lowest()?;
    std::thread::sleep(ETCD_SETTLES);
    let writers = Writers::start(&fleet.endpoints(3)?, "roll")?;
    let began = Instant::now();
    fleet.roll(3).context("roll")?;
    let seconds = began.elapsed().as_secs_f64();
    steps.take("roll", writers.finish()?, seconds);
    Ok(())
}

/// Seconds from the scale-down of two pods with an API server each, the leaving one under open watches, until that is gone
/// with all its processes: a little more than from its SIGTERM.
fn left_with_apiserver() -> anyhow::Result<f64> {
    let boxed = Boxed::of("k8s", 2)?;
    boxed.client.settle(PATIENCE)?;
    let server = format!("--server=https://localhost:{}", boxed.client.forward(1, 8443)?.port());
    let admin = format!("--kubeconfig={}", boxed.client.dir().join("pki/admin.conf").display());
    let mut watches = Vec::new();
    for _ in 0..3 {
        let watch = Command::new(program("SYNCER_PARTS", "kubectl")?)
            .args([&server, &admin])
            .args(["get", "configmaps", "--all-namespaces", "--watch", "--output=name"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start kubectl")?;
        let mut watch = Running(watch);
        // It lists what there is, then watches.
        let mut first = String::new();
        let out = watch.0.stdout.as_mut().context("no output")?;
        BufReader::new(out).read_line(&mut first)?;
        ensure!(!first.is_empty(), "a watch ended at once");
        watches.push(watch);
    }
    std::thread::sleep(ETCD_SETTLES);
    let began = Instant::now();
    boxed.client.scale(1)?;
    boxed.client.wait("a pod gone", PATIENCE, |status| status.pods.len() == 1)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds until a second member votes, beside a store of so many MiB.
fn join(fleet: &mut impl Grows, mib: u64) -> anyhow::Result<f64> {
    let to = fleet.endpoints(1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut etcd = Etcd::connect(&to.urls, Some(to.options.clone())).await?;
        for n in 0..mib {
            etcd.put(format!("/fill/{n}"), vec![n as u8; 1 << 20], None).await?;
        }
        anyhow::Ok(())
    })?;
    let began = Instant::now();
    fleet.scale(1, 2)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Voters and learners, as a majority agrees.
pub async fn members(etcd: &mut Etcd) -> anyhow::Result<(usize, usize)> {
    etcd.get("health", Some(GetOptions::new().with_count_only())).await?;
    let list = etcd.member_list().await?;
    let learners = list.members().iter().filter(|m| m.is_learner()).count();
    Ok((list.members().len() - learners, learners))
}

/// A StatefulSet in a box, its pods the release binary.
struct Boxed {
    client: Client,
    options: ConnectOptions,
    _daemon: Running,
    _dir: tempfile::TempDir,
}

impl Boxed {
    fn up(replicas: u32) -> anyhow::Result<Boxed> {
        Boxed::of("none", replicas)
    }

    fn of(distro: &str, replicas: u32) -> anyhow::Result<Boxed> {
        let dir = tempfile::tempdir_in(program("SYNCER_BENCH_DIR", "")?)?;
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let program_of_pods = Program::Syncer {
            file: program("SYNCER_RELEASE", "")?,
            binaries: program("SYNCER_PARTS", "")?,
            args: vec![format!("--distro={distro}")],
        };
        let mut config = Config::new(dir.path(), program_of_pods, program("SYNCER_PARTS", "coredns")?);
        (config.replicas, config.policy) = (replicas, Policy::Parallel);
        let (client, daemon) = client::up(&program("SYNCER_STATEFULSET", "")?, &config)?;
        let options = mtls(&client.dir().join("pki"))?;
        let boxed = Boxed { client, options, _daemon: Running(daemon), _dir: dir };
        boxed.voters(1)?;
        Ok(boxed)
    }

    /// Waits until pod 0 lists so many voters, or more if it is one, and no learner.
    fn voters(&self, wanted: u32) -> anyhow::Result<()> {
        let (began, url) = (Instant::now(), self.url(0)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        loop {
            let asked = async {
                let mut etcd = Etcd::connect([&url], Some(self.options.clone())).await?;
                members(&mut etcd).await
            };
            let asked = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), asked).await });
            if let Ok(Ok((voters, learners))) = asked
                && ((voters == wanted as usize && learners == 0) || (wanted == 1 && voters > 1))
            {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "{wanted} voters: not within {PATIENCE:?}: {asked:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn url(&self, ordinal: u32) -> anyhow::Result<String> {
        Ok(format!("https://localhost:{}", self.client.forward(ordinal, 2379)?.port()))
    }

    /// How often each pod's syncer, and all of it, asked the DNS server, a minute. Its etcd's probes dial each peer every four
    /// seconds, and each time it looks up names by the search list and, of those that dial it, addresses.
    fn queries_at_rest(&self, time: Duration) -> anyhow::Result<Vec<(f64, f64)>> {
        let log = || self.client.log("coredns");
        self.client.settle(PATIENCE)?;
        std::thread::sleep(ETCD_SETTLES);
        let before = log().len();
        std::thread::sleep(time);
        let log = log();
        let asked = log.get(before..).context("the log was cut")?;
        let pods = self.client.status()?.pods;
        let minutes = time.as_secs_f64() / 60.0;
        let count = |address: &str| {
            let lines = || asked.lines().filter(|line| line.contains(address));
            // syncer asks by whole names; each of etcd's lookups, of A and AAAA, misses by the first search domain.
            let missed = lines().filter(|line| line.contains(".team-a.team-a.svc.")).count();
            let (all, reverse) = (lines().count(), lines().filter(|line| line.contains("\"PTR IN")).count());
            (all.saturating_sub(reverse + 2 * missed) as f64 / minutes, all as f64 / minutes)
        };
        Ok(pods.values().filter_map(|pod| pod.address).map(|address| count(&format!("{address}:"))).collect())
    }
}

/// With the client certificate of a PKI directory.
pub fn mtls(pki: &Path) -> anyhow::Result<ConnectOptions> {
    let read = |name: &str| read(&pki.join("etcd").join(name));
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("ca.crt")?))
        .identity(Identity::from_pem(read("healthcheck-client.crt")?, read("healthcheck-client.key")?));
    Ok(ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(1)))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

impl Drop for Boxed {
    fn drop(&mut self) {
        let _ = self.client.down();
    }
}

impl Grows for Boxed {
    fn endpoints(&self, replicas: u32) -> anyhow::Result<Endpoints> {
        let urls = (0..replicas).map(|ordinal| self.url(ordinal)).collect::<anyhow::Result<_>>()?;
        Ok(Endpoints { urls, options: self.options.clone() })
    }

    fn scale(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        self.client.scale(to)?;
        if to < from {
            self.client.wait("pods gone", PATIENCE, |status| status.pods.len() == to as usize)?;
        }
        self.voters(to)
    }
}

impl Fleet for Boxed {
    fn led_by_the_lowest(&mut self) -> anyhow::Result<()> {
        let (began, url) = (Instant::now(), self.url(0)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        loop {
            let leads = runtime.block_on(async {
                let status = Etcd::connect([&url], Some(self.options.clone())).await?.status().await?;
                anyhow::Ok(status.header().is_some_and(|header| header.member_id() == status.leader()))
            });
            if matches!(leads, Ok(true)) {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "pod 0 does not lead: not within {PATIENCE:?}: {leads:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn roll(&mut self, replicas: u32) -> anyhow::Result<()> {
        let before = self.client.status()?.revision;
        self.client.roll()?;
        self.client.wait("rolled", PATIENCE, |status| status.revision > before && status.settled)?;
        self.voters(replicas)
    }
}
