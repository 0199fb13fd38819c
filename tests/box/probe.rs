//! Readiness probes, as the kubelet makes them: GET over TLS, the certificate not verified.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::network::Place;

/// Failures in a row after which a pod is no longer ready.
const FAILURES: u32 = 3;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Status and body of `GET https://ADDRESS/PATH`; `None` if there is no answer.
pub fn get(address: SocketAddr, path: &str, config: &Arc<ClientConfig>) -> Option<(u16, String)> {
    let tcp = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    tcp.set_read_timeout(Some(PATIENCE)).ok()?;
    tcp.set_write_timeout(Some(PATIENCE)).ok()?;
    let tls = ClientConnection::new(config.clone(), ServerName::try_from("localhost").ok()?).ok()?;
    let mut stream = StreamOwned::new(tls, tcp);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = Vec::new();
    // Servers may end without a TLS close; what was read until then counts.
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Asks `https://ADDRESS/readyz` over and over on a thread of its own until `stop` is set, and tells each change. Not
/// ready until the first success.
pub fn watch(
    place: Place,
    address: SocketAddr,
    every: Duration,
    stop: Arc<AtomicBool>,
    tell: impl Fn(bool) + Send + 'static,
) -> std::io::Result<()> {
    std::thread::Builder::new().name("probe".into()).spawn(move || {
        let Ok(config) = syncer::supervise::probe::unverified().map(Arc::new) else { return };
        if let Err(e) = place.enter() {
            eprintln!("the readiness of {address} cannot be probed: {e}");
            return;
        }
        let (mut ready, mut failures) = (false, 0);
        while !stop.load(Ordering::Relaxed) {
            let success = get(address, "/readyz", &config).is_some_and(|(status, _)| (200..400).contains(&status));
            failures = if success { 0 } else { failures + 1 };
            if success != ready && (success || failures >= FAILURES) {
                ready = success;
                tell(ready);
            }
            std::thread::sleep(every);
        }
    })?;
    Ok(())
}
