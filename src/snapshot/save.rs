//! Taking a snapshot of a running member: streamed to its place, checked, and only then given its name.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio::sync::mpsc;

use super::check::{CheckedSnapshot, content};
use super::digest::SnapshotDigest;
use super::name::SnapshotName;
use super::target::{Target, Upload};
use crate::crash_point;
use crate::disk::{Disk, parent_of};
use crate::etcd::client::EtcdClient;
use crate::exit::{Exit, refuse};
use crate::migrate::progress::{Meter, Stage};
use crate::migrate::space;

/// Pieces between etcd and the disk; etcd sends 64 KiB at a time.
const IN_FLIGHT: usize = 16;

/// What is left free on the volume at least, in bytes: etcd's own log and backend may grow on the same one meanwhile.
const LEFT_FREE: u64 = 256 << 20;

/// A snapshot that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct Saved {
    /// Its name.
    pub name: SnapshotName,
    /// What is in it.
    #[serde(flatten)]
    pub content: CheckedSnapshot,
}

/// Takes a snapshot of the member that `etcd` asks, whose backend has `size` bytes, and keeps it in `target` as `name`, or as the next that is not taken.
///
/// # Errors
/// Nothing is left in the target then; what cannot be removed is removed by the next save. etcd's end of the stream, a
/// full disk, a snapshot that is not whole when it has arrived.
pub async fn save<D: Disk + Clone + 'static>(
    disk: &D,
    etcd: &mut EtcdClient,
    target: &Target,
    name: &SnapshotName,
    size: u64,
    meter: &std::sync::Arc<Meter>,
) -> anyhow::Result<Saved> {
    meter.begin(Stage::Copy, 0);
    let mut stream = etcd.snapshot().await.context("ask etcd for a snapshot")?;
    let mut name = name.clone();
    let upload = loop {
        match target.begin(disk, &name) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && target.file(&name).exists() => {
                name = name.later()
            }
            begun => break begun.map_err(|e| not_begun(e, target))?,
        }
    };
    if let Err(refusal) = room(&parent_of(upload.path()), size, space::free(&parent_of(upload.path()))?) {
        upload.abort(disk).context("remove what was begun")?;
        return Err(refusal);
    }
    let (pieces, arriving) = mpsc::channel(IN_FLIGHT);
    let (disk, counted) = (disk.clone(), meter.clone());
    // Disks block, and whoever calls this looks after more than a snapshot.
    let writing = tokio::task::spawn_blocking(move || written(&disk, upload, arriving, &counted));
    let received = async {
        while let Some(piece) = stream.next().await? {
            // The writer is gone only when it has failed: its own word counts.
            if pieces.send(Piece::Bytes(piece)).await.is_err() {
                return Ok(());
            }
        }
        let _ = pieces.send(Piece::End).await;
        anyhow::Ok(())
    };
    let received = received.await;
    drop(pieces);
    let written = writing.await.context("write the snapshot")?;
    received.context("receive the snapshot from etcd")?;
    let content = written.with_context(|| format!("keep the snapshot {name} in {target}"))?;
    Ok(Saved { name, content })
}

/// Refuses if a snapshot of `size` bytes would leave too little of `free`.
fn room(dir: &Path, size: u64, free: u64) -> anyhow::Result<()> {
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

fn not_begun(error: std::io::Error, target: &Target) -> anyhow::Error {
    let what = format!("a snapshot cannot be kept in {target}: {error}");
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
    meter: &Meter,
) -> anyhow::Result<CheckedSnapshot> {
    let checked = take(&mut upload, &mut arriving, meter);
    match checked {
        Ok(content) => {
            crash_point!("snapshot-before-commit");
            upload.commit(disk).context("give it its name")?;
            crash_point!("snapshot-committed");
            Ok(content)
        }
        Err(error) => {
            if let Err(left) = upload.abort(disk) {
                tracing::warn!("what was written of a snapshot could not be removed: {left}");
            }
            Err(error)
        }
    }
}

fn take(upload: &mut Upload, arriving: &mut mpsc::Receiver<Piece>, meter: &Meter) -> anyhow::Result<CheckedSnapshot> {
    let mut digest = SnapshotDigest::default();
    let mut whole = false;
    while let Some(piece) = arriving.blocking_recv() {
        match piece {
            Piece::Bytes(bytes) => {
                upload.write(&bytes)?;
                digest.update(&bytes);
                meter.advance(0, bytes.len() as u64);
                crash_point!("snapshot-half-written");
            }
            Piece::End => whole = true,
        }
    }
    ensure!(whole, "etcd's stream broke off after {} bytes", digest.bytes());
    let bytes = digest.bytes();
    digest.finish().context("check what etcd has sent")?;
    upload.sync()?;
    meter.begin(Stage::Verify, 0);
    // The checksum of what was sent is right; what was written is read back for what is in it.
    let content = content(upload.path(), meter).map_err(|e| e.refused("what was written"))?;
    Ok(CheckedSnapshot { bytes, checksum: true, ..content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

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
