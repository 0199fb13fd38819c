//! Refusals, through the program: exit code, one clear line, and the source as it was, byte for byte.

use syncer::datadir::DatadirLock;
use syncer::datadir::lock::LOCK_FILE;
use syncer::disk::Disk;

use super::*;
use crate::support::SmallVolume;
use crate::support::etcd::{PATIENCE, etcd_that};
use crate::support::kine_db::{Era, Kine, busy, fingerprint, with};

/// Runs `syncer migrate` and expects it to refuse with `code`; gives its message. Nothing may have changed.
fn refused(command: &mut Command, db: &Path, code: i32) -> String {
    let dir = db.parent().unwrap();
    let (before, listing) = (fingerprint(db), names(dir));
    let out = output(command);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    assert_eq!(fingerprint(db), before, "the source changed: {text}");
    assert_eq!(names(dir), listing, "something was left behind: {text}");
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("syncer: error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].replace(&dir.display().to_string(), "DIR")
}

fn store() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let (dir, db) = volume();
    busy(Era::V0_14, 200).write_hot(&db);
    let target = dir.path().join("etcd");
    (dir, db, target)
}

#[test]
fn a_store_that_kine_has_open_is_refused_and_kine_is_named() {
    for program in ["kine", "kine-0.11"] {
        let (dir, db) = volume();
        let kine = Kine::start(program, &db);
        for arguments in [&[][..], &["--rename-source"], &["--dry-run"]] {
            let text = refused(migrate(&db, &dir.path().join("etcd")).args(arguments), &db, 4);
            let holder = format!("it is in use by process {} ({program})", kine.pid());
            assert!(text.contains(&holder), "{text}");
        }
        kine.kill();
        assert!(output(&mut migrate(&db, &dir.path().join("etcd"))).status.success());
    }
}

#[test]
fn a_store_without_its_wal_is_refused() {
    let (_dir, db, target) = store();
    std::fs::remove_file(with(&db, "-wal")).unwrap();
    let text = refused(&mut migrate(&db, &target), &db, 4);
    assert!(text.contains("DIR/state.db-wal is missing"), "{text}");
    // Of a store that was never checkpointed nothing at all is left.
    let (dir, db) = volume();
    let connection = rusqlite::Connection::open(&db).unwrap();
    connection.execute_batch("CREATE TABLE kine (id INTEGER PRIMARY KEY, name, created, deleted, create_revision, prev_revision, lease, value, old_value)").unwrap();
    drop(connection);
    let text = refused(&mut migrate(&db, &dir.path().join("etcd")), &db, 4);
    assert!(text.contains("not even kine's own compact_rev_key"), "{text}");
}

#[test]
fn a_damaged_wal_page_or_file_is_refused() {
    let (_dir, db, target) = store();
    for (suffix, offset, length, want) in [
        ("-wal", 40, 1, "DIR/state.db-wal is damaged or belongs to another database"),
        ("-wal", 0, 4, "its header is not valid"),
        ("", 0, 16, "it is not a SQLite database, or it is encrypted"),
    ] {
        let path = with(&db, suffix);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        bytes[offset..offset + length].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        let text = refused(&mut migrate(&db, &target), &db, 4);
        assert!(text.contains(want), "{text}");
        std::fs::write(&path, whole).unwrap();
    }
    assert!(output(&mut migrate(&db, &target)).status.success(), "mended, and still not imported");

    let (dir, db) = volume();
    busy(Era::V0_14, 500).write_cold(&db);
    let whole = std::fs::read(&db).unwrap();
    for page in [1, 4, 20] {
        let mut bytes = whole.clone();
        bytes[page * 4096..][..4096].fill(0x5a);
        std::fs::write(&db, bytes).unwrap();
        let text = refused(&mut migrate(&db, &dir.path().join("etcd")), &db, 4);
        assert!(text.contains("it is damaged"), "page {page}: {text}");
    }
    // SQLite fills the page with zeros, and finds them in order.
    for cut in [1, 100, 4096] {
        std::fs::write(&db, &whole[..whole.len() - cut]).unwrap();
        let text = refused(&mut migrate(&db, &dir.path().join("etcd")), &db, 4);
        assert!(text.contains("it is cut short"), "{cut}: {text}");
    }
}

