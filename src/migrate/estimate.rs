//! A dry run: reads all of a source and says what an import would do. Nothing of it stays. What must be read as a file, and is
//! none, is written beside the target for that time: the snapshot of a running etcd, and the copy of a data dir whose log is
//! replayed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::commit::with_suffix;
use super::convert::{LeaseAssigner, LiveKey, Warnings};
use super::origin::{Opening, Origin};
use super::pipeline::copy;
use super::progress::{Meter, Show, Stage, shown};
use super::sink::{Forecast, Foreseen, Sink, Target};
use super::space;
use crate::disk::{Disk, parent_of};
use crate::ids::Revision;
use crate::kinds::{Kind, Kinds};
use crate::scratch::{self, Aside};
use crate::snapshot::save::LEFT_FREE;

/// Behind the target's name, before the process ID.
const DRY_RUN: &str = ".dry-run";
/// What a usual cloud volume writes, in bytes a second, for the estimate of time.
const USUAL_WRITE: f64 = 150e6;
/// How long etcd takes to start and stop for the verification, in seconds, and how many keys a second it loads.
const ETCD_START: f64 = 1.0;
const ETCD_KEYS: f64 = 500_000.0;

/// What an import would do.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// The source.
    pub source: PathBuf,
    /// The target.
    pub target: PathBuf,
    /// Bytes of the source, its `-wal` included.
    pub source_bytes: u64,
    /// The source's revision.
    pub source_revision: Revision,
    /// That of the new store.
    pub revision: Revision,
    /// What the source has compacted up to.
    pub compacted: Revision,
    /// Rows in all.
    pub rows: u64,
    /// Live keys of the new store.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Leases that their times to live would become.
    pub leases: u64,
    /// Size of the largest key and value together.
    pub largest: u64,
    /// The biggest kinds of resource.
    pub kinds: Vec<Kind>,
    /// What would be met and gone on from.
    pub warnings: Warnings,
    /// Bytes that the import needs on the target's volume.
    pub needed_bytes: u64,
    /// Bytes that are free there.
    pub free_bytes: u64,
    /// About how long it would take, in seconds.
    pub seconds: f64,
    /// What only targets of this kind tell.
    #[serde(flatten)]
    pub made: Value,
}

impl Estimate {
    /// As JSON, with the names that a report of the import has for the same things.
    pub fn json(&self) -> anyhow::Result<Value> {
        let mut report = serde_json::to_value(self)?;
        report["dryRun"] = json!(true);
        Ok(report)
    }
}

/// Reads all of `source` and estimates an import into `target`. Nothing is left behind, and [`LEFT_FREE`] of the target's
/// volume spared meanwhile.
pub fn estimate<T: Target>(
    disk: &dyn Disk,
    source: &Origin,
    target: &T,
    etcd: &Path,
    show: Show,
) -> anyhow::Result<Estimate> {
    let meter = Meter::default();
    shown(show, &meter, || run(disk, source, target, etcd, &meter)).map_err(|e| source.name_in(e))
}

fn run<T: Target>(
    disk: &dyn Disk,
    source: &Origin,
    target: &T,
    etcd: &Path,
    meter: &Meter,
) -> anyhow::Result<Estimate> {
    let (started, place) = (Instant::now(), target.path());
    // On a read-only volume nothing is left, and nothing may have to be written.
    if let Err(error) = forget_left(disk, place) {
        tracing::debug!("what a killed dry run has left is not removed: {error}");
    }
    // An etcd may run on the volume.
    let aside = Aside { path: with_suffix(place, DRY_RUN), shared: true, spare: LEFT_FREE };
    meter.begin(Stage::Survey, 0);
    let mut store = source.open(&Opening { disk, etcd, copy: &aside, lock: None, meter })?;
    let extent = store.extent();
    meter.begin(Stage::Copy, extent.keys_at_most);
    let mut tally = Tally {
        forecast: target.forecast(&*store),
        kinds: Kinds::default(),
        leases: LeaseAssigner::with(store.leases().to_vec()),
        largest: 0,
    };
    let copied = copy(&mut *store, &mut tally, meter)?;
    let read = started.elapsed();
    let needed_bytes = T::needed(copied.keys, copied.bytes);
    let Foreseen { revision, keys, made } = tally.forecast.foresee()?;
    Ok(Estimate {
        source: source.path().to_owned(),
        target: place.to_owned(),
        source_bytes: extent.source_bytes,
        source_revision: extent.revision,
        revision,
        compacted: extent.compacted,
        rows: extent.rows,
        keys,
        bytes: copied.bytes,
        leases: tally.leases.into_leases().len() as u64,
        largest: tally.largest,
        kinds: tally.kinds.biggest(),
        warnings: copied.warnings,
        needed_bytes,
        free_bytes: space::free(&existing(place))?,
        seconds: seconds(read, copied.keys, copied.bytes),
        made,
    })
}

/// Removes what killed dry runs of an import into `target` have left beside it.
pub(super) fn forget_left(disk: &dyn Disk, target: &Path) -> io::Result<()> {
    let prefix = with_suffix(target, DRY_RUN);
    scratch::forget_left(disk, &parent_of(target), &prefix.file_name().unwrap_or_default().to_string_lossy())
}

/// Reading and writing go side by side; then etcd reads what was written.
fn seconds(read: Duration, keys: u64, bytes: u64) -> f64 {
    let write = bytes as f64 / USUAL_WRITE;
    let total = read.as_secs_f64().max(write) + ETCD_START + keys as f64 / ETCD_KEYS + write / 2.0;
    (total * 10.0).round() / 10.0
}

/// The nearest directory above that is there.
fn existing(path: &Path) -> PathBuf {
    let mut dir = parent_of(path);
    while !dir.is_dir() {
        let above = parent_of(&dir);
        if above == dir {
            break;
        }
        dir = above;
    }
    dir
}

/// A sink that counts.
struct Tally {
    forecast: Box<dyn Forecast>,
    kinds: Kinds,
    leases: LeaseAssigner,
    largest: u64,
}

impl Sink for Tally {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let bytes = (key.key.len() + key.value.len()) as u64;
        self.largest = self.largest.max(bytes);
        self.leases.assign(key.lease);
        self.kinds.count(key.key, bytes);
        self.forecast.put(key)
    }
}
