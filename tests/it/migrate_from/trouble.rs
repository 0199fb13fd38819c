//! Sources that are restarted, compacted, defragmented, silent, or half dead while they are moved.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use syncer::migrate::fence::{self, FencePhase};

use super::*;
use crate::support::etcd::PATIENCE;
use crate::support::poll;

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid fits")), signal).expect("send a signal");
}

/// Starts the pod, which halts at a crash point behind the fence; the caller lets it go on.
fn halted_at(pod: &mut TestPod, point: &str, url: &str) {
    halted(pod, point, pod.command("none", &[&from(url)]));
}

/// The same with a command of the caller's.
pub(super) fn halted(pod: &mut TestPod, point: &str, mut command: Command) {
    command.env("SYNCER_HALT_AT", point);
    pod.spawn(command);
    let stat = format!("/proc/{}/stat", pod.pid());
    poll(&format!("it halts at {point}"), PATIENCE, || {
        pod.assert_running();
        let stat = std::fs::read_to_string(&stat).ok()?;
        stat.rsplit_once(") ")?.1.starts_with('T').then_some(())
    });
    assert!(!pod.data().join("etcd").exists(), "the move is committed already: {}", pod.log());
}

pub(super) fn goes_on(pod: &TestPod) {
    signal(pod.pid().as_raw().cast_unsigned(), Signal::SIGCONT);
}

/// As kubelets do: etcd's `/health` fails under the fence, at all members at the same time.
#[test]
fn a_source_whose_members_are_all_restarted_in_the_midst_is_moved() {
    for (line, members, point) in
        [("3.4", 1, "fence-raised"), ("3.5", 3, "fence-raised"), ("3.6", 1, "migrate-verified")]
    {
        let mut source = Deployed::start(line, members, None);
        source.fill(1000);
        let want = source.everything();
        let mut pod = TestPod::new();
        halted_at(&mut pod, point, &source.url());
        source.members.iter_mut().for_each(Etcd::kill);
        goes_on(&pod);
        poll("the pod misses the source", PATIENCE, || pod.log().contains("asking again").then_some(()));
        let specs: Vec<_> = source.members.drain(..).map(|member| member.spec.clone()).collect();
        source.members = specs.iter().map(EtcdSpec::spawn).collect();
        source.members.iter_mut().for_each(Etcd::wait_until_serving);
        pod.wait_serving();
        assert_eq!(moved(&pod), want, "{line}");
        assert_eq!(source.everything(), want, "{line}");
        assert!(!source.takes_writes(), "{line}: the fence does not outlive a restart");
    }
}

/// A Service that leads nowhere once it was closed, as one does whose pods are not ready.
struct Service {
    port: u16,
    open: Arc<AtomicBool>,
}

impl Service {
    fn of(source: &Deployed) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (port, open) = (listener.local_addr().expect("an address").port(), Arc::new(AtomicBool::new(true)));
        let (to, leads) = (source.url().rsplit_once('/').expect("a URL").1.to_owned(), Arc::clone(&open));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let (true, Ok(server)) = (leads.load(Ordering::Relaxed), TcpStream::connect(&to)) else { continue };
                for (mut from, mut into) in [(&client, &server), (&server, &client)]
                    .map(|(a, b)| (a.try_clone().expect("a socket"), b.try_clone().expect("a socket")))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Service { port, open }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }
}

/// Behind the fence etcd's health check fails: whoever is restarted for it is not ready any more, and the Service that was named
/// drops it. The move goes on, or is given up, by the members' own names.
#[test]
fn a_source_whose_service_drops_it_behind_the_fence_is_moved_or_let_go() {
    for (line, point) in [("3.4", "fence-raised"), ("3.6", "fence-stands")] {
        let mut source = Deployed::start(line, 1, None);
        source.fill(100);
        let mut pod = TestPod::new();
        let service = Service::of(&source);
        let mut command = pod.command("none", &[&from(&service.url())]);
        command.env("SYNCER_CRASH_AT", point);
        pod.spawn(command);
        assert!(!pod.wait_end(PATIENCE).success(), "{}", pod.log());
        service.close();
        let (code, log) = ended(&mut pod, &[]);
        assert!(code == Some(4) && log.contains("was begun on this volume and not completed"), "{line}: {log}");
        assert!(source.takes_writes(), "{line}: it is left fenced: {log}");

        let want = source.everything();
        let service = Service::of(&source);
        halted_at(&mut pod, point, &service.url());
        service.close();
        // What was connected is gone as well.
        source.members.iter_mut().for_each(Etcd::kill);
        let specs: Vec<_> = source.members.drain(..).map(|member| member.spec.clone()).collect();
        source.members = specs.iter().map(EtcdSpec::start).collect();
        goes_on(&pod);
        pod.wait_serving();
        assert_eq!(moved(&pod), want, "{line}");
        assert!(!source.takes_writes(), "{line}");
    }
}

