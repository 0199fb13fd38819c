//! Importing a store into a new data dir of etcd, and committing it. A boot imports a `state.db`.
//!
//! The order of durable steps, each of which a kill may separate from the next; `migrate-*` are the crash points there:
//!
//! 1. lock the source and find its live rows; nothing is written;
//! 2. journal: importing this source (`before-journal`, `after-journal`);
//! 3. staging directory `etcd.staging`, written (`staging-half-written`, `backend-written`);
//! 4. etcd, on loopback, confirms the staging directory (`etcd-started`, `verified`), while the disk is still writing it;
//! 5. the staging directory is synced (`staging-synced`); journal: what was written, above all its cluster ID;
//! 6. flip: `etcd.staging` is renamed to `etcd` (`after-flip`);
//! 7. **commit**: `state.db` is renamed to `state.db.migrated` (`before-commit`, `after-commit`);
//! 8. `-wal` and `-shm` follow (`wal-moved`, `strays-moved`); journal: done (`journal-done`).
//!
//! The check of the source's pages runs beside 3 to 5 and must have ended well before 6.
//!
//! Before 7 the source is the truth: the next attempt starts over, and removes a data dir only if its cluster ID is the
//! one in the journal, so that no other can ever be lost. From 7 on the data dir is, and
//! [`super::commit::finish_commit`] does what is left. Where the source is to keep its name (`syncer migrate`), 6 is the
//! commit: the target is either not there or verified.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::commit::{commit, done, move_strays, with_suffix};
use super::convert::{DEFAULT_REQUEST_BYTES, Warnings};
use super::journal::{self, Journal, Phase, SourceFile, Written};
use super::kine::SourceError;
use super::loopback::{LoopbackEtcd, NO_SNAPSHOT, remove_scratch};
use super::origin::{Origin, WAIT_FOR_HOLDER};
use super::pipeline::{Copied, copy_then};
use super::progress::{Meter, Show, Stage, StageSeconds, shown};
use super::sink::{DatadirSink, WrittenStore};
use super::source::{FileState, Source};
use super::space;
use super::verify::{Expected, Verify, verify};
use crate::crash_point;
use crate::datadir::inspect::SchemaVersion;
use crate::datadir::place;
use crate::datadir::quarantine::set_aside;
use crate::datadir::writer::backend_of;
use crate::datadir::{DatadirLock, DatadirWriter, InspectedDatadir, MemberIdentity, inspect};
use crate::disk::{Disk, Unsynced, at, parent_of};
use crate::etcd::{EtcdVersion, VersionError};
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId, Revision};
use crate::record_file::RecordError;
use crate::record_file::unix_seconds;

/// What happens to the source's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// `state.db` becomes `state.db.migrated`: the move of a pod's own store.
    RenameSource,
    /// The source stays as it is: a copy, offline.
    KeepSource,
}

/// What to import, and where to.
#[derive(Clone, Debug)]
pub struct ImportPlan {
    /// What is read.
    pub source: Origin,
    /// etcd's data dir, which is made.
    pub etcd_dir: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// The member that the data dir is made for. Its token must be fresh.
    pub identity: MemberIdentity,
    /// The etcd program that verifies.
    pub etcd: PathBuf,
    /// How thoroughly.
    pub verify: Verify,
    /// What happens to the source's name.
    pub commit: Commit,
    /// By how much the store's revision is to be above the source's, or above `least` if that is greater; 0 keeps it.
    pub bump: i64,
    /// A revision that clients have seen, of another store whose place this one takes.
    pub least: Revision,
    /// What is to be left free on the volume, in bytes.
    pub spare: u64,
    /// How progress is shown.
    pub show: Show,
    /// The lock of the directory that holds the data dir, if the caller has it: the verifying etcd inherits it, so that
    /// no second attempt begins while one that outlived a killed syncer still runs.
    pub lock: Option<Arc<DatadirLock>>,
}

impl ImportPlan {
    /// The import of a boot: into `data_dir/etcd`, journalled in `data_dir`.
    pub fn of_boot(source: Origin, data_dir: &Path, identity: MemberIdentity, etcd: PathBuf) -> Self {
        ImportPlan {
            commit: match source {
                Origin::Sqlite(_) => Commit::RenameSource,
                _ => Commit::KeepSource,
            },
            source,
            etcd_dir: data_dir.join("etcd"),
            journal: data_dir.join(journal::FILE_NAME),
            identity,
            etcd,
            verify: Verify::Hash,
            bump: 0,
            least: Revision(0),
            spare: 0,
            show: Show::Auto,
            lock: None,
        }
    }

    /// The revision of the store that is made of `source`. All before it reads as compacted, as in every store that we
    /// write, so that whoever watched from a revision that the source never had lists anew instead of missing writes.
    fn revision_of(&self, source: &dyn Source) -> Revision {
        Revision(source.extent().revision.max(self.least).0.saturating_add(self.bump))
    }

