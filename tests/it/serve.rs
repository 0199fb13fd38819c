//! The API server's processes and port 8443: what the specs say is started for real, and clients come in at the front.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use syncer::disk::RealDisk;
use syncer::etcd::args::{Bootstrap, EtcdLaunch, InitialMember, etcd_args};
use syncer::etcd::version::EtcdVersion;
use syncer::pki::PkiPaths;
use syncer::serve::distro::{Backend, apiserver_address, specs};
use syncer::serve::front::{Front, bind};
use syncer::serve::health::{Health, Startup};
use syncer::serve::prepare::prepare;
use syncer::settings::flags::{DistroFlag, Flags};
use syncer::settings::load::{Loader, Surroundings};
use syncer::settings::{DistroCommand, Settings};
use syncer::supervise::spec::{ChildSpec, LogFormat, Ready, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::kube::Kube;
use crate::support::pod::{TestPod, child_running};
use crate::support::populate::{Plan, populate};
use crate::support::processes::{Process, Processes};
use crate::support::{free_port, part, poll};

const READY: Health = Health {
    datastore_ready: true,
    apiserver_ready: true,
    stopping: false,
    stands_by: false,
    elsewhere: None,
    startup: Startup::Started,
};

/// Settings as `syncer start` would have them on a laptop, with ports of their own.
fn settings(data_dir: &Path, flags: Flags, env: &[(&str, &str)]) -> Settings {
    let flags = Flags {
        data_dir: Some(data_dir.to_owned()),
        client_port: Some(free_port()),
        peer_port: Some(free_port()),
        metrics_port: Some(free_port()),
        port: Some(free_port()),
        apiserver_port: Some(free_port()),
        ..flags
    };
    let env: BTreeMap<String, OsString> = env.iter().map(|(n, v)| ((*n).to_owned(), v.into())).collect();
    let surroundings =
        Surroundings { values_files: Vec::new(), namespace_file: PathBuf::from("/nonexistent"), folders: Vec::new() };
    let loader = Loader { flags, wrapped: None, env: Box::new(env), surroundings };
    loader.load().unwrap().settings
}

fn on_sqlite(distro: DistroFlag, binaries: &Path) -> Flags {
    Flags {
        distro: Some(distro),
        etcd_embedded: Some(false),
        binaries: Some(vec![binaries.to_owned()]),
        ..Flags::default()
    }
}

/// Starts the front; where it listens, and its health's sender.
async fn front(settings: &Settings, front: Front) -> (SocketAddr, watch::Sender<Health>) {
    let listener = bind(Ipv4Addr::LOCALHOST.into(), settings.listen.front_port).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = watch::channel(Health::default());
    tokio::spawn(front.serve(listener, receiver));
    (address, sender)
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let client = Kube::new(&format!("https://{address}"), None, None, None).unwrap();
    let (status, body) = client.raw(Method::GET, path, "", Bytes::new()).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The admin kubeconfig, with the front in the API server's place.
fn through(front: SocketAddr, settings: &Settings) -> PathBuf {
    let text = fs::read_to_string(settings.pki_dir.join("admin.conf")).unwrap();
    let mut config: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    config["clusters"][0]["cluster"]["server"] = json!(format!("https://{front}"));
    let file = settings.data_dir.join("through-the-front.conf");
    fs::write(&file, config.to_string()).unwrap();
    file
}

#[tokio::test]
async fn k8s_on_kine_serves_through_the_front() {
    let dir = tempfile::tempdir().unwrap();
    let binaries = part("kine").parent().unwrap().to_owned();
    for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"] {
        part(program);
    }
    let flags = Flags { enable_scheduler: Some(true), ..on_sqlite(DistroFlag::K8s, &binaries) };
    let settings = settings(dir.path(), flags, &[]);
    syncer::pki::ensure(&settings, &RealDisk, time::OffsetDateTime::now_utc()).unwrap();
    let backend = Backend::sqlite(&settings);
    let specs = specs(&settings, &backend, &prepare(&settings, &backend, &RealDisk).unwrap()).unwrap();
    let apiserver = apiserver_address(&specs);
    let (address, health) = front(&settings, Front::new(&settings, apiserver)).await;

    // Before anything runs.
    assert_eq!(get(address, "/healthz").await.0, 200);
    assert_eq!(get(address, "/livez").await.0, 200);
    let (status, why) = get(address, "/readyz").await;
    assert!(status == 503 && why.contains("datastore"), "{status} {why}");
    assert_eq!(get(address, "/api/v1/namespaces").await.0, 503);

    let logs = dir.path().join("logs");
    let mut processes = Processes::start(&specs, &logs).await.unwrap();
    assert_eq!(get(address, "/readyz").await.0, 503, "the front goes by what the supervisor says");
    health.send(READY).unwrap();
    assert_eq!(get(address, "/readyz").await, (200, "ok".to_owned()), "the API server's own answer has no newline");

    // TLS from end to end: the API server's certificate, verified, and our client certificate are what counts.
    let config = through(address, &settings);
    let kube = Kube::from_kubeconfig(&config).unwrap();
    let mut watch = kube.watch("/api/v1/namespaces/shop/configmaps", "0").await.unwrap();
    kube.create("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}})).await.unwrap();
    let map = json!({"metadata": {"name": "a"}, "data": {"k": "v".repeat(300_000)}});
    let created = kube.create("/api/v1/namespaces/shop/configmaps", &map).await.unwrap();
    let seen = loop {
        let event = watch.next(Duration::from_secs(20)).await.unwrap().expect("the watch goes on");
        if event["object"]["metadata"]["name"] == "a" {
            break event;
        }
    };
    assert_eq!(seen["object"], created);
    let kubectl = tokio::process::Command::new(part("kubectl"))
        .args(["get", "configmap", "-n", "shop", "a", "-o", "jsonpath={.data.k}"])
        .arg("--kubeconfig")
        .arg(&config)
        .env("HOME", dir.path())
        .output()
        .await
        .unwrap();
    assert_eq!(kubectl.stdout.len(), 300_000, "kubectl: {}", String::from_utf8_lossy(&kubectl.stderr));

    // The controller manager works: it makes every namespace's account and CA bundle. And the scheduler: it finds no
    // node for a pod.
    for path in ["serviceaccounts/default", "configmaps/kube-root-ca.crt"] {
        until(path, async || kube.get(&format!("/api/v1/namespaces/shop/{path}")).await.map(|_| true)).await;
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "example.com/c"}]}});
    kube.create("/api/v1/namespaces/shop/pods", &pod).await.unwrap();
    until("the scheduler's verdict", async || {
        let pod = kube.get("/api/v1/namespaces/shop/pods/p").await?;
        Ok(pod["status"]["conditions"].to_string().contains("Unschedulable"))
    })
    .await;

    // kine is killed and leaves its socket; it starts again over it and nothing is lost.
    processes.restart_killed("kine", &logs).await.unwrap();
    until("the object after kine's restart", async || {
        Ok(kube.get("/api/v1/namespaces/shop/configmaps/a").await? == created)
    })
    .await;

    // The API server goes, and nobody has told the front.
    processes.stop("apiserver");
    let (status, why) = get(address, "/readyz").await;
    assert!(status == 503 && why.contains("API server"), "{status} {why}");
    assert_eq!(get(address, "/healthz").await.0, 200);
    assert_eq!(get(address, "/api/v1/namespaces").await.0, 503);

    // No datastore, no pass: the API server's own health would get the pod killed.
    health.send(Health { datastore_ready: false, ..READY }).unwrap();
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    health.send(Health { stopping: true, ..READY }).unwrap();
    assert_eq!(get(address, "/readyz").await, (503, "stopping\n".to_owned()));
}

