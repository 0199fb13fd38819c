//! The reader on whole stores: what it sends, what it refuses, and that the files stay as they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::Connection;

use super::*;
use crate::migrate::convert::LiveKey;
use crate::migrate::pipeline::copy;
use crate::migrate::progress::Meter;
use crate::migrate::sink::Sink;

/// For what must succeed: a child that another test has just forked has our files open until it is another program.
const SOON: Duration = Duration::from_secs(10);

const TABLE: &str = "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name INTEGER, created INTEGER,
    deleted INTEGER, create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
    CREATE INDEX kine_name_index ON kine (name);
    CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision);
    INSERT INTO kine VALUES (1, 'compact_rev_key', 1, 0, 0, 0, 0, x'', NULL);";

struct Store {
    _dir: tempfile::TempDir,
    db: PathBuf,
    /// Open, so that the `-wal` stays hot; reading goes by a copy.
    connection: Connection,
}

fn store(sql: &str) -> Store {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("live.db");
    let connection = Connection::open(&db).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;").unwrap();
    connection.execute_batch(&format!("BEGIN; {TABLE} {sql}; COMMIT;")).unwrap();
    Store { db: dir.path().join("state.db"), _dir: dir, connection }
}

impl Store {
    /// A copy as a killed kine leaves it: with its hot `-wal`.
    fn hot(&self) -> StoreFiles {
        let live = StoreFiles::of(&self.db.with_file_name("live.db"));
        let copy = StoreFiles::of(&self.db);
        for (from, to) in [(live.db, &copy.db), (live.wal, &copy.wal), (live.shm, &copy.shm)] {
            std::fs::copy(from, to).unwrap();
        }
        copy
    }

    /// A copy without a `-wal`.
    fn cold(&self) -> StoreFiles {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let copy = StoreFiles::of(&self.db);
        std::fs::copy(self.db.with_file_name("live.db"), &copy.db).unwrap();
        copy
    }
}

#[derive(Default)]
struct Collect(Vec<(String, i64, i64, i64, usize)>);

impl Sink for Collect {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let name = String::from_utf8_lossy(key.key).into_owned();
        self.0.push((name, key.mod_revision.0, key.create_revision.0, key.lease.ttl(), key.value.len()));
        Ok(())
    }
}

fn read(files: &StoreFiles) -> anyhow::Result<(Collect, Warnings)> {
    let mut source = KineStore::open(&files.db, SOON)?;
    let mut sink = Collect::default();
    let copied = copy(&mut source, &mut sink, &Meter::default())?;
    Ok((sink, copied.warnings))
}

/// Every file beside the store, with its content.
fn files_of(files: &StoreFiles) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = files.db.parent().unwrap();
    let own = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let own = own.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("state.db"));
    own.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

fn refused(files: &StoreFiles) -> String {
    let before = files_of(files);
    let error = read(files).err().expect("it was read");
    assert_eq!(before, files_of(files), "a refusal changed the store");
    format!("{:#}", name_source(error, &files.db)).replace(&files.db.display().to_string(), "DB")
}

const ROWS: &str = "INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value) VALUES
    (2, '/registry/a', 1, 0, 0, 0, 0, x'61'), (3, '/registry/b', 1, 0, 0, 0, 3660, NULL),
    (5, '/registry/a', 0, 0, 2, 2, 0, x'6161'), (6, '/registry/c', 1, 0, 0, 0, 0, x'01'),
    (7, '/registry/c', 0, 1, 6, 6, 15, x'01'), (8, 'gap-8', 0, 1, 0, 0, 0, NULL),
    (9, 'gap-x', 1, 0, 0, 0, 0, x'00'), (10, '/registry/D', NULL, 0, NULL, 0, NULL, 'text'),
    (11, '/registry/null', 1, NULL, 0, 0, 0, x'')";

fn expected() -> Vec<(String, i64, i64, i64, usize)> {
    [("/registry/b", 3, 3, 3660, 0), ("/registry/a", 5, 2, 0, 2), ("gap-x", 9, 9, 0, 1), ("/registry/D", 10, 1, 0, 4)]
        .map(|(n, m, c, t, v)| (n.to_owned(), m, c, t, v))
        .to_vec()
}

