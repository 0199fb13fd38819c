//! A new data dir of etcd as a target: the store of a new cluster with one member.
//!
//! Between the journal's beginning and what it says of the data dir, a kill may come (`migrate-*` are the crash points):
//! staging directory `etcd.staging`, written (`staging-half-written`, `backend-written`); etcd, on loopback, confirms it
//! (`etcd-started`, `verified`), while the disk is still writing it; it is synced (`staging-synced`).
//!
//! The check of the source's pages runs beside all that, and has ended well before the journal tells of it. The journal tells
//! the data dir by its cluster ID.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde_json::{Value, json};

use super::command::{TargetKind, go};
use super::commit::with_suffix;
use super::convert::{DEFAULT_REQUEST_BYTES, LeaseAssigner, LiveKey};
use super::fence;
use super::journal::{self, Journal, Phase, Written};
use super::journey::{self, Commit, Journey, Outcome, Points};
use super::loopback::{LoopbackEtcd, NO_SNAPSHOT, remove_scratch};
use super::origin::{Origin, WAIT_FOR_HOLDER};
use super::pipeline::copy_then;
use super::progress::{Meter, Show, Stage};
use super::sink::{Built, Forecast, Foreseen, Made, Sink, Target};
use super::source::Source;
use super::space;
use super::verify::{Expected, Verify, verify};
use crate::crash_point;
use crate::datadir::inspect::SchemaVersion;
use crate::datadir::place;
use crate::datadir::quarantine::set_aside;
use crate::datadir::writer::backend_of;
use crate::datadir::{
    DatadirWriter, InspectedDatadir, KeyRecord, LeaseRecord, MemberIdentity, WrittenDatadir, inspect,
};
use crate::disk::{Disk, Unsynced, at, parent_of};
use crate::etcd::{EtcdVersion, VersionError};
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId, Revision};
use crate::record_file::unix_seconds;

/// A data dir that is to be made.
#[derive(Clone, Debug)]
pub struct DatadirTarget {
    /// Where.
    pub path: PathBuf,
    /// The member that it is made for. Its token must be fresh.
    pub identity: MemberIdentity,
    /// By how much the store's revision is to be above the source's, or above `least` if that is greater; 0 keeps it.
    pub bump: i64,
    /// A revision that clients have seen, of another store whose place this one takes.
    pub least: Revision,
}

/// What is told of a data dir that was made.
#[derive(Clone, Debug)]
pub struct MadeDatadir {
    /// Leases, those without keys too.
    pub leases: u64,
    /// Size of the largest key and value together; `--max-request-bytes` must not be below it.
    pub max_request_bytes: u64,
    /// `HashKV` at the revision.
    pub hash: u32,
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
}

/// What a journey into a data dir has made.
pub type ImportOutcome = Outcome<MadeDatadir>;

impl MadeDatadir {
    /// What etcd's `--max-request-bytes` must be so that every imported value can be written again: the largest, a
    /// quarter more, and room for the request around it; etcd's own default where that is enough.
    pub fn request_limit(&self) -> u64 {
        let wanted = self.max_request_bytes + self.max_request_bytes / 4 + (64 << 10);
        if self.max_request_bytes + (16 << 10) <= DEFAULT_REQUEST_BYTES { DEFAULT_REQUEST_BYTES } else { wanted }
    }
}

impl Made for MadeDatadir {
    fn json(&self) -> Value {
        json!({
            "leases": self.leases,
            "hash": format!("{:08x}", self.hash),
            "memberId": self.member,
            "clusterId": self.cluster,
            "maxRequestBytes": self.max_request_bytes,
        })
    }

    fn confirmed(&self) -> String {
        format!("hash {:08x}, confirmed by etcd", self.hash)
    }

    fn notes(&self, _: Revision, _: Revision) -> Vec<String> {
        if self.max_request_bytes <= DEFAULT_REQUEST_BYTES {
            return Vec::new();
        }
        vec![format!("start etcd with --max-request-bytes={}", self.request_limit())]
    }
}

/// As `syncer migrate` makes it.
pub(super) const KIND: TargetKind = TargetKind {
    name: "datadir",
    help: "a new data dir of etcd with a single member",
    make: |disk, args, source, path| {
        let identity = args.identity()?;
        let target = DatadirTarget { path, identity, bump: args.bump_revision, least: Revision(0) };
        go(disk, args, args.journey(source, target))
    },
};

