//! The fence by itself, on each line of etcd.

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use syncer::etcd::client::EtcdEndpoint;
use syncer::migrate::Origin;
use syncer::migrate::fence::{self, FencePhase};
use syncer::migrate::fenced::{self, Fenced, Gate};

use super::*;
use crate::migrate::open;
use crate::support::etcd::{PATIENCE, SOURCES};
use crate::support::poll;

fn endpoint(source: &Deployed) -> EtcdEndpoint {
    EtcdEndpoint { url: source.url(), tls: None, server_name: None }
}

fn raised(source: &Deployed, data: &Path) -> Fenced {
    run(async {
        let etcd = endpoint(source);
        let looked = fenced::look(&etcd, fence::load(data).expect("a record").as_ref()).await.expect("a look");
        fenced::raise(&RealDisk, data, &etcd, &looked, Gate::default()).await.expect("raise")
    })
}

fn lifted(source: &Deployed, data: &Path) {
    let record = fence::load(data).expect("read the record").expect("a record");
    run(fenced::lift(&RealDisk, data, &endpoint(source), &record, Duration::from_secs(30))).expect("lift");
}

pub(super) fn own_member(source: &Deployed) -> u64 {
    source.asked(async |mut client| client.status().await.expect("status").header().expect("a header").member_id())
}

pub(super) fn alarm(source: &Deployed, action: AlarmAction, member: u64, kind: AlarmType) {
    source.asked(async |mut client| {
        let mut of = AlarmOptions::new();
        of.with_member(member);
        client.alarm(action, kind, Some(of)).await.expect("an alarm");
    });
}

#[test]
fn nothing_is_written_while_it_stands_and_everything_when_it_is_lifted() {
    for line in SOURCES {
        let volume = tempfile::tempdir().expect("a volume");
        let mut source = Deployed::start(line, 1, None);
        source.fill(50);
        let fenced = raised(&source, volume.path());
        assert_eq!(fence::load(volume.path()).expect("read").expect("a record").phase, FencePhase::Raised);
        let before = source.everything();
        assert_eq!(before.0, fenced.revision.0, "{line}");
        source.asked(async |mut client| {
            let refused = [
                client.put("/a", "x", None).await.map(drop),
                client.delete("/registry/last", None).await.map(drop),
                client
                    .txn(etcd_client::Txn::new().and_then([etcd_client::TxnOp::put("/b", "x", None)]))
                    .await
                    .map(drop),
                client.lease_grant(60, None).await.map(drop),
                client.lease_revoke(77).await.map(drop),
                client.compact(before.0, None).await.map(drop),
            ];
            for outcome in refused {
                let error = outcome.expect_err("a write is refused");
                assert!(error.to_string().contains("corrupt cluster"), "{line}: {error}");
            }
        });
        // Restarted, as a kubelet does that finds it unhealthy.
        let member = source.members.pop().expect("a member");
        let spec = member.spec.clone();
        drop(member);
        source.members.push(spec.start());
        assert!(!source.takes_writes(), "{line}: the fence does not outlive a restart");
        assert_eq!(source.everything(), before, "{line}");
        lifted(&source, volume.path());
        assert_eq!(fence::load(volume.path()).expect("read").expect("a record").phase, FencePhase::Lifted);
        assert!(source.takes_writes(), "{line}: it is not lifted");
        let alarms = source.one().ctl(&["alarm", "list"]);
        assert_eq!(alarms.trim(), "", "{line}: alarms are left");
        // Raised again in the same name, and lifted once more.
        assert_eq!(raised(&source, volume.path()).alarm, fenced.alarm);
        assert!(!source.takes_writes());
        lifted(&source, volume.path());
        assert!(source.takes_writes());
    }
}

/// Before 3.6 a NOSPACE alarm would take the place of CORRUPT, under which deletions go through.
#[test]
fn it_holds_when_the_source_runs_out_of_space_meanwhile() {
    for line in SOURCES {
        let volume = tempfile::tempdir().expect("a volume");
        let source = Deployed::start(line, 1, None);
        source.fill(20);
        let member = own_member(&source);
        raised(&source, volume.path());
        alarm(&source, AlarmAction::Activate, member, AlarmType::Nospace);
        let deleted = source.asked(async |mut client| client.delete("/registry/last", None).await);
        let error = deleted.expect_err("a deletion is refused").to_string();
        assert!(error.contains("corrupt cluster"), "{line}: {error}");
        alarm(&source, AlarmAction::Deactivate, member, AlarmType::Nospace);
        assert!(!source.takes_writes(), "{line}");
        lifted(&source, volume.path());
        assert!(source.takes_writes(), "{line}");
    }
}

