use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::datadir::{DatadirWriter, KeyRecord, LeaseRecord, MemberIdentity};
use crate::disk::RealDisk;
use crate::migrate::Origin;
use crate::migrate::backend::BackendStore;
use crate::migrate::kine::KineStore;
use crate::migrate::origin::Opening;
use crate::migrate::pipeline::copy;
use crate::migrate::progress::Meter;
use crate::migrate::source::Source;
use crate::migrate::to_datadir::DatadirSink;
use proptest::prelude::*;

/// Another test's child that is just being forked has a file open for a moment.
const SOON: Duration = Duration::from_secs(10);

/// Key to value, create and mod revision, time to live.
#[derive(Debug, Default, PartialEq)]
struct Live(BTreeMap<Vec<u8>, (Vec<u8>, i64, i64, i64)>);

impl Sink for Live {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let rest = (key.value.to_vec(), key.create_revision.0, key.mod_revision.0, key.lease.ttl());
        assert_eq!(self.0.insert(key.key.to_vec(), rest), None, "twice");
        Ok(())
    }
}

fn live(source: &mut dyn Source) -> (Live, Revision) {
    let mut live = Live::default();
    copy(source, &mut live, &Meter::default()).unwrap();
    (live, source.extent().revision)
}

fn read(db: &Path) -> (Live, Revision) {
    live(&mut KineStore::open(db, SOON).unwrap())
}

fn identity() -> MemberIdentity {
    let urls = vec!["http://127.0.0.1:1".to_owned()];
    MemberIdentity { name: "a".into(), peer_urls: urls.clone(), client_urls: urls, token: "t".into() }
}

fn write(source: &mut dyn Source, db: &Path) -> WrittenSqlite {
    let mut sink = SqliteSink::create(db, source.extent().revision).unwrap();
    copy(source, &mut sink, &Meter::default()).unwrap();
    let written = sink.finish().unwrap();
    assert!(!with_wal(db).exists(), "a -wal is left");
    written
}

fn with_wal(db: &Path) -> PathBuf {
    crate::migrate::commit::with_suffix(db, "-wal")
}

fn open(dir: &Path) -> Box<dyn Source> {
    let none = Path::new("/nonexistent");
    // Another test that forks may hold the lock for a moment.
    let (copy, meter) = (crate::scratch::Aside::alone(none.to_owned(), 0), Meter::default());
    let with = Opening { disk: &RealDisk, etcd: none, copy: &copy, lock: None, meter: &meter };
    Origin::datadir(dir.to_owned()).open(&with).unwrap()
}

