//! The decisions of one pod among several.

use super::*;
use crate::exit::Exit;
use crate::ids::{RaftIndex, Term};

mod form;
mod join;
mod released;
mod reset;
mod totality;

const MINE: ClusterId = ClusterId(2);
const OTHER: ClusterId = ClusterId(9);

fn at(term: u64, index: u64) -> LogPosition {
    LogPosition { term: Term(term), index: RaftIndex(index) }
}

fn member(n: u32) -> Member {
    Member { id: MemberId(u64::from(n) + 1), ordinal: Some(Ordinal(n)), learner: false }
}

fn list(ordinals: &[u32]) -> Known<MemberList> {
    Known::Present(MemberList { cluster: MINE, members: ordinals.iter().copied().map(member).collect() })
}

/// The seed of three with a host API: a formed marker, an empty volume, nothing known of the others.
fn three() -> Facts {
    Facts {
        desired: Desired::Host(3),
        host_configured: true,
        marker: seen(MarkerPhase::Formed(MINE)),
        claims: Known::Present(vec![Ordinal(1), Ordinal(2)]),
        peers: vec![PeerFact::new(Ordinal(1)), PeerFact::new(Ordinal(2))],
        ..facts()
    }
}

/// The same with a data dir of member 1, a voter among these ordinals.
fn voter_of(voters: &[u32]) -> Facts {
    let others: Vec<_> = voters.iter().copied().filter(|n| *n != 0).map(member).collect();
    let voters_now = others.iter().map(|member: &Member| member.id).collect();
    let voters = voters.len().try_into().unwrap();
    let log = LogFact { last: at(2, 10), role: Role::Voter, voters, others, voters_now };
    Facts { data_dir: valid(), log: Known::Present(log), ..three() }
}

/// Scaled to one, the other pods gone.
fn alone(voters: &[u32]) -> Facts {
    let mut f = Facts { desired: Desired::Host(1), ..voter_of(voters) };
    f.peers.iter_mut().for_each(|peer| peer.pod = Known::Absent);
    f
}

fn says(f: &mut Facts, ordinal: u32, state: PeerState) {
    f.peers.iter_mut().find(|p| p.ordinal == Ordinal(ordinal)).unwrap().state = Known::Present(state);
}

fn marked(change: impl FnOnce(&mut Marker)) -> Known<MarkerSeen> {
    let mut marker = Marker::new(MarkerPhase::Formed(MINE));
    change(&mut marker);
    Known::Present(MarkerSeen { version: "7".into(), marker })
}

fn log(f: &mut Facts) -> &mut LogFact {
    match &mut f.log {
        Known::Present(log) => log,
        _ => panic!(),
    }
}

#[track_caller]
fn expect(f: &Facts, want: BootDecision, rule: Rule) {
    assert_eq!(explained(f, Rules::ALL), (want, rule), "{f:#?}");
}

fn starts(f: &Facts) -> bool {
    matches!(decide(f), BootDecision::Start { .. })
}

#[test]
fn facts_and_decisions_survive_json() {
    for f in [facts(), three(), voter_of(&[0, 1, 2]), alone(&[0, 1])] {
        let text = serde_json::to_string(&f).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), f);
        let decision = decide(&f);
        let text = serde_json::to_string(&decision).unwrap();
        assert_eq!(serde_json::from_str::<BootDecision>(&text).unwrap(), decision);
    }
}
