//! A data dir that nobody uses.
//!
//! Its backend alone may lack what was acknowledged: etcd writes that to its log first, and to the backend up to 100 ms
//! (or 10,000 changes) later, so that a killed one leaves entries in the log alone. Where the log goes on behind the
//! backend's consistent index, a real etcd replays it, on a copy beside the target: the source is never changed.
//!
//! Only the data dir of a member that is alone has all that its cluster acknowledged. The log shows that: it is the only
//! member, and before that there were two at most, each of which had every acknowledged write.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::BackendStore;
use super::error::{BackendError, named};
use crate::datadir::inspect::SchemaVersion;
use crate::datadir::lock::LOCK_FILE;
use crate::datadir::writer::backend_of;
use crate::datadir::{
    DatadirLock, InspectError, InspectedDatadir, LogTail, MemberIdentity, UsableDatadir, inspect, log_tail,
};
use crate::disk::{Disk, RealDisk, parent_of};
use crate::etcd::{EtcdVersion, VersionError};
use crate::ids::RaftIndex;
use crate::migrate::commit::with_suffix;
use crate::migrate::loopback::{LoopbackEtcd, NO_SNAPSHOT};
use crate::migrate::space;
use crate::reset::copy::{Live, forget_partial, keep_copy};
use crate::scratch::{Aside, Place};

/// How long whoever uses it may take to let go: an etcd that is just being killed.
const WAIT_FOR_HOLDER: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(50);
/// An etcd that is told to stop within the moment in which it begins to serve ends as if it were killed: it handles the
/// signal from a little later on (`startEtcdOrProxyV2`).
const RUNS: u32 = 5;

/// How its log is replayed, if it must be.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The etcd program.
    pub etcd: PathBuf,
    /// Where the copy stands while it is used; it is removed again.
    pub copy: Aside,
    /// The lock of the directory that holds the data dir, if the caller has it.
    pub lock: Option<Arc<DatadirLock>>,
}

/// Any data dir is to be recognised, whatever etcd wrote it.
const NEWEST: SchemaVersion = SchemaVersion { major: u64::MAX, minor: u64::MAX };

/// Opens the data dir at `dir`. It stays as it is, and nobody can start an etcd on it until the store is dropped.
pub fn open(disk: &dyn Disk, dir: &Path, replay: &Replay) -> anyhow::Result<BackendStore> {
    let refused = |error: BackendError| error.refusal(dir);
    if !replay.copy.shared {
        forget(disk, &replay.copy.path)?;
    }
    let locks = lock(dir, replay.lock.is_some()).map_err(refused)?;
    let found = usable(dir, NEWEST)?;
    let tail = log_tail(&found).map_err(|e| refused(e.into()))?;
    check_alone(&tail).map_err(refused)?;
    let whole = found.backend() == backend_of(dir) && tail.last_index <= found.consistent_index();
    let watched = vec![found.backend().to_owned(), found.wal().tail.path.clone()];
    let (backend, copy) = if whole {
        (found.backend().to_owned(), None)
    } else {
        let copy = replayed(disk, dir, &found, &tail, replay)?;
        (backend_of(&copy.0.path), Some(copy))
    };
    let mut store = BackendStore::read(dir, &backend, watched).map_err(refused)?;
    store._kept.extend(copy.map(|copy| Box::new(copy) as Box<dyn Send + Sync>));
    store._kept.extend(locks);
    Ok(store)
}

/// Takes the lock of the syncer that serves from it, and etcd's own on the backend.
fn lock(dir: &Path, ours: bool) -> Result<Vec<Box<dyn Send + Sync>>, BackendError> {
    let mut locks: Vec<Box<dyn Send + Sync>> = Vec::new();
    match std::fs::metadata(dir) {
        Ok(meta) if !meta.is_dir() => return Err(BackendError::NoDatadir),
        other => other.map_err(named(dir))?,
    };
    // Without the file no syncer serves from it, and none is to be made in somebody else's folder.
    let folder = parent_of(dir);
    if !ours && folder.join(LOCK_FILE).exists() {
        locks.push(Box::new(DatadirLock::acquire(&folder, WAIT_FOR_HOLDER)?));
    }
    let backend = backend_of(dir);
    let file = match File::open(&backend) {
        Ok(file) => file,
        // Which is told by the inspection.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(locks),
        Err(e) => return Err(named(&backend)(e)),
    };
    let begun = Instant::now();
    // bbolt's own lock (`bolt_unix.go`, `flock`).
    while let Err(error) = file.try_lock() {
        match error {
            TryLockError::WouldBlock if begun.elapsed() < WAIT_FOR_HOLDER => std::thread::sleep(RETRY),
            TryLockError::WouldBlock => return Err(BackendError::Held),
            TryLockError::Error(e) => return Err(named(&backend)(e)),
        }
    }
    locks.push(Box::new(file));
    Ok(locks)
}

