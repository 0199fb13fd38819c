//! The data dir of a stopped etcd.

use std::path::{Path, PathBuf};

use super::super::backend::datadir::{self, Replay};
use super::{Journal, Kind, Opening, Origin, Source, Store, absolute, is_as_noted};
use crate::datadir::writer::backend_of;

pub(super) const KIND: Kind = Kind {
    name: "datadir",
    place: "PATH",
    help: "the data dir of an etcd that was stopped and is its cluster's only member",
    at: |place, _| Ok(Origin::datadir(absolute(place)?)),
};

#[derive(Debug)]
struct Datadir(PathBuf);

impl Origin {
    /// The data dir of a stopped etcd. One whose log goes on is copied, and etcd replays it there.
    pub fn datadir(path: PathBuf) -> Origin {
        Origin::of(Datadir(path))
    }
}

impl Store for Datadir {
    fn path(&self) -> &Path {
        &self.0
    }

    fn open(&self, with: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        let replay = Replay { etcd: with.etcd.to_owned(), copy: with.copy.clone(), lock: with.lock.cloned() };
        Ok(Box::new(datadir::open(with.disk, &self.0, &replay)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        // Whoever writes to its log writes to its backend, a moment later or when it is started again.
        Ok(is_as_noted(&backend_of(&self.0), journal)?)
    }
}
