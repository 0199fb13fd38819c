//! A store's journey: the order of durable steps, whatever is read and whatever is made of it.
//!
//! A kill may separate each from the next; the crash points there begin with `migrate-` where a data dir is made, and with
//! `back-` where a `state.db` is.
//!
//! 1. lock the source and find its live keys; nothing is written;
//! 2. journal: begun;
//! 3. the target is built aside, under a staging name: written, confirmed, durable ([`Target::build`]);
//! 4. the source is as it was; journal: what was written;
//! 5. the source says that its place may be taken ([`Source::confirm`]);
//! 6. flip: the staging name becomes the target's;
//! 7. **commit**, where the source does not keep its name ([`Commit`]); otherwise the flip is the commit;
//! 8. journal: done.
//!
//! Before the commit the source is the truth: the next attempt starts over, and takes back a target only if the journal says
//! that it is the very one that was built, so that no other can ever be lost. From the commit on the target is the truth, and
//! [`finish`] does what is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::backend::datadir;
use super::commit::{self, commit, move_strays};
use super::convert::Warnings;
use super::estimate;
use super::journal::{self, Journal, Phase, SourceFile};
use super::kine::SourceError;
use super::origin::{Opening, Origin};
use super::progress::{Meter, Show, Stage, StageSeconds, shown};
use super::sink::{Built, Target};
use super::source::{FileState, Source};
use super::space;
use super::verify::Verify;
use crate::crash_point;
use crate::datadir::DatadirLock;
use crate::disk::{Disk, parent_of};
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::record_file::{RecordError, unix_seconds};
use crate::scratch::Aside;

/// What happens to the source's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// `state.db` becomes `state.db.migrated`: the move of a pod's own store.
    RenameSource,
    /// The source stays as it is: a copy, offline.
    KeepSource,
}

