//! The way back: a `state.db` made from etcd's store.

use std::process::Stdio;

use etcd_client::{Client, PutOptions};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

use syncer::datadir::lock::LOCK_FILE;

use super::backend::{live, save};
use super::*;
use crate::support::etcd::{Etcd, LINES};
use crate::support::kine_db::{ERAS, Kine, busy};

/// `syncer migrate` of `from` into `db`.
pub(super) fn back(from: &str, db: &Path, line: &str) -> Command {
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from", from, "--to"]).arg(format!("sqlite:{}", db.display()));
    command.args(["-o", "json", "--verify", "full", "--etcd"]).arg(program("etcd", line));
    command
}

#[track_caller]
pub(super) fn report(command: &mut Command) -> Value {
    let out = output(command);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("a report")
}

/// Every key of the store by name: value, create revision, mod revision, granted time to live.
async fn served_by(client: &mut Client) -> (Live, i64) {
    let mut found = Live::new();
    for (key, value, create, modified, _, lease) in all_keys(client).await {
        let ttl = match lease {
            0 => 0,
            id => client.lease_time_to_live(id, None).await.expect("a lease").granted_ttl(),
        };
        found.insert(key, (value, create, modified, ttl));
    }
    let revision = client.get("/", None).await.expect("read").header().expect("a header").revision();
    (found, revision)
}

/// What lives for seconds, as an Event does for an hour.
pub(super) const EVENT: &[u8] = b"/registry/events/ns/short";

/// An etcd as an API server leaves it: one key in each transaction, leases, deletes, a compaction. Last of all comes
/// [`EVENT`] with `ttl` seconds to live.
pub(super) fn etcd_of_an_api_server(line: &'static str, home: &Path, ttl: i64) -> (Etcd, Live, i64) {
    let etcd = EtcdSpec::new(line, "seed", &home.join("etcd")).start();
    let (live, revision) = run(async {
        let mut client = etcd.client().await;
        let long = client.lease_grant(3660, None).await.expect("grant").id();
        for n in 0..300 {
            let options = (n % 7 == 0).then(|| PutOptions::new().with_lease(long));
            let value = if n % 11 == 0 { Vec::new() } else { vec![n as u8; n * 3] };
            client.put(format!("/registry/configmaps/ns/{:03}", n % 200), value, options).await.expect("put");
        }
        for n in (0..200).step_by(9) {
            client.delete(format!("/registry/configmaps/ns/{n:03}"), None).await.expect("delete");
        }
        client.put("compact_rev_key", "150", None).await.expect("put");
        client.compact(150, None).await.expect("compact");
        client.put("/registry/big", vec![b'z'; 1_400_000], None).await.expect("put");
        let (mut live, _) = served_by(&mut client).await;
        // Only now, so that it outlives this etcd also on a busy machine.
        let short = client.lease_grant(ttl, None).await.expect("grant").id();
        let put = client.put(EVENT, "gone soon", Some(PutOptions::new().with_lease(short))).await.expect("put");
        let put = put.header().expect("a header").revision();
        live.insert(EVENT.to_vec(), (b"gone soon".to_vec(), put, put, ttl));
        // So that the store's revision is above the last live key's.
        client.put("/registry/last", "x", None).await.expect("put");
        let deleted = client.delete("/registry/last", None).await.expect("delete");
        (live, deleted.header().expect("a header").revision())
    });
    (etcd, live, revision)
}

/// Live keys of a `state.db`, as an import reads them.
pub fn live_of(db: &Path) -> (Live, i64) {
    use syncer::migrate::convert::LiveKey;
    struct Read(Live);
    impl syncer::migrate::sink::Sink for Read {
        fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
            let rest = (key.value.to_vec(), key.create_revision.0, key.mod_revision.0, key.lease.ttl());
            assert_eq!(self.0.insert(key.key.to_vec(), rest), None);
            Ok(())
        }
    }
    let none = Path::new("/nonexistent");
    let mut source = open(&Origin::sqlite(db.to_owned()), none, none).expect("open the store");
    let mut read = Read(Live::new());
    syncer::migrate::pipeline::copy(&mut *source, &mut read, &Default::default()).expect("read the store");
    (read.0, source.extent().revision.0)
}

#[test]
fn there_and_back_again_is_the_identity_for_every_layout() {
    for (n, era) in ERAS.into_iter().enumerate() {
        let (dir, db) = volume();
        let history = busy(era, 300);
        history.write_hot(&db);
        let line = LINES[n % LINES.len()];
        import_at_boot(dir.path(), line);
        let again = dir.path().join("again.db");
        let back = || back(&format!("datadir:{}", dir.path().join("etcd").display()), &again, line);
        let dry = report(back().arg("--dry-run"));
        let told = report(&mut back());
        foretold(&dry, &told);
        // One above, as kine's health key is among them.
        let revision = history.revision() + 1;
        assert_eq!(
            (&told["revision"], &told["sourceRevision"]),
            (&revision.into(), &history.revision().into()),
            "{era:?}"
        );
        assert_eq!(live_of(&again), (history.live(), revision), "{era:?}");
    }
}

