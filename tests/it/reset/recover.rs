//! `syncer recover` on real data dirs: what it shows, does, and refuses; killed at every boundary it converges.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use syncer::boot::Notes;
use syncer::crash_point::RESET_CRASH_POINTS;
use syncer::datadir::quarantine::asides;
use syncer::disk::{Disk, RealDisk};
use syncer::ids::{ClusterId, MemberId};
use syncer::migrate::fence::{self, FencePhase, FenceRecord};
use syncer::observe::notes;
use syncer::reset::{Permission, journal, pending};

use super::lossless::joins_and_agrees;
use super::pods::{cluster, copy_of, home_of, keys_of, log_of, reset_member, start_alone};
use crate::datadir::read::add_learner;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, killed_once, program, put_surely, run, try_promote, try_remove};
use crate::support::pod::TestPod;
use crate::support::{poll, syncer};

for_each_line! {
    a_pair_s_survivor_is_shown_and_reset => check_pair,
    one_of_three_is_reset_only_when_loss_is_accepted => check_three,
    an_etcd_that_is_killed_instead_of_stopped_is_run_again => check_killed_etcd,
    killed_at_every_boundary_it_converges => check_killed,
    what_cannot_go_on_alone_is_refused => check_refused,
}

fn recover(spec: &EtcdSpec, args: &[&str]) -> Command {
    recover_with(&program("etcd", spec.line), spec, args)
}

fn recover_with(etcd: &Path, spec: &EtcdSpec, args: &[&str]) -> Command {
    let mut command = Command::new(syncer());
    command.env_clear().arg("recover").arg("--data-dir").arg(home_of(spec));
    command.arg("--etcd").arg(etcd).args(args);
    command
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[track_caller]
fn done(mut command: Command) -> String {
    let out = command.output().expect("run syncer");
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, text(&out.stderr));
    text(&out.stdout)
}

/// The error of a command that must end with this code and print nothing.
#[track_caller]
fn refused(mut command: Command, code: i32) -> String {
    let out: Output = command.output().expect("run syncer");
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{command:?}: {error}");
    assert!(out.stdout.is_empty() && !error.contains("panicked"), "{error}");
    let last = error.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("syncer: error: ") && last.contains("; "), "no remedy: {error}");
    last
}

/// Names, lengths and checksums of all files but the lock.
fn fingerprint(dir: &Path) -> BTreeMap<String, (u64, u32)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("list a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(fingerprint(&path).into_iter().map(|(inner, sum)| (format!("{name}/{inner}"), sum)));
        } else if name != ".syncer.lock" {
            let bytes = fs::read(&path).expect("read a file");
            found.insert(name, (bytes.len() as u64, crc32c::crc32c(&bytes)));
        }
    }
    found
}

fn write_some(etcd: &Etcd, count: u32) {
    run(async {
        let mut client = etcd.client().await;
        for n in 0..count {
            put_surely(&mut client, format!("/some/{n:04}"), vec![7; 200]).await;
        }
    });
}

/// A survivor of so many voters, killed together with them. Each write needed its word, so it never heard of the last
/// one's commit before that was stored.
fn survivor(line: &'static str, home: &Path, count: usize) -> EtcdSpec {
    let mut members = cluster(line, home, count, &[]);
    members.iter_mut().skip(2).for_each(Etcd::kill);
    write_some(&members[0], 30);
    members.iter_mut().for_each(Etcd::kill);
    members[1].spec.clone()
}