#[test]
fn live_rows_come_in_order_with_a_hot_wal_and_without_one_and_nothing_changes() {
    let store = store(ROWS);
    for files in [store.hot(), store.cold()] {
        let before = files_of(&files);
        let (keys, warnings) = read(&files).unwrap();
        assert_eq!(keys.0, expected());
        assert_eq!(warnings.create_revisions.count, 1);
        assert_eq!(before, files_of(&files), "reading changed the store");
    }
    // With a -wal alone, and no -shm: as after copying both.
    let hot = {
        let store = self::store(ROWS);
        let files = store.hot();
        std::fs::remove_file(&files.shm).unwrap();
        let before = files_of(&files);
        assert_eq!(read(&files).unwrap().0.0, expected());
        assert_eq!(before, files_of(&files));
        before.len()
    };
    assert_eq!(hot, 2);
}

#[test]
fn a_sparse_store_is_searched_and_a_dense_one_scanned_with_equal_result() {
    let rows = |step: i64| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000)
             INSERT INTO kine (id, name, created, deleted, create_revision, prev_revision, lease, value)
             SELECT 10 + i * {step}, printf('/k/%06d', (i * 7919) % 3001), 1, 0, 0, 0, 0, zeroblob(i % 50) FROM n"
        )
    };
    for step in [1, 40, 1_000_003] {
        let store = store(&rows(step));
        let files = store.cold();
        let (keys, _) = read(&files).unwrap();
        let want: Vec<_> = (1..=3000_i64)
            .map(|i| (format!("/k/{:06}", (i * 7919) % 3001), 10 + i * step, 10 + i * step, 0, (i % 50) as usize))
            .collect();
        assert!(keys.0 == want, "{step}");
        let source = KineStore::open(&files.db, SOON).unwrap();
        let bytes: usize = want.iter().map(|k| k.0.len() + k.4).sum();
        assert_eq!(source.live_bytes().unwrap(), bytes as u64);
    }
}

#[test]
fn keys_are_raw_bytes() {
    let store = store(
        "INSERT INTO kine (id, name, created, deleted, value) VALUES
         (2, CAST(x'2f61ff00fe' AS TEXT), 1, 0, x'00'), (3, '007', 1, 0, x'01'), (4, '1.50', 1, 0, x'02')",
    );
    let mut source = KineStore::open(&store.cold().db, SOON).unwrap();
    struct Raw(Vec<Vec<u8>>);
    impl Sink for Raw {
        fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
            self.0.push(key.key.to_vec());
            Ok(())
        }
    }
    let mut raw = Raw(Vec::new());
    let copied = copy(&mut source, &mut raw, &Meter::default()).unwrap();
    assert_eq!(raw.0, [&b"/a\xff\0\xfe"[..], b"7", b"1.5"]);
    assert_eq!(copied.warnings.numeric_names.count, 2);
}

#[test]
fn files_that_are_no_store_of_kine_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let files = StoreFiles::of(&dir.path().join("state.db"));
    assert!(refused(&files).starts_with("DB is not imported: there is no such file"));
    std::fs::write(&files.db, b"").unwrap();
    assert!(refused(&files).starts_with("DB is not imported: the file is empty"));
    std::fs::write(&files.db, [7; 8192]).unwrap();
    assert!(refused(&files).starts_with("DB is not imported: it is not a SQLite database, or it is encrypted"));
    for (sql, want) in [
        ("CREATE TABLE other (x)", "it has no table kine"),
        ("CREATE TABLE key_value (id, name, value)", "it was written before kine existed"),
        ("CREATE VIEW kine AS SELECT 1 AS id", "its table kine is not laid out as kine lays it out: it is a view"),
        ("CREATE TABLE kine (id INTEGER PRIMARY KEY, name TEXT)", "its table kine has no column created"),
        (
            "CREATE TABLE kine (id TEXT PRIMARY KEY, name, created, deleted, create_revision, prev_revision, lease,
             value)",
            "its table kine is not laid out as kine lays it out: id is not its INTEGER PRIMARY KEY",
        ),
    ] {
        std::fs::remove_file(&files.db).unwrap();
        Connection::open(&files.db).unwrap().execute_batch(sql).unwrap();
        let text = refused(&files);
        assert!(text.starts_with(&format!("DB is not imported: {want}")), "{text}");
    }
    std::fs::remove_file(&files.db).unwrap();
    std::fs::create_dir(&files.db).unwrap();
    assert!(format!("{:#}", read(&files).err().unwrap()).starts_with("it is not a regular file"));
}

