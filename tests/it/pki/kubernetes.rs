//! kube-apiserver, kube-controller-manager and kube-scheduler on our PKI alone, as `syncer start` starts them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use syncer::disk::RealDisk;
use syncer::pki::plan::Input;
use syncer::serve::distro::{Backend, specs};
use syncer::serve::prepare::prepare;
use syncer::settings::Settings;
use syncer::settings::flags::{DistroFlag, Flags};
use syncer::settings::load::{Loader, Surroundings};
use syncer::supervise::spec::Role;
use time::OffsetDateTime;

use super::etcd::TlsEtcd;
use super::{ensure, long_ago, serial_of, serial_served};
use crate::support::etcd::output;
use crate::support::processes::Processes;
use crate::support::{free_port, part, poll};

fn settings(data_dir: &Path) -> Settings {
    let flags = Flags {
        data_dir: Some(data_dir.to_owned()),
        distro: Some(DistroFlag::K8s),
        etcd_embedded: Some(true),
        binaries: Some(vec![part("kube-apiserver").parent().unwrap().to_owned()]),
        client_port: Some(free_port()),
        peer_port: Some(free_port()),
        metrics_port: Some(free_port()),
        port: Some(free_port()),
        apiserver_port: Some(free_port()),
        ..Flags::default()
    };
    let surroundings =
        Surroundings { values_files: Vec::new(), namespace_file: PathBuf::from("/nonexistent"), folders: Vec::new() };
    let env: BTreeMap<String, OsString> = BTreeMap::new();
    let loader = Loader { flags, wrapped: None, env: Box::new(env), surroundings };
    let mut settings = loader.load().unwrap().settings;
    settings.programs.scheduler_enabled = true;
    settings
}

/// `curl` with a client certificate, its answer as JSON.
fn curl(pki: &Path, cert: &str, extra: &[&str], url: &str) -> Value {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "--cacert"]).arg(pki.join("ca.crt"));
    command.arg("--cert").arg(pki.join(format!("{cert}.crt"))).arg("--key").arg(pki.join(format!("{cert}.key")));
    command.args(["-H", "Content-Type: application/json"]).args(extra).arg(url);
    let text = output(&mut command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{url}: {e}: {text}"))
}

#[tokio::test]
async fn every_file_of_a_k8s_virtual_cluster_does_its_work() {
    for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"] {
        part(program);
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let pki = settings.pki_dir.clone();
    let input = Input::of(&settings);
    // Valid, and due: renewed below while everything runs.
    ensure(&input, long_ago());
    let ports = (settings.listen.client_port, settings.listen.peer_port);
    let etcd = TlsEtcd::start("3.6", "my-0", dir.path(), &pki, ports, "");
    etcd.wait_until_serving();
    let prepared = prepare(&settings, &Backend::Etcd, &RealDisk).unwrap();
    let specs = specs(&settings, &Backend::Etcd, &prepared).unwrap();
    let roles: Vec<_> = specs.iter().map(|spec| spec.role).collect();
    assert_eq!(roles, [Role::ApiServer, Role::ControllerManager, Role::Scheduler]);
    let logs = dir.path().join("logs");
    // The companions are ready: their kubeconfigs are accepted, or they would not come up.
    let mut processes = Processes::start(&specs, &logs).await.unwrap();
    let home = dir.path().to_owned();
    let kubectl = |args: &[&str]| {
        let mut command = Command::new(part("kubectl"));
        command.arg("--kubeconfig").arg(pki.join("admin.conf")).args(args).env("HOME", &home);
        output(&mut command)
    };

    // admin.conf: everything is allowed.
    assert!(kubectl(&["auth", "can-i", "*", "*", "--all-namespaces"]).starts_with("yes"));
    kubectl(&["create", "namespace", "shop"]);

    // controller-manager.conf, ca.crt and sa.key: it makes every namespace's account and CA bundle.
    let what = format!("the controller manager makes a CA bundle; see {}", logs.display());
    let get =
        ["get", "configmap", "-n", "shop", "kube-root-ca.crt", "--ignore-not-found", "-o", r"jsonpath={.data.ca\.crt}"];
    let bundle = poll(&what, Duration::from_secs(60), || Some(kubectl(&get)).filter(|text| !text.is_empty()));
    assert_eq!(bundle, std::fs::read_to_string(pki.join("ca.crt")).unwrap());

    // sa.key signs a token (ES256), sa.pub verifies it.
    poll("the account default is made", Duration::from_secs(60), || {
        let names = kubectl(&["get", "serviceaccount", "-n", "shop", "-o", "name"]);
        names.contains("/default").then_some(())
    });
    let token = kubectl(&["create", "token", "default", "-n", "shop"]);
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&header).unwrap()["alg"], "ES256");
    let api = format!("https://127.0.0.1:{}", settings.listen.apiserver_port);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                        "spec": {"token": token.trim()}});
    // The kubelet client's certificate is in system:masters, so it may ask that.
    let reviewed = curl(
        &pki,
        "apiserver-kubelet-client",
        &["-d", &review.to_string()],
        &format!("{api}/apis/authentication.k8s.io/v1/tokenreviews"),
    );
    assert_eq!(reviewed["status"]["authenticated"], true, "{reviewed}");
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:shop:default");

    // The front proxy's certificate speaks for others; an ordinary client's does not.
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let ask = |cert: &str| {
        let extra = ["-H", "X-Remote-User: alice", "-H", "X-Remote-Group: system:authenticated", "-d", &who];
        curl(&pki, cert, &extra, &format!("{api}/apis/authentication.k8s.io/v1/selfsubjectreviews"))
    };
    assert_eq!(ask("front-proxy-client")["status"]["userInfo"]["username"], "alice");
    let ordinary = ask("apiserver-kubelet-client");
    assert_eq!(ordinary["status"]["userInfo"]["username"], "kube-apiserver-kubelet-client", "{ordinary}");

    renewal_while_it_runs(&settings, &input, &kubectl);
    for name in ["controller-manager", "scheduler"] {
        processes.restart_killed(name, &logs).await.unwrap();
    }
}

/// kube-apiserver takes up a renewed certificate by itself and loses neither etcd nor its clients' rights.
fn renewal_while_it_runs(settings: &Settings, input: &Input, kubectl: &dyn Fn(&[&str]) -> String) {
    let pki = &settings.pki_dir;
    let old = serial_of(&pki.join("apiserver.crt"));
    let before = std::fs::read(pki.join("admin.conf")).unwrap();
    let renewed = ensure(input, OffsetDateTime::now_utc());
    assert_eq!(renewed.renewed().len(), 10, "{:?}", renewed.renewed());
    assert_eq!(renewed.restart(), [Role::ControllerManager, Role::Scheduler]);
    let new = serial_of(&pki.join("apiserver.crt"));
    assert_ne!(new, old);
    assert_ne!(std::fs::read(pki.join("admin.conf")).unwrap(), before);
    let (cert, key) = (pki.join("apiserver-kubelet-client.crt"), pki.join("apiserver-kubelet-client.key"));
    poll("kube-apiserver serves the renewed certificate", Duration::from_secs(120), || {
        serial_served(settings.listen.apiserver_port, &cert, &key).filter(|serial| *serial == new)
    });
    kubectl(&["create", "configmap", "after", "-n", "shop", "--from-literal=k=v"]);
    assert_eq!(kubectl(&["get", "configmap", "after", "-n", "shop", "-o", "jsonpath={.data.k}"]), "v");
}
