//! `syncer snapshot` and snapshots on a schedule, against real etcd and its own tools.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use syncer::ids::ClusterId;
use syncer::snapshot::name::SnapshotName;
use time::OffsetDateTime;

use crate::migrate::foretold;
use crate::support::etcd::{Etcd, EtcdSpec, LINES, output, program, run};
use crate::support::pod::TestPod;
use crate::support::{poll, shows, syncer, terminal};

mod dry_run;
mod place;
mod pods;

/// A snapshot that is due, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn snapshot(args: &[&str]) -> Command {
    let mut command = Command::new(syncer());
    command.arg("snapshot").args(args).env_clear();
    command
}

fn ran(command: &mut Command) -> Output {
    command.output().expect("syncer runs")
}

fn error_of(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}", error_of(out));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// The files in a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).map_or(Vec::new(), |dir| dir.map(|e| e.unwrap().path()).collect());
    files.sort();
    files
}

/// Some transactions of several keys, deletions, a lease and a compaction.
async fn fill(mut etcd: etcd_client::Client) {
    for n in 0..200 {
        etcd.put(format!("/registry/pods/default/{}", n % 50), vec![n as u8; 3000], None).await.expect("put");
    }
    let lease = etcd.lease_grant(3600, None).await.expect("a lease").id();
    let leased = etcd_client::PutOptions::new().with_lease(lease);
    etcd.put("/registry/events/a", "an event", Some(leased)).await.expect("put");
    etcd.delete("/registry/pods/default/7", None).await.expect("delete");
    etcd.compact(100, None).await.expect("compact");
}

#[test]
fn etcds_own_tools_read_ours_and_we_theirs() {
    for line in LINES {
        let home = tempfile::tempdir().unwrap();
        let etcd = EtcdSpec::new(line, "a", &home.path().join("etcd")).start();
        run(async { fill(etcd.client().await).await });
        let place = home.path().join("backups");
        let url = etcd.spec.client_url();
        let save = ["save", "--to", text(&place), "--endpoint", &url, "--name", "vc", "-o", "json"];
        let saved = json(&ran(&mut snapshot(&save)));
        let file = place.join(saved["snapshot"]["name"].as_str().expect("a name"));
        assert_eq!(files(&place), std::slice::from_ref(&file), "{line}");

        let status = |file: &Path| -> Value {
            let mut status = Command::new(program("etcdutl", line));
            serde_json::from_str(&output(status.args(["snapshot", "status", text(file), "-w", "json"]))).unwrap()
        };
        let verified = |file: &Path| json(&ran(&mut snapshot(&["verify", text(file), "-o", "json"])));
        let theirs = home.path().join("theirs.db");
        etcd.ctl(&["snapshot", "save", text(&theirs)]);
        for file in [&file, &theirs] {
            let (ours, etcds) = (verified(file), status(file));
            let hash = format!("{:x}", etcds["hash"].as_u64().expect("a hash"));
            assert_eq!((&ours["hash"], &ours["revision"]), (&Value::from(hash), &etcds["revision"]), "{line}: {ours}");
            assert_eq!((&ours["checksum"], &ours["members"][0]), (&Value::from(true), &Value::from("a")));
        }
        assert_eq!(saved["snapshot"]["hash"], verified(&file)["hash"]);

        // What is restored from ours is what there was.
        let restored = home.path().join("restored");
        let spec = EtcdSpec::new(line, "a", &restored);
        output(Command::new(program("etcdutl", line)).args(["snapshot", "restore", text(&file)]).args([
            format!("--data-dir={}", restored.display()),
            "--name=a".to_owned(),
            format!("--initial-cluster=a={}", spec.peer_url()),
            format!("--initial-advertise-peer-urls={}", spec.peer_url()),
        ]));
        let keys = |etcd: &Etcd| etcd.ctl(&["get", "", "--from-key", "-w", "fields"]);
        let without_header =
            |text: String| text.lines().filter(|l| !l.contains("ID")).map(str::to_owned).collect::<Vec<_>>();
        let before = without_header(keys(&etcd));
        let again = spec.start();
        let lines = |all: &[String]| {
            all.iter().filter(|l| l.starts_with("\"Key") || l.starts_with("\"Mod")).cloned().collect::<Vec<_>>()
        };
        assert_eq!(lines(&without_header(keys(&again))), lines(&before), "{line}");
        assert!(lines(&before).len() > 90, "{before:?}");
    }
}

