//! Two voters, one killed: no acknowledged write is lost, while etcd's own way loses some of the same data dirs.
//!
//! `SYNCER_RESET_RUNS` is the number of storms for each etcd version (default 2). Their losses are printed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use syncer::reset::Permission;

use super::pods::{cluster, copy_of, forced_by_etcd_alone, keys_of, log_of, reset_member, start_alone};
use crate::datadir::read::add_learner;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, all_keys, connect, put_surely, run, try_promote};
use crate::support::poll;

for_each_line! {
    the_last_write_of_a_quiet_pair_is_kept => check_quiet,
    no_write_of_a_storm_is_lost => check_storms,
    whatever_follows_the_last_record_the_reset_holds => check_tails,
}

/// The backend's batch is not written before the test is over, so that nothing but the log has the last writes. What
/// happens by chance otherwise happens always.
const ONLY_THE_LOG: [&str; 2] = ["--backend-batch-interval=1h", "--backend-batch-limit=1000000"];

fn check_quiet(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut members = cluster(line, home.path(), 2, &ONLY_THE_LOG);
    let written: BTreeSet<Vec<u8>> = run(async {
        let mut client = members[0].client().await;
        let mut written = BTreeSet::new();
        for n in 0..20 {
            let key = format!("/quiet/{n:02}").into_bytes();
            put_surely(&mut client, key.clone(), "1").await;
            written.insert(key);
        }
        written
    });
    // Both nodes lose power after the last acknowledgement.
    members.iter_mut().for_each(Etcd::kill);
    let survivor = members[1].spec.clone();
    let (_, before) = log_of(&survivor);
    assert_eq!((before.voters_max(), before.always_voter()), (2, true));
    assert!(before.committed < before.last_index, "the last entry is not known to be committed: {before:?}");

    let plain = forced_by_etcd_alone(&copy_of(&survivor, "plain"));
    let lost: Vec<_> = written.difference(&plain).map(|key| String::from_utf8_lossy(key)).collect();
    println!("etcd {line}, quiet: --force-new-cluster alone lost {lost:?}");
    assert!(lost.contains(&"/quiet/19".into()), "etcd's own way keeps the last write; is the append still needed?");

    let outcome = reset_member(&survivor, Permission::TwoVoters).expect("reset the survivor");
    println!(
        "etcd {line}, quiet: reset in {:?}, entries {:?}",
        outcome.duration,
        (before.committed, before.last_index)
    );
    assert_eq!(outcome.before, before);
    assert!(outcome.copy.join("member/snap/db").is_file());
    let alone = start_alone(&survivor, &before);
    let kept = keys_of(&alone);
    assert!(written.is_subset(&kept), "lost: {:?}", written.difference(&kept));
    joins_and_agrees(&alone);
}

/// A member that joins afterwards has the same store.
pub fn joins_and_agrees(alone: &Etcd) {
    let data_dir = alone.spec.data_dir.with_file_name("joiner");
    let joiner = EtcdSpec { existing: true, ..EtcdSpec::new(alone.spec.line, "joiner", &data_dir) };
    let id = add_learner(alone, &joiner.peer_url());
    let initial_cluster = format!("{}={},joiner={}", alone.spec.name, alone.spec.peer_url(), joiner.peer_url());
    let joiner = EtcdSpec { initial_cluster: Some(initial_cluster), ..joiner };
    let mut second = joiner.spawn();
    poll("the learner is promoted", PATIENCE, || run(async { try_promote(&mut alone.client().await, id).await }));
    second.wait_until_serving();
    run(async {
        let (mut one, mut two) = (alone.client().await, second.client().await);
        assert_eq!(all_keys(&mut one).await, all_keys(&mut two).await);
        let (one, two) = (one.hash_kv(0).await.expect("hash"), two.hash_kv(0).await.expect("hash"));
        let of = |answer: &etcd_client::HashKvResponse| {
            (answer.hash(), answer.compact_version(), answer.header().expect("a header").revision())
        };
        assert_eq!(of(&one), of(&two));
    });
}

