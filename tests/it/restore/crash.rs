//! Killed at any instant, staging a restore and its taking place each end in the same state.
//!
//! `SYNCER_KILLS` is the number of random instants (default 24, half of them while it is staged). The instants come from a
//! seed that a failure prints and `SYNCER_SEED` sets.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Instant;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

/// A stopped pod with a filled store, its snapshot and what that holds. The present store is one write further.
fn stopped() -> (TestPod, PathBuf, Dump) {
    let (mut pod, file, before) = filled();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    (pod, file, before)
}

#[test]
fn killed_at_every_crash_point_a_restore_converges() {
    use syncer::crash_point::{CRASH_POINTS, RESTORE_BOOT_CRASH_POINTS, RESTORE_CRASH_POINTS};
    let (mut pod, file, before) = stopped();
    let import = CRASH_POINTS.iter().filter(|point| point.starts_with("migrate-"));
    let import = import.filter(|point| !["commit", "moved"].iter().any(|end| point.ends_with(end)));
    let staging = RESTORE_CRASH_POINTS.iter().chain(import);
    let listing = names(&pod);
    for point in staging {
        let mut command = snapshot(&pod, &["restore", text(&file)]);
        let status = command.env("SYNCER_CRASH_AT", point).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert_eq!(status.expect("syncer runs").signal(), Some(libc::SIGKILL), "{point}");
        let recorded = names(&pod).contains("restore.journal");
        assert_eq!(recorded, *point == "restore-recorded", "{point}");
        if *point != "restore-cleared" {
            assert!(names(&pod).contains("etcd.restore"), "{point}");
        }
        // Called off, or given again.
        if *point == "migrate-verified" {
            json(&restore(&pod, &["--cancel", "-o", "json"]));
            assert_eq!(names(&pod), listing, "{point}");
        } else {
            json(&restore(&pod, &[text(&file), "-o", "json"]));
            json(&restore(&pod, &["--cancel", "-o", "json"]));
            assert_eq!(names(&pod), listing, "{point}");
        }
    }
    // That one needs a host API: `the_marker_names_the_restored_cluster`.
    for (round, point) in RESTORE_BOOT_CRASH_POINTS.iter().filter(|point| **point != "restore-marked").enumerate() {
        let revision = json(&restore(&pod, &[text(&file), "-o", "json"]))["revision"].as_i64().expect("a revision");
        let mut command = pod.command("none", &[]);
        command.env("SYNCER_CRASH_AT", point);
        pod.spawn(command);
        let status = pod.wait_end(PATIENCE);
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{point}: {status}\n{}", pod.log());
        old_is_kept_of(&pod, round, point);
        let out = restore(&pod, &["--cancel"]);
        let over = *point == "restore-done";
        assert_eq!(out.status.code(), Some(if over { 0 } else { 3 }), "{point}: it is not called off any more");
        pod.start("none", &[]);
        pod.wait_serving();
        serves(&pod, &before, revision);
        assert_eq!(asides(&pod), round + 1, "{point}");
        assert_eq!(pod.stop().code(), Some(0), "{point}: {}", pod.log());
    }
}

/// Each restore so far has set one data dir aside; this one's is in its place, or aside too.
fn old_is_kept_of(pod: &TestPod, round: usize, point: &str) {
    let staged = pod.data().join("etcd.restore/etcd/member/snap/db").exists();
    let there = pod.data().join("etcd/member/snap/db").exists();
    match point {
        "restore-begun" | "restore-noted" => assert!(staged && there && asides(pod) == round, "{point}"),
        "restore-set-aside" => assert!(staged && !there && asides(pod) == round + 1, "{point}"),
        _ => assert!(!staged && there && asides(pod) == round + 1, "{point}"),
    }
}

#[test]
fn killed_at_random_instants_a_restore_converges() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let kills = number("SYNCER_KILLS").unwrap_or(24);
    let seed = number("SYNCER_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut random = StdRng::seed_from_u64(seed);
    let (mut pod, file, before) = stopped();
    let stage = |pod: &TestPod| {
        let staged = json(&restore(pod, &[text(&file), "-o", "json"]));
        staged["revision"].as_i64().expect("a revision")
    };
    // How long each part takes undisturbed.
    let begun = Instant::now();
    let mut revision = stage(&pod);
    let staging = begun.elapsed().mul_f64(1.1);
    let begun = Instant::now();
    pod.start("none", &[]);
    pod.wait_serving();
    let flip = begun.elapsed();
    serves(&pod, &before, revision);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let (mut done, mut attempts) = (0, 0);
    while done < kills {
        clear_asides(&pod);
        for _ in 0..3 {
            let mut command = snapshot(&pod, &["restore", text(&file)]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start syncer");
            std::thread::sleep(staging.mul_f64(random.random()));
            child.kill().expect("kill syncer");
            child.wait().expect("wait for syncer");
            done += 1;
            assert_eq!(asides(&pod), 0, "seed {seed}, kill {done}: staging changes nothing");
        }
        revision = stage(&pod);
        for _ in 0..3 {
            if !names(&pod).contains("restore.journal") {
                break;
            }
            pod.start("none", &[]);
            std::thread::sleep(flip.mul_f64(random.random()));
            pod.kill_everything();
            done += 1;
            let there = usize::from(pod.data().join("etcd/member/snap/db").exists());
            let staged = usize::from(pod.data().join("etcd.restore/etcd/member/snap/db").exists());
            assert_eq!(there + staged + asides(&pod), 2, "seed {seed}, kill {done}: {:?}", names(&pod));
        }
        pod.start("none", &[]);
        pod.wait_serving();
        serves(&pod, &before, revision);
        assert_eq!(asides(&pod), 1, "seed {seed}, {done} kills");
        assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
        attempts += 1;
    }
    println!("seed {seed}: {done} kills of {attempts} restores");
}

/// Room for the next ones.
fn clear_asides(pod: &TestPod) {
    for name in names(pod).iter().filter(|name| name.starts_with("etcd.aside-")) {
        std::fs::remove_dir_all(pod.data().join(name)).expect("remove it");
    }
}
