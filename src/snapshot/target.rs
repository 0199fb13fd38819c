//! Where snapshots are kept: a directory, or a bucket of an object storage.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use serde::Serialize;
use time::OffsetDateTime;

use super::bucket::Bucket;
use super::directory::Directory;
use super::name::{SnapshotName, expired};
use crate::disk::Disk;

/// A place for snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Target {
    /// A directory: a path.
    Directory(Directory),
    /// A bucket: `s3://BUCKET/PREFIX`.
    Bucket(Bucket),
}

/// A snapshot that is kept somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Its name.
    pub name: SnapshotName,
    /// Its length in bytes.
    pub bytes: u64,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("s3", rest)) => Bucket::parse(rest).map(Target::Bucket),
            Some((scheme, _)) => Err(format!(
                "{scheme}:// is no place for snapshots that is known here: name a directory, or s3://BUCKET"
            )),
            // A folder of that name is meant by nobody, and one that is can be written as ./s3:.
            None if text == "s3:" || text.starts_with("s3:/") => {
                Err("a bucket is written with two slashes: s3://BUCKET/PREFIX".to_owned())
            }
            None if text.is_empty() => Err("no place is named".to_owned()),
            None => Ok(Target::directory(text)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Directory(Directory(dir)) => write!(f, "{}", dir.display()),
            Target::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl Target {
    /// A directory.
    pub fn directory(dir: impl Into<PathBuf>) -> Self {
        Target::Directory(Directory(dir.into()))
    }

    /// The snapshots that are there, oldest first, those of each cluster together. None where there is no directory.
    ///
    /// # Errors
    /// The place cannot be read.
    pub async fn list(&self) -> anyhow::Result<Vec<Stored>> {
        let found = match self {
            Target::Directory(dir) => {
                let dir = dir.clone();
                let listed = tokio::task::spawn_blocking(move || dir.list()).await;
                listed.context("read the directory")?.map_err(anyhow::Error::from)
            }
            Target::Bucket(bucket) => bucket.list().await,
        };
        let mut found = found.with_context(|| format!("list the snapshots in {self}"))?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Where a snapshot is, as users name it.
    pub fn place_of(&self, name: &SnapshotName) -> String {
        match self {
            Target::Directory(dir) => dir.file(name).display().to_string(),
            Target::Bucket(bucket) => format!("{bucket}/{name}"),
        }
    }

    /// Removes a snapshot. One that is gone already is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove<D: Disk + Clone + 'static>(&self, disk: &D, name: &SnapshotName) -> anyhow::Result<()> {
        let removed = match self {
            Target::Directory(dir) => {
                let (dir, disk, name) = (dir.clone(), disk.clone(), name.clone());
                let removed = tokio::task::spawn_blocking(move || dir.remove(&disk, &name)).await;
                removed.context("remove a file")?.map_err(anyhow::Error::from)
            }
            Target::Bucket(bucket) => bucket.remove(name).await,
        };
        removed.with_context(|| format!("remove the old snapshot {}", self.place_of(name)))
    }

    /// Removes what is [`expired`] once `newest` is there; the names. What cannot be removed keeps no other from it.
    ///
    /// # Errors
    /// As [`Target::list`] and [`Target::remove`]; `removed` has those that are gone all the same.
    pub async fn prune<D: Disk + Clone + 'static>(
        &self,
        disk: &D,
        newest: &SnapshotName,
        keep: u32,
        now: OffsetDateTime,
        removed: &mut Vec<SnapshotName>,
    ) -> anyhow::Result<()> {
        let kept = self.list().await?.into_iter().map(|stored| stored.name);
        let mut first = Ok(());
        for name in expired(kept, newest, keep as usize, now) {
            match self.remove(disk, &name).await {
                Ok(()) => removed.push(name),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parsed() {
        assert_eq!("/backups".parse(), Ok(Target::directory("/backups")));
        assert_eq!("s3://backups/vc".parse::<Target>().unwrap().to_string(), "s3://backups/vc");
        assert!("".parse::<Target>().is_err());
        assert_eq!("./s3:/backups".parse(), Ok(Target::directory("./s3:/backups")));
        for other in ["ftp://x", "S3://backups", "s3://", "s3:/backups/vc", "s3:/", "s3:"] {
            assert!(other.parse::<Target>().is_err(), "{other}");
        }
        assert!("s3://backups/team@corp".parse::<Target>().is_ok());
        for secret in ["s3://id:s3cret@backups/vc", "s3://id:s3cret/x/y@backups/vc", "s3://s3cret@backups"] {
            let error = secret.parse::<Target>().unwrap_err();
            assert!(!error.contains("s3cret") && error.contains("credentials"), "{error}");
        }
    }
}
