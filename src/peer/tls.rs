//! mTLS with etcd's certificates: both sides show one, both verify it against etcd's CA.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::pki::EtcdTlsFiles;
use crate::pki::layout::read_pem;

struct Files {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Read anew for each configuration: certificates are renewed while the pod runs.
fn read(ca: &Path, cert: &Path, key: &Path) -> anyhow::Result<Files> {
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).with_context(|| format!("use the CA in {}", ca.display()))?;
    }
    let key =
        PrivateKeyDer::from_pem_slice(&read_pem(key)?).with_context(|| format!("read the key in {}", key.display()))?;
    Ok(Files { roots: Arc::new(roots), chain: certificates(cert)?, key })
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(&read_pem(path)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("read the certificates in {}", path.display()))
}

/// For asking: shows etcd's client certificate, verifies the other's CA and name. Not the peer certificate: etcd looks up each
/// name in one, and the caller's address, in DNS at each connection (`listener_tls.go`, `checkCertSAN`); this has none.
pub fn client(files: &EtcdTlsFiles) -> anyhow::Result<Arc<ClientConfig>> {
    let Files { roots, chain, key } = read(&files.peer_ca, &files.client_cert, &files.client_key)?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .context("use the client certificate with its key")?;
    Ok(Arc::new(config))
}

/// For answering: whoever asks must show a certificate of etcd's CA.
pub fn server(files: &EtcdTlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let Files { roots, chain, key } = read(&files.peer_ca, &files.peer_cert, &files.peer_key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .context("verify callers by etcd's CA")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("use the peer certificate with its key")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