fn check_pair(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = survivor(line, home.path(), 2);
    let (_, before) = log_of(&spec);
    let as_found = fingerprint(&home_of(&spec));
    let id = before.cluster.to_string();
    let shown = done(recover(&spec, &[]));
    for want in [&*id, &before.member.to_string(), "a voter", "loss         none", "nothing has been changed"] {
        assert!(shown.contains(want), "{want}: {shown}");
    }
    let error = refused(recover(&spec, &["--cluster-id", "1234"]), 3);
    assert!(error.contains(&format!("is of cluster {id}, not 1234")), "{error}");
    refused(recover(&spec, &["--accept-loss"]), 2);
    assert_eq!(fingerprint(&home_of(&spec)), as_found, "looking and refusing change nothing");

    let json: Value = serde_json::from_str(&done(recover(&spec, &["--cluster-id", &id, "-o", "json"]))).expect("JSON");
    assert_eq!((&json["lossless"], &json["done"]["lossless"]), (&Value::Bool(true), &Value::Bool(true)));
    let copy = Path::new(json["done"]["copy"].as_str().expect("a path")).to_owned();
    assert_eq!(asides(&spec.data_dir).expect("list the copies"), std::slice::from_ref(&copy));
    // The copy is what was found, but for preallocated segments.
    let kept = fingerprint(&copy);
    assert!(kept.iter().all(|(name, sum)| as_found.get(&format!("etcd/{name}")) == Some(sum)), "{kept:?}");
    let wanted = as_found.keys().filter(|name| name.starts_with("etcd/") && !name.ends_with(".tmp"));
    assert_eq!(wanted.count(), kept.len(), "{kept:?} {as_found:?}");

    // Given again, there is nothing to do.
    let shown = done(recover(&spec, &["--cluster-id", &id]));
    assert!(shown.contains("nothing is to be recovered") && shown.contains("nothing has been changed"), "{shown}");
    let copy = copy_of(&spec, "overtaken");
    fs::copy(journal::path_in(&home_of(&spec)), journal::path_in(&home_of(&copy))).expect("copy the journal");
    check_overtaken(&copy, &id);
    let alone = start_alone(&spec, &before);
    assert_eq!(keys_of(&alone).len(), 31);
    for args in [&[][..], &["--cluster-id", &id]] {
        assert!(refused(recover(&spec, args), 8).contains("another process has"), "in use");
    }
}

/// Others have served since: only who gives up what they took goes on with this one, and those that it dropped stay dropped.
fn check_overtaken(spec: &EtcdSpec, id: &str) {
    let (volume, (_, before)) = (home_of(spec), log_of(spec));
    let dropped = || syncer::reset::dropped(&volume, before.member, before.cluster).expect("read the journal");
    let first = dropped();
    assert_eq!(first.len(), 1);
    let note = |notes: &mut Notes| (notes.overtaken, notes.dropped) = (Some(before.member), first.clone());
    notes::change(&RealDisk, &volume, note).expect("note");
    let as_found = fingerprint(&volume);
    let shown = done(recover(spec, &[]));
    assert!(shown.contains("others were seen to serve it") && shown.contains("nothing has been changed"), "{shown}");
    let error = refused(recover(spec, &["--cluster-id", id]), 5);
    assert!(error.contains("others were seen to serve it") && error.contains("--accept-loss"), "{error}");
    assert_eq!(fingerprint(&volume), as_found, "looking and refusing change nothing");

    let shown = done(recover(spec, &["--cluster-id", id, "--accept-loss"]));
    assert!(shown.contains("this is the only member now") && !shown.contains("nothing has been changed"), "{shown}");
    let left = notes::load(&volume).expect("read the notes");
    assert_eq!((left.overtaken, left.dropped), (None, Vec::new()), "the others are dropped anew");
    assert!(log_of(spec).1.revision.0 > 1_000_000_000, "clients have seen what the others took");
    assert_eq!(dropped(), first);
}

fn check_three(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = survivor(line, home.path(), 3);
    let (_, before) = log_of(&spec);
    assert_eq!((before.voters_max(), before.always_voter(), before.other_voters().len()), (3, true, 2));
    let as_found = fingerprint(&home_of(&spec));
    let id = before.cluster.to_string();
    let shown = done(recover(&spec, &[]));
    assert!(shown.contains("possible: 3 voters may have acknowledged writes") && shown.contains("--accept-loss"));
    let error = refused(recover(&spec, &["--cluster-id", &id]), 5);
    assert!(error.contains("3 voters may have acknowledged writes") && error.contains("--accept-loss"), "{error}");
    // As `start` would ask for it.
    let error = reset_member(&spec, Permission::TwoVoters).expect_err("not provably lossless");
    assert_eq!(syncer::exit::exit_of(&error).code(), 5, "{error:#}");
    assert_eq!(fingerprint(&home_of(&spec)), as_found, "refusing changes nothing");

    let shown = done(recover(&spec, &["--cluster-id", &id, "--accept-loss"]));
    assert!(shown.contains("this is the only member now"), "{shown}");
    let alone = start_alone(&spec, &before);
    run(async {
        let mut client = alone.client().await;
        let answer = client.put("/new", "1", None).await.expect("put");
        let now = answer.header().expect("a header").revision();
        assert!(now > 1_000_000_000 + before.revision.0, "the revision {now} was not raised");
        // Whoever goes on from a revision seen before is told to list anew.
        let old = etcd_client::GetOptions::new().with_revision(before.revision.0 + 5);
        let error = client.get("/new", Some(old)).await.expect_err("an old revision");
        assert!(error.to_string().contains("compacted"), "{error}");
        let watch = etcd_client::WatchOptions::new().with_start_revision(before.revision.0 + 5);
        let mut stream = client.watch("/new", Some(watch)).await.expect("watch");
        let mut first = stream.message().await.expect("an answer").expect("an answer");
        if !first.canceled() {
            first = stream.message().await.expect("an answer").expect("an answer");
        }
        assert!(first.canceled() && first.compact_revision() > 1_000_000_000, "{first:?}");
    });
    joins_and_agrees(&alone);
}

