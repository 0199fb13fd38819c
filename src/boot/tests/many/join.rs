//! Joining, setting aside, and two clusters (rules 4.3 to 4.7).

use super::*;

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
    // Found by the model: the data may be on the volume of a pod that is no longer wanted.
    assert!(Refusal::FormedElsewhere(MINE).remedy().starts_with("scale up again"));
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
    // Whoever has another CA never answers: the handshake tells of it.
    for ordinal in [0, 1] {
        let (desired, named) = (Desired::Values(2), Known::Present(()));
        let mut f = Facts { ordinal: Ordinal(ordinal), desired, named, shared_ca: false, ..facts() };
        f.peers = vec![PeerFact::new(Ordinal(1 - ordinal))];
        assert!(matches!(decide(&f), BootDecision::Wait(_)), "{:?}", decide(&f));
        f.peers[0].other_ca = true;
        expect(&f, BootDecision::Refuse(Refusal::NoSharedCa), Rule::SharedCa);
        // Whoever else is there with another: the seed has not been heard yet.
        if ordinal != 0 {
            let stranger = PeerFact { other_ca: true, ..PeerFact::new(Ordinal(2)) };
            let f = Facts { peers: vec![PeerFact::new(Ordinal(0)), stranger], ..f.clone() };
            assert!(matches!(decide(&f), BootDecision::Wait(_)), "{:?}", decide(&f));
        }
        f.shared_ca = true;
        assert!(matches!(decide(&f), BootDecision::Wait(_)), "{:?}", decide(&f));
    }
    assert!(starts(&Facts { shared_ca: false, ..voter_of(&[0, 1, 2]) }));
    // etcd's is shared, and k0s would make its own.
    let makes_cas = Some(PathBuf::from("/data/k0s/pki"));
    let f = Facts { k0s_makes_cas: makes_cas.clone(), members: list(&[1]), ..three() };
    expect(&f, BootDecision::Refuse(Refusal::K0sMakesCas("/data/k0s/pki".into())), Rule::SharedCa);
    assert!(starts(&Facts { k0s_makes_cas: makes_cas.clone(), ..voter_of(&[0, 1, 2]) }));
    assert!(matches!(decide(&Facts { k0s_makes_cas: makes_cas, ..facts() }), BootDecision::Form), "the first of them");
    // It has others than a pod that serves.
    let (dir, ordinal) = (PathBuf::from("/data/k0s/pki"), Ordinal(1));
    let other = Some((dir.clone(), ordinal));
    let f = Facts { k0s_other_cas: other.clone(), members: list(&[1]), ..three() };
    expect(&f, BootDecision::Refuse(Refusal::K0sOtherCas { dir, ordinal }), Rule::SharedCa);
    assert!(starts(&Facts { k0s_other_cas: other, ..voter_of(&[0, 1, 2]) }));
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
fn the_leader_restores_a_missing_marker_and_strikes_who_is_a_member() {
    let Known::Present(list) = list(&[0, 1]) else { panic!() };
    let upkeep = |seen: &Known<MarkerSeen>| marker::upkeep(seen, &list, &marker::Remembered::default(), Rules::ALL);
    let write = upkeep(&Known::Absent).unwrap();
    assert_eq!((write.expect, &write.marker), (None, &Marker::new(MarkerPhase::Formed(MINE))));
    assert_eq!(upkeep(&Known::default()), None);
    assert_eq!(upkeep(&seen(MarkerPhase::Formed(MINE))), None);
    assert_eq!(upkeep(&seen(MarkerPhase::Formed(OTHER))), None);
    let late = marked(|m| m.dropped = vec![MemberId(2), MemberId(7)]);
    assert_eq!(upkeep(&late).unwrap().marker.dropped, [MemberId(7)]);
    // What it said is not forgotten with it.
    let (dropped, superseded) = (vec![MemberId(2), MemberId(7)], vec![OTHER, MINE]);
    let kept = marker::Remembered { member: Some(MemberId(1)), dropped, superseded };
    let marker = marker::upkeep(&Known::Absent, &list, &kept, Rules::ALL).unwrap().marker;
    assert_eq!(
        (marker.survivor, marker.dropped, marker.superseded),
        (Some(MemberId(1)), vec![MemberId(7)], vec![OTHER])
    );
}