/// Before 3.6 the end of our alarms would be the end of its own.
#[test]
fn a_source_without_space_has_none_when_it_is_lifted() {
    for line in SOURCES {
        let volume = tempfile::tempdir().expect("a volume");
        let source = Deployed::start(line, 1, None);
        source.fill(20);
        let member = own_member(&source);
        alarm(&source, AlarmAction::Activate, member, AlarmType::Nospace);
        raised(&source, volume.path());
        lifted(&source, volume.path());
        let error = source.asked(async |mut client| client.put("/more", "x", None).await);
        let error = error.expect_err("a put is refused").to_string();
        assert!(error.contains("space exceeded"), "{line}: {error}");
        source
            .asked(async |mut client| client.delete("/registry/last", None).await)
            .expect("what makes room goes through");
        alarm(&source, AlarmAction::Deactivate, member, AlarmType::Nospace);
        assert!(source.takes_writes(), "{line}");
    }
}

/// Each has looked before the other has raised its fence: never do both commit, and the source serves on when both are lifted.
#[test]
fn of_two_moves_at_once_at_most_one_is_committed() {
    for line in SOURCES {
        let [one, two, copy] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
        let source = Deployed::start(line, 1, None);
        source.fill(20);
        let etcd = endpoint(&source);
        let looked = run(fenced::look(&etcd, None)).expect("a look");
        let first = raised(&source, one.path());
        let mut store = open(&Origin::fenced(first), Path::new("etcd"), &copy.path().join("copy")).expect("a snapshot");
        let second = run(fenced::raise(&RealDisk, two.path(), &etcd, &looked, Gate::default()));
        let error = second.expect_err("two fences").to_string();
        assert!(error.contains("beside the fence"), "{line}: {error}");
        let error = store.confirm().expect_err("two fences").to_string();
        assert!(error.contains("beside the fence"), "{line}: {error}");
        lifted(&source, two.path());
        // Before 3.6 that was the end of both.
        assert_eq!(store.confirm().is_ok(), !source.takes_writes(), "{line}");
        lifted(&source, one.path());
        assert!(source.takes_writes(), "{line}");
    }
}

/// A lease whose time is over keeps its keys until the fence is lifted: their deletion would be a write.
#[test]
fn leases_do_not_expire_behind_it() {
    let sources: Vec<_> = SOURCES
        .into_iter()
        .map(|line| {
            let (volume, source) = (tempfile::tempdir().expect("a volume"), Deployed::start(line, 1, None));
            source.asked(async |mut client| {
                client.lease_grant(15, Some(LeaseGrantOptions::new().with_id(5))).await.expect("a lease");
                let leased = PutOptions::new().with_lease(5);
                client.put("/registry/events/short", "x", Some(leased)).await.expect("put");
            });
            let fenced = raised(&source, volume.path());
            (line, volume, source, fenced)
        })
        .collect();
    for (line, volume, source, fenced) in sources {
        let log = &source.one().log;
        poll(&format!("{line}: it tries to revoke the lease"), PATIENCE, || {
            std::fs::read_to_string(log).expect("etcd's log").contains("failed to revoke").then_some(())
        });
        let (revision, keys) = source.everything();
        assert_eq!((revision, keys.len()), (fenced.revision.0, 1), "{line}");
        lifted(&source, volume.path());
        poll(&format!("{line}: the key goes with its lease"), PATIENCE, || {
            source.everything().1.is_empty().then_some(())
        });
    }
}

/// The alarms of others are others': theirs stay when ours is lifted, and who finds them does not move.
#[test]
fn alarms_of_others_are_not_ours() {
    let volume = tempfile::tempdir().expect("a volume");
    let source = Deployed::start("3.6", 1, None);
    let member = own_member(&source);
    raised(&source, volume.path());
    alarm(&source, AlarmAction::Activate, member, AlarmType::Corrupt);
    lifted(&source, volume.path());
    assert!(!source.takes_writes(), "the source's own alarm is gone");
    let look = || run(fenced::look(&endpoint(&source), fence::load(volume.path()).expect("a record").as_ref()));
    let error = look().expect_err("it is corrupt").to_string();
    assert!(error.contains("says of itself") && error.contains("CORRUPT"), "{error}");
    alarm(&source, AlarmAction::Deactivate, member, AlarmType::Corrupt);
    look().expect("it is sound again");
}

/// Somebody disarms the alarm by hand while the store is read, and writes.
#[test]
fn what_was_written_in_spite_of_it_is_seen_before_the_commit() {
    let (volume, copy) = (tempfile::tempdir().expect("a volume"), tempfile::tempdir().expect("a folder"));
    let source = Deployed::start("3.6", 1, None);
    source.fill(20);
    let open = |fenced: &Fenced| {
        open(&Origin::fenced(fenced.clone()), Path::new("etcd"), &copy.path().join("copy")).expect("a snapshot")
    };
    let fenced = raised(&source, volume.path());
    open(&fenced).confirm().expect("nothing was written");
    let mut store = open(&fenced);
    source.one().ctl(&["alarm", "disarm"]);
    let error = store.confirm().expect_err("it was disarmed").to_string();
    assert!(error.contains("does not hold"), "{error}");
    assert!(source.takes_writes());
    // And raised again by the same hand: the revision tells.
    alarm(&source, AlarmAction::Activate, fenced.alarm.0, AlarmType::Corrupt);
    let error = store.confirm().expect_err("it was written to").to_string();
    assert!(error.contains("in spite of the fence"), "{error}");
    assert!(fenced.gate.commit());
}
