//! The port of the charts' Service and probes, 8443.
//!
//! While the API server serves, connections are passed to it as they are: TLS goes from end to end, and client
//! certificates, HTTP/2 and watches are its affair. Until then, and again whenever it is away, we answer ourselves
//! ([`super::answer`]), or, in a pod that stands by for another, pass to the front port of one that serves. Which of
//! these is decided for each connection when its first byte comes. Until then it takes up nothing that others could want:
//! clients that connect and are silent are bounded by themselves, and the oldest makes room for the newest.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::answer::{ServingCertificate, answer};
use super::health::{Health, Serves, Startup};
use super::pump::{Buffers, pass};
use super::silent::{Place, Silent};
use crate::exit::{Exit, refuse};
use crate::settings::Settings;

/// How long the API server's kernel, on loopback, may take to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The same for another pod's: where a network policy drops that, a probe is still answered within the charts' one second.
const ELSEWHERE_DEADLINE: Duration = Duration::from_millis(300);

/// Connections that may wait for our own answers at once; each is over within seconds.
const ANSWERED_MAX: usize = 512;

/// Connections at once that have sent nothing yet, if the limit on open files allows it.
const SILENT_MAX: usize = 512;

/// How long a client may take to its first byte. In TLS the client speaks first.
const FIRST_BYTE: Duration = Duration::from_secs(5);

/// Passed connections at once, if the limit on open files allows it.
const PASSED_MAX: usize = 16_384;

/// Open files left to everything but passed connections.
const FILES_RESERVED: usize = 512;

/// Between two tries to accept when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At most one line on refused connections in this time.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Where the API server listens; set once that is known, if there is one.
pub type Apiserver = Arc<OnceLock<SocketAddr>>;

/// What the front leads to.
pub struct Front {
    serves: Serves,
    apiserver: Apiserver,
    certificate: ServingCertificate,
    buffers: Buffers,
    passed: Arc<Semaphore>,
    answered: Arc<Semaphore>,
    silent_max: usize,
    warned: Mutex<Option<Instant>>,
}

impl Front {
    /// For these settings, with the API server at `apiserver` ([`super::distro::apiserver_address`]).
    pub fn new(settings: &Settings, apiserver: Option<SocketAddr>) -> Front {
        let mut names = vec!["localhost".to_owned(), settings.name.clone(), settings.advertised_host()];
        names.extend(settings.tls_sans.iter().cloned());
        names.retain(|name| !name.is_empty());
        let files = open_files_limit();
        Front {
            serves: super::distro::serves(settings),
            apiserver: Arc::new(apiserver.map(OnceLock::from).unwrap_or_default()),
            certificate: ServingCertificate::new(&settings.pki_dir, names),
            buffers: Buffers::default(),
            passed: Arc::new(Semaphore::new(passed_max(files))),
            answered: Arc::new(Semaphore::new(ANSWERED_MAX)),
            silent_max: silent_max(files),
            warned: Mutex::default(),
        }
    }

    /// With the API server where it will be set to be.
    pub fn to_be_told(mut self, apiserver: Apiserver) -> Front {
        self.apiserver = apiserver;
        self
    }

    /// With other limits: connections passed, connections that wait for our own answers, and those that have sent nothing.
    pub fn with_limits(mut self, passed: usize, answered: usize, silent: usize) -> Front {
        self.passed = Arc::new(Semaphore::new(passed));
        self.answered = Arc::new(Semaphore::new(answered));
        self.silent_max = silent;
        self
    }

