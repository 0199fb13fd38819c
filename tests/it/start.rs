//! `syncer start` from the outside: one pod with real etcd, its refusals, and being killed at any instant.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use syncer::disk::{Disk, RealDisk};

use crate::support::pod::{Dump, TestPod, children_of};
use crate::support::poll;

const STORE: &str = "/tests/fixtures/run/state.db";

/// What the shipped store holds, read from SQLite itself: live rows with value, create and mod revision, and MAX(id).
fn expected() -> Dump {
    rows_of(Path::new(&format!("{}{STORE}", env!("CARGO_MANIFEST_DIR"))))
}

/// The same of a store in which nothing has been written that only its `-wal` has.
fn rows_of(path: &Path) -> Dump {
    let path = path.display();
    // Immutable: nothing may be written beside a file of the repository, and its -wal is empty.
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let db = rusqlite::Connection::open_with_flags(format!("file:{path}?immutable=1"), flags).expect("open");
    let revision = db.query_row("SELECT MAX(id) FROM kine", [], |row| row.get(0)).expect("MAX(id)");
    let mut rows = db
        .prepare(
            "SELECT CAST(name AS BLOB), value, CASE created WHEN 1 THEN id ELSE create_revision END, id FROM kine
             WHERE id IN (SELECT MAX(id) FROM kine GROUP BY name) AND deleted = 0
               AND name NOT IN ('compact_rev_key', 'compact_rev_key_apiserver') AND name NOT LIKE 'gap-%'
             ORDER BY name",
        )
        .expect("query");
    let keys = rows
        .query_map([], |row| {
            let value: Option<Vec<u8>> = row.get(1)?;
            Ok((row.get(0)?, value.unwrap_or_default(), row.get(2)?, row.get(3)?))
        })
        .expect("rows")
        .collect::<Result<Vec<_>, _>>()
        .expect("rows");
    assert!(keys.len() > 150, "the shipped store holds a cluster's objects: {}", keys.len());
    Dump { revision, keys }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .expect("list the volume")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn an_empty_volume_forms_a_cluster_that_survives_stops_and_kills() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    pod.etcd(async |mut etcd| etcd.put("/a", "1", None).await.expect("put"));
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.start("none", &[]);
    pod.wait_serving();
    let before = pod.dump();
    assert_eq!(before.keys.len(), 1);
    pod.kill9();
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.dump(), before);
}

/// A data dir of another name (a laptop's, another tool's) opens, and its only member is listed where it is now: nobody
/// could join it otherwise.
#[test]
fn a_lone_member_is_listed_at_its_own_peer_url() {
    let mut pod = TestPod::new();
    let listed = |pod: &TestPod| {
        let list = pod.etcd(async |mut etcd| etcd.member_list().await.expect("a list"));
        let [member] = list.members() else { panic!("members: {:?}", list.members()) };
        member.peer_urls().to_vec()
    };
    pod.start("none", &[]);
    pod.wait_serving();
    let before = listed(&pod);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let port = pod.move_peer_port();
    pod.start("none", &[]);
    pod.wait_serving();
    assert!(!before.contains(&format!("https://localhost:{port}")), "{before:?}");
    poll("its own URL is listed", Duration::from_secs(60), || {
        (listed(&pod) == [format!("https://localhost:{port}")]).then_some(())
    });
}

#[test]
fn a_store_is_moved_with_every_revision_and_goes_on() {
    let mut pod = TestPod::with_small_store();
    pod.start("none", &[]);
    pod.wait_serving();
    let want = expected();
    assert_eq!(pod.dump(), want);
    assert!(pod.data().join("state.db.migrated").exists());
    assert!(!pod.data().join("state.db").exists());
    pod.etcd(async |mut etcd| {
        let put = etcd.put("/registry/after", "x", None).await.expect("put");
        assert_eq!(put.header().expect("header").revision(), want.revision + 1);
        let old = etcd_client::GetOptions::new().with_revision(want.revision - 1);
        let error = etcd.get("/registry/after", Some(old)).await.expect_err("older revisions are compacted");
        assert!(error.to_string().contains("compacted"), "{error}");
    });
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.dump().revision, want.revision + 1, "the second start imported again");
}

