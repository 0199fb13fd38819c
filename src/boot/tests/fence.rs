//! Moving from a deployed etcd: who moves, when its fence is lifted, and when it never is.

use super::*;

fn source() -> String {
    "https://vc-etcd:2379".to_owned()
}

fn fences() -> [FenceFact; 6] {
    [
        FenceFact::Absent,
        raised(false),
        raised(true),
        FenceFact::Lifted { source: source() },
        FenceFact::Kept { source: source() },
        FenceFact::Damaged("x".into()),
    ]
}

fn raised(moved: bool) -> FenceFact {
    FenceFact::Raised { source: source(), moved }
}

/// A move that was committed: its journal is done, and the fence stays.
fn committed(f: Facts) -> Facts {
    Facts { fence: FenceFact::Kept { source: source() }, journal: JournalFact::Done { source: source().into() }, ..f }
}

/// A first start that is to move from a deployed etcd.
fn moves() -> Facts {
    Facts { migrate_from: true, ..facts() }
}

#[test]
fn the_seed_moves_and_the_others_wait_and_join() {
    assert_eq!(decide(&moves()), BootDecision::MigrateFrom);
    let empty = |ordinal| PeerFact { state: Known::Present(PeerState::Empty), ..PeerFact::new(Ordinal(ordinal)) };
    let three = Facts { desired: Desired::Values(3), ..moves() };
    let seed = Facts { peers: vec![empty(1), empty(2)], ..three.clone() };
    assert_eq!(decide(&seed), BootDecision::MigrateFrom);
    let other = Facts { ordinal: Ordinal(1), peers: vec![empty(0), empty(2)], ..three.clone() };
    assert_eq!(decide(&other), BootDecision::Wait(Wait::ForSeed(Ordinal(0))));
    // The rules for forming stand before it.
    let silent = Facts { peers: vec![empty(1), PeerFact::new(Ordinal(2))], ..three };
    assert_eq!(decide(&silent), BootDecision::Wait(Wait::PeersNotKnownEmpty(vec![Ordinal(2)])));
    let formed = Facts {
        marker: seen(MarkerPhase::Formed(ClusterId(7))),
        host_configured: true,
        claims: Known::Absent,
        ..moves()
    };
    assert_eq!(decide(&formed), BootDecision::Refuse(Refusal::FormedElsewhere(ClusterId(7))));
    let away = Facts { host_configured: true, ..moves() };
    assert!(matches!(decide(&away), BootDecision::Wait(Wait::HostAway(_))));
}

#[test]
fn with_a_data_dir_the_setting_does_nothing() {
    for facts in [facts(), committed(facts())] {
        for migrate_from in [false, true] {
            let f = Facts { data_dir: valid(), migrate_from, ..facts.clone() };
            assert!(matches!(decide(&f), BootDecision::Start { .. }), "{f:?}");
        }
    }
}

#[test]
fn a_fence_is_lifted_before_anything_else_unless_the_move_is_committed() {
    for enabled in [false, true] {
        for migrate_from in [false, true] {
            for state_dbs in [vec![], vec![db()]] {
                let stores = StoresFact { state_dbs, ..StoresFact::default() };
                let f = Facts { enabled, migrate_from, stores, fence: raised(false), ..facts() };
                assert_eq!(decide(&f), BootDecision::LiftFence { source: source() });
                let beside = |data_dir: &DataDirFact, moved| {
                    decide(&Facts { data_dir: data_dir.clone(), fence: raised(moved), ..f.clone() })
                };
                for data_dir in [valid(), DataDirFact::Damaged("x".into()), DataDirFact::Newer("x".into())] {
                    assert_eq!(beside(&data_dir, true), BootDecision::Record(Record::FenceKept));
                    let other = Refusal::OtherDataDirBesideFence(source());
                    assert_eq!(
                        beside(&data_dir, false),
                        BootDecision::Refuse(other),
                        "any data dir is taken for the commit"
                    );
                }
            }
        }
    }
}

#[test]
fn what_was_begun_and_is_not_asked_for_any_more_is_no_empty_cluster() {
    let with = |fence| Facts { fence, ..facts() };
    let lifted = FenceFact::Lifted { source: source() };
    assert_eq!(decide(&with(lifted.clone())), BootDecision::Refuse(Refusal::MoveUnfinished(source())));
    assert_eq!(decide(&Facts { fence: lifted, ..moves() }), BootDecision::MigrateFrom);
    for f in [facts(), moves()] {
        // The journal may have been moved away, or the fence lifted before the record of it said that it stays.
        let kept = Facts { fence: FenceFact::Kept { source: source() }, ..f.clone() };
        let lifted = Facts { fence: FenceFact::Lifted { source: source() }, ..committed(f.clone()) };
        for f in [kept, lifted, committed(f)] {
            assert_eq!(decide(&f), BootDecision::Refuse(Refusal::MovedButNoDataDir(source())));
        }
    }
    let damaged = Facts { fence: FenceFact::Damaged("x".into()), data_dir: valid(), ..moves() };
    assert_eq!(decide(&damaged), BootDecision::Refuse(Refusal::DamagedJournal("x".into())));
}

#[test]
fn no_combination_of_a_fence_and_other_facts_breaks_a_rule() {
    let journals = [
        JournalFact::Absent,
        JournalFact::Importing { source: db() },
        JournalFact::Done { source: db() },
        JournalFact::Done { source: source().into() },
    ];
    let markers = [Known::Absent, Known::Unknown("x".into()), seen(MarkerPhase::Formed(ClusterId(2)))];
    for bits in 0..1_u32 << 6 {
        let bit = |n: u32| bits & (1 << n) != 0;
        for fence in fences() {
            for data_dir in [DataDirFact::Empty, valid(), DataDirFact::Damaged("x".into())] {
                for journal in &journals {
                    for marker in &markers {
                        let f = Facts {
                            ordinal: Ordinal(u32::from(bit(0))),
                            enabled: bit(1),
                            migrate_from: bit(2),
                            migrate_back: bit(3),
                            sqlite: bit(5).then(db),
                            host_configured: bit(4),
                            fence: fence.clone(),
                            data_dir: data_dir.clone(),
                            journal: journal.clone(),
                            marker: marker.clone(),
                            stores: StoresFact {
                                state_dbs: if bit(5) { vec![db()] } else { vec![] },
                                ..StoresFact::default()
                            },
                            ..facts()
                        };
                        check(&f);
                    }
                }
            }
        }
    }
}
