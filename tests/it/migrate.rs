//! Moving a store against real programs: real etcd serves what was in it, real kine wrote some of it.

pub mod back;
mod backend;
mod crash;
mod dry_run;
mod kine_goes_on;
mod layouts;
mod real_kine;
mod refusals;
mod running;
mod verified;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use syncer::datadir::MemberIdentity;
use syncer::disk::RealDisk;
use syncer::migrate::command::fresh_token;
use syncer::migrate::origin::Opening;
use syncer::migrate::progress::{Meter, Show};
use syncer::migrate::source::Source;
use syncer::migrate::{DatadirTarget, ImportOutcome, Journey, Origin, Verify, journey};
use syncer::scratch::Aside;

use crate::support::etcd::{EtcdSpec, all_keys, program, run};
use crate::support::kine_db::Live;
use crate::support::{part, syncer};

/// A new member on loopback.
fn identity() -> MemberIdentity {
    MemberIdentity {
        name: "seed".into(),
        peer_urls: vec!["https://localhost:2380".into()],
        client_urls: vec!["https://localhost:2379".into()],
        token: fresh_token(),
    }
}

/// The import of a boot into etcd of `line`, silent, with every key read back.
fn plan(db: &Path, data_dir: &Path, line: &str) -> Journey<DatadirTarget> {
    Journey {
        verify: Verify::Full,
        show: Show::Nothing,
        ..Journey::of_boot(Origin::sqlite(db.to_owned()), data_dir, identity(), program("etcd", line))
    }
}

/// Imports `state.db` of `data_dir` as a boot would.
fn import_at_boot(data_dir: &Path, line: &str) -> ImportOutcome {
    journey::run(&RealDisk, &plan(&data_dir.join("state.db"), data_dir, line))
        .unwrap_or_else(|e| panic!("import: {e:#}"))
}

/// `syncer migrate` of a store into `target`.
fn migrate(db: &Path, target: &Path) -> Command {
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from"]).arg(format!("sqlite:{}", db.display()));
    command.arg("--to").arg(format!("datadir:{}", target.display())).arg("--etcd").arg(part("etcd"));
    command
}

/// A store that is opened, with the etcd program that replays its log and the place of a copy.
pub fn open(origin: &Origin, etcd: &Path, copy: &Path) -> anyhow::Result<Box<dyn Source>> {
    let (copy, meter) = (Aside::alone(copy.to_owned(), 0), Meter::default());
    origin.open(&Opening { disk: &RealDisk, etcd, copy: &copy, lock: None, meter: &meter })
}

/// What a dry run tells is what the journey tells afterwards, by the same names, and that it was one.
#[track_caller]
pub fn foretold(dry: &Value, done: &Value) {
    assert_eq!(dry["dryRun"], true, "{dry}");
    for name in ["source", "sourceRevision", "target", "revision", "keys", "bytes", "warnings"] {
        assert!(!dry[name].is_null(), "a dry run does not tell {name}, as {done} does: {dry}");
    }
    // The time is a guess.
    for (name, told) in dry.as_object().expect("a report").iter().filter(|(name, _)| *name != "seconds") {
        let then = done.get(name).unwrap_or(told);
        assert_eq!(told, then, "{name}: a dry run told {dry}, and then it was {done}");
    }
}

fn output(command: &mut Command) -> Output {
    command.output().expect("run syncer")
}

/// Every live key as etcd of `line` serves it, after checking all that does not depend on the keys: the revision,
/// that what is older is compacted, and that writing, watching and deleting go on.
fn served(line: &'static str, etcd_dir: &Path, revision: i64, go_on: bool) -> Live {
    let etcd = EtcdSpec::new(line, "seed", etcd_dir).start();
    run(async {
        let mut client = etcd.client().await;
        let answer = client.get("/", None).await.expect("read");
        assert_eq!(answer.header().expect("a header").revision(), revision, "etcd {line}'s revision");
        let mut live = Live::new();
        let keys = all_keys(&mut client).await;
        let count = keys.len();
        for (key, value, created, modified, version, lease) in keys {
            assert_eq!(version, if created == modified { 1 } else { 2 }, "{}", key.escape_ascii());
            let ttl = match lease {
                0 => 0,
                id => client.lease_time_to_live(id, None).await.expect("ask for a lease").granted_ttl(),
            };
            live.insert(key, (value, created, modified, ttl));
        }
        assert_eq!(live.len(), count);
        if go_on {
            goes_on(&mut client, revision).await;
        }
        live
    })
}

async fn goes_on(client: &mut etcd_client::Client, revision: i64) {
    use etcd_client::{GetOptions, WatchOptions};
    if revision > 1 {
        let old = GetOptions::new().with_revision(revision - 1);
        let error = client.get("/", Some(old)).await.expect_err("an old revision was served");
        assert!(error.to_string().contains("compacted"), "{error}");
        // Whoever watched from before is told, and does not wait for ever.
        let options = WatchOptions::new().with_prefix().with_start_revision(revision - 1);
        let mut stream = client.watch("/", Some(options)).await.expect("watch from an old revision");
        let told = loop {
            let message = stream.message().await.expect("a message").expect("the watch goes on");
            if message.canceled() {
                break message.compact_revision();
            }
        };
        assert_eq!(told, revision);
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
    let mut stream = client.watch("/goes-on/", Some(options)).await.expect("watch from here");
    let put = client.put("/goes-on/1", "x", None).await.expect("put");
    assert_eq!(put.header().expect("a header").revision(), revision + 1);
    client.delete("/goes-on/1", None).await.expect("delete");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let message = stream.message().await.expect("a message").expect("the watch goes on");
        seen.extend(message.events().iter().filter_map(|e| e.kv().map(|kv| kv.mod_revision())));
    }
    assert_eq!(seen, [revision + 1, revision + 2]);
    client.compact(revision + 1, None).await.expect("compact");
}

fn assert_live(served: &Live, expected: &Live) {
    for (key, want) in expected {
        assert_eq!(served.get(key), Some(want), "{}", key.escape_ascii());
    }
    for key in served.keys() {
        assert!(expected.contains_key(key), "{} is served and should not be", key.escape_ascii());
    }
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("read a directory")
        .map(|e| e.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    names
}

/// A directory for a test.
fn volume() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("make a directory");
    let db = dir.path().join("state.db");
    (dir, db)
}
