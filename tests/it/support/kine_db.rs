//! Stores in every layout that kine has had, made by raw SQL, and stores written by a real kine.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use rusqlite::{Connection, params};

use super::etcd::{PATIENCE, connect, run, tail};
use super::{free_port, part, poll};

/// A layout by the release that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// v0.1: an INTEGER name, two indexes.
    V0_1,
    /// v0.5: five indexes.
    V0_5,
    /// v0.14.13: a partial index.
    V0_14,
    /// v0.16.0: tombstones without value and lease.
    V0_16,
    /// v0.16.3: a TEXT name; v0.17 writes NULL for the create revision of a created row.
    V0_17,
}

/// All of them.
pub const ERAS: [Era; 5] = [Era::V0_1, Era::V0_5, Era::V0_14, Era::V0_16, Era::V0_17];

impl Era {
    fn name_type(self) -> &'static str {
        if self == Era::V0_17 { "TEXT" } else { "INTEGER" }
    }

    fn bare_tombstones(self) -> bool {
        matches!(self, Era::V0_16 | Era::V0_17)
    }

    fn schema(self) -> String {
        let mut sql = format!(
            "CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name {}, created INTEGER, deleted INTEGER,
             create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB);
             CREATE INDEX kine_name_index ON kine (name);
             CREATE UNIQUE INDEX kine_name_prev_revision_uindex ON kine (name, prev_revision);",
            self.name_type()
        );
        if self != Era::V0_1 {
            sql += "CREATE INDEX kine_name_id_index ON kine (name,id);
                    CREATE INDEX kine_id_deleted_index ON kine (id,deleted);
                    CREATE INDEX kine_prev_revision_index ON kine (prev_revision);";
        }
        if matches!(self, Era::V0_14 | Era::V0_16 | Era::V0_17) {
            sql += "CREATE INDEX kine_id_compact_rev_key_with_prev_revision_index ON kine(id, name, prev_revision)
                    WHERE name != 'compact_rev_key' AND prev_revision != 0;";
        }
        sql
    }
}

/// A live key: value, create revision, mod revision, time to live.
pub type Live = BTreeMap<Vec<u8>, (Vec<u8>, i64, i64, i64)>;

#[derive(Clone, Debug)]
struct Row {
    id: i64,
    name: Vec<u8>,
    created: bool,
    deleted: bool,
    create_revision: Option<i64>,
    prev_revision: i64,
    lease: i64,
    value: Option<Vec<u8>>,
    old_value: Option<Vec<u8>>,
}

/// What clients did to a store, as kine of an era writes it down.
#[derive(Clone, Debug)]
pub struct History {
    era: Era,
    rows: Vec<Row>,
    next: i64,
}

impl History {
    /// A store that kine has just started on: its own key has id 1.
    pub fn new(era: Era) -> History {
        let mut history = History { era, rows: Vec::new(), next: 1 };
        history.create(b"compact_rev_key", Some(b""), 0);
        history
    }

    /// The store's revision.
    pub fn revision(&self) -> i64 {
        self.rows.iter().map(|r| r.id).max().unwrap_or(0)
    }

    /// The next row gets this id.
    pub fn skip_to(&mut self, id: i64) -> &mut History {
        self.next = id;
        self
    }

    fn newest(&self, name: &[u8]) -> Option<&Row> {
        self.rows.iter().filter(|r| r.name == name).max_by_key(|r| r.id)
    }

    fn push(&mut self, mut row: Row) -> &mut History {
        row.id = self.next;
        self.next += 1;
        self.rows.push(row);
        self
    }

    /// A key is created; `None` is how kine stores an empty value.
    pub fn create(&mut self, name: &[u8], value: Option<&[u8]>, ttl: i64) -> &mut History {
        let prev = self.newest(name).map_or(0, |r| r.id);
        self.push(Row {
            id: 0,
            name: name.to_vec(),
            created: true,
            deleted: false,
            create_revision: (self.era != Era::V0_17).then_some(0),
            prev_revision: prev,
            lease: ttl,
            value: value.map(<[u8]>::to_vec),
            old_value: None,
        })
    }

