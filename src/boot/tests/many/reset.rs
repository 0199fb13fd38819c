//! The reset and what is noted at a stop (rules 5.4).

use super::*;

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
fn who_is_left_alone_without_a_host_api_is_told_what_helps() {
    let mut f = Facts { host_configured: false, desired: Desired::Values(1), ..voter_of(&[0, 1, 2]) };
    let said = |f: &Facts| match decide(f) {
        BootDecision::Start { warnings, .. } => warnings,
        other => panic!("{other:?}"),
    };
    assert!(said(&f).is_empty(), "of the others nothing is known");
    f.peers.iter_mut().for_each(|peer| peer.dns = Known::Absent);
    let wait = Wait::MajorityGone { gone: vec![Ordinal(1), Ordinal(2)], replicas: 3 };
    assert_eq!(said(&f), [Warning::NoQuorum(wait)]);
    f.peers[1].dns = Known::Present(());
    assert!(said(&f).is_empty(), "two of three are a quorum");
    // Where there is a host API, its word alone is taken.
    f.peers.iter_mut().for_each(|peer| peer.dns = Known::Absent);
    f.desired = Desired::Host(1);
    assert!(said(&f).is_empty());
}

/// Found by the model: the third was being promoted when the second was lost, and one and three alone do not agree on that.
#[test]
fn who_is_left_alone_while_a_promotion_is_under_way_is_told_what_helps() {
    let mut f = voter_of(&[0, 1, 2]);
    let said = |f: &Facts| match decide(f) {
        BootDecision::Start { warnings, .. } => warnings.into_iter().find(|w| matches!(w, Warning::NoQuorum(_))),
        other => panic!("{other:?}"),
    };
    f.peers[0].pod = Known::Absent;
    assert_eq!(said(&f), None, "two of three are a quorum");
    log(&mut f).voters_now = vec![member(1).id];
    let wait = Wait::MajorityGone { gone: vec![Ordinal(1)], replicas: 2 };
    assert_eq!(said(&f), Some(Warning::NoQuorum(wait)));
    f.peers[0].pod = Known::default();
    says(&mut f, 1, PeerState::Empty);
    assert_eq!(said(&f), Some(Warning::NoQuorum(Wait::MajorityLost(vec![Ordinal(1)]))));
}

#[test]
fn of_whom_most_volumes_are_lost_is_told_that_scaling_does_not_help() {
    let mut f = voter_of(&[0, 1, 2]);
    let said = |f: &Facts| match decide(f) {
        BootDecision::Start { warnings, .. } => warnings.into_iter().find_map(|w| match w {
            Warning::NoQuorum(wait) => Some(wait),
            _ => None,
        }),
        other => panic!("{other:?}"),
    };
    says(&mut f, 2, PeerState::Empty);
    assert_eq!(said(&f), None, "the other two are a quorum");
    says(&mut f, 1, PeerState::Empty);
    let wait = Wait::MajorityLost(vec![Ordinal(1), Ordinal(2)]);
    assert!(wait.what().contains("voters 1, 2") && wait.remedy().contains("`syncer recover`"));
    // Found by the model: without a host API the pods do not know that they are not wanted, and OrderedReady waits for them.
    assert!(wait.remedy().contains("delete the pods that it leaves there"));
    assert_eq!(said(&f), Some(wait));
    f.members = list(&[0, 1, 2]);
    assert_eq!(said(&f), None, "a quorum all the same");
    // Two voters that were three a moment ago: the reset is not lossless.
    let mut f = voter_of(&[0, 1]);
    log(&mut f).voters = 3;
    says(&mut f, 1, PeerState::Empty);
    assert_eq!(said(&f), Some(Wait::MajorityLost(vec![Ordinal(1)])));
}

