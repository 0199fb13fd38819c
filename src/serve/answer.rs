//! Our own HTTPS answers on port 8443, for as long as there is no API server to pass to.
//!
//! One request a connection, then it is closed: a client that keeps connections must not stay with us after the API
//! server is there. Everything a client may hold is bounded: the time for all of it, the size of a request's head.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::health::{Health, Serves, answer_to};
use crate::pki::layout::read_pem;

/// From the connection's start to its end: handshake, request and answer. A kubelet's probe gives up after 1 to 3 s.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);

/// The largest request head that is read (hyper's least).
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Certificate files are looked at again no more often than this.
const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// The certificate of our own answers: the API server's, so that clients find the same before and after; a self-made
/// one where there is none (`distro: none`, k3s).
pub struct ServingCertificate {
    cert: PathBuf,
    key: PathBuf,
    names: Vec<String>,
    current: Mutex<Option<Loaded>>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// When the files that are in use were written; `None` for a self-made certificate.
    stamp: Option<(SystemTime, SystemTime)>,
    looked: Instant,
}

impl ServingCertificate {
    /// From `apiserver.crt` and `.key` in the PKI directory; `names` are those of a self-made one.
    pub fn new(pki_dir: &Path, names: Vec<String>) -> ServingCertificate {
        ServingCertificate {
            cert: pki_dir.join("apiserver.crt"),
            key: pki_dir.join("apiserver.key"),
            names,
            current: Mutex::new(None),
        }
    }

    /// The TLS configuration, with the files read again if they have changed. Files that cannot be used leave what was
    /// in use before in place.
    pub fn config(&self) -> Result<Arc<ServerConfig>> {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(loaded) = current.as_mut()
            && loaded.looked.elapsed() < RELOAD_EVERY
        {
            return Ok(Arc::clone(&loaded.config));
        }
        let stamp = self.stamp();
        let looked = Instant::now();
        match current.as_mut() {
            Some(loaded) if stamp.is_none() || loaded.stamp == stamp => {
                loaded.looked = looked;
                return Ok(Arc::clone(&loaded.config));
            }
            _ => {}
        }
        let from_files = stamp.map(|stamp| (stamp, load(&self.cert, &self.key)));
        let loaded = match (from_files, current.take()) {
            (Some((stamp, Ok(config))), _) => Loaded { config, stamp: Some(stamp), looked },
            (Some((stamp, Err(error))), before) => {
                tracing::warn!(error = format!("{error:#}"), "the API server's certificate cannot be used for probes");
                let config = before.map_or_else(|| self_made(&self.names), |b| Ok(b.config))?;
                Loaded { config, stamp: Some(stamp), looked }
            }
            (None, _) => Loaded { config: self_made(&self.names)?, stamp: None, looked },
        };
        Ok(Arc::clone(&current.insert(loaded).config))
    }

    fn stamp(&self) -> Option<(SystemTime, SystemTime)> {
        let modified = |file: &Path| fs::metadata(file).and_then(|m| m.modified()).ok();
        Some((modified(&self.cert)?, modified(&self.key)?))
    }
}

fn load(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(&read_pem(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("read the certificates in {}", cert.display()))?;
    let key =
        PrivateKeyDer::from_pem_slice(&read_pem(key)?).with_context(|| format!("read the key in {}", key.display()))?;
    tls(chain, key).with_context(|| format!("use {} with its key", cert.display()))
}

fn self_made(names: &[String]) -> Result<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed(names.to_vec()).context("make a certificate for probes")?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    tls(vec![made.cert.der().clone()], key).context("use a self-made certificate")
}

fn tls(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Answers one request and closes. A client that is too slow, speaks no TLS or sends nonsense is dropped: that is
/// its own affair and not worth more than a debug line.
pub async fn answer(stream: TcpStream, config: Arc<ServerConfig>, health: Health, serves: Serves) {
    let deadline = tokio::time::timeout(CONNECTION_DEADLINE, exchange(stream, config, health, serves));
    match deadline.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "a client of the front port failed"),
        Err(_) => tracing::debug!("a client of the front port was too slow"),
    }
}

async fn exchange(stream: TcpStream, config: Arc<ServerConfig>, health: Health, serves: Serves) -> Result<()> {
    let stream = TlsAcceptor::from(config).accept(stream).await.context("agree on TLS")?;
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let response = respond(&request, health, serves);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .context("answer a request")
}

fn respond<B>(request: &Request<B>, health: Health, serves: Serves) -> Response<Full<Bytes>> {
    let answer = answer_to(request.method().as_str(), request.uri().path(), health, serves);
    let mut response = Response::new(Full::new(Bytes::from_static(answer.body.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if answer.status == 503 {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
