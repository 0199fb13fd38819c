//! Asking another pod: its word, its etcd's view of the members, its etcd.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::{Method, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{STATE, WAKE, Word, host_of, tls};
use crate::etcd::client::{EtcdClient, EtcdEndpoint};
use crate::etcd::health::{self, PeerView};
use crate::ids::Ordinal;
use crate::pki::EtcdTlsFiles;
use crate::settings::Settings;

/// One question and its answer.
pub const DEADLINE: Duration = Duration::from_millis(1500);

/// To be connected, which takes the other's kernel a moment. Where a pod has been, often nobody answers any more, and a pod
/// that leaves must not wait long for one that has just left.
const CONNECTED: Duration = Duration::from_millis(400);

/// A pod that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Which one.
    pub ordinal: Ordinal,
    /// Where it is now.
    pub address: IpAddr,
    /// The name that its certificate is for.
    pub host: String,
}

/// Asks pods with this pod's certificates.
#[derive(Clone)]
pub struct Dial {
    files: EtcdTlsFiles,
    tls: Arc<ClientConfig>,
    client_port: u16,
    peer_port: u16,
    state_port: u16,
}

impl Dial {
    /// Reads the certificates. Made anew for each round, as they are renewed.
    pub fn new(settings: &Settings, files: &EtcdTlsFiles) -> anyhow::Result<Dial> {
        let listen = &settings.listen;
        Ok(Dial {
            files: files.clone(),
            tls: tls::client(files)?,
            client_port: listen.client_port,
            peer_port: listen.peer_port,
            state_port: listen.state_port,
        })
    }

    /// Its word on itself.
    pub async fn word(&self, pod: &Pod) -> anyhow::Result<Word> {
        let ask = async {
            let stream = self.connect(pod, self.state_port).await?;
            let (status, _, body) = health::get(stream, &pod.host, STATE).await?;
            anyhow::ensure!(status == StatusCode::OK, "status {status}");
            let word: Word = serde_json::from_slice(&body).context("read its word")?;
            anyhow::ensure!(word.ordinal == pod.ordinal, "pod {} answers for pod {}", word.ordinal, pod.ordinal);
            Ok(word)
        };
        tokio::time::timeout(DEADLINE, ask).await.context("no answer in time")?
    }

    /// Has it look again now.
    pub async fn wake(&self, pod: &Pod) -> anyhow::Result<()> {
        let ask = async {
            let stream = self.connect(pod, self.state_port).await?;
            health::exchange(stream, Method::POST, &pod.host, WAKE).await?;
            Ok(())
        };
        tokio::time::timeout(DEADLINE, ask).await.context("no answer in time")?
    }

    /// Its etcd's own view of the cluster, which may lag.
    pub async fn members(&self, pod: &Pod) -> anyhow::Result<PeerView> {
        let ask = async {
            let stream = self.connect(pod, self.peer_port).await?;
            Ok(health::members(stream, &pod.host, DEADLINE).await?)
        };
        tokio::time::timeout(DEADLINE, ask).await.context("no answer in time")?
    }

    /// A client of its etcd.
    pub async fn etcd(&self, pod: &Pod) -> anyhow::Result<EtcdClient> {
        let url = format!("https://{}", SocketAddr::new(pod.address, self.client_port));
        let endpoint = EtcdEndpoint { url, tls: Some(self.files.client()), server_name: Some(pod.host.clone()) };
        Ok(EtcdClient::connect(&endpoint).await?)
    }

    /// Whether its etcd takes clients.
    pub async fn listens(&self, pod: &Pod) -> bool {
        let tcp = tokio::time::timeout(CONNECTED, TcpStream::connect((pod.address, self.client_port))).await;
        matches!(tcp, Ok(Ok(_)))
    }

    async fn connect(&self, pod: &Pod, port: u16) -> anyhow::Result<TlsStream<TcpStream>> {
        let tcp = tokio::time::timeout(CONNECTED, TcpStream::connect((pod.address, port))).await;
        let tcp = tcp.context("connect: no answer in time")?.context("connect")?;
        let name = ServerName::try_from(pod.host.clone()).context("use its name")?;
        tokio_rustls::TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await.context("speak TLS")
    }
}

impl Pod {
    /// The pod of an ordinal at an address.
    pub fn new(settings: &Settings, ordinal: Ordinal, address: IpAddr) -> Pod {
        Pod { ordinal, address, host: host_of(settings, ordinal) }
    }
}