/// The data dir of a store with these keys.
fn datadir(dir: &Path, keys: &[KeyRecord<'_>], leases: &[LeaseRecord], revision: i64) -> Box<dyn Source> {
    let mut writer = DatadirWriter::create(&RealDisk, dir).unwrap();
    keys.iter().for_each(|key| writer.put(key).unwrap());
    writer.finish(Revision(revision), leases, &identity()).unwrap();
    open(dir)
}

fn record<'a>(key: &'a [u8], value: &'a [u8], create: i64, modified: i64, sub: i64) -> KeyRecord<'a> {
    let (create_revision, mod_revision) = (Revision(create), Revision(modified));
    KeyRecord { key, value, create_revision, mod_revision, sub, version: 3, lease: 0 }
}

/// Rows as kine would query them: id, name, created, deleted, create_revision, prev_revision, lease, types.
fn rows(db: &Path) -> Vec<String> {
    let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sql = "SELECT id || ' ' || hex(name) || ' ' || typeof(name) || ' ' || created || ' ' || deleted || ' ' || \
               create_revision || ' ' || prev_revision || ' ' || lease || ' ' || typeof(value) || ' ' || typeof(old_value) \
               FROM kine ORDER BY id";
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn rows_are_what_kine_goes_on_from() {
    let home = tempfile::tempdir().unwrap();
    let (dir, db) = (home.path().join("etcd"), home.path().join("state.db"));
    let keys = [
        record(b"/a", b"v", 5, 5, 0),
        KeyRecord { lease: 77, ..record(b"/b\xff\0", b"", 5, 8, 0) },
        record(b"/c", b"w", 3, 8, 1),
        record(b"compact_rev_key", b"6", 2, 9, 0),
    ];
    let mut source = datadir(&dir, &keys, &[LeaseRecord { id: 77, ttl: 3660 }], 12);
    let written = write(&mut *source, &db);
    assert_eq!((written.keys, written.ttls, written.renumbered.revision.0), (3, 1, 12));
    assert_eq!((written.renumbered.moved.count, written.renumbered.dropped.count), (1, 1));
    let hex = |name: &str| name.bytes().map(|b| format!("{b:02X}")).collect::<String>();
    assert_eq!(
        rows(&db),
        [
            format!("1 {} text 1 0 0 12 0 blob null", hex("compact_rev_key")),
            "5 2F61 text 1 0 0 0 0 blob null".to_owned(),
            "8 2F62FF00 text 0 0 5 0 3660 null null".to_owned(),
            "9 2F63 text 0 0 3 0 0 blob null".to_owned(),
            format!("12 {} text 0 1 0 0 0 null null", hex("gap-12")),
        ]
    );
    let connection = Connection::open(&db).unwrap();
    let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(one("SELECT seq || '' FROM sqlite_sequence WHERE name = 'kine'"), "12");
    assert_eq!(one("PRAGMA journal_mode"), "wal");
    assert_eq!(one("PRAGMA integrity_check"), "ok");
}

#[test]
fn kines_own_row_finds_a_number_where_all_are_taken() {
    for (revision, want) in [(3, (4, 4)), (4, (4, 4)), (5, (5, 4))] {
        let home = tempfile::tempdir().unwrap();
        let (dir, db) = (home.path().join("etcd"), home.path().join("state.db"));
        let keys = [record(b"/a", b"", 1, 1, 0), record(b"/b", b"", 2, 2, 0), record(b"/c", b"", 3, 3, 0)];
        let written = write(&mut *datadir(&dir, &keys, &[], revision), &db);
        assert_eq!((written.renumbered.revision.0, rows(&db).len() as i64 - i64::from(revision == 5)), want);
        assert_eq!(read(&db).1.0, want.0);
    }
    // No key at all.
    let home = tempfile::tempdir().unwrap();
    let (dir, db) = (home.path().join("etcd"), home.path().join("state.db"));
    write(&mut *datadir(&dir, &[], &[], 700), &db);
    assert_eq!((read(&db).0.0.len(), read(&db).1.0), (0, 700));
}

/// Or nothing would be above what is compacted when kine starts, and it would not compact.
#[test]
fn kines_own_row_comes_last_where_its_health_key_is() {
    let cases: [(&[u8], _, _); 2] =
        [(b"/registry/health", 10, vec![5, 9, 10]), (b"/registry/healthz", 9, vec![1, 5, 9])];
    for (key, revision, want) in cases {
        let home = tempfile::tempdir().unwrap();
        let (dir, db) = (home.path().join("etcd"), home.path().join("state.db"));
        let written = write(&mut *datadir(&dir, &[record(key, b"", 5, 5, 0)], &[], 9), &db);
        assert_eq!(written.renumbered.revision.0, revision, "{}", key.escape_ascii());
        let ids = |row: &String| row.split(' ').next().unwrap().parse::<i64>().unwrap();
        assert_eq!(rows(&db).iter().map(ids).collect::<Vec<_>>(), want);
        let connection = Connection::open(&db).unwrap();
        let record = "SELECT prev_revision FROM kine WHERE name = 'compact_rev_key'";
        assert_eq!(connection.query_row(record, [], |row| row.get::<_, i64>(0)).unwrap(), 9);
        assert_eq!(read(&db).1.0, revision);
    }
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "/registry/[a-d]/[a-z]{1,8}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 1..6),
        "[0-9e.+]{1,5}".prop_map(String::into_bytes),
        Just(b"gap-9".to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 64, ..ProptestConfig::default() })]
    #[test]
    fn there_and_back_again_is_the_identity(
        keys in prop::collection::btree_map(names(), (prop::collection::vec(any::<u8>(), 0..40), 1..5_i64, 0..9_i64, prop::sample::select(vec![0, 0, 15, 3660])), 0..40),
        shuffle in any::<u64>(),
        more in 0..3_i64,
    ) {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        // A store of kine's: each key at a revision of its own.
        let mut keys: Vec<_> = keys.into_iter().collect();
        let count = keys.len().max(1) as u64;
        keys.rotate_left((shuffle % count) as usize);
        let mut revision = 1;
        let mut sink = SqliteSink::create(&at("first.db"), Revision(1 + 5 * 40 + more)).unwrap();
        for (name, (value, step, age, ttl)) in &keys {
            revision += step;
            let create_revision = Revision((revision - age).max(1));
            let lease = if *ttl > 0 { KeyLease::Ttl(*ttl) } else { KeyLease::None };
            let mod_revision = Revision(revision);
            sink.put(&LiveKey { key: name, value, create_revision, mod_revision, sub: 0, version: 1, lease }).unwrap();
        }
        sink.finish().unwrap();
        let first = read(&at("first.db"));
        prop_assert_eq!(first.0.0.len(), keys.len());
        // There.
        let mut store = KineStore::open(&at("first.db"), SOON).unwrap();
        let writer = DatadirWriter::create(&RealDisk, &at("etcd")).unwrap();
        let mut sink = DatadirSink::new(writer, Vec::new());
        copy(&mut store, &mut sink, &Meter::default()).unwrap();
        sink.finish(first.1, &identity()).unwrap();
        drop(store);
        let mut etcd = open(&at("etcd"));
        prop_assert_eq!(&live(&mut *etcd), &first);
        // And back.
        let written = write(&mut *etcd, &at("second.db"));
        prop_assert_eq!(written.renumbered.moved.count, 0);
        prop_assert_eq!(&read(&at("second.db")), &first);
        prop_assert_eq!(rows(&at("second.db")), rows(&at("first.db")));
    }
}

#[test]
fn the_type_of_a_source_is_open_to_other_threads() {
    fn sent<T: Send>() {}
    sent::<BackendStore>();
}

#[test]
fn a_path_that_sqlite_would_not_open_is_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    for (bytes, fine) in [(PATH_MAX, true), (PATH_MAX + 1, false)] {
        let mut path = dir.path().to_owned();
        loop {
            match bytes - path.as_os_str().len() - 1 {
                left @ 0..=200 => {
                    path.push("x".repeat(left));
                    break;
                }
                _ => path.push("d".repeat(100)),
            }
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!(path.as_os_str().len(), bytes);
        assert_eq!(Connection::open(&path).is_ok(), fine, "SQLite itself has another limit than {PATH_MAX}");
        match check_path(&path) {
            Ok(()) => assert!(fine, "{bytes}"),
            Err(error) => {
                assert!(!fine && crate::exit::exit_of(&error) == Exit::Usage, "{bytes}: {error}");
                assert!(error.to_string().contains("505 bytes") && error.to_string().contains("504"), "{error}");
            }
        }
    }
}
