use std::path::PathBuf;

use super::*;
use crate::ids::Ordinal;

mod fence;
mod many;
mod restore;

fn facts() -> Facts {
    Facts {
        ordinal: Ordinal(0),
        seed: Ordinal(0),
        desired: Desired::Values(1),
        enabled: true,
        migrate_back: false,
        migrate_from: false,
        fence: FenceFact::Absent,
        restore: RestoreFact::Absent,
        data_dir: DataDirFact::Empty,
        owner: None,
        log: Known::Absent,
        dropped: Vec::new(),
        notes: Notes::default(),
        journal: JournalFact::Absent,
        sqlite: None,
        written_back: false,
        stores: StoresFact::default(),
        distro_store: None,
        shared_ca: true,
        k0s_makes_cas: None,
        k0s_other_cas: None,
        marker: Known::Unknown("no host API is configured".into()),
        host_configured: false,
        claims: Known::Unknown("no host API is configured".into()),
        peers: Vec::new(),
        named: Known::Present(()),
        members: Known::default(),
    }
}

/// A marker as it was read, without a reset or a stop.
fn seen(phase: MarkerPhase) -> Known<MarkerSeen> {
    Known::Present(MarkerSeen { version: "7".into(), marker: Marker::new(phase) })
}

fn peer_of(cluster: ClusterId) -> PeerState {
    PeerState::Data { member: MemberId(9), cluster, last: None }
}

fn valid() -> DataDirFact {
    DataDirFact::Valid { member: MemberId(1), cluster: ClusterId(2) }
}

fn db() -> PathBuf {
    "/data/state.db".into()
}

#[test]
fn an_empty_volume_forms() {
    assert_eq!(decide(&facts()), BootDecision::Form);
}

#[test]
fn a_store_is_imported() {
    let mut f = facts();
    f.stores.state_dbs = vec![db()];
    assert_eq!(decide(&f), BootDecision::Import { source: db() });
}

#[test]
fn an_uncommitted_import_is_done_anew_whatever_stands_in_the_data_dir() {
    for data_dir in [DataDirFact::Empty, valid(), DataDirFact::Damaged("cut".into())] {
        let f = Facts {
            data_dir,
            journal: JournalFact::Importing { source: db() },
            stores: StoresFact { state_dbs: vec![db()], ..StoresFact::default() },
            ..facts()
        };
        assert_eq!(decide(&f), BootDecision::Import { source: db() });
    }
}

#[test]
fn a_committed_import_is_finished_and_started() {
    let f = Facts {
        data_dir: valid(),
        journal: JournalFact::Importing { source: db() },
        stores: StoresFact { migrated: vec!["/data/state.db.migrated".into()], ..StoresFact::default() },
        ..facts()
    };
    assert!(matches!(decide(&f), BootDecision::Start { finish: true, .. }));
}

#[test]
fn a_formed_cluster_starts_and_never_imports_a_store_beside_it() {
    let f =
        Facts { data_dir: valid(), stores: StoresFact { state_dbs: vec![db()], ..StoresFact::default() }, ..facts() };
    let BootDecision::Start { warnings, finish, .. } = decide(&f) else { panic!("{:?}", decide(&f)) };
    assert_eq!(warnings, [Warning::StateDbIgnored(db())]);
    assert!(!finish);
}

