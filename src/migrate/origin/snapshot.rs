//! A file with etcd's backend, as `etcdctl snapshot save` writes it.

use std::path::{Path, PathBuf};

use super::super::backend::snapshot;
use super::{Journal, Kind, Opening, Origin, Source, Store, absolute, is_as_noted};
use crate::snapshot::fetched::is_in_bucket;

pub(super) const KIND: Kind = Kind {
    name: "snapshot",
    place: "PATH",
    help: "a file that `etcdctl snapshot save` or `syncer snapshot save` wrote, or snapshot:s3://BUCKET/PREFIX/NAME, which is \
           fetched beside the target for that time (endpoint, region and credentials as for `syncer snapshot`)",
    at: |place, flags| match is_in_bucket(Path::new(place)) {
        true => Origin::bucket(place.into(), flags.skip_hash_check),
        false => Ok(Origin::snapshot(absolute(place)?, flags.skip_hash_check)),
    },
};

#[derive(Debug)]
struct Snapshot {
    path: PathBuf,
    skip_hash_check: bool,
}

impl Origin {
    /// A file with etcd's backend. One without a checksum at its end is refused unless that is skipped.
    pub fn snapshot(path: PathBuf, skip_hash_check: bool) -> Origin {
        Origin::of(Snapshot { path, skip_hash_check })
    }
}

impl Store for Snapshot {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, _: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(snapshot::open(&self.path, self.skip_hash_check)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        Ok(is_as_noted(&self.path, journal)?)
    }
}
