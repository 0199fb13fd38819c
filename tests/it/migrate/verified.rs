//! The check before the commit: what etcd serves of the target is compared with what was read of the source.

use syncer::datadir::LeaseRecord;
use syncer::etcd::EtcdVersion;
use syncer::ids::Revision;
use syncer::migrate::loopback::{LoopbackEtcd, NO_SNAPSHOT};
use syncer::migrate::progress::Meter;
use syncer::migrate::to_datadir::WrittenStore;
use syncer::migrate::verify::{Expected, verify};

use super::backend::content;
use super::*;
use crate::datadir::store::{Key, Store, plain};
use crate::support::etcd::{etcd_that, serves_instead};

/// Four keys at revision 9, one of them with a lease.
fn store() -> Store {
    let key = |key: &[u8], modified| Key { create: 2, modified, version: 3, ..plain(key, b"value") };
    let keys = vec![key(b"/a", 3), Key { lease: 77, ..key(b"/b", 4) }, key(b"/c", 6), key(b"/d", 8)];
    Store { name: "four keys", keys, leases: vec![LeaseRecord { id: 77, ttl: 3600 }], revision: 9 }
}

type Change = fn(&mut Store);

fn changed(change: Change) -> Store {
    let mut store = store();
    change(&mut store);
    store
}

/// What etcd serves is another store, though all that was written is right: a fault, nothing is left of the target, and the source is as
/// it was.
#[test]
fn what_an_etcd_does_not_confirm_is_not_put_in_place() {
    let hash = "etcd's hash at revision 9 is ";
    let cases: [(&str, &str, Change, Option<&str>); 11] = [
        ("nothing", "full", |_| (), None),
        ("a value", "hash", |s| s.keys[1].value = b"valuf".to_vec(), Some(hash)),
        ("a name", "hash", |s| s.keys[1].key = b"/B".to_vec(), Some(hash)),
        ("when it was made", "hash", |s| s.keys[1].create = 1, Some(hash)),
        ("when it was changed", "hash", |s| s.keys[1].modified = 5, Some(hash)),
        ("how often it was written", "hash", |s| s.keys[1].version = 2, Some(hash)),
        ("its lease", "hash", |s| s.keys[1].lease = 0, Some(hash)),
        ("a key less", "hash", |s| drop(s.keys.remove(1)), Some("etcd has 3 keys at revision 9, the source 4")),
        ("a lower revision", "hash", |s| s.revision = 8, Some("count etcd's keys at revision 9")),
        ("a higher revision", "hash", |s| s.revision = 10, Some("count etcd's keys at revision 9")),
        (
            "a time to live",
            "full",
            |s| s.leases[0].ttl = 7200,
            Some("etcd grants lease 4d 7200 seconds, the source 3600"),
        ),
    ];
    for (what, how, change, why) in cases {
        let (home, others) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let (from, to) = (home.path().join("etcd"), home.path().join("new"));
        let another = others.path().join("another");
        store().write(&EtcdSpec::new("3.6", "a", &from));
        changed(change).write(&EtcdSpec::new("3.6", "a", &another));
        let before = content(home.path());
        let mut command = Command::new(syncer());
        command.args(["migrate", "--verify", how, "--from"]).arg(format!("datadir:{}", from.display()));
        command.arg("--to").arg(format!("datadir:{}", to.display()));
        command.arg("--etcd").arg(etcd_that(others.path(), &serves_instead(&another)));
        let out = output(&mut command);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let Some(why) = why else {
            assert!(out.status.success() && to.exists(), "an equal store is not confirmed: {said}");
            continue;
        };
        assert_eq!(out.status.code(), Some(1), "{what}: {said}");
        assert!(said.contains(why), "{what}: not {why:?}: {said}");
        assert_eq!(names(home.path()), ["etcd"], "{what}: something is left of what was not confirmed");
        assert!(content(home.path()) == before, "{what}: the source has changed");
    }
}

/// What was written and what etcd serves are the same, and the source is another: what the first reading, or the conversion, may get
/// wrong. Its hash tells nothing of that.
#[test]
fn a_full_comparison_is_with_the_source_itself() {
    let home = tempfile::tempdir().expect("a folder");
    let (target, program) = (home.path().join("etcd"), part("etcd"));
    let datadir = store().write(&EtcdSpec::new("3.6", "a", &target));
    // So large that each key is a page of its own.
    let written = WrittenStore { leases: store().leases, largest: 8 << 20, datadir };
    let version = EtcdVersion::of(&program).expect("etcd's version");
    let cases: [(&str, Change, bool); 6] = [
        ("nothing", |_| (), true),
        ("a value", |s| s.keys[3].value = b"valuf".to_vec(), false),
        ("a name", |s| s.keys[0].key = b"/A".to_vec(), false),
        ("a revision", |s| s.keys[1].modified = 5, false),
        ("a lease", |s| s.keys[1].lease = 0, false),
        ("a key less", |s| drop(s.keys.remove(2)), false),
    ];
    for (n, (what, change, same)) in cases.into_iter().enumerate() {
        let from = home.path().join(format!("from-{n}"));
        changed(change).write(&EtcdSpec::new("3.6", "a", &from));
        let none = Path::new("/nonexistent");
        let mut source = open(&Origin::datadir(from), none, none).expect("open the source");
        let etcd = LoopbackEtcd {
            program: &program,
            version,
            data_dir: &target,
            scratch: &home.path().join("scratch"),
            backend_bytes: written.datadir.backend_bytes,
            member: &identity(),
            lock: None,
            force_new_cluster: false,
            snapshot_count: NO_SNAPSHOT,
            unsynced: true,
        };
        let expected = Expected { revision: Revision(9), written: &written };
        let asked = |full| verify(&RealDisk, &etcd, &expected, full, &Meter::default()).map_err(|e| format!("{e:#}"));
        if same {
            assert_eq!(asked(None), Ok(()));
            assert_eq!(asked(Some(&mut *source)), Ok(()));
            continue;
        }
        let said = asked(Some(&mut *source)).expect_err(what);
        assert!(said.contains("keys read back from etcd differ from the"), "{what}: {said}");
    }
}
