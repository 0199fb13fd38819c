//! Whether a child serves, and goes on serving.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};

use super::spec::Ready;
use crate::etcd::client::{EtcdClient, EtcdEndpoint};
use crate::etcd::health::livez;
use crate::pki::EtcdTlsFiles;

/// One question and its answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// Between two tries with a child that has served before.
const AGAIN: Duration = Duration::from_secs(1);
/// A child that fails to answer so often in a row serves no longer. Once is what a busy machine does.
const MISSES: u32 = 2;
/// From one look at who leads to the next.
const LOOK: Duration = Duration::from_secs(2);
/// An etcd that knows no leader in so many looks in a row, a second apart, serves no longer. An election is shorter.
const LEADERLESS: u32 = 4;

/// How etcd is asked.
#[derive(Clone, Debug)]
pub struct EtcdAccess {
    /// Its client port on loopback.
    pub port: u16,
    /// Its metrics port on loopback, which tells a hung etcd from one without a quorum.
    pub metrics_port: u16,
    /// Where its store's file is, `member/snap`. It answers nothing while it writes that anew beside it.
    pub snap_dir: PathBuf,
    /// Certificates.
    pub tls: EtcdTlsFiles,
}

/// When it is first said that a child does not serve yet, and how often from then on.
const SAY_FIRST: Duration = Duration::from_secs(10);
const SAY_EVERY: Duration = Duration::from_secs(30);

/// How closely a child that serves is watched.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// From one question to the next. etcd is asked more often who leads, which costs it nothing.
    pub every: Duration,
    /// An etcd whose `/livez` fails for so long without a break, while it serves no reads, hangs: it is restarted.
    pub hangs_after: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Watch { every: Duration::from_secs(10), hangs_after: Duration::from_secs(60) }
    }
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It serves: for the first time, or again.
    Serves,
    /// It serves no longer.
    Lost,
    /// It does nothing any more. Only etcd is told so: restarting one that waits for its peers would help nobody.
    Hangs,
}

/// Follows a child from its start, for as long as it is polled: asks more and more slowly until it serves, then every
/// [`Watch::every`]. A unix socket and a child without a question are not watched: their end tells all.
pub async fn follow(ready: &Ready, etcd: &EtcdAccess, watch: Watch, mut say: impl FnMut(Found)) {
    let mut asker = Asker { ready, etcd, client: None, last: String::new() };
    let mut pause = FIRST_PAUSE;
    let mut say_after = Instant::now() + SAY_FIRST;
    while !asker.serves().await {
        if Instant::now() >= say_after {
            say_after = Instant::now() + SAY_EVERY;
            tracing::warn!("{} does not serve yet: {}", ready.what(), asker.last);
        }
        sleep(pause).await;
        pause = (pause * 5 / 4).min(LAST_PAUSE);
    }
    say(Found::Serves);
    if matches!(ready, Ready::Started | Ready::UnixSocket(_)) {
        return;
    }
    loop {
        asker.is_lost(watch.every).await;
        say(Found::Lost);
        let mut lived = Instant::now();
        while !asker.serves().await {
            if asker.lives(watch.hangs_after).await {
                lived = Instant::now();
            } else if lived.elapsed() >= watch.hangs_after {
                // Our caller ends the process that we ask.
                return say(Found::Hangs);
            }
            sleep(AGAIN.min(watch.every)).await;
        }
        say(Found::Serves);
    }
}

/// What speaks against a child that has served.
#[derive(Clone, Copy, Debug, Default)]
struct Doubts {
    /// Questions in a row that were not answered.
    misses: u32,
    /// Looks in a row that found no leader.
    leaderless: u32,
}

impl Doubts {
    fn looked(&mut self, leads: Option<bool>) {
        self.leaderless = if leads == Some(false) { self.leaderless + 1 } else { 0 };
    }

    fn asked(&mut self, serves: bool) {
        self.misses = if serves { 0 } else { self.misses + 1 };
    }

    fn any(self) -> bool {
        self.misses > 0 || self.leaderless > 0
    }

    fn lost(self) -> bool {
        self.misses >= MISSES || self.leaderless >= LEADERLESS
    }
}

struct Asker<'a> {
    ready: &'a Ready,
    etcd: &'a EtcdAccess,
    /// Kept while it works: a handshake costs more than a question.
    client: Option<EtcdClient>,
    /// Why it did not serve when it was asked last.
    last: String,
}