/// The etcd that is run with `--force-new-cluster` has taken no raft snapshot and written nothing to its backend when it ends.
fn check_killed_etcd(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = survivor(line, home.path(), 3);
    let (_, before) = log_of(&spec);
    let id = before.cluster.to_string();
    let etcd = killed_once(line, home.path());
    let shown = done(recover_with(&etcd, &spec, &["--cluster-id", &id, "--accept-loss"]));
    assert!(shown.contains("this is the only member now"), "{shown}");
    // With --force-new-cluster, until it has written all, and at the raised revision.
    let starts = fs::read_to_string(home.path().join("starts")).expect("its starts");
    assert!(starts.lines().count() >= 3, "it was not run again: {starts:?}");
    let alone = start_alone(&spec, &before);
    assert_eq!(keys_of(&alone).len(), 31);
    joins_and_agrees(&alone);
}

fn check_killed(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = survivor(line, home.path(), 3);
    let (_, before) = log_of(&spec);
    let id = before.cluster.to_string();
    let args = ["--cluster-id", id.as_str(), "--accept-loss"];
    for point in RESET_CRASH_POINTS {
        let copy = super::pods::copy_of(&spec, point);
        let mut killed = recover(&copy, &args);
        killed.env("SYNCER_CRASH_AT", point);
        let out = killed.output().expect("run syncer");
        let signal = std::os::unix::process::ExitStatusExt::signal(&out.status);
        assert_eq!(signal, Some(9), "{point} is never reached: {}", text(&out.stderr));
        let begun = pending(&home_of(&copy)).expect("read the journal").is_some();
        let early = matches!(*point, "reset-journal-begun" | "reset-half-copied" | "reset-done");
        assert_eq!(begun, !early, "{point}: whether etcd must not be started in another way");

        // The word that allowed it stands in the journal.
        let again = if begun { &args[..2] } else { &args };
        let shown = done(recover(&copy, again));
        let finished =
            if *point == "reset-done" { "nothing is to be recovered" } else { "this is the only member now" };
        assert!(shown.contains(finished), "{point}: {shown}");
        assert!(pending(&home_of(&copy)).expect("read the journal").is_none(), "{point}");
        let (_, after) = log_of(&copy);
        assert!(after.is_alone() && after.revision.0 > 1_000_000_000, "{point}: {after:?}");
        assert!(after.revision.0 < 2_000_000_000, "{point}: raised twice");
        let names: Vec<_> =
            fs::read_dir(home_of(&copy)).expect("list").map(|e| e.expect("an entry").file_name()).collect();
        let strays = names.iter().filter(|name| {
            let name = name.to_string_lossy();
            name.ends_with(".tmp") || name == "reset.tls"
        });
        assert_eq!(strays.count(), 0, "{point}: {names:?}");
        assert!(!asides(&copy.data_dir).expect("list the copies").is_empty(), "{point}");
        let mut alone = start_alone(&copy, &before);
        assert_eq!(keys_of(&alone).len(), 31, "{point}");
        alone.stop();
    }
}