/// Where k3s and k0s virtual clusters have theirs.
/// As docs/migration.md has it: what was written since is lost, and nothing else.
#[test]
fn undone_as_documented_the_store_is_as_it_was_and_can_be_moved_again() {
    let mut pod = TestPod::with_small_store();
    pod.start("none", &[]);
    pod.wait_serving();
    pod.etcd(async |mut etcd| etcd.put("/registry/after", "x", None).await.expect("put"));
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let away = tempfile::tempdir_in(pod.data().parent().expect("a folder")).expect("a folder");
    for name in ["etcd", "migration.journal"] {
        RealDisk.rename(&pod.data().join(name), &away.path().join(name)).expect("move it away");
    }
    for suffix in ["", "-wal", "-shm"] {
        let [from, to] = ["state.db.migrated", "state.db"].map(|name| pod.data().join(format!("{name}{suffix}")));
        if from.exists() {
            RealDisk.rename(&from, &to).expect("rename it back");
        }
    }
    assert_eq!(rows_of(&pod.data().join("state.db")), expected());
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.dump(), expected());
}

#[test]
fn a_store_at_a_distros_own_path_is_moved() {
    for path in ["server/db/state.db", "k0s/db/state.db"] {
        let mut pod = TestPod::with_small_store();
        let place = pod.data().join(path);
        std::fs::create_dir_all(place.parent().expect("a folder")).expect("make the folder");
        RealDisk.rename(&pod.data().join("state.db"), &place).expect("move the store there");
        pod.start("none", &[]);
        pod.wait_serving();
        assert_eq!(pod.dump(), expected(), "{path}");
        assert!(place.with_extension("db.migrated").exists() && !place.exists(), "{path}");
    }
}

/// The move is a one-way path: what can be known to fail is refused before it.
#[test]
fn what_cannot_run_is_refused_before_the_store_is_moved() {
    let enabled = "embeddedEtcd:\n  enabled: true\n";
    for (values, distro, extra, want) in [
        ("", "none", &["--", "/no/such/program"][..], "correct the command after `--`"),
        ("", "k3s", &[], "there is no program"),
        ("  extraArgs: [--nonexistent-flag=3]\n", "none", &[], "flag provided but not defined: -nonexistent-flag"),
        ("  extraArgs: [--max-txn-ops=many]\n", "none", &[], "correct etcd's extraArgs in the values"),
    ] {
        let mut pod = TestPod::with_small_store();
        pod.values(&format!("{enabled}{values}"));
        let before = std::fs::read(pod.data().join("state.db")).expect("the store");
        let (code, text) = pod.run_to_end(distro, extra);
        assert_eq!(code, Some(2), "{want}: {text}");
        assert!(text.contains(want), "{want}: {text}");
        assert!(std::fs::read(pod.data().join("state.db")).expect("the store") == before, "{want}: it was changed");
        assert!(!pod.data().join("etcd").exists(), "{want}: {:?}", names_in(&pod.data()));
    }
}

#[test]
fn killed_at_every_crash_point_it_ends_in_the_same_state() {
    let want = expected();
    for point in syncer::crash_point::CRASH_POINTS {
        // Only this one needs an API server.
        let wrapped: &[&str] =
            if point.starts_with("start-apiserver") { &["--", "/bin/sh", "-c", "exec sleep 600"] } else { &[] };
        let mut pod = TestPod::with_small_store();
        let mut command = pod.command("none", wrapped);
        command.env("SYNCER_CRASH_AT", point);
        pod.spawn(command);
        let status = pod.wait_end(Duration::from_secs(60));
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "crash point {point} is never reached: {status}\n{}",
            pod.log()
        );
        pod.start("none", &[]);
        pod.wait_serving();
        assert_eq!(pod.dump(), want, "after a kill at {point}");
        assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
        let names = names_in(&pod.data());
        assert!(names.contains(&"state.db.migrated".into()), "after a kill at {point}: {names:?}");
        assert!(
            !names.iter().any(|n| n == "state.db" || n.contains("staging") || n == "state.db-wal"),
            "after a kill at {point}: {names:?}"
        );
    }
}

#[test]
fn killed_at_random_instants_it_ends_in_the_same_state() {
    let want = expected();
    let kills: u32 = if std::env::var_os("SYNCER_QUICK").is_some() { 5 } else { 25 };
    // How long an undisturbed run takes, to spread the kills over.
    let mut pod = TestPod::with_small_store();
    let started = Instant::now();
    pod.start("none", &[]);
    pod.wait_serving();
    let whole = started.elapsed();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());

    let mut pod = TestPod::with_small_store();
    for i in 0..kills {
        if pod.data().join("state.db.migrated").exists() {
            pod.start("none", &[]);
            pod.wait_serving();
            assert_eq!(pod.dump(), want, "after kill {i}");
            pod.kill9();
            pod = TestPod::with_small_store();
        }
        // Weyl's sequence spreads the instants evenly without a random source.
        let instant = whole.mul_f64((f64::from(i) * 0.618_033_988_749_895).fract());
        let started = Instant::now();
        pod.start("none", &[]);
        poll("the instant comes", Duration::from_secs(60), || (started.elapsed() >= instant).then_some(()));
        pod.assert_running();
        pod.kill9();
    }
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.dump(), want);
}

