//! A running etcd: as it is, or with our fence around it.

use std::path::Path;

use super::super::fenced::Fenced;
use super::super::remote::{self, Alarms};
use super::{Journal, Kind, Opening, Origin, Source, Store};
use crate::etcd::client::EtcdEndpoint;

pub(super) const KIND: Kind = Kind {
    name: "etcd",
    place: "URL",
    help: "a snapshot of a running etcd as of now",
    at: |place, flags| Ok(Origin::etcd(flags.tls.endpoint(place)?)),
};

impl Origin {
    /// A running etcd, as of one revision.
    pub fn etcd(etcd: EtcdEndpoint) -> Origin {
        Origin::of(etcd)
    }

    /// A running etcd that takes no writes any more.
    pub fn fenced(fenced: Fenced) -> Origin {
        Origin::of(fenced)
    }
}

impl Store for EtcdEndpoint {
    fn path(&self) -> &Path {
        Path::new(&self.url)
    }

    fn open(&self, with: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(remote::open(with, self, Alarms::None, None)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        Ok(remote::revision(self)? == journal.source_revision)
    }
}

impl Store for Fenced {
    fn path(&self) -> &Path {
        Path::new(&self.given().url)
    }

    fn open(&self, with: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        Ok(Box::new(Fenced::open(self, with)?))
    }

    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        Ok(remote::revision(self.given())? == journal.source_revision)
    }
}
