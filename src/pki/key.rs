//! Private keys: made, read in each form that vCluster's charts and kubeadm write, and never printed.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

/// A private key that can sign. PKCS#8, PKCS#1 ("RSA PRIVATE KEY", what vCluster writes) and SEC1 ("EC PRIVATE KEY")
/// are read; RSA of 2048 to 8192 bits, ECDSA on P-256 and P-384, Ed25519.
///
/// New keys are ECDSA P-256: faster in each handshake than RSA 2048, and understood by every etcd and Kubernetes. The
/// service account key too: kube-apiserver then signs tokens with ES256, and clients treat tokens as opaque.
pub struct PrivateKey {
    signing: Arc<dyn rustls::sign::SigningKey>,
    scheme: SignatureScheme,
    algorithm: &'static SignatureAlgorithm,
    public_spki: Vec<u8>,
    public_bits: Vec<u8>,
    pem: Vec<u8>,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?})", self.scheme)
    }
}

impl PrivateKey {
    /// A new key.
    pub fn generate() -> anyhow::Result<PrivateKey> {
        let pem = rcgen::KeyPair::generate()?.serialize_pem();
        PrivateKey::from_pem(pem.as_bytes()).map_err(anyhow::Error::msg)
    }

    /// Reads the first key of a PEM file. The error says what is wrong without showing any of it.
    pub fn from_pem(pem: &[u8]) -> Result<PrivateKey, String> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "no private key in PEM form is in it".to_owned())?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&der)
            .map_err(|_| "it is neither RSA of 2048 bits and more, nor ECDSA P-256 or P-384, nor Ed25519".to_owned())?;
        let (scheme, algorithm) = KINDS
            .iter()
            .copied()
            .find(|(scheme, _)| signing.choose_scheme(&[*scheme]).is_some())
            .ok_or_else(|| "it cannot sign".to_owned())?;
        let public_spki = signing.public_key().ok_or_else(|| "its public key is unknown".to_owned())?.to_vec();
        let public_bits = public_bits_of(&public_spki)?;
        Ok(PrivateKey { signing, scheme, algorithm, public_spki, public_bits, pem: pem.to_vec() })
    }

    /// The key as PEM, exactly as it was read or made.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// The public key's bits, as they stand in a certificate for it.
    pub fn public_bits(&self) -> &[u8] {
        &self.public_bits
    }

    /// The public key as a PKIX PEM file, the form of `sa.pub`.
    pub fn public_pem(&self) -> String {
        pem_block("PUBLIC KEY", &self.public_spki)
    }
}

const KINDS: [(SignatureScheme, &SignatureAlgorithm); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, &rcgen::PKCS_ECDSA_P384_SHA384),
    (SignatureScheme::RSA_PKCS1_SHA256, &rcgen::PKCS_RSA_SHA256),
    (SignatureScheme::ED25519, &rcgen::PKCS_ED25519),
];

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public_bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = self.signing.choose_scheme(&[self.scheme]).ok_or(rcgen::Error::RemoteKeyError)?;
        signer.sign(msg).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The keys of a public key file (`sa.pub`), as bits: PKIX public keys, PKCS#1 RSA public keys, and certificates, which
/// is what kube-apiserver accepts there (`client-go/util/keyutil`).
pub fn public_keys_of(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut keys = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(pem).take(64) {
        let block = block.map_err(|_| "it is not PEM".to_owned())?;
        match block.label.as_str() {
            "PUBLIC KEY" => keys.push(public_bits_of(&block.contents)?),
            "RSA PUBLIC KEY" => keys.push(block.contents),
            "CERTIFICATE" => {
                let certificate = block.parse_x509().map_err(|_| "a certificate in it cannot be read".to_owned())?;
                keys.push(certificate.public_key().subject_public_key.data.to_vec());
            }
            _ => {}
        }
    }
    if keys.is_empty() { Err("no public key in PEM form is in it".to_owned()) } else { Ok(keys) }
}

fn public_bits_of(spki: &[u8]) -> Result<Vec<u8>, String> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| "its public key cannot be read".to_owned())?;
    Ok(info.subject_public_key.data.to_vec())
}

fn pem_block(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn openssl(args: &[&str]) -> Vec<u8> {
        let output = Command::new("openssl").args(args).output().expect("openssl is installed");
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[test]
    fn every_form_of_key_is_read_and_its_public_half_is_openssls() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        let path = file.to_str().unwrap();
        for args in [
            &["genrsa", "-traditional", "-out", path, "2048"][..],
            &["genrsa", "-out", path, "2048"],
            &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path],
            &["ecparam", "-name", "secp384r1", "-genkey", "-out", path],
            &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path],
        ] {
            openssl(args);
            let pem = std::fs::read(&file).unwrap();
            let key = PrivateKey::from_pem(&pem).unwrap_or_else(|e| panic!("{args:?}: {e}"));
            assert_eq!(key.public_pem().as_bytes(), openssl(&["pkey", "-in", path, "-pubout"]), "{args:?}");
            assert_eq!(public_keys_of(key.public_pem().as_bytes()).unwrap(), [key.public_bits().to_vec()]);
            assert_eq!(key.pem(), pem);
            key.sign(b"x").unwrap();
        }
    }

    #[test]
    fn unusable_keys_are_refused_without_showing_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        let path = file.to_str().unwrap();
        openssl(&["genrsa", "-out", path, "1024"]);
        let weak = std::fs::read(&file).unwrap();
        openssl(&["ecparam", "-name", "secp521r1", "-genkey", "-noout", "-out", path]);
        let exotic = std::fs::read(&file).unwrap();
        for pem in
            [&weak[..], &exotic, b"", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            let error = PrivateKey::from_pem(pem).unwrap_err();
            assert!(error.len() < 120 && !error.contains("AAAA"), "{error}");
        }
        assert!(public_keys_of(b"nothing").is_err());
    }

    #[test]
    fn debug_shows_nothing_of_the_key() {
        assert_eq!(format!("{:?}", PrivateKey::generate().unwrap()), "PrivateKey(ECDSA_NISTP256_SHA256)");
    }
}
