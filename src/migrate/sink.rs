//! Where keys go. A new kind of sink is one file that implements [`Sink`].

use anyhow::Context;

use super::convert::{LeaseAssigner, LiveKey};
use crate::datadir::{DatadirWriter, KeyRecord, LeaseRecord, MemberIdentity, WrittenDatadir};
use crate::ids::Revision;

/// A store that is written: keys in strictly ascending order of mod revision and place within it.
pub trait Sink {
    /// Takes one key.
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()>;
}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        (**self).put(key)
    }
}

/// A new data dir of etcd.
pub struct DatadirSink<'d> {
    writer: DatadirWriter<'d>,
    leases: LeaseAssigner,
    largest: u64,
}

/// A data dir that is written and durable.
#[derive(Clone, Debug)]
pub struct WrittenStore {
    /// Of the data dir itself.
    pub datadir: WrittenDatadir,
    /// The leases, those without keys too.
    pub leases: Vec<LeaseRecord>,
    /// Size of the largest key and value together, in bytes.
    pub largest: u64,
}

impl<'d> DatadirSink<'d> {
    /// Writes with `writer`; `held` are the leases that the source holds.
    pub fn new(writer: DatadirWriter<'d>, held: Vec<LeaseRecord>) -> Self {
        DatadirSink { writer, leases: LeaseAssigner::with(held), largest: 0 }
    }

    /// Completes the data dir; it is durable when this returns.
    pub fn finish(self, revision: Revision, member: &MemberIdentity) -> anyhow::Result<WrittenStore> {
        let leases = self.leases.into_leases();
        let datadir = self.writer.finish(revision, &leases, member).context("complete etcd's data dir")?;
        Ok(WrittenStore { datadir, leases, largest: self.largest })
    }
}

impl Sink for DatadirSink<'_> {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let record = KeyRecord {
            key: key.key,
            value: key.value,
            create_revision: key.create_revision,
            mod_revision: key.mod_revision,
            sub: key.sub,
            version: key.version,
            lease: self.leases.assign(key.lease),
        };
        self.writer.put(&record).context("write etcd's data dir")?;
        self.largest = self.largest.max((key.key.len() + key.value.len()) as u64);
        Ok(())
    }
}
