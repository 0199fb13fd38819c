//! The supervisor at work: what is restarted, what ends it, in which order it stops, and its duties as PID 1.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use syncer::datadir::DatadirLock;
use syncer::exit::{Exit, exit_of};
use syncer::serve::health::Health;
use syncer::supervise::probe::Watch;
use syncer::supervise::spec::{ChildSpec, LogFormat, Ready, Role};
use syncer::supervise::{Anew, Control, Plan, StopSignals, control, run as supervise};
use tokio::sync::watch;

use super::Solo;
use crate::support::etcd::{PATIENCE, connect_to, run};
use crate::support::pod::{TestPod, children_of};
use crate::support::poll;

fn shell(script: &str) -> ChildSpec {
    ChildSpec {
        role: Role::ApiServer,
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Default::default(),
        env_remove_prefixes: vec![],
        cwd: None,
        ready: Ready::Started,
        log: LogFormat::Plain,
        stop_grace: Duration::from_secs(1),
    }
}

fn plan(solo: &Solo, dir: &Path, specs: Vec<ChildSpec>) -> (Plan, Control) {
    let (control, commands) = control();
    let lock = Arc::new(DatadirLock::acquire(dir, Duration::ZERO).expect("lock the folder"));
    let watch = Watch { every: Duration::from_millis(200), hangs_after: Duration::from_secs(1) };
    let etcd = solo.access();
    (
        Plan {
            specs,
            lock,
            etcd,
            grace: Duration::from_secs(8),
            watch,
            commands,
            anew: Anew::default(),
            hold: false,
            depart: None,
        },
        control,
    )
}

/// Runs the supervisor and `script` beside it; ends both when the script ends.
async fn beside<T>(plan: Plan, script: impl AsyncFnOnce(watch::Receiver<Health>) -> T) -> T {
    let (health, watched) = watch::channel(Health::default());
    let mut stop = StopSignals::new().expect("listen for signals");
    tokio::select! {
        ended = supervise(plan, &mut stop, health) => panic!("the supervisor ended: {ended:?}"),
        result = script(watched) => result,
    }
}

async fn until(what: &str, watched: &mut watch::Receiver<Health>, wanted: impl Fn(&Health) -> bool) {
    let seen = tokio::time::timeout(PATIENCE, watched.wait_for(wanted)).await.map(|found| found.is_ok());
    assert!(seen == Ok(true), "{what}: not within {PATIENCE:?}, or the supervisor is gone: {:?}", *watched.borrow());
}

/// The processes in whose command line `text` stands.
fn pids_of(text: &str) -> Vec<Pid> {
    let children = children_of(Pid::this());
    let named = |pid: &Pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    children.into_iter().filter(named).collect()
}

#[test]
fn an_etcd_that_hangs_is_started_anew_and_the_api_server_runs_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let solo = Solo::new("3.6", dir.path());
    let proof = dir.path().join("starts");
    let api = shell(&format!("echo started >> {}; exec sleep 1000", proof.display()));
    let data_dir = solo.launch.data_dir.display().to_string();
    let (plan, _control) = plan(&solo, dir.path(), vec![solo.spec(), api]);
    run(beside(plan, async |mut health| {
        until("all serve", &mut health, |h| h.datastore_ready && h.apiserver_ready).await;
        let etcd = pids_of(&data_dir);
        assert_eq!(etcd.len(), 1, "{etcd:?}");
        kill(etcd[0], Signal::SIGSTOP).expect("stop it from running");
        until("it is missed", &mut health, |h| !h.datastore_ready && h.apiserver_ready).await;
        until("another serves", &mut health, |h| h.datastore_ready).await;
        assert_ne!(pids_of(&data_dir), etcd);
        assert_eq!(
            std::fs::read_to_string(&proof).expect("its proof"),
            "started\n",
            "the API server was started twice"
        );
    }));
}

/// Without a quorum a read waits for its deadline, and the next one is far away: the member itself says that it has no leader.
#[test]
fn an_etcd_that_knows_no_leader_serves_no_longer_without_waiting_for_a_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let solo = Solo::new("3.6", dir.path());
    let (mut plan, _control) = plan(&solo, dir.path(), vec![solo.spec()]);
    plan.watch.every = Duration::from_secs(24 * 60 * 60);
    run(beside(plan, async |mut health| {
        until("it serves", &mut health, |h| h.datastore_ready).await;
        let mut client = connect_to(&solo.launch.client_url, Some(&solo.tls)).await;
        // A second voter that never comes.
        client.member_add(["https://localhost:1"], None).await.expect("add a member");
        until("it is known to have no quorum", &mut health, |h| !h.datastore_ready).await;
    }));
}