#[test]
fn a_begun_reset_is_not_finished_while_others_serve_the_cluster() {
    let mut f = voter_of(&[0, 1]);
    f.notes.resetting = true;
    let reset = BootDecision::Reset { member: MemberId(1), cluster: MINE };
    expect(&f, reset.clone(), Rule::ResetFinished);
    let overtaken = |_: &[u64]| BootDecision::Record(Record::Overtaken(MemberId(1)));
    // By a list with or without this member, or by the mere word of one that could not be asked for its list.
    let with = Facts { members: list(&[0, 1, 2]), ..f.clone() };
    expect(&with, overtaken(&[2, 3]), Rule::ResetAlone);
    assert_eq!(explained(&with, Rules::without(&[Rule::ResetAlone])).0, reset);
    expect(&Facts { members: list(&[2]), ..f.clone() }, overtaken(&[3]), Rule::ResetAlone);
    let mut word = f.clone();
    says(&mut word, 2, PeerState::Serving { member: MemberId(7), cluster: MINE });
    expect(&word, overtaken(&[7]), Rule::ResetAlone);
    // Who has data and cannot serve it alone has overtaken nobody; who have a quorum's will.
    let data = |n| PeerState::Data { member: MemberId(n), cluster: MINE, last: None };
    says(&mut f, 1, data(2));
    expect(&f, reset.clone(), Rule::ResetFinished);
    let mut f = voter_of(&[0, 1, 2]);
    f.notes.resetting = true;
    says(&mut f, 1, data(2));
    expect(&f, reset.clone(), Rule::ResetFinished);
    says(&mut f, 2, data(9));
    expect(&f, reset.clone(), Rule::ResetFinished);
    says(&mut f, 2, data(3));
    expect(&f, overtaken(&[2, 3]), Rule::ResetAlone);
    // Whom the marker drops for this survivor does not start from what it has; who serves all the same counts.
    let dropping =
        |survivor| marked(|m| (m.survivor, m.dropped) = (Some(MemberId(survivor)), vec![MemberId(2), MemberId(3)]));
    expect(&Facts { marker: dropping(1), ..f.clone() }, reset, Rule::ResetFinished);
    expect(&Facts { marker: dropping(2), ..f.clone() }, overtaken(&[2, 3]), Rule::ResetAlone);
    f.marker = Known::Unknown("timeout".into());
    expect(&f, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::ResetAlone);
    says(&mut f, 1, PeerState::Serving { member: MemberId(2), cluster: MINE });
    expect(&f, overtaken(&[2]), Rule::ResetAlone);
    expect(&Facts { marker: dropping(1), ..f }, overtaken(&[2]), Rule::ResetAlone);
}

/// By hand, as nobody could be asked: the marker comes before the start, and who is dropped and serves all the same stops it.
#[test]
fn who_was_made_the_only_one_by_hand_has_the_others_dropped_first() {
    let mut f = voter_of(&[0]);
    f.desired = Desired::Host(3);
    f.dropped = vec![MemberId(2), MemberId(3)];
    // Not while anybody is there who may be about to start: an old marker holds nobody back.
    expect(&f, BootDecision::Wait(Wait::OthersThere(vec![Ordinal(1), Ordinal(2)])), Rule::DropsRecorded);
    says(&mut f, 1, PeerState::Data { member: MemberId(2), cluster: MINE, last: None });
    f.peers[1].pod = Known::Absent;
    expect(&f, BootDecision::Wait(Wait::OthersThere(vec![Ordinal(1)])), Rule::DropsRecorded);
    says(&mut f, 1, PeerState::Empty);
    let dropped = |decision: BootDecision| match decision {
        BootDecision::Record(Record::Survivor(write)) => (write.marker.survivor, write.marker.dropped),
        other => panic!("{other:?}"),
    };
    let want = (Some(MemberId(1)), f.dropped.clone());
    let (decision, rule) = explained(&f, Rules::ALL);
    assert_eq!((dropped(decision), rule), (want.clone(), Rule::DropsRecorded));
    let without = explained(&f, Rules::without(&[Rule::DropsRecorded])).0;
    assert!(matches!(without, BootDecision::Start { .. }), "{without:?}");
    // Deleted by hand: it is written anew.
    assert_eq!(dropped(decide(&Facts { marker: Known::Absent, ..f.clone() })), want);
    let away = Facts { marker: Known::Unknown("timeout".into()), ..f.clone() };
    expect(&away, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::DropsRecorded);
    f.marker = marked(|m| (m.survivor, m.dropped) = want);
    expect(&f, BootDecision::Record(Record::Dropped(f.dropped.clone())), Rule::DropsRecorded);
    f.notes.dropped = f.dropped.clone();
    assert!(starts(&f));
    assert!(starts(&Facts { marker: Known::Unknown("timeout".into()), ..f.clone() }), "the API is away later");
    // Those that have joined since are no matter, and whoever has joined did so beside this one alone.
    says(&mut f, 1, PeerState::Serving { member: MemberId(7), cluster: MINE });
    f.members = list(&[0]);
    assert!(starts(&f));
    let mut joined = Facts { notes: Notes::default(), marker: Known::Unknown("timeout".into()), ..f.clone() };
    log(&mut joined).others = vec![Member { id: MemberId(7), ordinal: Some(Ordinal(1)), learner: false }];
    assert!(starts(&joined));
}