impl Journey<DatadirTarget> {
    /// The import of a boot: into `data_dir/etcd`, journalled in `data_dir`.
    pub fn of_boot(source: Origin, data_dir: &Path, identity: MemberIdentity, etcd: PathBuf) -> Self {
        Journey {
            commit: if source.is_renamed() { Commit::RenameSource } else { Commit::KeepSource },
            source,
            target: DatadirTarget { path: data_dir.join("etcd"), identity, bump: 0, least: Revision(0) },
            journal: data_dir.join(journal::FILE_NAME),
            etcd,
            verify: Verify::Hash,
            spare: 0,
            show: Show::Auto,
            lock: None,
        }
    }
}

impl DatadirTarget {
    /// The revision of the store that is made of `source`. All before it reads as compacted, as in every store that we
    /// write, so that whoever watched from a revision that the source never had lists anew instead of missing writes.
    fn revision_of(&self, source: &dyn Source) -> Revision {
        Revision(source.extent().revision.max(self.least).0.saturating_add(self.bump))
    }

    /// The refusal of a data dir that came here since an attempt that keeps its source was killed: it may be in use.
    fn not_of(&self, journey: &Journey<Self>) -> anyhow::Error {
        let (path, journal, staging) = (self.path.display(), journey.journal.display(), self.staging());
        refuse(
            Exit::RefusedDataDir,
            format!("{path} holds what the import that {journal} says was begun has not put there"),
            format!(
                "if {path} is in use, leave it, and move {journal} away, and {} if it is there; otherwise move {path} away and \
                 give the same command again",
                staging.display()
            ),
        )
    }

    /// Where the verification keeps its files.
    fn scratch(&self) -> PathBuf {
        journey::scratch_of(&self.path)
    }
}

impl Target for DatadirTarget {
    type Ready = EtcdVersion;
    type Made = MadeDatadir;
    const POINTS: Points = Points {
        before_journal: "migrate-before-journal",
        after_journal: "migrate-after-journal",
        written: "migrate-written",
        after_flip: "migrate-after-flip",
        done: "migrate-journal-done",
    };

    fn path(&self) -> &Path {
        &self.path
    }

    fn staging(&self) -> PathBuf {
        with_suffix(&self.path, ".staging")
    }

    fn needed(keys: u64, bytes: u64) -> u64 {
        space::needed(keys, bytes)
    }

    fn forecast(&self, source: &dyn Source) -> Box<dyn Forecast> {
        Box::new(DatadirForecast { revision: self.revision_of(source), keys: 0, largest: 0 })
    }

    fn admit(&self, journey: &Journey<Self>, earlier: Option<&Journal>) -> anyhow::Result<()> {
        self.identity.check().context("check the member's identity")?;
        place::check(&self.path)?;
        let folder = parent_of(&self.path);
        // A boot's own import is what the fence is for.
        if journey.journal != folder.join(journal::FILE_NAME) {
            let fence = fence::fact(&folder).context("read the record of a fence")?;
            fence::refuse_raised(&folder, &fence)?;
        }
        match earlier {
            Some(earlier) if earlier.phase == Phase::Done => Err(refuse(
                Exit::RefusedDataDir,
                format!("{} says that an import was completed here", journey.journal.display()),
                "if that data dir is gone for good, move the journal aside and try again",
            )),
            Some(earlier) if earlier.source.path != journal::relative(&journey.journal, journey.source.path()) => {
                Err(refuse(
                    Exit::RefusedDataDir,
                    format!(
                        "{} says that an import of {} was begun here, not of {}",
                        journey.journal.display(),
                        earlier.source.path.display(),
                        journey.source.path().display()
                    ),
                    "import that one, or move the journal and the data dir beside it aside",
                ))
            }
            // Where the source is renamed in the end, it is the truth as long as it bears its name, and what is here never was.
            Some(earlier) if earlier.renames => Ok(()),
            Some(earlier) => match inspect(&self.path, NEWEST)? {
                InspectedDatadir::Empty => Ok(()),
                InspectedDatadir::Usable(found) if earlier.written.is_some_and(|w| w.cluster == found.cluster()) => {
                    Ok(())
                }
                _ => Err(self.not_of(journey)),
            },
            None => match inspect(&self.path, NEWEST)? {
                InspectedDatadir::Empty => Ok(()),
                _ => Err(refuse(
                    Exit::RefusedDataDir,
                    format!("{} has content that no import of ours left there", self.path.display()),
                    "give the path of a new or empty directory",
                )),
            },
        }
    }

