//! Asking etcd over HTTP/1.1: the two questions that it answers without a quorum.
//!
//! * `GET /livez` on the metrics URL (plain HTTP on loopback): 200 while the process and its store work.
//! * `GET /members` on the peer port: what the member itself knows, served while the client port is silent before a
//!   quorum (`server/etcdserver/api/etcdhttp/peer.go`). Without an agreement: it may be out of date.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::client::Member;
use crate::ids::{ClusterId, RaftIndex};

/// No answer that we ask for is longer.
const BODY_MAX: usize = 1 << 20;

/// Why there was no answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// No answer in time.
    #[error("GET {path}: no answer within {} ms", deadline.as_millis())]
    Deadline {
        /// What was asked for.
        path: &'static str,
        /// The time that was given.
        deadline: Duration,
    },
    /// Nobody listens, or the connection broke.
    #[error("GET {path}")]
    Io {
        /// What was asked for.
        path: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that is not what etcd answers.
    #[error("GET {path}: {what}")]
    Answer {
        /// What was asked for.
        path: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// What a member says of its cluster, without asking the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// The cluster that it is in (`X-Etcd-Cluster-ID`).
    pub cluster: ClusterId,
    /// The members that it knows of.
    pub members: Vec<Member>,
}

/// Whether etcd answers 200 to `/livez` on its metrics address.
pub async fn livez(metrics: SocketAddr, deadline: Duration) -> Result<bool, HttpError> {
    let path = "/livez";
    let ask = async {
        let stream = TcpStream::connect(metrics).await.map_err(|e| io(path, e))?;
        get(stream, &metrics.to_string(), path).await
    };
    Ok(bounded(path, deadline, ask).await?.0 == StatusCode::OK)
}

/// The last entry that etcd has applied, from its metrics, which it shows before it answers clients: those wait until it
/// has proposed its own name, and a joiner's first such proposal is lost while it installs the leader's snapshot, which
/// it notices after seven seconds.
///
/// `etcd_server_proposals_applied_total` is a gauge of that entry's index (`applyAll` in `server/etcdserver/server.go`).
pub async fn applied(metrics: SocketAddr, deadline: Duration) -> Result<RaftIndex, HttpError> {
    const GAUGE: &str = "etcd_server_proposals_applied_total ";
    let path = "/metrics";
    let ask = async {
        let stream = TcpStream::connect(metrics).await.map_err(|e| io(path, e))?;
        get(stream, &metrics.to_string(), path).await
    };
    let (_, _, body) = bounded(path, deadline, ask).await?;
    let text = String::from_utf8_lossy(&body);
    let value = text.lines().find_map(|line| line.strip_prefix(GAUGE)).and_then(|value| value.trim().parse().ok());
    // Go writes the gauge as a floating-point number. Beyond 2^53 entries it would not be exact; no log is as long.
    let index = value.filter(|value: &f64| (0.0..9e15).contains(value)).map(|value| RaftIndex(value as u64));
    index.ok_or_else(|| HttpError::Answer { path, what: format!("no number at {GAUGE}") })
}

/// What the member behind `stream`, a connection to its peer port (TLS already spoken), says of its cluster. `host` is
/// the name it was reached by.
pub async fn members(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    deadline: Duration,
) -> Result<PeerView, HttpError> {
    let path = "/members";
    let (status, headers, body) = bounded(path, deadline, get(stream, host, path)).await?;
    if status != StatusCode::OK {
        return Err(HttpError::Answer { path, what: format!("status {status}") });
    }
    let cluster = headers.get("x-etcd-cluster-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let cluster = cluster.ok_or_else(|| HttpError::Answer { path, what: "no valid X-Etcd-Cluster-ID".into() })?;
    Ok(PeerView { cluster, members: parse_members(&body)? })
}

fn parse_members(body: &[u8]) -> Result<Vec<Member>, HttpError> {
    serde_json::from_slice(body).map_err(|e| HttpError::Answer { path: "/members", what: e.to_string() })
}

/// One question on a connection of its own.
pub(crate) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &'static str,
) -> Result<(StatusCode, HeaderMap, Bytes), HttpError> {
    exchange(stream, Method::GET, host, path).await
}

/// One request without a body on a connection of its own.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    host: &str,
    path: &'static str,
) -> Result<(StatusCode, HeaderMap, Bytes), HttpError> {
    let fail = |e: hyper::Error| io(path, e);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(fail)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| io(path, e))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(fail)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(|source| HttpError::Io { path, source })?;
        Ok((head.status, head.headers, body.to_bytes()))
    };
    // Driven here rather than by a task of its own, so that nothing is left when the deadline cuts it short.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The answer may have come in full before the connection ended.
        _ = &mut connection => exchange.await,
    }
}

pub(crate) fn io(path: &'static str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HttpError {
    HttpError::Io { path, source: error.into() }
}

pub(crate) async fn bounded<T>(
    path: &'static str,
    deadline: Duration,
    ask: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    tokio::time::timeout(deadline, ask).await.map_err(|_| HttpError::Deadline { path, deadline })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemberId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SOON: Duration = Duration::from_millis(500);

    async fn ask(answer: &'static [u8]) -> Result<PeerView, HttpError> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut request = vec![0; 4096];
            let _ = theirs.read(&mut request).await;
            let _ = theirs.write_all(answer).await;
            // An answer cut short is what a stalled peer looks like: the connection stays open.
            std::future::pending::<()>().await;
        });
        members(ours, "localhost", SOON).await
    }

    #[tokio::test]
    async fn members_are_read() {
        let view = ask(b"HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: cdf818194e3a8c32\r\nContent-Length: 119\r\n\r\n\
              [{\"id\":18446744073709551615,\"peerURLs\":[\"https://a:2380\"],\"name\":\"a\"},\
              {\"id\":2,\"peerURLs\":[\"p\"],\"isLearner\":true}      ]")
        .await
        .expect("a view");
        assert_eq!(view.cluster, ClusterId(0xcdf8_1819_4e3a_8c32));
        assert_eq!(view.members[0].id, MemberId(u64::MAX));
        assert_eq!((view.members[1].learner, &*view.members[1].name), (true, ""));
    }

    #[tokio::test]
    async fn anything_else_is_an_error_in_time() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: 1\r\nContent-Length: 100\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: zz\r\nContent-Length: 2\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: 1\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n",
        ] {
            let begun = std::time::Instant::now();
            let text = String::from_utf8_lossy(answer);
            assert!(ask(answer).await.is_err(), "{text}");
            assert!(begun.elapsed() < SOON * 4, "{text}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        assert!(applied(([127, 0, 0, 1], 1).into(), SOON).await.is_err());
        assert!(livez(([127, 0, 0, 1], 1).into(), SOON).await.is_err());
    }
}