#[test]
fn what_is_no_store_of_kine_is_refused() {
    let (dir, db) = volume();
    let target = dir.path().join("etcd");
    assert!(refused(&mut migrate(&db, &target), &db, 4).contains("there is no such file"));
    std::fs::write(&db, "").unwrap();
    assert!(refused(&mut migrate(&db, &target), &db, 4).contains("the file is empty"));
    std::fs::write(&db, [9; 4096]).unwrap();
    assert!(refused(&mut migrate(&db, &target), &db, 4).contains("it is not a SQLite database, or it is encrypted"));
    std::fs::remove_file(&db).unwrap();
    rusqlite::Connection::open(&db).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(refused(&mut migrate(&db, &target), &db, 4).contains("it has no table kine"));
}

#[test]
fn a_target_that_is_not_ours_is_refused() {
    let (dir, db, target) = store();
    let text = refused(&mut migrate(&db, &dir.path().join("missing/etcd")), &db, 2);
    assert!(text.contains("DIR/missing does not exist") && text.contains("make it first"), "{text}");
    std::fs::create_dir_all(target.join("member/snap")).unwrap();
    std::fs::write(target.join("member/snap/db"), "something").unwrap();
    let text = refused(&mut migrate(&db, &target), &db, 3);
    assert!(text.contains("DIR/etcd has content that no import of ours left there"), "{text}");
    assert_eq!(std::fs::read_to_string(target.join("member/snap/db")).unwrap(), "something");
}

#[test]
fn a_finished_or_foreign_or_damaged_journal_is_refused() {
    let (dir, db, target) = store();
    assert!(output(&mut migrate(&db, &target)).status.success());
    // Killed at its very end, it is given again.
    let again = output(&mut migrate(&db, &target));
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && said.contains("before; nothing is left to do"), "{said}");
    for dry in [&[][..], &["--dry-run"]] {
        let text = refused(migrate(&db, &target).args(["--bump-revision", "7"]).args(dry), &db, 3);
        assert!(text.contains("before, with --bump-revision 0, not 7; go on with DIR/etcd as it is"), "{text}");
    }
    RealDisk.rename(&target, &target.with_extension("away")).unwrap();
    let text = refused(&mut migrate(&db, &target), &db, 3);
    assert!(text.contains("says that an import was completed here"), "{text}");
    RealDisk.rename(&target.with_extension("away"), &target).unwrap();
    let journal = with(&target, ".migration.journal");
    std::fs::write(&journal, "nonsense").unwrap();
    let text = refused(&mut migrate(&db, &target), &db, 3);
    assert!(text.contains("etcd.migration.journal is not a whole journal"), "{text}");
    assert_eq!(names(dir.path()).len(), 5);
}

#[test]
fn a_verification_that_cannot_be_made_leaves_nothing() {
    let (_dir, db, target) = store();
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from"]).arg(format!("sqlite:{}", db.display()));
    command.arg("--to").arg(format!("datadir:{}", target.display())).args(["--etcd", "/does/not/exist/etcd"]);
    let text = refused(&mut command, &db, 2);
    assert!(text.contains("/does/not/exist/etcd"), "{text}");
}

#[test]
fn an_etcd_that_cannot_serve_the_result_is_a_fault_and_leaves_nothing() {
    let (_dir, db, target) = store();
    let (programs, _) = volume();
    let broken = etcd_that(programs.path(), "echo the disk is on fire >&2\nexit 3");
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from"]).arg(format!("sqlite:{}", db.display()));
    command.arg("--to").arg(format!("datadir:{}", target.display())).arg("--etcd").arg(&broken);
    let text = refused(&mut command, &db, 1);
    assert!(text.contains("the disk is on fire") && text.contains("etcd ended with exit status: 3"), "{text}");
}

#[test]
fn two_do_not_make_one_target_and_none_is_made_where_a_pod_runs() {
    let (_dir, db, target) = store();
    let held = DatadirLock::acquire(target.parent().expect("a folder"), PATIENCE).expect("a lock");
    let text = refused(&mut migrate(&db, &target), &db, 8);
    assert!(text.contains("a syncer runs, or makes something else, in DIR"), "{text}");
    drop(held);
    std::fs::remove_file(target.with_file_name(LOCK_FILE)).expect("the lock's file");
    output(&mut migrate(&db, &target));
    assert!(!target.with_file_name(LOCK_FILE).exists(), "its own was left behind");
}