    /// A live key is updated.
    pub fn update(&mut self, name: &[u8], value: &[u8], ttl: i64) -> &mut History {
        let old = self.newest(name).expect("it is there").clone();
        assert!(!old.deleted);
        let created = if old.created { old.id } else { old.create_revision.unwrap_or(0) };
        self.push(Row {
            id: 0,
            name: name.to_vec(),
            created: false,
            deleted: false,
            create_revision: Some(created),
            prev_revision: old.id,
            lease: ttl,
            value: Some(value.to_vec()),
            old_value: old.value,
        })
    }

    /// A live key is deleted.
    pub fn delete(&mut self, name: &[u8]) -> &mut History {
        let old = self.newest(name).expect("it is there").clone();
        let created = if old.created { old.id } else { old.create_revision.unwrap_or(0) };
        let bare = self.era.bare_tombstones();
        self.push(Row {
            id: 0,
            name: name.to_vec(),
            created: false,
            deleted: true,
            create_revision: Some(if bare { 0 } else { created }),
            prev_revision: old.id,
            lease: if bare { 0 } else { old.lease },
            value: if bare { None } else { old.value.clone() },
            old_value: old.value,
        })
    }

    /// kine filled a gap in the ids.
    pub fn gap(&mut self) -> &mut History {
        let name = format!("gap-{}", self.next).into_bytes();
        self.push(Row {
            id: 0,
            name,
            created: false,
            deleted: true,
            create_revision: Some(0),
            prev_revision: 0,
            lease: 0,
            value: None,
            old_value: None,
        })
    }

    /// kine's compaction up to `revision` (`sqlite.go`, `CompactSQL`).
    pub fn compact(&mut self, revision: i64) -> &mut History {
        let superseded: Vec<i64> = self
            .rows
            .iter()
            .filter(|r| r.name != b"compact_rev_key" && r.prev_revision != 0 && r.id <= revision)
            .map(|r| r.prev_revision)
            .collect();
        let gone = |r: &Row| superseded.contains(&r.id) || (r.deleted && r.id <= revision);
        self.rows.retain(|r| !gone(r));
        self.mark_compacted(revision)
    }

    /// Only the mark of a compaction: what one that broke off would leave.
    pub fn mark_compacted(&mut self, revision: i64) -> &mut History {
        let own = self.rows.iter_mut().find(|r| r.name == b"compact_rev_key").expect("kine's own row");
        own.prev_revision = revision;
        self
    }

    /// What kine serves: for each name its newest row, if that is no tombstone; less kine's own keys.
    pub fn live(&self) -> Live {
        let mut newest: BTreeMap<&[u8], &Row> = BTreeMap::new();
        for row in &self.rows {
            let seen = newest.entry(&row.name).or_insert(row);
            if row.id > seen.id {
                *seen = row;
            }
        }
        newest
            .into_iter()
            .filter(|(name, row)| !row.deleted && *name != b"compact_rev_key" && *name != b"compact_rev_key_apiserver")
            .map(|(name, row)| {
                let created = if row.created { row.id } else { row.create_revision.unwrap_or(0) };
                (name.to_vec(), (row.value.clone().unwrap_or_default(), created, row.id, row.lease))
            })
            .collect()
    }

    /// Writes the store with all of it in the database file.
    pub fn write_cold(&self, db: &Path) {
        let connection = self.fill(db);
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoint");
        drop(connection);
    }

    /// Writes the store as a killed kine leaves it: the first half in the database, all of it only with the `-wal`.
    pub fn write_hot(&self, db: &Path) {
        let live = db.with_extension("being-written");
        let connection = self.fill(&live);
        for suffix in ["", "-wal", "-shm"] {
            std::fs::copy(with(&live, suffix), with(db, suffix)).expect("copy the store");
        }
        drop(connection);
        std::fs::remove_file(&live).expect("remove the original");
        assert!(std::fs::metadata(with(db, "-wal")).expect("a -wal").len() > 0);
    }

