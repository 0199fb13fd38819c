use super::*;
use proptest::prelude::*;

#[track_caller]
fn good(text: &str) -> Values {
    parse(Path::new("v.yaml"), text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[track_caller]
fn bad(bytes: &[u8]) -> ValuesError {
    let error = parse(Path::new("v.yaml"), bytes).expect_err(&String::from_utf8_lossy(bytes));
    let message = format!("{:#}", error.clone().refuse());
    assert!(!error.what.is_empty() && !error.remedy.is_empty(), "{error:?}");
    assert!(message.starts_with("v.yaml") && message.len() < 700 && !message.contains('\n'), "{message:?}");
    error
}

/// The subtree in both forms, with `keys` indented below it; the second number is the line of the first key.
fn both_eras(keys: &str) -> [(String, u64); 2] {
    let indent = |n: usize| keys.lines().map(|l| format!("{}{l}\n", " ".repeat(n))).collect::<String>();
    [
        (format!("embeddedEtcd:\n{}", indent(2)), 2),
        (format!("controlPlane:\n  backingStore:\n    etcd:\n      embedded:\n{}", indent(8)), 5),
    ]
}

#[test]
fn both_forms_say_the_same() {
    let keys = "enabled: true\nmigrateBack: false\nsnapshotCount: 5000\nquotaBackendBytes: 4Gi\nheartbeatInterval: 50\nelectionTimeout: 500\nextraArgs: [--pre-vote=true]";
    for ((text, first), era) in both_eras(keys).into_iter().zip([Era::V019, Era::V020]) {
        let values = good(&text);
        assert_eq!(values.era, Some(era));
        let etcd = values.etcd;
        assert_eq!(etcd.enabled, Some(Spot { value: true, line: first }));
        assert_eq!(etcd.migrate_back, Some(Spot { value: false, line: first + 1 }));
        assert_eq!(etcd.snapshot_count, Some(Spot { value: 5000, line: first + 2 }));
        assert_eq!(etcd.quota_backend_bytes, Some(Spot { value: 4 << 30, line: first + 3 }));
        assert_eq!(etcd.heartbeat_ms, Some(Spot { value: 50, line: first + 4 }));
        assert_eq!(etcd.election_ms, Some(Spot { value: 500, line: first + 5 }));
        assert_eq!(etcd.extra_args, Some(Spot { value: vec!["--pre-vote=true".into()], line: first + 6 }));
    }
}

#[test]
fn what_is_foreign_is_passed_over_however_it_looks() {
    for text in [
        "{}",
        "sync: nonsense\npro: [1, 2]\ntelemetry: 5\n",
        "embeddedEtcd: {enabled: true}\nunknownToUs: {a: {b: c}}\nisolation: 7\n",
        "controlPlane:\n  coredns: [x]\n  advanced: {globalMetadata: ~}\nplugins: ''\n",
        "\u{feff}embeddedEtcd: {enabled: true}\n",
        "syncer:\n  storage: none\n  5: 6\n",
        "# only this\nsyncer: ~\nembeddedEtcd:\n",
    ] {
        good(text);
    }
    assert_eq!(good("{}").era, None);
    assert_eq!(good("syncer: ~\nembeddedEtcd: ~\nvcluster: ~").etcd, EtcdValues::default());
    // Helm's way of taking a key of the chart's defaults away.
    assert_eq!(good("embeddedEtcd: {enabled: true}\ncontrolPlane: ~").era, Some(Era::V019));
    assert_eq!(good("embeddedEtcd: ~\ncontrolPlane: {}").era, Some(Era::V020));
}

#[test]
fn yaml_11_truth_values_are_helms_too() {
    for (word, want) in [("true", true), ("yes", true), ("on", true), ("False", false), ("no", false), ("off", false)] {
        let values = good(&format!("embeddedEtcd:\n  enabled: {word}\n"));
        assert_eq!(values.etcd.enabled.map(|s| s.value), Some(want), "{word}");
    }
}

#[test]
fn an_unknown_key_of_ours_is_refused_with_the_nearest_known_one() {
    for (keys, line, remedy) in [
        ("enabled: true\nextraArg: []", 1, "did you mean \"extraArgs\"?"),
        ("enable: true", 0, "did you mean \"enabled\"?"),
        ("Enabled: true", 0, "did you mean \"enabled\"?"),
        ("quota-backend-bytes: 5", 0, "did you mean \"quotaBackendBytes\"?"),
        ("replicas: 3", 0, "syncer.replicas"),
        ("zzz: 3", 0, "the keys known here are enabled"),
    ] {
        for (text, first) in both_eras(keys) {
            let error = bad(text.as_bytes());
            assert_eq!(error.line, Some(first + line), "{error:?}");
            assert!(error.what.starts_with("unknown key") && error.remedy.contains(remedy), "{error:?}");
        }
    }
    let error = bad(b"embeddedEtcd:\n  migrateFromDeployedEtcd: true\n");
    assert!(error.remedy.contains("called migrateFromEtcd in 0.19"), "{error:?}");
    let error = bad(b"controlPlane: {backingStore: {etcd: {embedded: {migrateFromEtcd: true}}}}\n");
    assert!(error.remedy.contains("called migrateFromDeployedEtcd"), "{error:?}");
}

#[test]
fn a_misspelt_way_to_the_subtree_is_refused() {
    for (text, line, near) in [
        ("embeddedetcd: {enabled: true}\n", 1, "embeddedEtcd"),
        ("syncer: {}\nembededEtcd: {enabled: true}\n", 2, "embeddedEtcd"),
        ("embeddedEctd: {enabled: true}\n", 1, "embeddedEtcd"),
        ("controlplane: {}\n", 1, "controlPlane"),
        ("controlPlane:\n  backingstore: {}\n", 2, "backingStore"),
        ("controlPlane:\n  backingStore:\n    ectd: {}\n", 3, "etcd"),
        ("controlPlane:\n  backingStore:\n    etcd:\n      embeded: {enabled: true}\n", 4, "embedded"),
        ("controlPlane:\n  statefulset: {}\n", 2, "statefulSet"),
    ] {
        let error = bad(text.as_bytes());
        assert!(error.line == Some(line) && error.remedy == format!("did you mean {near:?}?"), "{text}: {error:?}");
    }
    // Keys of the charts themselves are none of that.
    good(
        "controlPlane:\n  endpoint: x\n  service: {}\n  serviceMonitor: {}\n  standalone: {}\n  backingStore: {pgo: {}}\n",
    );
    good("controller: {}\nexternal: {}\netcd: {}\n");
}

#[test]
fn wrong_types_and_numbers_are_refused() {
    for (keys, want) in [
        ("enabled: \"true\"", "must be true or false"),
        ("enabled: 1", "must be true or false"),
        ("enabled: [true]", "must be true or false"),
        ("migrateBack: soon", "must be true or false"),
        ("snapshotCount: many", "must be a number"),
        ("snapshotCount: 1.5", "must be a number"),
        ("quotaBackendBytes: 8GB", "must be from 64Mi to 1Ti"),
        ("quotaBackendBytes: 5", "must be from 64Mi to 1Ti"),
        ("quotaBackendBytes: -1", "must be from 64Mi to 1Ti"),
        ("quotaBackendBytes: 99999999999Ti", "must be from 64Mi to 1Ti"),
        ("quotaBackendBytes: {}", "must be from 64Mi to 1Ti"),
        ("heartbeatInterval: 0", "from 1 to 10000"),
        ("electionTimeout: 60000", "from 5 to 50000"),
        ("electionTimeout: 1s", "must be milliseconds"),
        ("extraArgs: --a=b", "must be a list"),
        ("extraArgs: [{a: b}]", "holds a mapping"),
        ("extraArgs: [1.5]", "holds a number"),
        ("heartbeatInterval: 0100", "milliseconds, not 0100"),
        ("snapshots: {schedule: \"61 * * * *\"}", "61"),
    ] {
        for (text, line) in both_eras(keys) {
            let error = bad(text.as_bytes());
            assert!(error.line == Some(line) && error.what.contains(want), "{keys}: {error:?}");
        }
    }
    for (text, line, want) in [
        ("embeddedEtcd: true", 1, "must be a mapping"),
        ("syncer: []", 1, "must be a mapping"),
        ("controlPlane:\n  backingStore: sqlite\n", 2, "controlPlane.backingStore must be a mapping"),
        ("controlPlane:\n  proxy:\n    port: 70000\n", 3, "from 1 to 65535"),
        ("controlPlane:\n  proxy:\n    extraSANs: a.example.com\n", 3, "must be a list"),
        ("controlPlane:\n  distro:\n    k3s:\n      enabled: true\n      token: 12345\n", 5, "must be text"),
        ("- a\n- b\n", 1, "holds a list"),
        ("just text", 1, "holds a text"),
        ("syncer:\n  replicas: 010\n", 2, "must be a number of replicas, not 010"),
    ] {
        let error = bad(text.as_bytes());
        assert!(error.line == Some(line) && error.what.contains(want), "{text}: {error:?}");
    }
}

/// Two prefixes that differ only at their ends are two places, or each would remove the other's snapshots.
#[test]
fn a_long_place_or_schedule_is_taken_whole() {
    let prefix = format!("{}/host-cluster-b", "a".repeat(285));
    let minutes = (0..60).map(|minute| minute.to_string()).collect::<Vec<_>>().join(",");
    let schedule = format!("{minutes} {} * * *", (0..24).map(|hour| hour.to_string()).collect::<Vec<_>>().join(","));
    for place in [format!("s3://backups/{prefix}"), format!("/backups/{prefix}")] {
        for (text, _) in both_eras(&format!("snapshots: {{schedule: \"{schedule}\", target: \"{place}\"}}")) {
            let snapshots = good(&text).etcd.snapshots;
            assert_eq!(snapshots.target.unwrap().value.to_string(), place);
            assert_eq!(snapshots.schedule.unwrap().value.to_string(), schedule);
        }
    }
    for keys in [
        format!("snapshots: {{target: \"ftp://{prefix}\"}}"),
        format!("snapshots: {{target: \"s3://{prefix}\"}}"),
        format!("snapshots: {{target: \"{prefix}\"}}"),
        format!("snapshots: {{schedule: \"{schedule} 61\"}}"),
        format!("snapshots: {{schedule: \"{minutes},61 {minutes} * * *\"}}"),
    ] {
        both_eras(&keys).iter().for_each(|(text, _)| drop(bad(text.as_bytes())));
    }
}

#[test]
fn a_secret_of_a_wrong_type_is_not_quoted() {
    for (value, type_name) in [
        ("987654321", "a number"),
        ("987654321.5", "a number"),
        ("0987654321", "a number"),
        ("true", "a truth value"),
        ("[987654321]", "a list"),
        ("{a: 987654321}", "a mapping"),
        ("{987654321}", "a mapping"),
    ] {
        for text in [
            format!("vcluster:\n  k3sToken: {value}\n"),
            format!("embeddedEtcd:\n  enabled: true\nk3sToken: {value}\n"),
            format!("embeddedEtcd:\n  enabled: true\nconfig: {value}\n"),
            format!("controlPlane:\n  distro:\n    k3s: {{enabled: true, token: {value}}}\n"),
            format!("controlPlane:\n  distro:\n    k0s: {{enabled: true, config: {value}}}\n"),
            format!("controlPlane:\n  backingStore:\n    database:\n      embedded: {{dataSource: {value}}}\n"),
        ] {
            let error = bad(text.as_bytes());
            assert!(error.what.ends_with(&format!("must be text, not {type_name}")), "{text}: {error:?}");
            assert!(!error.remedy.contains("98765") && error.line.is_some(), "{text}: {error:?}");
        }
    }
    // Arguments may hold one too.
    for text in [
        "vcluster:\n  extraArgs: --token=s3cret\n",
        "vcluster:\n  extraArgs: {--token: s3cret}\n",
        "vcluster:\n  command: k3s server --token=s3cret\n",
        "vcluster: s3cret\n",
        "controlPlane:\n  distro:\n    k3s: s3cret\n",
        "s3cret",
    ] {
        let error = bad(text.as_bytes());
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    for text in [
        "{command: k3s server --token=s3cret}",
        "{command: [k3s], args: --token=s3cret}",
        "{command: [k3s], --token=s3cret}",
        "{command: [k3s], args: [--token, {s3cret: 1}]}",
        "s3cret",
    ] {
        let error = command("VCLUSTER_COMMAND", text).expect_err(text);
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[test]
fn replicas_are_bounded() {
    for (n, fine) in [("0", true), ("1", true), ("9", true), ("10", false), ("-1", false), ("4294967297", false)] {
        for (text, line) in [
            (format!("embeddedEtcd: {{}}\nsyncer:\n  replicas: {n}\n"), 3),
            (format!("embeddedEtcd: {{}}\nreplicas: {n}\n"), 2),
            (format!("controlPlane:\n  statefulSet:\n    highAvailability:\n      replicas: {n}\n"), 4),
        ] {
            if fine {
                good(&text);
            } else {
                let error = bad(text.as_bytes());
                assert!(error.line == Some(line) && error.what.contains("from 0 to 9"), "{error:?}");
            }
        }
    }
    for n in ["'3'", "3.0", "many", "99999999999999999999"] {
        let error = bad(format!("syncer:\n  replicas: {n}\n").as_bytes());
        assert!(error.line == Some(2) && error.what.contains("must be a number of replicas"), "{n}: {error:?}");
    }
    assert_eq!((1..=9).filter(|n| replicas_warning(*n).is_some()).collect::<Vec<_>>(), [2, 4, 6, 8, 9]);
}

#[test]
fn contradictions_name_both_lines() {
    for (text, line, parts) in [
        (
            "embeddedEtcd: {enabled: true}\ncontrolPlane: {}\n",
            2,
            &["embeddedEtcd\" (line 1)", "controlPlane\" (line 2)"][..],
        ),
        ("controlPlane: {}\nsyncer: {}\n", 2, &["syncer\" (line 2)"]),
        (
            "controlPlane:\n  backingStore:\n    database: {external: {enabled: true}}\n    etcd: {embedded: {enabled: true}}\n",
            4,
            &["etcd.embedded (line 4)", "database.external (line 3)"],
        ),
        (
            "controlPlane:\n  backingStore:\n    etcd:\n      embedded: {enabled: true}\n      deploy: {enabled: true}\n",
            5,
            &["etcd.deploy (line 5)"],
        ),
        (
            "controlPlane:\n  backingStore:\n    etcd: {external: {enabled: true, endpoint: '127.0.0.1:2379'}}\n    database: {embedded: {enabled: true}}\n",
            4,
            &["etcd.external (line 3)"],
        ),
        (
            "controlPlane:\n  distro:\n    k3s: {enabled: true}\n    k8s: {enabled: true}\n",
            4,
            &["k3s (line 3)", "k8s (line 4)"],
        ),
    ] {
        let error = bad(text.as_bytes());
        assert_eq!(error.line, Some(line), "{error:?}");
        for part in parts {
            assert!(error.what.contains(part), "{error:?} lacks {part:?}");
        }
    }
}

#[test]
fn flags_that_could_lose_data_are_refused_by_name() {
    for flag in [
        "data-dir=/x",
        "wal-dir=/x",
        "name=a",
        "config-file=/x",
        "initial-cluster=a=b",
        "initial-cluster-state=new",
        "initial-advertise-peer-urls=x",
        "initial-cluster-token=x",
        "force-new-cluster",
        "force-new-cluster-bump-amount=1",
        "unsafe-no-fsync",
        "unsafe-no-fsync=true",
        "listen-client-urls=x",
        "listen-peer-urls=x",
        "listen-metrics-urls=x",
        "listen-client-http-urls=x",
        "advertise-client-urls=x",
        "cert-file=x",
        "key-file=x",
        "trusted-ca-file=x",
        "client-cert-auth=false",
        "peer-cert-file=x",
        "peer-key-file=x",
        "peer-trusted-ca-file=x",
        "peer-auto-tls",
        "auto-tls",
        "discovery=x",
        "discovery-srv=x",
        "strict-reconfig-check=false",
        "logger=zap",
        "log-outputs=x",
        "log-format=console",
        "version",
        "help",
        "h",
        "socket-reuse-port",
    ] {
        for dashes in ["--", "-"] {
            let (text, line) = (format!("embeddedEtcd:\n  extraArgs:\n    - --pre-vote\n    - {dashes}{flag}\n"), 4);
            let error = bad(text.as_bytes());
            let name = flag.split('=').next().unwrap_or_default();
            assert!(error.line == Some(line) && error.what.contains(&format!("--{name} may not")), "{error:?}");
        }
    }
    for (arg, want) in [
        ("pre-vote", "is not a flag"),
        ("'--'", "is not a flag of etcd"),
        ("--A=b", "is not a flag of etcd"),
        ("\"--a\\nb\"", "is not a flag"),
    ] {
        let error = bad(format!("embeddedEtcd: {{extraArgs: [{arg}]}}").as_bytes());
        assert!(error.what.contains(want), "{error:?}");
    }
}

#[test]
fn other_flags_are_handed_on_and_those_with_a_setting_are_taken_there() {
    let values = good(
        "embeddedEtcd:\n  extraArgs:\n    - --max-request-bytes\n    - 3145728\n    - --quota-backend-bytes=8589934592\n    - -heartbeat-interval=200\n    - --election-timeout\n    - \"2000\"\n    - --snapshot-count=0\n    - --pre-vote=true\n    - --tls-min-version=TLS1.3\n",
    );
    let etcd = values.etcd;
    let rest = ["--max-request-bytes", "3145728", "--pre-vote=true", "--tls-min-version=TLS1.3"];
    assert_eq!(etcd.extra_args.map(|s| s.value), Some(rest.map(str::to_owned).to_vec()));
    assert_eq!(etcd.quota_backend_bytes, Some(Spot { value: 8 << 30, line: 5 }));
    assert_eq!(etcd.heartbeat_ms, Some(Spot { value: 200, line: 6 }));
    assert_eq!(etcd.election_ms, Some(Spot { value: 2000, line: 7 }));
    assert_eq!(etcd.snapshot_count, Some(Spot { value: 10_000, line: 9 }));
    for (arg, want) in [
        ("--quota-backend-bytes=much", "whole number"),
        ("--quota-backend-bytes", "whole number"),
        ("--quota-backend-bytes=1", "64Mi"),
        ("--heartbeat-interval=0", "from 1"),
    ] {
        let error = bad(format!("embeddedEtcd:\n  extraArgs:\n    - {arg}\n").as_bytes());
        assert!(error.line == Some(3) && error.what.contains(want), "{error:?}");
    }
    let error = bad(b"embeddedEtcd:\n  snapshotCount: 5\n  extraArgs: [--snapshot-count=6]\n");
    assert!(error.line == Some(3) && error.what.contains("line 2"), "{error:?}");
}

#[test]
fn what_is_no_usable_file_is_refused() {
    for (bytes, line, want) in [
        (&b""[..], None, "is empty"),
        (b" \n\n", None, "is empty"),
        (b"# nothing\n", None, "is empty"),
        (b"~\n", None, "is empty"),
        (b"a: 1\nb: \xff\xfe\n", Some(2), "not UTF-8"),
        (b"embeddedEtcd: {}\nembeddedEtcd: {}\n", Some(2), "written twice"),
        (b"a: {b: 1, b: 2}\n", Some(1), "written twice"),
        (b"embeddedEtcd: {}\n---\nsyncer: {}\n", Some(3), "more than one YAML document"),
        (b"a: [1\n", None, "not valid YAML"),
        (b"a: b: c\n", Some(1), "not valid YAML"),
        (b"\x00\x01\x02", Some(1), ""),
    ] {
        let error = bad(bytes);
        assert!(error.what.contains(want), "{error:?}");
        if line.is_some() {
            assert_eq!(error.line, line, "{error:?}");
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = read_bytes(&dir.path().join("no.yaml")).unwrap_err();
    assert!(missing.what.contains("cannot be read") && missing.remedy.contains("--values"), "{missing:?}");
    assert_eq!(read_bytes(dir.path()).unwrap_err().what, "is a directory");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    assert_eq!(read_bytes(&fifo).unwrap_err().what, "is not a regular file");
    let huge = dir.path().join("huge");
    std::fs::File::create(&huge).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    assert!(read_bytes(&huge).unwrap_err().what.contains("larger than 4 MiB"));
    std::fs::File::create(&huge).unwrap().set_len(MAX_FILE_BYTES).unwrap();
    assert_eq!(read_bytes(&huge).unwrap().len() as u64, MAX_FILE_BYTES);
}

#[test]
fn an_alias_bomb_is_refused_quickly() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..30 {
        text.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    text.push_str("embeddedEtcd: {enabled: true}\n");
    let started = std::time::Instant::now();
    let error = bad(text.as_bytes());
    assert!(error.what.contains("aliases expand"), "{error:?}");
    assert!(started.elapsed().as_secs() < 30, "it took {:?}", started.elapsed());
    // Anchors as people use them are fine.
    good("x: &r {limits: {cpu: 1}}\nsyncer: {resources: *r}\nvcluster: {resources: {<<: *r}}\n");
}

#[test]
fn every_known_key_is_explained_in_the_example() {
    let example = crate::cli::EXAMPLE_VALUES;
    let values = good(example);
    assert_eq!(values.era, Some(Era::V020));
    // What it shows is the defaults, but for etcd being on.
    assert_eq!(values.etcd.enabled.map(|s| s.value), Some(true));
    assert_eq!(values.etcd.snapshot_count.map(|s| s.value), Some(10_000));
    assert_eq!(values.replicas.map(|s| s.value), Some(1));
    // The form of 0.19 stands in a comment; without the comment signs it is a file of its own.
    let old: String = example
        .lines()
        .skip_while(|line| *line != "# pro: true")
        .map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let values = good(&old);
    assert_eq!(values.era, Some(Era::V019));
    assert!(values.etcd.enabled.is_some_and(|s| s.value) && values.replicas.is_some());
    for (text, keys) in [(example, etcd::KEYS_020), (old.as_str(), etcd::KEYS_019)] {
        for key in keys {
            let explains = |line: &str| line.trim_start_matches([' ', '#']).starts_with(&format!("{key}:"));
            assert!(text.lines().any(explains), "{key} is not explained");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(Path::new("v.yaml"), &bytes);
    }

    #[test]
    fn any_yamlish_text_is_read_or_refused(text in "[-a-f0-9:{}\\[\\]&*<>|!%@'\" #,~?\n\t]{0,200}") {
        let _ = parse(Path::new("v.yaml"), text.as_bytes());
        let _ = command("APISERVER_COMMAND", &text);
    }

    /// Real files with pieces cut out, doubled, or overwritten.
    #[test]
    fn damaged_values_are_read_or_refused(
        which in 0..FILES.len(), at in any::<prop::sample::Index>(), len in 0..60_usize,
        insert in "[-a-z0-9:{}\\[\\]&*'\"#,~\n ]{0,20}",
    ) {
        let file = FILES[which];
        let start = at.index(file.len());
        let end = (start + len).min(file.len());
        let mut bytes = file.as_bytes()[..start].to_vec();
        bytes.extend_from_slice(insert.as_bytes());
        bytes.extend_from_slice(&file.as_bytes()[end..]);
        if let Err(error) = parse(Path::new("v.yaml"), &bytes) {
            prop_assert!(!error.what.is_empty() && !error.remedy.is_empty());
            let lines = bytes.iter().filter(|b| **b == b'\n').count() as u64 + 1;
            prop_assert!(error.line.is_none_or(|l| (1..=lines).contains(&l)), "{:?} of {} lines", error, lines);
        }
    }
}

const FILES: &[&str] = &[
    include_str!("../../../tests/fixtures/values/k3s-0.19.yaml"),
    include_str!("../../../tests/fixtures/values/k8s-0.19.yaml"),
    include_str!("../../../tests/fixtures/values/k0s-0.19.yaml"),
    include_str!("../../../tests/fixtures/values/k8s-0.20.yaml"),
    include_str!("../../../config/values.yaml"),
];
