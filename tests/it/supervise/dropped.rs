//! What etcd drops in silence, so that whoever asked waits: what the rules of one change of the members at a time, and of
//! moving leadership in quiet moments alone, rest on.

use std::time::Duration;

use etcd_client::Client;
use tokio::time::{Instant, timeout};

use crate::reset::pods::cluster;
use crate::support::etcd::{Etcd, PATIENCE, run};

/// A change of the members takes milliseconds; one that is dropped waits for its caller's patience, or for etcd's seven seconds.
const DROPPED: Duration = Duration::from_secs(2);
/// About a third of the pairs, or of the moves under writers, lose something: so many tries always show it.
const TRIES: usize = 60;

/// A change that names a member's URLs as they are: the smallest there is.
async fn change(client: &mut Client, member: &(u64, Vec<String>)) -> bool {
    timeout(DROPPED, client.member_update(member.0, member.1.clone())).await.is_ok_and(|answer| answer.is_ok())
}

/// Raft takes one change of the members at a time. A second is dropped while the first is pending, and nobody is told; one
/// after the other, all go through. Hence one writer of the membership, which waits for each.
#[test]
fn of_two_changes_of_the_members_at_once_one_is_dropped_in_silence() {
    let home = tempfile::tempdir().expect("a folder");
    let members = cluster("3.6", home.path(), 3, &[]);
    run(async {
        let (mut one, mut two) = (members[1].client().await, members[2].client().await);
        let list = one.member_list().await.expect("list the members");
        let of = |n: usize| {
            let member = list.members().iter().find(|member| member.name() == members[n].spec.name).expect("listed");
            (member.id(), member.peer_urls().to_vec())
        };
        let (first, second) = (of(1), of(2));
        for n in 0..10 {
            for (client, member) in [(&mut one, &first), (&mut two, &second)] {
                let changed = client.member_update(member.0, member.1.clone()).await;
                assert!(changed.is_ok(), "{n}, one after the other: {changed:?}");
            }
        }
        for _ in 0..TRIES {
            let (a, b) = tokio::join!(change(&mut one, &first), change(&mut two, &second));
            if !(a && b) {
                return;
            }
        }
        panic!("of {TRIES} pairs of changes at once none was dropped: is the rule still needed?");
    });
}

/// Which of them leads.
async fn leader_of(members: &[Etcd]) -> usize {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        for (n, member) in members.iter().enumerate() {
            let status = member.client().await.status().await;
            if status.is_ok_and(|status| status.header().is_some_and(|header| header.member_id() == status.leader())) {
                return n;
            }
        }
    }
    panic!("nobody leads");
}

/// How long the longest of a follower's writers waited while leadership moved; `None` where another had come to lead.
async fn longest(members: &[Etcd], leader: usize, to: usize, writers: usize) -> Option<Duration> {
    let ids = {
        let list = members[0].client().await.member_list().await.expect("list the members");
        list.members().iter().map(|member| (member.name().to_owned(), member.id())).collect::<Vec<_>>()
    };
    let id = ids.iter().find(|(name, _)| *name == members[to].spec.name).expect("listed").1;
    let follower = (0..members.len()).find(|n| ![leader, to].contains(n)).expect("a third member");
    let done = std::cell::Cell::new(false);
    let writer = async |n: usize| {
        let mut client = members[follower].client().await;
        let mut longest = Duration::ZERO;
        while !done.get() {
            let began = Instant::now();
            // A proposal that was dropped ends in an error, after etcd's own time-out.
            let _ = client.put(format!("/writer/{n}"), "x", None).await;
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let moved = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let moved = members[leader].client().await.move_leader(id).await.is_ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
        done.set(true);
        moved
    };
    let (waits, moved) = tokio::join!(futures_util::future::join_all((0..writers).map(writer)), moved);
    moved.then(|| waits.into_iter().max().unwrap_or_default())
}

/// What followers have forwarded to a leader that moves is dropped, and its callers wait for etcd's own seven seconds. With
/// nothing on the way, nothing waits. Hence leadership is moved in quiet moments, and before its pod leaves.
#[test]
fn writes_on_their_way_to_a_leader_that_moves_wait_for_seconds() {
    let home = tempfile::tempdir().expect("a folder");
    let members = cluster("3.6", home.path(), 3, &[]);
    run(async {
        let (mut moves, mut lost) = (0, 0);
        for _ in 0..TRIES {
            let leader = leader_of(&members).await;
            if longest(&members, leader, (leader + 1) % 3, 0).await.is_some() {
                moves += 1;
                lost += u32::from(members[2].client().await.put("/quiet", "x", None).await.is_err());
            }
            if moves == 6 {
                break;
            }
        }
        // A slow disk may cost a leader its place by itself.
        assert!(moves == 6 && lost <= 1, "of {moves} moves in quiet moments {lost} lost the write right after it");
        for _ in 0..TRIES {
            let leader = leader_of(&members).await;
            let waited = longest(&members, leader, (leader + 1) % 3, 8).await;
            if waited.is_some_and(|longest| longest > Duration::from_secs(5)) {
                return;
            }
        }
        panic!("in {TRIES} moves under eight writers none waited for seconds: is the rule still needed?");
    });
}
