//! A cluster whose store was written back into SQLite is released, and its store imported again.

use super::*;

fn store() -> StoresFact {
    StoresFact { state_dbs: vec!["/data/state.db".into()], ..StoresFact::default() }
}

/// The seed after the way back, embedded etcd switched on again.
fn left() -> Facts {
    let notes = Notes { left: Some(MINE), superseded: vec![MINE], ..Notes::default() };
    Facts { desired: Desired::Host(1), stores: store(), notes, ..three() }
}

/// The same once the marker is written.
fn released() -> Facts {
    let BootDecision::Record(Record::Released(write)) = decide(&left()) else { panic!("{:?}", decide(&left())) };
    Facts { marker: Known::Present(MarkerSeen { version: "8".into(), marker: write.marker }), ..left() }
}

#[test]
fn a_cluster_that_was_left_is_released_and_its_store_imported_again() {
    let BootDecision::Record(Record::Released(write)) = decide(&left()) else { panic!("{:?}", decide(&left())) };
    assert_eq!((write.expect.as_deref(), write.marker.formed()), (Some("7"), None));
    assert_eq!(write.marker.superseded, [MINE]);
    assert!(matches!(
        explained(&left(), Rules::without(&[Rule::Released])).0,
        BootDecision::Wait(Wait::NobodyToJoin(MINE))
    ));
    // Nobody is waited for, whatever old data there is elsewhere.
    let mut f = released();
    expect(&f, BootDecision::Record(Record::Forming(None)), Rule::FormedBeforeServing);
    f.notes.forming = true;
    says(&mut f, 1, PeerState::Data { member: MemberId(5), cluster: MINE, last: None });
    expect(&f, BootDecision::Import { source: "/data/state.db".into() }, Rule::StoreOfSeed);
    // Imported: a new cluster, beside the old one's superseded data.
    f.data_dir = DataDirFact::Valid { member: MemberId(1), cluster: OTHER };
    let BootDecision::Record(Record::Formed(write)) = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert_eq!((write.marker.formed(), &write.marker.superseded[..]), (Some(OTHER), &[MINE][..]));
}

/// The marker is all that is left to tell of the cluster.
#[test]
fn nothing_is_released_or_formed_without_the_store() {
    let mut f = left();
    f.stores = StoresFact::default();
    assert!(matches!(decide(&f), BootDecision::Wait(Wait::NobodyToJoin(MINE))));
    let mut f = Facts { stores: StoresFact::default(), ..released() };
    assert!(matches!(decide(&f), BootDecision::Wait(Wait::NobodyToJoin(MINE))));
    (f.peers, f.claims) = (Vec::new(), Known::Present(Vec::new()));
    expect(&f, BootDecision::Refuse(Refusal::FormedElsewhere(MINE)), Rule::FormedOnce);
}

#[test]
fn only_the_cluster_that_was_left_is_released() {
    let mut f = left();
    f.notes.left = Some(OTHER);
    assert!(matches!(decide(&f), BootDecision::Wait(Wait::NobodyToJoin(MINE))));
    f.notes.left = None;
    assert!(matches!(decide(&f), BootDecision::Wait(Wait::NobodyToJoin(MINE))));
    assert_eq!(marker::release(&seen(MarkerPhase::Formed(OTHER)), MINE), marker::Release::Done);
    assert_eq!(marker::release(&Known::Absent, MINE), marker::Release::Done);
    assert!(matches!(marker::release(&Known::default(), MINE), marker::Release::Ask(_)));
}

/// Volumes that were retained never come back to life with old data, and join once there is something to join.
#[test]
fn old_data_elsewhere_stays_superseded() {
    let mut f = Facts { ordinal: Ordinal(1), data_dir: valid(), ..released() };
    (f.notes, f.stores) = (Notes::default(), StoresFact::default());
    f.peers[0].ordinal = Ordinal(0);
    expect(&f, BootDecision::Wait(Wait::SupersededNotServed(MINE)), Rule::Superseded);
    says(&mut f, 0, PeerState::Serving { member: MemberId(7), cluster: OTHER });
    assert!(matches!(decide(&f), BootDecision::SetAside { cluster: MINE, .. }));
    // An empty one waits for the seed.
    f.data_dir = DataDirFact::Empty;
    says(&mut f, 0, PeerState::Empty);
    assert_eq!(decide(&f), BootDecision::Wait(Wait::ForSeed(Ordinal(0))));
}