    fn fill(&self, db: &Path) -> Connection {
        let connection = Connection::open(db).expect("make a store");
        connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;").expect("use a WAL");
        connection.execute_batch(&self.era.schema()).expect("make the schema");
        let half = self.rows.len() / 2;
        for (number, rows) in [&self.rows[..half], &self.rows[half..]].into_iter().enumerate() {
            connection.execute_batch("BEGIN").expect("begin");
            let sql = "INSERT INTO kine VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?)";
            let mut insert = connection.prepare(sql).expect("prepare");
            for r in rows {
                let (created, deleted) = (i64::from(r.created), i64::from(r.deleted));
                let flags = params![
                    r.id,
                    r.name,
                    created,
                    deleted,
                    r.create_revision,
                    r.prev_revision,
                    r.lease,
                    r.value,
                    r.old_value
                ];
                insert.execute(flags).unwrap_or_else(|e| panic!("insert {r:?}: {e}"));
            }
            drop(insert);
            connection.execute_batch("COMMIT").expect("commit");
            if number == 0 {
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoint");
            }
        }
        connection
    }
}

/// The revision up to which a kine that may run has compacted the store at `db`, and the rows of a key in it.
pub fn compacted(db: &Path, key: &[u8]) -> (i64, i64) {
    let connection =
        Connection::open_with_flags(db, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).expect("open the store");
    connection.busy_timeout(PATIENCE).expect("wait for kine");
    let newest = "SELECT MAX(prev_revision) FROM kine WHERE name = 'compact_rev_key'";
    let rows = "SELECT COUNT(*) FROM kine WHERE name = CAST(? AS TEXT)";
    let compacted = connection.query_row(newest, [], |row| row.get(0)).expect("kine's record");
    (compacted, connection.query_row(rows, [key], |row| row.get(0)).expect("count the rows"))
}

/// `path` with `suffix` at its end.
pub fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Every file of a store with its SHA-256: that a refusal changes nothing.
pub fn fingerprint(db: &Path) -> BTreeMap<String, String> {
    use sha2::{Digest, Sha256};
    ["", "-wal", "-shm", "-journal"]
        .into_iter()
        .filter_map(|suffix| {
            let bytes = std::fs::read(with(db, suffix)).ok()?;
            let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            Some((suffix.to_owned(), digest))
        })
        .collect()
}