#[test]
fn a_restart_that_is_asked_for_takes_the_new_spec() {
    let dir = tempfile::tempdir().expect("a folder");
    let solo = Solo::new("3.6", dir.path());
    let proof = dir.path().join("starts");
    let api = |word: &str| shell(&format!("echo {word} >> {}; exec sleep 1000", proof.display()));
    let (plan, control) = plan(&solo, dir.path(), vec![solo.spec(), api("old")]);
    run(beside(plan, async |mut health| {
        until("all serve", &mut health, |h| h.apiserver_ready).await;
        told(&proof, "old\n").await;
        assert!(control.replace(api("old")), "the same again is no change");
        assert!(control.replace(api("new")) && control.restart(&[Role::Etcd]));
        until("etcd is started anew", &mut health, |h| !h.datastore_ready).await;
        until("all serve again", &mut health, |h| h.datastore_ready && h.apiserver_ready).await;
        told(&proof, "old\nnew\n").await;
    }));
}

/// Waits until this is what the file holds.
async fn told(file: &Path, want: &str) {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text == want {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{} holds {text:?}, not {want:?}", file.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs to the end that must come by itself; its exit code and message.
fn failure(plan: Plan) -> (Exit, String) {
    let (health, _watched) = watch::channel(Health::default());
    let ended = run(async {
        let mut stop = StopSignals::new().expect("listen for signals");
        tokio::time::timeout(PATIENCE, supervise(plan, &mut stop, health)).await
    });
    let error = ended.expect("it ends by itself").expect_err("it ends with an error");
    (exit_of(&error), format!("{error:#}"))
}

#[test]
fn what_no_restart_can_help_ends_the_program_with_its_own_code_and_the_others_stopped() {
    let dir = tempfile::tempdir().expect("a folder");
    let solo = Solo::new("3.6", dir.path());
    let data_dir = solo.launch.data_dir.display().to_string();
    let mut wrong = solo.spec();
    wrong.args.push("--nonsense=1".into());
    let (bad_flag, _control) = plan(&solo, dir.path(), vec![wrong]);
    let (exit, message) = failure(bad_flag);
    assert_eq!(exit, Exit::Usage, "{message}");
    assert!(message.contains("nonsense") && message.contains("extraArgs"), "{message}");

    let (no_wal, _control) = plan(&solo, dir.path(), vec![Solo::new("3.6", dir.path()).restarting().spec()]);
    assert_eq!(failure(no_wal).0, Exit::RefusedMembership);

    let missing = ChildSpec { program: "/nowhere/kube-apiserver".into(), ..shell("") };
    let (missing, _control) = plan(&solo, dir.path(), vec![solo.spec(), missing]);
    let (exit, message) = failure(missing);
    assert_eq!(exit, Exit::Usage, "{message}");
    assert!(message.contains("/nowhere/kube-apiserver"), "{message}");
    assert_eq!(pids_of(&data_dir), [], "etcd runs on");
}

#[test]
fn a_child_that_ends_at_once_is_not_started_in_a_loop() {
    let dir = tempfile::tempdir().expect("a folder");
    let solo = Solo::new("3.6", dir.path());
    let proof = dir.path().join("starts");
    let api = shell(&format!("echo started >> {}; echo it broke; exit 7", proof.display()));
    let (plan, _control) = plan(&solo, dir.path(), vec![api]);
    run(beside(plan, async |_| tokio::time::sleep(Duration::from_secs(3)).await));
    let starts = std::fs::read_to_string(&proof).expect("its proof").lines().count();
    // At 0, 0.25, 0.75 and 1.75 s; a slow machine starts it less often.
    assert!((2..=4).contains(&starts), "started {starts} times in 3 s");
}

#[test]
fn the_api_server_is_stopped_before_etcd_within_the_grace_even_if_it_will_not_end() {
    let mut pod = TestPod::new();
    let ready = pod.data().join("trap-set");
    let script = format!("trap 'echo it was told to end' TERM; touch {}; while :; do sleep 1; done", ready.display());
    pod.start("none", &["--shutdown-grace=8s", "--", "/bin/sh", "-c", &script]);
    poll("the command runs", PATIENCE, || {
        pod.assert_running();
        ready.exists().then_some(())
    });
    let begun = Instant::now();
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "it took {took:?}");
    let log = pod.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text:?} is not in the log:\n{log}"));
    assert!(at("it was told to end") < at("closing etcd server"), "etcd was stopped first:\n{log}");
    assert!(at("did not end in its time: killed") < at("closing etcd server"), "{log}");
}

/// A pod with a command that does not hear SIGTERM.
fn deaf(grace: &str) -> TestPod {
    let mut pod = TestPod::new();
    let ready = pod.data().join("trap-set");
    let script = format!("trap '' TERM; touch {}; while :; do sleep 1; done", ready.display());
    pod.start("none", &[grace, "--", "/bin/sh", "-c", &script]);
    poll("the command runs", PATIENCE, || {
        pod.assert_running();
        ready.exists().then_some(())
    });
    pod
}