impl Asker<'_> {
    async fn serves(&mut self) -> bool {
        match timeout(DEADLINE, self.ask()).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => self.last = format!("{error:#}"),
            Err(_) => self.last = format!("no answer within {} s", DEADLINE.as_secs()),
        }
        tracing::trace!("not yet: {}", self.last);
        // The next connection reads the certificates anew.
        self.client = None;
        false
    }

    /// Ends when it serves no longer. Without a quorum a read is answered by nobody, only its deadline tells; but a member
    /// says at once that it knows no leader.
    async fn is_lost(&mut self, every: Duration) {
        let (mut doubts, mut asked) = (Doubts::default(), Instant::now());
        while !doubts.lost() {
            sleep(if doubts.any() { AGAIN } else { LOOK }.min(every)).await;
            let leads = self.leads().await;
            doubts.looked(leads);
            if leads == Some(true) && doubts.misses == 0 && asked.elapsed() < every || leads == Some(false) {
                continue;
            }
            doubts.asked(self.serves().await);
            asked = Instant::now();
        }
    }

    /// Whether etcd knows a leader; `None` if it does not say. Another child needs none.
    async fn leads(&mut self) -> Option<bool> {
        if *self.ready != Ready::EtcdLinearizableRead {
            return Some(true);
        }
        let status = self.client.as_mut()?.status(DEADLINE).await;
        status.ok().map(|status| status.leader.is_some())
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        match self.ready {
            Ready::Started => Ok(()),
            Ready::UnixSocket(path) => UnixStream::connect(path).await.map(drop).context("connect"),
            Ready::EtcdLinearizableRead => self.linearizable_read().await,
            Ready::HttpsReadyz(address) => readyz(*address).await,
        }
    }

    async fn linearizable_read(&mut self) -> anyhow::Result<()> {
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let port = self.etcd.port;
                // A refused connection is told apart at once here; the client would wait before its second try.
                drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.context("connect")?);
                let endpoint = EtcdEndpoint::on_loopback(port, self.etcd.tls.client());
                self.client.insert(EtcdClient::connect(&endpoint).await?)
            }
        };
        client.linearizable_read(DEADLINE).await?;
        Ok(())
    }

    /// Whether there is a sign of life. Of other children than etcd nothing is known but their answers.
    async fn lives(&self, patience: Duration) -> bool {
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, self.etcd.metrics_port));
        *self.ready != Ready::EtcdLinearizableRead
            || livez(metrics, DEADLINE).await.unwrap_or(false)
            || defragments(&self.etcd.snap_dir, patience)
    }
}

/// Whether a defragmentation has written to its new file (`db.tmp.*`, etcd's `defrag` in `server/storage/backend`)
/// within this time.
fn defragments(snap_dir: &Path, within: Duration) -> bool {
    let written = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"db.tmp."))?;
        entry.metadata().ok()?.modified().ok()?.elapsed().ok()
    };
    std::fs::read_dir(snap_dir).is_ok_and(|entries| entries.filter_map(written).any(|age| age < within))
}

/// TLS to a program of our own on loopback, whose certificate is not verified, as the kubelet's probes are made.
pub fn unverified() -> Result<ClientConfig, rustls::Error> {
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OwnChild(provider)))
        .with_no_client_auth();
    Ok(config)
}

async fn readyz(address: SocketAddr) -> anyhow::Result<()> {
    let config = unverified()?;
    let tcp = TcpStream::connect(address).await.context("connect")?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    // 401: with --anonymous-auth=false it tells nobody how it is, but that it serves.
    let serves = matches!(&head, b"HTTP/1.1 200" | b"HTTP/1.1 401");
    anyhow::ensure!(serves, "not ready: {}", String::from_utf8_lossy(&head));
    Ok(())
}

/// Takes any certificate: what listens on loopback is our own child, and nothing secret is sent to it.
#[derive(Debug)]
struct OwnChild(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for OwnChild {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serves_is_lost_after_two_misses_or_when_it_knows_no_leader_for_longer_than_an_election() {
        let mut doubts = Doubts::default();
        for serves in [false, true, false] {
            doubts.asked(serves);
            assert!(!doubts.lost(), "{doubts:?}");
        }
        doubts.asked(false);
        assert!(doubts.lost(), "{doubts:?}");

        let mut doubts = Doubts::default();
        // It does not say: that is for the question to find out.
        for leads in [Some(false), Some(false), Some(false), Some(true), Some(false), Some(false), Some(false), None] {
            doubts.looked(leads);
            assert!(!doubts.lost(), "{doubts:?}");
        }
        for looks in 0..LEADERLESS {
            assert!(!doubts.lost(), "after {looks} looks: {doubts:?}");
            doubts.looked(Some(false));
        }
        assert!(doubts.lost(), "{doubts:?}");
    }

    #[test]
    fn a_file_that_is_being_written_anew_is_a_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(60);
        assert!(!defragments(&dir.path().join("none"), patience));
        std::fs::write(dir.path().join("db"), "").unwrap();
        assert!(!defragments(dir.path(), patience));
        let new = std::fs::File::create(dir.path().join("db.tmp.123")).unwrap();
        assert!(defragments(dir.path(), patience));
        new.set_modified(std::time::SystemTime::now() - 2 * patience).unwrap();
        assert!(!defragments(dir.path(), patience), "it hangs all the same");
    }
}
