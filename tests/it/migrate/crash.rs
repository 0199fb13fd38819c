//! Killed at any instant and started again, an import ends in the same state.
//!
//! `SYNCER_KILLS` is the number of random instants (default 6). The instants come from a seed that a failure prints and
//! `SYNCER_SEED` sets.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};
use syncer::disk::Disk;

use super::*;
use crate::support::kine_db::{Era, History, busy, fingerprint, with};

/// Kills of one import, after which the next start may take its time.
const KILLS_MAX: u64 = 8;

/// How long an undisturbed import may take on a busy machine.
const UNDISTURBED: Duration = Duration::from_secs(120);

struct Fixture {
    dir: tempfile::TempDir,
    db: PathBuf,
    history: History,
    source: std::collections::BTreeMap<String, String>,
}

fn fixture(objects: usize) -> Fixture {
    let (dir, db) = volume();
    let history = busy(Era::V0_14, objects);
    history.write_hot(&db);
    let source = fingerprint(&db);
    Fixture { dir, db, history, source }
}

impl Fixture {
    fn etcd_dir(&self) -> PathBuf {
        self.dir.path().join("etcd")
    }

    /// The command; each attempt has its own fresh token, as each boot has.
    fn command(&self, rename: bool) -> Command {
        let mut command = migrate(&self.db, &self.etcd_dir());
        if rename {
            command.arg("--rename-source");
        }
        command.stdout(Stdio::null());
        command
    }

    /// At every instant either the source is whole under its name, or the migrated one is and the data dir with it.
    fn check_in_between(&self, what: &str) {
        let named = fingerprint(&self.db);
        if self.db.exists() {
            assert_eq!(named, self.source, "{what}: the source changed");
        } else {
            let migrated = fingerprint(&with(&self.db, ".migrated"));
            assert_eq!(migrated.get(""), self.source.get(""), "{what}: the database is gone");
            let wal = migrated.get("-wal").or_else(|| named.get("-wal"));
            assert_eq!(wal, self.source.get("-wal"), "{what}: the -wal is gone");
            assert!(self.etcd_dir().join("member/snap/db").exists(), "{what}: committed without a data dir");
        }
    }

    fn check_end(&self, renamed: bool, what: &str) {
        let mut want = vec!["etcd", "etcd.migration.journal"];
        want.extend(match renamed {
            true => ["state.db.migrated", "state.db.migrated-shm", "state.db.migrated-wal"],
            false => ["state.db", "state.db-shm", "state.db-wal"],
        });
        assert_eq!(names(self.dir.path()), want, "{what}");
        let place = if renamed { with(&self.db, ".migrated") } else { self.db.clone() };
        assert_eq!(fingerprint(&place), self.source, "{what}");
        assert_live(&served("3.6", &self.etcd_dir(), self.history.revision(), false), &self.history.live());
        self.no_process_is_left(what);
    }

    /// No etcd of a killed syncer runs on.
    fn no_process_is_left(&self, what: &str) {
        let own = self.etcd_dir().display().to_string();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            assert!(!line.contains(&own), "{what}: still running: {line}");
        }
    }

    /// Gives the command until it succeeds.
    fn finish(&self, rename: bool, what: &str) {
        let out = self.command(rename).output().expect("run syncer");
        assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn killed_at_every_crash_point_it_converges() {
    use syncer::crash_point::CRASH_POINTS;
    for rename in [true, false] {
        for point in CRASH_POINTS.iter().filter(|p| p.starts_with("migrate-")) {
            // Without a rename there is no commit to be killed at.
            let passed = rename
                || !["before-commit", "after-commit", "wal-moved", "strays-moved"].iter().any(|p| point.ends_with(p));
            let fixture = fixture(400);
            let status = fixture
                .command(rename)
                .env("SYNCER_CRASH_AT", point)
                .stderr(Stdio::null())
                .status()
                .expect("run syncer");
            if !passed {
                assert!(status.success(), "{point} without a rename: {status}");
                continue;
            }
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{point} was not reached: {status}");
            fixture.check_in_between(point);
            fixture.finish(rename, point);
            fixture.check_end(rename, point);
        }
    }
}

#[test]
fn a_data_dir_in_place_whose_source_kept_its_name_is_never_built_anew() {
    let fixture = fixture(50);
    let status = fixture.command(false).env("SYNCER_CRASH_AT", "migrate-after-flip").status().expect("run syncer");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    // Somebody found it complete, and uses it.
    let mark = fixture.etcd_dir().join("member/snap/used");
    std::fs::write(&mark, "since").unwrap();
    fixture.finish(false, "after the flip");
    assert!(mark.exists(), "a data dir that was in use was removed");
    let again = fixture.command(false).output().expect("run syncer");
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(mark.exists(), "a data dir that was in use was removed");
    fixture.check_end(false, "after the flip");
}

/// What was made has what the source had; what that has got since would be lost by whoever is told that it was moved.
#[test]
fn a_source_that_has_changed_since_the_flip_was_not_moved() {
    let killed = |rename: bool| {
        let fixture = fixture(50);
        let status = fixture.command(rename).env("SYNCER_CRASH_AT", "migrate-after-flip").status().expect("run syncer");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        fixture
    };
    let write_to = |fixture: &Fixture| {
        let db = rusqlite::Connection::open(&fixture.db).expect("open the source");
        db.pragma_update(None, "user_version", 7).expect("write to the source");
    };
    let refused = |fixture: &Fixture, rename: bool, why: &str| {
        let out = fixture.command(rename).output().expect("run syncer");
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(3) && error.contains(why), "{}: {error}", out.status);
        assert!(fixture.etcd_dir().exists() && fixture.db.exists());
    };
    // The flip was the commit.
    let kept = killed(false);
    refused(&kept, true, "was to keep its name");
    write_to(&kept);
    refused(&kept, false, "has changed since");
    // It was not: the source is the truth, and is read again, whatever is asked for now.
    for rename in [true, false] {
        let renamed = killed(true);
        write_to(&renamed);
        renamed.finish(rename, "a source that was written to");
        assert_eq!(renamed.db.exists(), !rename);
        assert_live(&served("3.6", &renamed.etcd_dir(), renamed.history.revision(), false), &renamed.history.live());
    }
}

