//! A dry run: reads all of a source and says what an import would do, without writing anything.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::convert::{LeaseAssigner, LiveKey, Warnings};
use super::kine::{KineStore, name_source};
use super::pipeline::copy;
use super::progress::{Meter, Show, Stage, shown};
use super::sink::Sink;
use super::source::Source;
use super::space;
use crate::disk::parent_of;
use crate::ids::Revision;

/// So many kinds of resource are told apart at most, and so many shown.
const MAX_KINDS: usize = 4096;
const SHOWN_KINDS: usize = 10;
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
    /// Bytes of the source, its `-wal` included.
    pub source_bytes: u64,
    /// The store's revision.
    pub revision: Revision,
    /// What kine has compacted up to.
    pub compacted: Revision,
    /// Rows in all.
    pub rows: u64,
    /// Live keys.
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
}

/// A kind of resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// `pods`, `deployments`, `example.com/widgets`: by the key's first parts.
    pub kind: String,
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// Reads all of `source` and estimates an import into `etcd_dir`.
pub fn estimate(source: &Path, etcd_dir: &Path, show: Show) -> anyhow::Result<Estimate> {
    let meter = Meter::default();
    shown(show, &meter, || run(source, etcd_dir, &meter)).map_err(|e| name_source(e, source))
}

fn run(source: &Path, etcd_dir: &Path, meter: &Meter) -> anyhow::Result<Estimate> {
    let started = Instant::now();
    let mut store = KineStore::open(source, Duration::ZERO)?;
    meter.begin(Stage::Copy, store.extent().keys_at_most);
    let mut tally = Tally::default();
    let copied = copy(&mut store, &mut tally, meter)?;
    let read = started.elapsed();
    let needed_bytes = space::needed(copied.keys, copied.bytes);
    Ok(Estimate {
        source: source.to_owned(),
        source_bytes: store.bytes(),
        revision: store.revision(),
        compacted: store.survey().compacted,
        rows: store.survey().rows,
        keys: copied.keys,
        bytes: copied.bytes,
        leases: tally.leases.into_leases().len() as u64,
        largest: tally.largest,
        kinds: biggest(tally.kinds),
        warnings: copied.warnings,
        needed_bytes,
        free_bytes: space::free(&existing(etcd_dir))?,
        seconds: seconds(read, copied.keys, copied.bytes),
    })
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
#[derive(Default)]
struct Tally {
    kinds: HashMap<String, (u64, u64)>,
    leases: LeaseAssigner,
    largest: u64,
}

impl Sink for Tally {
    fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
        let bytes = (key.key.len() + key.value.len()) as u64;
        self.largest = self.largest.max(bytes);
        self.leases.assign(key.ttl);
        let mut kind = kind_of(key.key);
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&kind) {
            kind = OTHER.to_owned();
        }
        let (keys, sum) = self.kinds.entry(kind).or_default();
        *keys += 1;
        *sum += bytes;
        Ok(())
    }
}

/// Keys that the API server did not write.
const OTHER: &str = "(other)";

/// The kind of resource by the key, as the API server lays it out: `/registry/<resource>/...` for most built-in groups,
/// `/registry/<group>/<resource>/...` for custom resources and some others, whose group has a dot.
fn kind_of(key: &[u8]) -> String {
    let Some(rest) = std::str::from_utf8(key).ok().and_then(|k| k.strip_prefix("/registry/")) else {
        return OTHER.to_owned();
    };
    let mut parts = rest.split('/');
    match (parts.next(), parts.next()) {
        (Some(group), Some(resource)) if group.contains('.') => format!("{group}/{resource}"),
        (Some("services"), Some(resource)) => format!("services/{resource}"),
        (Some(resource), Some(_)) => resource.to_owned(),
        _ => OTHER.to_owned(),
    }
}

fn biggest(kinds: HashMap<String, (u64, u64)>) -> Vec<Kind> {
    let mut list: Vec<Kind> = kinds.into_iter().map(|(kind, (keys, bytes))| Kind { kind, keys, bytes }).collect();
    list.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.kind.cmp(&b.kind)));
    list.truncate(SHOWN_KINDS);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_the_key() {
        for (key, kind) in [
            ("/registry/pods/default/a", "pods"),
            ("/registry/deployments/default/a", "deployments"),
            ("/registry/services/specs/default/a", "services/specs"),
            ("/registry/services/endpoints/default/a", "services/endpoints"),
            ("/registry/example.com/widgets/default/a", "example.com/widgets"),
            ("/registry/apiregistration.k8s.io/apiservices/v1.", "apiregistration.k8s.io/apiservices"),
            ("/registry/health", OTHER),
            ("/bootstrap/abc", OTHER),
            ("\u{fffd}", OTHER),
        ] {
            assert_eq!(kind_of(key.as_bytes()), kind, "{key}");
        }
        assert_eq!(kind_of(b"/registry/\xff/a"), OTHER);
    }

    #[test]
    fn endless_kinds_do_not_fill_the_memory() {
        let mut tally = Tally::default();
        for i in 0..10_000 {
            let key = format!("/registry/kind{i}/a");
            let revision = Revision(i + 1);
            let key = LiveKey {
                key: key.as_bytes(),
                value: &[],
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                ttl: 0,
            };
            tally.put(&key).unwrap();
        }
        assert!(tally.kinds.len() <= MAX_KINDS + 1);
        let list = biggest(tally.kinds);
        assert_eq!((list.len(), list[0].kind.as_str()), (SHOWN_KINDS, OTHER));
    }
}