    fn ready(etcd: &Path) -> anyhow::Result<EtcdVersion> {
        EtcdVersion::of(etcd).map_err(VersionError::refused)
    }

    fn clear(&self, disk: &dyn Disk, journey: &Journey<Self>, earlier: Option<&Journal>) -> anyhow::Result<()> {
        remove_scratch(disk, &self.scratch())?;
        let staging = self.staging();
        if earlier.is_some() {
            remove_if_there(disk, &staging)?;
        } else if let Some(kept) = set_aside(disk, &staging, SystemTime::now()).context("keep a staging directory")? {
            tracing::warn!(kept = %kept.display(), "a staging directory without a journal was set aside");
        }
        // Where the source keeps its name, the flip was the commit.
        let uncommitted = earlier.filter(|earlier| earlier.renames).and_then(|earlier| earlier.written);
        let ours = uncommitted.map(|written| written.cluster);
        match inspect(&self.path, NEWEST)? {
            // What etcd takes for nothing may still have entries, over which no directory can be renamed.
            InspectedDatadir::Empty if has_entries(&self.path)? => {
                let kept = set_aside(disk, &self.path, SystemTime::now()).context("keep what is in the data dir")?;
                tracing::warn!(?kept, "a directory in the data dir's place was set aside");
                Ok(())
            }
            InspectedDatadir::Empty => Ok(()),
            InspectedDatadir::Usable(found) if ours == Some(found.cluster()) => {
                // Renamed first, so that it is never half there under its own name.
                disk.rename_durable(&self.path, &staging).context("take back an uncommitted data dir")?;
                remove_if_there(disk, &staging)
            }
            // Without a journal it came since it was looked at, and is refused in the end.
            _ if earlier.is_none() => self.is_vacant(),
            _ if earlier.is_some_and(|earlier| !earlier.renames) => Err(self.not_of(journey)),
            other => {
                let kept = set_aside(disk, &self.path, SystemTime::now()).context("keep a data dir")?;
                tracing::warn!(?kept, found = ?other, "a data dir that the journal does not know was set aside");
                Ok(())
            }
        }
    }

    fn build(
        &self,
        disk: &dyn Disk,
        journey: &Journey<Self>,
        version: EtcdVersion,
        source: &mut dyn Source,
        meter: &Meter,
    ) -> anyhow::Result<Built<MadeDatadir>> {
        let revision = self.revision_of(source);
        meter.begin(Stage::Copy, source.extent().keys_at_most);
        let unsynced = Unsynced(disk);
        let writer = DatadirWriter::create(&unsynced, &self.staging()).context("begin the staging directory")?;
        let sink = DatadirSink::new(writer, source.leases().to_vec());
        copy_then(source, sink, meter, |copied, sink, source| {
            let written = sink.finish(revision, &self.identity)?;
            self.confirm_and_sync(disk, || self.confirm(disk, journey, version, &written, source, meter))?;
            crash_point!("migrate-staging-synced");
            Ok(Built {
                revision,
                keys: copied.keys,
                copied,
                target_bytes: written.datadir.backend_bytes,
                made: MadeDatadir {
                    leases: written.leases.len() as u64,
                    max_request_bytes: written.largest,
                    hash: written.datadir.hash_kv,
                    member: written.datadir.member_id,
                    cluster: written.datadir.cluster_id,
                },
            })
        })
    }

    fn note(&self, built: &Built<MadeDatadir>, journal: &mut Journal) -> anyhow::Result<()> {
        journal.written = Some(Written {
            cluster: built.made.cluster,
            revision: built.revision,
            keys: built.keys,
            hash: built.made.hash,
            max_request_bytes: built.made.max_request_bytes,
        });
        Ok(())
    }

    fn is_vacant(&self) -> anyhow::Result<()> {
        // No directory is renamed over one that has entries.
        if has_entries(&self.path)? {
            return Err(refuse(
                Exit::RefusedDataDir,
                format!("{} has come to hold something meanwhile", self.path.display()),
                "stop whatever else writes there, then try again",
            ));
        }
        Ok(())
    }

    fn take_back(&self, disk: &dyn Disk) -> anyhow::Result<()> {
        remove_scratch(disk, &self.scratch())?;
        remove_if_there(disk, &self.staging())
    }

