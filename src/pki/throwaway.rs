//! Certificates for an etcd that lives for minutes, on loopback only.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::layout::EtcdTlsFiles;

/// How long such a certificate is valid: longer than any import takes.
const LIFE: Duration = Duration::days(7);

/// Makes a CA and one certificate for server, peer and client of an etcd that listens on loopback only, and writes
/// them under `dir` (made if missing; files of an earlier call are replaced). The CA's key is not kept, so nobody can
/// issue another certificate that this etcd accepts. Not durable: an etcd that was killed gets new ones.
pub fn throwaway(dir: &Path) -> anyhow::Result<EtcdTlsFiles> {
    let now = OffsetDateTime::now_utc();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(named(ca, "syncer verification CA", now), KeyPair::generate()?)
        .context("make the verification etcd's CA")?;

    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![
        SanType::DnsName("localhost".try_into().context("name localhost")?),
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
    ];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = named(leaf, "syncer verification", now)
        .signed_by(&key, &ca)
        .context("issue the verification etcd's certificate")?;

    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("make {}", dir.display()))?;
    let write = |name: &str, text: &str| -> anyhow::Result<_> {
        let path = dir.join(name);
        write_private(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let ca = write("ca.crt", &ca.pem())?;
    let key = write("etcd.key", &key.serialize_pem())?;
    let cert = write("etcd.crt", &cert.pem())?;
    Ok(EtcdTlsFiles {
        ca: ca.clone(),
        server_cert: cert.clone(),
        server_key: key.clone(),
        peer_ca: ca,
        peer_cert: cert.clone(),
        peer_key: key.clone(),
        client_cert: cert,
        client_key: key,
    })
}

fn named(mut params: CertificateParams, name: &str, now: OffsetDateTime) -> CertificateParams {
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - Duration::hours(1);
    params.not_after = now + LIFE;
    params
}

/// Replaces a file by one that only its owner reads: a file that exists keeps its mode, so it is removed first.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::pem::parse_x509_pem;

    #[test]
    fn serves_loopback_only_and_replaces_what_an_earlier_call_left() {
        let dir = tempfile::tempdir().unwrap();
        let first = throwaway(&dir.path().join("tls")).unwrap();
        let before = fs::read(&first.server_key).unwrap();
        let files = throwaway(&dir.path().join("tls")).unwrap();
        assert_ne!(fs::read(&files.server_key).unwrap(), before);
        assert_eq!(fs::metadata(&files.server_key).unwrap().permissions().mode() & 0o777, 0o600);

        let (_, pem) = parse_x509_pem(&fs::read(&files.server_cert).unwrap()).unwrap();
        let leaf = pem.parse_x509().unwrap();
        let (_, ca_pem) = parse_x509_pem(&fs::read(&files.ca).unwrap()).unwrap();
        let ca = ca_pem.parse_x509().unwrap();
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth);
        assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 3);
        assert_eq!(fs::read_dir(dir.path().join("tls")).unwrap().count(), 3, "the CA's key must not be kept");
    }
}