fn usable(dir: &Path, newest: SchemaVersion) -> anyhow::Result<UsableDatadir> {
    let refused = match inspect(dir, newest) {
        Ok(InspectedDatadir::Usable(found)) => return Ok(found),
        Ok(InspectedDatadir::Empty) => BackendError::NoDatadir,
        Ok(InspectedDatadir::Damaged(why)) => BackendError::Damaged(why),
        Ok(InspectedDatadir::Newer(versions)) => BackendError::Newer(versions),
        Err(InspectError(error)) => BackendError::Io(error),
    };
    Err(refused.refusal(dir))
}

/// Whether everything that was acknowledged is in this log.
fn check_alone(tail: &LogTail) -> Result<(), BackendError> {
    let voters = tail.memberships.iter().map(|m| m.voters.len()).max().unwrap_or(0);
    if !tail.always_voter() {
        return Err(BackendError::NotAVoter(tail.member));
    }
    if voters > 1 || tail.voters_max() > 2 {
        let members = tail.memberships.iter().map(|m| m.voters.len() + m.learners.len()).max().unwrap_or(0);
        return Err(BackendError::NotAlone { members: members.max(tail.voters_max()) });
    }
    Ok(())
}

/// A copy that goes with its user.
struct Copy(Place);

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = forget(&RealDisk, &self.0.path) {
            tracing::warn!(copy = %self.0.path.display(), error = format!("{error:#}"), "a copy was not removed");
        }
    }
}

/// Removes what an earlier, killed attempt left of a copy.
pub fn forget(disk: &dyn Disk, copy: &Path) -> anyhow::Result<()> {
    forget_partial(disk, copy).context("remove an unfinished copy")?;
    for dir in [copy.to_owned(), scratch(copy)] {
        disk.forget_dir(&dir).context("remove an earlier copy")?;
    }
    Ok(())
}

fn scratch(copy: &Path) -> PathBuf {
    with_suffix(copy, ".certs")
}

/// Copies the data dir and has etcd replay the copy's log; every entry of it is in the copy's backend afterwards.
fn replayed(
    disk: &dyn Disk,
    dir: &Path,
    found: &UsableDatadir,
    tail: &LogTail,
    replay: &Replay,
) -> anyhow::Result<Copy> {
    let version = EtcdVersion::of(&replay.etcd).map_err(VersionError::refused)?;
    usable(dir, version.schema())?;
    let live = Live { tail: found.wal().tail.path.clone() };
    let volume = parent_of(&replay.copy.path);
    let bytes = live.bytes(dir).context("measure the data dir")?;
    space::check(&volume, bytes.saturating_add(space::needed(0, 0)), replay.copy.spare, space::free(&volume)?)?;
    tracing::info!(
        from = tail.consistent_index.0,
        to = tail.last_index.0,
        "the log goes on behind the backend: etcd replays it on a copy"
    );
    let copy = Copy(replay.copy.place(disk)?);
    let path = &copy.0.path;
    keep_copy(disk, dir, path, &live).context("copy the data dir")?;
    // etcd goes by its log; these are only what it listens and advertises.
    let member = MemberIdentity {
        name: "replay".to_owned(),
        peer_urls: vec!["http://localhost:2380".to_owned()],
        client_urls: vec!["http://localhost:2379".to_owned()],
        token: String::new(),
    };
    let etcd = LoopbackEtcd {
        program: &replay.etcd,
        version,
        data_dir: path,
        scratch: &scratch(path),
        backend_bytes: bytes,
        member: &member,
        lock: replay.lock.as_deref(),
        force_new_cluster: false,
        snapshot_count: NO_SNAPSHOT,
        // It is only read, and removed again.
        unsynced: true,
    };
    let mut reached = RaftIndex(0);
    for _ in 0..RUNS {
        // It serves a linearizable read once everything is applied, and writes it to the backend when it is stopped.
        etcd.asked(disk, async |_, _| Ok(())).context("replay the log with etcd")?;
        let after = usable(path, version.schema())?;
        reached = after.consistent_index();
        if reached >= tail.last_index && after.backend() == backend_of(path) {
            return Ok(copy);
        }
    }
    anyhow::bail!("etcd has replayed the log up to {} of {}", reached.0, tail.last_index.0)
}
