//! The decisions of one pod among several.

use super::*;
use crate::ids::{RaftIndex, Term};

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
    let others = voters.iter().copied().filter(|n| *n != 0).map(member).collect();
    let log = LogFact { last: at(2, 10), role: Role::Voter, voters: voters.len().try_into().unwrap(), others };
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
fn only_the_seed_forms() {
    let seed = PeerFact { state: Known::Present(PeerState::Empty), ..PeerFact::new(Ordinal(0)) };
    let f = Facts { ordinal: Ordinal(1), peers: vec![seed], ..facts() };
    expect(&f, BootDecision::Wait(Wait::ForSeed(Ordinal(0))), Rule::SeedForms);
    assert_eq!(explained(&f, Rules::without(&[Rule::SeedForms])).0, BootDecision::Form);
}

#[test]
fn nothing_is_formed_while_the_host_api_is_away() {
    let f = Facts { marker: Known::Unknown("timeout".into()), ..three() };
    expect(&f, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::HostAnswers);
    let f = Facts { marker: Known::Absent, desired: Desired::Unknown("timeout".into()), ..three() };
    assert!(matches!(decide(&f), BootDecision::Wait(Wait::HostAway(_))));
}

#[test]
fn without_a_marker_every_pod_with_a_volume_must_say_that_it_is_empty() {
    let mut f = Facts { marker: Known::Absent, ..three() };
    let silent = vec![Ordinal(1), Ordinal(2)];
    expect(&f, BootDecision::Wait(Wait::PeersNotKnownEmpty(silent)), Rule::ClaimsAnswer);
    says(&mut f, 1, PeerState::Empty);
    expect(&f, BootDecision::Wait(Wait::PeersNotKnownEmpty(vec![Ordinal(2)])), Rule::ClaimsAnswer);
    says(&mut f, 2, PeerState::Empty);
    assert!(matches!(decide(&f), BootDecision::Record(Record::Forming(Some(_)))));
    // A pod that is not wanted any more counts as well.
    f.desired = Desired::Host(1);
    f.peers[1].state = Known::default();
    assert_eq!(decide(&f), BootDecision::Wait(Wait::PeersNotKnownEmpty(vec![Ordinal(2)])));
    // No volume but this one: nobody is left to ask.
    let f = Facts { claims: Known::Present(vec![]), peers: vec![], ..f };
    assert!(matches!(decide(&f), BootDecision::Record(Record::Forming(Some(_)))));
}

#[test]
fn without_a_host_api_dns_is_no_answer() {
    let lone = |state, dns| Facts {
        desired: Desired::Values(2),
        peers: vec![PeerFact { state, dns, ..PeerFact::new(Ordinal(1)) }],
        ..facts()
    };
    let wait = || BootDecision::Wait(Wait::PeersNotKnownEmpty(vec![Ordinal(1)]));
    for dns in [Known::Absent, Known::default(), Known::Present(())] {
        for state in [Known::Absent, Known::default()] {
            expect(&lone(state, dns.clone()), wait(), Rule::PeersSayEmpty);
        }
        let f = lone(Known::Present(PeerState::Empty), dns);
        assert_eq!(decide(&f), BootDecision::Form);
    }
    // Wanted and not even looked for.
    expect(&Facts { desired: Desired::Values(2), ..facts() }, wait(), Rule::PeersSayEmpty);
    // A higher ordinal counts while it may have a DNS record.
    for (dns, forms) in [(Known::Absent, true), (Known::default(), false), (Known::Present(()), false)] {
        let f = Facts { desired: Desired::Values(1), ..lone(Known::default(), dns) };
        assert_eq!(decide(&f) == BootDecision::Form, forms);
    }
}

