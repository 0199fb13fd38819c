//! What the volume's SQLite stores, and the records of moves beside them, forbid.

use std::path::{Path, PathBuf};

use super::facts::{Facts, FenceFact, JournalFact};
use super::refusal::Refusal;

/// The source of an import that was begun and not committed: the journal names it and it still bears its name.
pub(super) fn uncommitted(facts: &Facts) -> Option<PathBuf> {
    match &facts.journal {
        JournalFact::Importing { source } if facts.stores.state_dbs.contains(source) => Some(source.clone()),
        _ => None,
    }
}

/// The source of an import that was begun: the file is gone, and it does not bear its new name either.
pub(super) fn vanished(facts: &Facts) -> Option<PathBuf> {
    let JournalFact::Importing { source } = &facts.journal else { return None };
    let mut migrated = source.as_os_str().to_owned();
    migrated.push(".migrated");
    let there = facts.stores.state_dbs.contains(source) || facts.stores.migrated.iter().any(|file| *file == migrated);
    (!there).then(|| source.clone())
}

/// The store that was moved into a data dir, which is not there. The journal of a move from a deployed etcd names that etcd,
/// and so does the fence, which stays around it.
pub(super) fn lost(facts: &Facts) -> Option<Refusal> {
    match (&facts.fence, &facts.journal) {
        (FenceFact::Kept { source }, _) => Some(Refusal::MovedButNoDataDir(source.clone())),
        (FenceFact::Lifted { source }, JournalFact::Done { source: moved }) if *moved == Path::new(source) => {
            Some(Refusal::MovedButNoDataDir(source.clone()))
        }
        (_, JournalFact::Done { source }) => Some(Refusal::MigratedButNoDataDir(source.clone())),
        _ => None,
    }
}

/// Why the API server may not run on SQLite.
pub(super) fn sqlite(facts: &Facts) -> Option<Refusal> {
    if let Some(dir) = &facts.distro_store {
        return Some(Refusal::DistroStore(dir.clone()));
    }
    // SQLite would begin with an empty store where the journal tells of one.
    if let Some(source) = vanished(facts) {
        return Some(Refusal::SourceVanished(source));
    }
    if matches!(facts.journal, JournalFact::Done { .. }) && facts.stores.state_dbs.is_empty() {
        return lost(facts);
    }
    if let (Some(uses), Some(found)) = (&facts.sqlite, facts.stores.state_dbs.first())
        && !facts.stores.state_dbs.contains(uses)
    {
        return Some(Refusal::OtherStore { found: found.clone(), uses: uses.clone() });
    }
    match facts.desired.known() {
        Some(desired) if desired > 1 => Some(Refusal::SqliteReplicas(desired)),
        _ => store_refused(facts).or_else(|| begins_empty(facts)),
    }
}

/// Why SQLite may not begin with an empty store: the cluster has one somewhere. An API server on another datastore begins none.
fn begins_empty(facts: &Facts) -> Option<Refusal> {
    match &facts.fence {
        _ if !facts.stores.state_dbs.is_empty() || facts.sqlite.is_none() => None,
        FenceFact::Kept { source } => Some(Refusal::MovedButNoDataDir(source.clone())),
        FenceFact::Lifted { source } => Some(Refusal::MoveUnfinished(source.clone())),
        _ if facts.written_back => Some(Refusal::WrittenBackButGone),
        _ if facts.migrate_back => Some(Refusal::NothingToWriteBack),
        _ => None,
    }
}

/// Why a valid data dir may not be written back into a SQLite store. What its log says of other members is looked at when
/// it is read.
pub(super) fn back(facts: &Facts) -> Option<Refusal> {
    if facts.notes.resetting {
        // A reset that was begun ends under etcd.
        return Some(Refusal::EtcdDirWhileDisabled);
    }
    if let Some(source) = vanished(facts) {
        return Some(Refusal::SourceVanished(source));
    }
    if facts.ordinal != facts.seed {
        return Some(Refusal::BackNotTheSeed { ordinal: facts.ordinal, seed: facts.seed });
    }
    if let Some(dir) = &facts.distro_store {
        return Some(Refusal::DistroStore(dir.clone()));
    }
    if facts.stores.state_dbs.len() > 1 {
        return Some(Refusal::SeveralStores(facts.stores.state_dbs.clone()));
    }
    match facts.desired.known() {
        Some(desired) if desired > 1 => Some(Refusal::SqliteReplicas(desired)),
        _ => facts.stores.orphan_wals.first().cloned().map(Refusal::OrphanWal),
    }
}

/// Why the SQLite stores on the volume forbid to begin anything.
pub(super) fn store_refused(facts: &Facts) -> Option<Refusal> {
    if let Some(wal) = facts.stores.orphan_wals.first() {
        return Some(Refusal::OrphanWal(wal.clone()));
    }
    if let Some(migrated) = facts.stores.migrated.first()
        && facts.stores.state_dbs.is_empty()
    {
        return Some(Refusal::MigratedButNoDataDir(migrated.clone()));
    }
    None
}