#[test]
fn killed_at_random_instants_it_converges() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let kills = number("SYNCER_KILLS").unwrap_or(6);
    let seed = number("SYNCER_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut random = StdRng::seed_from_u64(seed);
    // How long it takes undisturbed.
    let whole = fixture(3000);
    let started = Instant::now();
    whole.finish(true, "undisturbed");
    let longest = started.elapsed().mul_f64(1.1);
    let mut done = 0;
    while done < kills {
        let fixture = fixture(3000);
        for attempt in 0.. {
            let what = format!("seed {seed}, kill {done}, attempt {attempt}");
            let mut child = fixture.command(true).stderr(Stdio::null()).spawn().expect("start syncer");
            // The time of an undisturbed run was taken at another load: it does not tell how far this one is.
            let undisturbed = attempt == KILLS_MAX;
            let instant = if undisturbed { UNDISTURBED } else { longest.mul_f64(random.random()) };
            let deadline = Instant::now() + instant;
            let ended = loop {
                if let Some(status) = child.try_wait().expect("wait for syncer") {
                    break Some(status);
                }
                if Instant::now() >= deadline {
                    break None;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            if let Some(status) = ended {
                assert!(status.success(), "{what}: {status}");
                break;
            }
            child.kill().expect("kill syncer");
            child.wait().expect("wait for syncer");
            assert!(!undisturbed, "{what}: not through in {instant:?} although nothing disturbed it");
            done += 1;
            fixture.check_in_between(&format!("{what} after {instant:?}"));
        }
        fixture.check_end(true, &format!("seed {seed}, {done} kills"));
    }
}

#[test]
fn a_data_dir_that_the_journal_does_not_know_is_kept() {
    let fixture = fixture(50);
    let (other_dir, other_db) = volume();
    busy(Era::V0_1, 30).write_cold(&other_db);
    let other = other_dir.path().join("etcd");
    assert!(output(&mut migrate(&other_db, &other)).status.success());
    // Killed before anything was staged, and then somebody put a data dir there.
    let mut command = fixture.command(true);
    let status = command.env("SYNCER_CRASH_AT", "migrate-after-journal").status().expect("run syncer");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    copy_dir(&other, &fixture.etcd_dir());
    fixture.finish(true, "with another data dir in place");
    let kept = names(fixture.dir.path()).into_iter().find(|n| n.starts_with("etcd.aside-")).expect("set aside");
    let database = |dir: &Path| std::fs::read(dir.join("member/snap/db")).expect("read a backend");
    assert!(database(&fixture.dir.path().join(kept)) == database(&other), "it was changed");
    assert_live(&served("3.6", &fixture.etcd_dir(), fixture.history.revision(), false), &fixture.history.live());
}

/// A source that keeps its name is no truth: who was killed while reading it may have restored the store otherwise since.
#[test]
fn a_data_dir_that_came_since_a_copy_was_killed_is_refused_and_stays() {
    let fixture = fixture(50);
    let (other_dir, other_db) = volume();
    let used = busy(Era::V0_1, 30);
    used.write_cold(&other_db);
    let other = other_dir.path().join("etcd");
    assert!(output(&mut migrate(&other_db, &other)).status.success());
    let status = fixture.command(false).env("SYNCER_CRASH_AT", "migrate-backend-written").status().expect("run syncer");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    copy_dir(&other, &fixture.etcd_dir());
    // But for the lock of whoever was killed.
    let there = || names(fixture.dir.path()).into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>();
    let before = there();
    for argument in ["--dry-run", "--verify=hash", "--rename-source"] {
        let out = fixture.command(false).arg(argument).output().expect("run syncer");
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{argument}: {error}");
        assert!(error.contains("has not put there") && error.contains("etcd.migration.journal away"), "{error}");
        assert_eq!(there(), before, "{argument}");
    }
    assert_live(&served("3.6", &fixture.etcd_dir(), used.revision(), false), &used.live());
    // As the remedy says.
    RealDisk.rename(&fixture.etcd_dir(), &fixture.dir.path().join("away")).unwrap();
    fixture.finish(false, "with the other moved away");
    assert_live(&served("3.6", &fixture.etcd_dir(), fixture.history.revision(), false), &fixture.history.live());
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