/// What a refused learner is told to do instead.
fn goes_on_as_a_new_cluster(learner: &EtcdSpec) {
    let before = log_of(learner).1;
    let to = EtcdSpec::new(learner.line, "pod-1", &home_of(learner).join("etcd-new"));
    let mut command = Command::new(syncer());
    command.env_clear().arg("migrate").arg("--etcd").arg(program("etcd", learner.line));
    let copy = home_of(learner).join("learner.db");
    fs::copy(learner.data_dir.join("member/snap/db"), &copy).expect("copy the backend");
    command.arg("--from").arg(format!("snapshot:{}", copy.display()));
    command.arg("--to").arg(format!("datadir:{}", to.data_dir.display()));
    done({
        command.args(["--name=pod-1", "--peer-url", &to.peer_url(), "--bump-revision=1000", "--skip-hash-check"]);
        command
    });
    let mut etcd = to.start();
    assert_eq!(keys_of(&etcd).len(), 10);
    let revision =
        run(async { etcd.client().await.status().await.expect("status") }).header().expect("a header").revision();
    assert!(revision >= before.revision.0 + 1000, "{revision}");
    etcd.stop();
    assert_ne!(log_of(&to).1.cluster, before.cluster);
}

fn check_refused(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    // A learner, and in use.
    let pod = home.path().join("pod-0");
    fs::create_dir(&pod).expect("make a pod's directory");
    let first = EtcdSpec::new(line, "pod-0", &pod.join("etcd"));
    let mut etcd = first.start();
    let pod = home.path().join("pod-1");
    fs::create_dir(&pod).expect("make a pod's directory");
    let joiner = EtcdSpec { existing: true, ..EtcdSpec::new(line, "pod-1", &pod.join("etcd")) };
    let initial_cluster = Some(format!("pod-0={},pod-1={}", first.peer_url(), joiner.peer_url()));
    let joiner = EtcdSpec { initial_cluster, ..joiner };
    let learner_id = add_learner(&etcd, &joiner.peer_url());
    let mut learner = joiner.spawn();
    write_some(&etcd, 10);
    poll("the learner has it", PATIENCE, || {
        run(async {
            let options = etcd_client::GetOptions::new().with_serializable();
            let answer = learner.client().await.get("/some/0009", Some(options)).await.ok()?;
            (answer.count() == 1).then_some(())
        })
    });
    learner.wait_until_it_handles_signals();
    learner.stop();
    // What etcd makes of it, and why nothing of ours asks it to.
    let forced = EtcdSpec { flags: vec!["--force-new-cluster".to_owned()], ..copy_of(&joiner, "forced") };
    let (code, log) = forced.spawn().wait_until_ended();
    assert!(code != Some(0) && log.contains("panic"), "{line}: {code:?} {log}");
    let id = log_of(&joiner).1.cluster.to_string();
    for args in [&["--cluster-id", &*id][..], &["--cluster-id", &id, "--accept-loss"]] {
        let error = refused(recover(&joiner, args), 5);
        assert!(error.contains("is a learner"), "{error}");
    }
    assert!(done(recover(&joiner, &[])).contains("a learner"));
    goes_on_as_a_new_cluster(&joiner);
    let error = refused(recover(&first, &["--cluster-id", &id]), 8);
    assert!(error.contains("open"), "{error}");

    // Removed, and having applied it: made a voter first, or it would not hear of it.
    let mut learner = joiner.spawn();
    poll("the learner is promoted", PATIENCE, || {
        run(async { try_promote(&mut etcd.client().await, learner_id).await })
    });
    learner.wait_until_serving();
    poll("the member is removed", PATIENCE, || run(async { try_remove(&mut etcd.client().await, learner_id).await }));
    learner.wait_until_ended();
    let error = refused(recover(&joiner, &["--cluster-id", &id, "--accept-loss"]), 5);
    assert!(error.contains("was removed"), "{error}");

    // Damaged: the log, the backend.
    etcd.stop();
    let copy = super::pods::copy_of(&first, "damaged-wal");
    let segment = fs::read_dir(copy.data_dir.join("member/wal")).expect("list").map(|e| e.expect("an entry").path());
    let segment = segment.filter(|path| path.extension().is_some_and(|end| end == "wal")).min().expect("a segment");
    fs::File::options().write(true).open(&segment).expect("open").write_all_at(&[0xFF; 4], 300).expect("damage");
    let error = refused(recover(&copy, &["--cluster-id", &id]), 3);
    assert!(error.contains("damaged"), "{error}");
    let copy = super::pods::copy_of(&first, "damaged-db");
    fs::File::options()
        .write(true)
        .open(copy.data_dir.join("member/snap/db"))
        .expect("open")
        .set_len(20_000)
        .expect("cut");
    let error = refused(recover(&copy, &["--cluster-id", &id]), 3);
    assert!(error.contains("damaged"), "{error}");

    // What is damaged beyond use is given up only when told so, and nothing is deleted.
    fs::write(home_of(&copy).join("state.db.migrated"), "an old store").expect("write");
    let volume = home_of(&copy);
    let note = |notes: &mut Notes| (notes.set_aside, notes.superseded) = (Some(ClusterId(5)), vec![ClusterId(4)]);
    notes::change(&RealDisk, &volume, note).expect("note");
    let error = refused(recover(&copy, &["--new-cluster"]), 3);
    assert!(error.contains("--yes"), "{error}");
    // A source that was fenced for this volume must not stay so, and one that was moved is not moved again.
    let raised = FenceRecord {
        phase: FencePhase::Raised,
        source: "http://old-etcd:2379".to_owned(),
        cluster: ClusterId(8),
        alarm: MemberId(9),
        since: 1,
        members: Vec::new(),
    };
    fence::store(&RealDisk, &volume, &raised).expect("record a fence");
    let error = refused(recover(&copy, &["--new-cluster", "--yes"]), 4);
    assert!(error.contains("http://old-etcd:2379") && error.contains("lift it"), "{error}");
    let whole = fs::read(fence::path(&volume)).expect("read the record");
    fs::write(fence::path(&volume), "torn").expect("damage the record");
    let error = refused(recover(&copy, &["--new-cluster", "--yes"]), 3);
    assert!(error.contains(fence::FILE_NAME) && error.contains("etcdctl alarm disarm"), "{error}");
    fs::write(fence::path(&volume), whole).expect("put it right");
    fence::store(&RealDisk, &volume, &FenceRecord { phase: FencePhase::Kept, ..raised }).expect("keep it");
    let shown = done(recover(&copy, &["--new-cluster", "--yes"]));
    assert!(!fence::path(&volume).exists(), "the next start would refuse for its sake");
    assert!(shown.contains("forms a new, empty cluster") && shown.contains("ConfigMap"), "{shown}");
    let left = Notes { superseded: vec![ClusterId(4)], ..Notes::default() };
    assert_eq!(notes::load(&volume).expect("notes"), left);
    assert!(!copy.data_dir.exists() && home_of(&copy).join("state.db.migrated.1").exists());
    assert_eq!(asides(&copy.data_dir).expect("list").len(), 1);
    // Sound data is named.
    let error = refused(recover(&first, &["--new-cluster", "--yes"]), 3);
    assert!(error.contains(&format!("sound data of cluster {id}")), "{error}");
    done(recover(&first, &["--new-cluster", "--cluster-id", &id]));
    assert!(!first.data_dir.exists());
}

