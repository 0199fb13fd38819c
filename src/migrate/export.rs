//! Writing etcd's store into a new `state.db`: the way back.
//!
//! The order of durable steps, each of which a kill may separate from the next; `back-*` are the crash points there:
//!
//! 1. lock the source and find its live keys; nothing is written;
//! 2. journal: begun (`back-journal-begun`);
//! 3. `state.db.staging`, written (`back-half-written`), read back (`back-verified`) and synced;
//! 4. journal: which file that is (`back-written`);
//! 5. **commit**: `state.db.staging` is renamed to `state.db` (`back-after-flip`);
//! 6. journal: done (`back-done`).
//!
//! The source stays as it is. A target that is there is refused, unless the journal says that it is the very file that an
//! interrupted attempt put there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::commit::with_suffix;
use super::convert::{Count, Warnings};
use super::journal::Phase;
use super::kine::{KineStore, StoreFiles};
use super::origin::{Origin, WAIT_FOR_HOLDER};
use super::pipeline::copy;
use super::progress::{Meter, Show, Stage, StageSeconds, shown};
use super::source::{FileState, Source};
use super::space;
use super::sqlite::{ReadBack, SqliteSink, SqliteSum, WrittenSqlite};
use super::verify::Verify;
use crate::crash_point;
use crate::datadir::DatadirLock;
use crate::datadir::quarantine::set_aside;
use crate::disk::{Disk, parent_of};
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::record_file::{self, unix_seconds};

const MAGIC: &[u8; 8] = b"SYNCEXP1";
const MAX_PAYLOAD: usize = 64 << 10;

/// What to write back, and where to.
#[derive(Clone, Debug)]
pub struct ExportPlan {
    /// What is read.
    pub source: Origin,
    /// The `state.db` to be made.
    pub target: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// The etcd program, which replays the log of a data dir that needs it.
    pub etcd: PathBuf,
    /// How thoroughly the result is compared: read back either way, and with a second reading of the source.
    pub verify: Verify,
    /// How progress is shown.
    pub show: Show,
    /// The lock of the directory that holds a data dir, if the caller has it.
    pub lock: Option<Arc<DatadirLock>>,
}

impl ExportPlan {
    fn staging(&self) -> PathBuf {
        with_suffix(&self.target, ".staging")
    }

    fn copy(&self) -> PathBuf {
        with_suffix(&self.target, ".source")
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct ExportOutcome {
    /// The revision of the new store.
    pub revision: Revision,
    /// That of the source: the same, unless keys of one transaction had to be moved above it.
    pub source_revision: Revision,
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Keys that expire.
    pub ttls: u64,
    /// Keys that shared a revision with another, and were moved to one of their own.
    pub moved: Count,
    /// Keys left out: the API server's record of its compactions.
    pub dropped: Count,
    /// What was met and gone on from.
    pub warnings: Warnings,
    /// Size of the file.
    pub target_bytes: u64,
    /// From the first look at the source to the commit.
    pub duration: Duration,
    /// What of it each stage took.
    pub stages: StageSeconds,
}

/// The record of an export that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportJournal {
    /// Where it stands.
    pub phase: Phase,
    /// What is read.
    pub source: PathBuf,
    /// When it was begun, in seconds since 1970.
    pub started: u64,
    /// When it was done.
    pub finished: Option<u64>,
    /// The file; known before it is put in place.
    pub written: Option<WrittenFile>,
}

/// The file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WrittenFile {
    /// Its inode, which a rename keeps.
    pub inode: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970: nobody has used it since.
    pub modified: i128,
    /// The store's revision.
    pub revision: Revision,
    /// Live keys.
    pub keys: u64,
}

impl WrittenFile {
    /// Whether what stands at `path` is this file, as it was written.
    pub fn is_at(&self, path: &Path) -> std::io::Result<bool> {
        let found = FileState::of(path)?;
        Ok((found.inode, found.bytes, found.modified) == (self.inode, self.bytes, self.modified))
    }
}

/// Reads the journal at `path`, if there is one.
pub fn load(path: &Path) -> Result<Option<ExportJournal>, record_file::RecordError> {
    record_file::load(MAGIC, MAX_PAYLOAD, path)
}