#[test]
fn a_store_without_its_wal_is_refused() {
    let store = store(ROWS);
    // The table was made and checkpointed, the rows were not.
    let fresh = self::store("DELETE FROM kine");
    let files = fresh.cold();
    assert!(refused(&files).contains("has no row, not even kine's own compact_rev_key"), "{}", refused(&files));
    // The -shm stayed behind and tells of frames. With some rows checkpointed nothing else would show it.
    store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    store.connection.execute("INSERT INTO kine (name, created, deleted) VALUES ('/late', 1, 0)", []).unwrap();
    let files = store.hot();
    assert!(read(&files).unwrap().0.0.iter().any(|k| k.0 == "/late"));
    std::fs::remove_file(&files.wal).unwrap();
    let text = refused(&files);
    assert!(text.contains("DB-wal is missing") && text.contains("put the whole -wal file"), "{text}");
    std::fs::write(&files.wal, b"").unwrap();
    assert!(refused(&files).contains("DB-wal is missing"));
}

#[test]
fn a_wal_that_does_not_fit_is_refused() {
    for (damage, want) in [
        (0, "its header is not valid"),
        (32 + 8, "committed transactions stand behind it"),
        (32 + 30, "committed transactions stand behind it"),
    ] {
        let store = store(ROWS);
        store.connection.execute("INSERT INTO kine (name, created, deleted) VALUES ('/late', 1, 0)", []).unwrap();
        let files = store.hot();
        let mut wal = std::fs::read(&files.wal).unwrap();
        wal[damage] ^= 0xff;
        std::fs::write(&files.wal, wal).unwrap();
        let text = refused(&files);
        assert!(text.contains("DB-wal is damaged or belongs to another database"), "{text}");
        assert!(text.contains(want), "{text}");
    }
}

/// What a killed writer leaves, and what a lost sector leaves of a commit: without the `-shm` they look the same.
#[test]
fn a_last_transaction_that_cannot_be_read_is_told_of() {
    let store = store(ROWS);
    store.connection.execute("INSERT INTO kine (name, created, deleted) VALUES ('/late', 1, 0)", []).unwrap();
    let files = store.hot();
    std::fs::remove_file(&files.shm).unwrap();
    let mut wal = std::fs::read(&files.wal).unwrap();
    assert_eq!(read(&files).unwrap().1.torn_wals.count, 0);
    *wal.last_mut().unwrap() ^= 1;
    std::fs::write(&files.wal, wal).unwrap();
    let (sink, warnings) = read(&files).unwrap();
    assert!(!sink.0.iter().any(|k| k.0 == "/late"));
    assert_eq!(warnings.torn_wals.count, 1);
    assert!(warnings.lines().iter().any(|line| line.contains("state.db-wal")), "{:?}", warnings.lines());
}

#[test]
fn a_store_of_several_names_is_refused_without_its_wal() {
    let store = store(ROWS);
    let files = store.cold();
    let other = files.db.with_file_name("other.db");
    std::fs::hard_link(&files.db, &other).unwrap();
    let text = refused(&files);
    assert!(text.contains("it has 1 other names") && text.contains("-samefile"), "{text}");
    std::fs::remove_file(&other).unwrap();
    read(&files).unwrap();
    let hot = store.hot();
    store.connection.execute("INSERT INTO kine (name, created, deleted) VALUES ('/late', 1, 0)", []).unwrap();
    std::fs::copy(store.db.with_file_name("live.db-wal"), &hot.wal).unwrap();
    std::fs::hard_link(&hot.db, &other).unwrap();
    read(&hot).unwrap();
}

