//! A snapshot as a local file, wherever it is kept: its pages are read in an order that a stream does not have.

use std::path::{Path, PathBuf};

use anyhow::Context;
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use super::bucket::Bucket;
use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::migrate::progress::{Meter, Show, shown};
use crate::scratch::Scratch;
use crate::settings::provenance::without_user;

/// How a place in a bucket begins.
const SCHEME: &str = "s3://";
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
        if !is_in_bucket(place) {
            return Ok(Fetched { path: place.to_owned(), _copied: None });
        }
        let InBucket { bucket, name } = InBucket::named(place)?;
        let what = || format!("copy {name} to {}", scratch.display());
        let copied = Scratch::make(disk, scratch, FETCHED).with_context(what)?;
        let path = copied.path(&name);
        let meter = Meter::default();
        shown(Show::Auto, &meter, || runtime.block_on(bucket.fetch(disk, &name, &path, &meter)))?;
        Ok(Fetched { path, _copied: Some(copied) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether this names something in a bucket rather than a path.
pub fn is_in_bucket(place: &Path) -> bool {
    place.to_str().is_some_and(|place| place.starts_with(SCHEME))
}

/// A snapshot in a bucket.
pub struct InBucket {
    bucket: Bucket,
    name: String,
}

impl InBucket {
    /// The one at `s3://BUCKET/PREFIX/NAME`.
    ///
    /// # Errors
    /// [`Exit::Usage`]: that names none.
    pub fn named(place: &Path) -> anyhow::Result<InBucket> {
        let text = place.to_string_lossy();
        match Bucket::parse(text.strip_prefix(SCHEME).unwrap_or_default()).map(Bucket::split) {
            Ok((bucket, Some(name))) => Ok(InBucket { bucket, name }),
            Ok((bucket, None)) => Err(misnamed(place, &format!("{bucket} is a bucket"))),
            Err(what) => Err(misnamed(place, &what)),
        }
    }

    /// Copies it to the new file `to`, as `meter` tells; when it was put there.
    ///
    /// # Errors
    /// As [`Bucket::fetch`].
    pub fn fetch(&self, disk: &dyn Disk, to: &Path, meter: &Meter) -> anyhow::Result<OffsetDateTime> {
        waited_for(self.bucket.fetch(disk, &self.name, to, meter))
    }

    /// Its length, and when it was put there; `None` if it is not there.
    ///
    /// # Errors
    /// As [`Bucket::list`].
    pub fn look(&self) -> anyhow::Result<Option<(u64, OffsetDateTime)>> {
        waited_for(self.bucket.look(&self.name))
    }
}

/// Waits on a journey's own thread.
fn waited_for<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(asked)
}

fn misnamed(place: &Path, what: &str) -> anyhow::Error {
    let remedy = "name a snapshot: s3://BUCKET/PREFIX/NAME.db";
    refuse(Exit::Usage, format!("{}: {what}", without_user(&place.display().to_string())), remedy)
}