    /// Serves for ever. `health` decides, at each connection; its last value stays if its sender goes.
    pub async fn serve(self, listener: TcpListener, health: watch::Receiver<Health>) -> std::convert::Infallible {
        let front = Arc::new(self);
        let mut silent = Silent::new(front.silent_max);
        loop {
            let error = match listener.accept().await {
                Ok((client, _)) => {
                    let (place, dropped) = silent.enter();
                    if dropped {
                        front.warn("too many clients of the front port are silent: closing the oldest connections");
                    }
                    tokio::spawn(Arc::clone(&front).client(client, place, health.clone()));
                    continue;
                }
                Err(error) => error,
            };
            if !belongs_to_the_client(&error) {
                front.warn(&format!("accept a connection on the front port: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// A connection from its beginning: it is routed once it has something to say.
    async fn client(self: Arc<Self>, client: TcpStream, place: Place, health: watch::Receiver<Health>) {
        if !speaks(&client, place).await {
            return;
        }
        let now = *health.borrow();
        drop(health);
        let Some(route) = self.route(now) else {
            self.warn("too many connections wait on the front port: closing new ones");
            return;
        };
        if matches!(route, Route::Answer(_, true, _)) {
            self.warn("too many connections to the API server: refusing new ones");
        }
        self.connection(client, route).await;
    }

    /// At most one line on refused connections in [`WARN_EVERY`].
    fn warn(&self, what: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!("{what}");
        }
    }

    fn route(&self, health: Health) -> Option<Route> {
        let mut full = false;
        let own = self.apiserver.get().copied().filter(|_| health.passes_through(self.serves));
        if let Some(apiserver) = own.or_else(|| health.passes_elsewhere(self.serves)) {
            match Arc::clone(&self.passed).try_acquire_owned() {
                Ok(permit) => return Some(Route::Pass(apiserver, health, permit)),
                Err(_) => full = true,
            }
        }
        let permit = Arc::clone(&self.answered).try_acquire_owned().ok()?;
        Some(Route::Answer(health, full, permit))
    }

    async fn connection(self: Arc<Self>, client: TcpStream, route: Route) {
        let (health, _permit) = match route {
            Route::Answer(health, _, permit) => (health, permit),
            Route::Pass(apiserver, health, permit) => {
                let away = health.elsewhere == Some(apiserver);
                let deadline = if away { ELSEWHERE_DEADLINE } else { CONNECT_DEADLINE };
                match tokio::time::timeout(deadline, TcpStream::connect(apiserver)).await {
                    Ok(Ok(server)) => {
                        if let Err(error) = pass(client, server, &self.buffers).await {
                            tracing::trace!(%error, "a passed connection ended");
                        }
                        return;
                    }
                    // It went away and nobody has noticed yet.
                    Ok(Err(_)) | Err(_) => (Health { apiserver_ready: false, elsewhere: None, ..health }, permit),
                }
            }
        };
        match self.certificate.config() {
            // Boxed: a task is as big as its biggest part, and thousands of passed connections need none of this.
            Ok(config) => Box::pin(answer(client, config, health, self.serves)).await,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot answer probes"),
        }
    }
}

/// Whether the client sends something in time, and while it still has its place.
async fn speaks(client: &TcpStream, place: Place) -> bool {
    let mut first = [0];
    let said = tokio::time::timeout(FIRST_BYTE, client.peek(&mut first));
    tokio::select! {
        said = said => matches!(said, Ok(Ok(1..))),
        _ = place => false,
    }
}

/// What becomes of a connection. The permit is held until it ends.
enum Route {
    /// To the API server, here or in another pod.
    Pass(SocketAddr, Health, OwnedSemaphorePermit),
    /// Our own answer; the flag says that it is one only because too many are passed already.
    Answer(Health, bool, OwnedSemaphorePermit),
}

/// Answers on the port that a wrapped command is to have, from when it must ([`Health::answers_for_command`]) until the command is
/// started: whoever waits for this pod must hear it, or in order others would never be created, and one that boots anew must
/// not be taken for a hung pod. From then on probes are the command's own affair. Never ends.
pub async fn until_started(settings: Settings, mut health: watch::Receiver<Health>) -> std::convert::Infallible {
    let (address, port) = (settings.listen.address, settings.listen.front_port);
    while health.wait_for(|health| health.answers_for_command()).await.is_ok() {
        // What the command has left behind may have it.
        let Ok(listener) = TcpListener::bind((address, port)).await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        tokio::select! {
            never = Front::new(&settings, None).serve(listener, health.clone()) => match never {},
            _ = async { health.clone().wait_for(|health| health.startup == Startup::Started).await.map(drop) } => {}
        }
    }
    std::future::pending().await
}

/// Listens on the front port.
pub async fn bind(address: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((address, port)).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "stop what listens there, or choose another port with --port",
            io::ErrorKind::PermissionDenied => "choose a port above 1023 with --port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this machine with --listen-address",
            _ => "choose another address or port with --listen-address and --port",
        };
        refuse(Exit::Fault, format!("cannot listen on {address} port {port} for clients and probes: {error}"), remedy)
    })
}

/// Errors of accept(2) that belong to the connection that was to be accepted, not to us.
fn belongs_to_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Two descriptors a connection, the rest for everything else; some connections in any case.
fn passed_max(open_files: usize) -> usize {
    (open_files.saturating_sub(FILES_RESERVED) / 2).clamp(64, PASSED_MAX)
}

/// A small part of them all: each is over within [`FIRST_BYTE`].
fn silent_max(open_files: usize) -> usize {
    (open_files / 8).clamp(32, SILENT_MAX)
}

/// The limit on open files, after raising the soft one to the hard one, as Go's runtime does for the programs beside
/// us: container runtimes start processes with a soft limit of 1024, which is kept for programs that use select(2).
fn open_files_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit to the pointer, which is valid and ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: setrlimit reads one rlimit from the pointer, which is valid and ours.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_idle_connection_costs_little() {
        let settings = crate::serve::tests::pod(crate::settings::Distro::K8s);
        let apiserver = SocketAddr::from(([127, 0, 0, 1], 6443));
        let front = Arc::new(Front::new(&settings, Some(apiserver)));
        let health = Health { datastore_ready: true, apiserver_ready: true, ..Health::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(matches!(front.route(health), Some(Route::Pass(..))));
        let (_sender, health) = watch::channel(health);
        let task = Arc::clone(&front).client(client, Silent::new(1).enter().0, health);
        assert!(size_of_val(&task) <= 1536, "{} bytes", size_of_val(&task));
    }

    #[test]
    fn the_limit_on_open_files_bounds_passed_connections() {
        for (files, want) in [(0, 64), (600, 64), (1024, 256), (65_536, PASSED_MAX), (usize::MAX, PASSED_MAX)] {
            assert_eq!(passed_max(files), want, "{files}");
        }
    }
}