/// That this etcd, or the disk, does not let it be looked at is no sign that it is damaged.
#[test]
fn what_cannot_be_looked_at_is_not_given_up_without_its_name() {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = EtcdSpec::new("3.7", "pod-0", &home.path().join("etcd"));
    spec.start().stop();
    let as_found = fingerprint(home.path());
    for args in [&["--new-cluster", "--yes"][..], &["--new-cluster"]] {
        let error = refused(recover(&EtcdSpec { line: "3.5", ..spec.clone() }, args), 3);
        assert!(error.contains("written by etcd 3.7") && error.contains("use that version of etcd"), "{error}");
        assert!(!error.contains("add --yes"), "it is sound: {error}");
    }
    let wal = spec.data_dir.join("member/wal");
    RealDisk.rename(&wal, &home.path().join("wal")).expect("move the log away");
    std::os::unix::fs::symlink("wal", &wal).expect("make a loop");
    let error = refused(recover(&spec, &["--new-cluster", "--yes"]), 1);
    assert!(error.contains("cannot be told") && error.contains("nothing has been changed"), "{error}");
    fs::remove_file(&wal).expect("remove the loop");
    RealDisk.rename(&home.path().join("wal"), &wal).expect("put the log back");
    assert_eq!(fingerprint(home.path()), as_found, "refusing changes nothing: look at what recover set aside");
}