fn check_storms(line: &'static str) {
    let runs: u32 = std::env::var("SYNCER_RESET_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let (mut lossy, mut lost_by_etcd, mut slowest) = (0, 0, Duration::ZERO);
    for round in 0..runs {
        let home = tempfile::tempdir().expect("make a directory");
        let (survivor, acknowledged) = storm(line, home.path(), round);
        let (_, before) = log_of(&survivor);
        let plain = forced_by_etcd_alone(&copy_of(&survivor, "plain"));
        let lost = acknowledged.difference(&plain).count();
        lossy += u32::from(lost > 0);
        lost_by_etcd += lost;

        let outcome = reset_member(&survivor, Permission::TwoVoters).expect("reset the survivor");
        slowest = slowest.max(outcome.duration);
        let mut alone = start_alone(&survivor, &before);
        let kept = keys_of(&alone);
        let missing: Vec<_> = acknowledged.difference(&kept).map(|key| String::from_utf8_lossy(key)).collect();
        assert!(missing.is_empty(), "etcd {line}, storm {round}: {missing:?} were acknowledged and are lost");
        alone.stop();
    }
    println!(
        "etcd {line}: {runs} storms: reset by us lost 0 writes (slowest {slowest:?}); --force-new-cluster alone lost \
         {lost_by_etcd} in {lossy} of them"
    );
}

/// Eight writers on both members; the leader is killed amid them, then the survivor is killed or told to stop. The
/// survivor and the keys that were acknowledged.
fn storm(line: &'static str, home: &std::path::Path, round: u32) -> (EtcdSpec, BTreeSet<Vec<u8>>) {
    let mut members = cluster(line, home, 2, &[]);
    let over = Arc::new(AtomicBool::new(false));
    let urls: Vec<String> = members.iter().map(|member| member.spec.client_url()).collect();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (over, url) = (over.clone(), urls[writer % 2].clone());
            std::thread::spawn(move || run(write(writer, url, over)))
        })
        .collect();
    // Some load first, and another moment in each round.
    let begun = Instant::now();
    poll("writes are acknowledged", PATIENCE, || {
        let enough = run(async {
            let status = members[0].client().await.status().await.ok()?;
            Some(status.raft_index() > 300 + u64::from(round) * 37)
        });
        enough.filter(|enough| *enough || begun.elapsed() > Duration::from_secs(20))
    });
    members[0].kill();
    over.store(true, Ordering::SeqCst);
    if round.is_multiple_of(2) {
        members[1].kill();
    } else {
        members[1].stop();
    }
    let acknowledged = writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    (members[1].spec.clone(), acknowledged)
}

pub async fn write(writer: usize, url: String, over: Arc<AtomicBool>) -> BTreeSet<Vec<u8>> {
    let mut client: Client = connect(&url).await;
    let mut acknowledged = BTreeSet::new();
    for n in 0.. {
        let key = format!("/storm/{writer}/{n:06}").into_bytes();
        let put = client.put(key.clone(), "1", None);
        match tokio::time::timeout(Duration::from_secs(1), put).await {
            Ok(Ok(_)) => acknowledged.insert(key),
            _ if over.load(Ordering::SeqCst) => break,
            _ => continue,
        };
        if over.load(Ordering::SeqCst) {
            break;
        }
    }
    acknowledged
}

/// What may stand behind the last record of a log: nothing, less room than a record needs, the rest of a torn record, an
/// older write behind zeros. etcd goes on from what is appended there.
fn check_tails(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut members = cluster(line, home.path(), 2, &ONLY_THE_LOG);
    run(async {
        let mut client = members[0].client().await;
        for n in 0..5 {
            put_surely(&mut client, format!("/tail/{n}"), "1").await;
        }
    });
    members.iter_mut().for_each(Etcd::kill);
    let survivor = members[1].spec.clone();
    let (dir, before) = log_of(&survivor);
    let tail = dir.wal().tail.clone();
    let segment = tail.path.strip_prefix(&survivor.data_dir).expect("a path within");
    let mut torn = 2000u64.to_le_bytes().to_vec();
    torn.extend_from_slice(&[0x08, 0x02, 0x10]);
    let behind = [&[0; 64][..], &[0xEE; 40]].concat();
    for (name, rest, preallocated) in [
        ("full", &[][..], false),
        ("no-room", &[0; 16], false),
        ("cut-short", &torn, false),
        ("torn", &torn, true),
        ("behind", &behind, true),
    ] {
        let copy = copy_of(&survivor, name);
        let file = std::fs::File::options().write(true).open(copy.data_dir.join(segment)).expect("open the segment");
        let length = file.metadata().expect("its length").len();
        file.set_len(tail.offset).expect("cut the segment");
        std::os::unix::fs::FileExt::write_all_at(&file, rest, tail.offset).expect("write behind its end");
        if preallocated {
            file.set_len(length).expect("lengthen the segment");
        }
        drop(file);
        reset_member(&copy, Permission::TwoVoters).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let mut alone = start_alone(&copy, &before);
        assert_eq!(keys_of(&alone).len(), 6, "{name}");
        // And it starts again from what it wrote behind it.
        alone.kill();
        let mut alone = copy.start();
        assert_eq!(keys_of(&alone).len(), 6, "{name}");
        alone.stop();
    }
}
