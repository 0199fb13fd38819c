//! Issues certificates and kubeconfigs. No I/O; only the random numbers are not pure.

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::cert::Cert;
use super::key::PrivateKey;
use super::plan::{CaName, LeafPlan, San, Subject};

/// How long a CA is valid: ten years, as kubeadm's.
pub const CA_LIFE: Duration = Duration::days(3650);
/// How long any other certificate is valid: one year, as kubeadm's.
pub const LEAF_LIFE: Duration = Duration::days(365);
/// Certificates begin this much before they are issued, for readers whose clock is behind.
pub const BACKDATE: Duration = Duration::hours(1);

/// A CA's certificate, signed by itself, for `key`.
pub fn ca_certificate(name: CaName, key: &PrivateKey, now: OffsetDateTime) -> anyhow::Result<String> {
    let subject = Subject { common_name: name.common_name().to_owned(), organization: None };
    let mut params = params(&subject, now, now + CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    // Clients that check names in CAs too want one (kubeadm sets the same).
    params.subject_alt_names = vec![SanType::DnsName(name.common_name().try_into().context("encode the CA's name")?)];
    let certificate = params.self_signed(key).with_context(|| format!("sign the CA {}", name.common_name()))?;
    Ok(certificate.pem())
}

/// A certificate for `key`, signed by `ca`. It does not outlive its CA.
pub fn leaf_certificate(
    plan: &LeafPlan,
    key: &PrivateKey,
    ca: &Cert,
    ca_key: &PrivateKey,
    now: OffsetDateTime,
) -> anyhow::Result<String> {
    let mut params = params(&plan.subject, now, (now + LEAF_LIFE).min(ca.not_after));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if plan.usage.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if plan.usage.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    for san in &plan.sans {
        params.subject_alt_names.push(match san {
            San::Ip(ip) => SanType::IpAddress(*ip),
            San::Dns(name) => {
                SanType::DnsName(name.as_str().try_into().with_context(|| format!("encode the name {name}"))?)
            }
        });
    }
    params.use_authority_key_identifier_extension = true;
    let issuer =
        Issuer::from_ca_cert_der(&CertificateDer::from(ca.der()), ca_key).context("read the CA to sign with")?;
    let certificate = params.signed_by(key, &issuer).with_context(|| format!("sign {}", plan.subject.common_name))?;
    Ok(certificate.pem())
}

fn params(subject: &Subject, now: OffsetDateTime, not_after: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = subject.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, subject.common_name.as_str());
    params.not_before = now - BACKDATE;
    params.not_after = not_after;
    // Random, because the default is a hash of the key, and a renewed certificate keeps its key: two certificates of
    // one CA must not have the same number. The top bit is clear so that the number is positive in 16 bytes.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

#[cfg(test)]
mod tests {
    use super::super::cert::leads_to;
    use super::super::plan::{Usage, tests::input};
    use super::super::sans;
    use super::*;
    use crate::settings::Distro;

    fn leaf_plan() -> LeafPlan {
        LeafPlan {
            issuer: CaName::Etcd,
            subject: Subject { common_name: "my".to_owned(), organization: Some("system:masters") },
            usage: Usage { server: true, client: false },
            sans: sans::etcd(&input(Distro::K3s)).unwrap(),
        }
    }

    #[test]
    fn a_leaf_holds_what_the_plan_says_and_leads_to_its_ca() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (ca_key, key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let ca = Cert::all_from_pem(ca_certificate(CaName::Etcd, &ca_key, now).unwrap().as_bytes()).unwrap();
        let pem = leaf_certificate(&leaf_plan(), &key, &ca[0], &ca_key, now).unwrap();
        let leaf = &Cert::all_from_pem(pem.as_bytes()).unwrap()[0];

        assert!(leads_to(leaf, &[], &ca) && ca[0].is_ca && !leaf.is_ca);
        assert_eq!(leaf.subject, "O=system:masters, CN=my");
        assert_eq!(leaf.usage, Usage { server: true, client: false });
        assert_eq!(leaf.sans, leaf_plan().sans);
        assert_eq!(leaf.public_bits, key.public_bits());
        assert_eq!((leaf.not_before, leaf.not_after), (now - BACKDATE, now + LEAF_LIFE));
        assert_eq!(ca[0].not_after, now + CA_LIFE);

        let other = Cert::all_from_pem(ca_certificate(CaName::Etcd, &key, now).unwrap().as_bytes()).unwrap();
        assert!(!leads_to(leaf, &[], &other), "same name, another key");
        assert!(!leads_to(leaf, &other, &[]), "a chain that leads nowhere ends");
    }

    #[test]
    fn a_leaf_does_not_outlive_its_ca_and_numbers_are_never_reused() {
        let made = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let now = made + CA_LIFE - Duration::days(10);
        let key = PrivateKey::generate().unwrap();
        let ca = &Cert::all_from_pem(ca_certificate(CaName::Etcd, &key, made).unwrap().as_bytes()).unwrap()[0];
        let issue = || leaf_certificate(&leaf_plan(), &key, ca, &key, now).unwrap();
        let (a, b) = (issue(), issue());
        let certs = Cert::all_from_pem(format!("{a}{b}").as_bytes()).unwrap();
        assert_eq!(certs[0].not_after, ca.not_after);
        let serial = |c: &Cert| x509_parser::parse_x509_certificate(c.der()).unwrap().1.raw_serial().to_vec();
        assert_ne!(serial(&certs[0]), serial(&certs[1]));
    }
}