#[test]
fn a_restored_store_goes_on_above_what_its_clients_have_seen() {
    let home = tempfile::tempdir().unwrap();
    let mut etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    run(async { fill(etcd.client().await).await });
    let place = home.path().join("backups");
    let url = etcd.spec.client_url();
    let saved = json(&ran(&mut snapshot(&["save", "--to", text(&place), "--endpoint", &url, "-o", "json"])));
    let revision = saved["snapshot"]["revision"].as_i64().expect("a revision");
    let keys = async |etcd: &Etcd| {
        let all = etcd_client::GetOptions::new().with_from_key();
        let answer = etcd.client().await.get([0], Some(all)).await.expect("a range");
        let keys: Vec<_> = answer.kvs().iter().map(|kv| (kv.key().to_vec(), kv.mod_revision(), kv.version())).collect();
        (answer.header().expect("a header").revision(), keys)
    };
    let before = run(keys(&etcd));
    assert_eq!(before.0, revision);
    // What comes after the snapshot is lost, and clients have seen it.
    run(async { etcd.client().await.put("/registry/pods/default/lost", "x", None).await.expect("put") });
    etcd.stop();

    let spec = EtcdSpec::new("3.6", "a", &home.path().join("restored"));
    let from = format!("snapshot:{}", place.join(saved["snapshot"]["name"].as_str().unwrap()).display());
    let to = format!("datadir:{}", spec.data_dir.display());
    let mut migrate = Command::new(syncer());
    migrate.args(["migrate", "--from", &from, "--to", &to, "--bump-revision=1000", "--verify=full", "--name=a"]);
    migrate.args([format!("--peer-url={}", spec.peer_url()), format!("--client-url={}", spec.client_url())]);
    migrate.args(["-o", "json", "--etcd"]).arg(program("etcd", "3.6"));
    let mut dry = Command::new(syncer());
    let dry = json(&ran(dry.args(migrate.get_args()).arg("--dry-run")));
    let moved = json(&ran(&mut migrate));
    foretold(&dry, &moved);
    assert_eq!((&dry["sourceRevision"], &dry["revision"]), (&revision.into(), &(revision + 1000).into()), "{dry}");
    let etcd = spec.start();
    let after = run(keys(&etcd));
    assert_eq!(after, (revision + 1000, before.1));
    run(async {
        let mut client = etcd.client().await;
        for seen in [revision, revision + 1, revision + 999] {
            let then = etcd_client::GetOptions::new().with_revision(seen);
            let error = client.get("/registry/pods/default/1", Some(then)).await.expect_err("it is compacted");
            assert!(error.to_string().contains("compacted"), "{error}");
        }
        let put = client.put("/registry/pods/default/new", "x", None).await.expect("put");
        assert_eq!(put.header().expect("a header").revision(), revision + 1001);
    });
}

