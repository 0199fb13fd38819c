//! The command lines, whole, one for each line of etcd.

use std::time::Duration;

use super::*;
use crate::pki::PkiPaths;

fn version(minor: u32) -> EtcdVersion {
    EtcdVersion { major: 3, minor, patch: 20 }
}

fn launch() -> EtcdLaunch {
    let peer_url = "https://my-0.my-headless.ns:2380".to_owned();
    EtcdLaunch {
        name: "my-0".into(),
        data_dir: "/data/etcd".into(),
        listen: Ipv4Addr::UNSPECIFIED.into(),
        loopback_only: false,
        client_port: 2379,
        peer_port: 2380,
        metrics: (Ipv4Addr::LOCALHOST, 2381).into(),
        bootstrap: Bootstrap::New {
            members: vec![InitialMember { name: "my-0".into(), peer_url: peer_url.clone() }],
            token: "t0k3n".into(),
        },
        peer_url,
        client_url: "https://my-0.my-headless.ns:2379".into(),
        tls: Some(PkiPaths::new("/data/pki".as_ref()).etcd_tls()),
        skip_peer_san: true,
        timing: EtcdTiming { heartbeat: Duration::from_millis(100), election: Duration::from_secs(1) },
        snapshot_count: 10_000,
        quota: None,
        store_size: 0,
        max_request_bytes: None,
        unsynced: false,
        extra_args: vec![],
    }
}

fn args(launch: &EtcdLaunch, minor: u32) -> Vec<String> {
    let args = etcd_args(launch, version(minor)).expect("a valid launch");
    args.into_iter().map(|a| a.into_string().expect("UTF-8")).collect()
}

fn value(args: &[String], flag: &str) -> Option<String> {
    let found: Vec<_> = args.iter().filter_map(|a| a.strip_prefix(&format!("--{flag}="))).collect();
    assert!(found.len() <= 1, "--{flag} stands there {} times", found.len());
    found.first().map(|v| (*v).to_owned())
}

const COMMON: &str = "\
--name=my-0
--data-dir=/data/etcd
--listen-client-urls=https://0.0.0.0:2379
--advertise-client-urls=https://my-0.my-headless.ns:2379
--listen-peer-urls=https://0.0.0.0:2380
--initial-advertise-peer-urls=https://my-0.my-headless.ns:2380
--listen-metrics-urls=http://127.0.0.1:2381
--initial-cluster=my-0=https://my-0.my-headless.ns:2380
--initial-cluster-state=new
--initial-cluster-token=t0k3n
--cert-file=/data/pki/etcd/server.crt
--key-file=/data/pki/etcd/server.key
--trusted-ca-file=/data/pki/etcd/ca.crt
--peer-cert-file=/data/pki/etcd/peer.crt
--peer-key-file=/data/pki/etcd/peer.key
--peer-trusted-ca-file=/data/pki/etcd/ca.crt
--client-cert-auth=true
--peer-client-cert-auth=true
SAN
--heartbeat-interval=100
--election-timeout=1000
--pre-vote=true
--strict-reconfig-check=true
--snapshot-count=10000
--quota-backend-bytes=8589934592
CHECKS
--logger=zap
--log-level=info
--log-outputs=stderr";

#[test]
fn golden_for_each_line() {
    let old = [
        "--experimental-peer-skip-client-san-verification=true",
        "--experimental-initial-corrupt-check=true\n--experimental-compact-hash-check-enabled=true\n\
         --experimental-watch-progress-notify-interval=5s",
    ];
    let new = [
        "--peer-skip-client-san-verification=true",
        "--feature-gates=CompactHashCheck=true,InitialCorruptCheck=true\n--watch-progress-notify-interval=5s",
    ];
    for (minor, [san, checks]) in [(5, old), (6, new), (7, new)] {
        let want = COMMON.replace("SAN", san).replace("CHECKS", checks);
        assert_eq!(args(&launch(), minor).join("\n"), want, "3.{minor}");
    }
}