#[test]
fn each_refusal_has_its_facts() {
    let source = JournalFact::Importing { source: db() };
    let one_store = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    let wal: PathBuf = "/data/state.db-wal".into();
    let migrated: PathBuf = "/data/state.db.migrated".into();
    let two = vec![db(), "/data/server/db/state.db".into()];
    let table = [
        (Facts { data_dir: DataDirFact::Damaged("x".into()), ..facts() }, Refusal::DamagedDataDir("x".into())),
        (Facts { journal: JournalFact::Damaged("x".into()), ..facts() }, Refusal::DamagedJournal("x".into())),
        (Facts { enabled: false, data_dir: valid(), ..facts() }, Refusal::EtcdDirWhileDisabled),
        (
            Facts { enabled: false, data_dir: DataDirFact::Damaged("x".into()), ..facts() },
            Refusal::EtcdDirWhileDisabled,
        ),
        (
            Facts { distro_store: Some("/data/k0s/etcd".into()), ..facts() },
            Refusal::DistroStore("/data/k0s/etcd".into()),
        ),
        (
            Facts { enabled: false, distro_store: Some("/data/k0s/etcd".into()), ..facts() },
            Refusal::DistroStore("/data/k0s/etcd".into()),
        ),
        (
            Facts { migrate_back: true, data_dir: DataDirFact::Damaged("x".into()), enabled: false, ..facts() },
            Refusal::DamagedDataDir("x".into()),
        ),
        (
            Facts { migrate_back: true, data_dir: DataDirFact::Newer("x".into()), enabled: false, ..facts() },
            Refusal::EtcdDirWhileDisabled,
        ),
        (Facts { desired: Desired::Values(3), ..back() }, Refusal::SqliteReplicas(3)),
        (Facts { notes: Notes { resetting: true, ..Notes::default() }, ..back() }, Refusal::EtcdDirWhileDisabled),
        (Facts { ordinal: Ordinal(1), ..back() }, Refusal::BackNotTheSeed { ordinal: Ordinal(1), seed: Ordinal(0) }),
        (
            Facts { stores: StoresFact { state_dbs: two.clone(), ..StoresFact::default() }, ..back() },
            Refusal::SeveralStores(two.clone()),
        ),
        (
            Facts { stores: StoresFact { orphan_wals: vec![wal.clone()], ..StoresFact::default() }, ..back() },
            Refusal::OrphanWal(wal.clone()),
        ),
        (Facts { journal: source.clone(), ..back() }, Refusal::SourceVanished(db())),
        (Facts { enabled: false, desired: Desired::Values(3), ..facts() }, Refusal::SqliteReplicas(3)),
        (Facts { migrate_from: true, stores: one_store.clone(), ..facts() }, Refusal::TwoSources(db())),
        (
            Facts { stores: StoresFact { state_dbs: two.clone(), ..StoresFact::default() }, ..facts() },
            Refusal::SeveralStores(two),
        ),
        (
            Facts { stores: StoresFact { orphan_wals: vec![wal.clone()], ..StoresFact::default() }, ..facts() },
            Refusal::OrphanWal(wal),
        ),
        (
            Facts { stores: StoresFact { migrated: vec![migrated.clone()], ..StoresFact::default() }, ..facts() },
            Refusal::MigratedButNoDataDir(migrated.clone()),
        ),
        (
            Facts {
                enabled: false,
                stores: StoresFact { migrated: vec![migrated.clone()], ..StoresFact::default() },
                ..facts()
            },
            Refusal::MigratedButNoDataDir(migrated),
        ),
        (Facts { journal: JournalFact::Done { source: db() }, ..facts() }, Refusal::MigratedButNoDataDir(db())),
        (Facts { journal: source.clone(), ..facts() }, Refusal::SourceVanished(db())),
        (Facts { journal: source.clone(), data_dir: valid(), ..facts() }, Refusal::SourceVanished(db())),
        (Facts { enabled: false, journal: source, ..facts() }, Refusal::SourceVanished(db())),
        (
            Facts { enabled: false, journal: JournalFact::Done { source: db() }, ..facts() },
            Refusal::MigratedButNoDataDir(db()),
        ),
        (Facts { marker: seen(MarkerPhase::Formed(ClusterId(7))), ..facts() }, Refusal::FormedElsewhere(ClusterId(7))),
        (
            Facts { ordinal: Ordinal(1), stores: one_store, ..facts() },
            Refusal::NotTheSeed { ordinal: Ordinal(1), stores: vec![db()], seed: Ordinal(0), of_seed: None },
        ),
    ];
    let off = || Facts { enabled: false, sqlite: Some(db()), ..facts() };
    let deployed = || "https://vc-etcd:2379".to_owned();
    let emptied = [
        (Facts { written_back: true, ..off() }, Refusal::WrittenBackButGone),
        (Facts { written_back: true, ..facts() }, Refusal::WrittenBackButGone),
        (Facts { migrate_back: true, ..off() }, Refusal::NothingToWriteBack),
        (Facts { fence: FenceFact::Lifted { source: deployed() }, ..off() }, Refusal::MoveUnfinished(deployed())),
        (Facts { fence: FenceFact::Kept { source: deployed() }, ..off() }, Refusal::MovedButNoDataDir(deployed())),
    ];
    let uses: PathBuf = "/data/server/db/state.db".into();
    let elsewhere = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    let other = Facts { sqlite: Some(uses.clone()), stores: elsewhere, ..off() };
    let other = [(other, Refusal::OtherStore { found: db(), uses })];
    // With the journal that such a move has left.
    let journal = JournalFact::Done { source: deployed().into() };
    let moved = Facts { fence: FenceFact::Kept { source: deployed() }, journal, ..off() };
    let moved = [(moved, Refusal::MovedButNoDataDir(deployed()))];
    // On another datastore than SQLite nothing begins empty.
    for (facts, _) in emptied.iter().filter(|(facts, _)| !facts.enabled) {
        assert_eq!(decide(&Facts { sqlite: None, ..facts.clone() }), BootDecision::RunOnSqlite);
    }
    for (facts, want) in table.into_iter().chain(emptied).chain(moved).chain(other) {
        assert_eq!(decide(&facts), BootDecision::Refuse(want.clone()), "{facts:?}");
        assert!(!want.what().is_empty() && !want.remedy().is_empty());
        assert!(!matches!(want.exit(), crate::exit::Exit::Ok | crate::exit::Exit::Fault | crate::exit::Exit::Usage));
    }
}

