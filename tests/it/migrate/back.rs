//! The way back: a `state.db` made from etcd's store, which every kine goes on with.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, PutOptions, WatchOptions};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;

use syncer::datadir::lock::LOCK_FILE;
use syncer::scratch::Aside;

use super::backend::{live, save};
use super::*;
use crate::support::etcd::{Etcd, LINES, PATIENCE};
use crate::support::kine_db::{ERAS, Kine, busy, compacted, create, delete, update};
use crate::support::poll;

/// `syncer migrate` of `from` into `db`.
fn back(from: &str, db: &Path, line: &str) -> Command {
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from", from, "--to"]).arg(format!("sqlite:{}", db.display()));
    command.args(["-o", "json", "--verify", "full", "--etcd"]).arg(program("etcd", line));
    command
}

#[track_caller]
fn report(command: &mut Command) -> Value {
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
const EVENT: &[u8] = b"/registry/events/ns/short";

/// An etcd as an API server leaves it: one key in each transaction, leases, deletes, a compaction. Last of all comes
/// [`EVENT`] with `ttl` seconds to live.
fn etcd_of_an_api_server(line: &'static str, home: &Path, ttl: i64) -> (Etcd, Live, i64) {
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

/// What a kine lists below a prefix, as an API server asks for it.
async fn list(client: &mut Client) -> BTreeMap<Vec<u8>, (Vec<u8>, i64, i64)> {
    let mut client = client.kv_client().max_decoding_message_size(64 << 20);
    let answer = client.get("/registry/", Some(GetOptions::new().with_prefix())).await.expect("list");
    answer
        .kvs()
        .iter()
        .map(|kv| (kv.key().to_vec(), (kv.value().to_vec(), kv.create_revision(), kv.mod_revision())))
        .collect()
}

/// How a kine of the test is brought to compact.
enum Compacts {
    /// By itself, each second (0.17).
    ByItself,
    /// When it is told to, as API servers tell it (0.13).
    WhenTold,
    /// Each five minutes, and in no other way (0.11: `compactInterval` in `pkg/logstructured/sqllog/sql.go`, and a Compact in
    /// `pkg/server/kv.go` that does nothing). Its statement is that of 0.13, word for word.
    TooRarely,
}

fn goes_on_in(program: &str, line: &'static str, compacts: &Compacts) {
    let (dir, db) = volume();
    let (mut etcd, want, revision) = etcd_of_an_api_server(line, dir.path(), 8);
    etcd.stop();
    let told = report(&mut back(&format!("datadir:{}", dir.path().join("etcd").display()), &db, line));
    assert_eq!((&told["revision"], &told["sourceRevision"]), (&revision.into(), &revision.into()));
    assert_eq!((&told["moved"]["count"], &told["leftOut"]["count"]), (&0.into(), &1.into()));
    assert_eq!(told["keys"], want.len() - 1);

    let flags: &[&str] = match compacts {
        Compacts::ByItself => &["--compact-interval=1s", "--compact-min-retain=20"],
        Compacts::WhenTold | Compacts::TooRarely => &[],
    };
    let begun = Instant::now();
    let kine = Kine::with(program, &db, flags);
    run(async {
        let mut client = kine.client().await;
        let mut found = list(&mut client).await;
        let health = found.remove(&b"/registry/health"[..]).expect("kine's own key");
        assert!(health.2 > revision, "kine goes on behind the store's revision, and is at {}", health.2);
        for (key, (value, create, modified, ttl)) in want.iter().filter(|(key, _)| *key != b"compact_rev_key") {
            let got = found.remove(key);
            if key == EVENT && got.is_none() && begun.elapsed() > Duration::from_secs(8) {
                continue;
            }
            assert_eq!(got, Some((value.clone(), *create, *modified)), "{} ({ttl} s)", key.escape_ascii());
        }
        assert!(found.is_empty(), "{found:?}");

        // Whoever was at the store's revision goes on; whoever was before is told to list anew.
        let watch = |from| WatchOptions::new().with_prefix().with_start_revision(from);
        let mut stream = client.watch("/registry/", Some(watch(revision + 1))).await.expect("watch");
        let mut stale = client.watch("/registry/", Some(watch(revision - 5))).await.expect("watch");
        let told = loop {
            let message = stale.message().await.expect("a message").expect("the watch goes on");
            if message.canceled() {
                break message.compact_revision();
            }
        };
        assert!(told >= revision - 5, "{told}");

        // Updates, deletes, and creates of what was deleted, each known to the watch.
        let (some, other) = (b"/registry/configmaps/ns/001", b"/registry/configmaps/ns/002");
        let updated = update(&mut client, some, b"changed", want[&some[..]].2).await;
        delete(&mut client, other, want[&other[..]].2).await;
        let again = create(&mut client, b"/registry/configmaps/ns/009", b"again", 0).await;
        assert!(revision < updated && updated < again);
        let mut seen = BTreeMap::new();
        while !seen.contains_key(&b"/registry/configmaps/ns/009"[..]) {
            let message = stream.message().await.expect("a message").expect("the watch goes on");
            seen.extend(
                message.events().iter().filter_map(|e| e.kv().map(|kv| (kv.key().to_vec(), kv.mod_revision()))),
            );
        }
        assert_eq!(seen[&some[..]], updated);
        assert!(seen.contains_key(&other[..]));
    });
    compacts_it(&kine, &db, revision, compacts);
    // What had seconds to live goes when they are over, what had an hour stays.
    poll("kine lets the short-lived key expire", 2 * PATIENCE, || {
        run(async {
            let mut client = kine.client().await;
            let found = client.get(EVENT, None).await.expect("read");
            found.kvs().is_empty().then_some(())
        })
    });
    assert!(begun.elapsed() >= Duration::from_secs(8), "it expired after {:?}", begun.elapsed());
    assert!(want.values().any(|(.., ttl)| *ttl == 3660));
    run(async {
        let mut client = kine.client().await;
        let found = list(&mut client).await;
        for (key, (.., ttl)) in want.iter().filter(|(_, (.., ttl))| *ttl == 3660) {
            assert!(found.contains_key(key), "{} with {ttl} s", key.escape_ascii());
        }
    });
}

/// kine's compaction of a store that was written back at `revision`: it removes the rows that were written back of what has
/// changed since, and nothing that is live.
fn compacts_it(kine: &Kine, db: &Path, revision: i64, compacts: &Compacts) {
    let (changed, gone) = (b"/registry/configmaps/ns/012", b"/registry/configmaps/ns/013");
    let (before, last) = run(async {
        let mut client = kine.client().await;
        let found = list(&mut client).await;
        let mut at = found[&changed[..]].2;
        for n in 0..20 {
            at = update(&mut client, changed, format!("{n}").as_bytes(), at).await;
        }
        delete(&mut client, gone, found[&gone[..]].2).await;
        // And more than kine is told to retain.
        let last = create(&mut client, b"/registry/last", b"x", 0).await;
        let mut at = last;
        for _ in 0..25 {
            at = update(&mut client, b"/registry/last", b"x", at).await;
        }
        assert!(last > revision + 20);
        let mut before = list(&mut client).await;
        before.retain(|key, _| key != EVENT);
        (before, last)
    });
    match compacts {
        Compacts::ByItself => {
            poll("kine compacts", PATIENCE, || (compacted(db, gone).0 >= last).then_some(()));
        }
        Compacts::WhenTold => {
            run(async { kine.client().await.compact(last, None).await.map(drop).expect("compact") });
        }
        Compacts::TooRarely => return,
    }
    assert_eq!((compacted(db, changed).1, compacted(db, gone).1), (1, 0));
    run(async {
        let mut client = kine.client().await;
        let mut after = list(&mut client).await;
        after.retain(|key, _| key != EVENT);
        assert!(after == before, "kine's compaction has changed what is live");
        assert!(!after.contains_key(&gone[..]));
        if matches!(compacts, Compacts::ByItself) {
            let from = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
            let mut stale = client.watch("/registry/", Some(from)).await.expect("watch");
            let told = loop {
                let message = stale.message().await.expect("a message").expect("the watch goes on");
                if message.canceled() {
                    break message.compact_revision();
                }
            };
            assert!(told >= last, "{told} is below {last}");
        }
        create(&mut client, gone, b"again", 0).await;
    });
}

#[test]
fn kine_0_17_goes_on_with_it() {
    goes_on_in("kine", "3.6", &Compacts::ByItself);
}

#[test]
fn kine_0_13_goes_on_with_it() {
    goes_on_in("kine-0.13", "3.5", &Compacts::WhenTold);
}

#[test]
fn kine_0_11_goes_on_with_it() {
    goes_on_in("kine-0.11", "3.7", &Compacts::TooRarely);
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
    let mut source = syncer::migrate::Origin::sqlite(db.to_owned())
        .open(&RealDisk, Path::new("/nonexistent"), &Aside::alone("/nonexistent".into(), 0), None)
        .expect("open the store");
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
        let told = report(&mut back(&format!("datadir:{}", dir.path().join("etcd").display()), &again, line));
        assert_eq!(told["revision"], history.revision(), "{era:?}");
        assert_eq!(live_of(&again), (history.live(), history.revision()), "{era:?}");
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
        let told = report(&mut back(&format!("snapshot:{}", file.display()), &db, line));
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
    let (etcd, mut want, revision) = etcd_of_an_api_server("3.6", dir.path(), 30);
    let from = format!("etcd:{}", etcd.spec.client_url());
    let told = report(&mut back(&from, &db, "3.6"));
    assert_eq!((&told["source"], &told["revision"]), (&etcd.spec.client_url().into(), &revision.into()));
    want.remove(&b"compact_rev_key"[..]);
    assert!(live_of(&db) == (want, revision));
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