/// What those have taken that a reset was to drop is theirs: that they were seen to serve is noted, and holds when they are away.
#[test]
fn who_was_overtaken_once_never_takes_over_by_itself() {
    let mut by_hand = Facts { dropped: vec![MemberId(2), MemberId(3)], ..voter_of(&[0]) };
    by_hand.peers.iter_mut().for_each(|peer| peer.pod = Known::Absent);
    let mut begun = voter_of(&[0, 1, 2]);
    begun.notes.resetting = true;
    for (mut f, rule) in [(by_hand, Rule::DropsRecorded), (begun, Rule::ResetAlone)] {
        let before = decide(&f);
        says(&mut f, 1, PeerState::Serving { member: MemberId(2), cluster: MINE });
        expect(&f, BootDecision::Record(Record::Overtaken(MemberId(1))), rule);
        f.notes.overtaken = Some(MemberId(1));
        let refused = |f: &Facts| matches!(decide(f), BootDecision::Refuse(Refusal::ResetOvertaken { .. }));
        assert!(refused(&f));
        f.peers[0].state = Known::default();
        assert!(refused(&f), "{f:?}");
        f.notes.overtaken = Some(MemberId(9));
        assert_eq!(decide(&f), before, "it was said of another data dir");
    }
}

/// Two that were each made the only one.
#[test]
fn of_two_that_drop_each_other_neither_starts() {
    let mut f = Facts { dropped: vec![MemberId(2)], host_configured: false, ..voter_of(&[0]) };
    f.notes.dropped = f.dropped.clone();
    f.marker = Known::default();
    says(&mut f, 1, PeerState::Data { member: MemberId(2), cluster: MINE, last: None });
    assert!(starts(&f), "it waits by the word of this one");
    f.peers[0].dropped = vec![MemberId(1)];
    expect(&f, BootDecision::Record(Record::Overtaken(MemberId(1))), Rule::DropsRecorded);
}

/// And without a host API its word alone holds them back.
#[test]
fn a_dropped_member_does_not_start_beside_the_word_of_the_survivor() {
    let mut f = voter_of(&[0, 1, 2]);
    f.ordinal = Ordinal(1);
    f.peers = vec![PeerFact::new(Ordinal(0)), PeerFact::new(Ordinal(2))];
    f.data_dir = DataDirFact::Valid { member: MemberId(2), cluster: MINE };
    says(&mut f, 0, PeerState::Data { member: MemberId(1), cluster: MINE, last: None });
    assert!(starts(&f));
    let seed = f.peers.iter_mut().find(|peer| peer.ordinal == Ordinal(0)).unwrap();
    seed.dropped = vec![MemberId(2), MemberId(3)];
    let wait = Wait::Dropped { member: MemberId(2), survivor: Some(MemberId(1)) };
    expect(&f, BootDecision::Wait(wait), Rule::DroppedNeverStarts);
    says(&mut f, 0, PeerState::Data { member: MemberId(1), cluster: OTHER, last: None });
    assert!(!matches!(decide(&f), BootDecision::Wait(Wait::Dropped { .. })), "it is of another cluster");
    says(&mut f, 0, PeerState::Data { member: MemberId(1), cluster: MINE, last: None });
    f.dropped = vec![MemberId(1)];
    assert!(!matches!(decide(&f), BootDecision::Wait(Wait::Dropped { .. })), "each says so of the other");
}

