//! Dry runs that must write a copy of their source for a moment.

use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::support::etcd::Etcd;
use crate::support::{SmallVolume, poll, shows, terminal};

fn etcd(home: &Path) -> Etcd {
    let etcd = EtcdSpec::new("3.6", "a", &home.join("running")).start();
    run(async {
        let mut client = etcd.client().await;
        for n in 0..200 {
            client.put(format!("/registry/configmaps/{n:03}"), "v".repeat(1000), None).await.expect("put");
        }
    });
    etcd
}

fn migrate(from: &str, target: &Path, dry: bool) -> Command {
    let mut command = Command::new(syncer());
    command.args(["migrate", "--from", from, "--to"]).arg(format!("datadir:{}", target.display()));
    command.arg("--etcd").arg(program("etcd", "3.6")).args(dry.then_some("--dry-run"));
    command
}

/// Begins a dry run, which halts in the midst of the snapshot.
fn halted(from: &str, target: &Path) -> Child {
    let mut command = migrate(from, target, true);
    let child =
        command.env("SYNCER_HALT_AT", "source-half-fetched").stdout(Stdio::null()).spawn().expect("syncer runs");
    let stat = format!("/proc/{}/stat", child.id());
    poll("it halts", Duration::from_secs(60), || {
        let stat = std::fs::read_to_string(&stat).ok()?;
        stat.rsplit_once(") ")?.1.starts_with('T').then_some(())
    });
    child
}

fn succeeds(mut command: Command) {
    let out = command.output().expect("syncer runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn what_a_killed_dry_run_left_goes_and_others_go_on() {
    let home = tempfile::tempdir().expect("a folder");
    let etcd = etcd(home.path());
    let (from, volume) = (format!("etcd:{}", etcd.spec.client_url()), home.path().join("volume"));
    std::fs::create_dir(&volume).expect("make a folder");
    let target = volume.join("etcd");
    succeeds(migrate(&from, &target, true));
    assert!(names(&volume).is_empty(), "{:?}", names(&volume));

    // A source that is halted for so long keeps it waiting, which is shown.
    let (source, (mut screen, for_bar)) = (Pid::from_raw(i32::try_from(etcd.pid()).expect("a pid fits")), terminal());
    kill(source, Signal::SIGSTOP).expect("halt the source");
    let mut waits = migrate(&from, &target, true);
    let mut waits = waits.env("TERM", "xterm").stdout(Stdio::null()).stderr(for_bar).spawn().expect("syncer runs");
    shows(&mut screen, "   fetch ");
    kill(source, Signal::SIGCONT).expect("let it go on");
    assert!(waits.wait().expect("it ends").success(), "a dry run of a source that was halted for a moment");

    // Of two at once neither takes what the other has.
    let mut first = halted(&from, &target);
    let its = names(&volume);
    assert!(its.len() == 1 && its[0].starts_with(&format!("etcd.dry-run.{}-", first.id())), "{its:?}");
    succeeds(migrate(&from, &target, true));
    assert_eq!(names(&volume), its);
    // It halts at every piece.
    let pid = Pid::from_raw(i32::try_from(first.id()).expect("a pid fits"));
    let status = poll("it ends", Duration::from_secs(60), || {
        let _ = kill(pid, Signal::SIGCONT);
        first.try_wait().expect("wait for it")
    });
    assert!(status.success(), "{status}");
    assert!(names(&volume).is_empty(), "{:?}", names(&volume));

    // What a killed one left goes with the next one, and with the move itself.
    for dry in [true, false] {
        let mut killed = halted(&from, &target);
        killed.kill().expect("kill it");
        killed.wait().expect("it ends");
        assert_eq!(names(&volume).len(), 1);
        succeeds(migrate(&from, &target, dry));
        assert!(names(&volume).iter().all(|name| !name.contains("dry-run")), "{:?}", names(&volume));
    }
    assert!(target.is_dir());
}

/// An etcd may run there, whose log and backend grow meanwhile.
#[test]
fn a_dry_run_does_not_fill_the_targets_volume() {
    let home = tempfile::tempdir().expect("a folder");
    let mut etcd = etcd(home.path());
    let url = format!("etcd:{}", etcd.spec.client_url());
    let dir = format!("datadir:{}", etcd.spec.data_dir.display());
    let (Some(small), Some(enough)) = (SmallVolume::mount(250 << 20), SmallVolume::mount(300 << 20)) else {
        return;
    };
    let refused = |from: &str, volume: &SmallVolume| {
        let out = migrate(from, &volume.path().join("etcd"), true).output().expect("syncer runs");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(7), "{text}");
        assert!(text.contains("and 256 MiB are to be left"), "{text}");
        assert!(names(volume.path()).is_empty(), "{:?}", names(volume.path()));
    };
    refused(&url, &small);
    succeeds(migrate(&url, &enough.path().join("etcd"), true));
    // What was put last is in the log alone, which is replayed on a copy.
    run(async { etcd.client().await.put("/last", "x", None).await.expect("put") });
    etcd.kill();
    refused(&dir, &enough);
}
