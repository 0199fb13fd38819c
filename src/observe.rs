//! The I/O that fills [`crate::boot::Facts`]: looks at the volume, changes nothing.

pub mod log;
pub mod notes;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::boot::{DataDirFact, Desired, Facts, Known, LogFact, PeerFact, StoresFact};
use crate::datadir::inspect::{SchemaVersion, inspect, owner};
use crate::datadir::learners::learners_at_start;
use crate::datadir::{InspectedDatadir, place};
use crate::disk::at;
use crate::etcd::args::max_learners;
use crate::etcd::version::EtcdVersion;
use crate::ids::{MemberId, Ordinal, RaftIndex};
use crate::migrate::{fence, journal};
use crate::peer::ordinal_of;
use crate::reset;
use crate::restore;
use crate::serve::{distro, k0s};
use crate::settings::{Distro, Settings};

/// Everything that can be seen from this volume. `schema` is the newest backend that the etcd at hand can open.
///
/// Of other pods and the host cluster's API nothing is known: every other ordinal below desired is unknown.
pub fn facts(settings: &Settings, schema: SchemaVersion) -> anyhow::Result<Facts> {
    let seed = Ordinal(0);
    let desired = settings.etcd.replicas;
    let not_asked = || "not asked".to_owned();
    let found = inspect(&settings.etcd_dir(), schema).context("inspect etcd's data dir")?;
    if found == InspectedDatadir::Empty && settings.etcd.enabled {
        place::check(&settings.etcd_dir())?;
    }
    let mut notes = notes::load(&settings.data_dir).context("read the notes on the volume")?;
    // The journal of the reset is the note of it.
    notes.resetting = reset::is_pending(&settings.data_dir)?;
    let whose = match &found {
        InspectedDatadir::Usable(dir) => Some((dir.member(), dir.cluster())),
        InspectedDatadir::Newer(_) => owner(&settings.etcd_dir()),
        InspectedDatadir::Empty | InspectedDatadir::Damaged(_) => None,
    };
    let dropped = match whose {
        Some((member, cluster)) => {
            reset::dropped(&settings.data_dir, member, cluster).context("read the reset's journal")?
        }
        None => Vec::new(),
    };
    let log = log(settings, &found);
    // A data dir that knows them is not that reset's: a copy of it was put back.
    let known = |id: &MemberId| log.present().is_some_and(|log| log.others.iter().any(|other| other.id == *id));
    let dropped = if dropped.iter().any(known) { Vec::new() } else { dropped };
    let data_dir = match &found {
        // No etcd is to start from it.
        InspectedDatadir::Usable(_) if !settings.etcd.enabled => found.fact(),
        InspectedDatadir::Usable(dir) => {
            let older = skips(dir.cluster_version(), schema).or_else(|| unreadable(dir.v2_request(), schema));
            // A data dir that does not tell them is looked at by whoever needs its log.
            let learners = || learners_at_start(dir).map_or(0, |learners| learners.len() as u64);
            let most = max_learners(&settings.etcd.extra_args);
            let unusable = older.or_else(|| unpromoted(dir.cluster_version(), learners(), most, schema));
            unusable.unwrap_or_else(|| found.fact())
        }
        InspectedDatadir::Empty | InspectedDatadir::Damaged(_) | InspectedDatadir::Newer(_) => found.fact(),
    };
    Ok(Facts {
        ordinal: settings.pod.ordinal,
        seed,
        desired: Desired::Values(desired),
        enabled: settings.etcd.enabled,
        migrate_back: settings.etcd.migrate_back,
        migrate_from: settings.etcd.migrate_from.is_some(),
        fence: fence::fact(&settings.data_dir).context("read the record of a fence")?,
        restore: restore::record::fact(&settings.data_dir, &settings.etcd_dir(), schema)
            .context("look for a staged restore")?,
        owner: match &data_dir {
            DataDirFact::Empty | DataDirFact::Valid { .. } => None,
            _ => owner(&settings.etcd_dir()),
        },
        data_dir,
        log,
        dropped,
        notes,
        journal: journal::fact(&settings.data_dir).context("read the migration journal")?,
        sqlite: sqlite_of(settings),
        written_back: journal::written_back(&settings.data_dir).context("read the journal of the way back")?,
        distro_store: distro_store(settings).context("look for a store of the distro's own")?,
        stores: stores(&settings.state_db_candidates()).context("look for SQLite stores")?,
        shared_ca: false,
        k0s_makes_cas: k0s::makes_cas(settings),
        k0s_other_cas: None,
        host_configured: false,
        marker: Known::Unknown("no host API is configured".to_owned()),
        claims: Known::Unknown("no host API is configured".to_owned()),
        peers: (0..desired)
            .map(Ordinal)
            .filter(|ordinal| *ordinal != settings.pod.ordinal)
            .map(|ordinal| PeerFact { state: Known::Unknown(not_asked()), ..PeerFact::new(ordinal) })
            .collect(),
        named: Known::Absent,
        members: Known::Unknown(not_asked()),
    })
}

