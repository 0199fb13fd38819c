//! A snapshot as a local file, wherever it is kept: its pages are read in an order that a stream does not have.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::runtime::Runtime;

use super::bucket::Bucket;
use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::migrate::progress::{Meter, Show, shown};
use crate::scratch::Scratch;
use crate::settings::provenance::without_user;

/// The beginning of the name of the folder that a copy is in.
const FETCHED: &str = ".syncer-fetched";

/// A snapshot that can be read; a copy of one in a bucket is removed with this value.
pub struct Fetched {
    path: PathBuf,
    _copied: Option<Scratch>,
}

impl Fetched {
    /// The snapshot at `place`, a path or `s3://BUCKET/PREFIX/NAME`. One in a bucket is copied to the directory `scratch`, and
    /// how far that is, shown. What killed processes have left there of such is removed first.
    ///
    /// # Errors
    /// As [`Bucket::fetch`].
    pub fn from(place: &Path, disk: &dyn Disk, scratch: &Path, runtime: &Runtime) -> anyhow::Result<Self> {
        let Some(rest) = place.to_str().and_then(|place| place.strip_prefix("s3://")) else {
            return Ok(Fetched { path: place.to_owned(), _copied: None });
        };
        let parsed = Bucket::parse(rest).map(Bucket::split);
        let (bucket, name) = match parsed {
            Ok((bucket, Some(name))) => (bucket, name),
            Ok((bucket, None)) => return Err(misnamed(place, &format!("{bucket} is a bucket"))),
            Err(what) => return Err(misnamed(place, &what)),
        };
        let what = || format!("copy {name} to {}", scratch.display());
        let copied = Scratch::make(disk, scratch, FETCHED).with_context(what)?;
        let path = copied.path(&name);
        let meter = Meter::default();
        // How much it is, the bucket tells.
        meter.begin_fetch(0);
        shown(Show::Auto, &meter, || runtime.block_on(bucket.fetch(disk, &name, &path, &meter)))?;
        Ok(Fetched { path, _copied: Some(copied) })
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