/// The way back is asked for.
fn back() -> Facts {
    Facts { enabled: false, migrate_back: true, data_dir: valid(), ..facts() }
}

#[test]
fn the_way_back_begins_where_it_is_asked_for_and_ends_on_sqlite() {
    let goes_back = |f: &Facts| matches!(decide(f), BootDecision::MigrateBack { .. });
    assert!(goes_back(&back()));
    // Where the store came from, or what an earlier attempt has put in place.
    let stores = StoresFact { state_dbs: vec![db()], ..StoresFact::default() };
    assert!(goes_back(&Facts { journal: JournalFact::Done { source: db() }, ..back() }));
    assert!(goes_back(&Facts { stores: stores.clone(), ..back() }));
    // Committed: the data dir is gone, whatever the journal says of the way there.
    for journal in [JournalFact::Absent, JournalFact::Done { source: db() }] {
        let done = Facts { data_dir: DataDirFact::Empty, stores: stores.clone(), journal, ..back() };
        assert_eq!(decide(&done), BootDecision::RunOnSqlite);
    }
    // An import that was not committed: SQLite is still the truth, and nothing is written over it.
    let uncommitted = Facts { journal: JournalFact::Importing { source: db() }, stores, ..back() };
    assert_eq!(decide(&uncommitted), BootDecision::RunOnSqlite);
    assert!(!goes_back(&Facts { enabled: true, ..back() }) && !goes_back(&Facts { migrate_back: false, ..back() }));
}

/// Killed behind the commit, and switched on again before SQLite was run.
#[test]
fn a_store_that_went_back_goes_into_etcd_again_whatever_tells_of_the_way_before() {
    let stores =
        StoresFact { state_dbs: vec![db()], migrated: vec!["/data/state.db.migrated".into()], ..StoresFact::default() };
    let kept = || FenceFact::Kept { source: "https://vc-etcd:2379".into() };
    let left = Notes { left: Some(ClusterId(2)), ..Notes::default() };
    let done = JournalFact::Done { source: db() };
    for (journal, fence) in [(done.clone(), FenceFact::Absent), (JournalFact::Absent, kept()), (done, kept())] {
        let f = Facts { journal, fence, stores: stores.clone(), notes: left.clone(), written_back: true, ..facts() };
        assert_eq!(decide(&f), BootDecision::Record(Record::WentBack));
        let put_away = Facts { journal: JournalFact::Absent, fence: FenceFact::Absent, ..f.clone() };
        assert_eq!(decide(&put_away), BootDecision::Import { source: db() });
        // Without the note it was somebody's hand that put the file there.
        assert!(matches!(decide(&Facts { notes: Notes::default(), ..f }), BootDecision::Refuse(_)));
    }
}

