//! Goldens: what each distro is started with, for the charts' environment and for the defaults. `SYNCER_BLESS=1` writes
//! the files anew; read the difference before committing it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::distro::{Backend, Prepared, SpecError, apiserver_address, specs};
use super::{k0s, prepare};
use crate::disk::RealDisk;
use crate::exit::{Exit, exit_of};
use crate::ids::Ordinal;
use crate::settings::{
    Distro, DistroCommand, DnsSettings, EtcdSettings, EtcdTiming, Listen, PodIdentity, Programs, Settings,
};
use crate::supervise::spec::{ChildSpec, Role};

/// The settings of a pod of the release my-vcluster.
pub(super) fn pod(distro: Distro) -> Settings {
    let pki = match distro {
        Distro::K0s => "/data/k0s/pki",
        Distro::K3s => "/data/pki",
        _ => "/pki",
    };
    Settings {
        name: "my-vcluster".to_owned(),
        namespace: "team-a".to_owned(),
        pod: PodIdentity { name: "my-vcluster-0".to_owned(), ordinal: Ordinal(0), ip: None, in_pod: true },
        data_dir: PathBuf::from("/data"),
        distro,
        etcd: EtcdSettings {
            enabled: true,
            replicas: 1,
            migrate_from: None,
            migrate_back: false,
            snapshot_count: 10_000,
            extra_args: Vec::new(),
            quota_backend_bytes: None,
            timing: EtcdTiming { heartbeat: Duration::from_millis(100), election: Duration::from_secs(1) },
            timing_set: false,
            snapshots: None,
        },
        programs: Programs::default(),
        listen: Listen {
            address: Ipv4Addr::UNSPECIFIED.into(),
            client_port: 2379,
            peer_port: 2380,
            metrics_port: 2381,
            state_port: 2382,
            front_port: 8443,
            apiserver_port: 6443,
        },
        host_api: crate::settings::HostApi::None,
        dns: DnsSettings { server: None, resolv_conf: PathBuf::from("/etc/resolv.conf") },
        pki_dir: PathBuf::from(pki),
        tls_sans: Vec::new(),
        service_cidr: "10.96.0.0/12".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        k3s_token: None,
        shutdown_grace: Duration::from_secs(9),
        wrapped: None,
        values_file: None,
        log_format: None,
        log_level: "info".to_owned(),
    }
}