#[test]
fn a_store_that_may_not_be_read_is_refused_with_the_remedy() {
    let denied = SourceError::Io(std::io::ErrorKind::PermissionDenied.into());
    let error = denied.refusal(Path::new("state.db"));
    assert_eq!(crate::exit::exit_of(&error), crate::exit::Exit::RefusedSource);
    assert!(format!("{error:#}").contains("let the user that syncer runs as read and write it"), "{error:#}");
}

#[test]
fn a_hot_rollback_journal_is_refused_and_a_spent_one_is_not() {
    let store = store(ROWS);
    let files = store.cold();
    std::fs::write(&files.journal, [0; 512]).unwrap();
    read(&files).unwrap();
    std::fs::write(&files.journal, [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7, 0, 0, 0, 1]).unwrap();
    assert!(refused(&files).contains("DB-journal holds an interrupted transaction"));
}

#[test]
fn damaged_pages_are_refused() {
    let rows = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i+1 FROM n WHERE i < 3000)
                INSERT INTO kine SELECT i, '/k/' || i, 1, 0, 0, 0, 0, zeroblob(200), NULL FROM n";
    let store = store(rows);
    let files = store.cold();
    let whole = std::fs::read(&files.db).unwrap();
    let pages = whole.len() / 4096;
    let mut refusals = 0;
    for page in (1..pages).step_by(7) {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..4096].fill(0xa5);
        std::fs::write(&files.db, &damaged).unwrap();
        let text = refused(&files);
        assert!(text.contains("it is damaged"), "page {page}: {text}");
        refusals += 1;
    }
    assert!(refusals > 20);
    std::fs::write(&files.db, &whole[..whole.len() - 3 * 4096]).unwrap();
    assert!(refused(&files).contains("it is damaged"));
}

#[test]
fn an_index_with_other_rows_is_refused_though_quick_check_which_counts_them_is_content() {
    let store = store(ROWS);
    let files = store.cold();
    let connection = Connection::open(&files.db).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=DELETE; PRAGMA writable_schema=ON;
             CREATE TABLE hold AS SELECT * FROM sqlite_schema WHERE type = 'index';
             DELETE FROM sqlite_schema WHERE type = 'index'; PRAGMA writable_schema=RESET;
             DELETE FROM kine WHERE id = 2; INSERT INTO kine (id, name, created, deleted) VALUES (20, '/unindexed', 1, 0);
             PRAGMA writable_schema=ON; INSERT INTO sqlite_schema SELECT * FROM hold; PRAGMA writable_schema=RESET;
             DROP TABLE hold;",
        )
        .unwrap();
    drop(connection);
    let text = refused(&files);
    assert!(text.contains("its table has 10 rows, its index on names 10, and they differ"), "{text}");
}

#[test]
fn a_value_beyond_all_bounds_is_refused_without_reading_it() {
    let store = store("INSERT INTO kine (name, created, deleted, value) VALUES ('/huge', 1, 0, zeroblob(9000000))");
    let text = refused(&store.cold());
    assert!(text.contains("larger than anything kine accepts"), "{text}");
}

/// kine fails to read such a table: "converting driver.Value type".
#[test]
fn a_number_that_is_none_is_refused_and_no_time_to_live_is_dropped() {
    for (column, value) in [("lease", "'abc'"), ("lease", "1.5"), ("lease", "x'01'"), ("created", "'yes'")] {
        let store = store(&format!("{ROWS}; UPDATE kine SET {column} = {value} WHERE id = 3"));
        let text = refused(&store.cold());
        assert!(text.contains("row 3 has no number") && text.contains(column), "{text}");
    }
}