#[test]
fn loopback_only_listens_nowhere_else_and_advertises_the_same() {
    let args = args(&EtcdLaunch { loopback_only: true, ..launch() }, 6);
    assert_eq!(value(&args, "listen-client-urls").as_deref(), Some("https://127.0.0.1:2379"));
    assert_eq!(value(&args, "listen-peer-urls").as_deref(), Some("https://127.0.0.1:2380"));
    assert_eq!(value(&args, "advertise-client-urls").as_deref(), Some("https://my-0.my-headless.ns:2379"));
    assert!(!args.iter().any(|a| a.contains("0.0.0.0")), "{args:?}");
    assert!(!args.iter().any(|a| a.contains("CorruptCheck")), "there is no peer to compare with: {args:?}");
}

#[test]
fn a_single_address_is_joined_by_loopback_for_clients() {
    let listen = "10.0.0.7".parse().unwrap();
    let args = args(&EtcdLaunch { listen, ..launch() }, 6);
    assert_eq!(value(&args, "listen-client-urls").as_deref(), Some("https://10.0.0.7:2379,https://127.0.0.1:2379"));
    assert_eq!(value(&args, "listen-peer-urls").as_deref(), Some("https://10.0.0.7:2380"));
    let other_loopback = self::args(&EtcdLaunch { listen: "127.0.0.2".parse().unwrap(), ..launch() }, 6);
    let clients = value(&other_loopback, "listen-client-urls");
    assert_eq!(clients.as_deref(), Some("https://127.0.0.2:2379,https://127.0.0.1:2379"));
}

#[test]
fn a_restart_can_never_form_a_cluster() {
    for minor in [5, 6, 7] {
        let args = args(&EtcdLaunch { bootstrap: Bootstrap::Restart, ..launch() }, minor);
        assert_eq!(value(&args, "initial-cluster-state").as_deref(), Some("existing"));
        assert_eq!(value(&args, "initial-cluster-token"), None);
        assert_eq!(value(&args, "force-new-cluster"), None);
    }
}

#[test]
fn the_others_are_thrown_out_on_loopback_alone() {
    let force = EtcdLaunch { bootstrap: Bootstrap::ForceNewCluster, loopback_only: true, ..launch() };
    for minor in [5, 6, 7] {
        let args = args(&force, minor);
        assert_eq!(value(&args, "force-new-cluster").as_deref(), Some("true"));
        assert_eq!(value(&args, "initial-cluster-state").as_deref(), Some("existing"));
        assert_eq!(value(&args, "listen-peer-urls").as_deref(), Some("https://127.0.0.1:2380"));
    }
    assert!(etcd_args(&EtcdLaunch { loopback_only: false, ..force }, version(6)).is_err());
}

#[test]
fn only_on_loopback_nothing_is_made_durable() {
    let unsynced = EtcdLaunch { unsynced: true, loopback_only: true, ..launch() };
    for minor in [5, 6, 7] {
        assert_eq!(value(&args(&unsynced, minor), "unsafe-no-fsync").as_deref(), Some("true"));
        assert_eq!(value(&args(&launch(), minor), "unsafe-no-fsync"), None);
    }
    assert!(etcd_args(&EtcdLaunch { loopback_only: false, ..unsynced }, version(6)).is_err());
}

#[test]
fn the_quota_is_never_below_the_store() {
    for (asked, store, want) in [
        (None, 0, DEFAULT_QUOTA),
        (Some(0), 0, DEFAULT_QUOTA),
        (Some(GIB), 0, GIB),
        (Some(GIB), 2 * GIB, 2 * GIB + GIB / 4 + (64 << 20)),
        (None, 16 * GIB, 18 * GIB + (64 << 20)),
        (None, u64::MAX, i64::MAX as u64),
    ] {
        assert_eq!(quota(asked, store), want, "{asked:?} {store}");
    }
    let small = EtcdLaunch { store_size: GIB, extra_args: vec!["--quota-backend-bytes=1000".into()], ..launch() };
    assert_eq!(value(&args(&small, 6), "quota-backend-bytes"), Some(quota(Some(1000), GIB).to_string()));
}

