//! A running etcd, read by its own snapshot: Maintenance.Snapshot, streamed into a file beside the target.
//!
//! The stream ends with a checksum over what came before, so that one which broke off is never taken for a whole one. It
//! is the store as of one revision; what is written later is not in it, and the source is not fenced.
//!
//! A member that has lost its majority, or lags behind it, answers Maintenance.Snapshot as well. So a linearizable read of
//! it comes first: what was acknowledged before that is in the snapshot.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::backend::snapshot;
use super::backend::{BackendError, BackendStore};
use super::{fenced, space, ways};
use crate::disk::{Disk, RealDisk, at, parent_of};
use crate::etcd::client::{EtcdClient, EtcdEndpoint};
use crate::exit::{Exit, exit_of, refuse};
use crate::ids::Revision;

/// How long etcd may take to tell its state.
const PATIENCE: Duration = Duration::from_secs(30);

/// What alarms CORRUPT the source may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarms {
    /// None: its data differs from one member to the other, or another move has fenced it.
    None,
    /// Those of a fence that the caller has raised and looks after.
    OfTheFence,
}

/// A file that goes with its user.
struct Downloaded(PathBuf);

impl Drop for Downloaded {
    fn drop(&mut self) {
        if let Err(error) = remove(&RealDisk, &self.0) {
            tracing::warn!(file = %self.0.display(), error = format!("{error:#}"), "a snapshot was not removed");
        }
    }
}

fn remove(disk: &dyn Disk, file: &Path) -> anyhow::Result<()> {
    disk.forget_file(file).context("remove a downloaded snapshot")
}

/// Takes a snapshot into `file` and opens it; the file is removed when the store is dropped. It has everything that was
/// acknowledged before this is called.
///
/// # Errors
/// [`Exit::RefusedSource`]: it does not answer, has no quorum, sends less than a whole snapshot, or is corrupt by its own
/// word.
pub fn open(disk: &dyn Disk, etcd: &EtcdEndpoint, file: &Path, alarms: Alarms) -> anyhow::Result<BackendStore> {
    remove(disk, file)?;
    let kept = Downloaded(file.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let acknowledged = runtime.block_on(download(disk, etcd, file, alarms)).map_err(|error| refused(etcd, error))?;
    drop(runtime);
    let mut store = snapshot::open(file)?;
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

/// The revision that its cluster has now.
pub fn revision(etcd: &EtcdEndpoint) -> anyhow::Result<Revision> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let asked = async { anyhow::Ok(EtcdClient::connect(etcd).await?.linearizable_read(PATIENCE).await?) };
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
async fn download(disk: &dyn Disk, etcd: &EtcdEndpoint, path: &Path, alarms: Alarms) -> anyhow::Result<Revision> {
    let mut client = EtcdClient::connect(etcd).await?;
    let acknowledged = client.linearizable_read(ways::bounded(PATIENCE)).await?;
    if alarms == Alarms::None {
        let members: Vec<_> = client.member_list(PATIENCE).await?.members.iter().map(|member| member.id).collect();
        fenced::sound(etcd, &members, &client.alarms(PATIENCE).await?, None)?;
    }
    let status = client.status(PATIENCE).await?;
    let volume = parent_of(path);
    space::check(&volume, status.db_size, space::free(&volume)?)?;
    let mut stream = client.snapshot().await?;
    let mut file = disk.create(path, 0o600).map_err(|e| at(path, e))?;
    let mut length = 0;
    while let Some(piece) = stream.next().await? {
        file.write_at(&piece, length).map_err(|e| at(path, e))?;
        length += piece.len() as u64;
    }
    ensure!(length > 0, "it sent nothing");
    Ok(acknowledged)
}
