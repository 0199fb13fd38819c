use std::collections::BTreeMap;

use super::*;
use crate::exit::{Exit, exit_of};
use crate::settings::Distro;
use crate::settings::provenance::REDACTED;
use clap::{Args, FromArgMatches};

/// A loader on a machine where nothing is installed and nothing is mounted, with these variables.
pub(in crate::settings) fn loader(env: &[(&str, &str)]) -> Loader {
    let env: BTreeMap<String, OsString> = env.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
    Loader {
        flags: Flags::default(),
        wrapped: None,
        env: Box::new(env),
        surroundings: Surroundings {
            values_files: Vec::new(),
            namespace_file: PathBuf::from("/nonexistent/namespace"),
            folders: vec![PathBuf::from("/nonexistent/binaries")],
        },
    }
}

/// The settings of a laptop where nothing is said.
pub(in crate::settings) fn laptop() -> Settings {
    loader(&[]).load().unwrap().settings
}

fn flags(line: &str) -> Flags {
    let command = Flags::augment_args(clap::Command::new("x").no_binary_name(true));
    let matches = command.try_get_matches_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}"));
    Flags::from_arg_matches(&matches).unwrap()
}

/// Loads as if `text` were the values file `v.yaml`.
#[track_caller]
fn load(text: &str, line: &str, env: &[(&str, &str)]) -> anyhow::Result<Loaded> {
    let mut loader = loader(env);
    loader.flags = flags(line);
    match text {
        "" => loader.load(),
        text => loader.load_from(Path::new("v.yaml"), text.as_bytes()),
    }
}

/// Variables of a case.
type Vars<'a> = &'a [(&'a str, &'a str)];

const POD: (&str, &str) = ("POD_NAME", "vc-0");
const SINCE_020: &str = "controlPlane:\n  backingStore: {etcd: {embedded: {enabled: true}}}\n";

#[test]
fn a_laptop_needs_nothing() {
    let loaded = loader(&[]).load().unwrap();
    let s = &loaded.settings;
    assert_eq!((s.name.as_str(), s.namespace.as_str(), s.pod.name.as_str()), ("syncer", "default", "syncer-0"));
    assert!(!s.pod.in_pod && s.etcd.enabled && s.listen.address.is_loopback());
    assert_eq!((s.distro, s.pki_dir.as_path()), (Distro::None, Path::new("/data/pki")));
    assert_eq!(s.client_url(), "https://localhost:2379");
    assert_eq!(loaded.provenance.source("etcd.enabled").unwrap().to_string(), "default: distro none is etcd alone");
}

#[test]
fn a_laptop_runs_the_api_server_that_is_found() {
    let k8s = ["kube-apiserver", "kube-controller-manager"];
    // As envtest has it: an API server alone is not what a virtual cluster runs.
    for (programs, want) in
        [(&k8s[..], Distro::K8s), (&k8s[..1], Distro::None), (&["k3s"], Distro::K3s), (&["k9s"], Distro::None)]
    {
        let dir = tempfile::tempdir().unwrap();
        for program in programs {
            std::fs::write(dir.path().join(program), "").unwrap();
        }
        let mut by_flag = loader(&[]);
        by_flag.flags.binaries = Some(vec![dir.path().to_owned()]);
        assert_eq!(by_flag.load().unwrap().settings.distro, want, "{programs:?}");
        let by_path = loader(&[("PATH", dir.path().to_str().unwrap())]);
        assert_eq!(by_path.load().unwrap().settings.distro, want, "{programs:?}");
        if want != Distro::None {
            let loaded = by_path.load().unwrap();
            assert!(loaded.settings.etcd.enabled, "on a laptop without a values file etcd is what it is for");
            assert!(loaded.provenance.source("etcd.enabled").unwrap().to_string().contains("no values file"));
        }
    }
}