    fn is_there(&self, journal: &Journal) -> anyhow::Result<bool> {
        let Some(written) = journal.written else { return Ok(false) };
        Ok(match inspect(&self.path, NEWEST)? {
            InspectedDatadir::Usable(found) => found.cluster() == written.cluster,
            _ => false,
        })
    }

    fn otherwise(&self, journal: &Journal) -> Option<String> {
        // Whoever noted no revision of the source raised none.
        let from = Some(journal.source_revision.0).filter(|revision| *revision > 0)?.max(self.least.0);
        let bump = journal.written?.revision.0 - from;
        (bump != self.bump).then(|| format!("with --bump-revision {bump}, not {}", self.bump))
    }
}

impl DatadirTarget {
    /// Makes the staging directory durable, and has it confirmed while the disk is busy with the backend: etcd reads what was
    /// written whether it is durable or not.
    fn confirm_and_sync(&self, disk: &dyn Disk, confirm: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let staging = self.staging();
        let backend = backend_of(&staging);
        let synced = std::thread::scope(|scope| {
            let backend = scope.spawn(|| disk.open(&backend).and_then(|mut file| file.sync()));
            confirm()?;
            let synced = backend.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // And the rest, with what etcd has written.
            Ok::<_, anyhow::Error>(synced.and_then(|()| disk.sync_tree(&staging)))
        })?;
        synced.and_then(|()| disk.sync_dir(&parent_of(&staging))).context("make etcd's data dir durable")
    }

    /// Has an etcd say that the staging directory holds what was read.
    fn confirm(
        &self,
        disk: &dyn Disk,
        journey: &Journey<Self>,
        version: EtcdVersion,
        written: &WrittenStore,
        source: &mut dyn Source,
        meter: &Meter,
    ) -> anyhow::Result<()> {
        let (staging, scratch) = (self.staging(), self.scratch());
        let etcd = LoopbackEtcd {
            program: &journey.etcd,
            version,
            data_dir: &staging,
            scratch: &scratch,
            backend_bytes: written.datadir.backend_bytes,
            member: &self.identity,
            lock: journey.lock.as_deref(),
            force_new_cluster: false,
            snapshot_count: NO_SNAPSHOT,
            unsynced: true,
        };
        let expected = Expected { revision: self.revision_of(source), written };
        let full = match journey.verify {
            Verify::Hash => None,
            Verify::Full => Some(source),
        };
        verify(disk, &etcd, &expected, full, meter)
    }
}

/// A data dir that is not written.
struct DatadirForecast {
    revision: Revision,
    keys: u64,
    largest: u64,
}

impl Sink for DatadirForecast {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        self.keys += 1;
        self.largest = self.largest.max((key.key.len() + key.value.len()) as u64);
        Ok(())
    }
}

impl Forecast for DatadirForecast {
    fn foresee(self: Box<Self>) -> anyhow::Result<Foreseen> {
        let made = json!({ "maxRequestBytes": self.largest });
        Ok(Foreseen { revision: self.revision, keys: self.keys, made })
    }
}

/// A data dir that is being written.
pub struct DatadirSink<'d> {
    writer: DatadirWriter<'d>,
    leases: LeaseAssigner,
    largest: u64,
}

/// A data dir that is written.
#[derive(Clone, Debug)]
pub struct WrittenStore {
    /// Of the data dir itself.
    pub datadir: WrittenDatadir,
    /// The leases, those without keys too.
    pub leases: Vec<LeaseRecord>,
    /// Size of the largest key and value together, in bytes.
    pub largest: u64,
}

impl<'d> DatadirSink<'d> {
    /// Writes with `writer`; `held` are the leases that the source holds.
    pub fn new(writer: DatadirWriter<'d>, held: Vec<LeaseRecord>) -> Self {
        DatadirSink { writer, leases: LeaseAssigner::with(held), largest: 0 }
    }

    /// Completes the data dir; it is as durable when this returns as the writer's disk makes it.
    pub fn finish(self, revision: Revision, member: &MemberIdentity) -> anyhow::Result<WrittenStore> {
        let leases = self.leases.into_leases();
        let datadir = self.writer.finish(revision, &leases, member).context("complete etcd's data dir")?;
        Ok(WrittenStore { datadir, leases, largest: self.largest })
    }
}