/// `SYNCER_KILLS` is the number of random instants (default 6); their seed is printed, and `SYNCER_SEED` sets it.
#[test]
fn killed_at_random_instants_it_converges() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("SYNCER_SEED").unwrap_or_else(rand::random);
    println!("SYNCER_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().expect("make a directory");
    let spec = survivor("3.6", home.path(), 3);
    let (_, before) = log_of(&spec);
    let id = before.cluster.to_string();
    let args = ["--cluster-id", id.as_str(), "--accept-loss"];
    // How long it takes undisturbed, to spread the kills over.
    let begun = Instant::now();
    done(recover(&super::pods::copy_of(&spec, "whole"), &args));
    let whole = begun.elapsed();
    for round in 0..number("SYNCER_KILLS").unwrap_or(6) {
        let copy = super::pods::copy_of(&spec, &format!("round-{round}"));
        // Twice, so that what goes on after a kill is killed too.
        for _ in 0..2 {
            let mut killed =
                recover(&copy, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run syncer");
            std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.0)));
            killed.kill().expect("kill syncer");
            killed.wait().expect("wait for syncer");
        }
        let shown = poll("it comes to an end", PATIENCE, || {
            // The etcd of the killed one may need a moment to go.
            let out = recover(&copy, &args).output().expect("run syncer");
            assert!(matches!(out.status.code(), Some(0 | 8)), "round {round}: {}", text(&out.stderr));
            out.status.success().then(|| text(&out.stdout))
        });
        assert!(shown.contains("the only member"), "round {round}: {shown}");
        let (_, after) = log_of(&copy);
        assert!(after.is_alone() && after.revision.0 > 1_000_000_000, "round {round}: {after:?}");
        assert!(after.revision.0 < 2_000_000_000, "round {round}: raised twice");
        let mut alone = start_alone(&copy, &before);
        assert_eq!(keys_of(&alone).len(), 31, "round {round}");
        alone.stop();
        fs::remove_dir_all(home_of(&copy)).expect("make room for the next");
    }
}

/// A reset that was killed amid is finished by `syncer start`, before etcd starts as usual.
#[test]
fn start_finishes_an_interrupted_reset() {
    let home = tempfile::tempdir().expect("make a directory");
    let spec = survivor("3.6", home.path(), 2);
    let (_, before) = log_of(&spec);
    let id = before.cluster.to_string();
    let mut killed = recover(&spec, &["--cluster-id", &id]);
    killed.env("SYNCER_CRASH_AT", "reset-appended");
    assert!(!killed.output().expect("run syncer").status.success());
    assert!(pending(&home_of(&spec)).expect("read the journal").is_some());

    let mut pod = TestPod::new();
    fs::remove_dir(pod.data()).expect("make room for the volume");
    fs::create_dir(pod.data()).expect("make the volume");
    super::pods::copy_tree(&home_of(&spec), &pod.data());
    pod.start("none", &[]);
    pod.wait_serving();
    let (cluster, members, keys) = pod.etcd(async |mut client| {
        let list = client.member_list().await.expect("list members");
        let keys = client.get("/some/", Some(etcd_client::GetOptions::new().with_prefix())).await.expect("get").count();
        (list.header().expect("a header").cluster_id(), list.members().len(), keys)
    });
    assert_eq!((cluster, members, keys), (before.cluster.0, 1, 30));
    assert!(pending(&pod.data()).expect("read the journal").is_none());
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());

    // A journal that cannot be read is not passed over.
    let journal = pod.data().join("reset.journal");
    fs::write(&journal, b"SYNCRST1 and no more").expect("damage the journal");
    let (code, log) = pod.run_to_end("none", &[]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("reset.journal is not a whole journal"), "{log}");
    let found = EtcdSpec { data_dir: pod.data().join("etcd"), ..spec };
    let error = refused(recover(&found, &[]), 3);
    assert!(error.contains("reset.journal is not a whole journal") && error.contains("etcd.aside-TIME"), "{error}");
    let record = pod.data().join("restore.journal");
    fs::write(&record, "no record").expect("damage the record of a restore");
    let error = refused(recover(&found, &["--cluster-id", &id]), 3);
    assert!(error.contains("the record of a staged restore cannot be read"), "{error}");
    fs::remove_file(&record).expect("remove the record");
    // Nor are notes: neither by the start nor by this command.
    fs::remove_file(&journal).expect("remove the journal");
    fs::write(pod.data().join(notes::FILE_NAME), "{").expect("damage the notes");
    let (code, log) = pod.run_to_end("none", &[]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("syncer.notes.json holds no notes") && log.contains("put the file back"), "{log}");
    for args in [&[][..], &["--cluster-id", &id]] {
        let error = refused(recover(&found, args), 3);
        assert!(error.contains("syncer.notes.json holds no notes") && error.contains("put the file back"), "{error}");
    }
}
