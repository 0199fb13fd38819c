//! A new `state.db` as a target: the way back.
//!
//! Between the journal's beginning and what it says of the file, a kill may come (`back-*` are the crash points):
//! `state.db.staging`, written (`half-written`), read back (`verified`) and synced. The journal tells the file by its inode,
//! size and time: nobody has used it since.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::command::{TargetKind, go};
use super::commit::{exists, with_suffix};
use super::convert::Count;
use super::journal::{self, Journal, Phase, WrittenFile};
use super::journey::{self, Journey, Outcome, Points};
use super::kine::{KineStore, StoreFiles};
use super::origin::WAIT_FOR_HOLDER;
use super::pipeline::copy;
use super::progress::{Meter, Stage};
use super::sink::{Built, Forecast, Foreseen, Made, Target};
use super::source::{FileState, Source};
use super::space;
use super::sqlite::{ReadBack, SqliteForecast, SqliteSink, SqliteSum, WrittenSqlite, check_path};
use super::verify::Verify;
use crate::crash_point;
use crate::datadir::quarantine::set_aside;
use crate::disk::{Disk, parent_of};
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::record_file::unix_seconds;

/// A `state.db` that is to be made.
#[derive(Clone, Debug)]
pub struct SqliteTarget {
    /// Where.
    pub path: PathBuf,
}

/// What is told of a `state.db` that was made.
#[derive(Clone, Debug)]
pub struct MadeSqlite {
    /// Keys that expire.
    pub ttls: u64,
    /// Keys that shared a revision with another, and were moved to one of their own: the store's revision may be above the
    /// source's.
    pub moved: Count,
    /// Keys left out: the API server's record of its compactions.
    pub dropped: Count,
}

/// What a journey into a `state.db` has made.
pub type ExportOutcome = Outcome<MadeSqlite>;

impl Made for MadeSqlite {
    fn json(&self) -> Value {
        json!({ "timesToLive": self.ttls, "moved": self.moved, "leftOut": self.dropped })
    }

    fn confirmed(&self) -> String {
        format!("{} with a time to live; read back and equal", self.ttls)
    }

    fn notes(&self, revision: Revision, source_revision: Revision) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(key) = &self.moved.example {
            let count = self.moved.count;
            lines.push(format!("{count} keys shared a revision and have one of their own now (for one, {key})"));
        }
        let raised = revision.0 - source_revision.0;
        if raised != 0 {
            lines.push(format!("the store's revision is {raised} above the source's, {source_revision}"));
        }
        if let Some(key) = &self.dropped.example {
            lines.push(format!(
                "{key} is left out: kine keeps its own under this name, and the API server makes it anew"
            ));
        }
        lines
    }
}

impl Forecast for SqliteForecast {
    fn foresee(self: Box<Self>) -> anyhow::Result<Foreseen> {
        let (renumbered, keys, ttls) = self.finish()?;
        let made = MadeSqlite { ttls, moved: renumbered.moved, dropped: renumbered.dropped };
        Ok(Foreseen { revision: renumbered.revision, keys, made: made.json() })
    }
}

/// As `syncer migrate` makes it.
pub(super) const KIND: TargetKind = TargetKind {
    name: "sqlite",
    help: "a new state.db for kine or k3s (from etcd's stores)",
    make: |disk, args, source, path| {
        if source.is_renamed() {
            return Err(args.not_yet("a store of kine's becomes a data dir: datadir:PATH"));
        }
        if args.bump_revision > 0 {
            let what = "--bump-revision raises the revision of a data dir alone";
            return Err(refuse(Exit::Usage, what, "leave it out: kine goes on at the revision that the store has"));
        }
        check_path(&path)?;
        go(disk, args, args.journey(source, SqliteTarget { path }))
    },
};

impl Target for SqliteTarget {
    type Ready = ();
    type Made = MadeSqlite;
    const POINTS: Points = Points {
        before_journal: "back-before-journal",
        after_journal: "back-journal-begun",
        written: "back-written",
        after_flip: "back-after-flip",
        done: "back-done",
    };

    fn path(&self) -> &Path {
        &self.path
    }

    fn staging(&self) -> PathBuf {
        with_suffix(&self.path, ".staging")
    }

    fn needed(keys: u64, bytes: u64) -> u64 {
        space::needed_sqlite(keys, bytes)
    }

    fn forecast(&self, source: &dyn Source) -> Box<dyn Forecast> {
        Box::new(SqliteForecast::new(source.extent().revision))
    }

    fn admit(&self, journey: &Journey<Self>, earlier: Option<&Journal>) -> anyhow::Result<()> {
        match earlier {
            Some(earlier) if self.takes_back(journey, earlier)? => Ok(()),
            Some(earlier) if earlier.phase == Phase::Done && exists(&self.path)? => {
                let of = journal::absolute(&journey.journal, &earlier.source.path);
                Err(refuse(
                    Exit::RefusedDataDir,
                    format!("{} was made of {} before, and is there", self.path.display(), of.display()),
                    "go on with it, or move it aside to make it anew",
                ))
            }
            _ => self.is_vacant(),
        }
    }