/// What is read, and what is made of it.
#[derive(Clone, Debug)]
pub struct Journey<T> {
    /// What is read.
    pub source: Origin,
    /// What is made.
    pub target: T,
    /// The journal.
    pub journal: PathBuf,
    /// The etcd program: it verifies a data dir, and replays the log of one that needs it.
    pub etcd: PathBuf,
    /// How thoroughly the target is compared with the source.
    pub verify: Verify,
    /// What happens to the source's name.
    pub commit: Commit,
    /// What is to be left free on the target's volume, in bytes.
    pub spare: u64,
    /// How progress is shown.
    pub show: Show,
    /// The lock of the directory that holds a data dir, if the caller has it: an etcd that is run for the journey inherits
    /// it, so that no second attempt begins while one that outlived a killed syncer still runs.
    pub lock: Option<Arc<DatadirLock>>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Outcome<M> {
    /// The revision of the new store.
    pub revision: Revision,
    /// The source's.
    pub source_revision: Revision,
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Size of the new store's file.
    pub target_bytes: u64,
    /// What was met and gone on from.
    pub warnings: Warnings,
    /// From the first look at the source to the commit.
    pub duration: Duration,
    /// What of it each stage took.
    pub stages: StageSeconds,
    /// What this kind of target tells besides.
    pub made: M,
}

/// Goes the whole way. Blocking: it runs for as long as the store is large, on the calling thread and two more. An etcd that
/// was run for it has ended when this returns.
///
/// On a refusal or a failure before the flip, everything that was written is removed again.
pub fn run<T: Target>(disk: &dyn Disk, journey: &Journey<T>) -> anyhow::Result<Outcome<T::Made>> {
    run_then(disk, journey, || Ok(())).map(|(outcome, ())| outcome)
}

/// The same, for a caller whose own step is the commit: `then` runs between the flip and the end of the journal.
pub fn run_then<T: Target, R>(
    disk: &dyn Disk,
    journey: &Journey<T>,
    then: impl FnOnce() -> anyhow::Result<R>,
) -> anyhow::Result<(Outcome<T::Made>, R)> {
    let meter = Meter::default();
    let (outcome, journal) =
        shown(journey.show, &meter, || moved(disk, journey, &meter)).map_err(|e| journey.source.name_in(e))?;
    let then = then()?;
    done(disk, T::POINTS, &journey.journal, journal, unix_seconds())?;
    Ok((outcome, then))
}

/// Up to the commit, with the journal as it is then.
fn moved<T: Target>(
    disk: &dyn Disk,
    journey: &Journey<T>,
    meter: &Meter,
) -> anyhow::Result<(Outcome<T::Made>, Journal)> {
    let started = Instant::now();
    meter.begin(Stage::Survey, 0);
    apart(journey)?;
    let earlier = earlier(journey)?;
    journey.target.admit(journey, earlier.as_ref())?;
    if let Err(error) = estimate::forget_left(disk, journey.target.path()) {
        tracing::warn!("what a killed dry run has left is not removed: {error}");
    }
    if earlier.is_some() {
        // Of no use to anybody, and the source may need its room.
        journey.target.take_back(disk)?;
    }
    // A program takes as long to tell its version as the survey of a small store.
    let (store, ready) = std::thread::scope(|scope| {
        let etcd = &journey.etcd;
        let ready = scope.spawn(move || T::ready(etcd));
        let copy = Aside::alone(copy_of_source(journey.target.path()), journey.spare);
        // It is of the folder that has the journal, and the source's too if that lies there.
        let folder = |path: &Path| parent_of(path).canonicalize().ok();
        let beside = folder(journey.source.path()) == folder(&journey.journal);
        let lock = journey.lock.as_ref().filter(|_| beside);
        let store = journey.source.open(&Opening { disk, etcd: &journey.etcd, copy: &copy, lock, meter });
        (store, ready.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut store = store?;
    if journey.commit == Commit::RenameSource && !store.is_exclusive() {
        return Err(SourceError::Lock(std::io::ErrorKind::PermissionDenied.into()).into());
    }
    // Now rather than when all is written.
    let ready = ready?;
    let before = store.files()?;
    journey.target.clear(disk, journey, earlier.as_ref())?;
    check_space(journey, &*store)?;

    let file = before.first().copied().unwrap_or_default();
    let mut journal = Journal {
        phase: Phase::Importing,
        source: SourceFile {
            path: journal::relative(&journey.journal, journey.source.path()),
            bytes: file.bytes,
            modified: store.put_there().unwrap_or(file.modified),
            inode: file.inode,
        },
        source_revision: store.extent().revision,
        beside: before.get(1).copied().unwrap_or_default(),
        renames: journey.commit == Commit::RenameSource,
        started: unix_seconds(),
        finished: None,
        written: None,
        file: None,
    };
    crash_point!(T::POINTS.before_journal);
    journal::store(disk, &journey.journal, &journal)?;
    crash_point!(T::POINTS.after_journal);

    let built = journey
        .target
        .build(disk, journey, ready, &mut *store, meter)
        .and_then(|built| {
            unchanged(&*store, &before)?;
            journey.target.note(&built, &mut journal)?;
            journal::store(disk, &journey.journal, &journal)?;
            crash_point!(T::POINTS.written);
            Ok(built)
        })
        .and_then(|built| store.confirm().map(|()| built))
        .and_then(|built| journey.target.is_vacant().map(|()| built));
    let Built { copied, revision, keys, target_bytes, made } = match built {
        Ok(built) => built,
        Err(e) => {
            take_back(disk, journey);
            return Err(e);
        }
    };
    meter.begin(Stage::Commit, 0);
    let (staging, path) = (journey.target.staging(), journey.target.path());
    disk.rename_durable(&staging, path).with_context(|| format!("put {} in place", path.display()))?;
    crash_point!(T::POINTS.after_flip);
    if journey.commit == Commit::RenameSource {
        commit(disk, journey.source.path())?;
        move_strays(disk, journey.source.path()).context("tidy up after the migration")?;
    }
    let outcome = Outcome {
        revision,
        source_revision: store.extent().revision,
        keys,
        bytes: copied.bytes,
        target_bytes,
        warnings: copied.warnings,
        duration: started.elapsed(),
        stages: meter.stages(),
        made,
    };
    Ok((outcome, journal))
}

/// Refuses what the journey would refuse of its target. Nothing is written.
pub fn admit<T: Target>(journey: &Journey<T>) -> anyhow::Result<()> {
    journey.target.admit(journey, earlier(journey)?.as_ref())
}

/// The journal of an earlier attempt.
fn earlier<T>(journey: &Journey<T>) -> anyhow::Result<Option<Journal>> {
    journal::load(&journey.journal).map_err(|e| match e {
        RecordError::Io(e) => anyhow::Error::from(e).context("read the migration journal"),
        damaged => refuse(
            Exit::RefusedDataDir,
            damaged.to_string(),
            "if what was made beside it was never served from, move both aside; otherwise move the journal aside",
        ),
    })
}

/// Ends the journey of a killed attempt that got past its commit, and gives its journal; `None` if there is no such. What
/// was made may have been used since: it must not be built anew.
///
/// # Errors
/// [`Exit::RefusedDataDir`] if the source keeps its name and is not what it was: what was made lacks what it has got since.
pub fn finish<T: Target>(disk: &dyn Disk, journey: &Journey<T>) -> anyhow::Result<Option<Journal>> {
    apart(journey)?;
    let renames = journey.commit == Commit::RenameSource;
    if renames && let Some(journal) = commit::finish(disk, &journey.journal, journey.source.path(), unix_seconds())? {
        return Ok(Some(journal));
    }
    match made(journey)? {
        Some(journal) if journal.phase == Phase::Importing => {
            forget_copy(disk, journey.target.path())?;
            done(disk, T::POINTS, &journey.journal, journal, unix_seconds()).map(Some)
        }
        made => Ok(made),
    }
}

/// The journal of a journey that got past its commit, whether that was noted or not, but for one that renames its source.
/// Nothing is changed.
///
/// # Errors
/// As [`finish`].
pub fn made<T: Target>(journey: &Journey<T>) -> anyhow::Result<Option<Journal>> {
    apart(journey)?;
    let renames = journey.commit == Commit::RenameSource;
    if let Some(journal) = is_done(journey)? {
        return Ok(Some(journal));
    }
    // One that cannot be read is reported by the journey itself.
    let Ok(Some(journal)) = journal::load(&journey.journal) else { return Ok(None) };
    let same = journal.source.path == journal::relative(&journey.journal, journey.source.path());
    // Where the source was to be renamed, the flip was not the commit.
    if !same || journal.renames || journal.phase != Phase::Importing || !journey.target.is_there(&journal)? {
        return Ok(None);
    }
    if renames {
        let (from, to) = (journey.source.path().display(), journey.target.path().display());
        return Err(refuse(
            Exit::RefusedDataDir,
            format!("{to} was made of {from}, which was to keep its name"),
            format!(
                "give the same command as before, without the renaming; or, if nothing was served from {to}, move it and {} aside, \
                and try again",
                journey.journal.display()
            ),
        ));
    }
    if !journey.source.is_as_noted(&journal).context("look at the source again")? {
        let (from, to) = (journey.source.path().display(), journey.target.path().display());
        return Err(refuse(
            Exit::RefusedDataDir,
            format!(
                "{to} was made of {from} at its revision {}, and {from} has changed since",
                journal.source_revision
            ),
            format!(
                "go on with {to} as it is; or, if nothing was served from it, move it and {} aside, and try again",
                journey.journal.display()
            ),
        ));
    }
    Ok(Some(journal))
}

/// Where a copy of the source stands, if one must be made: a name that is nobody else's, as what is there is removed.
pub(super) fn copy_of_source(target: &Path) -> PathBuf {
    commit::with_suffix(target, ".migration.source")
}

/// Refuses a source that is where the journey keeps something of its own, which it removes; and a target within the source,
/// which stays as it is.
pub(super) fn apart<T: Target>(journey: &Journey<T>) -> anyhow::Result<()> {
    let (source, target) = (journey.source.path(), journey.target.path());
    let own = [copy_of_source(target), journey.target.staging(), scratch_of(target), target.to_owned()];
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // The target need not be there yet.
    if resolved(&parent_of(target)).starts_with(resolved(source)) {
        return Err(refuse(
            Exit::Usage,
            format!("{} is inside {}, which is read and stays as it is", target.display(), source.display()),
            "choose another target",
        ));
    }
    let Some(own) = own.iter().find(|own| source.starts_with(own) || resolved(source).starts_with(resolved(own)))
    else {
        return Ok(());
    };
    Err(refuse(
        Exit::Usage,
        format!(
            "{} is {}, where the target or what is written on the way to it stands",
            source.display(),
            own.display()
        ),
        "rename the source, or choose another target",
    ))
}

/// Where the verification keeps its files.
pub(super) fn scratch_of(target: &Path) -> PathBuf {
    commit::with_suffix(target, ".migration.verify")
}

/// Removes that of a killed attempt.
pub(super) fn forget_copy(disk: &dyn Disk, target: &Path) -> anyhow::Result<()> {
    let copy = copy_of_source(target);
    if copy.is_file() {
        return disk.forget_file(&copy).context("remove the copy of the source");
    }
    datadir::forget(disk, &copy)
}

/// The journal of a journey that is done: from the same source, which is as it was, and what was made is there.
fn is_done<T: Target>(journey: &Journey<T>) -> anyhow::Result<Option<Journal>> {
    let Ok(Some(journal)) = journal::load(&journey.journal) else { return Ok(None) };
    let same = journal.source.path == journal::relative(&journey.journal, journey.source.path());
    let keeps = journey.commit == Commit::KeepSource && !journal.renames;
    let done = same && keeps && journal.phase == Phase::Done && journey.target.is_there(&journal)?;
    Ok((done && journey.source.is_as_noted(&journal).context("look at the source again")?).then_some(journal))
}

/// Names of the crash points that a journey to one kind of target passes, in their order.
#[derive(Clone, Copy, Debug)]
pub struct Points {
    /// Nothing is written.
    pub before_journal: &'static str,
    /// The journal says that it was begun.
    pub after_journal: &'static str,
    /// And what was written.
    pub written: &'static str,
    /// The target bears its name.
    pub after_flip: &'static str,
    /// The journal says that it is done.
    pub done: &'static str,
}

/// Writes that it is done, and gives what was written.
pub(super) fn done(
    disk: &dyn Disk,
    points: Points,
    path: &Path,
    journal: Journal,
    now: u64,
) -> anyhow::Result<Journal> {
    let journal = Journal { phase: Phase::Done, finished: Some(now), ..journal };
    journal::store(disk, path, &journal)?;
    crash_point!(points.done);
    Ok(journal)
}

/// After a failure before the flip: as if nothing had been begun. What cannot be removed now is removed by the next
/// attempt, which finds the journal.
fn take_back<T: Target>(disk: &dyn Disk, journey: &Journey<T>) {
    let removed = journey
        .target
        .take_back(disk)
        .and_then(|()| disk.remove_file(&journey.journal).context("remove the journal"))
        .and_then(|()| disk.sync_dir(&parent_of(&journey.journal)).context("remove the journal"));
    if let Err(e) = removed {
        tracing::warn!(error = format!("{e:#}"), "a migration that failed could not be tidied up after");
    }
}

/// Refuses if the volume is too small: by the size of the source, which is cheap, and if that does not fit, by what is
/// live in it.
fn check_space<T: Target>(journey: &Journey<T>, store: &dyn Source) -> anyhow::Result<()> {
    let volume = parent_of(journey.target.path());
    let free = space::free(&volume)?;
    let extent = store.extent();
    if T::needed(extent.keys_at_most, extent.bytes_at_most).saturating_add(journey.spare) <= free {
        return Ok(());
    }
    space::check(&volume, T::needed(extent.keys_at_most, store.live_bytes()?), journey.spare, free)
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
