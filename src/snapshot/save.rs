//! Taking a snapshot of a running member: streamed to its place, checked, and only then given its name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard, mpsc};

use super::bucket::{Bucket, NameTaken};
use super::check::{StoreContent, content};
use super::digest::SnapshotDigest;
use super::directory::{Directory, Upload};
use super::name::SnapshotName;
use super::target::Target;
use crate::crash_point;
use crate::disk::Disk;
use crate::etcd::client::{Alarm, ClientError, EtcdClient, SnapshotStream};
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::migrate::progress::{Meter, Stage};
use crate::migrate::space;

/// Pieces between etcd and the disk; etcd sends 64 KiB at a time.
const IN_FLIGHT: usize = 16;

/// How often another save may take a name that was free when this one began.
const AT_ONCE: u32 = 3;

/// What takes so long to be on its disk is told of.
const SLOW: Duration = Duration::from_secs(5 * 60);

/// For one answer of etcd.
pub const ANSWER: Duration = Duration::from_secs(10);

/// What is left free on the volume at least, in bytes: etcd's own log and backend may grow on the same one meanwhile.
pub const LEFT_FREE: u64 = 256 << 20;

/// A snapshot that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct Saved {
    /// Its name.
    pub name: SnapshotName,
    /// Its length in bytes, checksum included.
    pub bytes: u64,
    /// What is in it; not known of one in a bucket, which is not read again.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub content: Option<StoreContent>,
}

/// What is to be saved.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Its name, or the next one is if that is taken.
    pub name: &'a SnapshotName,
    /// Size of the member's backend, in bytes.
    pub size: u64,
    /// What was acknowledged before. One in a bucket is not read again, and not compared.
    pub least: Revision,
    /// How long the place may take nothing: it hangs.
    pub patience: Duration,
}

/// What a save holds.
#[derive(Debug, Default)]
pub struct Held<'a> {
    /// Held while etcd sends, each time that it does.
    pub backend: Option<&'a Mutex<()>>,
    /// The same, held already.
    pub reading: Option<MutexGuard<'a, ()>>,
    /// Until nobody writes any more: longer than the save itself, where its place hangs.
    pub writing: Arc<()>,
}

/// Takes a snapshot of the member that `etcd` asks, and keeps it in `target`.
///
/// # Errors
/// Nothing is left in the target then; what cannot be removed is removed by a later save. etcd's end of the stream, a
/// full disk, a snapshot that is not whole when it has arrived, one of a member that lacks what was acknowledged, a place
/// that hangs.
pub async fn save<D: Disk + Clone + 'static>(
    disk: &D,
    etcd: &mut EtcdClient,
    target: &Target,
    wanted: &Wanted<'_>,
    mut held: Held<'_>,
    meter: &Meter,
) -> anyhow::Result<Saved> {
    meter.begin_save(wanted.size);
    for again in 0.. {
        let reading = match (held.reading.take(), held.backend) {
            (None, Some(backend)) => Some(backend.lock().await),
            (reading, _) => reading,
        };
        let stream = etcd.snapshot().await.context("ask etcd for a snapshot")?;
        let source = Source { stream, _reading: reading };
        let saved = match target {
            Target::Directory(dir) => into_directory(disk, source, dir, wanted, Arc::clone(&held.writing), meter).await,
            Target::Bucket(bucket) => into_bucket(source, bucket, wanted.name, meter).await,
        };
        match saved {
            Err(error) if error.is::<NameTaken>() && again < AT_ONCE => {
                tracing::info!(%target, "{error:#}; it is taken again");
                meter.begin_save(wanted.size);
            }
            saved => return saved,
        }
    }
    bail!("no snapshot was taken")
}

/// Whether etcd has found that its members differ: what is taken then may be damaged, and takes no older snapshot's place.
pub async fn corrupt(etcd: &mut EtcdClient) -> anyhow::Result<bool> {
    let alarms = etcd.alarms(ANSWER).await.context("ask etcd for its alarms")?;
    Ok(alarms.iter().any(|(_, alarm)| *alarm == Alarm::Corrupt))
}

/// A snapshot on its way, and what is held meanwhile. While it is open etcd frees nothing of its backend.
struct Source<'a> {
    stream: SnapshotStream,
    _reading: Option<MutexGuard<'a, ()>>,
}

