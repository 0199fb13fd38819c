//! Memory does not grow with the store, on whichever journey it is.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use etcd_client::{GetOptions, Txn, TxnOp};

use super::*;
use crate::restore::snapshot;
use crate::support::versitygw::VersityGw;
use crate::support::{part, poll};

/// What syncer may take of memory that is its own, whatever the size of the store.
const MEMORY: u64 = 64 << 20;
/// And with its program, which is large as tests have it, and all else that it has mapped.
const IN_ALL: u64 = 2 * MEMORY;

/// Keys with values of 112 bytes in a MiB: so many that what is kept of each would be seen.
const KEYS_IN_MIB: usize = 6000;
/// As many as etcd takes in one transaction.
const AT_ONCE: usize = 125;

/// Writes so many MiB.
fn fill_much(source: &Deployed, mib: usize) {
    let value = |n: usize| format!("{n:0>8}").repeat(14);
    std::thread::scope(|scope| {
        for writer in 0..8 {
            scope.spawn(move || {
                source.asked(async |mut client| {
                    for batch in (writer..mib * KEYS_IN_MIB / AT_ONCE).step_by(8) {
                        let keys = (0..AT_ONCE).map(|n| batch * AT_ONCE + n);
                        let put = |n: usize| TxnOp::put(format!("/registry/configmaps/{n:08}"), value(n), None);
                        client.txn(Txn::new().and_then(keys.map(put).collect::<Vec<_>>())).await.expect("write");
                    }
                });
            });
        }
    });
}

/// A hash over every key with its value and revisions, and how many there are.
async fn digest(client: &mut Client) -> (u64, usize) {
    let (mut hash, mut count, mut from) = (DefaultHasher::new(), 0, vec![0]);
    loop {
        let options = GetOptions::new().with_from_key().with_limit(4000);
        let answer = client.get(from, Some(options)).await.expect("read a page of keys");
        for kv in answer.kvs() {
            (kv.key(), kv.value(), kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()).hash(&mut hash);
        }
        count += answer.kvs().len();
        let Some(last) = answer.kvs().last().filter(|_| answer.more()) else { return (hash.finish(), count) };
        from = [last.key(), &[0]].concat();
    }
}

/// A process's memory in bytes: what it has of its own, and the most that it ever had in all.
fn memory(pid: u32) -> Option<[u64; 2]> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |field: &str| {
        let kib = text.lines().find_map(|line| line.strip_prefix(field))?;
        kib.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some([bytes("RssAnon:")?, bytes("VmHWM:")?])
}

/// The most that a process was seen to take while this is done.
fn watched<T>(pid: u32, during: impl FnOnce() -> T) -> (T, [u64; 2]) {
    let (done, peaks) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 2]);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (peak, now) in peaks.iter().zip(memory(pid).unwrap_or_default()) {
                    peak.fetch_max(now, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // Also when it fails, or its thread would be waited for in vain.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        done.store(true, Ordering::Relaxed);
        outcome
    });
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    (outcome, peaks.map(AtomicU64::into_inner))
}

fn bounded(what: &str, [own, all]: [u64; 2], mib: usize, took: Duration) {
    eprintln!("{what}: {mib} MiB in {took:?}, {} MiB of memory of its own, {} in all", own >> 20, all >> 20);
    assert!(own > 0 && own <= MEMORY, "{what} takes {own} bytes of memory (RssAnon) for {mib} MiB");
    assert!(all > 0 && all <= IN_ALL, "{what} takes {all} bytes of memory (VmHWM) for {mib} MiB");
}

/// Runs a syncer to its end over a store of so many MiB, and gives its report.
fn in_bounded_memory(what: &str, mut command: Command, mib: usize) -> serde_json::Value {
    let begun = Instant::now();
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("syncer runs");
    let (out, peaks) = watched(child.id(), || child.wait_with_output().expect("wait for syncer"));
    assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
    bounded(what, peaks, mib, begun.elapsed());
    serde_json::from_slice(&out.stdout).expect("a report")
}

#[test]
fn a_large_store_takes_every_journey_in_bounded_memory() {
    // SYNCER_SOURCE_MIB makes it larger, by hand.
    let mib = std::env::var("SYNCER_SOURCE_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let source = Deployed::with("3.5", 1, None, &["--quota-backend-bytes=8589934592"]);
    fill_much(&source, mib);
    let mut pod = TestPod::new();
    pod.start("none", &[&from(&source.url())]);
    let (pause, peaks) = watched(pod.pid().as_raw().cast_unsigned(), || {
        let mut said = |what: &str| {
            poll(what, Duration::from_secs(900), || {
                pod.assert_running();
                pod.log().contains(what).then(Instant::now)
            })
        };
        let fenced = said("the source is fenced");
        let pause = said("moved and committed") - fenced;
        pod.wait_serving();
        pause
    });
    let size = source.asked(async |mut client| client.status().await.expect("status").db_size());
    assert!((size >> 20) as usize >= mib, "the store has {size} bytes");
    bounded("migrateFromEtcd", peaks, mib, pause);
    let want = source.asked(async |mut client| digest(&mut client).await);
    assert_eq!(want.1, mib * KEYS_IN_MIB);
    assert_eq!(pod.etcd(async |mut client| digest(&mut client).await), want, "the target differs from the source");
    drop(source);

    let home = tempfile::tempdir().expect("a folder");
    let place = home.path().join("snapshots");
    let to = place.to_str().expect("a path that is text");
    let saved = in_bounded_memory("snapshot save", snapshot(&pod, &["save", "--to", to, "-o", "json"]), mib);
    let file = place.join(saved["snapshot"]["name"].as_str().expect("a name"));
    assert!((file.metadata().expect("the snapshot").len() >> 20) as usize >= mib, "{saved}");
    let server = VersityGw::start(false, &["backups"]);
    let mut save = snapshot(&pod, &["save", "--to", "s3://backups", "-o", "json"]);
    save.envs(server.env());
    let kept = in_bounded_memory("snapshot save into a bucket", save, mib);
    let object = server.object("backups", kept["snapshot"]["name"].as_str().expect("a name"));
    assert!((object.metadata().expect("the object").len() >> 20) as usize >= mib, "{kept}");
    drop(server);

    let mut migrate = Command::new(syncer());
    migrate.args(["migrate", "-o", "json", &format!("--from=snapshot:{}", file.display())]);
    migrate.arg(format!("--to=sqlite:{}", home.path().join("state.db").display())).arg("--etcd").arg(part("etcd"));
    let moved = in_bounded_memory("migrate --to sqlite:", migrate, mib);
    let path = file.to_str().expect("a path that is text");
    let staged = in_bounded_memory("snapshot restore", snapshot(&pod, &["restore", path, "-o", "json"]), mib);
    for told in [moved, staged] {
        assert_eq!(told["keys"], mib * KEYS_IN_MIB, "{told}");
    }
}
