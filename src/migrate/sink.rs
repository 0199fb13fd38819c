//! Where keys go: [`Sink`] takes them, [`Target`] is what a journey makes. A new kind is one file that implements both.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::convert::LiveKey;
use super::journal::Journal;
use super::journey::{Journey, Points};
use super::pipeline::Copied;
use super::progress::Meter;
use super::source::Source;
use crate::disk::Disk;
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

/// What a journey makes. Its order of steps calls these in the order in which they stand here.
pub trait Target: Sized {
    /// What is found out before anything is written, beside the opening of the source.
    type Ready: Send;
    /// What is told of it in the end, besides what every target tells.
    type Made: Made;
    /// Names of the crash points.
    const POINTS: Points;

    /// Its place in the end.
    fn path(&self) -> &Path;
    /// Where it is built.
    fn staging(&self) -> PathBuf;
    /// Bytes that so many keys with so many bytes of keys and values need at most.
    fn needed(keys: u64, bytes: u64) -> u64;
    /// What takes the keys of `source` in a dry run.
    fn forecast(&self, source: &dyn Source) -> Box<dyn Forecast>;

    /// Refuses a place that can never be the target's, whatever the source is; `earlier` is the journal of an earlier
    /// attempt. Changes nothing.
    fn admit(&self, journey: &Journey<Self>, earlier: Option<&Journal>) -> anyhow::Result<()>;
    /// Finds out what is needed to build it; `etcd` is the program.
    fn ready(etcd: &Path) -> anyhow::Result<Self::Ready>;
    /// Makes room: removes what an uncommitted attempt of this very journey left, and nothing else.
    fn clear(&self, disk: &dyn Disk, journey: &Journey<Self>, earlier: Option<&Journal>) -> anyhow::Result<()>;
    /// Builds it at the staging place: written, confirmed, and durable but for its name.
    fn build(
        &self,
        disk: &dyn Disk,
        journey: &Journey<Self>,
        ready: Self::Ready,
        source: &mut dyn Source,
        meter: &Meter,
    ) -> anyhow::Result<Built<Self::Made>>;
    /// Notes in the journal what was built, so that it can be told from anything else.
    fn note(&self, built: &Built<Self::Made>, journal: &mut Journal) -> anyhow::Result<()>;
    /// Refuses if anything has come to stand in its place meanwhile.
    fn is_vacant(&self) -> anyhow::Result<()>;

    /// Removes what was built, after a failure.
    fn take_back(&self, disk: &dyn Disk) -> anyhow::Result<()>;
    /// Whether what stands in its place is what the journal tells of.
    fn is_there(&self, journal: &Journal) -> anyhow::Result<bool>;
    /// What of it, by the journal, is not as this target is to be, for people.
    fn otherwise(&self, _: &Journal) -> Option<String> {
        None
    }
}

/// What tells by a source's keys what would be made of them, and makes nothing.
pub trait Forecast: Sink {
    /// All keys have come.
    fn foresee(self: Box<Self>) -> anyhow::Result<Foreseen>;
}

/// What would be made.
#[derive(Debug)]
pub struct Foreseen {
    /// As [`Built::revision`].
    pub revision: Revision,
    /// As [`Built::keys`].
    pub keys: u64,
    /// Of what [`Made::json`] has, that which only targets of this kind can tell beforehand.
    pub made: Value,
}

/// What only targets of one kind tell.
pub trait Made {
    /// As JSON's fields.
    fn json(&self) -> Value;
    /// Who has confirmed what was made, for people.
    fn confirmed(&self) -> String;
    /// What they must know besides, a line each; the store's revision and the source's are at hand.
    fn notes(&self, revision: Revision, source_revision: Revision) -> Vec<String>;
}

/// What was built.
#[derive(Debug)]
pub struct Built<M> {
    /// What was copied.
    pub copied: Copied,
    /// The revision of the new store.
    pub revision: Revision,
    /// Its live keys.
    pub keys: u64,
    /// Size of its file.
    pub target_bytes: u64,
    /// What is told of it besides.
    pub made: M,
}
