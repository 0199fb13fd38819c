//! A `state.db` of kine's.

use std::path::{Path, PathBuf};

use super::super::kine::{KineStore, StoreFiles, name_source};
use super::super::sqlite::check_path;
use super::{Journal, Kind, Opening, Origin, Source, Store, WAIT_FOR_HOLDER, absolute, is_as_noted};
use crate::migrate::source::FileState;

pub(super) const KIND: Kind = Kind {
    name: "sqlite",
    place: "PATH",
    help: "a state.db that kine or k3s wrote, with its -wal beside it",
    at: |place, _| {
        let path = absolute(place)?;
        check_path(&path)?;
        Ok(Origin::sqlite(path))
    },
};

#[derive(Debug)]
struct Sqlite(PathBuf);

impl Origin {
    /// A `state.db` of kine's.
    pub fn sqlite(path: PathBuf) -> Origin {
        Origin::of(Sqlite(path))
    }
}

impl Store for Sqlite {
    fn path(&self) -> &Path {
        &self.0
    }

    fn open(&self, _: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(KineStore::open(&self.0, WAIT_FOR_HOLDER)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        Ok(is_as_noted(&self.0, journal)? && FileState::of(&StoreFiles::of(&self.0).wal)? == journal.beside)
    }

    fn name_in(&self, error: anyhow::Error) -> anyhow::Error {
        name_source(error, &self.0)
    }

    fn is_renamed(&self) -> bool {
        true
    }
}
