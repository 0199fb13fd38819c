//! A small Kubernetes client for the tests: JSON over HTTP/1.1 and TLS, as a kubeconfig says, connections kept.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Anything but a watch is answered within this time, or something is wrong.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// Kubernetes' answer with a status code that the caller may want to look at.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub body: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HTTP {}: {}", self.status, self.body.chars().take(600).collect::<String>())
    }
}

impl std::error::Error for Refused {}

/// The status code in an error of this client, if the server gave one.
pub fn status_of(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Refused>().map(|r| r.status)
}

pub struct Kube {
    authority: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    token: Option<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Kube {
    /// As the current context of a kubeconfig says.
    pub fn from_kubeconfig(file: &Path) -> Result<Kube> {
        Kube::of(file, None)
    }

    /// The same with another server, such as a forwarded one.
    pub fn through(file: &Path, server: SocketAddr) -> Result<Kube> {
        Kube::of(file, Some(format!("https://{server}")))
    }

    fn of(file: &Path, server: Option<String>) -> Result<Kube> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let config: Value = serde_yaml::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
        let context = entry(&config, "contexts", "context", config["current-context"].as_str())?;
        let cluster = entry(&config, "clusters", "cluster", context["cluster"].as_str())?;
        let user = entry(&config, "users", "user", context["user"].as_str())?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let named = cluster["server"].as_str().context("the cluster has no server")?;
        let server = server.as_deref().unwrap_or(named);
        let ca = bytes_of(&cluster, "certificate-authority", folder)?;
        let identity = match (bytes_of(&user, "client-certificate", folder)?, bytes_of(&user, "client-key", folder)?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            _ => None,
        };
        let token = user["token"].as_str().map(str::to_owned);
        Kube::new(server, ca.as_deref(), identity, token)
    }