    fn ready(_: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    fn clear(&self, disk: &dyn Disk, journey: &Journey<Self>, earlier: Option<&Journal>) -> anyhow::Result<()> {
        let staging = self.staging();
        let Some(earlier) = earlier else {
            if let Some(kept) = set_aside(disk, &staging, SystemTime::now()).context("keep a staging file")? {
                tracing::warn!(kept = %kept.display(), "a staging file without a journal was set aside");
            }
            return self.is_vacant();
        };
        if self.takes_back(journey, earlier)? {
            // Renamed first, so that it is never half there under its own name.
            disk.rename_durable(&self.path, &staging).context("take back an uncommitted SQLite file")?;
        }
        remove(disk, &staging)?;
        self.is_vacant()?;
        // One of another journey is over, now that what it left is gone: a store goes this way as often as is asked.
        if earlier.phase == Phase::Done || !of_this(journey, earlier) {
            disk.forget_file(&journey.journal).context("remove an earlier journal")?;
        }
        Ok(())
    }

    fn build(
        &self,
        disk: &dyn Disk,
        journey: &Journey<Self>,
        (): (),
        source: &mut dyn Source,
        meter: &Meter,
    ) -> anyhow::Result<Built<MadeSqlite>> {
        let revision = source.extent().revision;
        meter.begin(Stage::Copy, source.extent().keys_at_most);
        let staging = self.staging();
        let mut sink = SqliteSink::create(&staging, revision)?;
        let copied = copy(source, &mut sink, meter)?;
        let written = sink.finish()?;
        meter.begin(Stage::Verify, written.keys);
        let synced = std::thread::scope(|scope| {
            // The disk is busy with it while it is read back, so that little is left when it is made durable as it then is.
            let synced = scope.spawn(|| disk.open(&staging).and_then(|mut file| file.sync()));
            read_back(&staging, journey.verify, source, &written, meter)?;
            anyhow::Ok(synced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        synced.context("sync the SQLite file")?;
        crash_point!("back-verified");
        disk.open(&staging).and_then(|mut file| file.sync()).context("sync the SQLite file")?;
        let WrittenSqlite { renumbered, keys, ttls, .. } = written;
        Ok(Built {
            copied,
            revision: renumbered.revision,
            keys,
            target_bytes: FileState::of(&staging)?.bytes,
            made: MadeSqlite { ttls, moved: renumbered.moved, dropped: renumbered.dropped },
        })
    }

    fn note(&self, built: &Built<MadeSqlite>, journal: &mut Journal) -> anyhow::Result<()> {
        let FileState { inode, bytes, modified } = FileState::of(&self.staging())?;
        journal.file = Some(WrittenFile { inode, bytes, modified, revision: built.revision, keys: built.keys });
        Ok(())
    }

    /// SQLite would read a `-wal` or roll back a journal that lies beside the new file.
    fn is_vacant(&self) -> anyhow::Result<()> {
        let target = exists(&self.path)?.then(|| self.path.clone());
        let Some(path) = target.into_iter().chain(self.companions()?).next() else { return Ok(()) };
        let what = format!("{} is there already", path.display());
        Err(refuse(Exit::RefusedDataDir, what, "move it aside, or choose another place"))
    }

    fn take_back(&self, disk: &dyn Disk) -> anyhow::Result<()> {
        remove(disk, &self.staging())
    }

    fn is_there(&self, journal: &Journal) -> anyhow::Result<bool> {
        match &journal.file {
            Some(file) => Ok(file.is_at(&self.path)?),
            None => Ok(false),
        }
    }
}

impl SqliteTarget {
    /// Whether the target is the file that an uncommitted attempt of this journey has put there, and nobody has used it
    /// since.
    fn takes_back(&self, journey: &Journey<Self>, earlier: &Journal) -> anyhow::Result<bool> {
        let ours = earlier.phase == Phase::Importing && of_this(journey, earlier) && self.is_there(earlier)?;
        // What kine has written since the commit may stand beside it alone, with the file itself as it was.
        Ok(ours && self.companions()?.is_empty())
    }

    /// What of SQLite's lies beside the target.
    fn companions(&self) -> std::io::Result<Vec<PathBuf>> {
        let StoreFiles { db: _, wal, shm, journal } = StoreFiles::of(&self.path);
        let mut there = Vec::new();
        for path in [wal, shm, journal] {
            if exists(&path)? {
                there.push(path);
            }
        }
        Ok(there)
    }
}

/// Whether it is of an attempt with the same source.
fn of_this(journey: &Journey<SqliteTarget>, earlier: &Journal) -> bool {
    earlier.source.path == journal::relative(&journey.journal, journey.source.path())
}

/// Closes the journal at `path` of a journey whose target is about to be used: from then on nothing of it is taken back.
pub fn close(disk: &dyn Disk, path: &Path) -> anyhow::Result<()> {
    match journal::load(path) {
        Ok(Some(journal)) if journal.phase != Phase::Done => {
            journey::done(disk, SqliteTarget::POINTS, path, journal, unix_seconds()).map(drop)
        }
        // A journey refuses what it cannot read, so nothing is taken back by it either.
        Err(error) => {
            tracing::warn!("the journal of the way back is left as it is: {error}");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// Removes what a journey has left that was killed before its commit, and its journal at `path`, as its source goes on being used:
/// what is written from now on is not in it. Gives the file that was put in place, if there was one at any of `places`.
///
/// No store that bears its name is removed that the journal does not prove to be that file, as nobody has used it; beside
/// another, all is left as it is.
pub fn abandon(disk: &dyn Disk, path: &Path, places: &[PathBuf]) -> anyhow::Result<Option<PathBuf>> {
    // One that cannot be read proves nothing.
    let Ok(Some(journal)) = journal::load(path) else { return Ok(None) };
    if journal.phase == Phase::Done {
        return Ok(None);
    }
    let at = |place: &PathBuf| {
        let target = SqliteTarget { path: place.clone() };
        let companions = !target.companions()?.is_empty();
        anyhow::Ok(match target.is_there(&journal)? {
            true if !companions => AtPlace::Unused,
            there => {
                if there || companions || place.symlink_metadata().is_ok() {
                    AtPlace::Other
                } else {
                    AtPlace::Nothing
                }
            }
        })
    };
    let found = places.iter().map(at).collect::<anyhow::Result<Vec<_>>>()?;
    let Some(unused) = given_up(&found) else { return Ok(None) };
    let placed = unused.and_then(|at| places.get(at)).cloned();
    // Most distros have a folder of their own, which is not there.
    for place in places.iter().filter(|place| parent_of(place).is_dir()) {
        SqliteTarget { path: place.clone() }.take_back(disk)?;
        journey::forget_copy(disk, place)?;
    }
    // The file first: without the journal nothing would tell what it is.
    for gone in placed.iter().map(PathBuf::as_path).chain([path]) {
        disk.forget_file(gone)
            .and_then(|()| disk.sync_dir(&parent_of(gone)))
            .context("remove what an abandoned way back left")?;
    }
    Ok(placed)
}

/// What stands where a `state.db` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtPlace {
    /// Nothing.
    Nothing,
    /// What the journal tells of, as it was written.
    Unused,
    /// A store that somebody may have used, or something of one.
    Other,
}

/// Whether the traces of a way back that was given up are removed, and with them which file; `None`: all is left, as what the
/// journal tells of may have become the store that is there.
fn given_up(found: &[AtPlace]) -> Option<Option<usize>> {
    match found.iter().position(|at| *at == AtPlace::Unused) {
        Some(unused) => Some(Some(unused)),
        None if found.contains(&AtPlace::Other) => None,
        None => Some(None),
    }
}

/// Reads the file as any of kine's would be, with the check of all its pages, and compares.
fn read_back(
    staging: &Path,
    how: Verify,
    source: &mut dyn Source,
    written: &WrittenSqlite,
    meter: &Meter,
) -> anyhow::Result<()> {
    let of_source = source.extent().revision;
    // A child that is just being forked has it open for a moment.
    let mut file = KineStore::open(staging, WAIT_FOR_HOLDER).context("open what was written")?;
    let (found, expected) =
        ((file.revision(), file.survey().compacted), (written.renumbered.revision, written.compacted));
    ensure!(
        found == expected,
        "the file is at revision {}, compacted at {}, and should be at {}, compacted at {}",
        found.0,
        found.1,
        expected.0,
        expected.1
    );
    let mut read = ReadBack::default();
    copy(&mut file, &mut read, meter).context("read back what was written")?;
    ensure!(read.0 == written.sum, "the keys read back from the file are not those that were written");
    if how == Verify::Full {
        let mut again = SqliteSum::new(of_source);
        copy(source, &mut again, &Meter::default()).context("read the source a second time")?;
        ensure!(again.finish()? == read.0, "the keys read back from the file are not those of the source");
    }
    Ok(())
}

/// Removes a file of SQLite's and what SQLite may have left beside it.
fn remove(disk: &dyn Disk, db: &Path) -> anyhow::Result<()> {
    let files = StoreFiles::of(db);
    for path in [&files.wal, &files.shm, &files.journal, &files.db] {
        disk.forget_file(path).context("remove what an uncommitted attempt left")?;
    }
    disk.sync_dir(&parent_of(db)).context("remove what an uncommitted attempt left")
}

#[cfg(test)]
mod tests;
