//! Whether a certificate and a key can be used. Pure.

use std::path::{Path, PathBuf};

use time::{Duration, OffsetDateTime};

use super::cert::{Cert, leads_to};
use super::key::PrivateKey;
use super::plan::{San, Usage};
use super::problem::Problem;

/// A certificate from the future is accepted this far ahead: its issuer's clock may be ahead of ours.
pub const SKEW: Duration = Duration::minutes(5);

/// A CA as it stands on disk or was just made.
#[derive(Debug)]
pub struct CaState {
    /// Its file.
    pub path: PathBuf,
    /// Its key's file.
    pub key_path: PathBuf,
    /// The file's content.
    pub pem: Vec<u8>,
    /// The certificates in the file: several while one CA succeeds another.
    pub certs: Vec<Cert>,
    /// The certificate to sign with and its key, if the key is here.
    pub signer: Option<(Cert, PrivateKey)>,
}

/// Whether `at` lies in the validity.
fn in_time(cert: &Cert, now: OffsetDateTime) -> Result<(), Problem> {
    if now + SKEW < cert.not_before {
        Err(Problem::NotYetValid(cert.not_before))
    } else if now >= cert.not_after {
        Err(Problem::Expired(cert.not_after))
    } else {
        Ok(())
    }
}

/// Checks a CA file with its key, if that is here. Of several certificates one must be valid and, with a key, belong
/// to it.
///
/// Gives the certificate that the key belongs to, or the first valid one.
pub fn ca<'a>(
    certs: &'a [Cert],
    key: Option<&PrivateKey>,
    key_path: PathBuf,
    now: OffsetDateTime,
) -> Result<&'a Cert, Problem> {
    if certs.iter().any(Cert::is_damaged_root) {
        return Err(Problem::NotACertificate("its own signature is wrong, so it was changed".to_owned()));
    }
    let mut candidates: Vec<&Cert> = certs.iter().filter(|cert| cert.is_ca).collect();
    if candidates.is_empty() {
        return Err(Problem::NotACa);
    }
    if let Some(key) = key {
        candidates.retain(|cert| cert.public_bits == key.public_bits());
    }
    let Some(first) = candidates.first() else {
        return Err(Problem::KeyMismatch(key_path));
    };
    match candidates.iter().find(|cert| in_time(cert, now).is_ok()) {
        Some(cert) => Ok(cert),
        None => in_time(first, now).map(|()| *first),
    }
}

/// Checks the certificates of a file (the leaf first) against its key, its CA and what it is needed for.
/// [`Problem::Expired`] comes last: where it is given, nothing else is wrong.
pub fn leaf(
    certs: &[Cert],
    key: &PrivateKey,
    key_path: PathBuf,
    ca: &CaState,
    needs: Usage,
    now: OffsetDateTime,
) -> Result<(), Problem> {
    let Some((leaf, intermediates)) = certs.split_first() else {
        return Err(Problem::NotACertificate("no certificate is in it".to_owned()));
    };
    if leaf.public_bits != key.public_bits() {
        return Err(Problem::KeyMismatch(key_path));
    }
    if !leads_to(leaf, intermediates, &ca.certs) {
        return Err(Problem::NotSignedBy(ca.path.clone()));
    }
    if !leaf.usage.covers(needs) {
        return Err(Problem::WrongUsage { has: leaf.usage, needs });
    }
    in_time(leaf, now)
}

/// What the names in etcd's certificates mean for this pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNames {
    /// etcd must not compare its callers' addresses with the names in their certificate.
    pub skip_san: bool,
    /// What the operator should know.
    pub warning: Option<String>,
}

/// Compares the peer certificate with the names that peers are called by. Words of a wildcard are found by reverse
/// lookups only, so a certificate that has nothing else makes members depend on those, and the check is left out, as
/// vCluster itself does; that a caller's certificate is signed by etcd's CA is checked in any case. `path` is its file.
pub fn peer_names(path: &Path, cert: &Cert, names: &[San]) -> PeerNames {
    let skip_san = names.iter().any(|name| !cert.names(name));
    let lacking: Vec<_> = names.iter().filter(|name| !cert.serves(name)).map(San::to_string).collect();
    let warning = (!lacking.is_empty()).then(|| {
        format!(
            "{} does not hold {}: etcd is told not to compare its callers' names, and a pod of such a name that has this \
             certificate cannot be dialled by others; issue it with these names, as `syncer certs` does",
            path.display(),
            lacking.join(", ")
        )
    });
    PeerNames { skip_san, warning }
}
