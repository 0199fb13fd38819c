//! A program for pods that does little: it answers `/readyz` and `/healthz` on 8443 and says whom it reaches. For tests of the box, and
//! for showing it.
//!
//! It is steered by files in its volume: `not-ready` and `not-live` (answers 503 to the one probe and the other),
//! `ignore-term` (goes on after SIGTERM), `crash` (ends at once).

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde::{Deserialize, Serialize};
use syncer::discovery::Discovery;
use syncer::discovery::answer::Answer;
use syncer::discovery::schedule::Pace;
use syncer::ids::Ordinal;
use syncer::settings::env::ProcessEnv;
use syncer::settings::flags::Flags;
use syncer::settings::load::{Loader, Surroundings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// The port of the charts' probes.
pub const PORT: u16 = 8443;

/// Arguments of `statefulset stand-in`.
#[derive(Args, Debug)]
pub struct StandInArgs {
    /// Its volume.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Where to listen.
    #[arg(long)]
    pub listen: SocketAddr,
    /// As of `syncer start`.
    #[arg(long)]
    pub dns_server: Option<SocketAddr>,
    /// As of `syncer start`.
    #[arg(long)]
    pub resolv_conf: Option<PathBuf>,
}

/// What `/state` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `POD_NAME`.
    pub name: String,
    /// The host's name.
    pub host: String,
    /// `POD_IP`.
    pub address: String,
    /// `POD_REVISION`.
    pub revision: String,
    /// Its process ID, as it sees it.
    pub pid: u32,
    /// How often a pod has started on this volume.
    pub starts: usize,
}

/// What `/peers` says of each ordinal: whether its record leads to a pod that answers.
pub type Peers = BTreeMap<u32, Peer>;

/// A peer, as a pod sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `present`, `absent` or `unknown`.
    pub dns: String,
    /// Whether a connection to it is accepted.
    pub reached: bool,
}

/// Runs until SIGTERM.
pub fn run(args: &StandInArgs) -> anyhow::Result<()> {
    let mut starts = std::fs::File::options().create(true).append(true).open(args.data_dir.join("starts"))?;
    starts.write_all(b"start\n")?;
    ensure!(!args.data_dir.join("crash").exists(), "told to crash");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = syncer::supervise::stop_signal();
        tokio::pin!(stop);
        tokio::select! {
            served = serve(args) => served,
            signal = &mut stop => {
                println!("{}", signal?);
                while args.data_dir.join("ignore-term").exists() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            }
        }
    })
}

async fn serve(args: &StandInArgs) -> anyhow::Result<()> {
    let flags = Flags { dns_server: args.dns_server, resolv_conf: args.resolv_conf.clone(), ..Flags::default() };
    let surroundings = Surroundings { values_files: vec![], namespace_file: "/none".into(), folders: vec![] };
    let settings = Loader { flags, wrapped: None, env: Box::new(ProcessEnv), surroundings }.load()?.settings;
    let discovery = Discovery::new(&settings, Pace { burst: 1000, ..Pace::default() })?;
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    println!("{} listens on {}", settings.pod.name, args.listen);
    loop {
        let (tcp, _) = listener.accept().await?;
        let (acceptor, discovery, data_dir) = (acceptor.clone(), discovery.clone(), args.data_dir.clone());
        tokio::spawn(async move {
            // A caller that goes away is its own affair.
            let _ = answer(acceptor, tcp, &discovery, &data_dir).await;
        });
    }
}

async fn answer(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    discovery: &Discovery,
    data_dir: &std::path::Path,
) -> anyhow::Result<()> {
    let mut stream = timeout(Duration::from_secs(5), acceptor.accept(tcp)).await??;
    let mut request = vec![0; 4096];
    let length = timeout(Duration::from_secs(5), stream.read(&mut request)).await??;
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match path.split_once('?').unwrap_or((path, "")) {
        ("/readyz", _) if data_dir.join("not-ready").exists() => (503, "not ready".to_owned()),
        ("/healthz", _) if data_dir.join("not-live").exists() => (503, "not live".to_owned()),
        ("/readyz" | "/healthz", _) => (200, "ok".to_owned()),
        ("/state", _) => (200, serde_json::to_string(&state(data_dir))?),
        ("/peers", count) => (200, serde_json::to_string(&peers(discovery, count.parse().unwrap_or(3)).await)?),
        _ => (404, "/readyz, /state or /peers?COUNT".to_owned()),
    };
    let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn state(data_dir: &std::path::Path) -> State {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    State {
        name: variable("POD_NAME"),
        host: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
        address: variable("POD_IP"),
        revision: variable("POD_REVISION"),
        pid: std::process::id(),
        starts: std::fs::read_to_string(data_dir.join("starts")).unwrap_or_default().lines().count(),
    }
}

async fn peers(discovery: &Discovery, count: u32) -> Peers {
    let mut peers = Peers::new();
    for (ordinal, answer) in discovery.pods((0..count).map(Ordinal)).await {
        let (dns, address) = match answer {
            Answer::Present { value, .. } => ("present", value.first().copied()),
            Answer::Absent { .. } => ("absent", None),
            Answer::Unknown(_) => ("unknown", None),
        };
        let reached = match address {
            Some(ip) => matches!(timeout(Duration::from_secs(1), TcpStream::connect((ip, PORT))).await, Ok(Ok(_))),
            None => false,
        };
        peers.insert(ordinal.0, Peer { dns: dns.to_owned(), reached });
    }
    peers
}