#[test]
fn a_snapshot_that_is_not_whole_has_no_name_and_a_damaged_one_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    run(async { fill(etcd.client().await).await });
    let place = home.path().join("backups");
    let url = etcd.spec.client_url();
    let save = ["save", "--to", text(&place), "--endpoint", &url, "--name", "vc", "-o", "json"];
    for point in ["snapshot-half-written", "snapshot-before-commit"] {
        let out = ran(snapshot(&save).env("SYNCER_CRASH_AT", point));
        assert_eq!(out.status.code(), None, "{point}: {}", error_of(&out));
        let left = files(&place);
        assert!(left.iter().all(|file| text(file).ends_with(".part")) && left.len() == 1, "{point}: {left:?}");
        assert_eq!(
            json(&ran(&mut snapshot(&["list", "--from", text(&place), "-o", "json"])))["snapshots"],
            Value::Array(vec![])
        );
    }
    let saved = json(&ran(&mut snapshot(&save)));
    let file = place.join(saved["snapshot"]["name"].as_str().unwrap());
    assert_eq!(files(&place), std::slice::from_ref(&file), "what killed saves left is gone");

    let whole = std::fs::read(&file).unwrap();
    let broken = home.path().join("broken.db");
    let mut changed = whole.clone();
    changed[20_000] ^= 1;
    let (cut, bare) = (&whole[..whole.len() - 4096], &whole[..whole.len() - 32]);
    for (bytes, want) in [
        (&changed[..], "damaged"),
        (cut, "damaged"),
        (&whole[..5000], "cut off"),
        (bare, "--skip-hash-check"),
        (&whole[..8192], "was cut off"),
        (b"", "cut off"),
    ] {
        std::fs::write(&broken, bytes).unwrap();
        let out = ran(&mut snapshot(&["verify", text(&broken)]));
        assert_eq!(out.status.code(), Some(4), "{}", error_of(&out));
        assert!(error_of(&out).contains(want) && error_of(&out).contains("broken.db"), "{want}: {}", error_of(&out));
    }
    std::fs::write(&broken, bare).unwrap();
    let bare = json(&ran(&mut snapshot(&["verify", text(&broken), "--skip-hash-check", "-o", "json"])));
    assert_eq!((&bare["checksum"], &bare["hash"]), (&Value::from(false), &saved["snapshot"]["hash"]));
    // A move refuses it alike; one that takes it as it is, and is killed, goes on when it is given again.
    let volume = home.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    for to in [format!("datadir:{}", volume.join("etcd").display()), format!("sqlite:{}", volume.join("db").display())]
    {
        let kill = if to.starts_with("datadir") { "migrate-written" } else { "back-written" };
        let moves = |more: &[&str]| {
            let mut migrate = Command::new(syncer());
            migrate.args(["migrate", "-o", "json", "--from", &format!("snapshot:{}", text(&broken)), "--to", &to]);
            migrate.args(more).arg("--etcd").arg(program("etcd", "3.6"));
            migrate
        };
        let refused = |more: &[&str]| {
            let out = ran(&mut moves(more));
            assert_eq!(out.status.code(), Some(4), "{to} {more:?}: {}", error_of(&out));
            assert!(error_of(&out).contains("add --skip-hash-check"), "{to} {more:?}: {}", error_of(&out));
        };
        let before = files(&volume);
        refused(&[]);
        refused(&["--dry-run"]);
        assert_eq!(files(&volume), before, "{to}: something is left of a move that was refused");
        let killed = ran(moves(&["--skip-hash-check"]).env("SYNCER_CRASH_AT", kill));
        assert_eq!(killed.status.code(), None, "{to}: {}", error_of(&killed));
        refused(&[]);
        let dry = json(&ran(&mut moves(&["--skip-hash-check", "--dry-run"])));
        let moved = json(&ran(&mut moves(&["--skip-hash-check"])));
        foretold(&dry, &moved);
        assert_eq!(
            (&moved["sourceRevision"], &moved["warnings"]["noChecksums"]["count"]),
            (&saved["revision"], &1.into())
        );
        // What is done is not read again.
        assert_eq!(json(&ran(&mut moves(&[])))["movedBefore"], true, "{to}");
    }
    // What is no file is refused alike by whoever reads a snapshot.
    let (nothing, below) = (home.path().join("none"), broken.join("none"));
    let to = format!("datadir:{}", home.path().join("target").display());
    for (file, want) in [
        (nothing.as_path(), "there is nothing of this name"),
        (below.as_path(), "there is nothing of this name"),
        (place.as_path(), "it is not a regular file"),
    ] {
        let mut migrate = Command::new(syncer());
        migrate.args(["migrate", "--dry-run", "--from", &format!("snapshot:{}", file.display()), "--to", &to]);
        for command in [&mut snapshot(&["verify", text(file)]), &mut migrate] {
            let out = ran(command);
            assert_eq!(out.status.code(), Some(4), "{command:?}: {}", error_of(&out));
            assert!(error_of(&out).contains(&format!("{} is not read: {want}", file.display())), "{}", error_of(&out));
        }
    }
}