/// The SQLite store of the distro that this pod runs; `None` where its API server may have another datastore.
fn sqlite_of(settings: &Settings) -> Option<PathBuf> {
    let ours = settings.distro != Distro::None && settings.wrapped.is_none() && !distro::may_have_another(settings);
    settings.state_db_candidates().into_iter().next().filter(|_| ours)
}

/// etcd goes from one minor version to the next, and no further: of an older one's log it may not understand every entry
/// (3.7 ends with a panic on entries of 3.5).
fn skips(cluster: Option<SchemaVersion>, here: SchemaVersion) -> Option<DataDirFact> {
    let cluster = cluster.filter(|cluster| cluster.major == here.major && cluster.minor + 1 < here.minor)?;
    Some(DataDirFact::Older(format!("it runs at version {cluster}, and the etcd here is {here}")))
}

/// etcd 3.7 ends with a panic on requests of its first API, with which 3.5 tells its version and its URLs, and 3.6 that
/// a cluster of 3.5 is one of 3.6. They are gone from the log once a raft snapshot was taken.
fn unreadable(v2_request: Option<RaftIndex>, here: SchemaVersion) -> Option<DataDirFact> {
    let index = v2_request.filter(|_| here >= SchemaVersion::WITHOUT_SNAP_FILES)?.0;
    Some(DataDirFact::Older(format!(
        "its log has a request of etcd 3.5 (entry {index}), which etcd {here} cannot read"
    )))
}

/// etcd 3.6 starts with one learner unless it is told of more (`most`), and repairs those that were promoted. etcd 3.5 lets nobody
/// add a second, so that several are such whose promotions were not stored.
fn unpromoted(cluster: Option<SchemaVersion>, learners: u64, most: u64, here: SchemaVersion) -> Option<DataDirFact> {
    let of_3_5 = cluster.is_none_or(|cluster| cluster < SchemaVersion::STORES_MEMBERS);
    (of_3_5 && here >= SchemaVersion::STORES_MEMBERS && learners > most).then(|| {
        DataDirFact::Unpromoted(format!(
            "its backend calls {learners} members learners, as etcd before 3.5.20 did not store there that they were promoted"
        ))
    })
}

/// The end of the log. A log that does not tell it is not damaged: etcd may well start from it.
fn log(settings: &Settings, found: &InspectedDatadir) -> Known<LogFact> {
    match found {
        InspectedDatadir::Empty => Known::Absent,
        InspectedDatadir::Damaged(why) | InspectedDatadir::Newer(why) => Known::Unknown(why.clone()),
        InspectedDatadir::Usable(dir) => match log::log_fact(dir, |urls| ordinal_of(settings, urls)) {
            Ok(fact) => Known::Present(fact),
            Err(error) => Known::Unknown(format!("{:#}", anyhow::Error::from(error))),
        },
    }
}

/// Whether the volume has a log of etcd's.
pub fn has_wal(settings: &Settings) -> bool {
    settings.etcd_dir().join("member/wal").exists()
}

/// Whether the volume has a log of etcd's from which the etcd at hand cannot start, by what was seen of its data dir.
pub fn is_unusable(settings: &Settings, data_dir: &DataDirFact) -> bool {
    has_wal(settings) && !matches!(data_dir, DataDirFact::Valid { .. })
}

/// The newest backend that an etcd of this version opens; without etcd, any that syncer knows.
pub fn schema(version: Option<EtcdVersion>) -> SchemaVersion {
    version.map_or(SchemaVersion { major: 3, minor: 7 }, EtcdVersion::schema)
}

/// Looks for SQLite stores at `candidates`, and for what earlier migrations left beside them.
pub fn stores(candidates: &[PathBuf]) -> io::Result<StoresFact> {
    let mut found = StoresFact::default();
    for db in candidates {
        let (wal, shm) = (beside(db, "-wal"), beside(db, "-shm"));
        let migrated = beside(db, ".migrated");
        let has_migrated = size(&migrated)?.is_some();
        if size(db)?.is_some() {
            found.state_dbs.push(db.clone());
        } else if has_migrated {
            for (stray, target) in [(&wal, beside(db, ".migrated-wal")), (&shm, beside(db, ".migrated-shm"))] {
                if size(stray)?.is_some() && size(&target)?.is_none() {
                    found.strays.push(stray.clone());
                }
            }
        } else if size(&wal)?.is_some_and(|bytes| bytes > 0) {
            found.orphan_wals.push(wal);
        }
        if has_migrated {
            found.migrated.push(migrated);
        }
    }
    Ok(found)
}