/// Two of three are a quorum, and both ways of moving go on with them. One that is left alone may lack what the others have
/// acknowledged, though it would send a snapshot.
#[test]
fn a_source_with_a_dead_member_is_moved_and_a_member_without_a_quorum_is_not() {
    let home = tempfile::tempdir().expect("a folder");
    let mut source = Deployed::start("3.5", 3, None);
    source.members[0].kill();
    source.members[2].wait_until_serving();
    source.fill(300);
    let want = source.everything();
    let target = home.path().join("etcd");
    let (code, said) = copied(&source.url(), &target);
    assert_eq!(code, Some(0), "{said}");
    let etcd = EtcdSpec::new("3.6", "default", &target).start();
    assert_eq!(run(async { contents(&mut etcd.client().await).await }), want);
    drop(etcd);

    let mut pod = TestPod::new();
    pod.start("none", &[&from(&source.url())]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want);
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    // The one that was dead learns of the fence when it returns.
    let spec = source.members[0].spec.clone();
    source.members[0] = spec.start();
    let refused = run(async { source.members[0].client().await.put("/probe", "x", None).await }).expect_err("a write");
    assert!(refused.to_string().contains("corrupt cluster"), "{refused}");

    source.one().ctl(&["alarm", "disarm"]);
    source.members[0].kill();
    source.members[1].kill();
    let dead = source.members[0].spec.client_url();
    for (url, why) in [(source.url(), "read linearizably"), (dead, "ask for the status")] {
        let nothing = home.path().join("nothing");
        let (code, said) = copied(&url, &nothing);
        let words = format!("no snapshot can be taken from {url}: {why}");
        assert!(code == Some(4) && said.contains(&words), "{code:?}, not {words:?}: {said}");
        assert!(!nothing.exists() && !home.path().join("nothing.migration.source").exists(), "{said}");
    }
}

/// An API server's compaction, and a job that defragments.
#[test]
fn a_source_that_is_compacted_and_defragmented_meanwhile_is_moved() {
    for line in ["3.5", "3.6"] {
        let source = Deployed::start(line, 1, None);
        source.fill(2000);
        let (stop, compacted, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let spec = source.one().spec.clone();
        let mut pod = TestPod::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                run(async {
                    let mut client = crate::support::etcd::connect(&spec.client_url()).await;
                    while !stop.load(Ordering::Relaxed) {
                        let put = client.put("/registry/changing", "x", None).await;
                        let fenced = put.is_err_and(|error| error.to_string().contains("corrupt cluster"));
                        let read = client.get("/registry/changing", None).await.expect("read");
                        match client.compact(read.header().expect("a header").revision(), None).await {
                            Ok(_) if fenced => panic!("compacted behind the fence"),
                            Ok(_) => drop(compacted.fetch_add(1, Ordering::Relaxed)),
                            Err(error) if fenced => {
                                assert!(error.to_string().contains("corrupt cluster"), "{error}");
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(_) => {}
                        }
                        client.defragment().await.expect("defragment");
                    }
                });
            });
            poll("it is compacted", PATIENCE, || (compacted.load(Ordering::Relaxed) > 3).then_some(()));
            pod.start("none", &[&from(&source.url())]);
            pod.wait_serving();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(refused.load(Ordering::Relaxed) > 0, "{line}: it was not behind the fence");
        assert_eq!(moved(&pod), source.everything(), "{line}");
    }
}

/// It takes connections and says nothing, behind the fence: a stop is in time, whatever the move is at, and leaves the record
/// of the fence, by which the next start lifts it. If it is silent for good, that is told and not waited for.
#[test]
fn a_source_that_hangs_behind_the_fence_holds_up_nothing_for_long() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(1000);
    let want = source.everything();
    let mut pod = TestPod::new();
    let silent = |pod: &mut TestPod, point: &str, patience: Option<&str>| {
        let mut command = pod.command("none", &[&from(&source.url())]);
        for name in ["SYNCER_PATIENCE_SECONDS", "SYNCER_SNAPSHOT_STALLED_SECONDS"] {
            command.envs(patience.map(|seconds| (name, seconds)));
        }
        halted(pod, point, command);
        signal(source.one().pid(), Signal::SIGSTOP);
        goes_on(pod);
    };
    let recorded = |pod: &TestPod| fence::load(&pod.data()).expect("read").expect("a record").phase;
    // While its fence is looked at, and while its snapshot is taken, on a thread of its own.
    for point in ["fence-raised", "fence-stands"] {
        silent(&mut pod, point, None);
        let begun = Instant::now();
        let status = pod.stop();
        signal(source.one().pid(), Signal::SIGCONT);
        assert_eq!(status.code(), Some(0), "{point}: {}", pod.log());
        assert!(begun.elapsed() < Duration::from_secs(25), "{point} took {:?}: {}", begun.elapsed(), pod.log());
        assert!(pod.log().contains("is not lifted, and it may refuse writes"), "{point}: {}", pod.log());
        assert_eq!(recorded(&pod), FencePhase::Raised, "{point}");
    }
    silent(&mut pod, "fence-stands", Some("2"));
    let status = pod.wait_end(Duration::from_secs(120));
    signal(source.one().pid(), Signal::SIGCONT);
    assert_eq!(status.code(), Some(4), "{}", pod.log());
    let log = pod.log();
    assert_eq!(log.matches("taking another snapshot").count(), 1, "it was not given up: {log}");
    assert!(log.contains("cannot be moved from") && log.contains("by hand: `etcdctl alarm disarm`"), "{log}");
    assert_eq!(recorded(&pod), FencePhase::Raised);
    // It lifts the fence first, and raises it again.
    pod.start("none", &[&from(&source.url())]);
    pod.wait_serving();
    assert_eq!(moved(&pod), want);
    assert_eq!(recorded(&pod), FencePhase::Kept);
}