#[test]
fn with_a_values_file_etcd_is_off_as_in_the_charts() {
    for text in ["controlPlane: {}\n", "syncer: {replicas: 1}\n", "{}\n"] {
        let loaded = load(text, "--distro k8s", &[]).unwrap();
        assert!(!loaded.settings.etcd.enabled, "{text}");
    }
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let text = "controlPlane:\n  backingStore: {etcd: {embedded: {enabled: true}}}\n  statefulSet:\n    highAvailability:\n      replicas: 3\n";
    let env = [("SYNCER_ETCD_REPLICAS", "5"), POD];
    for (text, line, env, want, source) in [
        ("", "", &[][..], 1, "default"),
        (text, "", &[POD][..], 3, "v.yaml:5"),
        (text, "", &env[..], 5, "env SYNCER_ETCD_REPLICAS"),
        (text, "--etcd-replicas=7", &env[..], 7, "flag --etcd-replicas"),
    ] {
        let loaded = load(text, line, env).unwrap();
        assert_eq!(loaded.settings.etcd.replicas, want);
        assert_eq!(loaded.provenance.source("etcd.replicas").unwrap().to_string(), source);
    }
}

#[test]
fn the_k8s_chart_of_019_needs_no_file() {
    let api = "command:\n  - /binaries/kube-apiserver\n  - '--etcd-servers=https://127.0.0.1:2379'\n  - '--token-auth-file=/x'\n";
    let env =
        [POD, ("VCLUSTER_DISTRO", "eks"), ("APISERVER_COMMAND", api), ("POD_IP", "10.1.2.3"), ("NAMESPACE", "team")];
    let loaded =
        load("", "--name=vc --etcd-embedded --etcd-replicas=3 --client-ca-cert=/pki/ca.crt --tls-san=a,b", &env)
            .unwrap();
    let s = &loaded.settings;
    assert_eq!((s.distro, s.etcd.enabled, s.etcd.replicas), (Distro::Eks, true, 3));
    assert_eq!((s.pki_dir.as_path(), s.namespace.as_str()), (Path::new("/pki"), "team"));
    assert_eq!(s.programs.apiserver.as_ref().unwrap().command.len(), 3);
    assert_eq!(s.peer_url(), "https://vc-0.vc-headless.team:2380");
    assert_eq!(
        (s.tls_sans.as_slice(), s.listen.address.to_string().as_str()),
        (&["a".to_owned(), "b".to_owned()][..], "0.0.0.0")
    );
    let yaml = loaded.provenance.yaml();
    assert!(yaml.contains("# env APISERVER_COMMAND") && !yaml.contains("file=/x"), "{yaml}");
}

/// The schemas of the charts know no such keys, and those of 0.19 hand over no file.
#[test]
fn snapshots_and_the_way_back_can_be_asked_for_by_the_environment() {
    let env = [
        POD,
        ("SYNCER_SNAPSHOT_SCHEDULE", "@daily"),
        ("SYNCER_SNAPSHOT_KEEP", "3"),
        ("SYNCER_SNAPSHOT_TARGET", "s3://backups/p"),
    ];
    let loaded = load("", "--name=vc --etcd-embedded", &env).unwrap();
    let snapshots = loaded.settings.etcd.snapshots.as_ref().expect("a schedule");
    assert_eq!((snapshots.keep, snapshots.target.to_string().as_str()), (3, "s3://backups/p"));
    assert_eq!(snapshots.schedule.to_string(), "@daily");
    assert!(loaded.provenance.yaml().contains("# env SYNCER_SNAPSHOT_SCHEDULE"), "{}", loaded.provenance.yaml());
    let back = load("", "--name=vc", &[POD, ("SYNCER_MIGRATE_BACK", "true")]).unwrap();
    assert!(back.settings.etcd.migrate_back && !back.settings.etcd.enabled);
    // A command of `kubectl exec` is about embedded etcd unless something says that it is off.
    assert!(back.with_etcd().etcd.enabled);
    assert!(!load("", "--name=vc --etcd-embedded=false", &[POD]).unwrap().with_etcd().etcd.enabled);
}