/// What a busy virtual cluster leaves: creates, updates, deletes, creates after deletes, leases, gaps, odd keys.
pub fn busy(era: Era, objects: usize) -> History {
    let mut history = History::new(era);
    history.create(b"/registry/health", Some(br#"{"health":"true"}"#), 0);
    let name = |i: usize| {
        let kind = ["pods", "configmaps", "secrets", "events", "example.com/widgets"][i % 5];
        format!("/registry/{kind}/ns-{}/object-{i}", i % 7).into_bytes()
    };
    for i in 0..objects {
        let ttl = if i % 5 == 3 { 3660 } else { 0 };
        history.create(&name(i), Some(format!("value {i} {}", "x".repeat(i % 300)).as_bytes()), ttl);
    }
    for i in (0..objects).step_by(3) {
        let ttl = if i % 5 == 3 { 3660 } else { 0 };
        history.update(&name(i), format!("newer {i}").as_bytes(), ttl);
    }
    history.gap();
    for i in (0..objects).step_by(10) {
        history.delete(&name(i));
    }
    for i in (0..objects).step_by(20) {
        history.create(&name(i), Some(b"again"), 0);
    }
    history.create(b"/registry/masterleases/10.0.0.1", Some(b"k8s"), 900);
    history.create(b"/registry/empty", None, 0);
    history.create(b"/registry/empty-blob", Some(b""), 0);
    history.create(b"/registry/CASE", Some(b"upper"), 0).create(b"/registry/case", Some(b"lower"), 0);
    history.create(b"/registry/raw/\xff\x00\xfe", Some(b"not UTF-8"), 0);
    history.create(b"/bootstrap/abc", Some(b"not below /registry"), 0);
    history.create(b"k3s/no-slash", Some(b"k3s"), 3600);
    history.create(b"gap-x", Some(b"a user's key"), 0);
    history.create(b"compact_rev_key_apiserver", Some(b"3|17"), 0);
    history
}

/// A kine that runs on a store; killed on drop, which leaves the `-wal` hot.
pub struct Kine {
    child: Child,
    url: String,
}

impl Kine {
    /// Starts `program` (`kine`, `kine-0.13`, `kine-0.11`) on the store at `db`.
    pub fn start(program: &str, db: &Path) -> Kine {
        Kine::with(program, db, &[])
    }

    /// The same, with more flags.
    pub fn with(program: &str, db: &Path, flags: &[&str]) -> Kine {
        let port = free_port();
        let log = with(db, ".kine.log");
        let output = File::create(&log).expect("make kine's log");
        let mut command = Command::new(part(program));
        let dsn = "_journal=WAL&_journal_mode=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate";
        command
            .arg("--endpoint")
            .arg(format!("sqlite://{}?{dsn}", db.display()))
            .args(["--listen-address", &format!("127.0.0.1:{port}"), "--metrics-bind-address", "0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("share the log"))
            .stderr(output);
        // SAFETY: prctl is async-signal-safe and takes no pointers.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut kine = Kine { child: command.spawn().expect("start kine"), url: format!("http://127.0.0.1:{port}") };
        poll(&format!("{program} serves; see {}", log.display()), PATIENCE, || {
            if let Some(status) = kine.child.try_wait().expect("wait for kine") {
                panic!("{program} ended with {status}:\n{}", tail(&log));
            }
            run(async { kine.client().await.get("/registry/health", None).await.ok().filter(|a| a.count() > 0) })
        });
        kine
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it serves.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of it.
    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Kine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Creates a key as the API server does; kine's lease ID is the time to live. Gives its revision.
pub async fn create(client: &mut Client, key: &[u8], value: &[u8], ttl: i64) -> i64 {
    let put = match ttl {
        0 => TxnOp::put(key, value, None),
        ttl => {
            let lease = client.lease_grant(ttl, None).await.expect("grant a lease");
            TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease.id())))
        }
    };
    let absent = Compare::mod_revision(key, CompareOp::Equal, 0);
    let answer = client.txn(Txn::new().when([absent]).and_then([put])).await.expect("create a key");
    assert!(answer.succeeded(), "create {}", key.escape_ascii());
    answer.header().expect("a header").revision()
}

/// Updates a key that is at `revision`. Gives its new revision.
pub async fn update(client: &mut Client, key: &[u8], value: &[u8], revision: i64) -> i64 {
    let same = Compare::mod_revision(key, CompareOp::Equal, revision);
    let txn = Txn::new().when([same]).and_then([TxnOp::put(key, value, None)]).or_else([TxnOp::get(key, None)]);
    let answer = client.txn(txn).await.expect("update a key");
    assert!(answer.succeeded(), "update {}", key.escape_ascii());
    answer.header().expect("a header").revision()
}

/// Deletes a key that is at `revision`.
pub async fn delete(client: &mut Client, key: &[u8], revision: i64) {
    let same = Compare::mod_revision(key, CompareOp::Equal, revision);
    let txn = Txn::new().when([same]).and_then([TxnOp::delete(key, None)]).or_else([TxnOp::get(key, None)]);
    let answer = client.txn(txn).await.expect("delete a key");
    assert!(answer.succeeded(), "delete {}", key.escape_ascii());
}
