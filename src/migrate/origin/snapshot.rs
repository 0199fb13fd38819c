//! A file with etcd's backend, as `etcdctl snapshot save` writes it.

use std::path::{Path, PathBuf};

use super::super::backend::snapshot;
use super::{Journal, Kind, Opening, Origin, Source, Store, absolute, is_as_noted};
use crate::snapshot::fetched::is_in_bucket;

pub(super) const KIND: Kind = Kind {
    name: "snapshot",
    at: |place, _| match is_in_bucket(Path::new(place)) {
        true => Origin::bucket(place.into()),
        false => Ok(Origin::snapshot(absolute(place)?)),
    },
};

#[derive(Debug)]
struct Snapshot(PathBuf);

impl Origin {
    /// A file with etcd's backend.
    pub fn snapshot(path: PathBuf) -> Origin {
        Origin::of(Snapshot(path))
    }
}

impl Store for Snapshot {
    fn path(&self) -> &Path {
        &self.0
    }

    fn open(&self, _: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(snapshot::open(&self.0)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        Ok(is_as_noted(&self.0, journal)?)
    }
}