async fn into_bucket(
    mut source: Source<'_>,
    bucket: &Bucket,
    name: &SnapshotName,
    meter: &Meter,
) -> anyhow::Result<Saved> {
    let mut upload = bucket.begin(name).await?;
    let received = async {
        while let Some(piece) = source.stream.next().await.context("receive the snapshot from etcd")? {
            upload.write(&piece).await?;
            meter.advance(0, piece.len() as u64);
            crash_point!("snapshot-half-written");
        }
        anyhow::Ok(())
    };
    if let Err(error) = received.await {
        upload.abort().await;
        return Err(error);
    }
    drop(source);
    let name = upload.name().clone();
    let bytes = upload.commit().await.with_context(|| format!("keep the snapshot {name} in {bucket}"))?;
    Ok(Saved { name, bytes, content: None })
}

async fn into_directory<D: Disk + Clone + 'static>(
    disk: &D,
    mut source: Source<'_>,
    dir: &Directory,
    wanted: &Wanted<'_>,
    writing: Arc<()>,
    meter: &Meter,
) -> anyhow::Result<Saved> {
    let (pieces, arriving) = mpsc::channel(IN_FLIGHT);
    // Disks block, and whoever calls this looks after more than a snapshot.
    let (disk, place, name, size, least) = (disk.clone(), dir.clone(), wanted.name.clone(), wanted.size, wanted.least);
    let mut written = tokio::task::spawn_blocking(move || {
        let _until_the_end = writing;
        let upload = begun(&disk, &place, &name, size)?;
        written(&disk, upload, arriving, least)
            .with_context(|| format!("keep the snapshot {name} in {}", place.0.display()))
    });
    let handed = handed_over(async || source.stream.next().await, &pieces, wanted.patience, meter).await;
    drop((source, pieces));
    if let Ok(Handed::Stuck) = handed {
        // What hangs is not waited for. What it leaves is removed by a later save.
        bail!("{} hangs: it has taken nothing for {} s", dir.0.display(), wanted.patience.as_secs());
    }
    meter.begin(Stage::Verify, 0);
    let written = loop {
        match tokio::time::timeout(SLOW, &mut written).await {
            Ok(written) => break written,
            // It may be slow: it is made durable and read back, and nothing tells how far that is.
            Err(_) => {
                tracing::warn!(place = %dir.0.display(), "a snapshot has arrived, and is still not durable and read back")
            }
        }
    };
    handed.context("receive the snapshot from etcd")?;
    let (name, bytes, content) = written.context("write the snapshot")??;
    Ok(Saved { name, bytes, content: Some(content) })
}

/// How a stream came to its end.
#[derive(Debug, PartialEq, Eq)]
enum Handed {
    /// All of it was handed over, or the writer has ended: its own word counts.
    Over,
    /// The writer takes nothing.
    Stuck,
}

async fn handed_over(
    mut next: impl AsyncFnMut() -> Result<Option<Vec<u8>>, ClientError>,
    pieces: &mpsc::Sender<Piece>,
    patience: Duration,
    meter: &Meter,
) -> Result<Handed, ClientError> {
    loop {
        let piece = match next().await? {
            Some(bytes) => {
                meter.advance(0, bytes.len() as u64);
                Piece::Bytes(bytes)
            }
            None => Piece::End,
        };
        let last = matches!(piece, Piece::End);
        match tokio::time::timeout(patience, pieces.send(piece)).await {
            Err(_) => return Ok(Handed::Stuck),
            Ok(Ok(())) if !last => {}
            Ok(_) => return Ok(Handed::Over),
        }
    }
}

fn begun(disk: &dyn Disk, dir: &Directory, name: &SnapshotName, size: u64) -> anyhow::Result<Upload> {
    let upload = dir.begin(disk, name).map_err(|e| not_begun(e, dir))?;
    if let Err(refusal) = room(&dir.0, size, space::free(&dir.0)?) {
        upload.abort(disk).context("remove what was begun")?;
        return Err(refusal);
    }
    Ok(upload)
}

/// Refuses if a snapshot of `size` bytes would leave too little of `free`.
pub(super) fn room(dir: &Path, size: u64, free: u64) -> anyhow::Result<()> {
    if size.saturating_add(LEFT_FREE) <= free {
        return Ok(());
    }
    let (size, free, left) = (size.div_ceil(1 << 20), free >> 20, LEFT_FREE >> 20);
    Err(refuse(
        Exit::RefusedSpace,
        format!(
            "the volume of {} has {free} MiB free; a snapshot needs {size} MiB, and {left} MiB are to be left",
            dir.display()
        ),
        "keep fewer, enlarge the volume, or name a directory on another one",
    ))
}