/// A laptop: loopback, ports of its own, everything in one folder.
fn laptop(distro: Distro, dir: &Path) -> Settings {
    let mut settings = pod(distro);
    settings.pod.in_pod = false;
    settings.data_dir = dir.to_owned();
    settings.pki_dir = dir.join("pki");
    settings.listen.client_port = 12379;
    settings.listen.apiserver_port = 16443;
    settings
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The settings with the commands that a chart passes.
fn chart(distro: Distro, fixture: &str) -> Settings {
    let text = fs::read_to_string(root(&format!("tests/fixtures/charts/{fixture}.yaml"))).unwrap();
    let env: BTreeMap<String, String> = serde_yaml::from_str(&text).unwrap();
    let command = |name: &str| env.get(name).map(|text| serde_yaml::from_str::<DistroCommand>(text).unwrap());
    let mut settings = pod(distro);
    settings.programs.vcluster = command("VCLUSTER_COMMAND");
    settings.programs.apiserver = command("APISERVER_COMMAND");
    settings.programs.controller = command("CONTROLLER_COMMAND");
    settings.programs.scheduler = command("SCHEDULER_COMMAND");
    settings
}

fn prepared() -> Prepared {
    Prepared { k3s_token: Some("secret-token\n".to_owned()) }
}

fn render(specs: &[ChildSpec]) -> String {
    let mut text = String::new();
    for spec in specs {
        writeln!(text, "{}: {}", spec.role.name(), spec.program.display()).unwrap();
        for arg in &spec.args {
            writeln!(text, "  {}", arg.to_str().unwrap()).unwrap();
        }
        for (name, value) in &spec.env {
            writeln!(text, "  env {name}={}", value.to_str().unwrap()).unwrap();
        }
        for prefix in &spec.env_remove_prefixes {
            writeln!(text, "  env without {prefix}*").unwrap();
        }
        writeln!(text, "  ready {:?}", spec.ready).unwrap();
    }
    text
}

fn golden(name: &str, text: &str) {
    let file = root(&format!("tests/golden/serve/{name}.txt"));
    if std::env::var_os("SYNCER_BLESS").is_some() {
        fs::write(&file, text).unwrap();
    }
    let want = fs::read_to_string(&file).unwrap_or_default();
    assert!(want == text, "{} differs; this is what is made now:\n{text}", file.display());
}

fn check(name: &str, settings: &Settings, backend: &Backend) {
    let mut text = render(&specs(settings, backend, &prepared()).unwrap());
    if settings.distro == Distro::K0s {
        let config = k0s::config(settings, backend).unwrap();
        write!(text, "file {}\n{}", config.path.display(), config.content).unwrap();
    }
    golden(name, &text);
}

#[test]
fn the_charts_commands() {
    check("k8s-chart", &chart(Distro::K8s, "k8s"), &Backend::Etcd);
    check("eks-chart", &chart(Distro::Eks, "eks"), &Backend::Etcd);
    check("k3s-chart", &chart(Distro::K3s, "k3s"), &Backend::Etcd);
    check("k0s-chart", &chart(Distro::K0s, "k0s"), &Backend::Etcd);
    let settings = chart(Distro::K3s, "k3s-sqlite");
    check("k3s-chart-sqlite", &settings, &Backend::sqlite(&settings));
    let settings = chart(Distro::K0s, "k0s");
    check("k0s-chart-sqlite", &settings, &Backend::sqlite(&settings));
}

/// Whatever the charts give comes first and unchanged; what is added is only what vCluster itself adds, and what lets
/// probes through.
#[test]
fn a_given_command_is_run_as_given() {
    type Of = fn(&Programs) -> Option<&DistroCommand>;
    let cases: [(Distro, &str, Role, Of, &[&str]); 6] = [
        (Distro::K8s, "k8s", Role::ApiServer, |p| p.apiserver.as_ref(), &["--service-cluster-ip-range=10.96.0.0/12"]),
        (
            Distro::K8s,
            "k8s",
            Role::ControllerManager,
            |p| p.controller.as_ref(),
            &["--service-cluster-ip-range=10.96.0.0/12"],
        ),
        (Distro::Eks, "eks", Role::ApiServer, |p| p.apiserver.as_ref(), &["--service-cluster-ip-range=10.96.0.0/12"]),
        (
            Distro::Eks,
            "eks",
            Role::ControllerManager,
            |p| p.controller.as_ref(),
            &["--service-cluster-ip-range=10.96.0.0/12"],
        ),
        (
            Distro::K3s,
            "k3s",
            Role::ApiServer,
            |p| p.vcluster.as_ref(),
            &["--service-cidr", "10.96.0.0/12", "--token", "secret-token", "--kube-apiserver-arg=anonymous-auth=true"],
        ),
        (Distro::K0s, "k0s", Role::ApiServer, |p| p.vcluster.as_ref(), &[]),
    ];
    for (distro, fixture, role, of, added) in cases {
        let settings = chart(distro, fixture);
        let given = of(&settings.programs).unwrap();
        let specs = specs(&settings, &Backend::Etcd, &prepared()).unwrap();
        let spec = specs.iter().find(|s| s.role == role).unwrap();
        let mut want = vec![spec.program.to_str().unwrap()];
        want.extend(spec.args.iter().map(|a| a.to_str().unwrap()));
        let given: Vec<_> = given.command.iter().chain(&given.args).map(String::as_str).collect();
        assert_eq!(want, [given.as_slice(), added].concat(), "{fixture} {}", role.name());
    }
}

#[test]
fn the_defaults_in_a_pod() {
    for (name, distro) in [("k8s", Distro::K8s), ("eks", Distro::Eks), ("k3s", Distro::K3s), ("k0s", Distro::K0s)] {
        let settings = pod(distro);
        check(&format!("{name}-default"), &settings, &Backend::Etcd);
        check(&format!("{name}-default-sqlite"), &settings, &Backend::sqlite(&settings));
    }
    let mut settings = pod(Distro::K8s);
    settings.programs.scheduler_enabled = true;
    settings.etcd.replicas = 3;
    check("k8s-default-scheduler", &settings, &Backend::Etcd);
}

#[test]
fn the_defaults_on_a_laptop() {
    for (name, distro) in [("k8s", Distro::K8s), ("k3s", Distro::K3s), ("k0s", Distro::K0s)] {
        check(&format!("{name}-laptop"), &laptop(distro, Path::new("/home/me/vc")), &Backend::Etcd);
    }
}

#[test]
fn datastore_only_and_wrapped() {
    assert_eq!(specs(&pod(Distro::None), &Backend::Etcd, &prepared()), Ok(Vec::new()));
    let settings = pod(Distro::None);
    assert_eq!(specs(&settings, &Backend::sqlite(&settings), &prepared()), Err(SpecError::NothingToRun));
    let mut settings = pod(Distro::K8s);
    settings.wrapped = Some(vec!["/vcluster".into(), "start".into()]);
    check("wrapped", &settings, &Backend::Etcd);
    check("wrapped-sqlite", &settings, &Backend::sqlite(&settings));
    assert_eq!(apiserver_address(&specs(&settings, &Backend::Etcd, &prepared()).unwrap()), None);
    settings.wrapped = Some(Vec::new());
    assert_eq!(specs(&settings, &Backend::Etcd, &prepared()), Err(SpecError::EmptyCommand { variable: "--" }));
}

fn apiserver_command(args: &[&str]) -> Settings {
    let mut settings = pod(Distro::K8s);
    let command = std::iter::once("/binaries/kube-apiserver").chain(args.iter().copied()).map(str::to_owned).collect();
    settings.programs.apiserver = Some(DistroCommand { command, args: Vec::new() });
    settings
}

#[test]
fn a_command_that_names_another_datastore_is_refused() {
    for (given, fits) in [
        ("https://127.0.0.1:2379", true),
        ("https://localhost:2379/", true),
        ("https://[::1]:2379", true),
        ("https://127.0.0.1:2379,https://localhost:2379", true),
        ("https://my-vcluster-etcd:2379", false),
        ("https://127.0.0.1:2380", false),
        ("http://127.0.0.1:2379", false),
        ("https://127.0.0.1:2379,https://other:2379", false),
        ("", false),
    ] {
        let settings = apiserver_command(&[&format!("--etcd-servers={given}")]);
        let on_etcd = specs(&settings, &Backend::Etcd, &prepared());
        assert_eq!(on_etcd.is_ok(), fits, "{given}");
        if !fits {
            let text = on_etcd.unwrap_err().to_string();
            assert!(text.contains(given) && text.contains("https://127.0.0.1:2379"), "{text}");
        }
        // Disabled: the embedded etcd is refused, another one is run against as given and without kine.
        let on_sqlite = specs(&settings, &Backend::sqlite(&settings), &prepared());
        match on_sqlite {
            Ok(specs) => assert!(!fits && specs.iter().all(|s| s.role != Role::Kine), "{given}"),
            Err(error) => assert!(fits && matches!(error, SpecError::EtcdIsOff { .. }), "{given}: {error}"),
        }
    }
    let mut settings = chart(Distro::K3s, "k3s");
    assert!(matches!(
        specs(&settings, &Backend::sqlite(&settings), &prepared()),
        Err(SpecError::EtcdIsOff { flag: "--datastore-endpoint", .. })
    ));
    settings.listen.client_port = 3379;
    assert!(matches!(
        specs(&settings, &Backend::Etcd, &prepared()),
        Err(SpecError::OtherDatastore { flag: "--datastore-endpoint", .. })
    ));
    // A database's password is not repeated.
    let mut settings = chart(Distro::K3s, "k3s");
    let endpoint = "--datastore-endpoint=mysql://u:s3cret@tcp(db:3306)/k3s".to_owned();
    let command = settings.programs.vcluster.as_mut().unwrap();
    command.args.retain(|arg| !arg.starts_with("--datastore-endpoint"));
    command.command.retain(|arg| !arg.starts_with("--datastore-endpoint"));
    command.args.push(endpoint);
    let error = specs(&settings, &Backend::Etcd, &prepared()).unwrap_err().to_string();
    assert!(!error.contains("s3cret") && error.contains("tcp(db:3306)"), "{error}");
}

#[test]
fn ports_come_from_the_command() {
    let address = |settings: &Settings| apiserver_address(&specs(settings, &Backend::Etcd, &prepared()).unwrap());
    assert_eq!(address(&apiserver_command(&["--secure-port", "7443"])).unwrap().port(), 7443);
    let mut k3s = pod(Distro::K3s);
    k3s.listen.apiserver_port = 16443;
    assert_eq!(address(&k3s).unwrap().port(), 16443);
    for port in ["0", "65536", "-1", "x", ""] {
        let settings = apiserver_command(&[&format!("--secure-port={port}")]);
        let error = specs(&settings, &Backend::Etcd, &prepared()).unwrap_err();
        assert_eq!(error, SpecError::NotAPort { flag: "secure-port", given: port.to_owned() });
    }
}

#[test]
fn probes_must_get_through() {
    let settings = apiserver_command(&["--anonymous-auth=false"]);
    assert_eq!(specs(&settings, &Backend::Etcd, &prepared()), Err(SpecError::AnonymousAuthOff));
    let mut settings = pod(Distro::K3s);
    settings.programs.apiserver_extra_args = vec!["--kube-apiserver-arg=anonymous-auth=false".to_owned()];
    assert_eq!(specs(&settings, &Backend::Etcd, &prepared()), Err(SpecError::AnonymousAuthOff));
    settings.programs.apiserver_extra_args = vec!["--kube-apiserver-arg=authentication-config=/a.yaml".to_owned()];
    let k3s = specs(&settings, &Backend::Etcd, &prepared()).unwrap();
    assert!(k3s[0].args.iter().all(|a| !a.to_str().unwrap().contains("anonymous-auth")));
    let mut settings = pod(Distro::K0s);
    settings.programs.k0s_config = Some("spec: {api: {extraArgs: {anonymous-auth: \"false\"}}}".to_owned());
    assert_eq!(specs(&settings, &Backend::Etcd, &prepared()), Err(SpecError::AnonymousAuthOff));
}

#[test]
fn paths_that_cannot_be_passed_are_refused() {
    let long = PathBuf::from(format!("/{}", "x".repeat(100)));
    let settings = laptop(Distro::K8s, &long);
    let error = specs(&settings, &Backend::sqlite(&settings), &prepared()).unwrap_err();
    assert_eq!(error, SpecError::SocketPath(long.join("kine.sock")));
    let settings = laptop(Distro::K8s, Path::new("/a?b"));
    let error = specs(&settings, &Backend::sqlite(&settings), &prepared()).unwrap_err();
    assert!(error.to_string().contains("'?'"), "{error}");
}

#[test]
fn a_given_k0s_configuration() {
    let with = |config: &str| {
        let mut settings = pod(Distro::K0s);
        settings.programs.k0s_config = Some(config.to_owned());
        settings
    };
    let settings = with("spec:\n  api: {port: 7443}\n  network: {serviceCIDR: CIDR_PLACEHOLDER}\n");
    check("k0s-config-given", &settings, &Backend::Etcd);
    assert_eq!(k0s::config(&settings, &Backend::Etcd).unwrap().port, 7443);

    let external = "spec: {storage: {etcd: {externalCluster: {endpoints: [\"ENDPOINT\"]}}}}";
    let ours = with(&external.replace("ENDPOINT", "127.0.0.1:2379"));
    assert!(k0s::config(&ours, &Backend::Etcd).is_ok());
    assert!(matches!(k0s::config(&ours, &Backend::sqlite(&ours)), Err(SpecError::EtcdIsOff { .. })));
    let other = with(&external.replace("ENDPOINT", "elsewhere:2379"));
    assert!(matches!(k0s::config(&other, &Backend::Etcd), Err(SpecError::OtherDatastore { .. })));
    let kine = with("spec: {storage: {type: kine}}");
    assert!(matches!(k0s::config(&kine, &Backend::Etcd), Err(SpecError::OtherDatastore { .. })));

    for bad in [
        "- a list",
        "spec: text",
        "spec: {api: [1]}",
        "spec: {api: {port: 0}}",
        "spec: {api: {port: 70000}}",
        "a: [",
        "spec: {network: {serviceCIDR: {{ .Values.serviceCIDR }}}}",
        "",
    ] {
        assert!(k0s::config(&with(bad), &Backend::Etcd).is_err(), "{bad}");
    }
}

#[test]
fn a_k3s_token_is_made_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = laptop(Distro::K3s, dir.path());
    let token =
        |settings: &Settings| prepare::prepare(settings, &Backend::Etcd, &RealDisk).map(|p| p.k3s_token.unwrap());
    let made = token(&settings).unwrap();
    assert_eq!(made.len(), 64);
    assert_eq!(token(&settings).unwrap(), made);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.path().join("k3s-token")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    settings.k3s_token = Some(" given\n".to_owned());
    assert_eq!(token(&settings).unwrap(), "given");
}