#[test]
fn a_begun_reset_whose_data_dir_is_gone_is_no_empty_volume() {
    let mut f = three();
    f.notes.resetting = true;
    expect(&f, BootDecision::Refuse(Refusal::ResetVanished), Rule::ResetFinished);
    f.data_dir = DataDirFact::Damaged("x".into());
    expect(&f, BootDecision::Refuse(Refusal::DamagedDataDir("x".into())), Rule::StartAsIs);
}

#[test]
fn three_voters_reset_only_on_what_the_others_have_noted() {
    let noted = |entries: &[(u64, u64, u64)]| {
        let stopped = |(id, term, index): &(u64, u64, u64)| Stopped { member: MemberId(*id), last: at(*term, *index) };
        Facts { marker: marked(|m| m.stopped = entries.iter().map(stopped).collect()), ..alone(&[0, 1, 2]) }
    };
    let names = |f: &Facts| matches!(decide(f), BootDecision::Record(Record::Survivor(_)));
    assert!(names(&noted(&[(2, 2, 10), (3, 1, 99)])));
    let seen = noted(&[(2, 2, 10), (3, 1, 99)]);
    let BootDecision::Record(Record::Survivor(write)) = decide(&seen) else { panic!("not named") };
    let marker = Known::Present(MarkerSeen { version: "next".to_owned(), marker: write.marker });
    let named = decide(&Facts { marker, ..seen });
    assert!(matches!(named, BootDecision::Reset { .. }), "named, it rests on the same notes: {named:?}");
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

/// Kubernetes removes the marker with the headless Service that owns it, and volumes outlive both.
#[test]
fn without_the_marker_a_paused_voter_starts_when_the_seed_has_spoken() {
    let seed = Ordinal(0);
    let mut f = Facts { ordinal: Ordinal(2), marker: Known::Absent, ..voter_of(&[0, 1, 2]) };
    f.notes.stopped = true;
    log(&mut f).others = vec![member(0), member(1)];
    let says = |n: u32, state| PeerFact { state, ..PeerFact::new(Ordinal(n)) };
    f.peers = vec![says(0, Known::default()), says(1, Known::Present(PeerState::Empty))];
    let waits = BootDecision::Wait(Wait::UnheardSeed(seed));
    expect(&f, waits.clone(), Rule::StopWithdrawn);
    f.peers.remove(0);
    expect(&f, waits.clone(), Rule::StopWithdrawn);
    f.log = Known::default();
    expect(&f, waits, Rule::StopWithdrawn);
    // Whatever it has, it says so; and what it has dropped.
    f.peers.push(says(0, Known::Present(PeerState::Empty)));
    expect(&f, BootDecision::Record(Record::WithdrawnAlready), Rule::StopWithdrawn);
    // Which pod the seed is, only the StatefulSet tells.
    f.desired = Desired::Unknown("timeout".into());
    assert!(matches!(decide(&f), BootDecision::Wait(Wait::HostAway(_))), "{:?}", decide(&f));
}

#[test]
fn a_joiner_that_has_received_nothing_is_told_to_start_those_with_the_data() {
    let mut f = voter_of(&[0]);
    *log(&mut f) = LogFact { last: at(0, 0), role: Role::Learner, voters: 0, others: vec![], voters_now: vec![] };
    let BootDecision::Start { warnings, .. } = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert_eq!(warnings.last(), Some(&Warning::NoQuorum(Wait::NobodyToJoin(MINE))));
    f.members = list(&[0, 1]);
    let BootDecision::Start { warnings, .. } = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert!(!warnings.iter().any(|warning| matches!(warning, Warning::NoQuorum(_))));
}
