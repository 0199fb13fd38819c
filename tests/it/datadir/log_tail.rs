//! What the end of a real etcd's log says about memberships, beside what etcd itself said.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{MemberAddOptions, PutOptions};
use syncer::datadir::{LogTail, Role, log_tail};
use syncer::ids::MemberId;

use super::read::usable;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, put_surely, run, try_remove};
use crate::support::poll;

for_each_line! {
    memberships_are_those_that_etcd_had => check_memberships,
    changes_that_never_committed_are_told => check_uncommitted,
    a_member_that_was_removed_knows_it => check_removed,
}

/// The end of the log of a stopped member.
#[track_caller]
pub fn tail_of(spec: &EtcdSpec) -> LogTail {
    log_tail(&usable(spec)).unwrap_or_else(|e| panic!("etcd {}: {e}", spec.line))
}

/// A new cluster of so many voters, all serving.
pub fn cluster(line: &'static str, home: &std::path::Path, count: usize, flags: &[&str]) -> Vec<Etcd> {
    let mut specs: Vec<EtcdSpec> =
        (0..count).map(|n| EtcdSpec::new(line, &format!("pod-{n}"), &home.join(format!("etcd-{n}")))).collect();
    let all: Vec<String> = specs.iter().map(|spec| format!("{}={}", spec.name, spec.peer_url())).collect();
    for spec in &mut specs {
        spec.initial_cluster = Some(all.join(","));
        spec.flags = flags.iter().map(|flag| flag.to_string()).collect();
    }
    let mut started: Vec<Etcd> = specs.iter().map(EtcdSpec::spawn).collect();
    started.iter_mut().for_each(Etcd::wait_until_serving);
    started
}

/// The members' positions: the leader's first, then the others'.
pub fn leader_first(members: &[Etcd]) -> (usize, Vec<usize>) {
    poll("a leader is known", PATIENCE, || {
        run(async {
            let status = members[0].client().await.status().await.ok()?;
            let mut leader = None;
            for (n, member) in members.iter().enumerate() {
                let own = member.client().await.status().await.ok()?.header()?.member_id();
                leader = leader.or((own == status.leader()).then_some(n));
            }
            let leader = leader?;
            Some((leader, (0..members.len()).filter(|n| *n != leader).collect()))
        })
    })
}

fn sorted(ids: impl IntoIterator<Item = u64>) -> Vec<MemberId> {
    ids.into_iter().collect::<BTreeSet<_>>().into_iter().map(MemberId).collect()
}

/// Voters and learners as etcd lists them.
fn listed(etcd: &Etcd) -> (Vec<MemberId>, Vec<MemberId>) {
    run(async {
        let list = etcd.client().await.member_list().await.expect("list members");
        let ids = |learner| sorted(list.members().iter().filter(|m| m.is_learner() == learner).map(|m| m.id()));
        (ids(false), ids(true))
    })
}

/// After each change of the membership, with and without a raft snapshot behind it: the log says what etcd lists.
fn check_memberships(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    for snapshots in [false, true] {
        let mut spec = EtcdSpec::new(line, "pod-0", &home.path().join(format!("etcd-0-{snapshots}")));
        if snapshots {
            spec.flags = vec!["--snapshot-count".into(), "3".into()];
        }
        let mut etcd = spec.start();
        let mut steps = 0;
        let mut check = |etcd: &mut Etcd, what: &str| {
            let want = listed(etcd);
            etcd.kill();
            let tail = tail_of(&spec);
            let last = tail.memberships.last().expect("a membership");
            assert_eq!((last.voters.clone(), last.learners.clone()), want, "{what}: {tail:?}");
            assert_eq!(last.role, Role::Voter, "{what}");
            steps += 1;
        };
        check(&mut etcd, "formed");
        etcd = spec.start();
        // Added as a learner, refused with a taken peer URL, never started, removed again; then another one.
        let absent = format!("http://127.0.0.1:{}", spec.client_port);
        let id = super::read::add_learner(&etcd, &absent);
        run(async {
            let mut client = etcd.client().await;
            client.put("/a", "1", Some(PutOptions::new())).await.expect("put");
        });
        check(&mut etcd, "a learner");
        etcd = spec.start();
        run(async { etcd.client().await.member_remove(id).await.expect("remove the learner") });
        check(&mut etcd, "no learner");
        assert_eq!(steps, 3);
    }
}

/// Changes that a lone survivor proposed and could not commit.
fn check_uncommitted(line: &'static str) {
    for count in [2, 3] {
        // On a busy machine the leader may have lost its majority before it is asked, and proposes nothing.
        let proposed = (0..8).any(|_| proposes_uncommitted(line, count));
        assert!(proposed || count == 3, "etcd {line} never proposed to remove one of {count}");
    }
}

/// Whether the change was proposed. What the log then says of it is checked either way.
fn proposes_uncommitted(line: &'static str, count: usize) -> bool {
    let home = tempfile::tempdir().expect("make a directory");
    let mut members = cluster(line, home.path(), count, &[]);
    let (leader, others) = leader_first(&members);
    let (voters, _) = listed(&members[leader]);
    let gone = run(async {
        let mut client = members[others[0]].client().await;
        client.status().await.expect("status").header().expect("a header").member_id()
    });
    // A new leader drops changes until it has applied what it found in its log.
    run(async { put_surely(&mut members[leader].client().await, "/a", "1").await });
    for other in &others {
        members[*other].kill();
    }
    // It is proposed, and nobody is there to agree; with three voters etcd may refuse to begin.
    run(async {
        let mut client = members[leader].client().await;
        let asked = client.member_remove(gone);
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
        assert!(!matches!(answer, Ok(Ok(_))), "etcd {line} removed a member without a majority");
    });
    members[leader].kill();
    let tail = tail_of(&members[leader].spec);
    assert_eq!(tail.memberships[0].voters, voters);
    assert!(tail.memberships[0].committed && tail.always_voter());
    assert_eq!((tail.voters_max(), tail.other_voters().len()), (count, count - 1));
    let rest: Vec<_> = tail.memberships.iter().skip(1).map(|m| (m.voters.len(), m.committed)).collect();
    let proposed = rest == [(count - 1, false)];
    assert!(proposed || rest.is_empty(), "{tail:?}");
    proposed
}

/// A member that applied its own removal is in no membership; one that was down at that time cannot know.
fn check_removed(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut members = cluster(line, home.path(), 2, &[]);
    let (leader, others) = leader_first(&members);
    let removed = others[0];
    let own = run(async {
        let mut client = members[removed].client().await;
        client.status().await.expect("status").header().expect("a header").member_id()
    });
    poll("the other is removed", PATIENCE, || {
        run(async { try_remove(&mut members[leader].client().await, own).await })
    });
    members[removed].wait_until_ended();
    let tail = tail_of(&members[removed].spec);
    assert_eq!((tail.member, tail.always_voter()), (MemberId(own), false), "{tail:?}");
    assert_eq!(tail.memberships.last().map(|m| m.role), Some(Role::Absent), "{tail:?}");
    // A URL that is taken is refused without a trace.
    let taken = members[leader].spec.peer_url();
    run(async {
        let options = Some(MemberAddOptions::new().with_is_learner());
        let answer = members[leader].client().await.member_add([taken], options).await;
        answer.expect_err("the peer URL is taken");
    });
    members[leader].stop();
    assert!(tail_of(&members[leader].spec).is_alone());
}
