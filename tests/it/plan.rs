//! `syncer plan`, the real binary: on facts from files, and on what a pod sees.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::statefulset_box::probe;
use crate::statefulset_box::protocol::Policy;
use crate::support::pod::TestPod;
use crate::support::statefulset::TestBox;
use crate::support::{golden, part, poll, repository, syncer};

fn plan(args: &[&str]) -> Output {
    Command::new(syncer()).arg("plan").args(args).env_clear().output().unwrap()
}

#[track_caller]
fn printed(args: &[&str]) -> String {
    let out = plan(args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && out.stderr.is_empty(), "{args:?}: {error}");
    String::from_utf8(out.stdout).unwrap()
}

/// Plans on each file of this folder of fixtures, compares the text with the golden one and gives name and JSON. What that
/// `shows` is what a file holds again, and leads to the same.
fn plans(fixtures: &str, flag: &str, golden_in: &str, shows: &str) -> Vec<(String, String)> {
    let files = std::fs::read_dir(repository(fixtures)).unwrap().map(|entry| entry.unwrap().path());
    let planned = |file: PathBuf| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let of = format!("{flag}={}", file.display());
        golden(&format!("{golden_in}/{name}.txt"), &printed(&[&of]));
        let json = printed(&[&of, "-o", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&json).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let again = dir.path().join("again.json");
        std::fs::write(&again, shown[shows].to_string()).unwrap();
        assert_eq!(printed(&[flag, again.to_str().unwrap(), "-o", "json"]), json, "{name}");
        (name, json)
    };
    files.map(planned).collect()
}

#[test]
fn facts_from_a_file_give_the_decision_and_its_rule() {
    let planned = plans("tests/fixtures/facts", "--facts", "plan", "facts");
    for (name, json) in &planned {
        golden(&format!("plan/{name}.json"), json);
    }
    assert!(planned.len() >= 5, "{}", planned.len());
}

#[test]
fn an_observed_membership_gives_the_step_and_its_rule() {
    let planned = plans("tests/fixtures/membership", "--membership", "plan/membership", "observed");
    assert!(planned.len() >= 3, "{}", planned.len());
    let out = plan(&["--membership", "/dev/null"]);
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(2) && error.contains("/dev/null") && error.contains("; "), "{error}");
}

#[test]
fn bad_facts_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("facts.yaml");
    let path = file.to_str().unwrap();
    let whole = "ordinal: 0\nseed: 0\ndesired: {values: 1}\nenabled: true\ndataDir: empty\njournal: absent\n";
    let cases = [
        ("ordinal: x\n".to_owned(), ":1: "),
        (whole.replace("enabled: true", "enabled: maybe"), ":4: "),
        (whole.replace("journal: absent", "journal: lost"), ":6: "),
        (format!("{whole}pears: []\n"), ":7: "),
        (format!("{whole}peers:\n  - ordinal: 1\n    dsn: absent\n"), ":9: "),
        (whole.replace("seed: 0\n", ""), "seed"),
        ("- a list\n".to_owned(), ":1: "),
        ("{".to_owned(), ":1: "),
        (String::new(), "facts.yaml"),
        // Each wanted pod is gone through: with so many, for minutes and in all of the memory.
        (whole.replace("values: 1", "values: 65"), "65 replicas"),
        (whole.replace("values: 1", "host: 4294967295"), "4294967295 replicas"),
        ("\u{1}".to_owned(), "facts.yaml"),
        (format!("{whole}#{}\n", "x".repeat(4 << 20)), "larger than 4 MiB"),
    ];
    for (text, place) in cases {
        std::fs::write(&file, &text).unwrap();
        let out = plan(&["--facts", path]);
        let error = String::from_utf8(out.stderr).unwrap();
        let shown = &text[..text.len().min(200)];
        assert_eq!(out.status.code(), Some(2), "{shown}: {error}");
        assert!(error.contains(path) && error.contains(place), "{shown}: {error}");
        assert!(error.lines().count() == 1 && error.contains("; ") && out.stdout.is_empty(), "{shown}: {error}");
    }
    for missing in [dir.path().join("none"), dir.path().to_owned()] {
        let out = plan(&["--facts", missing.to_str().unwrap()]);
        assert_eq!(out.status.code(), Some(2));
        assert!(String::from_utf8(out.stderr).unwrap().contains("cannot be read"));
    }
}

