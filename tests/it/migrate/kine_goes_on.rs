//! Real kines go on with a `state.db` that was made from etcd's store, and compact it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, WatchOptions};

use super::back::{EVENT, back, etcd_of_an_api_server, report};
use super::*;
use crate::support::etcd::PATIENCE;
use crate::support::kine_db::{Kine, compacted, create, delete, update};
use crate::support::poll;

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

/// kine 0.11 that compacts each second, and has no flag for it.
const KINE_0_11: &str = "kine-0.11-often";

/// How a kine of the test is brought to compact.
enum Compacts {
    /// By itself, each second.
    ByItself,
    /// When it is told to, as API servers tell it (0.13).
    WhenTold,
}

/// What the short-lived key has to live, in seconds: it is still to be there when it is read from etcd's data dir.
const SHORT: i64 = 20;

/// Starts a kine that retains no more than 20 revisions if it compacts by itself.
fn kine(program: &str, db: &Path) -> Kine {
    let flags: &[&str] = if program == "kine" { &["--compact-interval=1s", "--compact-min-retain=20"] } else { &[] };
    Kine::with(program, db, flags)
}

fn goes_on_in(program: &str, line: &'static str, compacts: &Compacts) {
    let (dir, db) = volume();
    let (mut etcd, want, revision) = etcd_of_an_api_server(line, dir.path(), SHORT);
    etcd.stop();
    let told = report(&mut back(&format!("datadir:{}", dir.path().join("etcd").display()), &db, line));
    assert_eq!((&told["revision"], &told["sourceRevision"]), (&revision.into(), &revision.into()));
    assert_eq!((&told["moved"]["count"], &told["leftOut"]["count"]), (&0.into(), &1.into()));
    assert_eq!(told["keys"], want.len() - 1);

    let begun = Instant::now();
    let kine = kine(program, &db);
    run(async {
        let mut client = kine.client().await;
        let mut found = list(&mut client).await;
        let health = found.remove(&b"/registry/health"[..]).expect("kine's own key");
        assert!(health.2 > revision, "kine goes on behind the store's revision, and is at {}", health.2);
        for (key, (value, create, modified, ttl)) in want.iter().filter(|(key, _)| *key != b"compact_rev_key") {
            let got = found.remove(key);
            if key == EVENT && got.is_none() && begun.elapsed() > Duration::from_secs(SHORT as u64) {
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
    assert!(begun.elapsed() >= Duration::from_secs(SHORT as u64), "it expired after {:?}", begun.elapsed());
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
            let what = "kine compacts: the prev_revision of its compact_rev_key rises above what was written back";
            poll(what, PATIENCE, || (compacted(db, gone).0 >= last).then_some(()));
        }
        Compacts::WhenTold => {
            run(async { kine.client().await.compact(last, None).await.map(drop).expect("compact") });
        }
    }
    assert_eq!((compacted(db, changed).1, compacted(db, gone).1), (1, 0), "old rows are left, or a live one is gone");
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
    goes_on_in(KINE_0_11, "3.7", &Compacts::ByItself);
}

/// A store that kine had before has its health key, so that no kine makes it, and nothing is above what is compacted but what
/// was written back there.
#[test]
fn every_kine_compacts_what_came_from_a_kine() {
    for program in ["kine", KINE_0_11] {
        let (dir, db) = volume();
        let (mut etcd, ..) = etcd_of_an_api_server("3.6", dir.path(), 3600);
        let health = run(async {
            let put = etcd.client().await.put("/registry/health", r#"{"health":"true"}"#, None).await.expect("put");
            put.header().expect("a header").revision()
        });
        etcd.stop();
        let told = report(&mut back(&format!("datadir:{}", dir.path().join("etcd").display()), &db, "3.6"));
        assert_eq!((&told["revision"], &told["sourceRevision"]), (&(health + 1).into(), &health.into()));
        let kine = kine(program, &db);
        let found = run(async { list(&mut kine.client().await).await });
        assert_eq!(found[&b"/registry/health"[..]].2, health, "{program} has made its health key anew");
        compacts_it(&kine, &db, health + 1, &Compacts::ByItself);
    }
}
