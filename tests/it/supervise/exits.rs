//! Why etcd ended: each cause brought about on the real program, on every line.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use syncer::supervise::child::{Child, spawn};
use syncer::supervise::exit::ExitCause;
use syncer::supervise::relay::{Relay, follow};
use syncer::supervise::spec::ChildSpec;

use super::Solo;
use crate::support::etcd::{EtcdSpec, LINES, PATIENCE, run, try_remove};
use crate::support::poll;

/// Starts a child.
fn start(spec: &ChildSpec) -> (Child, Relay) {
    let (child, output) = spawn(spec, None).expect("start the child");
    (child, follow(spec.role, spec.log, output))
}

/// Waits for its end and judges it.
async fn judged(child: &mut Child, relay: Relay) -> ExitCause {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("look at it") {
            return ExitCause::of(child.role(), status, false, &relay.last_words().await);
        }
        assert!(begun.elapsed() < PATIENCE, "process {} does not end", child.pid());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn end_of(spec: &ChildSpec) -> ExitCause {
    run(async {
        let (mut child, relay) = start(spec);
        judged(&mut child, relay).await
    })
}

/// Calls `test` for every line with a member that has never run.
fn on_each_line(test: impl Fn(Solo, &Path)) {
    for line in LINES {
        let dir = tempfile::tempdir().expect("a folder");
        test(Solo::new(line, dir.path()), dir.path());
    }
}

/// Runs it until it has written its first snapshot of the keys, and stops it.
fn run_once(solo: &Solo) {
    run(async {
        let (mut child, _relay) = start(&solo.spec());
        let mut client = syncer::etcd::client::EtcdClient::connect(&solo.endpoint()).await.expect("a client");
        poll_async("it serves", async || client.linearizable_read(Duration::from_secs(5)).await.is_ok()).await;
        child.stop_blocking(Duration::from_secs(20)).expect("stop it");
    });
}

#[test]
fn a_flag_that_it_does_not_know() {
    on_each_line(|solo, _| {
        for flag in ["--nonsense=1", "--heartbeat-interval=x", "--election-timeout=100"] {
            let mut spec = solo.spec();
            spec.args.push(flag.into());
            let cause = end_of(&spec);
            assert!(matches!(cause, ExitCause::BadFlag(_)), "{} {flag}: {cause:?}", solo.version);
            assert!(!cause.restart_helps());
        }
    });
}

#[test]
fn a_taken_port() {
    on_each_line(|solo, _| {
        for port in [solo.launch.client_port, solo.launch.peer_port, solo.launch.metrics.port()] {
            let holder = std::net::TcpListener::bind(("127.0.0.1", port)).expect("take the port");
            let cause = end_of(&solo.spec());
            let ExitCause::PortTaken(listener) = &cause else { panic!("{} {port}: {cause:?}", solo.version) };
            assert!(listener.starts_with("listen ") && listener.contains(&port.to_string()), "{listener}");
            drop(holder);
        }
    });
}

#[test]
fn no_address_to_listen_on() {
    on_each_line(|mut solo, _| {
        // Of the documentation's network: no machine has it.
        (solo.launch.listen, solo.launch.loopback_only) = ([192, 0, 2, 1].into(), false);
        let cause = end_of(&solo.spec());
        let ExitCause::NoAddress(listener) = &cause else { panic!("{}: {cause:?}", solo.version) };
        assert!(listener.starts_with("listen tcp 192.0.2.1:"), "{listener}");
    });
}

#[test]
fn too_few_open_files() {
    on_each_line(|solo, _| {
        let mut spec = solo.spec();
        let script = ["-c", "ulimit -n 64 && exec \"$@\"", "sh"].map(Into::into);
        let args = script.into_iter().chain([spec.program.clone().into()]).chain(spec.args).collect();
        (spec.program, spec.args) = ("/bin/sh".into(), args);
        assert_eq!(end_of(&spec), ExitCause::TooFewFiles, "{}", solo.version);
    });
}

/// Overwrites part of a file with what is in no etcd file.
fn damage(file: &Path, offset: u64, len: usize) {
    let file = std::fs::File::options().write(true).open(file).expect("open the file to damage");
    file.write_all_at(&vec![0xa5; len], offset).expect("damage it");
}

fn wal(solo: &Solo) -> PathBuf {
    let mut names: Vec<_> = std::fs::read_dir(solo.launch.data_dir.join("member/wal"))
        .expect("list the WAL")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wal"))
        .collect();
    names.sort();
    names.swap_remove(0)
}

#[test]
fn damaged_data() {
    type Damage = fn(&Solo);
    let ways: [(&str, Damage); 3] = [
        ("both meta pages", |solo| damage(&solo.launch.data_dir.join("member/snap/db"), 0, 8192)),
        ("the other pages", |solo| damage(&solo.launch.data_dir.join("member/snap/db"), 8192, 40 * 4096)),
        ("the WAL", |solo| damage(&wal(solo), 100, 200)),
    ];
    for (what, way) in ways {
        on_each_line(|solo, _| {
            run_once(&solo);
            let solo = solo.restarting();
            way(&solo);
            let cause = end_of(&solo.spec());
            assert!(matches!(cause, ExitCause::Corrupt(_)), "{} {what}: {cause:?}", solo.version);
        });
    }
}

#[test]
fn a_lost_data_dir_is_never_taken_for_a_new_one() {
    on_each_line(|solo, _| {
        let solo = solo.restarting();
        let cause = end_of(&solo.spec());
        assert!(matches!(cause, ExitCause::BootstrapRefused(_)), "{}: {cause:?}", solo.version);
    });
}

#[test]
fn a_full_volume() {
    on_each_line(|solo, dir| {
        let volume = dir.join("volume");
        std::fs::create_dir(&volume).expect("make a mount point");
        let mut spec = solo.spec();
        let data_dir = format!("--data-dir={}", volume.join("etcd").display());
        // A mount namespace of its own: nothing is left mounted, whatever happens. Too small for the first WAL file.
        let script = "mount -t tmpfs -o size=10m tmpfs \"$1\" && shift && exec \"$@\"";
        let root = nix::unistd::geteuid().is_root();
        let mut args: Vec<std::ffi::OsString> =
            [if root { "-m" } else { "-rm" }, "/bin/sh", "-c", script, "sh"].map(Into::into).to_vec();
        args.extend([volume.into(), spec.program.clone().into()]);
        args.extend(spec.args.iter().filter(|a| !a.to_string_lossy().starts_with("--data-dir=")).cloned());
        args.push(data_dir.into());
        (spec.program, spec.args) = ("unshare".into(), args);
        assert_eq!(end_of(&spec), ExitCause::DiskFull, "{}", solo.version);
    });
}

#[test]
fn killed_from_outside() {
    on_each_line(|solo, _| {
        run(async {
            let (mut child, relay) = start(&solo.spec());
            child.signal(Signal::SIGKILL);
            assert_eq!(judged(&mut child, relay).await, ExitCause::Killed);
        });
    });
}

#[test]
fn a_member_that_was_removed_now_and_at_its_next_start() {
    for line in LINES {
        let dir = tempfile::tempdir().expect("a folder");
        let mut first = EtcdSpec::new(line, "first", &dir.path().join("first"));
        let mut second = EtcdSpec::new(line, "second", &dir.path().join("second"));
        let cluster = format!("first={},second={}", first.peer_url(), second.peer_url());
        (first.initial_cluster, second.initial_cluster) = (Some(cluster.clone()), Some(cluster));
        let spec = ChildSpec {
            args: second.args().into_iter().map(Into::into).chain(["--logger=zap".into()]).collect(),
            ..Solo::new(line, dir.path()).spec()
        };
        let mut survivor = first.spawn();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("build a runtime");
        let (mut child, relay) = runtime.block_on(async { start(&spec) });
        survivor.wait_until_serving();
        runtime.block_on(async {
            let mut client = survivor.client().await;
            let list = client.member_list().await.expect("a list");
            let id = list.members().iter().find(|m| m.name() == "second").expect("the second member").id();
            // Refused for the first seconds, until the connection is taken for healthy.
            poll_async("the member is removed", async || try_remove(&mut client, id).await.is_some()).await;
            assert_eq!(judged(&mut child, relay).await, ExitCause::Removed, "etcd {line}, at its removal");
            for _ in 0..3 {
                let (mut child, relay) = start(&spec);
                assert_eq!(judged(&mut child, relay).await, ExitCause::Removed, "etcd {line}, started again");
            }
        });
    }
}

pub async fn poll_async(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !probe().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_second_etcd_on_the_data_dir_waits_and_says_nothing() {
    on_each_line(|solo, dir| {
        // Their output is not read: a reader that goes away would end them.
        let (mut first, _kept) = spawn(&solo.spec(), None).expect("start etcd");
        poll("the first one has its data dir", PATIENCE, || {
            solo.launch.data_dir.join("member/wal/0000000000000000-0000000000000000.wal").exists().then_some(())
        });
        let mut other = Solo::new(solo.line, dir);
        other.launch.data_dir.clone_from(&solo.launch.data_dir);
        let (mut second, _output) = spawn(&other.spec(), None).expect("start a second");
        run(async {
            let mut client = syncer::etcd::client::EtcdClient::connect(&other.endpoint()).await.expect("a client");
            assert!(client.linearizable_read(Duration::from_secs(1)).await.is_err(), "two serve {}", solo.version);
        });
        assert!(second.try_wait().expect("look").is_none(), "it ended: then its words could be looked for");
        first.stop_blocking(Duration::from_secs(10)).expect("stop the first");
    });
}