    /// A server's URL, its CA (none: any certificate will do), a client certificate and key in PEM, a bearer token.
    pub fn new(
        server: &str,
        ca: Option<&[u8]>,
        identity: Option<(Vec<u8>, Vec<u8>)>,
        token: Option<String>,
    ) -> Result<Kube> {
        let authority = server.strip_prefix("https://").context("only https:// is known")?.trim_end_matches('/');
        let host = authority.rsplit_once(':').map_or(authority, |(h, _)| h).trim_matches(['[', ']']);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match ca {
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                for cert in CertificateDer::pem_slice_iter(pem) {
                    roots.add(cert?)?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate)),
        };
        let config = match identity {
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(&cert).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Kube {
            authority: authority.to_owned(),
            name: ServerName::try_from(host.to_owned())?,
            tls: TlsConnector::from(Arc::new(config)),
            token,
            idle: Mutex::new(Vec::new()),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let tcp =
            TcpStream::connect(&self.authority).await.with_context(|| format!("connect to {}", self.authority))?;
        tcp.set_nodelay(true)?;
        let tls = self.tls.connect(self.name.clone(), tcp).await.context("agree on TLS")?;
        let (sender, connection) = handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        method: &Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        sender.ready().await?;
        Ok(sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// One request; status and body whatever the status is.
    pub async fn raw(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<(u16, Bytes)> {
        let exchange = async {
            // A kept connection may have been closed meanwhile; a new one has not.
            let kept = self.idle.lock().unwrap().pop();
            if let Some(mut sender) = kept
                && let Ok(response) = self.send(&mut sender, &method, path, content_type, body.clone()).await
            {
                return self.finish(sender, response).await;
            }
            let mut sender = self.connect().await?;
            let response = self.send(&mut sender, &method, path, content_type, body).await?;
            self.finish(sender, response).await
        };
        let result = tokio::time::timeout(REQUEST_DEADLINE, exchange).await;
        result.map_err(|_| anyhow!("no answer in {REQUEST_DEADLINE:?}"))?.with_context(|| format!("{method} {path}"))
    }

    async fn finish(&self, sender: SendRequest<Full<Bytes>>, response: Response<Incoming>) -> Result<(u16, Bytes)> {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        if !sender.is_closed() {
            self.idle.lock().unwrap().push(sender);
        }
        Ok((status, body))
    }

    async fn taken(&self, method: Method, path: &str, content_type: &str, body: Option<&Value>) -> Result<Bytes> {
        let body = body.map_or_else(Bytes::new, |v| Bytes::from(v.to_string()));
        let (status, body) = self.raw(method, path, content_type, body).await?;
        if status >= 300 {
            let refused = Refused { status, body: String::from_utf8_lossy(&body).into_owned() };
            return Err(anyhow::Error::new(refused));
        }
        Ok(body)
    }

    async fn json(&self, method: Method, path: &str, content_type: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.taken(method.clone(), path, content_type, body).await?;
        serde_json::from_slice(&answer).with_context(|| format!("{method} {path}: parse the answer"))
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, "", None).await
    }

    pub async fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        self.json(Method::POST, collection, "application/json", Some(object)).await
    }

    /// As [`Kube::create`], for a caller that creates many and looks at none.
    pub async fn create_unread(&self, collection: &str, object: &Value) -> Result<()> {
        self.taken(Method::POST, collection, "application/json", Some(object)).await.map(|_| ())
    }

    pub async fn update(&self, path: &str, object: &Value) -> Result<Value> {
        self.json(Method::PUT, path, "application/json", Some(object)).await
    }

    /// A JSON merge patch (RFC 7386), which needs no resourceVersion.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        self.json(Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.json(Method::DELETE, &format!("{path}?gracePeriodSeconds=0&propagationPolicy=Background"), "", None).await
    }

    /// All items of a collection, in pages of 500, and the list's resourceVersion.
    pub async fn list(&self, collection: &str) -> Result<(Vec<Value>, String)> {
        let (mut items, mut token) = (Vec::new(), String::new());
        for _ in 0..10_000 {
            let page = self.get(&format!("{collection}?limit=500&continue={token}")).await?;
            let version = page["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            match page {
                Value::Object(mut page) => match page.remove("items") {
                    Some(Value::Array(more)) => items.extend(more),
                    _ => bail!("{collection}: the answer is not a list"),
                },
                _ => bail!("{collection}: the answer is not an object"),
            }
            if token.is_empty() {
                return Ok((items, version));
            }
        }
        bail!("{collection}: the list does not end")
    }

    /// Every object of every kind that can be listed, as `collection/namespace/name`, each as the API gives it.
    pub async fn everything(&self) -> Result<BTreeMap<String, Value>> {
        let mut versions = vec!["/api/v1".to_owned()];
        for group in self.get("/apis").await?["groups"].as_array().into_iter().flatten() {
            let preferred = group["preferredVersion"]["groupVersion"].as_str().context("a group without a version")?;
            versions.push(format!("/apis/{preferred}"));
        }
        let mut objects = BTreeMap::new();
        for version in versions {
            let resources = self.get(&version).await?;
            for resource in resources["resources"].as_array().into_iter().flatten() {
                let listable = resource["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|v| v == "list"));
                let name = resource["name"].as_str().unwrap_or_default();
                if !listable || name.contains('/') {
                    continue;
                }
                let collection = format!("{version}/{name}");
                // Component statuses probe other programs and are not stored.
                if name == "componentstatuses" {
                    continue;
                }
                for object in self.list(&collection).await?.0 {
                    let meta = &object["metadata"];
                    let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
                    objects.insert(format!("{collection}/{}/{}", text("namespace"), text("name")), object);
                }
            }
        }
        Ok(objects)
    }

    /// Events after a resourceVersion.
    pub async fn watch(&self, collection: &str, resource_version: &str) -> Result<Watch> {
        let path = format!("{collection}?watch=1&allowWatchBookmarks=true&resourceVersion={resource_version}");
        let mut sender = self.connect().await?;
        let response = self.send(&mut sender, &Method::GET, &path, "", Bytes::new()).await?;
        let status = response.status().as_u16();
        if status != 200 {
            let body = response.into_body().collect().await?.to_bytes();
            return Err(anyhow::Error::new(Refused { status, body: String::from_utf8_lossy(&body).into_owned() }));
        }
        Ok(Watch { _sender: sender, body: response.into_body(), pending: Vec::new() })
    }
}

/// An open watch.
pub struct Watch {
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    pending: Vec<u8>,
}

impl Watch {
    /// The next event (`{type, object}`), `None` when the server ended the watch; an error after `deadline`.
    pub async fn next(&mut self, deadline: Duration) -> Result<Option<Value>> {
        let next = async {
            loop {
                if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = self.pending.drain(..=end).collect();
                    return Ok(Some(serde_json::from_slice(&line)?));
                }
                match self.body.frame().await {
                    Some(frame) => self.pending.extend(frame?.into_data().unwrap_or_default()),
                    None => return Ok(None),
                }
            }
        };
        tokio::time::timeout(deadline, next).await.map_err(|_| anyhow!("no watch event in {deadline:?}"))?
    }
}

fn entry(config: &Value, list: &str, key: &str, name: Option<&str>) -> Result<Value> {
    let name = name.with_context(|| format!("the kubeconfig names no {key}"))?;
    let entries = config[list].as_array().with_context(|| format!("the kubeconfig has no {list}"))?;
    let found = entries.iter().find(|e| e["name"] == name).with_context(|| format!("no {key} is called {name}"))?;
    Ok(found[key].clone())
}

/// `KEY-data` in base64, or the file that `KEY` names.
fn bytes_of(value: &Value, key: &str, folder: &Path) -> Result<Option<Vec<u8>>> {
    if let Some(data) = value[format!("{key}-data")].as_str() {
        return Ok(Some(base64::engine::general_purpose::STANDARD.decode(data)?));
    }
    match value[key].as_str() {
        Some(file) => Ok(Some(std::fs::read(folder.join(file)).with_context(|| format!("read {file}"))?)),
        None => Ok(None),
    }
}

#[derive(Debug)]
struct AnyCertificate;

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Whether an error is of the connection rather than an answer, so that trying again is right.
pub fn is_connection_error(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<io::Error>() || e.is::<hyper::Error>())
}