#[test]
fn a_restore_supersedes_in_the_marker() {
    let Known::Present(now) = marked(|m| m.dropped.push(MemberId(7))) else { panic!() };
    let write = now.superseding(&[MINE], OTHER);
    assert_eq!((write.marker.formed(), &write.marker.superseded[..]), (Some(OTHER), &[MINE][..]));
    assert!(write.marker.dropped.is_empty());
}

const OWNER: Option<(MemberId, ClusterId)> = Some((MemberId(1), MINE));

fn damaged_dir(members: Known<MemberList>) -> Facts {
    Facts { data_dir: DataDirFact::Damaged("crc".into()), owner: OWNER, members, ..three() }
}

#[test]
fn a_damaged_data_dir_is_replaced_where_a_quorum_of_the_others_lists_its_member() {
    let aside = BootDecision::SetAside { member: MemberId(1), cluster: MINE };
    expect(&damaged_dir(list(&[0, 1, 2])), aside.clone(), Rule::DamagedReplaced);
    expect(&damaged_dir(list(&[1, 2])), aside.clone(), Rule::DamagedReplaced);
    // Then it is an empty volume like any other.
    let then = Facts { data_dir: DataDirFact::Empty, owner: None, ..damaged_dir(list(&[0, 1, 2])) };
    expect(&then, BootDecision::Join { cluster: MINE, replace: Some(MemberId(1)) }, Rule::ReplaceListed);
    // etcd has stumbled over what the inspection does not see.
    let noted = Notes { damaged: Some(MemberId(1)), ..Notes::default() };
    let noted = Facts { notes: noted, members: list(&[0, 1, 2]), ..voter_of(&[0, 1, 2]) };
    expect(&noted, aside, Rule::DamagedReplaced);
    assert!(starts(&Facts { members: Known::default(), ..noted.clone() }), "no quorum without it");
    assert!(starts(&Facts { notes: Notes { damaged: Some(MemberId(9)), ..Notes::default() }, ..noted }));
}

#[test]
fn a_damaged_data_dir_waits_and_is_left_as_it_is_without_that_proof() {
    let waits = |f: Facts| expect(&f, BootDecision::Wait(Wait::Damaged("crc".into())), Rule::DamagedReplaced);
    waits(damaged_dir(Known::default()));
    // A peer's own view proves no quorum.
    let mut view = damaged_dir(Known::default());
    view.peers[0].members = list(&[0, 1, 2]);
    waits(view);
    waits(Facts { owner: None, ..damaged_dir(list(&[0, 1, 2])) });
    waits(Facts { owner: Some((MemberId(1), OTHER)), ..damaged_dir(list(&[0, 1, 2])) });
    // This pod's place in the list is another member's, and the damaged one is listed elsewhere.
    waits(Facts { owner: Some((MemberId(2), MINE)), ..damaged_dir(list(&[0, 1, 2])) });
    waits(Facts { shared_ca: false, ..damaged_dir(list(&[0, 1, 2])) });
    // Alone, nobody else could ever have a quorum.
    let alone = Facts { peers: vec![], claims: Known::Absent, ..damaged_dir(Known::default()) };
    expect(&alone, BootDecision::Refuse(Refusal::DamagedDataDir("crc".into())), Rule::StartAsIs);
    let begun = Facts { notes: Notes { resetting: true, ..Notes::default() }, ..damaged_dir(list(&[0, 1, 2])) };
    assert!(matches!(decide(&begun), BootDecision::Refuse(Refusal::DamagedDataDir(_))));
}

#[test]
fn a_data_dir_of_a_newer_etcd_is_never_replaced() {
    let versions = || "it was written by etcd 3.7, and the etcd here is 3.6".to_owned();
    let f = Facts { data_dir: DataDirFact::Newer(versions()), ..damaged_dir(list(&[0, 1, 2])) };
    let wait = Wait::Unfit { why: Refusal::NewerDataDir(versions()), others_go_on: true };
    assert!(wait.remedy().contains("downgrade"));
    expect(&f, BootDecision::Wait(wait), Rule::StartAsIs);
}