/// Waits until `probe` says yes; fails with its last word.
async fn until(what: &str, probe: impl AsyncFn() -> anyhow::Result<bool>) {
    let started = Instant::now();
    loop {
        let last = probe().await;
        if matches!(last, Ok(true)) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not in a minute; last: {last:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A chart's variable with its fixed places moved to those of a test.
pub fn chart_variable(fixture: &str, variable: &str, pki: &Path, client_port: u16, apiserver_port: u16) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/charts/{fixture}.yaml"));
    let env: BTreeMap<String, String> = serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let binaries = part("kube-apiserver").parent().unwrap().to_owned();
    env[variable]
        .replace("/pki/", &format!("{}/", pki.display()))
        .replace("/binaries/", &format!("{}/", binaries.display()))
        .replace(":2379", &format!(":{client_port}"))
        .replace("--secure-port=6443", &format!("--secure-port={apiserver_port}"))
}

fn chart_command(fixture: &str, variable: &str, settings: &Settings) -> DistroCommand {
    let listen = &settings.listen;
    let text = chart_variable(fixture, variable, &settings.pki_dir, listen.client_port, listen.apiserver_port);
    serde_yaml::from_str(&text).unwrap()
}

#[tokio::test]
async fn the_eks_charts_command_serves_on_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let binaries = part("kube-apiserver").parent().unwrap().to_owned();
    let flags = Flags { etcd_embedded: Some(true), ..on_sqlite(DistroFlag::Eks, &binaries) };
    let mut settings = settings(dir.path(), flags, &[]);
    syncer::pki::ensure(&settings, &RealDisk, time::OffsetDateTime::now_utc()).unwrap();
    settings.programs.apiserver = Some(chart_command("eks", "APISERVER_COMMAND", &settings));
    settings.programs.controller = Some(chart_command("eks", "CONTROLLER_COMMAND", &settings));
    let logs = dir.path().join("logs");

    let program = part("etcd");
    let member = InitialMember { name: settings.pod.name.clone(), peer_url: settings.peer_url() };
    let launch = EtcdLaunch {
        name: settings.pod.name.clone(),
        data_dir: settings.etcd_dir(),
        listen: Ipv4Addr::LOCALHOST.into(),
        loopback_only: false,
        client_port: settings.listen.client_port,
        peer_port: settings.listen.peer_port,
        metrics: (Ipv4Addr::LOCALHOST, settings.listen.metrics_port).into(),
        peer_url: settings.peer_url(),
        client_url: settings.client_url(),
        bootstrap: Bootstrap::New { members: vec![member], token: "once".to_owned() },
        tls: Some(PkiPaths::new(&settings.pki_dir).etcd_tls()),
        skip_peer_san: false,
        timing: settings.etcd.timing,
        snapshot_count: settings.etcd.snapshot_count,
        quota: None,
        store_size: 0,
        max_request_bytes: None,
        unsynced: false,
        extra_args: Vec::new(),
    };
    let args = etcd_args(&launch, EtcdVersion::of(&program).unwrap()).unwrap();
    let etcd = ChildSpec {
        role: Role::Etcd,
        program,
        args,
        env: BTreeMap::new(),
        env_remove_prefixes: vec!["ETCD_"],
        cwd: None,
        // Before it has a leader, its client port is closed.
        ready: Ready::Started,
        log: LogFormat::EtcdJson,
        stop_grace: Duration::from_secs(5),
    };
    let _etcd = Process::start(&etcd, &logs).unwrap();
    let client = (Ipv4Addr::LOCALHOST, settings.listen.client_port);
    until("etcd's client port", async || Ok(TcpStream::connect(client).await.is_ok())).await;

    let prepared = prepare(&settings, &Backend::Etcd, &RealDisk).unwrap();
    let specs = specs(&settings, &Backend::Etcd, &prepared).unwrap();
    assert_eq!(specs.iter().map(|s| s.role).collect::<Vec<_>>(), [Role::ApiServer, Role::ControllerManager]);
    let _processes = Processes::start(&specs, &logs).await.unwrap();
    let (address, health) = front(&settings, Front::new(&settings, apiserver_address(&specs))).await;
    health.send(READY).unwrap();

    let kube = Arc::new(Kube::from_kubeconfig(&through(address, &settings)).unwrap());
    let plan = Plan { objects: 300, ..Plan::default() };
    let written = populate(Arc::clone(&kube), plan).await.unwrap();
    assert_eq!(written.created, 300);
    assert!(written.kinds.len() >= 25 && written.updates >= 150 && written.deleted >= 20, "{written:?}");
    let all = kube.everything().await.unwrap();
    let of_ours = |part: &str| all.keys().filter(|k| k.contains(part)).count() as u64;
    assert_eq!(of_ours("/widgets/") + of_ours("/gadgets/"), {
        let made = written.kinds["Widget"] + written.kinds["Gadget"];
        made - plan.deleted_of("Widget") - plan.deleted_of("Gadget")
    });
    // Once more: everything is there already, and what was deleted comes back and goes again.
    let again = populate(Arc::clone(&kube), plan).await.unwrap();
    assert_eq!((again.created, again.deleted, &again.kinds), (written.created, written.deleted, &written.kinds));
}

#[tokio::test]
async fn datastore_only_answers_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags { distro: Some(DistroFlag::None), etcd_embedded: Some(true), ..Flags::default() };
    let settings = settings(dir.path(), flags, &[]);
    let (address, health) = front(&settings, Front::new(&settings, None)).await;
    assert_eq!(get(address, "/readyz").await.0, 503);
    health.send(Health { datastore_ready: true, ..Health::default() }).unwrap();
    assert_eq!(get(address, "/readyz").await.0, 200);
    assert_eq!(get(address, "/version").await.0, 404);
    drop(health);
    assert_eq!(get(address, "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = bind(Ipv4Addr::LOCALHOST.into(), port).await.unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
}

#[tokio::test]
async fn hostile_clients_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags { distro: Some(DistroFlag::None), etcd_embedded: Some(true), ..Flags::default() };
    let settings = settings(dir.path(), flags, &[]);
    let (address, _health) = front(&settings, Front::new(&settings, None).with_limits(1, 4, 4)).await;

    // Not TLS.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(closed(plain, Duration::from_secs(4)).await, "plain text is not refused at once");

    // A head that does not end.
    let client = Kube::new(&format!("https://{address}"), None, None, None).unwrap();
    let long = format!("/healthz?{}", "x".repeat(1 << 20));
    // An error is right too: it was cut off while it was still sending.
    if let Ok((status, _)) = client.raw(Method::GET, &long, "", Bytes::new()).await {
        assert!(status == 414 || status == 431, "{status}");
    }

    // Clients that begin and do not go on, more than are served at once: the next is closed, and all are over soon.
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[0x16, 3, 1]).await.unwrap();
        slow.push(client);
    }
    let mut more = TcpStream::connect(address).await.unwrap();
    more.write_all(&[0x16, 3, 1]).await.unwrap();
    assert!(closed(more, Duration::from_secs(4)).await, "the limit on waiting connections does not hold");
    for client in slow {
        assert!(closed(client, Duration::from_secs(10)).await, "a slow client is kept");
    }
    assert_eq!(get(address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn silent_clients_take_nothing_from_probes() {
    let dir = tempfile::tempdir().unwrap();
    let flags = || on_sqlite(DistroFlag::K8s, Path::new("/nonexistent"));
    // The API server's place is held by a front that says something else about the same paths.
    let (settings, other) = (settings(dir.path(), flags(), &[]), settings(dir.path(), flags(), &[]));
    let (behind, behind_health) = front(&other, Front::new(&other, None)).await;
    behind_health.send(Health { stopping: true, ..Health::default() }).unwrap();
    let (address, health) = front(&settings, Front::new(&settings, Some(behind)).with_limits(16, 16, 8)).await;
    for (health_now, want) in [(Health::default(), "datastore"), (READY, "stopping")] {
        health.send(health_now).unwrap();
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let begun = Instant::now();
        for _ in 0..10 {
            let (_, body) = get(address, "/readyz").await;
            assert!(body.contains(want), "{body}");
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "probes wait for silent clients: {:?}", begun.elapsed());
        // The oldest have gone at once, the last ones soon.
        let last = silent.pop().unwrap();
        assert!(closed(silent.swap_remove(0), Duration::from_secs(4)).await, "the oldest silent client is kept");
        assert!(closed(last, Duration::from_secs(15)).await, "a silent client is kept");
    }
}

/// Whether the other side ends the connection in time.
async fn closed(mut stream: TcpStream, deadline: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(deadline, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn while_it_stands_by_clients_are_led_to_a_pod_that_serves() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let flags = || Flags { distro: Some(DistroFlag::K8s), ..Flags::default() };
    let (own, other) = (settings(here.path(), flags(), &[]), settings(there.path(), flags(), &[]));
    // Another front that says something else about the same paths tells who answers.
    let (peer, peer_health) = front(&other, Front::new(&other, None)).await;
    peer_health.send(Health { stopping: true, ..Health::default() }).unwrap();
    let (address, health) = front(&own, Front::new(&own, None)).await;

    let waits = Health { elsewhere: Some(peer), ..Health::default() };
    health.send(waits).unwrap();
    assert!(get(address, "/readyz").await.1.contains("datastore"), "it does not stand by");
    let stands_by = Health { stands_by: true, ..waits };
    health.send(stands_by).unwrap();
    assert_eq!(get(address, "/readyz").await, (503, "stopping\n".to_owned()), "the other answers");
    // Nobody listens there any more, and nobody has noticed.
    let gone = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    health.send(Health { elsewhere: Some(gone), ..stands_by }).unwrap();
    let (status, body) = get(address, "/readyz").await;
    assert!(status == 200 && body.contains("standing by"), "{status} {body}");
}

#[tokio::test]
async fn many_idle_connections_pass_and_the_limit_answers() {
    let dir = tempfile::tempdir().unwrap();
    let flags = on_sqlite(DistroFlag::K8s, Path::new("/nonexistent"));
    let settings = settings(dir.path(), flags, &[]);
    // What stands behind the front is of no matter to it: bytes pass. This one sends back what it gets.
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let behind = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let (address, health) = front(&settings, Front::new(&settings, Some(behind)).with_limits(200, 8, 8)).await;
    health.send(READY).unwrap();
    let mut idle = Vec::new();
    for n in 0..200u8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[n]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), n);
        idle.push(stream);
    }
    // One more is answered by ourselves, so that probes do not fail for too many clients.
    assert_eq!(get(address, "/healthz").await.0, 200);
    assert_eq!(get(address, "/api").await.0, 503);
    // All are still there, each with its own.
    for (n, stream) in idle.iter_mut().enumerate() {
        let byte = u8::try_from(n).unwrap().wrapping_add(7);
        stream.write_all(&[byte]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), byte);
    }
    drop(idle);
    let started = Instant::now();
    loop {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        if matches!(tokio::time::timeout(Duration::from_millis(200), stream.read_u8()).await, Ok(Ok(b'x'))) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "ended connections still count");
    }
}