/// The data dir of an etcd that k3s or k0s ran by itself on this volume, if there is one.
fn distro_store(settings: &Settings) -> io::Result<Option<PathBuf>> {
    let dir = match settings.distro {
        Distro::K3s => settings.data_dir.join("server/db/etcd"),
        Distro::K0s => settings.data_dir.join("k0s/etcd"),
        Distro::K8s | Distro::Eks | Distro::None => return Ok(None),
    };
    Ok(size(&dir.join("member/wal"))?.map(|_| dir))
}

/// The size of a file, `None` if there is none. Anything else, a missing permission say, is an error: unknown is not
/// absent.
fn size(path: &Path) -> io::Result<Option<u64>> {
    match path.symlink_metadata() {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(at(path, e)),
    }
}

/// `path` with `suffix` appended to its last component.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(files: &[(&str, &str)]) -> StoresFact {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let mut found = stores(&[dir.path().join("state.db"), dir.path().join("server/db/state.db")]).unwrap();
        for list in [&mut found.state_dbs, &mut found.migrated, &mut found.strays, &mut found.orphan_wals] {
            for path in list {
                *path = path.strip_prefix(dir.path()).unwrap().to_owned();
            }
        }
        found
    }

    #[test]
    fn a_minor_version_of_etcd_is_not_skipped() {
        let v = |minor| SchemaVersion { major: 3, minor };
        for (cluster, here, skipped) in [(5, 5, false), (5, 6, false), (6, 7, false), (5, 7, true), (7, 6, false)] {
            assert_eq!(skips(Some(v(cluster)), v(here)).is_some(), skipped, "{cluster} {here}");
        }
        assert_eq!(skips(None, v(7)), None);
        assert_eq!((unreadable(Some(RaftIndex(4)), v(6)), unreadable(None, v(7))), (None, None));
        assert!(unreadable(Some(RaftIndex(4)), v(7)).is_some());
        let Some(DataDirFact::Older(versions)) = skips(Some(v(5)), v(7)) else { panic!() };
        let refusal = crate::boot::Refusal::OlderDataDir(versions);
        assert!(refusal.what().contains("3.5") && refusal.what().contains("3.7"), "{}", refusal.what());
        assert!(refusal.remedy().contains("in between"));
    }

    #[test]
    fn etcd_3_6_is_not_started_where_it_would_count_several_learners() {
        let v = |minor| SchemaVersion { major: 3, minor };
        for (cluster, learners, here, refused) in [
            (Some(5), 2, 6, true),
            (None, 3, 6, true),
            (Some(5), 1, 6, false),
            (Some(5), 2, 5, false),
            // Only with a flag that says so.
            (Some(6), 2, 6, false),
            (Some(6), 2, 7, false),
        ] {
            let found = unpromoted(cluster.map(v), learners, 1, v(here));
            assert_eq!(found.is_some(), refused, "{cluster:?} {learners} {here}");
        }
        assert_eq!(unpromoted(None, 2, 2, v(6)), None, "it is told to start with two");
        let Some(DataDirFact::Unpromoted(why)) = unpromoted(None, 2, 1, v(6)) else { panic!() };
        let refusal = crate::boot::Refusal::UnpromotedDataDir(why);
        assert!(refusal.what().contains("2 members learners") && refusal.remedy().contains("3.5.26"), "{refusal:?}");
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(look(&[]), StoresFact::default());
    }

    #[test]
    fn a_store_with_its_wal_is_one_store() {
        let found = look(&[("state.db", "x"), ("state.db-wal", "x")]);
        assert_eq!(found, StoresFact { state_dbs: vec!["state.db".into()], ..StoresFact::default() });
    }

    #[test]
    fn a_wal_whose_database_was_renamed_is_a_stray() {
        let found = look(&[("state.db.migrated", "x"), ("state.db-wal", "x"), ("state.db-shm", "x")]);
        assert_eq!(found.strays, [PathBuf::from("state.db-wal"), "state.db-shm".into()]);
        assert!(found.orphan_wals.is_empty());
    }

    #[test]
    fn a_wal_alone_is_part_of_a_lost_store() {
        assert_eq!(look(&[("state.db-wal", "x")]).orphan_wals, [PathBuf::from("state.db-wal")]);
        assert_eq!(look(&[("state.db-wal", "")]), StoresFact::default());
    }
}
