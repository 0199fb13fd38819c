//! Whether a child serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::spec::Ready;
use crate::pki::EtcdTlsFiles;

/// One question and its answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// How etcd is asked.
#[derive(Clone, Debug)]
pub struct EtcdAccess {
    /// Its client port on loopback.
    pub port: u16,
    /// Certificates.
    pub tls: EtcdTlsFiles,
}

/// Returns when the child serves. Asks again and again, more and more slowly; it is for the caller to give up when the
/// child has ended.
pub async fn serves(ready: &Ready, etcd: &EtcdAccess) {
    let mut pause = FIRST_PAUSE;
    loop {
        match tokio::time::timeout(DEADLINE, ask(ready, etcd)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::trace!("not yet: {error:#}"),
            Err(_) => tracing::trace!("not yet: no answer"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(LAST_PAUSE);
    }
}

async fn ask(ready: &Ready, etcd: &EtcdAccess) -> anyhow::Result<()> {
    match ready {
        Ready::Started => Ok(()),
        Ready::UnixSocket(path) => UnixStream::connect(path).await.map(|_| ()).context("connect"),
        Ready::EtcdLinearizableRead => linearizable_read(etcd).await,
        Ready::HttpsReadyz(address) => readyz(*address).await,
    }
}

async fn linearizable_read(etcd: &EtcdAccess) -> anyhow::Result<()> {
    // A refused connection is told apart at once here; the client would wait before its second try.
    drop(TcpStream::connect(("127.0.0.1", etcd.port)).await.context("connect")?);
    let read = |path| std::fs::read(path).with_context(|| format!("read {}", std::path::Path::display(path)));
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&etcd.tls.ca)?))
        .identity(Identity::from_pem(read(&etcd.tls.client_cert)?, read(&etcd.tls.client_key)?));
    let options = ConnectOptions::new().with_tls(tls).with_timeout(DEADLINE);
    let mut client = Client::connect([format!("https://localhost:{}", etcd.port)], Some(options)).await?;
    client.get("health", Some(GetOptions::new().with_count_only())).await?;
    Ok(())
}

async fn readyz(address: SocketAddr) -> anyhow::Result<()> {
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OwnChild(provider)))
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await.context("connect")?;
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    anyhow::ensure!(&head == b"HTTP/1.1 200", "not ready: {}", String::from_utf8_lossy(&head));
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
