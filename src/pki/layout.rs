//! Where each certificate and key is: the files and names of a vCluster PKI directory, which are kubeadm's
//! (`cmd/kubeadm/app/constants/constants.go`).
//!
//! vCluster keeps the same files in the Secret `<name>-certs`, whose keys are the paths below with `/` written as `-`
//! (`etcd/ca.crt` is `etcd-ca.crt`), see [`secret_key`].

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::disk::at;
use crate::etcd::client::ClientTls;

/// A file's path below the PKI directory.
pub type RelPath = &'static str;

/// etcd's CA, which signs the certificates of members, peers and clients.
pub const ETCD_CA: Pair = Pair { cert: "etcd/ca.crt", key: "etcd/ca.key" };
/// Serving certificate of etcd's client port, shared by all members.
pub const ETCD_SERVER: Pair = Pair { cert: "etcd/server.crt", key: "etcd/server.key" };
/// Certificate between members, shared by all of them.
pub const ETCD_PEER: Pair = Pair { cert: "etcd/peer.crt", key: "etcd/peer.key" };
/// Client certificate of our own calls and of `etcdctl`.
pub const ETCD_HEALTHCHECK_CLIENT: Pair =
    Pair { cert: "etcd/healthcheck-client.crt", key: "etcd/healthcheck-client.key" };
/// Client certificate of the API server towards etcd.
pub const APISERVER_ETCD_CLIENT: Pair = Pair { cert: "apiserver-etcd-client.crt", key: "apiserver-etcd-client.key" };
/// The virtual cluster's CA.
pub const CA: Pair = Pair { cert: "ca.crt", key: "ca.key" };
/// The API server's serving certificate.
pub const APISERVER: Pair = Pair { cert: "apiserver.crt", key: "apiserver.key" };
/// Client certificate of the API server towards kubelets.
pub const APISERVER_KUBELET_CLIENT: Pair =
    Pair { cert: "apiserver-kubelet-client.crt", key: "apiserver-kubelet-client.key" };
/// CA of aggregated API servers' front proxy.
pub const FRONT_PROXY_CA: Pair = Pair { cert: "front-proxy-ca.crt", key: "front-proxy-ca.key" };
/// Client certificate of the API server towards aggregated API servers.
pub const FRONT_PROXY_CLIENT: Pair = Pair { cert: "front-proxy-client.crt", key: "front-proxy-client.key" };
/// Signs service account tokens.
pub const SA_KEY: RelPath = "sa.key";
/// Verifies service account tokens.
pub const SA_PUB: RelPath = "sa.pub";
/// Kubeconfig of the administrator.
pub const ADMIN_CONF: RelPath = "admin.conf";
/// Kubeconfig of kube-controller-manager.
pub const CONTROLLER_MANAGER_CONF: RelPath = "controller-manager.conf";
/// Kubeconfig of kube-scheduler.
pub const SCHEDULER_CONF: RelPath = "scheduler.conf";
/// Our record of what we issued; no file of vCluster's.
pub const RECORD: RelPath = "syncer-issued.json";

/// A certificate and its private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The certificate's file.
    pub cert: RelPath,
    /// The key's file.
    pub key: RelPath,
}

/// The key under which a file is kept in vCluster's Secret `<name>-certs`.
pub fn secret_key(file: RelPath) -> String {
    file.replace('/', "-")
}

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

impl EtcdTlsFiles {
    /// What a client needs of them.
    pub fn client(&self) -> ClientTls {
        ClientTls { ca: self.ca.clone(), identity: Some((self.client_cert.clone(), self.client_key.clone())) }
    }
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

    /// A file of the layout.
    pub fn file(&self, file: RelPath) -> PathBuf {
        self.dir.join(file)
    }

    /// The files that etcd and our own etcd client use.
    pub fn etcd_tls(&self) -> EtcdTlsFiles {
        EtcdTlsFiles {
            ca: self.file(ETCD_CA.cert),
            server_cert: self.file(ETCD_SERVER.cert),
            server_key: self.file(ETCD_SERVER.key),
            peer_ca: self.file(ETCD_CA.cert),
            peer_cert: self.file(ETCD_PEER.cert),
            peer_key: self.file(ETCD_PEER.key),
            client_cert: self.file(ETCD_HEALTHCHECK_CLIENT.cert),
            client_key: self.file(ETCD_HEALTHCHECK_CLIENT.key),
        }
    }
}

/// No certificate or key is larger.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Reads a certificate or key: as much of it as any has. The error names the file.
pub fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|e| at(path, e))?;
    file.take(PEM_BYTES_MAX).read_to_end(&mut pem).map_err(|e| at(path, e))?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_keys_are_vclusters() {
        assert_eq!(secret_key(ETCD_CA.cert), "etcd-ca.crt");
        assert_eq!(secret_key(ETCD_HEALTHCHECK_CLIENT.key), "etcd-healthcheck-client.key");
        assert_eq!(secret_key(APISERVER_ETCD_CLIENT.cert), "apiserver-etcd-client.crt");
        assert_eq!(secret_key(ADMIN_CONF), "admin.conf");
    }
}
