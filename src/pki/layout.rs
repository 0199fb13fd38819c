//! Where each certificate and key is: the files and names of a vCluster PKI directory, which are kubeadm's.

use std::path::{Path, PathBuf};

/// The TLS files of an etcd member and of a client that talks to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTlsFiles {
    /// CA of client and server certificates (`--trusted-ca-file`).
    pub ca: PathBuf,
    /// Serving certificate of the client port (`--cert-file`).
    pub server_cert: PathBuf,
    /// Its key (`--key-file`).
    pub server_key: PathBuf,
    /// CA of the peers' certificates (`--peer-trusted-ca-file`).
    pub peer_ca: PathBuf,
    /// Certificate of the peer port, for serving and dialling (`--peer-cert-file`).
    pub peer_cert: PathBuf,
    /// Its key (`--peer-key-file`).
    pub peer_key: PathBuf,
    /// Client certificate for our own calls to etcd.
    pub client_cert: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
}

/// A PKI directory in vCluster's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiPaths {
    dir: PathBuf,
}

impl PkiPaths {
    /// The layout under `dir`: `/pki`, `<data>/pki` or `<data>/k0s/pki`.
    pub fn new(dir: &Path) -> Self {
        PkiPaths { dir: dir.to_owned() }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that etcd and our own etcd client use.
    pub fn etcd_tls(&self) -> EtcdTlsFiles {
        let etcd = self.dir.join("etcd");
        EtcdTlsFiles {
            ca: etcd.join("ca.crt"),
            server_cert: etcd.join("server.crt"),
            server_key: etcd.join("server.key"),
            peer_ca: etcd.join("ca.crt"),
            peer_cert: etcd.join("peer.crt"),
            peer_key: etcd.join("peer.key"),
            client_cert: etcd.join("healthcheck-client.crt"),
            client_key: etcd.join("healthcheck-client.key"),
        }
    }
}
