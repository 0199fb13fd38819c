//! Every line of etcd takes the command line made for it, and answers what we ask.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use syncer::etcd::client::{ClientError, EtcdClient};
use syncer::etcd::health::{applied, livez, members};
use syncer::ids::Revision;
use syncer::supervise::child::{Child, spawn};
use syncer::supervise::relay;
use tokio::net::TcpStream;

use super::Solo;
use crate::support::etcd::{LINES, PATIENCE, run};

const SOON: Duration = Duration::from_secs(5);

/// Starts it, with its output read, and waits until it serves.
async fn started(solo: &Solo) -> (Child, EtcdClient) {
    let (mut child, output) = spawn(&solo.spec(), None).expect("start etcd");
    let mut relay = Some(relay::follow(child.role(), solo.spec().log, output));
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("look at etcd") {
            let words = relay.take().expect("once").last_words().await;
            panic!("etcd {} ended with {status}: {words:#?}", solo.version);
        }
        let mut client = EtcdClient::connect(&solo.endpoint()).await.expect("read the certificates");
        if client.linearizable_read(Duration::from_secs(1)).await.is_ok() {
            return (child, client);
        }
        assert!(begun.elapsed() < PATIENCE, "etcd {} does not serve; args: {:?}", solo.version, solo.args());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn every_line_takes_its_command_line_and_answers() {
    for line in LINES {
        let dir = tempfile::tempdir().expect("a folder");
        let solo = Solo::new(line, dir.path());
        assert!(solo.version.to_string().starts_with(line), "{}", solo.version);
        run(async {
            let (mut child, mut client) = started(&solo).await;
            let status = client.status(SOON).await.expect("a status");
            assert_eq!((status.version, status.leader), (solo.version.to_string(), Some(status.member)));
            let list = client.member_list(SOON).await.expect("a list");
            assert_eq!(list.cluster, status.cluster);
            let me = list.members.first().expect("one member").clone();
            assert_eq!((me.id, &*me.name, me.learner), (status.member, "solo-0", false));
            assert_eq!(
                (&me.peer_urls, &me.client_urls),
                (&vec![solo.launch.peer_url.clone()], &vec![solo.launch.client_url.clone()])
            );
            assert_eq!(client.alarms(SOON).await.expect("alarms"), []);
            assert!(livez(solo.launch.metrics, SOON).await.expect("an answer"));
            let before = client.status(SOON).await.expect("a status").applied;
            let told = applied(solo.launch.metrics, SOON).await.expect("its metrics");
            let after = client.status(SOON).await.expect("a status").applied;
            assert!(before <= told && told <= after, "etcd {line}: {told:?} is not in {before:?}..={after:?}");
            assert_eq!(peer_view(&solo).await.members, list.members);

            put_and_page(&solo, &mut client).await;

            let other = vec!["https://localhost:1".to_owned()];
            client.member_update(me.id, other.clone(), SOON).await.expect("an update");
            let list = client.member_list(SOON).await.expect("a list");
            assert_eq!(list.members.first().map(|m| m.peer_urls.clone()), Some(other));
            child.stop_blocking(Duration::from_secs(10)).expect("stop etcd");
            let error = client.linearizable_read(Duration::from_millis(500)).await.expect_err("it is gone");
            assert!(matches!(error, ClientError::Deadline { .. } | ClientError::Etcd { .. }), "{error:?}");
        });
    }
}

/// A client that can do everything, not only what we ask.
async fn raw_client(solo: &Solo) -> Client {
    let read = |path| std::fs::read(path).expect("read a certificate");
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&solo.tls.ca)))
        .identity(Identity::from_pem(read(&solo.tls.client_cert), read(&solo.tls.client_key)));
    let options = ConnectOptions::new().with_tls(tls);
    Client::connect([&solo.launch.client_url], Some(options)).await.expect("a client")
}

/// 25 keys read back in pages of 10, and hashed.
async fn put_and_page(solo: &Solo, client: &mut EtcdClient) {
    let mut raw = raw_client(solo).await;
    for key in 0..25 {
        raw.put(format!("/key/{key:02}"), "value", None).await.expect("a put");
    }
    let (mut from, mut seen, mut at) = (Some(Vec::new()), Vec::new(), None);
    while let Some(start) = from {
        let page = client.page(&start, at, 10, SOON).await.expect("a page");
        assert!(page.kvs.len() <= 10);
        seen.extend(page.kvs.iter().map(|kv| kv.key().to_vec()));
        (from, at) = (page.next, Some(page.revision));
    }
    let want: Vec<_> = (0..25).map(|key| format!("/key/{key:02}").into_bytes()).collect();
    assert_eq!(seen, want, "etcd {}", solo.version);
    let at = at.expect("a revision");
    let hash = client.hash_kv(at, SOON).await.expect("a hash");
    assert_eq!(hash, client.hash_kv(at, SOON).await.expect("a hash"));
    assert_ne!(hash.hash, client.hash_kv(Revision(at.0 - 1), SOON).await.expect("a hash").hash);
}

async fn peer_view(solo: &Solo) -> syncer::etcd::health::PeerView {
    let read = |path: &std::path::Path| std::fs::read(path).expect("read a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read(&solo.tls.peer_ca)).expect("a CA")).expect("a usable CA");
    let chain = vec![CertificateDer::from_pem_slice(&read(&solo.tls.peer_cert)).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(&read(&solo.tls.peer_key)).expect("a key");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .expect("a client certificate");
    let tcp = TcpStream::connect(("127.0.0.1", solo.launch.peer_port)).await.expect("connect");
    let name = ServerName::try_from("localhost").expect("a name");
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("speak TLS");
    members(tls, "localhost", SOON).await.expect("a view")
}

/// The member's own list, which it gives at any time, may lag: what decisions rest on is what a majority agrees on.
#[test]
fn without_a_quorum_there_is_no_member_list() {
    for line in LINES {
        let dir = tempfile::tempdir().expect("a folder");
        let solo = Solo::new(line, dir.path());
        run(async {
            let (mut child, mut client) = started(&solo).await;
            client.member_list(SOON).await.expect("a list");
            // A voter that does not exist: one of two is no majority.
            let mut raw = raw_client(&solo).await;
            raw.member_add(["https://localhost:1"], None).await.expect("add a voter");
            let own = raw.member_list().await.expect("its own list");
            assert_eq!(own.members().len(), 2, "etcd {}", solo.version);
            let listed = client.member_list(Duration::from_secs(1)).await;
            let error = listed.expect_err("a list that nobody else agrees on");
            assert!(matches!(error, ClientError::Deadline { .. } | ClientError::Etcd { .. }), "{error:?}");
            child.stop_blocking(Duration::from_secs(10)).expect("stop etcd");
        });
    }
}

#[test]
fn a_restart_keeps_the_cluster_on_every_line() {
    for line in LINES {
        let dir = tempfile::tempdir().expect("a folder");
        let solo = Solo::new(line, dir.path());
        let before = run(async {
            let (mut child, mut client) = started(&solo).await;
            let status = client.status(SOON).await.expect("a status");
            child.stop_blocking(Duration::from_secs(10)).expect("stop etcd");
            status
        });
        let solo = solo.restarting();
        let after = run(async {
            let (mut child, mut client) = started(&solo).await;
            let status = client.status(SOON).await.expect("a status");
            child.stop_blocking(Duration::from_secs(10)).expect("stop etcd");
            status
        });
        assert_eq!((before.cluster, before.member), (after.cluster, after.member), "etcd {}", solo.version);
    }
}
