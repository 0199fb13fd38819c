//! A snapshot in a bucket, `s3://BUCKET/PREFIX/NAME`.

use std::path::{Path, PathBuf};

use super::super::remote;
use super::{Journal, Opening, Origin, Source, Store};
use crate::snapshot::fetched::InBucket;

#[derive(Debug)]
struct Bucket {
    place: PathBuf,
    skip_hash_check: bool,
}

impl Origin {
    /// A snapshot in a bucket. It is fetched when it is opened, and taken as [`Origin::snapshot`] takes a file.
    ///
    /// # Errors
    /// The place names none.
    pub fn bucket(place: PathBuf, skip_hash_check: bool) -> anyhow::Result<Origin> {
        InBucket::named(&place)?;
        Ok(Origin::of(Bucket { place, skip_hash_check }))
    }
}

impl Store for Bucket {
    fn path(&self) -> &Path {
        &self.place
    }

    fn open(&self, with: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(remote::fetched(with, &self.place, self.skip_hash_check)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        // One that was put there since is another, though it may have the same name and length.
        let there = InBucket::named(&self.place)?.look()?;
        Ok(there.is_some_and(|(bytes, put)| {
            bytes == journal.source.bytes && put.unix_timestamp_nanos() == journal.source.modified
        }))
    }
}