/// On a terminal by a bar, elsewhere, and on one that nothing is known of, by log lines: an etcd that is halted for so long
/// keeps all of them waiting.
#[test]
fn a_save_shows_how_far_it_is() {
    let home = tempfile::tempdir().unwrap();
    let etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    run(async { fill(etcd.client().await).await });
    let pid = Pid::from_raw(i32::try_from(etcd.pid()).expect("a pid fits"));
    kill(pid, Signal::SIGSTOP).expect("halt etcd");
    let url = etcd.spec.client_url();
    let save = |name: &str, errors: Stdio| {
        let place = home.path().join(name);
        let mut save = snapshot(&["save", "--to", text(&place), "--endpoint", &url, "--name", "vc", "-o", "json"]);
        save.stdout(Stdio::piped()).stderr(errors);
        save
    };
    let ((mut bar, for_bar), (mut bare, for_bare)) = (terminal(), terminal());
    let log = home.path().join("save.log");
    let into_log = std::fs::File::create(&log).unwrap();
    let saves = [
        save("bar", for_bar.into()).env("TERM", "xterm").spawn().expect("syncer starts"),
        save("bare", for_bare.into()).spawn().expect("syncer starts"),
        save("log", into_log.into()).spawn().expect("syncer starts"),
    ];
    shows(&mut bar, "    save ");
    shows(&mut bare, "the work goes on");
    poll("a line is logged", SOON, || {
        std::fs::read_to_string(&log).unwrap().contains("the work goes on").then_some(())
    });
    kill(pid, Signal::SIGCONT).expect("let etcd go on");
    for save in saves {
        let saved = json(&save.wait_with_output().expect("syncer ends"));
        assert!(saved["seconds"].as_f64() > Some(1.0) && saved["snapshot"]["bytes"].as_u64() > Some(0), "{saved}");
    }
}

#[test]
fn bad_places_and_endpoints_are_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    let (url, nobody) = (etcd.spec.client_url(), "http://127.0.0.1:1");
    for (args, code, want) in [
        (vec!["save", "--to", text(&file), "--endpoint", &url], 2, "cannot be kept in"),
        (vec!["save", "--to", "ftp://x/y", "--endpoint", &url], 2, "ftp://"),
        (vec!["save", "--to", text(home.path()), "--endpoint", nobody], 1, nobody),
        (vec!["save", "--to", text(home.path()), "--endpoint", "https://127.0.0.1:1"], 2, "needs the CA"),
        (vec!["save", "--to", text(home.path()), "--keep", "0"], 2, "--keep"),
        (vec!["save"], 2, "--to"),
        (vec!["list", "--from", text(&file)], 1, text(&file)),
        (vec![], 2, "no command is given"),
    ] {
        let out = ran(&mut snapshot(&args));
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", error_of(&out));
        assert!(error_of(&out).contains(want), "{args:?}: {}", error_of(&out));
    }
    let mut of_bucket = snapshot(&["list", "--from", "s3://bucket/place"]);
    let out = ran(of_bucket.env("AWS_ENDPOINT_URL", "http://somebody:hidden@127.0.0.1:1"));
    let error = error_of(&out);
    assert!(out.status.code() == Some(2) && error.contains("AWS_ENDPOINT_URL has a user"), "{error}");
    assert!(!error.contains("hidden"), "{error}");
    let none = home.path().join("none");
    let out = ran(&mut snapshot(&["list", "--from", text(&none)]));
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("no snapshots in"));
}