#[test]
fn a_formation_is_noted_recorded_and_only_then_started() {
    let mut f = Facts { marker: Known::Absent, claims: Known::Absent, peers: vec![], ..three() };
    let BootDecision::Record(Record::Forming(Some(write))) = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert_eq!((write.expect, write.marker.phase), (None, MarkerPhase::Forming));
    // The marker is there and the note is not, as after a lost volume: the note first.
    f.marker = seen(MarkerPhase::Forming);
    assert_eq!(decide(&f), BootDecision::Record(Record::Forming(None)));
    f.notes.forming = true;
    expect(&f, BootDecision::Form, Rule::SeedForms);
    f.data_dir = valid();
    let BootDecision::Record(Record::Formed(write)) = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert_eq!((write.expect.as_deref(), write.marker.phase), (Some("7"), MarkerPhase::Formed(MINE)));
    assert_eq!(write.marker.writes, 2);
    // The marker cannot be read: nobody's writes are taken.
    let away = Facts { marker: Known::Unknown("timeout".into()), ..f.clone() };
    expect(&away, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::FormingNoted);
    f.marker = seen(MarkerPhase::Formed(MINE));
    assert_eq!(decide(&f), BootDecision::Record(Record::FormingDone));
    f.notes.forming = false;
    assert!(starts(&f));
    // A data dir that the note does not speak of starts without the host API.
    assert!(starts(&Facts { marker: Known::default(), ..f }));
}

#[test]
fn a_second_store_is_refused_on_both_pods() {
    let store: PathBuf = "/data/state.db".into();
    let mut f = Facts { desired: Desired::Values(2), peers: vec![PeerFact::new(Ordinal(1))], ..facts() };
    says(&mut f, 1, PeerState::Store(store.clone()));
    let refusal = Refusal::StoreElsewhere { ordinal: Ordinal(1), store: store.clone() };
    expect(&f, BootDecision::Refuse(refusal.clone()), Rule::StoreOfSeed);
    assert!(refusal.what().contains("pod 1") && refusal.what().contains("/data/state.db"));
    let stores = StoresFact { state_dbs: vec![store], ..StoresFact::default() };
    let second = Facts { ordinal: Ordinal(1), stores, ..facts() };
    assert!(matches!(decide(&second), BootDecision::Refuse(Refusal::NotTheSeed { .. })));
}

#[test]
fn a_store_beside_a_formed_cluster_joins() {
    let stores = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    let f = Facts { ordinal: Ordinal(1), stores, members: list(&[0]), ..three() };
    assert!(matches!(decide(&f), BootDecision::Join { .. }));
}

#[test]
fn an_empty_volume_joins_what_exists_and_never_forms() {
    let mut f = three();
    expect(&f, BootDecision::Wait(Wait::NobodyToJoin(MINE)), Rule::FormedOnce);
    f.members = list(&[1, 2]);
    expect(&f, BootDecision::Join { cluster: MINE, replace: None }, Rule::AskLeader);
    f.members = list(&[0, 1, 2]);
    expect(&f, BootDecision::Join { cluster: MINE, replace: Some(MemberId(1)) }, Rule::ReplaceListed);
    // Any of these alone shows that a cluster exists.
    let absent = || Facts { marker: Known::Absent, ..three() };
    let mut data = absent();
    says(&mut data, 2, peer_of(MINE));
    let mut view = absent();
    view.peers[0].members = list(&[0, 1, 2]);
    let mut aside = absent();
    aside.notes.set_aside = Some(MINE);
    for f in [data, view, aside] {
        expect(&f, BootDecision::Wait(Wait::NobodyToJoin(MINE)), Rule::FormedOnce);
    }
}

#[test]
fn a_volume_whose_data_dir_was_set_aside_never_forms() {
    let f = Facts { notes: Notes { set_aside: Some(MINE), ..Notes::default() }, ..facts() };
    expect(&f, BootDecision::Refuse(Refusal::FormedElsewhere(MINE)), Rule::FormedOnce);
}

