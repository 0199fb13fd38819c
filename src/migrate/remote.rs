//! What is not on this machine: a snapshot in a bucket, which is fetched into a file beside the target, or
//! a running etcd, read by its own snapshot: Maintenance.Snapshot, streamed into a file beside the target.
//!
//! The stream ends with a checksum over what came before, so that one which broke off is never taken for a whole one. It
//! is the store as of one revision; what is written later is not in it, and the source is not fenced.
//!
//! A member that has lost its majority, or lags behind it, answers Maintenance.Snapshot as well. So a linearizable read of
//! it comes first: what was acknowledged before that is in the snapshot.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::backend::snapshot;
use super::backend::{BackendError, BackendStore};
use super::origin::Opening;
use super::progress::Stage;
use super::{fenced, space, ways};
use crate::crash_point;
use crate::crash_point::seconds;
use crate::disk::{Disk, RealDisk, at, parent_of};
use crate::etcd::client::{ClientError, EtcdEndpoint, SnapshotStream};
use crate::exit::{Exit, exit_of, refuse};
use crate::ids::Revision;
use crate::scratch::{Aside, Place};
use crate::snapshot::fetched::InBucket;

/// How long etcd may take to tell its state.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many bytes are written until it is looked whether there is room for more.
const LOOK: u64 = 16 << 20;

/// What alarms CORRUPT the source may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarms {
    /// None: its data differs from one member to the other, or another move has fenced it.
    None,
    /// Those of a fence that the caller has raised and looks after.
    OfTheFence,
}

/// What a snapshot may take in all, however little the source has.
const AT_LEAST: Duration = Duration::from_secs(3 * 60);
/// And for so many bytes of its backend a second more: slow disks and connections do better.
const SLOWEST: u64 = 4 << 20;
/// How often a snapshot may stop coming: whoever stops twice has a disk, or a way to it, that will not do.
const STALLS: u32 = 2;

/// How snapshots come from a source whose writers wait for one, over all attempts.
pub struct Pace {
    since: Instant,
    stalls: u32,
    spent: bool,
}

impl Pace {
    /// The first attempt begins.
    pub fn begin() -> Pace {
        Pace { since: Instant::now(), stalls: 0, spent: false }
    }

    /// Whether another attempt is no use.
    pub fn is_hopeless(&self) -> bool {
        self.spent || self.stalls >= STALLS
    }

    /// What `asked` gives, if it gives it while there is time for a snapshot of so many bytes.
    async fn within<T>(
        &mut self,
        bytes: u64,
        asked: impl Future<Output = Result<T, ClientError>>,
    ) -> anyhow::Result<T> {
        let allowed = allowed(bytes);
        let left = allowed.saturating_sub(self.since.elapsed());
        // Where the disk here is what is slow, there always is an answer.
        let answer = if left.is_zero() { None } else { tokio::time::timeout(left, asked).await.ok() };
        let Some(answer) = answer else {
            self.spent = true;
            anyhow::bail!("its snapshot has not come within {} s", allowed.as_secs());
        };
        self.stalls += u32::from(answer.as_ref().is_err_and(ClientError::is_stalled));
        Ok(answer?)
    }
}

fn allowed(bytes: u64) -> Duration {
    seconds("SYNCER_SNAPSHOT_SECONDS", AT_LEAST) + Duration::from_secs(bytes / SLOWEST)
}

/// A file that goes with its user.
struct Downloaded(Place);

impl Drop for Downloaded {
    fn drop(&mut self) {
        if let Err(error) = remove(&RealDisk, &self.0.path) {
            tracing::warn!(file = %self.0.path.display(), error = format!("{error:#}"), "a snapshot was not removed");
        }
    }
}

impl Downloaded {
    /// A place for one, at which nothing stands.
    fn begin(disk: &dyn Disk, copy: &Aside) -> anyhow::Result<Downloaded> {
        let place = copy.place(disk)?;
        remove(disk, &place.path)?;
        Ok(Downloaded(place))
    }
}

fn remove(disk: &dyn Disk, file: &Path) -> anyhow::Result<()> {
    disk.forget_file(file).context("remove a downloaded snapshot")
}

/// Takes a snapshot into a copy and opens it; the file is removed when the store is dropped. It has everything that was
/// acknowledged before this is called. With a `pace` it is given up where it takes too long in all.
///
/// # Errors
/// [`Exit::RefusedSource`]: it does not answer, has no quorum, sends less than a whole snapshot, or is corrupt by its own
/// word.
pub fn open(
    with: &Opening<'_>,
    etcd: &EtcdEndpoint,
    alarms: Alarms,
    pace: Option<&mut Pace>,
) -> anyhow::Result<BackendStore> {
    let kept = Downloaded::begin(with.disk, with.copy)?;
    let file = &kept.0.path;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let acknowledged =
        runtime.block_on(download(with, etcd, file, alarms, pace)).map_err(|error| refused(etcd, error))?;
    drop(runtime);
    with.meter.begin(Stage::Survey, 0);
    // One without a checksum has not come to its end.
    let mut store = snapshot::open(file, true)?;
    if !store.has_checksum() {
        return Err(refused(etcd, BackendError::CutShort.into()));
    }
    // Another member behind the same name may have sent it.
    if store.revision() < acknowledged {
        let what = format!("it is of revision {}, and {acknowledged} was acknowledged before", store.revision());
        return Err(refused(etcd, anyhow::anyhow!(what)));
    }
    store.name_and_keep(etcd.url.clone(), Box::new(kept));
    Ok(store)
}