/// Records how it was started: arguments, environment, the file that `--config` names, and whether etcd serves with the
/// files that the arguments name.
const STAND_IN: &str = r#"#!/bin/sh
for argument in "$@"; do
    case $argument in
    --config=*) config=${argument#*=} ;;
    --datastore-endpoint=*) endpoint=${argument#*=} ;;
    --datastore-cafile=*) ca=${argument#*=} ;;
    --datastore-certfile=*) cert=${argument#*=} ;;
    --datastore-keyfile=*) key=${argument#*=} ;;
    esac
done
if [ -n "$config" ]; then
    value() { sed -n "s/^ *$1: *//p" "$config"; }
    endpoint=https://$(sed -n 's/^ *- \(127.0.0.1:.*\)/\1/p' "$config")
    ca=$(value caFile) cert=$(value clientCertFile) key=$(value clientKeyFile)
fi
{
    for argument in "$@"; do printf 'arg %s\n' "$argument"; done
    env | sort | sed 's/^/env /'
    [ -n "$config" ] && sed 's/^/file /' "$config"
    "$ETCDCTL" --dial-timeout=60s --command-timeout=60s --endpoints="$endpoint" --cacert="$ca" --cert="$cert" --key="$key" get none 2>&1 && echo "etcd serves"
} > "$RECORD.new"
mv "$RECORD.new" "$RECORD"
exec sleep 600
"#;

/// `syncer start` with the environment of the k3s and k0s charts, their fixed places moved to those of the test.
#[test]
fn k3s_and_k0s_are_started_as_their_charts_say() {
    for name in ["k3s", "k0s"] {
        let mut pod = TestPod::new();
        let folder = tempfile::tempdir().unwrap();
        let (program, record, config) =
            (folder.path().join(name), folder.path().join("record"), folder.path().join("k0s-config.yaml"));
        crate::support::script(&program, STAND_IN);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/charts/{name}.yaml"));
        let env: BTreeMap<String, String> = serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let given = env["VCLUSTER_COMMAND"]
            .replace("/binaries/", &format!("{}/", folder.path().display()))
            .replace("/data", &pod.data().display().to_string())
            .replace("/tmp/k0s-config.yaml", &config.display().to_string())
            .replace("/run/k0s/", &format!("{}/run/", folder.path().display()))
            .replace(":2379", &format!(":{}", pod.client_port()));
        let mut command = pod.command(name, &["--token=from-the-values"]);
        command.env("VCLUSTER_COMMAND", &given).env("ETCD_PORT", "tcp://10.0.0.1:2379").env("ETCD_NAME", "wrong");
        command.env("RECORD", &record).env("ETCDCTL", part("etcdctl"));
        pod.spawn(command);
        let text = poll(&format!("{name} is started"), Duration::from_secs(60), || {
            pod.assert_running();
            fs::read_to_string(&record).ok()
        });
        let lines =
            |kind: &str| text.lines().filter_map(|l| l.strip_prefix(kind)).map(str::to_owned).collect::<Vec<_>>();

        let given: DistroCommand = serde_yaml::from_str(&given).unwrap();
        let port = format!("--https-listen-port={}", pod.apiserver_port);
        let added: &[&str] = match name {
            "k3s" => &[
                "--service-cidr",
                "10.96.0.0/12",
                "--token",
                "from-the-values",
                "--kube-apiserver-arg=anonymous-auth=true",
                &port,
            ],
            _ => &[],
        };
        let want: Vec<_> = given.args.iter().map(String::as_str).chain(added.iter().copied()).collect();
        assert_eq!(lines("arg "), want, "{name}");
        let etcd_variables: Vec<_> = lines("env ").into_iter().filter(|l| l.starts_with("ETCD_")).collect();
        let want: &[&str] = if name == "k0s" { &["ETCD_UNSUPPORTED_ARCH=arm64"] } else { &[] };
        assert_eq!(etcd_variables, want, "{name}");
        assert!(text.lines().any(|l| l == "etcd serves"), "{name} is started before etcd serves:\n{text}");
        if name == "k0s" {
            let file = lines("file ").join("\n");
            assert!(file.contains("externalCluster") && file.contains("serviceCIDR: 10.96.0.0/12"), "{file}");
        }

        // Killed, it is started again in the same way.
        fs::remove_file(&record).unwrap();
        let (stand_in, _) = child_running(pod.pid(), "sleep").expect("the stand-in has become a sleep");
        kill(stand_in, Signal::SIGKILL).unwrap();
        let again = poll(&format!("{name} is started again"), Duration::from_secs(30), || {
            pod.assert_running();
            fs::read_to_string(&record).ok()
        });
        assert_eq!(again, text, "{name} is started otherwise the second time");
        assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    }
}