#[test]
fn who_is_not_wanted_is_not_added() {
    let f = Facts { ordinal: Ordinal(2), desired: Desired::Host(2), members: list(&[0, 1]), ..three() };
    let wait = Wait::Surplus { ordinal: Ordinal(2), desired: 2 };
    expect(&f, BootDecision::Wait(wait), Rule::NeverAddSurplus);
    let unknown = Facts { desired: Desired::Unknown("timeout".into()), ..f };
    assert!(matches!(decide(&unknown), BootDecision::Wait(Wait::HostAway(_))));
    // Whoever is listed was wanted: its place is filled again.
    let listed = Facts { members: list(&[0, 1, 2]), ..unknown };
    assert!(matches!(decide(&listed), BootDecision::Join { replace: Some(_), .. }));
}

#[test]
fn joining_needs_one_shared_ca_and_starting_does_not() {
    let f = Facts { shared_ca: false, members: list(&[1]), ..three() };
    expect(&f, BootDecision::Refuse(Refusal::NoSharedCa), Rule::SharedCa);
    assert!(starts(&Facts { shared_ca: false, ..voter_of(&[0, 1, 2]) }));
}

#[test]
fn a_data_dir_is_set_aside_only_on_a_linearizable_list_without_it() {
    let mut f = voter_of(&[0, 1, 2]);
    f.peers[0].members = list(&[1, 2]);
    assert!(starts(&f), "a lagging peer's own view proves nothing");
    f.members = list(&[0, 1, 2]);
    assert!(starts(&f));
    f.members = list(&[1, 2]);
    expect(&f, BootDecision::SetAside { member: MemberId(1), cluster: MINE }, Rule::LinearizableProof);
    // A list of another cluster says nothing about this one.
    f.members = Known::Present(MemberList { cluster: OTHER, members: vec![member(1)] });
    assert!(starts(&f));
}

#[test]
fn two_unrelated_clusters_are_named_and_left_alone() {
    let refusal = || BootDecision::Refuse(Refusal::TwoClusters { mine: MINE, other: OTHER });
    let f = Facts { marker: seen(MarkerPhase::Formed(OTHER)), ..voter_of(&[0]) };
    expect(&f, refusal(), Rule::OneCluster);
    let mut f = Facts { marker: Known::Absent, ..voter_of(&[0]) };
    says(&mut f, 1, peer_of(OTHER));
    expect(&f, refusal(), Rule::OneCluster);
    // The marker knows which one is right.
    f.marker = seen(MarkerPhase::Formed(MINE));
    assert!(starts(&f));
    let mut f = Facts { marker: Known::Absent, members: list(&[1]), ..three() };
    says(&mut f, 2, peer_of(OTHER));
    expect(&f, refusal(), Rule::OneCluster);
}

#[test]
fn data_waits_while_the_seed_forms() {
    let f = Facts { ordinal: Ordinal(1), marker: seen(MarkerPhase::Forming), ..voter_of(&[0]) };
    expect(&f, BootDecision::Wait(Wait::SeedIsForming(MINE)), Rule::FormedOnce);
}

#[test]
fn a_superseded_data_dir_never_starts() {
    let by_marker = |f: &mut Facts| {
        f.marker = marked(|m| {
            m.phase = MarkerPhase::Formed(OTHER);
            m.superseded.push(MINE);
        });
    };
    let by_note = |f: &mut Facts| f.notes.superseded.push(MINE);
    let by_seed = |f: &mut Facts| {
        f.ordinal = Ordinal(1);
        f.peers[0] = PeerFact { superseded: vec![MINE], ..PeerFact::new(Ordinal(0)) };
    };
    let says_so: [&dyn Fn(&mut Facts); 3] = [&by_marker, &by_note, &by_seed];
    for say in says_so {
        let mut f = Facts { marker: Known::default(), ..voter_of(&[0, 1, 2]) };
        say(&mut f);
        expect(&f, BootDecision::Wait(Wait::SupersededNotServed(MINE)), Rule::Superseded);
        says(&mut f, 2, PeerState::Serving { member: MemberId(3), cluster: MINE });
        expect(&f, BootDecision::Wait(Wait::SupersededNotServed(MINE)), Rule::Superseded);
        says(&mut f, 2, PeerState::Serving { member: MemberId(3), cluster: OTHER });
        expect(&f, BootDecision::SetAside { member: MemberId(1), cluster: MINE }, Rule::Superseded);
    }
    // Another than the seed's word is not believed.
    let mut f = Facts { marker: Known::default(), ..voter_of(&[0, 1, 2]) };
    f.peers[1].superseded = vec![MINE];
    assert!(starts(&f));
}