/// The name of a snapshot that this pod's etcd cluster could have had in 2024.
pub fn own_of_2024(pod: &TestPod) -> String {
    let cluster =
        pod.etcd(async |mut etcd| etcd.status().await.expect("a status").header().expect("a header").cluster_id());
    let taken = OffsetDateTime::from_unix_timestamp(1_704_153_600).expect("a time");
    SnapshotName::new("default.syncer", ClusterId(cluster), taken).to_string()
}

/// Neither what may lack writes nor what may be damaged takes an older one's place.
#[test]
fn a_member_without_a_quorum_is_not_saved_unasked_and_a_corrupt_one_removes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let etcd = EtcdSpec::new("3.6", "a", &home.path().join("etcd")).start();
    run(async { fill(etcd.client().await).await });
    let (url, place) = (etcd.spec.client_url(), home.path().join("kept"));
    let save = |more: &[&str]| {
        let base = ["save", "--to", text(&place), "--endpoint", &url, "--name", "vc"];
        ran(&mut snapshot(&[&base[..], more].concat()))
    };
    assert!(save(&["--keep", "1"]).status.success());
    let alarm = |action| {
        run(async {
            let mut client = etcd.client().await;
            client.alarm(action, etcd_client::AlarmType::Corrupt, None).await.expect("the alarm");
        })
    };
    alarm(etcd_client::AlarmAction::Activate);
    let out = save(&["--keep", "1", "-o", "json"]);
    assert!(out.status.code() == Some(1) && error_of(&out).contains("alarm CORRUPT"), "{}", error_of(&out));
    // It is saved all the same, and programs are told so.
    let report: Value = serde_json::from_slice(&out.stdout).expect("a report");
    assert!(report["error"].as_str().is_some_and(|error| error.contains("alarm CORRUPT")), "{report}");
    assert!(Path::new(report["target"].as_str().expect("a path")).is_file(), "{report}");
    assert_eq!(files(&place).len(), 2, "an older one was removed");
    alarm(etcd_client::AlarmAction::Deactivate);

    // A voter that is never there.
    run(async { etcd.client().await.member_add(["http://127.0.0.1:1"], None).await.map(|_| ()) }).expect("add");
    let out = save(&[]);
    assert!(out.status.code() == Some(4) && error_of(&out).contains("reaches no quorum"), "{}", error_of(&out));
    assert_eq!(files(&place).len(), 2);
    assert!(save(&["--stale"]).status.success());
    assert_eq!(files(&place).len(), 3);
}

/// The first is of the start; the clock brings the others, and the oldest goes.
#[test]
fn the_schedule_goes_on_by_itself() {
    let mut pod = TestPod::new();
    let place = pod.data().join("kept");
    std::fs::create_dir(&place).unwrap();
    let snapshots = format!("schedule: '* * * * *'\n    keep: 2\n    target: {}", place.display());
    pod.values(&format!("embeddedEtcd:\n  enabled: true\n  snapshots:\n    {snapshots}\n"));
    pod.start("none", &[]);
    let kept = || files(&place).into_iter().filter(|file| text(file).ends_with(".db")).collect::<Vec<_>>();
    let mut seen = std::collections::BTreeSet::new();
    poll("a snapshot of the start, and of each of two minutes after it", Duration::from_secs(200), || {
        pod.assert_running();
        seen.extend(kept());
        (seen.len() >= 3).then_some(())
    });
    poll("the oldest is gone", SOON, || (kept().len() == 2).then_some(()));
    assert!(pod.stop().success());
}