#[test]
fn each_distro_has_its_pki_directory() {
    let cases: &[(&str, &str, Vars<'_>, &str)] = &[
        ("", "", &[POD, ("VCLUSTER_DISTRO", "k3s")], "/data/pki"),
        ("", "", &[POD, ("VCLUSTER_DISTRO", "k0s")], "/data/k0s/pki"),
        ("", "", &[POD, ("VCLUSTER_DISTRO", "k8s")], "/pki"),
        ("", "", &[POD, ("VCLUSTER_DISTRO", "eks")], "/pki"),
        (SINCE_020, "", &[POD], "/data/pki"),
        ("", "", &[POD], "/data/pki"),
        ("", "--data-dir d --distro k8s", &[], "d/pki"),
        ("", "--data-dir d --distro k0s", &[], "d/k0s/pki"),
        ("", "--pki-dir /certs", &[POD, ("VCLUSTER_DISTRO", "k8s")], "/certs"),
        ("", "--client-ca-cert /x/ca.crt", &[POD, ("VCLUSTER_DISTRO", "k8s")], "/x"),
        ("", "--client-ca-cert /x/ca.crt", &[POD, ("VCLUSTER_DISTRO", "k3s")], "/data/pki"),
    ];
    for (text, line, env, want) in cases {
        let want = std::path::absolute(want).unwrap();
        assert_eq!(load(text, line, env).unwrap().settings.pki_dir, want, "{text:?} {line:?} {env:?}");
    }
}

#[test]
fn the_distro_is_found_in_what_the_charts_say() {
    let cases: &[(&str, &str, Vars<'_>, Distro)] = &[
        ("", "--distro none", &[POD, ("VCLUSTER_DISTRO", "k3s")], Distro::None),
        ("vcluster: {image: 'rancher/k3s:v1'}", "", &[POD, ("VCLUSTER_DISTRO", "k0s")], Distro::K0s),
        ("", "", &[POD, ("VCLUSTER_COMMAND", "command: [/binaries/k0s]")], Distro::K0s),
        ("", "", &[POD, ("VCLUSTER_COMMAND", "command: [/binaries/k3s]\nargs: [server]")], Distro::K3s),
        ("", "", &[POD, ("APISERVER_COMMAND", "command: [a]")], Distro::K8s),
        ("vcluster: {image: 'rancher/k3s:v1'}", "", &[POD], Distro::K3s),
        ("vcluster: {command: [/binaries/k0s]}", "", &[POD], Distro::K0s),
        ("api: {image: 'registry.k8s.io/kube-apiserver:v1'}", "", &[POD], Distro::K8s),
        ("api: {image: 'public.ecr.aws/eks-distro/kubernetes/kube-apiserver:v1'}", "", &[POD], Distro::Eks),
        ("controlPlane: {distro: {k3s: {enabled: true}}}", "", &[POD], Distro::K3s),
        ("controlPlane: {distro: {eks: {enabled: true}}}", "", &[POD], Distro::Eks),
        ("controlPlane: {}", "", &[], Distro::K8s),
        ("", "", &[POD], Distro::K8s),
    ];
    for (text, line, env, want) in cases {
        assert_eq!(load(text, line, env).unwrap().settings.distro, *want, "{text:?} {line:?} {env:?}");
    }
}

#[test]
fn replicas_come_from_the_key_that_sizes_the_stateful_set() {
    let both = "replicas: 5\nsyncer: {replicas: 3}\nembeddedEtcd: {enabled: true}\n";
    for (distro, want) in [("k3s", 5), ("k0s", 5), ("k8s", 3), ("eks", 3)] {
        assert_eq!(
            load(both, "", &[POD, ("VCLUSTER_DISTRO", distro)]).unwrap().settings.etcd.replicas,
            want,
            "{distro}"
        );
    }
}

#[test]
fn a_command_in_the_environment_holds_the_values_arguments_already() {
    let text = "api: {extraArgs: [--v=4]}\ncontroller: {extraArgs: [--v=5]}\n";
    let env = [POD, ("VCLUSTER_DISTRO", "k8s"), ("APISERVER_COMMAND", "command: [/binaries/kube-apiserver, --v=4]")];
    let programs = load(text, "", &env).unwrap().settings.programs;
    assert_eq!((programs.apiserver_extra_args.len(), programs.controller_extra_args.len()), (0, 1));
    let programs = load(text, "", &[POD, ("VCLUSTER_DISTRO", "k8s")]).unwrap().settings.programs;
    assert_eq!(programs.apiserver_extra_args, ["--v=4"]);
}

#[test]
fn an_external_etcd_on_loopback_is_this_one() {
    let text = |endpoint: &str| {
        format!("controlPlane: {{backingStore: {{etcd: {{external: {{enabled: true, endpoint: '{endpoint}'}}}}}}}}\n")
    };
    for endpoint in ["127.0.0.1:2379", "https://127.0.0.1:2379", "https://localhost:2379"] {
        let loaded = load(&text(endpoint), "--distro none", &[POD]).unwrap();
        assert!(loaded.settings.etcd.enabled);
        assert_eq!(loaded.provenance.source("etcd.enabled").unwrap().to_string(), "v.yaml:1");
    }
    let error = load(&text("etcd.example.com:2379"), "--distro none", &[POD]).unwrap_err().to_string();
    assert!(error.contains("v.yaml:1") && error.contains("etcd.example.com"), "{error}");
}

#[test]
fn the_deployed_etcd_has_its_url() {
    let new = "controlPlane:\n  backingStore:\n    etcd:\n      embedded: {enabled: true, migrateFromDeployedEtcd: true}\n      deploy: {service: {enabled: SERVICE}}\n";
    for (text, line, want) in [
        ("embeddedEtcd: {enabled: true, migrateFromEtcd: true}\n", "", "https://vc-etcd:2379"),
        (&new.replace("SERVICE", "true"), "", "https://vc-etcd:2379"),
        (&new.replace("SERVICE", "false"), "", "https://vc-etcd-headless:2379"),
        (SINCE_020, "--migrate-from=https://other:2379", "https://other:2379"),
    ] {
        let loaded = load(text, line, &[POD, ("VCLUSTER_DISTRO", "k8s")]).unwrap();
        assert_eq!(loaded.settings.etcd.migrate_from.as_deref(), Some(want), "{text}");
    }
    assert_eq!(load(SINCE_020, "--migrate-from=", &[POD]).unwrap().settings.etcd.migrate_from, None);
}

/// A start by the values of before the move has a fence to lift, whatever they are refused for.
#[test]
fn settings_that_are_refused_for_their_datastore_are_known_all_the_same() {
    let deployed = "controlPlane:\n  backingStore: {etcd: {deploy: {enabled: true}}}\n";
    let off = "controlPlane:\n  backingStore: {etcd: {embedded: {enabled: false, migrateFromDeployedEtcd: true}}}\n";
    let three = "  statefulSet: {highAvailability: {replicas: 3}}\n";
    for (text, why) in [
        (deployed.to_owned(), "etcd.deploy is enabled"),
        (format!("{deployed}{three}"), "etcd.deploy is enabled"),
        (off.to_owned(), "but embedded etcd is off"),
        (format!("{off}{three}"), "SQLite has one writer"),
        ("embeddedEtcd: {enabled: false, migrateFromEtcd: true}\n".to_owned(), "but embedded etcd is off"),
    ] {
        let mut loader = loader(&[POD, ("VCLUSTER_DISTRO", "k8s")]);
        loader.flags = flags("--data-dir=/volume");
        let refused = loader.resolve_from(Path::new("v.yaml"), text.as_bytes()).unwrap_err();
        let of_load = loader.load_from(Path::new("v.yaml"), text.as_bytes()).unwrap_err();
        for error in [&refused.error, &of_load] {
            assert!(exit_of(error) == Exit::Usage && error.to_string().contains(why), "{text}: {error}");
        }
        let settings = refused.settings.unwrap();
        assert_eq!((settings.data_dir.as_path(), settings.etcd.enabled), (Path::new("/volume"), false), "{text}");
    }
}

#[test]
fn what_tells_no_era_is_read_all_the_same() {
    for text in ["serviceCIDR: 10.97.0.0/16\n", "serviceCIDR: 10.97.0.0/16\nservice: {}\ncontrolPlane: ~\n"] {
        let loaded = load(text, "", &[POD]).unwrap();
        assert_eq!(loaded.settings.service_cidr, "10.97.0.0/16");
        assert_eq!(loaded.provenance.source("serviceCidr").unwrap().to_string(), "v.yaml:1");
    }
    let error = load("serviceCIDR: 10.96.0.0/99\n", "", &[POD]).unwrap_err();
    assert!(exit_of(&error) == Exit::Usage && error.to_string().contains("v.yaml:1"), "{error}");
    let text = "ingress: {enabled: true, host: vc.example.com}\nsync: {nodes: {enableScheduler: true}}\n";
    let settings = load(text, "", &[POD, ("VCLUSTER_DISTRO", "k8s")]).unwrap().settings;
    assert!(settings.tls_sans.contains(&"vc.example.com".to_owned()), "{:?}", settings.tls_sans);
    assert!(settings.programs.scheduler_enabled);
    // The era is still not known: nothing that follows from one is taken for said.
    assert_eq!(settings.pki_dir, load("{}", "", &[POD, ("VCLUSTER_DISTRO", "k8s")]).unwrap().settings.pki_dir);
    for key in ["replicas: 3", "k3sToken: x"] {
        let error = load(&format!("{key}\ncontrolPlane: {{}}\n"), "", &[POD]).unwrap_err().to_string();
        assert!(error.contains("v.yaml:2") && error.contains("keep one form"), "{error}");
    }
}

#[test]
fn a_clash_of_ports_names_where_they_are_set() {
    let error = load("controlPlane:\n  proxy:\n    port: 2379\n", "", &[POD]).unwrap_err();
    assert_eq!(exit_of(&error), Exit::Usage);
    assert!(error.to_string().contains("--client-port (default) and --port (v.yaml:3) are both 2379"), "{error}");
}

#[test]
fn passwords_in_urls_are_not_quoted() {
    let external =
        "controlPlane: {backingStore: {etcd: {external: {enabled: true, endpoint: 'u:s3cret@etcd:2379'}}}}\n";
    let embedded = "embeddedEtcd: {enabled: true}\n";
    for (text, line) in [(external, ""), (embedded, "--migrate-from=https://u:s3cret@etcd:2379")] {
        let error = load(text, line, &[POD]).unwrap_err();
        assert!(!format!("{error:#}").contains("s3cret") && error.to_string().contains("etcd:2379"), "{error:#}");
    }
}

#[test]
fn a_token_is_taken_and_not_shown() {
    for (text, line, env) in [
        ("vcluster: {k3sToken: s3cret}", "", &[POD, ("VCLUSTER_DISTRO", "k3s")][..]),
        ("controlPlane: {distro: {k3s: {enabled: true, token: s3cret}}}", "", &[POD]),
        ("", "--token s3cret", &[POD, ("VCLUSTER_DISTRO", "k3s")]),
        ("", "", &[POD, ("VCLUSTER_DISTRO", "k3s"), ("SYNCER_TOKEN", "s3cret")]),
        (
            "",
            "--token s3cret",
            &[POD, ("VCLUSTER_COMMAND", "command: [/binaries/k3s, server, --token=s3cret, --token, s3cret]")],
        ),
    ] {
        let loaded = load(text, line, env).unwrap();
        assert_eq!(loaded.settings.k3s_token.as_deref(), Some("s3cret"), "{text}{line}");
        let shown = loaded.provenance.yaml() + &loaded.provenance.json();
        assert!(!shown.contains("s3cret") && shown.contains(REDACTED), "{shown}");
    }
}

#[test]
fn warnings_do_not_stop() {
    for (text, line, want) in [
        ("embeddedEtcd: {enabled: true}\nsyncer: {replicas: 4}\n", "", "even number"),
        ("embeddedEtcd: {enabled: true}\nsyncer: {replicas: 9}\n", "", "at most 7"),
        ("embeddedEtcd: {enabled: true}\nsyncer: {replicas: 0}\n", "", "paused"),
        ("embeddedEtcd:\n  enabled: true\n  quotaBackendBytes: 16Gi\n", "", "v.yaml:3: etcd advises"),
    ] {
        let loaded = load(text, line, &[POD, ("VCLUSTER_DISTRO", "k8s")]).unwrap();
        let [warning] = loaded.provenance.warnings.as_slice() else { panic!("{:?}", loaded.provenance.warnings) };
        assert!(warning.contains(want), "{warning}");
    }
}

#[test]
fn contradictions_are_refused_with_their_place_and_a_remedy() {
    let k8s = &[POD, ("VCLUSTER_DISTRO", "k8s")][..];
    let cases: &[(&str, &str, Vars<'_>, &[&str])] = &[
        // Values.
        (
            "controlPlane:\n  statefulSet:\n    highAvailability:\n      replicas: 3\n",
            "",
            k8s,
            &["v.yaml:4", "SQLite", "embedded.enabled"],
        ),
        (
            "embeddedEtcd:\n  enabled: true\n  migrateFromEtcd: true\n",
            "",
            &[POD, ("VCLUSTER_DISTRO", "k0s")],
            &["v.yaml:3", "k0s"],
        ),
        ("embeddedEtcd:\n  migrateFromEtcd: true\n", "", k8s, &["v.yaml:2", "off", "pro: true"]),
        ("embeddedEtcd:\n  enabled: true\n  migrateBack: true\n", "", k8s, &["v.yaml:3", "migrateBack"]),
        (
            "embeddedEtcd:\n  enabled: true\n  electionTimeout: 200\n  heartbeatInterval: 100\n",
            "",
            k8s,
            &["v.yaml:3", "five times"],
        ),
        (
            "controlPlane:\n  backingStore:\n    etcd:\n      deploy:\n        enabled: true\n",
            "",
            k8s,
            &["v.yaml:5", "migrateFromDeployedEtcd"],
        ),
        (
            "controlPlane:\n  backingStore:\n    database:\n      external:\n        enabled: true\n",
            "",
            k8s,
            &["v.yaml:5", "database"],
        ),
        (
            "controlPlane:\n  backingStore:\n    database:\n      embedded:\n        enabled: true\n        dataSource: mysql://x\n",
            "",
            k8s,
            &["v.yaml:6", "database"],
        ),
        ("controlPlane:\n  proxy:\n    bindAddress: nowhere\n", "", k8s, &["v.yaml:3", "bindAddress"]),
        ("serviceCIDR: 10.0.0.0\nsyncer: {}\n", "", k8s, &["v.yaml:1", "10.96.0.0/12"]),
        // Flags.
        ("", "--etcd-replicas=-1", k8s, &["--etcd-replicas is -1", "1, 3 or 5"]),
        ("", "--etcd-replicas=10", k8s, &["--etcd-replicas is 10"]),
        ("", "--migrate-from=a-etcd:2379 --etcd-embedded", k8s, &["--migrate-from", "https://"]),
        ("", "--migrate-from=https://a-etcd:2379", k8s, &["--migrate-from", "off"]),
        ("", "--migrate-back --etcd-embedded", k8s, &["--migrate-back", "enabled: false"]),
        ("", "--snapshot-schedule=@daily --snapshot-target=kept", &[], &["--snapshot-target", "/data/snapshots"]),
        ("", "--name=Big", &[], &["--name", "lower-case"]),
        ("", "--namespace=a/b", &[], &["--namespace"]),
        ("", "--service-cidr=x", &[], &["--service-cidr"]),
        ("", "--tls-san=a/b", &[], &["--tls-san"]),
        ("", "--client-port=1 --peer-port=1", &[], &["--client-port (flag --client-port) and --peer-port"]),
        ("", "--log-level=inof", &[], &["--log-level", "info"]),
        ("", "--distro=none --etcd-embedded=false", &[], &["--etcd-embedded", "nothing"]),
        // Environment.
        ("", "--etcd-embedded", &[("POD_NAME", "vc-5d9c7b-abcde")], &["vc-5d9c7b-abcde", "StatefulSet"]),
        ("", "--name=other", &[POD], &["vc-0", "other", "--name=vc"]),
        ("", "", &[("POD_NAME", "vc-0\n")], &["POD_NAME"]),
        ("", "", &[POD, ("POD_IP", "here")], &["POD_IP", "status.podIP"]),
        ("", "", &[POD, ("VCLUSTER_DISTRO", "k9s")], &["VCLUSTER_DISTRO", "k3s, k8s"]),
        ("", "", &[POD, ("VCLUSTER_COMMAND", "command: /binaries/k3s")], &["VCLUSTER_COMMAND:1", "list"]),
        ("", "", &[POD, ("APISERVER_COMMAND", "command: []")], &["APISERVER_COMMAND", "no command"]),
        ("", "", &[POD, ("APISERVER_COMMAND", "a\n")], &["APISERVER_COMMAND", "mapping"]),
        ("", "", &[POD, ("SCHEDULER_COMMAND", "command: [a]\nargz: [b]\n")], &["SCHEDULER_COMMAND:2", "args"]),
        ("", "", &[POD, ("SYNCER_CLIENT_PORT", "many")], &["SYNCER_CLIENT_PORT", "65535"]),
        ("", "", &[POD, ("RUST_LOG", "loud")], &["RUST_LOG"]),
    ];
    for (text, line, env, want) in cases {
        let error = load(text, line, env).map(|l| l.settings).expect_err(&format!("{text:?} {line:?} {env:?}"));
        assert_eq!(exit_of(&error), Exit::Usage, "{error}");
        let message = format!("{error:#}");
        for part in *want {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
        assert!(!message.contains('\n') && message.contains("; "), "{message:?}");
    }
}

#[test]
fn the_namespace_is_the_service_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("namespace");
    let mut loader = loader(&[POD]);
    loader.surroundings.namespace_file = file.clone();
    for (content, want) in [("team-b\n", "team-b"), ("", "default")] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(loader.load().unwrap().settings.namespace, want);
    }
    std::fs::write(&file, "no such name").unwrap();
    let error = loader.load().unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

#[test]
fn the_mounted_file_is_found_and_a_bad_one_is_not_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (new, old) = (dir.path().join("new.yaml"), dir.path().join("old.yaml"));
    let mut loader = loader(&[POD]);
    loader.surroundings.values_files = vec![new.clone(), old.clone()];
    assert_eq!(loader.load().unwrap().settings.values_file, None);
    std::fs::write(&old, SINCE_020).unwrap();
    assert_eq!(loader.load().unwrap().settings.values_file, Some(old));
    std::os::unix::fs::symlink("nowhere", &new).unwrap();
    let error = loader.load().unwrap_err();
    assert!(error.to_string().contains("new.yaml"), "a dangling link is a broken mount, not an absent one: {error}");
}

#[test]
fn the_host_api_is_used_where_a_pod_may() {
    use crate::settings::HostApi;
    let dir = tempfile::tempdir().unwrap();
    let api = |env: &[(&str, &str)], args: &str| {
        let mut loader = loader(env);
        loader.flags = flags(args);
        loader.surroundings.namespace_file = dir.path().join("namespace");
        loader.load().map(|loaded| loaded.settings.host_api)
    };
    let address = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    assert_eq!(api(&[POD, address], "").unwrap(), HostApi::None, "no token is mounted");
    std::fs::write(dir.path().join("token"), "t").unwrap();
    assert_eq!(api(&[POD, address], "").unwrap(), HostApi::InCluster);
    assert_eq!(api(&[POD], "").unwrap(), HostApi::None);
    assert_eq!(api(&[address], "").unwrap(), HostApi::None, "no pod");
    // The charts' flag of a similar name is the virtual cluster's.
    assert_eq!(api(&[POD, address], "--host-kubeconfig=/k").unwrap(), HostApi::Kubeconfig("/k".into()));
    assert_eq!(exit_of(&api(&[], "--host-kubeconfig=/k").unwrap_err()), Exit::Usage);
}