#[test]
fn two_voters_scaled_to_one_are_reset_once_the_marker_names_the_survivor() {
    let mut f = alone(&[0, 1]);
    let (BootDecision::Record(Record::Survivor(write)), rule) = explained(&f, Rules::ALL) else { panic!() };
    assert_eq!((write.expect.as_deref(), rule), (Some("7"), Rule::ResetByHost));
    assert_eq!((write.marker.survivor, &write.marker.dropped[..]), (Some(MemberId(1)), &[MemberId(2)][..]));
    f.marker = Known::Present(MarkerSeen { version: "8".into(), marker: write.marker });
    let reset = BootDecision::Reset { member: MemberId(1), cluster: MINE };
    expect(&f, reset.clone(), Rule::ResetByHost);
    // Begun: finished whatever the facts say now.
    f.notes.resetting = true;
    f.desired = Desired::Unknown("timeout".into());
    f.marker = Known::default();
    expect(&f, reset, Rule::ResetFinished);
    log(&mut f).others.clear();
    expect(&f, BootDecision::Record(Record::ResetDone), Rule::ResetFinished);
}

#[test]
fn a_reset_needs_every_one_of_its_conditions() {
    let resets =
        |f: &Facts| matches!(decide(f), BootDecision::Record(Record::Survivor(_)) | BootDecision::Reset { .. });
    assert!(resets(&alone(&[0, 1])));
    type Change = (&'static str, fn(&mut Facts));
    let without: [Change; 12] = [
        ("a learner", |f| log(f).role = Role::Learner),
        ("removed", |f| log(f).role = Role::Removed),
        ("three voters in a membership", |f| log(f).voters = 3),
        ("the WAL's end unknown", |f| f.log = Known::default()),
        ("a pod that exists", |f| {
            f.peers[0].pod = Known::Present(PodFact { terminating: true, current_revision: None })
        }),
        ("a pod of which nothing is known", |f| f.peers[0].pod = Known::default()),
        ("two wanted", |f| f.desired = Desired::Host(2)),
        ("the values' word", |f| f.desired = Desired::Values(1)),
        ("no word", |f| f.desired = Desired::Unknown("timeout".into())),
        ("a quorum", |f| f.members = list(&[0, 1])),
        ("no marker to be read", |f| f.marker = Known::default()),
        ("a foreign voter", |f| log(f).others[0].ordinal = None),
    ];
    for (what, change) in without {
        let mut f = alone(&[0, 1]);
        change(&mut f);
        assert!(!resets(&f), "resets with {what}");
        assert!(starts(&f), "{what}");
    }
    let dropped = Facts { marker: marked(|m| m.dropped.push(MemberId(1))), ..alone(&[0, 1]) };
    let wait = Wait::Dropped { member: MemberId(1), survivor: None };
    expect(&dropped, BootDecision::Wait(wait), Rule::DroppedNeverStarts);
}

#[test]
fn of_two_voters_one_goes_on_when_the_other_says_that_its_disk_is_empty() {
    let mut f = voter_of(&[0, 1]);
    assert!(starts(&f));
    says(&mut f, 1, PeerState::Empty);
    assert!(matches!(decide(&f), BootDecision::Record(Record::Survivor(_))));
    // Without a host API there is no marker to name it in, and nothing that ever reset in secret.
    let f = Facts { host_configured: false, marker: Known::default(), desired: Desired::Values(2), ..f };
    expect(&f, BootDecision::Reset { member: MemberId(1), cluster: MINE }, Rule::ResetNeeded);
}

#[test]
fn without_a_host_api_scaling_to_one_never_resets() {
    let mut f = Facts { host_configured: false, desired: Desired::Values(1), ..alone(&[0, 1]) };
    f.peers.iter_mut().for_each(|peer| peer.dns = Known::Absent);
    assert!(starts(&f));
    assert!(matches!(explained(&f, Rules::without(&[Rule::ResetByHost])).0, BootDecision::Record(_)));
}

#[test]
fn three_voters_reset_only_on_what_the_others_have_noted() {
    let noted = |entries: &[(u64, u64, u64)]| {
        let stopped = |(id, term, index): &(u64, u64, u64)| Stopped { member: MemberId(*id), last: at(*term, *index) };
        Facts { marker: marked(|m| m.stopped = entries.iter().map(stopped).collect()), ..alone(&[0, 1, 2]) }
    };
    let names = |f: &Facts| matches!(decide(f), BootDecision::Record(Record::Survivor(_)));
    assert!(names(&noted(&[(2, 2, 10), (3, 1, 99)])));
    assert!(!names(&noted(&[(2, 2, 10)])), "one has noted nothing");
    assert!(!names(&noted(&[(2, 2, 10), (3, 2, 11)])), "one is ahead");
    assert!(!names(&noted(&[(2, 2, 10), (9, 2, 1)])), "a stranger's note");
    let hindered = noted(&[]);
    let BootDecision::Start { warnings, .. } = decide(&hindered) else { panic!() };
    let wait = Wait::MajorityGone { gone: vec![Ordinal(1), Ordinal(2)], replicas: 3 };
    assert!(wait.remedy().contains("scale up to 3") && wait.what().contains("1, 2"));
    assert_eq!(warnings, [Warning::NoQuorum(wait)]);
}

#[test]
fn a_naming_that_was_not_acted_upon_is_taken_back() {
    let named = marked(|m| {
        m.survivor = Some(MemberId(1));
        m.dropped.push(MemberId(2));
    });
    let f = Facts { marker: named, ..voter_of(&[0, 1]) };
    let BootDecision::Record(Record::NoSurvivor(write)) = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert_eq!((write.marker.survivor, write.marker.dropped.len()), (None, 0));
}

#[test]
fn what_was_noted_at_a_stop_is_taken_back_before_the_start() {
    let mut f = voter_of(&[0, 1, 2]);
    f.notes.stopped = true;
    f.marker = marked(|m| m.stopped.push(Stopped { member: MemberId(1), last: at(2, 10) }));
    let BootDecision::Record(Record::Withdrawn(write)) = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert!(write.marker.stopped.is_empty());
    // Written even if nothing is noted: a delayed write may be on its way.
    f.marker = marked(|_| ());
    assert!(matches!(decide(&f), BootDecision::Record(Record::Withdrawn(_))));
    f.marker = Known::Absent;
    expect(&f, BootDecision::Record(Record::WithdrawnAlready), Rule::StopWithdrawn);
    f.marker = Known::Unknown("timeout".into());
    expect(&f, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::StopWithdrawn);
}

#[test]
fn the_leader_restores_a_missing_marker_and_strikes_who_is_a_member() {
    let Known::Present(list) = list(&[0, 1]) else { panic!() };
    let write = marker::upkeep(&Known::Absent, &list, Rules::ALL).unwrap();
    assert_eq!((write.expect, write.marker.formed()), (None, Some(MINE)));
    assert_eq!(marker::upkeep(&Known::default(), &list, Rules::ALL), None);
    assert_eq!(marker::upkeep(&seen(MarkerPhase::Formed(MINE)), &list, Rules::ALL), None);
    assert_eq!(marker::upkeep(&seen(MarkerPhase::Formed(OTHER)), &list, Rules::ALL), None);
    let late = marked(|m| m.dropped = vec![MemberId(2), MemberId(7)]);
    assert_eq!(marker::upkeep(&late, &list, Rules::ALL).unwrap().marker.dropped, [MemberId(7)]);
}

#[test]
fn a_restore_supersedes_in_the_marker() {
    let Known::Present(now) = marked(|m| m.dropped.push(MemberId(7))) else { panic!() };
    let write = now.superseding(MINE, OTHER);
    assert_eq!((write.marker.formed(), &write.marker.superseded[..]), (Some(OTHER), &[MINE][..]));
    assert!(write.marker.dropped.is_empty());
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

mod totality {
    use proptest::prelude::*;

    use super::*;

    fn known<T: Clone + std::fmt::Debug + 'static>(
        value: impl Strategy<Value = T> + 'static,
    ) -> BoxedStrategy<Known<T>> {
        prop_oneof![value.prop_map(Known::Present), Just(Known::Absent), Just(Known::Unknown("x".into()))].boxed()
    }

    fn ids() -> impl Strategy<Value = MemberId> {
        (1..5u64).prop_map(MemberId)
    }

    fn clusters() -> impl Strategy<Value = ClusterId> {
        prop_oneof![Just(MINE), Just(OTHER), Just(ClusterId(3))]
    }

    fn ordinals() -> impl Strategy<Value = Ordinal> {
        prop_oneof![9 => 0..4u32, 1 => Just(u32::MAX)].prop_map(Ordinal)
    }

    fn positions() -> impl Strategy<Value = LogPosition> {
        (0..3u64, 0..3u64).prop_map(|(term, index)| at(term, index))
    }

    fn members() -> impl Strategy<Value = Vec<Member>> {
        let one = (ids(), prop::option::of(ordinals()), any::<bool>());
        prop::collection::vec(one.prop_map(|(id, ordinal, learner)| Member { id, ordinal, learner }), 0..4)
    }

    fn lists() -> impl Strategy<Value = MemberList> {
        (clusters(), members()).prop_map(|(cluster, members)| MemberList { cluster, members })
    }

    fn desireds() -> impl Strategy<Value = Desired> {
        let number = prop_oneof![9 => 0..4u32, 1 => Just(9)];
        prop_oneof![
            number.clone().prop_map(Desired::Host),
            number.prop_map(Desired::Values),
            Just(Desired::Unknown("x".into()))
        ]
    }

    fn markers() -> impl Strategy<Value = MarkerSeen> {
        let phase = prop_oneof![Just(MarkerPhase::Forming), clusters().prop_map(MarkerPhase::Formed)];
        let stopped = (ids(), positions()).prop_map(|(member, last)| Stopped { member, last });
        let stopped = prop::collection::vec(stopped, 0..3);
        let sets = (prop::collection::vec(clusters(), 0..2), prop::collection::vec(ids(), 0..3), stopped);
        (phase, prop::option::of(ids()), sets).prop_map(|(phase, survivor, (superseded, dropped, stopped))| {
            MarkerSeen {
                version: "7".into(),
                marker: Marker { phase, writes: 1, superseded, survivor, dropped, stopped },
            }
        })
    }

    fn peers() -> impl Strategy<Value = PeerFact> {
        let state = prop_oneof![
            Just(PeerState::Empty),
            Just(PeerState::Store(db())),
            (ids(), clusters()).prop_map(|(member, cluster)| PeerState::Data { member, cluster, last: None }),
            (ids(), clusters()).prop_map(|(member, cluster)| PeerState::Serving { member, cluster }),
        ];
        let pod = any::<bool>().prop_map(|terminating| PodFact { terminating, current_revision: None });
        let superseded = prop::collection::vec(clusters(), 0..2);
        (ordinals(), known(Just(())), known(pod), known(lists()), known(state), superseded).prop_map(
            |(ordinal, dns, pod, members, state, superseded)| PeerFact {
                ordinal,
                dns,
                pod,
                members,
                state,
                superseded,
            },
        )
    }

    fn logs() -> impl Strategy<Value = LogFact> {
        let role = prop_oneof![Just(Role::Voter), Just(Role::Learner), Just(Role::Removed)];
        (positions(), role, 0..4u32, members()).prop_map(|(last, role, voters, others)| LogFact {
            last,
            role,
            voters,
            others,
        })
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let dir = prop_oneof![Just(DataDirFact::Empty), Just(valid()), Just(DataDirFact::Damaged("x".into()))];
        let notes = (any::<(bool, bool, bool)>(), prop::option::of(clusters()));
        let notes = notes.prop_map(|((forming, resetting, stopped), set_aside)| Notes {
            forming,
            resetting,
            stopped,
            set_aside,
            superseded: vec![],
        });
        let own = (ordinals(), desireds(), dir, known(logs()), notes);
        let seen = (any::<bool>(), known(markers()), known(prop::collection::vec(ordinals(), 0..3)));
        let others = (prop::collection::vec(peers(), 0..4), known(lists()), any::<bool>());
        (own, seen, others).prop_map(
            |(
                (ordinal, desired, data_dir, log, notes),
                (host_configured, marker, claims),
                (peers, members, shared_ca),
            )| {
                Facts {
                    ordinal,
                    desired,
                    data_dir,
                    log,
                    notes,
                    host_configured,
                    marker,
                    claims,
                    peers,
                    members,
                    shared_ca,
                    ..facts()
                }
            },
        )
    }

    fn begins(decision: &BootDecision) -> bool {
        matches!(decision, BootDecision::Form | BootDecision::Import { .. } | BootDecision::Record(Record::Forming(_)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn any_facts_give_a_decision_with_its_rule(f in any_facts()) {
            let (decision, rule) = explained(&f, Rules::ALL);
            prop_assert!(!rule.text().is_empty());
            if let BootDecision::Wait(wait) = &decision {
                prop_assert!(!wait.what().is_empty() && !wait.remedy().is_empty());
            }
            for rule in Rule::ALL {
                explained(&f, Rules::without(&[*rule]));
            }
        }

        /// Unknown is not absent: nothing is begun, reset or set aside but on what was seen or authoritatively denied.
        #[test]
        fn what_is_unknown_permits_nothing(f in any_facts()) {
            let decision = decide(&f);
            let is_empty = |n: Ordinal| f.peer(n).is_some_and(|peer| peer.state == Known::Present(PeerState::Empty));
            if begins(&decision) {
                let nobody_else = f.host_configured && (f.claims.is_absent() || f.claims == Known::Present(vec![]));
                let Some(desired) = f.desired.known().or(nobody_else.then_some(0)) else { panic!() };
                prop_assert_eq!(f.ordinal, f.seed);
                prop_assert_eq!(f.notes.set_aside, None);
                prop_assert!(!f.host_configured || f.marker.unknown().is_none());
                prop_assert_eq!(f.marker().and_then(Marker::formed), None);
                prop_assert!(nobody_else || (1..desired).map(Ordinal).all(is_empty));
                let named = |p: &&PeerFact| p.ordinal != f.ordinal && !p.dns.is_absent();
                prop_assert!(nobody_else || f.peers.iter().filter(named).all(|p| is_empty(p.ordinal)));
                let claimed = f.claims.present().into_iter().flatten().filter(|n| **n != f.ordinal);
                prop_assert!(claimed.copied().all(is_empty));
            }
            if matches!(decision, BootDecision::SetAside { .. }) {
                let lacks = |list: &MemberList| list.cluster == MINE && !list.has(MemberId(1));
                prop_assert!(f.members.present().is_some_and(lacks) || marker::superseded(&f, MINE));
            }
            let resets = matches!(decision, BootDecision::Reset { .. } | BootDecision::Record(Record::Survivor(_)));
            if resets && !f.notes.resetting {
                let log = f.log.present().unwrap();
                let others = || log.others.iter().filter(|other| !other.learner);
                let pod_gone = |m: &Member| f.peer(m.ordinal.unwrap()).unwrap().pod.is_absent();
                let alone = f.desired == Desired::Host(1) && others().all(pod_gone);
                prop_assert!(alone || (others().count() == 1 && others().all(|m| is_empty(m.ordinal.unwrap()))));
                prop_assert_eq!(log.role, Role::Voter);
                prop_assert!(log.voters <= 2 || !f.marker().unwrap().stopped.is_empty());
                prop_assert!(!f.host_configured || f.marker().and_then(Marker::formed) == Some(MINE));
            }
        }
    }
}