#[test]
fn an_idle_user_of_the_store_is_met() {
    let store = store(ROWS);
    let files = StoreFiles::of(&store.db.with_file_name("live.db"));
    // This process's own locks do not conflict with a lock of this process, but an open file description's do.
    let error = KineStore::open(&files.db, Duration::ZERO).err().expect("it was opened");
    assert!(matches!(error, SourceError::Held { .. }), "{error}");
    drop(store.connection);
    KineStore::open(&files.db, SOON).unwrap();
}

#[test]
fn a_read_only_store_is_read_without_exclusion() {
    use std::os::unix::fs::PermissionsExt;
    let store = store(ROWS);
    let files = store.hot();
    for path in [&files.db, &files.wal, &files.shm] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o400)).unwrap();
    }
    assert_eq!(read(&files).unwrap().0.0, expected());
    let exclusive = KineStore::open(&files.db, SOON).unwrap().is_exclusive();
    // Root writes to whatever it likes.
    assert_eq!(exclusive, nix::unistd::geteuid().is_root());
}

#[test]
fn a_wal_that_was_cut_off_is_refused_as_long_as_the_index_tells_of_it() {
    let store = store(ROWS);
    let files = store.hot();
    let whole = std::fs::read(&files.wal).unwrap();
    for (length, text) in [
        (0, "DB-wal is missing"),
        (1, "DB-wal ends too early"),
        (32, "DB-wal ends too early"),
        (whole.len() / 2, "DB-wal ends too early"),
        (whole.len() - 1, "DB-wal ends too early"),
    ] {
        std::fs::write(&files.wal, &whole[..length]).unwrap();
        let refusal = refused(&files);
        assert!(refusal.contains(text) && refusal.contains("move the -shm file away"), "{length}: {refusal}");
    }
    std::fs::write(&files.wal, &whole).unwrap();
    assert_eq!(read(&files).unwrap().0.0, expected());
}

#[test]
fn a_wal_of_another_store_or_of_an_older_copy_is_refused() {
    let old = store(&format!("{ROWS}, (400, '/registry/late', 1, 0, 0, 0, 0, x'61')"));
    let files = old.cold();
    let other = store(ROWS);
    let fresh = other.hot();
    // It holds all of its own store, which SQLite would show in place of this one.
    std::fs::copy(&fresh.wal, &files.wal).unwrap();
    for shm in [false, true] {
        if shm {
            std::fs::copy(&fresh.shm, &files.shm).unwrap();
        }
        let refusal = refused(&files);
        assert!(
            refusal.contains("DB-wal is not its own: without it the last row is 400, with it 11; put the"),
            "{refusal}"
        );
    }
    // As the remedy says.
    std::fs::remove_file(&files.wal).unwrap();
    std::fs::remove_file(&files.shm).unwrap();
    assert_eq!(read(&files).unwrap().0.0.len(), expected().len() + 1);
}

#[test]
fn what_is_no_file_beside_the_database_is_refused_and_not_waited_for() {
    let store = store(ROWS);
    let files = store.cold();
    for path in [&files.wal, &files.shm, &files.journal] {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(&files).err().unwrap();
        assert!(error.to_string().ends_with("is not a regular file"), "{error}");
        std::fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("/nowhere", path).unwrap();
        let error = read(&files).err().unwrap();
        assert!(error.to_string().ends_with("is not a regular file"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
    read(&files).unwrap();
}

#[test]
fn a_file_that_is_cut_short_or_of_odd_types_is_damaged_and_no_fault_of_the_environment() {
    let long = store(&format!("{ROWS}, (12, '/registry/big', 1, 0, 0, 0, 0, zeroblob(40000))"));
    let files = long.cold();
    let whole = std::fs::read(&files.db).unwrap();
    std::fs::write(&files.db, &whole[..whole.len() - 100]).unwrap();
    assert!(refused(&files).contains("it is damaged: it is cut short"), "{}", refused(&files));

    let odd = store(&format!("{ROWS}, (12, 'compact_rev_key', 1, 0, 0, 'seven', 0, x'')"));
    let files = odd.cold();
    assert!(refused(&files).contains("it is damaged: "), "{}", refused(&files));
}