/// Every file below, with size and time of its last change.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            found.insert(path.clone(), (meta.len(), meta.modified().unwrap()));
            if meta.is_dir() {
                left.push(path);
            }
        }
    }
    found
}

/// The arguments with which [`TestPod::command`] starts, for `plan`.
fn beside(pod: &TestPod, extra: &[&str]) -> String {
    let command = pod.command("none", extra);
    let args: Vec<_> = command.get_args().skip(1).map(|arg| arg.to_str().unwrap()).collect();
    printed(&args)
}

#[test]
fn a_look_at_a_volume_changes_nothing() {
    let pod = TestPod::new();
    let before = files(&pod.data());
    let shown = beside(&pod, &[]);
    assert!(shown.contains("form a new, empty cluster") && shown.contains("4.1 (SeedForms)"), "{shown}");
    assert_eq!(files(&pod.data()), before);

    let pod = TestPod::with_small_store();
    let before = files(&pod.data());
    let shown = beside(&pod, &[]);
    assert!(shown.contains("state.db into a new cluster") && shown.contains("4.3 (StoreOfSeed)"), "{shown}");
    assert_eq!(files(&pod.data()), before);

    // No volume at all is an empty one, and is not made.
    let none = pod.data().join("none");
    let parts = part("etcd").parent().unwrap().to_str().unwrap().to_owned();
    let args = [format!("--data-dir={}", none.display()), "--distro=none".into(), format!("--binaries={parts}")];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let shown = printed(&args);
    assert!(shown.contains("data dir     empty"), "{shown}");
    assert!(!none.exists());
}

/// What a second pod would be refused for is told on the first one.
#[test]
fn it_tells_that_k0s_would_make_cas_of_its_own() {
    let pod = TestPod::new();
    let command = pod.command("k0s", &[]);
    let args: Vec<_> = command.get_args().skip(1).map(|arg| arg.to_str().unwrap()).collect();
    let dir = pod.data().join("k0s/pki");
    let told = format!("would make CAs of its own in {}", dir.display());
    let shown = printed(&args);
    assert!(shown.contains(&told), "{shown}");
    std::fs::create_dir_all(&dir).unwrap();
    for file in ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"] {
        std::fs::write(dir.join(file), "").unwrap();
    }
    let shown = printed(&args);
    assert!(!shown.contains(&told), "{shown}");
}

#[test]
fn a_look_beside_a_running_syncer_harms_neither() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    for _ in 0..5 {
        let shown = beside(&pod, &[]);
        assert!(shown.contains("runs on this volume") && shown.contains("start etcd as member"), "{shown}");
        assert!(shown.contains("4 (StartAsIs)"), "{shown}");
    }
    pod.wait_serving();
    pod.stop();
    let shown = beside(&pod, &[]);
    assert!(!shown.contains("runs on this volume") && shown.contains("start etcd as member"), "{shown}");
}

#[test]
fn in_a_pod_it_says_why_it_cannot_ask_the_others() {
    let pod = TestPod::new();
    let mut command = pod.command("none", &["--etcd-replicas=3"]);
    let args: Vec<_> = command.get_args().skip(1).map(|arg| arg.to_str().unwrap().to_owned()).collect();
    command = Command::new(syncer());
    let out = command.arg("plan").args(args).env_clear().env("POD_NAME", "vc-0").env("POD_IP", "127.0.0.1").output();
    let out = out.unwrap();
    let shown = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(shown.contains("the other pods cannot be asked") && shown.contains("4.2 (PeersSayEmpty)"), "{shown}");
    assert!(!pod.data().join("pki").exists());
}