/// Before anybody was asked, these look like what must be refused.
#[test]
fn what_others_have_a_say_in_is_not_refused_before_they_were_asked() {
    let noted = Notes { set_aside: Some(MINE), ..Notes::default() };
    let stores = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    let told = |alone: &Facts| Facts {
        desired: Desired::Values(3),
        peers: vec![PeerFact::new(Ordinal(2))],
        members: list(&[0, 1, 2]),
        ..alone.clone()
    };
    for alone in [
        Facts { notes: noted, ..facts() },
        Facts { ordinal: Ordinal(1), stores, ..facts() },
        Facts { data_dir: DataDirFact::Damaged("crc".into()), owner: OWNER, ..facts() },
        Facts { journal: JournalFact::Done { source: db() }, ..facts() },
        Facts { fence: FenceFact::Kept { source: "https://vc-etcd:2379".into() }, ..facts() },
        Facts { written_back: true, ..facts() },
    ] {
        let BootDecision::Refuse(refusal) = decide(&alone) else { panic!("{alone:?}") };
        assert!(refusal.others_decide(), "{refusal:?}");
        assert!(!matches!(decide(&told(&alone)), BootDecision::Refuse(_)), "{refusal:?}");
    }
    let alone = Facts { journal: JournalFact::Damaged("crc".into()), ..facts() };
    let BootDecision::Refuse(refusal) = decide(&alone) else { panic!("{alone:?}") };
    assert!(!refusal.others_decide(), "{refusal:?}");
    assert_eq!(decide(&told(&alone)), BootDecision::Refuse(refusal), "whatever they say");
}

/// The etcd at hand cannot start from these. What proves that a member is none any more holds for theirs too.
#[test]
fn a_data_dir_that_this_etcd_does_not_fit_is_set_aside_as_any_other_and_never_started() {
    let aside = BootDecision::SetAside { member: MemberId(1), cluster: MINE };
    for data_dir in [DataDirFact::Newer, DataDirFact::Older, DataDirFact::Unpromoted] {
        let listed = Facts { data_dir: data_dir("3.4".into()), owner: OWNER, members: list(&[0, 1, 2]), ..three() };
        let alone = Facts { peers: vec![], claims: Known::Absent, members: Known::default(), ..listed.clone() };
        let BootDecision::Refuse(refusal) = decide(&alone) else { panic!("{:?}", decide(&alone)) };
        assert!(refusal.exit() == Exit::RefusedDataDir && refusal.others_decide(), "{refusal:?}");
        let waits_beside = |f: &Facts, others_go_on: bool| {
            let wait = Wait::Unfit { why: refusal.clone(), others_go_on };
            assert_eq!(wait.remedy().contains("joins anew"), others_go_on);
            expect(f, BootDecision::Wait(wait), Rule::StartAsIs);
        };
        let waits = |f: &Facts| waits_beside(f, true);
        waits(&listed);
        waits_beside(&Facts { members: Known::default(), ..listed.clone() }, false);
        waits_beside(&Facts { owner: None, members: list(&[1, 2]), ..listed.clone() }, false);
        // Nothing of it is finished or taken back by an etcd that cannot run; that others have overtaken it is noted.
        for notes in [Notes { stopped: true, ..Notes::default() }, Notes { forming: true, ..Notes::default() }] {
            waits(&Facts { notes, ..listed.clone() });
        }
        let mut begun = Facts { members: Known::default(), ..listed.clone() };
        begun.notes.resetting = true;
        waits_beside(&begun, false);
        begun.peers[0].state = Known::Present(PeerState::Serving { member: MemberId(2), cluster: MINE });
        expect(&begun, BootDecision::Record(Record::Overtaken(MemberId(1))), Rule::ResetAlone);
        let removed = Facts { members: list(&[1, 2]), ..listed.clone() };
        expect(&removed, aside.clone(), Rule::LinearizableProof);
        let restored = marked(|m| (m.phase, m.superseded) = (MarkerPhase::Formed(OTHER), vec![MINE]));
        let mut superseded = Facts { marker: restored, members: Known::default(), ..listed.clone() };
        expect(&superseded, BootDecision::Wait(Wait::SupersededNotServed(MINE)), Rule::Superseded);
        superseded.peers[0].state = Known::Present(PeerState::Serving { member: MemberId(9), cluster: OTHER });
        expect(&superseded, aside.clone(), Rule::Superseded);
        let dropped = Facts { marker: marked(|m| m.dropped = vec![MemberId(1)]), ..listed.clone() };
        assert!(matches!(decide(&dropped), BootDecision::Wait(Wait::Dropped { .. })));
        let other = Facts { marker: seen(MarkerPhase::Formed(OTHER)), ..listed };
        assert_eq!(decide(&other), BootDecision::Refuse(Refusal::TwoClusters { mine: MINE, other: OTHER }));
    }
}
