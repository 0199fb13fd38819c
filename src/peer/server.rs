//! The answers to the other pods.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::{Own, STATE, WAKE, Word, tls};
use crate::boot::PeerState;
use crate::etcd::health;
use crate::exit::{Exit, refuse};
use crate::pki::{EtcdTlsFiles, shared};
use crate::serve::health::Health;
use crate::serve::silent::{Place, Silent};

/// A connection, from its first byte to its last: one question, one answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Answers at once: a few to each pod.
const ANSWERS_MAX: usize = 64;
/// Connections at once that have not shown a certificate of ours yet: the oldest makes room for the newest.
const STRANGERS_MAX: usize = 128;
/// For etcd beside us to show its metrics.
const METRICS_DEADLINE: Duration = Duration::from_millis(300);
/// Between two tries to accept when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens for the other pods.
pub async fn bind(address: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((address, port)).await.map_err(|error| {
        let what = format!("the port for the other pods' questions, {address}:{port}, cannot be used: {error}");
        refuse(Exit::Usage, what, "free it, or choose another by --state-port, the same in every pod")
    })
}

/// What the answers are made of.
#[derive(Clone)]
pub struct Answers {
    /// The certificates.
    pub files: EtcdTlsFiles,
    /// This pod's word.
    pub own: Arc<Own>,
    /// What serves in this pod.
    pub health: watch::Receiver<Health>,
    /// Where the etcd in this pod shows its metrics.
    pub metrics: SocketAddr,
    /// Its data dir.
    pub etcd_dir: PathBuf,
    /// Where its k0s has its CAs, if it runs one.
    pub k0s_pki: Option<PathBuf>,
}

/// Answers for ever.
pub async fn serve(listener: TcpListener, answers: Answers) {
    let (free, mut strangers) = (Arc::new(Semaphore::new(ANSWERS_MAX)), Silent::new(STRANGERS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (answers, free, place) = (answers.clone(), Arc::clone(&free), strangers.enter().0);
                tokio::spawn(async move {
                    match tokio::time::timeout(DEADLINE, answers.connection(stream, place, &free)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!("a pod's question could not be answered: {error:#}"),
                        Err(_) => tracing::debug!("a pod took too long over its question"),
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept a pod's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Answers {
    async fn connection(&self, stream: TcpStream, place: Place, free: &Semaphore) -> anyhow::Result<()> {
        let speaks = TlsAcceptor::from(tls::server(&self.files)?).accept(stream);
        let stream = tokio::select! {
            stream = speaks => stream.context("speak TLS")?,
            _ = place => bail!("it was slow to speak TLS, and others came"),
        };
        let _permit = free.acquire().await.context("wait for others to be answered")?;
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request).await) });
        hyper::server::conn::http1::Builder::new()
            .max_buf_size(16 << 10)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .context("answer")
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, STATE) => match serde_json::to_vec(&self.word().await) {
                Ok(word) => (StatusCode::OK, word),
                Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
            },
            (&Method::POST, WAKE) => {
                self.own.wake.notify_one();
                (StatusCode::NO_CONTENT, Vec::new())
            }
            _ => (StatusCode::NOT_FOUND, Vec::new()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        response
    }

    /// The word, with what etcd has applied while only its metrics tell that, what it has received, and which CAs k0s has.
    async fn word(&self) -> Word {
        let word = self.own.word(*self.health.borrow());
        let applied = match word.state {
            Some(PeerState::Data { .. }) if self.own.member().is_some() => {
                health::applied(self.metrics, METRICS_DEADLINE).await.ok()
            }
            _ => None,
        };
        if applied.is_some() {
            crate::crash_point!("start-etcd-applied");
        }
        let received = self.own.member().and_then(|_| received(&self.etcd_dir));
        let k0s_cas = self.k0s_pki.as_deref().and_then(shared::of_k0s);
        Word { applied, received, k0s_cas, ..word }
    }
}

/// Bytes of the store in a data dir: the backend, and a snapshot that etcd is being sent, which it writes into a file
/// beside the backend (`SaveDBFrom` in `server/etcdserver/api/snap/db.go`) and counts in no metric before its end.
fn received(etcd_dir: &Path) -> Option<u64> {
    let files = std::fs::read_dir(etcd_dir.join("member/snap")).ok()?;
    Some(files.flatten().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum())
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::ids::Ordinal;
    use crate::pki::throwaway;

    #[tokio::test]
    async fn strangers_who_say_nothing_keep_no_pod_from_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let files = throwaway(dir.path()).unwrap();
        let listener = bind(IpAddr::from([127, 0, 0, 1]), 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_health, health) = watch::channel(Health::default());
        let answers = Answers {
            files: files.clone(),
            own: Arc::new(Own::new(Ordinal(0))),
            health,
            metrics: address,
            etcd_dir: dir.path().join("etcd"),
            k0s_pki: None,
        };
        let server = tokio::spawn(serve(listener, answers));
        let mut strangers = Vec::new();
        for _ in 0..STRANGERS_MAX + ANSWERS_MAX {
            strangers.push(TcpStream::connect(address).await.unwrap());
        }
        let asks = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut tls =
                tokio_rustls::TlsConnector::from(tls::client(&files).unwrap()).connect(name, tcp).await.unwrap();
            tls.write_all(b"GET /v1/state HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            // It is closed without a word of TLS, which is no matter here.
            let _ = tls.read_to_string(&mut answer).await;
            answer
        };
        let answer = tokio::time::timeout(DEADLINE / 2, asks).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // The first of them had to go for the last.
        let mut first = strangers.remove(0);
        let closed = tokio::time::timeout(DEADLINE / 2, first.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        server.abort();
    }
}