#[test]
fn any_history_of_etcd_is_written_back_with_every_revision_its_own() {
    for line in LINES {
        let (dir, db) = volume();
        let etcd = EtcdSpec::new(line, "seed", &dir.path().join("etcd")).start();
        let seed = rand::random();
        println!("seed {seed}");
        let (want, revision) = run(async {
            let mut client = etcd.client().await;
            live(&mut client, &mut StdRng::seed_from_u64(seed), 300).await;
            served_by(&mut client).await
        });
        let file = dir.path().join("snapshot.db");
        save(&etcd, &file);
        let dry = report(back(&format!("snapshot:{}", file.display()), &db, line).arg("--dry-run"));
        let told = report(&mut back(&format!("snapshot:{}", file.display()), &db, line));
        foretold(&dry, &told);
        assert_eq!(dry["moved"]["count"], told["moved"]["count"]);
        let (found, end) = live_of(&db);
        assert_eq!(told["revision"], end);
        assert!(end >= revision);
        assert_eq!(found.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        let mut moved = 0;
        for (key, (value, create, modified, ttl)) in &want {
            let got = &found[key];
            assert_eq!((&got.0, got.1, got.3), (value, *create, *ttl), "{}", key.escape_ascii());
            assert!(got.2 >= *modified, "{} fell", key.escape_ascii());
            moved += u64::from(got.2 != *modified);
        }
        assert_eq!(told["moved"]["count"], moved);
    }
}

#[test]
fn killed_at_every_crash_point_it_converges() {
    let home = tempfile::tempdir().expect("make a directory");
    let (mut etcd, want, revision) = etcd_of_an_api_server("3.6", home.path(), 30);
    etcd.stop();
    let from = format!("datadir:{}", home.path().join("etcd").display());
    for point in syncer::crash_point::BACK_CRASH_POINTS {
        let (dir, db) = volume();
        let status = back(&from, &db, "3.6")
            .env("SYNCER_CRASH_AT", point)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("run syncer");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{point} was not reached: {status}");
        let committed = ["back-after-flip", "back-done"].contains(point);
        assert_eq!(db.exists(), committed, "{point}");
        let told = report(&mut back(&from, &db, "3.6"));
        assert_eq!(told["movedBefore"].as_bool().unwrap_or(false), committed, "{point}: {told}");
        let mut left = names(dir.path());
        // The lock's file, which the killed one could not remove.
        left.retain(|name| name != LOCK_FILE);
        assert_eq!(left, ["state.db", "state.db.migration.journal"], "{point}");
        let (mut found, end) = live_of(&db);
        let mut want = want.clone();
        want.remove(&b"compact_rev_key"[..]);
        assert_eq!(end, revision, "{point}");
        // It expires with the etcd that replays nothing, so it is there.
        assert!(found.remove(EVENT).is_some());
        want.remove(EVENT);
        assert!(found == want, "{point}");
    }
}

#[test]
fn a_target_that_is_there_or_has_companions_is_refused() {
    let home = tempfile::tempdir().expect("make a directory");
    let (mut etcd, ..) = etcd_of_an_api_server("3.6", home.path(), 30);
    let from = format!("datadir:{}", home.path().join("etcd").display());
    let (dir, db) = volume();
    let refused = |code: i32, why: &str| {
        let out = output(&mut back(&from, &db, "3.6"));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && text.contains(why), "{}: {text}", out.status);
    };
    refused(8, "an etcd has it open");
    etcd.stop();
    for name in ["state.db", "state.db-wal", "state.db-shm", "state.db-journal"] {
        std::fs::write(dir.path().join(name), "another's").expect("write a file");
        refused(3, "is there already");
        assert_eq!(names(dir.path()), [name]);
        std::fs::remove_file(dir.path().join(name)).expect("remove the file");
    }
    // A dry run says what would happen, and leaves nothing.
    let told = report(back(&from, &db, "3.6").arg("--dry-run"));
    assert!(told["keys"].as_u64().is_some_and(|keys| keys > 100) && told["neededBytes"].as_u64() > Some(1 << 20));
    assert!(names(dir.path()).is_empty());
    // From a store of kine's there is nothing to write back.
    let out = output(&mut back("sqlite:/nonexistent", &db, "3.6"));
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn a_running_etcd_is_written_back_as_of_one_revision() {
    let (dir, db) = volume();
    let (etcd, mut want, revision) = etcd_of_an_api_server("3.6", dir.path(), 600);
    let from = format!("etcd:{}", etcd.spec.client_url());
    let told = report(&mut back(&from, &db, "3.6"));
    assert_eq!((&told["source"], &told["revision"]), (&etcd.spec.client_url().into(), &revision.into()));
    want.remove(&b"compact_rev_key"[..]);
    assert!(live_of(&db) == (want.clone(), revision), "{} is not what etcd served", db.display());
    // And into etcd again, where what expires has the time to live that was granted first.
    let again = dir.path().join("again");
    let out = output(migrate(&db, &again).args(["--verify", "full"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let expiring = want.values().filter(|key| key.3 > 0).count();
    assert!(expiring > 20 && want[EVENT].3 == 600, "{expiring} keys expire");
    let served = served("3.6", &again, revision, false);
    assert_live(&served, &want);
    // And into a new data dir.
    let target = dir.path().join("new");
    let mut command = Command::new(syncer());
    command.args(["migrate", "-o", "json", "--verify", "full", "--from", &from, "--to"]);
    command.arg(format!("datadir:{}", target.display())).arg("--etcd").arg(part("etcd"));
    assert_eq!(report(&mut command)["revision"], revision);
    assert!(
        !dir.path().join("state.db.migration.source").exists() && !dir.path().join("new.migration.source").exists()
    );
    drop(etcd);

    // kine gives no snapshot, and nobody listens at the other.
    let kine = Kine::start("kine", &db);
    let other = dir.path().join("other.db");
    let dead = format!("http://127.0.0.1:{}", crate::support::free_port());
    for url in [kine.url().to_owned(), dead] {
        let out = output(&mut back(&format!("etcd:{url}"), &other, "3.6"));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(4) && text.contains("no snapshot can be taken from"), "{text}");
        assert!(!other.exists() && !dir.path().join("other.db.migration.source").exists());
    }
}
