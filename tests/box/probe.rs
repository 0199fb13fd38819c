//! Probes, as the kubelet makes them: GET over TLS, the certificate not verified.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::network::Place;

/// Failures in a row after which a pod is no longer ready.
const READINESS_FAILURES: u32 = 3;
/// Failures in a row after which a process is ended: the fewest of any chart.
const LIVENESS_FAILURES: u32 = 10;
/// How long an answer may take: twice what the charts allow, as tests keep a machine busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Status and body of `GET https://ADDRESS/PATH`; `None` if there is no answer.
pub fn get(address: SocketAddr, path: &str, config: &Arc<ClientConfig>) -> Option<(u16, String)> {
    let tcp = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    tcp.set_read_timeout(Some(PATIENCE)).ok()?;
    tcp.set_write_timeout(Some(PATIENCE)).ok()?;
    let tls = ClientConnection::new(config.clone(), ServerName::try_from("localhost").ok()?).ok()?;
    let mut stream = StreamOwned::new(tls, tcp);
    // In one record: some servers read once.
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = Vec::new();
    // Servers may end without a TLS close; what was read until then counts.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// What the probes of a process find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Whether it is ready, each time that this changes. It is not at first.
    Ready(bool),
    /// It has failed the liveness probe as often as it may. Told once.
    NotLive,
}

/// From one probe to the next.
#[derive(Clone, Copy, Debug)]
pub struct Every {
    /// Of readiness.
    pub ready: Duration,
    /// Of liveness.
    pub live: Duration,
}

/// Asks `https://ADDRESS/readyz` over and over, and from its first success on, as the charts' startup probe has it,
/// `/healthz` too, until `stop` is set. (That probe gives up after half an hour, which nothing here waits for.)
pub fn watch(
    place: Place,
    address: SocketAddr,
    every: Every,
    stop: Arc<AtomicBool>,
    tell: impl Fn(Finding) + Clone + Send + 'static,
) -> io::Result<()> {
    let (mut ready, mut failures, mut started) = (false, 0, false);
    let (inside, over) = (place.clone(), stop.clone());
    ask(place, address, "/readyz", every.ready, stop, move |success| {
        failures = if success { 0 } else { failures + 1 };
        if success != ready && (success || failures >= READINESS_FAILURES) {
            ready = success;
            tell(Finding::Ready(ready));
        }
        if success && !std::mem::replace(&mut started, true) {
            let (mut failures, tell) = (0, tell.clone());
            let asked = ask(inside.clone(), address, "/healthz", every.live, over.clone(), move |success| {
                failures = if success { 0 } else { failures + 1 };
                if failures == LIVENESS_FAILURES {
                    tell(Finding::NotLive);
                }
            });
            if let Err(e) = asked {
                eprintln!("the liveness of {address} cannot be probed: {e}");
            }
        }
    })
}

/// Asks over and over on a thread of its own, and hands over each time whether that was a success.
fn ask(
    place: Place,
    address: SocketAddr,
    path: &'static str,
    every: Duration,
    stop: Arc<AtomicBool>,
    mut take: impl FnMut(bool) + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new().name("probe".into()).spawn(move || {
        let Ok(config) = syncer::supervise::probe::unverified().map(Arc::new) else { return };
        if let Err(e) = place.enter() {
            eprintln!("{path} of {address} cannot be probed: {e}");
            return;
        }
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            take(get(address, path, &config).is_some_and(|(status, _)| (200..400).contains(&status)));
            std::thread::sleep(every.saturating_sub(began.elapsed()));
        }
    })?;
    Ok(())
}
