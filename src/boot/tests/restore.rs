//! A staged restore: who takes which step of it, and when nothing of it is done.

use super::*;

const OLD: ClusterId = ClusterId(2);
const NEW: ClusterId = ClusterId(7);
const OTHER: ClusterId = ClusterId(9);

fn staged() -> Staged {
    Staged { member: MemberId(5), cluster: NEW, replaces: Some(OLD), begun: None, whole: true, outrun: false }
}

fn begun(replaced: &[ClusterId]) -> RestoreFact {
    RestoreFact::Staged(Staged { begun: Some(replaced.to_vec()), ..staged() })
}

/// A seed with data, and a snapshot staged to take its place.
fn restores() -> Facts {
    Facts { data_dir: valid(), restore: RestoreFact::Staged(staged()), ..facts() }
}

fn restored() -> DataDirFact {
    DataDirFact::Valid { member: MemberId(5), cluster: NEW }
}

fn begins(replaced: &[ClusterId]) -> BootDecision {
    BootDecision::Record(Record::RestoreBegun(replaced.to_vec()))
}

fn peer(ordinal: u32, state: PeerState) -> PeerFact {
    PeerFact { state: Known::Present(state), ..PeerFact::new(Ordinal(ordinal)) }
}

#[test]
fn each_step_follows_the_one_before_it_and_nothing_is_started_in_between() {
    let mut f = restores();
    assert_eq!(decide(&f), begins(&[OLD]));
    // Killed between the record and the note.
    f.restore = begun(&[OLD]);
    assert_eq!(decide(&f), begins(&[OLD]));
    f.notes.superseded = vec![OLD];
    let put = BootDecision::PutRestored { member: MemberId(5), cluster: NEW };
    assert_eq!(decide(&f), put);
    // Killed between the two renames.
    f.data_dir = DataDirFact::Empty;
    assert_eq!(decide(&f), put);
    f.data_dir = restored();
    f.restore = RestoreFact::Staged(Staged { begun: Some(vec![OLD]), whole: false, ..staged() });
    assert_eq!(decide(&f), BootDecision::Record(Record::RestoreDone));

    // With a host API the marker names it first.
    let hosted = Facts { host_configured: true, marker: seen(MarkerPhase::Formed(OLD)), ..f.clone() };
    let BootDecision::Record(Record::Restored(write)) = decide(&hosted) else { panic!("{:?}", decide(&hosted)) };
    assert_eq!((write.expect.as_deref(), write.marker.formed()), (Some("7"), Some(NEW)));
    assert_eq!(write.marker.superseded, [OLD]);
    let none = Facts { marker: Known::Absent, ..hosted.clone() };
    let BootDecision::Record(Record::Restored(created)) = decide(&none) else { panic!() };
    assert_eq!((created.expect, created.marker.formed(), &created.marker.superseded), (None, Some(NEW), &vec![OLD]));
    let away = Facts { marker: Known::Unknown("x".into()), ..hosted.clone() };
    assert_eq!(decide(&away), BootDecision::Wait(Wait::HostAway("x".into())));
    let marker = Known::Present(MarkerSeen { version: "8".into(), marker: write.marker });
    let marked = Facts { marker, ..hosted };
    assert_eq!(decide(&marked), BootDecision::Record(Record::RestoreDone));
    for f in [f, marked] {
        let done = Facts { restore: RestoreFact::Absent, ..f };
        assert!(matches!(decide(&done), BootDecision::Start { cluster: NEW, .. }), "{:?}", decide(&done));
    }
}