fn store(disk: &dyn Disk, path: &Path, journal: &ExportJournal) -> anyhow::Result<()> {
    disk.write_durable(path, &record_file::encode(MAGIC, MAX_PAYLOAD, journal)?, 0o600).context("write the journal")
}

/// Writes that it is done.
pub fn done(disk: &dyn Disk, path: &Path, journal: ExportJournal) -> anyhow::Result<ExportJournal> {
    let journal = ExportJournal { phase: Phase::Done, finished: Some(unix_seconds()), ..journal };
    store(disk, path, &journal)?;
    crash_point!("back-done");
    Ok(journal)
}

/// Closes the journal of an export that was killed after its commit, and gives the journal; `None` if there is no such.
pub fn finish(disk: &dyn Disk, plan: &ExportPlan) -> anyhow::Result<Option<ExportJournal>> {
    // One that cannot be read is reported by the export itself.
    let Ok(Some(journal)) = load(&plan.journal) else { return Ok(None) };
    let Some(written) = journal.written.filter(|_| journal.source == plan.source.path()) else { return Ok(None) };
    if journal.phase != Phase::Importing || !written.is_at(&plan.target)? {
        return Ok(None);
    }
    done(disk, &plan.journal, journal).map(Some)
}

/// Closes the journal at `path` of an export whose target is about to be used: from then on nothing of it is taken back.
pub fn close(disk: &dyn Disk, path: &Path) -> anyhow::Result<()> {
    match load(path) {
        Ok(Some(journal)) if journal.phase != Phase::Done => done(disk, path, journal).map(drop),
        // An export refuses what it cannot read, so nothing is taken back by it either.
        Err(error) => {
            tracing::warn!("the journal of the way back is left as it is: {error}");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// Writes the store into a new `state.db` and puts it in place; the journal says that it is not yet done. Blocking.
///
/// On a refusal or a failure before the commit, everything that was written is removed again.
pub fn export(disk: &dyn Disk, plan: &ExportPlan) -> anyhow::Result<(ExportOutcome, ExportJournal)> {
    let meter = Meter::default();
    shown(plan.show, &meter, || run(disk, plan, &meter)).map_err(|e| plan.source.name_in(e))
}

fn run(disk: &dyn Disk, plan: &ExportPlan, meter: &Meter) -> anyhow::Result<(ExportOutcome, ExportJournal)> {
    let started = Instant::now();
    meter.begin(Stage::Survey, 0);
    clear_target(disk, plan)?;
    let mut source = plan.source.open(disk, &plan.etcd, &plan.copy(), plan.lock.as_ref())?;
    let before = source.files()?;
    check_space(plan, &*source)?;
    let mut journal = ExportJournal {
        phase: Phase::Importing,
        source: plan.source.path().to_owned(),
        started: unix_seconds(),
        finished: None,
        written: None,
    };
    store(disk, &plan.journal, &journal)?;
    crash_point!("back-journal-begun");
    let outcome = built(disk, plan, &mut *source, meter).and_then(|(outcome, revision)| {
        ensure!(source.files()? == before, "{} was changed while it was read", source.name());
        let staging = plan.staging();
        disk.open(&staging).and_then(|mut file| file.sync()).context("sync the SQLite file")?;
        let file = FileState::of(&staging)?;
        let written =
            WrittenFile { inode: file.inode, bytes: file.bytes, modified: file.modified, revision, keys: outcome.keys };
        journal.written = Some(written);
        store(disk, &plan.journal, &journal)?;
        crash_point!("back-written");
        Ok(ExportOutcome { target_bytes: file.bytes, ..outcome })
    });
    let outcome = match outcome.and_then(|outcome| refuse_target(plan).map(|()| outcome)) {
        Ok(outcome) => outcome,
        Err(e) => {
            take_back(disk, plan);
            return Err(e);
        }
    };
    meter.begin(Stage::Commit, 0);
    disk.rename_durable(&plan.staging(), &plan.target).context("put the SQLite file in place")?;
    crash_point!("back-after-flip");
    Ok((ExportOutcome { duration: started.elapsed(), stages: meter.stages(), ..outcome }, journal))
}

/// Builds the file aside and reads it back.
fn built(
    disk: &dyn Disk,
    plan: &ExportPlan,
    source: &mut dyn Source,
    meter: &Meter,
) -> anyhow::Result<(ExportOutcome, Revision)> {
    let source_revision = source.extent().revision;
    meter.begin(Stage::Copy, source.extent().keys_at_most);
    let mut sink = SqliteSink::create(&plan.staging(), source_revision)?;
    let copied = copy(source, &mut sink, meter)?;
    let written = sink.finish()?;
    meter.begin(Stage::Verify, written.keys);
    let staging = plan.staging();
    let synced = std::thread::scope(|scope| {
        // The disk is busy with it while it is read back, so that little is left when it is made durable as it then is.
        let synced = scope.spawn(|| disk.open(&staging).and_then(|mut file| file.sync()));
        verify(plan, source, source_revision, &written, meter)?;
        anyhow::Ok(synced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    synced.context("sync the SQLite file")?;
    crash_point!("back-verified");
    let WrittenSqlite { renumbered, keys, ttls, .. } = written;
    let outcome = ExportOutcome {
        revision: renumbered.revision,
        source_revision,
        keys,
        bytes: copied.bytes,
        ttls,
        moved: renumbered.moved,
        dropped: renumbered.dropped,
        warnings: copied.warnings,
        target_bytes: 0,
        duration: Duration::ZERO,
        stages: StageSeconds::default(),
    };
    Ok((outcome, renumbered.revision))
}

/// Reads the file as any of kine's would be, with the check of all its pages, and compares.
fn verify(
    plan: &ExportPlan,
    source: &mut dyn Source,
    revision: Revision,
    written: &WrittenSqlite,
    meter: &Meter,
) -> anyhow::Result<()> {
    // A child that is just being forked has it open for a moment.
    let mut file = KineStore::open(&plan.staging(), WAIT_FOR_HOLDER).context("open what was written")?;
    let (found, compacted) = (file.revision(), file.survey().compacted);
    let newest = written.renumbered.revision;
    ensure!(
        (found, compacted) == (newest, newest),
        "the file is at revision {found}, compacted at {compacted}, and both should be {newest}"
    );
    let mut read = ReadBack::default();
    copy(&mut file, &mut read, meter).context("read back what was written")?;
    ensure!(read.0 == written.sum, "the keys read back from the file are not those that were written");
    if plan.verify == Verify::Full {
        let mut again = SqliteSum::new(revision);
        copy(source, &mut again, &Meter::default()).context("read the source a second time")?;
        ensure!(again.finish()? == read.0, "the keys read back from the file are not those of the source");
    }
    Ok(())
}

/// Makes room for the file: removes what an uncommitted attempt left, and nothing else.
fn clear_target(disk: &dyn Disk, plan: &ExportPlan) -> anyhow::Result<()> {
    let journal = load(&plan.journal).map_err(|e| {
        let remedy = "move the journal and what stands beside it aside, then try again";
        refuse(Exit::RefusedSource, format!("the journal {} cannot be read: {e}", plan.journal.display()), remedy)
    })?;
    let written = journal.as_ref().filter(|journal| journal.phase == Phase::Importing).and_then(|j| j.written);
    if let Some(written) = written
        && written.is_at(&plan.target)?
        // What kine has written since the commit may stand there alone, with the file itself as it was.
        && companions(plan)?.is_empty()
    {
        // Renamed first, so that it is never half there under its own name.
        disk.rename_durable(&plan.target, &plan.staging()).context("take back an uncommitted SQLite file")?;
    }
    let staging = plan.staging();
    if journal.is_some() {
        remove(disk, &staging)?;
    } else if let Some(kept) = set_aside(disk, &staging, SystemTime::now()).context("keep a staging file")? {
        tracing::warn!(kept = %kept.display(), "a staging file without a journal was set aside");
    }
    refuse_target(plan)
}

/// SQLite would read a `-wal` or roll back a journal that lies beside the new file.
fn refuse_target(plan: &ExportPlan) -> anyhow::Result<()> {
    let target = (FileState::of(&plan.target)? != FileState::default()).then(|| plan.target.clone());
    let Some(path) = target.into_iter().chain(companions(plan)?).next() else { return Ok(()) };
    let what = format!("{} is there already", path.display());
    Err(refuse(Exit::RefusedDataDir, what, "move it aside, or choose another place"))
}

/// What of SQLite's lies beside the target.
fn companions(plan: &ExportPlan) -> std::io::Result<Vec<PathBuf>> {
    let StoreFiles { db: _, wal, shm, journal } = StoreFiles::of(&plan.target);
    let mut there = Vec::new();
    for path in [wal, shm, journal] {
        if FileState::of(&path)? != FileState::default() {
            there.push(path);
        }
    }
    Ok(there)
}

fn check_space(plan: &ExportPlan, source: &dyn Source) -> anyhow::Result<()> {
    let volume = parent_of(&plan.target);
    let (free, extent) = (space::free(&volume)?, source.extent());
    if space::needed_sqlite(extent.keys_at_most, extent.bytes_at_most) <= free {
        return Ok(());
    }
    space::check(&volume, space::needed_sqlite(extent.keys_at_most, source.live_bytes()?), free)
}

/// Removes a file of SQLite's and what SQLite may have left beside it.
fn remove(disk: &dyn Disk, db: &Path) -> anyhow::Result<()> {
    let files = StoreFiles::of(db);
    for path in [&files.wal, &files.shm, &files.journal, &files.db] {
        disk.forget_file(path).context("remove what an uncommitted attempt left")?;
    }
    disk.sync_dir(&parent_of(db)).context("remove what an uncommitted attempt left")
}

/// After a failure before the commit: as if nothing had been begun.
fn take_back(disk: &dyn Disk, plan: &ExportPlan) {
    let removed = remove(disk, &plan.staging())
        .and_then(|()| disk.remove_file(&plan.journal).context("remove the journal"))
        .and_then(|()| disk.sync_dir(&parent_of(&plan.journal)).context("remove the journal"));
    if let Err(e) = removed {
        tracing::warn!(error = format!("{e:#}"), "a migration that failed could not be tidied up after");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_file_that_was_used_since_is_not_taken_back() {
        let home = tempfile::tempdir().unwrap();
        let place = |name: &str| home.path().join(name);
        let plan = ExportPlan {
            source: Origin::Datadir(place("etcd")),
            target: place("state.db"),
            journal: place("journal"),
            etcd: "etcd".into(),
            verify: Verify::Hash,
            show: Show::Nothing,
            lock: None,
        };
        let put = |phase| {
            std::fs::write(&plan.target, "a store").unwrap();
            let file = FileState::of(&plan.target).unwrap();
            let (revision, keys) = (Revision(7), 1);
            let written = WrittenFile { inode: file.inode, bytes: file.bytes, modified: file.modified, revision, keys };
            let source = plan.source.path().to_owned();
            let journal = ExportJournal { phase, source, started: 1, finished: None, written: Some(written) };
            store(&RealDisk, &plan.journal, &journal).unwrap();
        };
        put(Phase::Importing);
        clear_target(&RealDisk, &plan).unwrap();
        assert!(!plan.target.exists(), "nobody has used it");
        for beside in ["state.db-wal", "state.db-shm", "state.db-journal"] {
            put(Phase::Importing);
            std::fs::write(place(beside), "what was written since").unwrap();
            let error = clear_target(&RealDisk, &plan).unwrap_err();
            assert_eq!(crate::exit::exit_of(&error), Exit::RefusedDataDir);
            assert!(plan.target.exists() && place(beside).exists(), "{beside}");
            std::fs::remove_file(place(beside)).unwrap();
        }
        close(&RealDisk, &plan.journal).unwrap();
        assert!(clear_target(&RealDisk, &plan).is_err());
        assert!(plan.target.exists(), "it is in use");
        close(&RealDisk, &plan.journal).unwrap();
        close(&RealDisk, &place("none")).unwrap();
    }
}