#[test]
fn migrated_values_only_raise_the_request_limit() {
    for (need, extra, want) in [
        (None, None, None),
        (Some(1000), None, None),
        (Some(3_000_000), None, Some("3000000")),
        (Some(3_000_000), Some("--max-request-bytes=2000000"), Some("3000000")),
        (Some(3_000_000), Some("--max-request-bytes=9000000"), Some("9000000")),
        (None, Some("--max-request-bytes=9000000"), Some("9000000")),
    ] {
        let extra_args = extra.map(str::to_owned).into_iter().collect();
        let args = args(&EtcdLaunch { max_request_bytes: need, extra_args, ..launch() }, 6);
        assert_eq!(value(&args, "max-request-bytes").as_deref(), want, "{need:?} {extra:?}");
    }
}

#[test]
fn the_users_flags_replace_ours_once() {
    let extra = ["--snapshot-count=5000", "-log-level", "debug", "--max-txn-ops=256"].map(str::to_owned).to_vec();
    let given = args(&EtcdLaunch { extra_args: extra, ..launch() }, 6);
    assert_eq!(value(&given, "snapshot-count").as_deref(), Some("5000"));
    assert_eq!(value(&given, "log-level").as_deref(), Some("debug"));
    assert_eq!(value(&given, "max-txn-ops").as_deref(), Some("256"));

    let old = ["--experimental-initial-corrupt-check=false", "--experimental-watch-progress-notify-interval=9s"];
    let given = args(&EtcdLaunch { extra_args: old.map(str::to_owned).to_vec(), ..launch() }, 6);
    assert_eq!(value(&given, "feature-gates").as_deref(), Some("CompactHashCheck=true"));
    assert_eq!(value(&given, "watch-progress-notify-interval"), None);

    let gates = EtcdLaunch { extra_args: vec!["--feature-gates=InitialCorruptCheck=false".into()], ..launch() };
    assert_eq!(
        value(&args(&gates, 7), "feature-gates").as_deref(),
        Some("CompactHashCheck=true,InitialCorruptCheck=false")
    );
}

#[test]
fn flags_that_would_lose_data_or_open_a_port_are_refused() {
    for (flag, _) in PROTECTED {
        for form in [format!("--{flag}=x"), format!("-{flag}=x"), format!("--{flag}")] {
            let launch = EtcdLaunch { extra_args: vec![form.clone()], ..launch() };
            let got = etcd_args(&launch, version(6));
            assert!(matches!(got, Err(ArgsError::Protected { .. })), "{form}: {got:?}");
        }
    }
    let cases = [("--discovery-srv=x", 6), ("nonsense", 6), ("", 6), ("--", 6), ("--experimental-memory-mlock", 7)];
    for (arg, minor) in cases {
        let launch = EtcdLaunch { extra_args: vec![arg.into()], ..launch() };
        assert!(etcd_args(&launch, version(minor)).is_err(), "{arg}");
    }
}

#[test]
fn what_etcd_or_safety_would_refuse_is_refused_here() {
    let timing = |h, e| EtcdTiming { heartbeat: Duration::from_millis(h), election: Duration::from_millis(e) };
    let other = Bootstrap::New { members: vec![], token: "t".into() };
    for (what, launch) in [
        ("no heartbeat", EtcdLaunch { timing: timing(0, 1000), ..launch() }),
        ("short election", EtcdLaunch { timing: timing(300, 1000), ..launch() }),
        ("long election", EtcdLaunch { timing: timing(100, 60_000), ..launch() }),
        ("open metrics", EtcdLaunch { metrics: ([0, 0, 0, 0], 2381).into(), ..launch() }),
        ("open without TLS", EtcdLaunch { tls: None, ..launch() }),
        ("two entries in a name", EtcdLaunch { name: "a,b".into(), bootstrap: Bootstrap::Restart, ..launch() }),
        ("an equals sign in a name", EtcdLaunch { name: "a=b".into(), bootstrap: Bootstrap::Restart, ..launch() }),
        ("not in the initial cluster", EtcdLaunch { bootstrap: other, ..launch() }),
    ] {
        assert!(etcd_args(&launch, version(6)).is_err(), "{what}");
    }
    let plain = EtcdLaunch { tls: None, loopback_only: true, ..launch() };
    assert_eq!(value(&args(&plain, 6), "listen-client-urls").as_deref(), Some("http://127.0.0.1:2379"));
}