#[test]
fn a_lone_formed_marker_phase_forming_may_form_again() {
    let f = Facts { marker: seen(MarkerPhase::Forming), ..facts() };
    assert_eq!(decide(&f), BootDecision::Form);
}

/// Every combination of the facts, against the rules that no decision may break.
#[test]
fn no_combination_of_facts_breaks_a_rule() {
    let data_dirs = [DataDirFact::Empty, valid(), DataDirFact::Damaged("x".into())];
    let journals = [
        JournalFact::Absent,
        JournalFact::Importing { source: db() },
        JournalFact::Done { source: db() },
        JournalFact::Damaged("x".into()),
    ];
    let peer_states = [
        None,
        Some(Known::Absent),
        Some(Known::Unknown("x".into())),
        Some(Known::Present(PeerState::Empty)),
        Some(Known::Present(peer_of(ClusterId(9)))),
    ];
    let markers = [
        Known::Absent,
        Known::Unknown("x".into()),
        seen(MarkerPhase::Forming),
        seen(MarkerPhase::Formed(ClusterId(2))),
    ];
    let mut seen = 0;
    for bits in 0..1u32 << 11 {
        let bit = |n: u32| bits & (1 << n) != 0;
        for data_dir in &data_dirs {
            for journal in &journals {
                for marker in &markers {
                    for peer in &peer_states {
                        let f = Facts {
                            ordinal: Ordinal(u32::from(bit(0))),
                            seed: Ordinal(0),
                            desired: Desired::Values(if peer.is_some() { 2 } else { 1 }),
                            enabled: bit(1),
                            migrate_back: bit(2),
                            migrate_from: bit(3),
                            written_back: bit(10),
                            sqlite: bit(6).then(db),
                            data_dir: data_dir.clone(),
                            journal: journal.clone(),
                            stores: StoresFact {
                                state_dbs: if bit(4) { vec![db()] } else { vec![] },
                                migrated: if bit(5) { vec!["/data/state.db.migrated".into()] } else { vec![] },
                                strays: if bit(6) { vec!["/data/state.db-wal".into()] } else { vec![] },
                                orphan_wals: if bit(7) { vec!["/data/state.db-wal".into()] } else { vec![] },
                            },
                            distro_store: bit(9).then(|| "/data/k0s/etcd".into()),
                            marker: marker.clone(),
                            host_configured: bit(8),
                            peers: peer
                                .iter()
                                .map(|state| PeerFact { state: state.clone(), ..PeerFact::new(Ordinal(1)) })
                                .collect(),
                            ..facts()
                        };
                        check(&f);
                        seen += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen, 2048 * 3 * 4 * 4 * 5);
}

fn check(f: &Facts) {
    let decision = decide(f);
    // Whatever the facts, no rule switched off makes a decision panic.
    for rule in Rule::ALL {
        explained(f, Rules::without(&[*rule]));
    }
    let committed_data = matches!(f.data_dir, DataDirFact::Valid { .. }) && uncommitted(f).is_none();
    let forms = matches!(decision, BootDecision::Form | BootDecision::Import { .. } | BootDecision::MigrateFrom);
    if forms || decision == BootDecision::RunOnSqlite {
        assert_eq!(f.distro_store, None, "a store is begun beside the distro's own: {f:?}");
        // On another datastore than SQLite nothing begins empty but by the journal of a store that was here.
        let begins = f.enabled || f.sqlite.is_some();
        let told_of = matches!(&f.journal, JournalFact::Importing { .. } | JournalFact::Done { .. })
            || begins
                && (matches!(&f.fence, FenceFact::Kept { .. })
                    || (matches!(&f.fence, FenceFact::Lifted { .. }) && decision != BootDecision::MigrateFrom)
                    || f.written_back
                    || (f.migrate_back && !f.enabled));
        assert!(!told_of || !f.stores.state_dbs.is_empty(), "an empty store replaces one that was there: {f:?}");
    }
    if matches!(decision, BootDecision::Start { .. }) && matches!(f.journal, JournalFact::Importing { .. }) {
        assert!(!f.stores.migrated.is_empty(), "an import that nothing confirmed is served: {f:?}");
    }
    if forms {
        assert!(f.enabled, "forms while disabled: {f:?}");
        assert_eq!(f.ordinal, f.seed, "another pod than the seed forms: {f:?}");
        assert!(!committed_data, "a cluster with data is replaced: {f:?}");
        assert!(
            f.peers.iter().all(|p| p.state == Known::Present(PeerState::Empty)),
            "forms beside a peer that has not said that it is empty: {f:?}"
        );
        assert_eq!(f.marker().and_then(Marker::formed), None, "forms although formed: {f:?}");
        assert!(!f.host_configured || !matches!(f.marker, Known::Unknown(_)), "forms unknowing: {f:?}");
    }
    match &decision {
        BootDecision::Form => {
            assert!(f.stores.state_dbs.is_empty(), "an empty cluster is formed beside a store: {f:?}");
            assert!(f.stores.migrated.is_empty(), "an empty cluster replaces a migrated one: {f:?}");
            assert_eq!(f.journal, JournalFact::Absent, "an empty cluster replaces an imported one: {f:?}");
        }
        BootDecision::Import { source } => assert!(f.stores.state_dbs.contains(source)),
        BootDecision::MigrateBack { .. } => {
            assert!(f.migrate_back && !f.enabled && committed_data, "goes back without data, or unasked: {f:?}");
            assert!(f.ordinal == f.seed && !f.notes.resetting, "{f:?}");
            assert!(f.desired.known().is_none_or(|n| n <= 1));
        }
        BootDecision::RunOnSqlite => {
            assert!(!f.enabled && !committed_data, "SQLite is run beside etcd's data: {f:?}");
            assert!(f.desired.known().is_some_and(|n| n <= 1));
        }
        BootDecision::Start { .. } | BootDecision::SetAside { .. } | BootDecision::Reset { .. } => {
            assert!(f.enabled && committed_data, "starts without data: {f:?}");
        }
        BootDecision::Join { .. } => assert!(f.enabled && f.data_dir == DataDirFact::Empty, "joins with data: {f:?}"),
        BootDecision::MigrateFrom => {
            assert!(f.migrate_from && f.data_dir == DataDirFact::Empty, "moves unasked, or over data: {f:?}");
            assert!(f.stores.state_dbs.is_empty(), "one of two stores is left behind: {f:?}");
            let fresh = matches!(f.fence, FenceFact::Absent | FenceFact::Lifted { .. });
            assert!(fresh, "moves from a source whose fence stands: {f:?}");
        }
        BootDecision::LiftFence { .. } => {
            assert!(matches!(f.fence, FenceFact::Raised { .. }) && f.data_dir == DataDirFact::Empty, "{f:?}");
        }
        BootDecision::Record(Record::FenceKept) => {
            let committed = matches!(f.fence, FenceFact::Raised { moved: true, .. });
            assert!(committed && f.data_dir != DataDirFact::Empty, "{f:?}");
        }
        BootDecision::PutRestored { member, cluster } => {
            let RestoreFact::Staged(Staged { begun: Some(replaced), whole: true, .. }) = &f.restore else {
                panic!("{f:?}")
            };
            assert!(
                replaced.iter().all(|old| f.notes.superseded.contains(old)),
                "what it replaces is not noted: {f:?}"
            );
            assert_ne!(f.data_dir, DataDirFact::Valid { member: *member, cluster: *cluster }, "it is there: {f:?}");
            assert!(f.enabled, "{f:?}");
        }
        BootDecision::Record(_) | BootDecision::Wait(_) => assert!(f.enabled, "{f:?}"),
        BootDecision::Refuse(_) => {}
    }
}
