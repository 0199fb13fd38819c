//! A certificate as we need it: read once, with everything that is compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;

use super::plan::{San, Usage};
use super::sans::wildcard_matches;

/// Certificates in one file that are read; a CA bundle of more is an error.
const MAX_IN_FILE: usize = 64;

/// A certificate that was read.
#[derive(Clone, Debug)]
pub struct Cert {
    der: Vec<u8>,
    subject_raw: Vec<u8>,
    issuer_raw: Vec<u8>,
    /// Whom it names, readable.
    pub subject: String,
    /// The subject's common name, which is the user's name where the certificate is a client's.
    pub common_name: Option<String>,
    /// Who signed it, readable.
    pub issuer: String,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    /// Bits of its public key.
    pub public_bits: Vec<u8>,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// What it may be used for. Without the extension: everything.
    pub usage: Usage,
    /// Names and addresses.
    pub sans: Vec<San>,
}

impl Cert {
    /// Reads every certificate of a PEM file, of which there must be one; other PEM blocks are skipped.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Cert>, String> {
        let mut certs = Vec::new();
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(|e| format!("it is not PEM: {e}"))?;
            if block.label != "CERTIFICATE" {
                continue;
            }
            if certs.len() == MAX_IN_FILE {
                return Err(format!("more than {MAX_IN_FILE} certificates are in it"));
            }
            certs.push(Cert::from_der(block.contents)?);
        }
        if certs.is_empty() { Err("no certificate in PEM form is in it".to_owned()) } else { Ok(certs) }
    }

    fn from_der(der: Vec<u8>) -> Result<Cert, String> {
        let (rest, x509) = x509_parser::parse_x509_certificate(&der).map_err(|e| format!("cannot be read: {e}"))?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".to_owned());
        }
        let unreadable = |what: &str| format!("its {what} cannot be read");
        let constraints = x509.basic_constraints().map_err(|_| unreadable("basic constraints"))?;
        let key_usage = x509.key_usage().map_err(|_| unreadable("key usage"))?;
        let usage = match x509.extended_key_usage().map_err(|_| unreadable("extended key usage"))? {
            None => Usage { server: true, client: true },
            Some(e) => Usage { server: e.value.any || e.value.server_auth, client: e.value.any || e.value.client_auth },
        };
        let common_name = x509.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let common_name = common_name.map(str::to_owned);
        Ok(Cert {
            subject_raw: x509.subject().as_raw().to_vec(),
            issuer_raw: x509.issuer().as_raw().to_vec(),
            subject: x509.subject().to_string(),
            common_name,
            issuer: x509.issuer().to_string(),
            not_before: x509.validity().not_before.to_datetime(),
            not_after: x509.validity().not_after.to_datetime(),
            public_bits: x509.public_key().subject_public_key.data.to_vec(),
            is_ca: constraints.is_some_and(|c| c.value.ca) && key_usage.is_none_or(|u| u.value.key_cert_sign()),
            usage,
            sans: sans_of(&x509)?,
            der,
        })
    }

    /// Whether `ca` signed this certificate: the names agree byte for byte, as Go compares them, and the signature
    /// is good.
    pub fn signed_by(&self, ca: &Cert) -> bool {
        if self.issuer_raw != ca.subject_raw || !ca.is_ca {
            return false;
        }
        let (Ok((_, this)), Ok((_, ca))) =
            (x509_parser::parse_x509_certificate(&self.der), x509_parser::parse_x509_certificate(&ca.der))
        else {
            return false;
        };
        this.verify_signature(Some(ca.public_key())).is_ok()
    }

    /// Whether it says that it signed itself, and its signature is wrong: its bytes were changed. Nobody else looks at
    /// a root's own signature, so a damaged root would otherwise be told of by whoever uses it, or never. A
    /// certificate of the same name by an older key (its key identifiers differ) has not signed itself, and a kind of
    /// signature that is not known here is not judged.
    pub fn is_damaged_root(&self) -> bool {
        let Ok((_, x509)) = x509_parser::parse_x509_certificate(&self.der) else { return true };
        let (mut own, mut issuers) = (None, None);
        for extension in x509.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0),
                ParsedExtension::AuthorityKeyIdentifier(id) => issuers = id.key_identifier.as_ref().map(|id| id.0),
                _ => {}
            }
        }
        self.issuer_raw == self.subject_raw
            && (issuers.is_none() || issuers == own)
            && matches!(x509.verify_signature(None), Err(X509Error::SignatureVerificationError))
    }

    /// The certificate in DER form.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether it holds `san` word for word.
    pub fn names(&self, san: &San) -> bool {
        self.sans.iter().any(|have| match (have, san) {
            (San::Dns(a), San::Dns(b)) => a.eq_ignore_ascii_case(b),
            (have, san) => have == san,
        })
    }

    /// Whether a TLS client that dials `san` accepts it: word for word or by a wildcard.
    pub fn serves(&self, san: &San) -> bool {
        self.names(san)
            || matches!(san, San::Dns(name) if self.sans.iter().any(
                |have| matches!(have, San::Dns(wildcard) if wildcard_matches(wildcard, name))))
    }
}

/// Whether `leaf` leads to one of `roots` through certificates that came in the same file.
pub fn leads_to(leaf: &Cert, intermediates: &[Cert], roots: &[Cert]) -> bool {
    let mut current = leaf;
    for _ in 0..=intermediates.len() {
        if roots.iter().any(|root| current.signed_by(root)) {
            return true;
        }
        match intermediates.iter().find(|next| current.signed_by(next)) {
            Some(next) => current = next,
            None => return false,
        }
    }
    false
}

fn sans_of(x509: &X509Certificate<'_>) -> Result<Vec<San>, String> {
    let Some(extension) =
        x509.subject_alternative_name().map_err(|_| "its alternative names cannot be read".to_owned())?
    else {
        return Ok(Vec::new());
    };
    let mut sans = Vec::new();
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => sans.push(San::Dns((*name).to_owned())),
            GeneralName::IPAddress(bytes) => {
                if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                    sans.push(San::Ip(IpAddr::V4(Ipv4Addr::from(v4))));
                } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                    sans.push(San::Ip(IpAddr::V6(Ipv6Addr::from(v6))));
                }
            }
            _ => {}
        }
    }
    Ok(sans)
}