#[test]
fn a_second_syncer_on_the_same_volume_is_refused() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    let output = pod.command("none", &[]).output().expect("the second syncer runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(text.contains(&pod.pid().to_string()), "the holder's pid is not named: {text}");
    pod.assert_running();
}

#[test]
fn no_child_outlives_a_killed_syncer() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    let children = children_of(pod.pid());
    assert!(!children.is_empty(), "etcd is a child");
    pod.kill9();
    poll("the children end with syncer", Duration::from_secs(60), || {
        // Ended, whether or not the machine's init has got round to reaping it.
        let ended =
            |pid: &Pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        children.iter().all(ended).then_some(())
    });
    // At once: neither ports nor the data dir are held by anything.
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

#[test]
fn etcd_killed_is_started_again() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    pod.etcd(async |mut etcd| etcd.put("/a", "1", None).await.expect("put"));
    let etcd = children_of(pod.pid());
    for pid in &etcd {
        kill(*pid, Signal::SIGKILL).expect("kill etcd");
    }
    poll("another etcd runs", Duration::from_secs(20), || {
        let now = children_of(pod.pid());
        (!now.is_empty() && now.iter().all(|pid| !etcd.contains(pid))).then_some(())
    });
    pod.wait_serving();
    assert_eq!(pod.dump().keys.len(), 1);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

#[test]
fn each_refusal_of_start_has_its_exit_code_and_changes_nothing() {
    type Setup = fn(&TestPod);
    let table: &[(&str, Setup, i32, &str)] = &[
        (
            "a damaged data dir",
            |pod| {
                std::fs::create_dir_all(pod.data().join("etcd/member/snap")).expect("mkdir");
                std::fs::write(pod.data().join("etcd/member/snap/db"), b"not a database").expect("write");
            },
            3,
            "data dir",
        ),
        (
            "two stores",
            |pod| {
                for name in ["state.db", "server/db/state.db"] {
                    let target = pod.data().join(name);
                    std::fs::create_dir_all(target.parent().expect("a parent")).expect("mkdir");
                    std::fs::copy(format!("{}{STORE}", env!("CARGO_MANIFEST_DIR")), target).expect("copy");
                }
            },
            4,
            "several SQLite stores",
        ),
        (
            "a wal without its database",
            |pod| std::fs::write(pod.data().join("state.db-wal"), b"frames").expect("write"),
            4,
            "state.db-wal",
        ),
        (
            "a migrated store without its data dir",
            |pod| std::fs::write(pod.data().join("state.db.migrated"), b"x").expect("write"),
            3,
            "state.db.migrated",
        ),
        (
            "not a database",
            |pod| std::fs::write(pod.data().join("state.db"), b"garbage").expect("write"),
            4,
            "state.db",
        ),
        (
            "two replicas on an empty volume",
            |pod| pod.values("embeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: 2\n"),
            5,
            "pods 1",
        ),
        (
            "a journal that is none",
            |pod| {
                std::fs::write(pod.data().join("migration.journal"), b"x").expect("write");
            },
            3,
            "journal",
        ),
        (
            "a journal that is a directory",
            |pod| {
                std::fs::create_dir(pod.data().join("migration.journal")).expect("make");
            },
            3,
            "it is a directory",
        ),
    ];
    for (what, setup, code, word) in table {
        let mut pod = TestPod::new();
        setup(&pod);
        let before = contents(&pod.data());
        let (got, log) = pod.run_to_end("none", &[]);
        assert_eq!(got, Some(*code), "{what}: {log}");
        assert!(log.contains(word), "{what}: the message does not say '{word}': {log}");
        assert!(!log.contains("panicked"), "{what}: {log}");
        let mut after = contents(&pod.data());
        after.retain(|(name, _)| name != ".syncer.lock" && !name.starts_with("pki"));
        assert_eq!(before, after, "{what}: something was changed");
    }
}

/// Every file below a folder with its content.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("list").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below").to_string_lossy().into_owned();
                found.push((name, std::fs::read(&path).expect("read")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn switched_off_over_a_data_dir_it_refuses() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    pod.values("embeddedEtcd:\n  enabled: false\n");
    let (code, log) = pod.run_to_end("k8s", &[]);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("embeddedEtcd.enabled"), "the remedy is missing: {log}");
}