impl Sink for DatadirSink<'_> {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let record = KeyRecord {
            key: key.key,
            value: key.value,
            create_revision: key.create_revision,
            mod_revision: key.mod_revision,
            sub: key.sub,
            version: key.version,
            lease: self.leases.assign(key.lease),
        };
        self.writer.put(&record).context("write etcd's data dir")?;
        self.largest = self.largest.max((key.key.len() + key.value.len()) as u64);
        Ok(())
    }
}

/// Removes what a killed import from a running etcd has left on the volume at `data_dir`, where nothing was put in place:
/// nothing of it is used again, and the next may be from another etcd.
pub fn forget_killed(disk: &dyn Disk, data_dir: &Path) -> anyhow::Result<()> {
    let etcd_dir = data_dir.join("etcd");
    disk.forget_file(&journey::copy_of_source(&etcd_dir)).context("remove a downloaded snapshot")?;
    // One that cannot be read is reported by the import itself.
    let path = data_dir.join(journal::FILE_NAME);
    let Ok(Some(journal)) = journal::load(&path) else { return Ok(()) };
    if journal.phase == Phase::Importing && journal.source.is_remote() {
        remove_scratch(disk, &journey::scratch_of(&etcd_dir))?;
        remove_if_there(disk, &with_suffix(&etcd_dir, ".staging"))?;
        disk.forget_file(&path)
            .and_then(|()| disk.sync_dir(data_dir))
            .context("remove the journal of a killed move")?;
    }
    Ok(())
}

/// Closes the journal at `path` of an import from a running etcd, if its data dir is the one at `etcd_dir`.
pub fn close_kept(disk: &dyn Disk, path: &Path, etcd_dir: &Path) -> anyhow::Result<()> {
    let journal = journal::load(path).context("read the migration journal")?;
    let Some(journal) = journal.filter(|j| j.phase == Phase::Importing && j.source.is_remote()) else { return Ok(()) };
    let ours = journal.written.map(|written| written.cluster);
    match inspect(etcd_dir, NEWEST)? {
        InspectedDatadir::Usable(found) if Some(found.cluster()) == ours => {
            journey::done(disk, DatadirTarget::POINTS, path, journal, unix_seconds()).map(drop)
        }
        _ => Ok(()),
    }
}

/// Any data dir is to be recognised here, whatever etcd it was made for.
const NEWEST: SchemaVersion = SchemaVersion { major: u64::MAX, minor: u64::MAX };

fn remove_if_there(disk: &dyn Disk, dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT_FOR_HOLDER;
    loop {
        match disk.remove_dir_all(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // The etcd of a syncer that was just killed may still be at its last write.
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => {
                other.context("remove what an uncommitted import left")?;
                return disk.sync_dir(&parent_of(dir)).context("remove what an uncommitted import left");
            }
        }
    }
}

fn has_entries(dir: &Path) -> anyhow::Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(at(dir, e)).context("look into the data dir"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::migrate::journal::SourceFile;
    use crate::migrate::source::FileState;

    #[test]
    fn what_a_killed_move_has_left_is_removed_and_nothing_of_another_import() {
        let left = ["etcd.migration.source", "etcd.staging", "etcd.migration.verify"];
        for (source, stays) in [("https://vc-etcd:2379", &[][..]), ("state.db", &left[1..])] {
            let dir = tempfile::tempdir().unwrap();
            let source = SourceFile { path: source.into(), bytes: 0, modified: 0, inode: 0 };
            let (phase, started) = (Phase::Importing, 1);
            let journal = Journal {
                phase,
                source,
                source_revision: Revision(1),
                beside: FileState::default(),
                renames: false,
                started,
                finished: None,
                written: None,
                file: None,
            };
            journal::store(&RealDisk, &dir.path().join(journal::FILE_NAME), &journal).unwrap();
            std::fs::write(dir.path().join(left[0]), "x").unwrap();
            for folder in ["etcd", left[1], left[2]] {
                std::fs::create_dir_all(dir.path().join(folder).join("member")).unwrap();
            }
            // Twice: the second time nothing is left.
            for _ in 0..2 {
                forget_killed(&RealDisk, dir.path()).unwrap();
                let there: Vec<_> = left.into_iter().filter(|name| dir.path().join(name).exists()).collect();
                assert_eq!(there, stays, "{journal:?}");
                assert!(dir.path().join("etcd/member").exists());
                assert_eq!(dir.path().join(journal::FILE_NAME).exists(), !stays.is_empty());
            }
        }
    }
}
