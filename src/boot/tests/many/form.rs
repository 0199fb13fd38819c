//! Who forms, and when (rules 4.1 to 4.3).

use super::*;

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

/// The list of claims is denied or does not come: one replica's empty volume is no first start.
#[test]
fn unknown_claims_are_not_none() {
    let why = || Known::Unknown("the claims: forbidden".to_owned());
    for desired in [1, 3] {
        let f = Facts { marker: Known::Absent, claims: why(), desired: Desired::Host(desired), ..three() };
        expect(&f, BootDecision::Wait(Wait::HostAway("the claims: forbidden".into())), Rule::ClaimsAnswer);
    }
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

/// Those of a scale-down that has not reached them yet serve on, and DNS alone names them.
#[test]
fn without_a_host_api_nothing_is_formed_before_dns_has_said_which_pods_there_are() {
    let unnamed = Facts { named: Known::Unknown("SERVFAIL".into()), ..facts() };
    expect(&unnamed, BootDecision::Wait(Wait::PodsNotNamed("SERVFAIL".into())), Rule::PeersSayEmpty);
    assert_eq!(explained(&unnamed, Rules::without(&[Rule::PeersSayEmpty])).0, BootDecision::Form);
    for named in [Known::Absent, Known::Present(())] {
        assert_eq!(decide(&Facts { named, ..facts() }), BootDecision::Form);
    }
    // Its store has not been moved: nothing was formed from this volume.
    let mut store = unnamed.clone();
    store.stores.state_dbs = vec![db()];
    assert_eq!(decide(&store), BootDecision::Import { source: db() });
    // Whoever has data needs nobody's word to start, but for a formation that is not done.
    let f = Facts { data_dir: valid(), ..unnamed };
    assert!(matches!(decide(&f), BootDecision::Start { .. }));
    let f = Facts { notes: Notes { forming: true, ..Notes::default() }, ..f };
    expect(&f, BootDecision::Wait(Wait::PodsNotNamed("SERVFAIL".into())), Rule::PeersSayEmpty);
    // With a host API the claims say it.
    let f = Facts { named: Known::default(), marker: Known::Absent, claims: Known::Absent, peers: vec![], ..three() };
    assert!(matches!(decide(&f), BootDecision::Record(Record::Forming(Some(_)))));
}

/// Which ordinal is the first stands in the StatefulSet.
#[test]
fn with_the_host_api_away_no_pod_is_told_that_it_is_not_the_first() {
    let mut f = Facts { ordinal: Ordinal(5), marker: Known::Unknown("timeout".into()), ..three() };
    f.stores.state_dbs = vec![db()];
    expect(&f, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::HostAnswers);
    f.marker = Known::Absent;
    assert!(matches!(decide(&f), BootDecision::Refuse(Refusal::NotTheSeed { .. })));
    f.desired = Desired::Unknown("timeout".into());
    expect(&f, BootDecision::Wait(Wait::HostAway("timeout".into())), Rule::HostAnswers);
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
    let refusal = Refusal::StoreElsewhere { ordinal: Ordinal(1), store: store.clone(), mine: vec![] };
    expect(&f, BootDecision::Refuse(refusal.clone()), Rule::StoreOfSeed);
    assert!(refusal.what().contains("pod 1") && refusal.what().contains("/data/state.db"));
    let of_seed: PathBuf = "/data/server/db/state.db".into();
    f.stores.state_dbs = vec![of_seed.clone()];
    let BootDecision::Refuse(both) = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert!(both.what().contains("/data/state.db; this pod has /data/server/db/state.db"), "{}", both.what());
    let stores = StoresFact { state_dbs: vec![store], ..StoresFact::default() };
    let mut second = Facts { ordinal: Ordinal(1), stores, peers: vec![PeerFact::new(Ordinal(0))], ..facts() };
    let BootDecision::Refuse(alone) = decide(&second) else { panic!("{:?}", decide(&second)) };
    assert!(alone.what().contains("this pod, 1,") && alone.what().contains("only pod 0"), "{}", alone.what());
    says(&mut second, 0, PeerState::Store(of_seed));
    let BootDecision::Refuse(both) = decide(&second) else { panic!("{:?}", decide(&second)) };
    assert!(matches!(both, Refusal::NotTheSeed { .. }), "{both:?}");
    assert!(both.what().contains("/data/state.db; ") && both.what().contains("it has /data/server/db/state.db"));
}

#[test]
fn data_waits_while_the_seed_forms() {
    let f = Facts { ordinal: Ordinal(1), marker: seen(MarkerPhase::Forming), ..voter_of(&[0]) };
    expect(&f, BootDecision::Wait(Wait::SeedIsForming(MINE)), Rule::FormedOnce);
}

#[test]
fn nothing_is_formed_beside_a_pod_that_is_to_join_a_cluster() {
    let empty = PeerFact { state: Known::Present(PeerState::Empty), ..PeerFact::new(Ordinal(1)) };
    let waits = PeerFact { joins: Some(OTHER), ..empty };
    let f = Facts { desired: Desired::Values(2), peers: vec![waits], ..facts() };
    assert_eq!(decide(&f), BootDecision::Wait(Wait::NobodyToJoin(OTHER)));
    assert_eq!(explained(&f, Rules::without(&[Rule::JoinersTell])).0, BootDecision::Form);
    // Seen only after the data dir was put in place: it takes no write.
    let notes = Notes { forming: true, ..Notes::default() };
    let formed = Facts { data_dir: valid(), notes, ..f };
    let refusal = Refusal::TwoClusters { mine: MINE, other: OTHER };
    assert_eq!(explained(&formed, Rules::ALL), (BootDecision::Refuse(refusal), Rule::JoinersTell));
    // A pod that is to join this very cluster hinders nothing.
    let mut mine = formed;
    mine.peers[0].joins = Some(MINE);
    assert_eq!(decide(&mine), BootDecision::Record(Record::FormingDone));
}