#[test]
fn a_k3s_token_from_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = laptop(Distro::K3s, dir.path());
    fs::create_dir(dir.path().join("server")).unwrap();
    let token =
        |settings: &Settings| prepare::prepare(settings, &Backend::Etcd, &RealDisk).map(|p| p.k3s_token.unwrap());
    for bad in ["", "two words", &"x".repeat(5000)] {
        fs::write(dir.path().join("server/token"), bad).unwrap();
        assert!(token(&settings).is_err(), "{:?}", &bad[..bad.len().min(20)]);
    }
    fs::write(dir.path().join("server/token"), "K10abc::server:def\n").unwrap();
    assert_eq!(token(&settings).unwrap(), "K10abc::server:def");
    fs::remove_file(dir.path().join("server/token")).unwrap();
    settings.etcd.replicas = 3;
    assert_eq!(exit_of(&token(&settings).unwrap_err()), Exit::Usage);
}

#[test]
fn k0s_gets_its_file_and_an_empty_run_folder() {
    let dir = tempfile::tempdir().unwrap();
    let settings = laptop(Distro::K0s, dir.path());
    let run = dir.path().join("k0s-run");
    fs::create_dir_all(run.join("old/deep")).unwrap();
    fs::write(run.join("status.sock"), "").unwrap();
    fs::write(dir.path().join("k0s-config.yaml"), "old").unwrap();
    for _ in 0..2 {
        prepare::prepare(&settings, &Backend::Etcd, &RealDisk).unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
        let config = k0s::config(&settings, &Backend::Etcd).unwrap();
        assert_eq!(fs::read_to_string(&config.path).unwrap(), config.content);
    }
}

#[test]
fn only_a_folder_of_k0s_own_is_emptied() {
    let mut settings = pod(Distro::K0s);
    assert_eq!(k0s::run_dir(&settings).unwrap(), Some(PathBuf::from("/run/k0s")));
    let command = ["k0s", "controller", "--status-socket=/tmp/status.sock"].map(str::to_owned).to_vec();
    settings.programs.vcluster = Some(DistroCommand { command, args: Vec::new() });
    assert_eq!(k0s::run_dir(&settings).unwrap(), None);
}

#[test]
fn k0s_makes_cas_unless_all_that_the_pods_share_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let settings = laptop(Distro::K0s, dir.path());
    let pki = dir.path().join("k0s/pki");
    fs::create_dir_all(&pki).unwrap();
    for file in ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"] {
        assert_eq!(k0s::makes_cas(&settings), Some(pki.clone()), "without {file}");
        fs::write(pki.join(file), "x").unwrap();
    }
    assert_eq!(k0s::makes_cas(&settings), None);
    // Where the chart's command has it.
    assert_eq!(k0s::makes_cas(&chart(Distro::K0s, "k0s")), Some("/data/k0s/pki".into()));
    assert_eq!(k0s::makes_cas(&chart(Distro::K3s, "k3s")), None);
}