#[test]
fn a_second_signal_hurries() {
    let mut pod = deaf("--shutdown-grace=30s");
    kill(pod.pid(), Signal::SIGTERM).expect("send SIGTERM");
    poll("the first is heard", PATIENCE, || pod.log().contains("told to stop").then_some(()));
    let heard = Instant::now();
    poll("a second one is another", PATIENCE, || (heard.elapsed() > Duration::from_millis(400)).then_some(()));
    let begun = Instant::now();
    kill(pod.pid(), Signal::SIGTERM).expect("send SIGTERM");
    poll("the command is killed", PATIENCE, || pod.log().contains("did not end in its time: killed").then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?} of the 30 s of its grace", begun.elapsed());
    assert_eq!(pod.wait_end(PATIENCE).code(), Some(0), "{}", pod.log());
}

/// One that stands still beyond its grace, as on a machine that does, has killed nobody by then: it does so, and ends well.
#[test]
fn a_stop_that_stood_still_beyond_its_grace_ends_well() {
    let mut pod = deaf("--shutdown-grace=6s");
    kill(pod.pid(), Signal::SIGTERM).expect("send SIGTERM");
    poll("it is heard", PATIENCE, || pod.log().contains("told to stop").then_some(()));
    kill(pod.pid(), Signal::SIGSTOP).expect("stop syncer");
    let stopped = Instant::now();
    poll("its time is over", PATIENCE, || (stopped.elapsed() > Duration::from_secs(10)).then_some(()));
    kill(pod.pid(), Signal::SIGCONT).expect("let syncer go on");
    assert_eq!(pod.wait_end(PATIENCE).code(), Some(0), "{}", pod.log());
}

/// timeout(1) and some shells signal a process and then its group: that is one stop, and the command keeps its grace.
#[test]
fn two_signals_at_once_are_one_stop() {
    let mut pod = TestPod::new();
    let (ready, clean) = (pod.data().join("trap-set"), pod.data().join("clean"));
    let script = format!(
        "trap 'sleep 1; touch {}; exit 0' TERM; touch {}; while :; do sleep 0.1; done",
        clean.display(),
        ready.display()
    );
    pod.start("none", &["--shutdown-grace=30s", "--", "/bin/sh", "-c", &script]);
    poll("the command runs", PATIENCE, || {
        pod.assert_running();
        ready.exists().then_some(())
    });
    kill(pod.pid(), Signal::SIGTERM).expect("send SIGTERM");
    assert_eq!(pod.stop().code(), Some(0), "{}", pod.log());
    assert!(clean.exists(), "the command was cut short:\n{}", pod.log());
}

#[test]
fn a_hangup_stops_in_order() {
    use std::os::unix::process::CommandExt;
    let mut pod = TestPod::new();
    let mut command = pod.command("none", &[]);
    // Whoever runs the tests may have had it ignored (nohup), which is inherited and holds for syncer too.
    // SAFETY: signal takes no pointers here, and may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    pod.spawn(command);
    pod.wait_serving();
    kill(pod.pid(), Signal::SIGHUP).expect("send SIGHUP");
    assert_eq!(pod.wait_end(Duration::from_secs(30)).code(), Some(0), "{}", pod.log());
}

#[test]
fn as_pid_1_it_reaps_orphans_and_no_child_of_its_own() {
    let mut pod = TestPod::new();
    let proof = pod.data().join("orphans");
    // Ten processes whose parents are gone: each notes who its parent is now, and ends.
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do \
           (sh -c 'sleep 0.3; grep ^PPid: /proc/self/status >> {}' & exit 0) & \
         done; sleep 1; kill -9 $$",
        proof.display()
    );
    let inner = pod.command("none", &["--", "/bin/sh", "-c", &script]);
    let mut command = std::process::Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"]);
    command.arg(inner.get_program()).args(inner.get_args());
    pod.spawn(command);
    pod.wait_serving();
    poll("the command was started again", PATIENCE, || {
        pod.assert_running();
        let orphans = std::fs::read_to_string(&proof).unwrap_or_default();
        // `grep` is the shell's child; the shell is the orphan.
        (orphans.lines().count() >= 20).then_some(())
    });
    let one = children_of(pod.pid());
    assert_eq!(one.len(), 1, "syncer is the only child of unshare: {one:?}");
    poll("no zombie is left", Duration::from_secs(10), || {
        let zombies = children_of(one[0])
            .into_iter()
            .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z ")));
        (zombies.count() == 0).then_some(())
    });
    assert!(pod.log().contains("was killed with SIGKILL"), "its own child's status was lost:\n{}", pod.log());
    kill(one[0], Signal::SIGTERM).expect("send SIGTERM to PID 1");
    assert_eq!(pod.wait_end(Duration::from_secs(30)).code(), Some(0), "{}", pod.log());
}