    /// Where the data dir is built.
    fn staging(&self) -> PathBuf {
        with_suffix(&self.etcd_dir, ".staging")
    }

    /// Where a copy of the source stands, if one is needed.
    fn copy(&self) -> PathBuf {
        with_suffix(&self.etcd_dir, ".source")
    }

    /// Where the verification keeps its files.
    fn scratch(&self) -> PathBuf {
        with_suffix(&self.etcd_dir, ".verify")
    }
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct ImportOutcome {
    /// The store's revision.
    pub revision: Revision,
    /// The source's, which it may have been raised above.
    pub source_revision: Revision,
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Leases made of their times to live.
    pub leases: u64,
    /// What was met and gone on from.
    pub warnings: Warnings,
    /// Size of the largest key and value together; `--max-request-bytes` must not be below it.
    pub max_request_bytes: u64,
    /// `HashKV` at the revision.
    pub hash: u32,
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Size of etcd's backend file.
    pub backend_bytes: u64,
    /// From the first look at the source to the commit.
    pub duration: Duration,
    /// What of it each stage took.
    pub stages: StageSeconds,
}

impl ImportOutcome {
    /// What etcd's `--max-request-bytes` must be so that every imported value can be written again: the largest, a
    /// quarter more, and room for the request around it; etcd's own default where that is enough.
    pub fn request_limit(&self) -> u64 {
        let wanted = self.max_request_bytes + self.max_request_bytes / 4 + (64 << 10);
        if self.max_request_bytes + (16 << 10) <= DEFAULT_REQUEST_BYTES { DEFAULT_REQUEST_BYTES } else { wanted }
    }
}

/// Imports and commits. Blocking: it runs for as long as the store is large, on the calling thread and two more.
/// The etcd that verifies has ended when this returns.
///
/// On a refusal or a failure before the flip, everything that was written is removed again.
pub fn import(disk: &dyn Disk, plan: &ImportPlan) -> anyhow::Result<ImportOutcome> {
    let meter = Meter::default();
    shown(plan.show, &meter, || run(disk, plan, &meter)).map_err(|e| plan.source.name_in(e))
}

fn run(disk: &dyn Disk, plan: &ImportPlan, meter: &Meter) -> anyhow::Result<ImportOutcome> {
    let started = Instant::now();
    plan.identity.check().context("check the member's identity")?;
    place::check(&plan.etcd_dir)?;
    meter.begin(Stage::Survey, 0);
    // etcd takes as long to tell its version as the survey of a small store.
    let (store, version) = std::thread::scope(|scope| {
        let version = scope.spawn(|| EtcdVersion::of(&plan.etcd));
        let store = plan.source.open(disk, &plan.etcd, &plan.copy(), plan.lock.as_ref());
        (store, version.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut store = store?;
    if plan.commit == Commit::RenameSource && !store.is_exclusive() {
        return Err(SourceError::Lock(std::io::ErrorKind::PermissionDenied.into()).into());
    }
    // Now rather than when all is written.
    let version = version.map_err(VersionError::refused)?;
    let before = store.files()?;
    clear_target(disk, plan)?;
    check_space(plan, &*store)?;

    let file = before.first().copied().unwrap_or_default();
    let revision = plan.revision_of(&*store);
    let mut journal = Journal {
        phase: Phase::Importing,
        source: SourceFile {
            path: journal::relative(&plan.journal, plan.source.path()),
            bytes: file.bytes,
            modified: file.modified,
            inode: file.inode,
        },
        started: unix_seconds(),
        finished: None,
        written: None,
    };
    crash_point!("migrate-before-journal");
    journal::store(disk, &plan.journal, &journal)?;
    crash_point!("migrate-after-journal");

    let (copied, written) = match built(disk, plan, version, &mut *store, &mut journal, meter)
        .and_then(|built| unchanged(&*store, &before).map(|()| built))
        .and_then(|built| store.confirm().map(|()| built))
    {
        Ok(built) => built,
        Err(e) => {
            take_back(disk, plan);
            return Err(e);
        }
    };
    meter.begin(Stage::Commit, 0);
    flip(disk, plan)?;
    if plan.commit == Commit::RenameSource {
        commit(disk, plan.source.path())?;
        move_strays(disk, plan.source.path()).context("tidy up after the migration")?;
    }
    done(disk, &plan.journal, journal, unix_seconds())?;
    Ok(ImportOutcome {
        revision,
        source_revision: store.extent().revision,
        keys: copied.keys,
        bytes: copied.bytes,
        leases: written.leases.len() as u64,
        warnings: copied.warnings,
        max_request_bytes: written.largest,
        hash: written.datadir.hash_kv,
        member: written.datadir.member_id,
        cluster: written.datadir.cluster_id,
        backend_bytes: written.datadir.backend_bytes,
        duration: started.elapsed(),
        stages: meter.stages(),
    })
}

/// Builds the data dir aside: written, confirmed by an etcd, and durable, while the check of the source may still run.
fn built(
    disk: &dyn Disk,
    plan: &ImportPlan,
    version: EtcdVersion,
    store: &mut dyn Source,
    journal: &mut Journal,
    meter: &Meter,
) -> anyhow::Result<(Copied, WrittenStore)> {
    let revision = plan.revision_of(store);
    meter.begin(Stage::Copy, store.extent().keys_at_most);
    let unsynced = Unsynced(disk);
    let writer = DatadirWriter::create(&unsynced, &plan.staging()).context("begin the staging directory")?;
    let sink = DatadirSink::new(writer, store.leases().to_vec());
    copy_then(store, sink, meter, |copied, sink, source| {
        let written = sink.finish(revision, &plan.identity)?;
        confirm_and_sync(disk, plan, || confirm(disk, plan, version, &written, source, meter))?;
        crash_point!("migrate-staging-synced");
        journal.written = Some(Written {
            cluster: written.datadir.cluster_id,
            revision,
            keys: copied.keys,
            hash: written.datadir.hash_kv,
            max_request_bytes: written.largest,
        });
        journal::store(disk, &plan.journal, journal)?;
        Ok((copied, written))
    })
}

/// Makes the staging directory durable, and has it confirmed while the disk is busy with the backend: etcd reads what was
/// written whether it is durable or not.
fn confirm_and_sync(
    disk: &dyn Disk,
    plan: &ImportPlan,
    confirm: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let staging = plan.staging();
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

/// Closes the journal of an import that kept its source's name and was killed after the flip, which is its commit, and
/// gives the journal; `None` if there is no such. The data dir may have been used since: it must not be built anew.
pub(super) fn finish_kept(disk: &dyn Disk, plan: &ImportPlan) -> anyhow::Result<Option<Journal>> {
    // One that cannot be read is reported by the import itself.
    let Ok(Some(journal)) = journal::load(&plan.journal) else { return Ok(None) };
    let same = journal.source.path == journal::relative(&plan.journal, plan.source.path());
    let Some(written) = journal.written.filter(|_| same && journal.phase == Phase::Importing) else { return Ok(None) };
    match inspect(&plan.etcd_dir, NEWEST)? {
        InspectedDatadir::Usable(found) if found.cluster() == written.cluster => {
            done(disk, &plan.journal, journal, unix_seconds()).map(Some)
        }
        _ => Ok(None),
    }
}

/// Removes what a killed import from a running etcd has left on the volume at `data_dir`: nothing of it is used again.
pub fn forget_killed(disk: &dyn Disk, data_dir: &Path) -> anyhow::Result<()> {
    let etcd_dir = data_dir.join("etcd");
    disk.forget_file(&with_suffix(&etcd_dir, ".source")).context("remove a downloaded snapshot")?;
    // One that cannot be read is reported by the import itself.
    let Ok(Some(journal)) = journal::load(&data_dir.join(journal::FILE_NAME)) else { return Ok(()) };
    if journal.phase == Phase::Importing && journal.source.is_remote() {
        remove_scratch(disk, &with_suffix(&etcd_dir, ".verify"))?;
        remove_if_there(disk, &with_suffix(&etcd_dir, ".staging"))?;
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
            done(disk, path, journal, unix_seconds()).map(drop)
        }
        _ => Ok(()),
    }
}

/// Puts the staging directory in the data dir's place.
fn flip(disk: &dyn Disk, plan: &ImportPlan) -> anyhow::Result<()> {
    disk.rename_durable(&plan.staging(), &plan.etcd_dir).context("put the data dir in place")?;
    crash_point!("migrate-after-flip");
    Ok(())
}

/// Has an etcd say that the staging directory holds what was read.
fn confirm(
    disk: &dyn Disk,
    plan: &ImportPlan,
    version: EtcdVersion,
    written: &WrittenStore,
    source: &mut dyn Source,
    meter: &Meter,
) -> anyhow::Result<()> {
    let (staging, scratch) = (plan.staging(), plan.scratch());
    let etcd = LoopbackEtcd {
        program: &plan.etcd,
        version,
        data_dir: &staging,
        scratch: &scratch,
        backend_bytes: written.datadir.backend_bytes,
        member: &plan.identity,
        lock: plan.lock.as_deref(),
        force_new_cluster: false,
        snapshot_count: NO_SNAPSHOT,
        unsynced: true,
    };
    let expected = Expected { revision: plan.revision_of(source), written };
    let full = match plan.verify {
        Verify::Hash => None,
        Verify::Full => Some(source),
    };
    verify(disk, &etcd, &expected, full, meter)
}

/// Makes room for the data dir: removes what an uncommitted attempt of this very import left, and nothing else.
fn clear_target(disk: &dyn Disk, plan: &ImportPlan) -> anyhow::Result<()> {
    let journal = journal::load(&plan.journal).map_err(|e| match e {
        RecordError::Io(e) => anyhow::Error::from(e).context("read the migration journal"),
        damaged => refuse(
            Exit::RefusedDataDir,
            damaged.to_string(),
            "if the data dir beside it was never served from, move both aside; otherwise move the journal aside",
        ),
    })?;
    let ours = match &journal {
        None => None,
        Some(journal) if journal.phase == Phase::Done => {
            return Err(refuse(
                Exit::RefusedDataDir,
                format!("{} says that an import was completed here", plan.journal.display()),
                "if that data dir is gone for good, move the journal aside and try again",
            ));
        }
        Some(journal) if journal.source.path != journal::relative(&plan.journal, plan.source.path()) => {
            return Err(refuse(
                Exit::RefusedDataDir,
                format!(
                    "{} says that an import of {} was begun here, not of {}",
                    plan.journal.display(),
                    journal.source.path.display(),
                    plan.source.path().display()
                ),
                "import that one, or move the journal and the data dir beside it aside",
            ));
        }
        Some(journal) => journal.written.map(|written| written.cluster),
    };
    remove_scratch(disk, &plan.scratch())?;
    let staging = plan.staging();
    if journal.is_some() {
        remove_if_there(disk, &staging)?;
    } else if let Some(kept) = set_aside(disk, &staging, SystemTime::now()).context("keep a staging directory")? {
        tracing::warn!(kept = %kept.display(), "a staging directory without a journal was set aside");
    }
    match inspect(&plan.etcd_dir, NEWEST)? {
        // What etcd takes for nothing may still have entries, over which no directory can be renamed.
        InspectedDatadir::Empty if has_entries(&plan.etcd_dir)? => {
            let kept = set_aside(disk, &plan.etcd_dir, SystemTime::now()).context("keep what is in the data dir")?;
            tracing::warn!(?kept, "a directory in the data dir's place was set aside");
            Ok(())
        }
        InspectedDatadir::Empty => Ok(()),
        InspectedDatadir::Usable(found) if ours == Some(found.cluster()) => {
            // Renamed first, so that it is never half there under its own name.
            disk.rename_durable(&plan.etcd_dir, &staging).context("take back an uncommitted data dir")?;
            remove_if_there(disk, &staging)
        }
        other if journal.is_some() => {
            let kept = set_aside(disk, &plan.etcd_dir, SystemTime::now()).context("keep a data dir")?;
            tracing::warn!(?kept, found = ?other, "a data dir that the journal does not know was set aside");
            Ok(())
        }
        _ => Err(refuse(
            Exit::RefusedDataDir,
            format!("{} has content that no import of ours left there", plan.etcd_dir.display()),
            "give the path of a new or empty directory",
        )),
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

/// After a failure before the flip: as if nothing had been begun. What cannot be removed now is removed by the next
/// attempt, which finds the journal.
fn take_back(disk: &dyn Disk, plan: &ImportPlan) {
    let removed = remove_scratch(disk, &plan.scratch())
        .and_then(|()| remove_if_there(disk, &plan.staging()))
        .and_then(|()| disk.remove_file(&plan.journal).context("remove the journal"))
        .and_then(|()| disk.sync_dir(&parent_of(&plan.journal)).context("remove the journal"));
    if let Err(e) = removed {
        tracing::warn!(error = format!("{e:#}"), "an import that failed could not be tidied up after");
    }
}

/// Refuses if the volume is too small: by the size of the source, which is cheap, and if that does not fit, by what is
/// live in it.
fn check_space(plan: &ImportPlan, store: &dyn Source) -> anyhow::Result<()> {
    let volume = parent_of(&plan.etcd_dir);
    let free = space::free(&volume)?.saturating_sub(plan.spare);
    let extent = store.extent();
    if space::needed(extent.keys_at_most, extent.bytes_at_most) <= free {
        return Ok(());
    }
    space::check(&volume, space::needed(extent.keys_at_most, store.live_bytes()?), free)
}

/// Refuses if somebody changed the source while it was read, whatever our lock says.
fn unchanged(store: &dyn Source, before: &[FileState]) -> anyhow::Result<()> {
    if store.files()? == before {
        return Ok(());
    }
    Err(refuse(
        Exit::RefusedSource,
        format!("{} is not read: another process changed it meanwhile", store.name()),
        "stop that program, then try again",
    ))
}
