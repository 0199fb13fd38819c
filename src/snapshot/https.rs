//! HTTP for object storage: the library that speaks S3 brings none that fits a static binary without a second TLS stack.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper::header::{HeaderValue, IF_NONE_MATCH};
use hyper::{Method, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use rustls::{ClientConfig, RootCertStore};

/// For a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// From a request to the head of its answer. A part of a snapshot has gone up by then.
const ANSWER: Duration = Duration::from_secs(120);

/// Connections to object storage, over plain HTTP or TLS.
#[derive(Clone, Debug)]
pub struct Connections {
    client: Client<HttpsConnector<TcpConnector>, HttpRequestBody>,
}

impl Connections {
    /// With TLS, servers are trusted by the machine's own roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others), or where
    /// there are none, as in an image from scratch, by Mozilla's.
    ///
    /// # Errors
    /// The roots that a variable names cannot be read.
    pub fn new() -> anyhow::Result<Self> {
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_root_certificates(roots()?)
            .with_no_client_auth();
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Ok(Connections { client: Client::builder(TokioExecutor::new()).build(connector.wrap_connector(tcp)) })
    }
}

fn roots() -> anyhow::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find(|name| std::env::var_os(name).is_some());
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        if let Some(name) = named {
            let why = found.errors.first().map_or_else(|| "none is in it".to_owned(), ToString::to_string);
            ensure!(usable > 0, "read the certificates that {name} names: {why}");
        }
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(roots)
}

impl HttpConnector for Connections {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// What servers say that do not know a condition.
const DOES_NOT_KNOW: [StatusCode; 2] = [StatusCode::BAD_REQUEST, StatusCode::NOT_IMPLEMENTED];

/// The request by which the parts of an object are put together, on the condition that there is none of its name: the library
/// asks for that without one. `None` if it is another.
fn once(request: &HttpRequest) -> Option<HttpRequest> {
    let completes = |query: &str| query.split('&').any(|part| part.starts_with("uploadId="));
    if request.method() != Method::POST || !request.uri().query().is_some_and(completes) {
        return None;
    }
    let mut once = request.clone();
    once.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
    Some(once)
}

#[async_trait]
impl HttpService for Connections {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = match once(&request) {
            None => answered(self.client.request(request)).await?,
            Some(once) => match answered(self.client.request(once)).await? {
                // Such a server takes the place of what is there, as all did once.
                answer if DOES_NOT_KNOW.contains(&answer.status()) => answered(self.client.request(request)).await?,
                answer => answer,
            },
        };
        let (head, body) = answer.into_parts();
        let body = body.map_err(|e| HttpError::new(kind(&e), e));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

async fn answered<T>(
    request: impl Future<Output = Result<T, hyper_util::client::legacy::Error>>,
) -> Result<T, HttpError> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) if e.is_connect() => Err(HttpError::new(HttpErrorKind::Connect, e)),
        Ok(Err(e)) => Err(HttpError::new(kind(&e), e)),
        Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, io::Error::from(io::ErrorKind::TimedOut))),
    }
}

/// What a failure was, by what lies beneath it: a request is sent again only when that is known.
fn kind(error: &(dyn std::error::Error + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(e) = error.downcast_ref::<hyper::Error>() {
            if e.is_timeout() {
                return HttpErrorKind::Timeout;
            }
            if e.is_closed() || e.is_incomplete_message() || e.is_body_write_aborted() {
                return HttpErrorKind::Request;
            }
        }
        if let Some(e) = error.downcast_ref::<io::Error>() {
            match e.kind() {
                io::ErrorKind::TimedOut => return HttpErrorKind::Timeout,
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => return HttpErrorKind::Interrupted,
                _ => {}
            }
        }
        cause = error.source();
    }
    HttpErrorKind::Unknown
}
