//! The boot decision: facts in, one decision out. No clock, no socket, no file.
//!
//! Numbers in brackets are the rules' numbers (`docs/rules.md`). Read the match in [`decide`] from top to bottom: the
//! first line that fits wins, and everything that could lose data stands before everything that writes.

pub mod facts;
pub mod observe;
pub mod refusal;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, MemberId};
pub use facts::{DataDirFact, Facts, JournalFact, Known, Marker, PeerFact, PeerState, StoresFact};
pub use refusal::Refusal;

/// What this boot does. It leaves whoever carries it out no choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BootDecision {
    /// Start etcd on the data dir as it is.
    Start {
        /// Whose data dir it is.
        member: MemberId,
        /// Which cluster it belongs to.
        cluster: ClusterId,
        /// `-wal` and `-shm` files to be moved beside their `state.db.migrated` first.
        finish: bool,
        /// Things worth a warning.
        warnings: Vec<Warning>,
    },
    /// Form a new, empty cluster of one member with a fresh token.
    Form,
    /// Move this SQLite store into a new cluster of one member, setting aside what an uncommitted import left.
    Import {
        /// The `state.db`.
        source: PathBuf,
    },
    /// Run the API server on SQLite: embedded etcd is off.
    RunOnSqlite,
    /// Do not start.
    Refuse(Refusal),
}

/// Something the operator should know, which stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Warning {
    /// A `state.db` lies beside a formed cluster; it is left alone.
    StateDbIgnored(PathBuf),
    /// More replicas are asked for than this pod can see; it starts from its valid data dir all the same.
    PeersUnknown,
}

/// Decides what this boot does.
pub fn decide(facts: &Facts) -> BootDecision {
    use BootDecision::{Form, Import, Refuse, Start};

    if let JournalFact::Damaged(why) = &facts.journal {
        return Refuse(Refusal::DamagedJournal(why.clone()));
    }
    if !facts.enabled {
        return match &facts.data_dir {
            // An uncommitted import never took a write: SQLite is still the truth.
            _ if uncommitted(facts).is_some() => sqlite(facts),
            DataDirFact::Empty => sqlite(facts),
            _ if facts.migrate_back => Refuse(Refusal::MigrateBackNotYet),
            _ => Refuse(Refusal::EtcdDirWhileDisabled),
        };
    }
    // An uncommitted import comes first: what stands in the data dir is then ours and never served anyone.
    if let Some(source) = uncommitted(facts) {
        return forming_refused(facts).map_or(Import { source }, Refuse);
    }
    match &facts.data_dir {
        DataDirFact::Damaged(why) => return Refuse(Refusal::DamagedDataDir(why.clone())),
        DataDirFact::Valid { member, cluster } => {
            // Nothing has confirmed what an import that did not commit has left here.
            if let Some(source) = vanished(facts) {
                return Refuse(Refusal::SourceVanished(source));
            }
            let mut warnings: Vec<_> = facts.stores.state_dbs.iter().cloned().map(Warning::StateDbIgnored).collect();
            if facts.desired > 1 {
                warnings.push(Warning::PeersUnknown);
            }
            let finish = !facts.stores.strays.is_empty() || matches!(facts.journal, JournalFact::Importing { .. });
            return Start { member: *member, cluster: *cluster, finish, warnings };
        }
        DataDirFact::Empty => {}
    }
    // Nothing of etcd on this volume.
    match &facts.journal {
        JournalFact::Importing { source } => return Refuse(Refusal::SourceVanished(source.clone())),
        JournalFact::Done { source } => return Refuse(Refusal::MigratedButNoDataDir(source.clone())),
        JournalFact::Absent | JournalFact::Damaged(_) => {}
    }
    if facts.migrate_from {
        return Refuse(Refusal::MigrateFromNotYet);
    }
    if let Some(refusal) = forming_refused(facts) {
        return Refuse(refusal);
    }
    if let Some(refusal) = store_refused(facts) {
        return Refuse(refusal);
    }
    match facts.stores.state_dbs.as_slice() {
        [] => Form,
        [source] => Import { source: source.clone() },
        several => Refuse(Refusal::SeveralStores(several.to_vec())),
    }
}

/// The source of an import that was begun and not committed: the journal names it and it still bears its name.
fn uncommitted(facts: &Facts) -> Option<PathBuf> {
    match &facts.journal {
        JournalFact::Importing { source } if facts.stores.state_dbs.contains(source) => Some(source.clone()),
        _ => None,
    }
}

/// The source of an import that was begun: the file is gone, and it does not bear its new name either.
fn vanished(facts: &Facts) -> Option<PathBuf> {
    let JournalFact::Importing { source } = &facts.journal else { return None };
    let mut migrated = source.as_os_str().to_owned();
    migrated.push(".migrated");
    let there = facts.stores.state_dbs.contains(source) || facts.stores.migrated.iter().any(|file| *file == migrated);
    (!there).then(|| source.clone())
}

fn sqlite(facts: &Facts) -> BootDecision {
    if let Some(dir) = &facts.distro_store {
        return BootDecision::Refuse(Refusal::DistroStore(dir.clone()));
    }
    // SQLite would begin with an empty store where the journal tells of one.
    if let Some(source) = vanished(facts) {
        return BootDecision::Refuse(Refusal::SourceVanished(source));
    }
    if let JournalFact::Done { source } = &facts.journal
        && facts.stores.state_dbs.is_empty()
    {
        return BootDecision::Refuse(Refusal::MigratedButNoDataDir(source.clone()));
    }
    if facts.desired > 1 {
        return BootDecision::Refuse(Refusal::SqliteReplicas(facts.desired));
    }
    match store_refused(facts) {
        Some(refusal) => BootDecision::Refuse(refusal),
        None => BootDecision::RunOnSqlite,
    }
}

/// Why the SQLite stores on the volume forbid to begin anything.
fn store_refused(facts: &Facts) -> Option<Refusal> {
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

/// Why no cluster may be formed (or imported into) here [4.1, 4.2, 4.3].
fn forming_refused(facts: &Facts) -> Option<Refusal> {
    if let Some(dir) = &facts.distro_store {
        return Some(Refusal::DistroStore(dir.clone()));
    }
    if facts.ordinal != facts.seed {
        return Some(Refusal::NotTheSeed { ordinal: facts.ordinal, seed: facts.seed });
    }
    match &facts.marker {
        Known::Present(marker) if marker.formed => return Some(Refusal::FormedElsewhere(marker.cluster)),
        Known::Unknown(why) if facts.host_configured => return Some(Refusal::MarkerUnknown(why.clone())),
        _ => {}
    }
    let not_empty: Vec<_> =
        facts.peers.iter().filter(|p| p.state != Known::Present(PeerState::Empty)).map(|p| p.ordinal).collect();
    if not_empty.is_empty() { None } else { Some(Refusal::PeersNotKnownEmpty(not_empty)) }
}

#[cfg(test)]
mod tests;