enum Piece {
    Bytes(Vec<u8>),
    /// etcd has sent all.
    End,
}

pub(super) fn not_begun(error: std::io::Error, dir: &Directory) -> anyhow::Error {
    let what = format!("a snapshot cannot be kept in {}: {error}", dir.0.display());
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            refuse(Exit::RefusedSpace, what, "make room, or name another place")
        }
        _ => refuse(Exit::Usage, what, "name a directory that can be written to"),
    }
}

/// Writes what arrives; checks it and gives it its name if all has arrived.
fn written(
    disk: &dyn Disk,
    mut upload: Upload,
    mut arriving: mpsc::Receiver<Piece>,
    least: Revision,
) -> anyhow::Result<(SnapshotName, u64, StoreContent)> {
    let checked = take(&mut upload, &mut arriving).and_then(|taken| enough(least, taken));
    match checked {
        Ok((bytes, content)) => {
            crash_point!("snapshot-before-commit");
            let name = upload.commit(disk).context("give it its name")?;
            crash_point!("snapshot-committed");
            Ok((name, bytes, content))
        }
        Err(error) => {
            if let Err(left) = upload.abort(disk) {
                tracing::warn!("what was written of a snapshot could not be removed: {left}");
            }
            Err(error)
        }
    }
}

/// Behind the address of a Service the snapshot may come from another member than the one that reached the others.
fn enough(least: Revision, taken: (u64, StoreContent)) -> anyhow::Result<(u64, StoreContent)> {
    let has = taken.1.revision;
    if has >= least {
        return Ok(taken);
    }
    Err(refuse(
        Exit::RefusedSource,
        format!(
            "another member than the one that was asked has sent the snapshot: it is at revision {has}, and {least} was acknowledged"
        ),
        "give the URL of one member rather than of a Service, or try again",
    ))
}

fn take(upload: &mut Upload, arriving: &mut mpsc::Receiver<Piece>) -> anyhow::Result<(u64, StoreContent)> {
    let mut digest = SnapshotDigest::default();
    let mut whole = false;
    while let Some(piece) = arriving.blocking_recv() {
        match piece {
            Piece::Bytes(bytes) => {
                // Another save may fill the same volume, etcd's own most often.
                if upload.write(&bytes)? {
                    room(upload.directory(), 0, space::free(upload.directory())?)?;
                }
                digest.update(&bytes);
                crash_point!("snapshot-half-written");
            }
            Piece::End => whole = true,
        }
    }
    ensure!(whole, "etcd's stream broke off after {} bytes", digest.bytes());
    let bytes = digest.bytes();
    digest.finish().context("check what etcd has sent")?;
    // The checksum of what was sent is right; what was written is read back for what is in it, while the disk is busy with
    // it.
    let path = upload.path().to_owned();
    let (synced, content) = std::thread::scope(|scope| {
        let content = scope.spawn(|| content(&path));
        (upload.sync(), content.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    synced?;
    Ok((bytes, content.map_err(|e| e.refused("what was written"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    async fn handed(of: usize, pieces: &mpsc::Sender<Piece>) -> Handed {
        let mut left = of;
        let next = async || {
            let piece = (left > 0).then(|| vec![1; 10]);
            left = left.saturating_sub(1);
            Ok(piece)
        };
        handed_over(next, pieces, Duration::from_millis(20), &Meter::default()).await.unwrap()
    }

    #[tokio::test]
    async fn a_place_that_takes_nothing_holds_up_nobody() {
        let (pieces, arriving) = mpsc::channel(IN_FLIGHT);
        assert_eq!(handed(IN_FLIGHT - 1, &pieces).await, Handed::Over, "all of it, and the end");
        assert_eq!(handed(1, &pieces).await, Handed::Stuck);
        drop(arriving);
        assert_eq!(handed(1, &pieces).await, Handed::Over, "the writer has ended");
    }

    #[test]
    fn a_snapshot_leaves_etcd_room_to_go_on() {
        let dir = Path::new("/data/snapshots");
        assert!(room(dir, 1 << 30, (1 << 30) + LEFT_FREE).is_ok());
        let error = room(dir, 1 << 30, 1 << 30).unwrap_err();
        assert_eq!(exit_of(&error), Exit::RefusedSpace);
        assert!(error.to_string().contains("/data/snapshots has 1024 MiB free; a snapshot needs 1024 MiB"), "{error}");
        assert!(room(dir, u64::MAX, u64::MAX - 1).is_err());
    }
}
