//! A snapshot as a local file, wherever it is kept: its pages are read in an order that a stream does not have.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::runtime::Runtime;

use super::bucket::Bucket;
use crate::disk::{Disk, at};
use crate::exit::{Exit, refuse};
use crate::migrate::progress::{Meter, Show, shown};
use crate::settings::provenance::without_user;

/// A snapshot that can be read; a copy of one in a bucket is removed with this value.
pub struct Fetched {
    path: PathBuf,
    copied: bool,
}

impl Fetched {
    /// The snapshot at `place`, a path or `s3://BUCKET/PREFIX/NAME`. One in a bucket is copied to the directory `scratch`, and
    /// how far that is, shown.
    ///
    /// # Errors
    /// As [`Bucket::fetch`].
    pub fn from(place: &Path, disk: &dyn Disk, scratch: &Path, runtime: &Runtime) -> anyhow::Result<Self> {
        let Some(rest) = place.to_str().and_then(|place| place.strip_prefix("s3://")) else {
            return Ok(Fetched { path: place.to_owned(), copied: false });
        };
        let parsed = Bucket::parse(rest).map(Bucket::split);
        let (bucket, name) = match parsed {
            Ok((bucket, Some(name))) => (bucket, name),
            Ok((bucket, None)) => return Err(misnamed(place, &format!("{bucket} is a bucket"))),
            Err(what) => return Err(misnamed(place, &what)),
        };
        let path = scratch.join(format!(".syncer-{}-{}", std::process::id(), name));
        disk.forget_file(&path).context("remove what an earlier copy left")?;
        let copied = Fetched { path, copied: true };
        let meter = Meter::default();
        // How much it is, the bucket tells.
        meter.begin_fetch(0);
        shown(Show::Auto, &meter, || runtime.block_on(bucket.fetch(disk, &name, &copied.path, &meter)))?;
        Ok(copied)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn misnamed(place: &Path, what: &str) -> anyhow::Error {
    let remedy = "name a snapshot: s3://BUCKET/PREFIX/NAME.db";
    refuse(Exit::Usage, format!("{}: {what}", without_user(&place.display().to_string())), remedy)
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if self.copied
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("the copy of a snapshot could not be removed: {}", at(&self.path, error));
        }
    }
}