#[test]
fn a_restore_begins_on_the_seed_with_the_host_api_and_beside_nothing_unfinished() {
    let f = restores;
    let importing = JournalFact::Importing { source: db() };
    let stores = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    let with = |staged: Staged| Facts { restore: RestoreFact::Staged(staged), ..f() };
    let table = [
        (Facts { enabled: false, ..f() }, Refusal::RestoreWhileDisabled),
        (Facts { enabled: false, migrate_back: true, ..f() }, Refusal::RestoreWhileDisabled),
        (Facts { enabled: false, data_dir: DataDirFact::Empty, ..f() }, Refusal::RestoreWhileDisabled),
        (Facts { enabled: false, restore: begun(&[OLD]), ..f() }, Refusal::RestoreWhileDisabled),
        (Facts { ordinal: Ordinal(1), ..f() }, Refusal::RestoreNotTheSeed { ordinal: Ordinal(1), seed: Ordinal(0) }),
        (Facts { journal: importing.clone(), stores, ..f() }, Refusal::RestoreBesideImport(db())),
        (Facts { journal: importing, ..f() }, Refusal::RestoreBesideImport(db())),
        (with(Staged { whole: false, ..staged() }), Refusal::RestoreVanished),
        (with(Staged { whole: false, begun: Some(vec![]), ..staged() }), Refusal::RestoreVanished),
        (with(Staged { outrun: true, ..staged() }), Refusal::RestoreOutrun),
        (Facts { restore: RestoreFact::Damaged("x".into()), ..f() }, Refusal::DamagedRestore("x".into())),
        (
            Facts { data_dir: DataDirFact::Empty, distro_store: Some("/k3s".into()), ..f() },
            Refusal::DistroStore("/k3s".into()),
        ),
    ];
    for (facts, refusal) in table {
        assert!(!refusal.what().is_empty() && !refusal.remedy().is_empty());
        assert_eq!(decide(&facts), BootDecision::Refuse(refusal), "{facts:?}");
    }
    let away = Facts { host_configured: true, marker: Known::Unknown("x".into()), ..f() };
    assert_eq!(decide(&away), BootDecision::Wait(Wait::HostAway("x".into())));
    // A begun reset is finished first; with what it was begun on gone, it is forgotten.
    let notes = Notes { resetting: true, ..Notes::default() };
    let resetting = Facts { notes: notes.clone(), ..f() };
    let reset = BootDecision::Reset { member: MemberId(1), cluster: OLD };
    assert_eq!(explained(&resetting, Rules::ALL), (reset, Rule::ResetFinished));
    assert_eq!(decide(&Facts { data_dir: DataDirFact::Empty, notes, ..f() }), begins(&[OLD]));
    // A deployed etcd is to be moved here too: unless that is done, or a cluster is there already, it is one or the other.
    let two = Facts { migrate_from: true, data_dir: DataDirFact::Empty, ..f() };
    let lifted = FenceFact::Lifted { source: "https://etcd".into() };
    for two in [two.clone(), Facts { fence: lifted, ..two.clone() }] {
        assert_eq!(explained(&two, Rules::ALL), (BootDecision::Refuse(Refusal::RestoreBesideMove), Rule::StoreOfSeed));
        let formed = Facts { marker: seen(MarkerPhase::Formed(OLD)), ..two.clone() };
        assert_eq!(decide(&formed), begins(&[OLD]), "the cluster that is restored was formed long ago");
        let done = Facts { fence: FenceFact::Kept { source: "https://etcd".into() }, ..two };
        let goes_on = decide(&done);
        assert!(matches!(goes_on, BootDecision::Record(Record::RestoreBegun(_))), "moved long ago: {goes_on:?}");
    }
    let here = Facts { migrate_from: true, ..f() };
    assert_eq!(decide(&here), begins(&[OLD]), "the setting stays when the move is done");
    // A fence comes first, whoever waits for it.
    let source = "https://etcd".to_owned();
    let raised = FenceFact::Raised { source: source.clone(), moved: false };
    let fenced = Facts { data_dir: DataDirFact::Empty, fence: raised, ..f() };
    assert_eq!(decide(&fenced), BootDecision::LiftFence { source });
    // What is damaged, too old or too new is what snapshots are for.
    for data_dir in [DataDirFact::Damaged, DataDirFact::Newer, DataDirFact::Older, DataDirFact::Unpromoted] {
        assert_eq!(decide(&Facts { data_dir: data_dir("x".into()), ..f() }), begins(&[OLD]));
    }
    // A committed import is no hindrance, and a store beside it is never imported.
    let committed = StoresFact { migrated: vec!["/data/state.db.migrated".into()], ..StoresFact::default() };
    assert_eq!(
        decide(&Facts { journal: JournalFact::Importing { source: db() }, stores: committed, ..f() }),
        begins(&[OLD])
    );
    let beside = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    assert_eq!(decide(&Facts { data_dir: DataDirFact::Empty, stores: beside, ..f() }), begins(&[OLD]));
}