#[test]
fn a_store_beside_a_formed_cluster_is_left_alone() {
    let mut pod = TestPod::new();
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    std::fs::copy(format!("{}{STORE}", env!("CARGO_MANIFEST_DIR")), pod.data().join("state.db")).expect("copy");
    pod.start("none", &[]);
    pod.wait_serving();
    assert_eq!(pod.dump().keys.len(), 0, "the store was imported into a formed cluster");
    assert!(pod.data().join("state.db").exists());
    assert!(pod.log().contains("state.db"), "no warning about the store: {}", pod.log());
}

#[test]
fn the_front_port_says_ready_only_while_the_datastore_serves() {
    let mut pod = TestPod::with_small_store();
    pod.start("none", &[]);
    pod.wait_ready();
    assert_eq!(pod.probe("/healthz"), Some(200));
    assert!(pod.try_client().is_some(), "ready before etcd serves");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    assert_eq!(pod.probe("/readyz"), None);
}

#[test]
fn a_wrapped_command_starts_after_the_migration_and_ends_with_the_pod() {
    let mut pod = TestPod::with_small_store();
    let proof = pod.data().join("proof");
    let script = format!("ls {} > {}; exec sleep 600", pod.data().display(), proof.display());
    let mut command = pod.command("none", &["--", "/bin/sh", "-c", &script]);
    command.envs([("SYNCER_TOKEN", "s3cret"), ("AWS_SECRET_ACCESS_KEY", "s3cret")]);
    pod.spawn(command);
    poll("the command runs", Duration::from_secs(60), || {
        pod.assert_running();
        std::fs::read_to_string(&proof).ok().filter(|text| text.contains("pki"))
    });
    let listing = std::fs::read_to_string(&proof).expect("read");
    assert!(listing.contains("state.db.migrated"), "the command ran before the commit: {listing}");
    let children = children_of(pod.pid());
    assert_eq!(children.len(), 2, "etcd and the command");
    for pid in &children {
        let of = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read");
        let (etcd, environ) = (of("comm").starts_with("etcd"), of("environ"));
        assert!(
            !environ.contains(if etcd { "SYNCER_" } else { "SYNCER_TOKEN" }),
            "our settings reach a child: {environ:?}"
        );
        assert_eq!(
            environ.contains("AWS_SECRET_ACCESS_KEY"),
            !etcd,
            "etcd has no use for it, a command may: {environ:?}"
        );
    }
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    assert!(children.iter().all(|pid| kill(*pid, None).is_err()), "a child outlived the pod");
}

#[test]
fn a_wrapped_command_that_fails_is_named_with_what_to_do() {
    let mut pod = TestPod::new();
    pod.start("none", &["--", "/bin/sh", "-c", "echo its last words; exit 3"]);
    let said = poll("its end is told", Duration::from_secs(60), || {
        pod.log().lines().find(|line| line.contains("the command /bin/sh ended with")).map(str::to_owned)
    });
    assert!(said.contains("its last words") && said.contains("its own output above"), "{said}");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

#[test]
fn a_store_of_the_distros_own_is_not_passed_over() {
    for (distro, own) in [("k3s", "server/db/etcd"), ("k0s", "k0s/etcd")] {
        let mut pod = TestPod::new();
        std::fs::create_dir_all(pod.data().join(own).join("member/wal")).expect("mkdir");
        let (code, log) = pod.run_to_end(distro, &[]);
        assert_eq!(code, Some(4), "{distro}: {log}");
        assert!(log.contains(own), "{distro}: {log}");
        assert!(!pod.data().join("etcd").exists(), "{distro}: a store was begun beside the distro's own");
    }
}

#[test]
fn a_relative_data_dir_is_relative_to_where_syncer_was_started() {
    let mut pod = TestPod::with_small_store();
    let given = pod.command("none", &[]);
    let mut command = std::process::Command::new(given.get_program());
    for arg in given.get_args() {
        command.arg(if arg.to_string_lossy().starts_with("--data-dir=") { "--data-dir=data".as_ref() } else { arg });
    }
    command.current_dir(pod.data().parent().expect("the volume is in a folder"));
    pod.spawn(command);
    pod.wait_serving();
    assert_eq!(pod.dump(), expected());
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}

#[test]
fn etcd_is_found_in_path() {
    let mut pod = TestPod::new();
    let mut command = pod.command_with(None, "none", &[]);
    command.env("PATH", crate::support::part("etcd").parent().expect("a program is in a folder"));
    pod.spawn(command);
    pod.wait_serving();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
}
