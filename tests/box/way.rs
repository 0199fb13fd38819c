//! The way on which pods reach the host cluster's API server. Its answers can be late on it, without anything else in the host
//! cluster being slower.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::forward::relay;
use super::network::{GATEWAY, Network};

/// Where pods find the API.
pub const PORT: u16 = 443;
/// What the server says first is its part of the handshake: one flight, and a session ticket (RFC 8446, 2 and 4.6.1).
const HANDSHAKE: usize = 2;
/// Between two looks at whether what is held back may go.
const LOOK: Duration = Duration::from_millis(20);

/// How late answers are, in milliseconds.
#[derive(Clone, Default)]
pub struct Way(Arc<AtomicU64>);

impl Way {
    /// Opens it; it leads to this port of the box. It lasts as long as the box.
    pub fn open(network: &Network, to: u16) -> anyhow::Result<Way> {
        let listener = network.inside(|| TcpListener::bind((GATEWAY, PORT))).context("listen for the pods")?;
        let (way, place) = (Way::default(), network.place());
        let delay = way.clone();
        std::thread::Builder::new().name("way".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                let (place, delay) = (place.clone(), delay.clone());
                let held = move |said| {
                    if said >= HANDSHAKE {
                        delay.hold()
                    }
                };
                // Dropping the client tells it that nobody answers.
                let _ = std::thread::Builder::new()
                    .spawn(move || place.enter().and_then(|()| relay(client, (Ipv4Addr::LOCALHOST, to).into(), held)));
            }
        })?;
        Ok(way)
    }

    /// From now on answers come so much later, those on their way included.
    pub fn delays(&self, answers: Duration) {
        self.0.store(u64::try_from(answers.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn hold(&self) {
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(self.0.load(Ordering::Relaxed)) {
            std::thread::sleep(LOOK);
        }
    }
}