#[test]
fn every_cluster_that_there_was_is_replaced_and_two_are_refused() {
    let empty = Facts {
        data_dir: DataDirFact::Empty,
        restore: RestoreFact::Staged(Staged { replaces: None, ..staged() }),
        desired: Desired::Values(3),
        peers: vec![PeerFact::new(Ordinal(1)), PeerFact::new(Ordinal(2))],
        ..facts()
    };
    let two = BootDecision::Refuse(Refusal::TwoClusters { mine: OLD, other: OTHER });
    // Nothing tells what it replaces: whoever could serve it later must speak.
    assert_eq!(decide(&empty), BootDecision::Wait(Wait::PeersNotKnownEmpty(vec![Ordinal(1), Ordinal(2)])));
    let said =
        |first: PeerState, second: PeerState| Facts { peers: vec![peer(1, first), peer(2, second)], ..empty.clone() };
    assert_eq!(decide(&said(PeerState::Empty, PeerState::Empty)), begins(&[]));
    assert_eq!(decide(&said(PeerState::Empty, PeerState::Store(db()))), begins(&[]));
    assert_eq!(decide(&said(PeerState::Empty, peer_of(OLD))), begins(&[OLD]));
    assert_eq!(decide(&said(peer_of(OLD), peer_of(OTHER))), two);
    let silent = Facts { peers: vec![peer(1, peer_of(OLD)), PeerFact::new(Ordinal(2))], ..empty.clone() };
    assert_eq!(decide(&silent), begins(&[OLD]));
    let joins = PeerFact { joins: Some(OLD), ..peer(1, PeerState::Empty) };
    assert_eq!(decide(&Facts { peers: vec![joins], ..empty.clone() }), begins(&[OLD]));
    // What this volume has noted, what stood here when it was staged, the WAL of a data dir that is not valid, or the marker tells it.
    let notes = Notes { set_aside: Some(OLD), forming: true, ..Notes::default() };
    assert_eq!(decide(&Facts { notes, ..empty.clone() }), begins(&[OLD]));
    assert_eq!(decide(&Facts { restore: RestoreFact::Staged(staged()), ..empty.clone() }), begins(&[OLD]));
    let owner = Some((MemberId(1), OLD));
    for data_dir in [DataDirFact::Damaged, DataDirFact::Newer, DataDirFact::Older, DataDirFact::Unpromoted] {
        assert_eq!(decide(&Facts { data_dir: data_dir("x".into()), owner, ..empty.clone() }), begins(&[OLD]));
    }
    let hosted = Facts { host_configured: true, marker: seen(MarkerPhase::Formed(OLD)), ..empty.clone() };
    assert_eq!(decide(&hosted), begins(&[OLD]));
    // With a host API and no marker, those whose volume exists must speak.
    let absent = Facts { marker: Known::Absent, claims: Known::Present(vec![]), ..hosted.clone() };
    assert_eq!(decide(&absent), begins(&[]));
    let claimed = Facts { claims: Known::Present(vec![Ordinal(2)]), ..absent };
    assert!(matches!(decide(&claimed), BootDecision::Wait(Wait::PeersNotKnownEmpty(_))));
    // A second, unrelated cluster is whoever's to choose, as ever; one that was superseded before is none.
    assert_eq!(decide(&Facts { peers: vec![peer(1, peer_of(OTHER))], ..restores() }), two);
    let marked = Facts { host_configured: true, marker: seen(MarkerPhase::Formed(OTHER)), ..restores() };
    assert_eq!(decide(&marked), two);
    let mut before = Facts { peers: vec![peer(1, peer_of(OTHER))], ..restores() };
    before.notes.superseded = vec![OTHER];
    assert_eq!(decide(&before), begins(&[OLD]));
}

#[test]
fn the_others_follow_and_nobody_acts_on_the_seed_meanwhile() {
    let seed = PeerFact { superseded: vec![OLD], ..PeerFact::new(Ordinal(0)) };
    let other = Facts { ordinal: Ordinal(1), data_dir: valid(), peers: vec![seed.clone()], ..facts() };
    assert_eq!(decide(&other), BootDecision::Wait(Wait::SupersededNotServed(OLD)));
    let serves = Known::Present(PeerState::Serving { member: MemberId(5), cluster: NEW });
    let served = Facts { peers: vec![PeerFact { state: serves, ..seed }], ..other };
    assert_eq!(decide(&served), BootDecision::SetAside { member: MemberId(1), cluster: OLD });
}

#[test]
fn no_combination_of_a_restore_and_other_facts_breaks_a_rule() {
    let restores = [
        RestoreFact::Staged(staged()),
        RestoreFact::Staged(Staged { whole: false, outrun: true, replaces: None, ..staged() }),
        begun(&[OLD]),
        begun(&[]),
        RestoreFact::Damaged("x".into()),
    ];
    let markers =
        [Known::Absent, Known::Unknown("x".into()), seen(MarkerPhase::Formed(OLD)), seen(MarkerPhase::Forming)];
    let journals = [JournalFact::Absent, JournalFact::Importing { source: db() }, JournalFact::Done { source: db() }];
    for bits in 0..1_u32 << 7 {
        let bit = |n: u32| bits & (1 << n) != 0;
        for restore in &restores {
            for data_dir in [DataDirFact::Empty, valid(), restored(), DataDirFact::Damaged("x".into())] {
                for (marker, journal) in markers.iter().flat_map(|m| journals.iter().map(move |j| (m, j))) {
                    let f = Facts {
                        ordinal: Ordinal(u32::from(bit(0))),
                        enabled: bit(1),
                        migrate_back: bit(2),
                        host_configured: bit(3),
                        notes: Notes { resetting: bit(4), superseded: vec![OLD; bit(5).into()], ..Notes::default() },
                        stores: StoresFact { state_dbs: vec![db(); bit(6).into()], ..StoresFact::default() },
                        restore: restore.clone(),
                        data_dir: data_dir.clone(),
                        marker: marker.clone(),
                        journal: journal.clone(),
                        ..facts()
                    };
                    check(&f);
                    if f.notes.resetting && matches!(f.data_dir, DataDirFact::Valid { .. }) && !f.restore.is_begun() {
                        continue;
                    }
                    let decision = decide(&f);
                    let stays = matches!(
                        decision,
                        BootDecision::Record(Record::RestoreBegun(_) | Record::Restored(_) | Record::RestoreDone)
                            | BootDecision::PutRestored { .. }
                            | BootDecision::Wait(_)
                            | BootDecision::Refuse(_)
                    );
                    assert!(stays, "something else is done beside a staged restore: {decision:?} {f:?}");
                }
            }
        }
    }
}
