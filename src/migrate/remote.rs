//! A running etcd, read by its own snapshot: Maintenance.Snapshot, streamed into a file beside the target.
//!
//! The stream ends with a checksum over what came before, so that one which broke off is never taken for a whole one. It
//! is the store as of one revision; what is written later is not in it, and the source is not fenced.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::backend::snapshot;
use super::backend::{BackendError, BackendStore};
use super::space;
use crate::disk::{Disk, RealDisk, at, parent_of};
use crate::exit::{Exit, refuse};

/// How long a connection, an answer or the next piece may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where it serves, and with what it is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub url: String,
    /// The CA of its certificate.
    pub cacert: Option<PathBuf>,
    /// The client's certificate.
    pub cert: Option<PathBuf>,
    /// And its key.
    pub key: Option<PathBuf>,
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

/// Takes a snapshot into `file` and opens it; the file is removed when the store is dropped.
pub fn open(disk: &dyn Disk, remote: &Remote, file: &Path) -> anyhow::Result<BackendStore> {
    remove(disk, file)?;
    let kept = Downloaded(file.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(download(disk, remote, file)).map_err(|error| refused(remote, error))?;
    drop(runtime);
    let mut store = snapshot::open(file)?;
    if !store.has_checksum() {
        return Err(refused(remote, BackendError::CutShort.into()));
    }
    store.name_and_keep(remote.url.clone(), Box::new(kept));
    Ok(store)
}

fn refused(remote: &Remote, error: anyhow::Error) -> anyhow::Error {
    if crate::exit::exit_of(&error) != Exit::Fault {
        return error;
    }
    let what = format!("no snapshot can be taken from {}: {error:#}", remote.url);
    refuse(
        Exit::RefusedSource,
        what,
        "check the URL, that it is an etcd's (kine gives none: stop it, and give sqlite:PATH), and --cacert, --cert and \
         --key; then try again",
    )
}

async fn download(disk: &dyn Disk, remote: &Remote, path: &Path) -> anyhow::Result<()> {
    let options = ConnectOptions::new().with_connect_timeout(PATIENCE);
    let options = match tls(remote)? {
        Some(tls) => options.with_tls(tls),
        None => options,
    };
    let mut client = timeout(Client::connect([&remote.url], Some(options))).await.context("connect")?;
    let status = timeout(client.status()).await.context("ask for its status")?;
    let volume = parent_of(path);
    space::check(&volume, u64::try_from(status.db_size()).unwrap_or_default(), space::free(&volume)?)?;
    let mut stream = timeout(client.maintenance_client().snapshot()).await.context("ask for a snapshot")?;
    let mut file = disk.create(path, 0o600).map_err(|e| at(path, e))?;
    let mut length = 0;
    while let Some(piece) = timeout(stream.message()).await.context("read the snapshot")? {
        file.write_at(piece.blob(), length).map_err(|e| at(path, e))?;
        length += piece.blob().len() as u64;
    }
    ensure!(length > 0, "it sent nothing");
    Ok(())
}

fn tls(remote: &Remote) -> anyhow::Result<Option<TlsOptions>> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| anyhow::Error::from(at(path, e)));
    if !remote.url.starts_with("https://") {
        return Ok(None);
    }
    let mut tls = TlsOptions::new();
    if let Some(ca) = &remote.cacert {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let (Some(cert), Some(key)) = (&remote.cert, &remote.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(Some(tls))
}

async fn timeout<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> anyhow::Result<T> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => Ok(result?),
        Err(_) => bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}