#[test]
fn a_credentials_program_that_does_not_end_holds_up_neither_plan_nor_start() {
    let mut pod = TestPod::new();
    let (config, pids) = (pod.data().join("kubeconfig"), pod.data().join("pids"));
    let hangs = serde_json::json!({
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "sh", "args": ["-c", "echo $$ >>$0; exec sleep 1000", pids],
    });
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": true}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"exec": hangs}}],
    });
    std::fs::write(&config, text.to_string()).unwrap();
    let start = pod.command("none", &["--host-kubeconfig", config.to_str().unwrap()]);
    let mut plan = Command::new(syncer());
    plan.arg("plan").args(start.get_args().skip(1));
    let mut ended = Vec::new();
    for (mut command, says) in [(plan, "configuration is not read within"), (start, "how many replicas are wanted")] {
        command.env("POD_NAME", "vc-0").env("NAMESPACE", "team-a").env("POD_IP", "127.0.0.1");
        pod.spawn(command);
        poll(&format!("`{says}` is told"), Duration::from_secs(60), || pod.log().contains(says).then_some(()));
        if says.starts_with("how") {
            poll("probes are answered", Duration::from_secs(60), || pod.probe("/livez"));
            kill(pod.pid(), Signal::SIGTERM).unwrap();
        }
        ended.push(pod.wait_end(Duration::from_secs(60)).code());
    }
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.lines() {
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    assert_eq!((ended, pids.lines().count()), (vec![Some(0); 2], 2), "each runs it once: {}", pod.log());
}

/// `syncer plan` with the arguments, the environment, the network and the files of a pod's syncer.
fn in_the_place_of(pid: i32) -> Output {
    let read = |name: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        words.map(|word| String::from_utf8(word.to_owned()).unwrap()).collect::<Vec<_>>()
    };
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target"]).arg(pid.to_string()).arg(syncer());
        command
    } else {
        Command::new(syncer())
    };
    let (args, env) = (read("cmdline"), read("environ"));
    command.arg("plan").args(args.iter().skip_while(|arg| *arg != "start").skip(1)).arg("-o=json");
    command.env_clear().envs(env.iter().filter_map(|pair| pair.split_once('='))).output().unwrap()
}

#[test]
fn in_a_pod_it_sees_what_the_others_say() {
    let set = TestBox::syncer(2, Policy::Parallel);
    set.settled();
    let pid = set.status().unwrap().pods[&1].pid;
    // A busy machine's peers may not answer in time: then they are unknown, and one looks again.
    let shown = poll("the plan knows both members", Duration::from_secs(90), || {
        let out = in_the_place_of(pid.unwrap());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let shown: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let members = shown["facts"]["members"]["present"]["members"].as_array();
        let serves = shown["facts"]["peers"][0]["state"]["present"]["serving"].is_object();
        (serves && members.is_some_and(|members| members.len() == 2)).then_some(shown)
    });
    assert_eq!(shown["facts"]["ordinal"], 1);
    assert!(shown["decision"]["start"].is_object(), "{shown:#}");
    assert_eq!(set.status().unwrap().pods[&1].pid, pid, "the syncer beside it runs on");

    // What pods say of themselves is for those of the same CA alone.
    let address = set.forward(0, 2382).expect("a forward");
    let stranger = syncer::supervise::probe::unverified().expect("TLS");
    assert_eq!(probe::get(address, "/v1/state", &stranger.into()), None, "without a certificate");
    let peer = peer_of(&set.pki("vc-0")).into();
    let said =
        poll("a peer is answered", Duration::from_secs(60), || probe::get(address, "/v1/state", &peer).map(Some));
    assert!(said.as_ref().is_some_and(|(status, word)| *status == 200 && word.contains("serving")), "{said:?}");
}

/// A client with a certificate of etcd's CA.
fn peer_of(pki: &Path) -> rustls::ClientConfig {
    let read = |file: &str| std::fs::read(pki.join("etcd").join(file)).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.crt")).expect("a CA")).expect("add it");
    let chain = CertificateDer::from_pem_slice(&read("peer.crt")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(&read("peer.key")).expect("a key");
    rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key)
        .expect("a client")
}
