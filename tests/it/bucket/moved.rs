//! `syncer migrate` from a snapshot in a bucket.

use std::path::Path;

use super::*;
use crate::support::etcd::all_keys;

fn migrate(server: &VersityGw, from: &str, to: &Path) -> Command {
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from", from, "--to"]).arg(format!("datadir:{}", to.display()));
    command.args(["-o", "json", "--etcd"]).arg(program("etcd", "3.6")).env_clear().envs(server.env());
    command
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_in_a_bucket_becomes_a_store() {
    let server = VersityGw::start(false, &["backups"]);
    let home = tempfile::tempdir().unwrap();
    let etcd = etcd(home.path());
    let url = etcd.spec.client_url();
    let want = run(async { all_keys(&mut etcd.client().await).await });
    let save = ["save", "--to", "s3://backups/vc", "--endpoint", &url, "--name", "vc", "-o", "json"];
    let saved = json(&ran(&mut snapshot(&server, &save)));
    let volume = home.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let (at, to) = (saved["target"].as_str().expect("a place").to_owned(), volume.join("etcd"));
    let from = format!("snapshot:{at}");

    let told = json(&ran(migrate(&server, &from, &to).arg("--dry-run")));
    assert_eq!((&told["source"], &told["revision"]), (&at.as_str().into(), &saved["sourceRevision"]));
    assert!(names(&volume).is_empty(), "{:?}", names(&volume));

    // A server that is halted for so long keeps it waiting, which is shown.
    let (mut screen, for_bar) = terminal();
    kill(server.pid(), Signal::SIGSTOP).expect("halt the server");
    let mut waits = migrate(&server, &from, &to);
    waits.arg("--dry-run").env("TERM", "xterm").stdout(Stdio::piped()).stderr(for_bar);
    let waits = waits.spawn().expect("syncer starts");
    shows(&mut screen, "   fetch ");
    kill(server.pid(), Signal::SIGCONT).expect("let it go on");
    assert_eq!(json(&waits.wait_with_output().expect("it ends"))["keys"], told["keys"]);

    // Killed on the way, and when it is in place.
    for point in ["source-half-fetched", "migrate-written", "migrate-after-flip"] {
        let out = ran(migrate(&server, &from, &to).env("SYNCER_CRASH_AT", point));
        assert_eq!(out.status.code(), None, "{point}: {}", error_of(&out));
        let report = json(&ran(&mut migrate(&server, &from, &to)));
        let committed = point == "migrate-after-flip";
        assert_eq!(report["movedBefore"].as_bool().unwrap_or(false), committed, "{point}: {report}");
        if !committed {
            assert_eq!((&report["source"], &report["revision"]), (&at.as_str().into(), &saved["sourceRevision"]));
        }
        assert_eq!(json(&ran(&mut migrate(&server, &from, &to)))["movedBefore"], true);
        let left: Vec<_> =
            names(&volume).into_iter().filter(|name| ![".syncer.lock", "etcd.log"].contains(&name.as_str())).collect();
        assert_eq!(left, ["etcd", "etcd.migration.journal"], "{point}");
        let moved = EtcdSpec::new("3.6", "seed", &to).start();
        assert!(run(async { all_keys(&mut moved.client().await).await }) == want, "{point}: another store is served");
        drop(moved);
        std::fs::remove_dir_all(&to).unwrap();
        std::fs::remove_file(volume.join("etcd.migration.journal")).unwrap();
    }

    for (from, code, want) in [
        ("snapshot:s3://backups/vc/vc-20990101T000000Z.db", 4, "there is no vc-20990101T000000Z.db in s3://backups/vc"),
        ("snapshot:s3://backups", 2, "name a snapshot"),
        ("s3://backups/vc/x.db", 2, "snapshot:s3://BUCKET/PREFIX/NAME.db"),
        ("snapshot:s3://id:s3cret@backups/x.db", 2, "credentials"),
    ] {
        for dry in [None, Some("--dry-run")] {
            let out = ran(migrate(&server, from, &to).args(dry));
            assert_eq!(out.status.code(), Some(code), "{from}: {}", error_of(&out));
            assert!(error_of(&out).contains(want) && !error_of(&out).contains("s3cret"), "{from}: {}", error_of(&out));
        }
    }
    assert!(!to.exists());
}