/// Nobody tells then that the settings change.
#[test]
fn a_schedule_of_flags_is_kept_without_a_values_file() {
    let mut pod = TestPod::new();
    let place = pod.data().join("kept");
    std::fs::create_dir(&place).unwrap();
    let target = format!("--snapshot-target={}", place.display());
    let with = pod.command("none", &["--etcd-embedded=true", "--snapshot-schedule=@yearly", &target]);
    let mut command = Command::new(syncer());
    command.args(with.get_args().filter(|arg| !arg.to_string_lossy().starts_with("--values=")));
    command.stdin(Stdio::null());
    pod.spawn(command);
    poll("the first snapshot is taken", SOON, || {
        pod.assert_running();
        files(&place).iter().any(|file| text(file).ends_with(".db")).then_some(())
    });
    assert!(pod.stop().success());
}

#[test]
fn a_pod_keeps_snapshots_by_its_schedule_and_makes_up_for_a_missed_one() {
    let mut pod = TestPod::new();
    let place = pod.data().join("kept");
    std::fs::create_dir(&place).unwrap();
    let old = ["default.syncer-20260101T000000Z.db", "default.syncer-20260102T000000Z.db"].map(|name| place.join(name));
    let lost = SnapshotName::new("default.syncer", ClusterId(0xaa), OffsetDateTime::UNIX_EPOCH).to_string();
    let foreign = ["other.syncer-20200101T000000Z.db", "syncer-20200101T000000Z.db", "notes.txt", &lost];
    let foreign = foreign.map(|name| place.join(name));
    for file in old.iter().chain(&foreign) {
        std::fs::write(file, "x").unwrap();
    }
    let values = |keep: u32| {
        let place = place.display();
        format!(
            "embeddedEtcd:\n  enabled: true\n  snapshots:\n    schedule: '@yearly'\n    keep: {keep}\n    target: {place}\n"
        )
    };
    pod.values("embeddedEtcd:\n  enabled: true\n");
    pod.start("none", &[]);
    pod.wait_serving();
    pod.etcd(async |etcd| fill(etcd).await);
    // The newest is of January the 2nd of a year that is over: one was missed. It acts without a restart.
    std::fs::remove_file(&old[1]).unwrap();
    std::fs::write(place.join(own_of_2024(&pod)), "x").unwrap();
    std::fs::remove_file(&old[0]).unwrap();
    pod.values(&values(1));
    let kept = poll("a snapshot is kept, and the old one is gone", SOON, || {
        let mut kept: Vec<_> = files(&place).into_iter().filter(|file| !foreign.contains(file)).collect();
        let kept = (kept.len() == 1).then(|| kept.remove(0))?;
        let named = text(&kept).ends_with(".db") && !text(&kept).contains("2024");
        named.then_some(kept)
    });
    let found = json(&ran(&mut snapshot(&["verify", text(&kept), "-o", "json"])));
    assert!(found["revision"].as_u64() >= Some(203), "{found}");
    assert!(foreign.iter().all(|file| file.exists()), "files of others are let be");
    assert!(pod.log().contains("snapshot kept"), "{}", pod.log());

    // By hand, with the pod's own certificates.
    let port = format!("--client-port={}", pod.client_port());
    let data = format!("--data-dir={}", pod.data().display());
    let out = ran(&mut snapshot(&["save", "--to", text(&place), &port, &data, "-o", "json"]));
    let by_hand = json(&out);
    assert!(by_hand["snapshot"]["revision"].as_u64() >= found["revision"].as_u64(), "{by_hand}");
    assert!(pod.stop().success());
}

#[test]
fn a_place_that_fails_stops_nothing() {
    let mut pod = TestPod::new();
    let file = pod.data().join("a-file");
    std::fs::write(&file, "x").unwrap();
    pod.values(&format!(
        "embeddedEtcd:\n  enabled: true\n  snapshots:\n    schedule: '* * * * *'\n    target: {}\n",
        file.display()
    ));
    pod.start("none", &[]);
    pod.wait_serving();
    poll("it says what fails", SOON, || pod.log().contains("no snapshot was kept").then_some(()));
    assert!(pod.log().contains("a-file"), "{}", pod.log());
    pod.assert_running();
    assert!(pod.stop().success());
}