/// Copies a snapshot in a bucket and opens the copy; the file is removed when the store is dropped.
///
/// # Errors
/// [`Exit::RefusedSource`] if it is not there, is none, or has no checksum and that is not skipped.
pub fn fetched(with: &Opening<'_>, place: &Path, skip_hash_check: bool) -> anyhow::Result<BackendStore> {
    let kept = Downloaded::begin(with.disk, with.copy)?;
    let put = InBucket::named(place)?.fetch(with.disk, &kept.0.path, with.meter)?;
    with.meter.begin(Stage::Survey, 0);
    let mut store = snapshot::open(&kept.0.path, skip_hash_check)?;
    store.name_and_keep(place.display().to_string(), Box::new(kept));
    Ok(store.put_there_at(put.unix_timestamp_nanos()))
}

/// The revision that its cluster has now.
pub fn revision(etcd: &EtcdEndpoint) -> anyhow::Result<Revision> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let asked = async { anyhow::Ok(ways::to_voter(etcd, PATIENCE).await?.0.linearizable_read(PATIENCE).await?) };
    runtime.block_on(asked).map_err(|error| refused(etcd, error))
}

fn refused(etcd: &EtcdEndpoint, error: anyhow::Error) -> anyhow::Error {
    if exit_of(&error) != Exit::Fault {
        return error;
    }
    refuse(
        Exit::RefusedSource,
        format!("no snapshot can be taken from {}: {error:#}", etcd.url),
        "check the URL, that it is an etcd's (kine gives none: stop it, and give sqlite:PATH), that it has a quorum \
         (`etcdctl endpoint status --cluster`), and --cacert, --cert and --key; then try again",
    )
}

/// The runtime runs nothing else, so that a slow disk holds up nobody but the stream. Gives a revision up to which
/// everything is in it.
async fn download(
    with: &Opening<'_>,
    etcd: &EtcdEndpoint,
    path: &Path,
    alarms: Alarms,
    mut pace: Option<&mut Pace>,
) -> anyhow::Result<Revision> {
    // How much it is, etcd tells.
    with.meter.begin_fetch(0);
    let spare = with.copy.spare;
    let (mut client, status) = ways::to_voter(etcd, ways::bounded(PATIENCE)).await?;
    fenced::votes(&etcd.url, &status)?;
    let acknowledged = client.linearizable_read(ways::bounded(PATIENCE)).await?;
    if alarms == Alarms::None {
        let members: Vec<_> = client.member_list(PATIENCE).await?.members.iter().map(|member| member.id).collect();
        fenced::sound(etcd, &members, &client.alarms(PATIENCE).await?, None)?;
    }
    let volume = parent_of(path);
    space::check(&volume, status.db_size, spare, space::free(&volume)?)?;
    with.meter.begin_fetch(status.db_size);
    let mut stream: SnapshotStream = match &mut pace {
        Some(pace) => pace.within(status.db_size, client.snapshot()).await?,
        None => client.snapshot().await?,
    };
    let mut file = with.disk.create(path, 0o600).map_err(|e| at(path, e))?;
    let mut length = 0;
    loop {
        let piece = match &mut pace {
            Some(pace) => pace.within(status.db_size, stream.next()).await?,
            None => stream.next().await?,
        };
        let Some(piece) = piece else { break };
        file.write_at(&piece, length).map_err(|e| at(path, e))?;
        let before = length;
        length += piece.len() as u64;
        with.meter.advance(0, piece.len() as u64);
        crash_point!("source-half-fetched");
        // Whoever is spared writes too.
        if spare > 0 && length / LOOK > before / LOOK {
            space::check(&volume, 0, spare, space::free(&volume)?)?;
        }
    }
    ensure!(length > 0, "it sent nothing");
    Ok(acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_snapshot_may_take_longer() {
        assert_eq!(allowed(0), AT_LEAST);
        assert_eq!(allowed(8 << 30), AT_LEAST + Duration::from_secs(2048));
    }

    #[tokio::test]
    async fn a_snapshot_that_stops_twice_or_takes_too_long_is_given_up() {
        let mut pace = Pace::begin();
        let answer = async |answer| answer;
        let broken = || ClientError::Malformed { what: "take a snapshot" };
        let stalled = || ClientError::Deadline { what: "take a snapshot", deadline: Duration::from_secs(60) };
        for _ in 0..5 {
            assert!(pace.within::<()>(0, answer(Err(broken()))).await.is_err() && !pace.is_hopeless());
        }
        assert!(pace.within::<()>(0, answer(Err(stalled()))).await.is_err() && !pace.is_hopeless());
        pace.within(0, answer(Ok(()))).await.expect("an answer");
        assert!(pace.within::<()>(0, answer(Err(stalled()))).await.is_err() && pace.is_hopeless());

        let Some(long_ago) = Instant::now().checked_sub(AT_LEAST) else { return };
        let mut pace = Pace { since: long_ago, ..Pace::begin() };
        let error = pace.within(0, answer(Ok(()))).await.expect_err("no time is left");
        assert!(pace.is_hopeless() && error.to_string().contains("within 180 s"), "{error}");
    }
}