/// What the run would refuse, it refuses.
#[test]
fn a_dry_run_tells_what_stands_in_the_targets_place() {
    let (_dir, db, target) = store();
    output(&mut migrate(&db, &target));
    let said = output(migrate(&db, &target).arg("--dry-run")).stdout;
    assert!(String::from_utf8_lossy(&said).contains("before; nothing is left to do"));
    RealDisk.rename(&target, &target.with_extension("away")).unwrap();
    let text = refused(migrate(&db, &target).arg("--dry-run"), &db, 3);
    assert!(text.contains("an import was completed here"), "{text}");
}

/// What stands at the names that a journey uses on its way is removed.
#[test]
fn a_source_that_has_a_name_of_the_journey_s_own_is_refused_and_stays() {
    let (dir, db) = volume();
    busy(Era::V0_14, 200).write_hot(&db);
    let target = dir.path().join("etcd");
    for name in ["etcd.migration.source", "etcd.staging", "etcd.migration.verify", "etcd"] {
        let made = dir.path().join("made");
        output(&mut migrate(&db, &made));
        RealDisk.rename(&made, &dir.path().join(name)).unwrap();
        std::fs::remove_file(dir.path().join("made.migration.journal")).unwrap();
        for dry in [&[][..], &["--dry-run"]] {
            let mut command = Command::new(syncer());
            command.args(["migrate", "--etcd"]).arg(part("etcd")).args(dry);
            command.arg("--from").arg(format!("datadir:{}", dir.path().join(name).display()));
            command.arg("--to").arg(format!("datadir:{}", target.display()));
            let text = refused(&mut command, &db, 2);
            assert!(text.contains("rename the source, or choose another target"), "{text}");
            assert!(dir.path().join(name).join("member/snap/db").exists(), "{name} is gone");
        }
        std::fs::remove_dir_all(dir.path().join(name)).unwrap();
    }
}

#[test]
fn other_ways_are_bad_usage() {
    let (dir, db, _) = store();
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from", "sqlite:a", "--to"]).arg(format!("sqlite:{}", dir.path().display()));
    assert!(refused(&mut command, &db, 2).contains("moving sqlite to sqlite is not in this release"));
}

#[test]
fn a_volume_that_is_too_small_is_refused_with_its_own_code() {
    let (_dir, db, _) = store();
    let Some(small) = SmallVolume::mount(16 << 20) else {
        return;
    };
    let text = refused(&mut migrate(&db, &small.path().join("etcd")), &db, 7);
    assert!(text.contains("MiB free and the import needs"), "{text}");
    assert!(names(small.path()).is_empty());
}

#[test]
fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let (dir, db, target) = store();
    let (before, listing) = (fingerprint(&db), names(dir.path()));
    let out = output(migrate(&db, &target).args(["--dry-run", "-o", "json"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let history = busy(Era::V0_14, 200);
    assert_eq!(found["keys"], history.live().len());
    assert_eq!(
        (&found["revision"], &found["sourceRevision"]),
        (&history.revision().into(), &history.revision().into())
    );
    let bytes: usize = history.live().iter().map(|(k, v)| k.len() + v.0.len()).sum();
    assert_eq!(found["bytes"], bytes);
    let kinds: Vec<_> = found["kinds"].as_array().unwrap().iter().map(|k| k["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"example.com/widgets") && kinds.contains(&"pods"), "{kinds:?}");
    assert!(found["seconds"].as_f64().unwrap() > 0.0 && found["neededBytes"].as_u64().unwrap() > 0);
    let text = String::from_utf8(output(migrate(&db, &target).arg("--dry-run")).stdout).unwrap();
    assert!(text.contains("nothing has been changed"), "{text}");
    assert_eq!((fingerprint(&db), names(dir.path())), (before, listing));
}

#[test]
fn the_source_keeps_its_name_unless_it_is_to_be_renamed() {
    let (dir, db, target) = store();
    let before = fingerprint(&db);
    let out = output(migrate(&db, &target).args(["-o", "json", "--verify", "full"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let history = busy(Era::V0_14, 200);
    assert_eq!(report["revision"], history.revision());
    assert_eq!(report["keys"], history.live().len());
    assert_eq!(fingerprint(&db), before);
    assert_live(&served("3.6", &target, history.revision(), false), &history.live());

    let second = dir.path().join("second");
    assert!(output(migrate(&db, &second).arg("--rename-source")).status.success());
    assert!(!db.exists());
    assert_eq!(fingerprint(&with(&db, ".migrated")), before);
}
