//! etcd's store as a source: a snapshot file, or a data dir that nobody uses.
//!
//! Both are a bbolt file that is only read. Reading order: [`datadir`] and [`snapshot`] (which file, and why it may be
//! believed), [`rows`] (what stands in it), [`live`] (which rows are live).

pub mod datadir;
pub mod error;
pub mod live;
pub mod rows;
pub mod snapshot;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::convert::{Count, DEFAULT_REQUEST_BYTES, KeyLease, LiveKey, Warnings};
use super::source::{BatchSender, Extent, FileState, SideCheck, Source};
use crate::datadir::bolt::{BoltReader, Bucket};
use crate::datadir::{LeaseRecord, members, schema};
use crate::ids::Revision;
pub use error::{BackendError, name_backend};
use live::{LiveRows, NAMES_AT_ONCE};
use rows::walk;

/// Says whether the target may take the store's place.
pub type LastWord = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// etcd's store, open for reading.
pub struct BackendStore {
    name: String,
    /// Files that must not change while it is read.
    watched: Vec<PathBuf>,
    reader: BoltReader<File>,
    keys: Bucket,
    live: LiveRows,
    leases: Vec<LeaseRecord>,
    revision: Revision,
    compacted: Revision,
    bytes: u64,
    auth: Count,
    checksum: snapshot::Checksum,
    confirm: Option<LastWord>,
    /// When what it is a copy of was put where it lies, if that is told ([`Source::put_there`]).
    put_there: Option<i128>,
    /// What ends with it: locks, a copy that is removed.
    _kept: Vec<Box<dyn Send + Sync>>,
}

impl BackendStore {
    /// Opens the backend in `file`, at `path`.
    fn read(name: &Path, path: &Path, watched: Vec<PathBuf>) -> Result<Self, BackendError> {
        let file = File::open(path).map_err(error::named(path))?;
        let bytes = file.metadata().map_err(error::named(path))?.len();
        let reader = BoltReader::open(file)?;
        let keys = reader.bucket(schema::BUCKET_KEY)?.ok_or(BackendError::NotEtcd)?;
        let live = live::find(&reader, &keys, NAMES_AT_ONCE)?;
        Ok(BackendStore {
            name: name.display().to_string(),
            watched,
            live,
            leases: leases(&reader)?,
            revision: members::revision(&reader)?,
            compacted: members::compacted(&reader)?,
            bytes,
            auth: auth(&reader)?,
            checksum: snapshot::Checksum::None,
            confirm: None,
            put_there: None,
            keys,
            reader,
            _kept: Vec::new(),
        })
    }

    /// The store's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether it is a file that ends with a checksum.
    pub fn has_checksum(&self) -> bool {
        matches!(self.checksum, snapshot::Checksum::AtEnd(_))
    }

    /// Names it otherwise than by its file, and keeps something until it is dropped.
    pub fn name_and_keep(&mut self, name: String, kept: Box<dyn Send + Sync>) {
        self.name = name;
        self._kept.push(kept);
    }

    /// The store, as a copy of one that was put where it lies at this time.
    pub fn put_there_at(self, nanoseconds: i128) -> Self {
        BackendStore { put_there: Some(nanoseconds), ..self }
    }

    /// The store, with somebody to be asked before it is given up for the target.
    pub fn confirmed_by(self, confirm: LastWord) -> Self {
        BackendStore { confirm: Some(confirm), ..self }
    }

    fn lease(&self, id: i64) -> KeyLease {
        if id == 0 {
            return KeyLease::None;
        }
        let known = self.leases.binary_search_by_key(&id, |lease| lease.id);
        let granted = known.ok().and_then(|at| self.leases.get(at)).map_or(0, |lease| lease.ttl);
        KeyLease::Held(LeaseRecord { id, ttl: granted })
    }
}

/// The leases, by ID. Sixteen bytes each, of which an API server makes one for a thousand events.
fn leases(reader: &BoltReader<File>) -> Result<Vec<LeaseRecord>, BackendError> {
    let mut leases = Vec::new();
    let Some(bucket) = reader.bucket(schema::BUCKET_LEASE)? else { return Ok(leases) };
    let mut cursor = reader.cursor(&bucket)?;
    while let Some((key, value)) = cursor.next()? {
        let lease = schema::decode_lease(value).map_err(|_| BackendError::BadLease)?;
        if key != schema::lease_key(lease.id) {
            return Err(BackendError::BadLease);
        }
        leases.push(lease);
    }
    leases.sort_unstable_by_key(|lease| lease.id);
    Ok(leases)
}

/// Users and roles, if authentication is on.
fn auth(reader: &BoltReader<File>) -> Result<Count, BackendError> {
    let mut count = Count::default();
    let Some(bucket) = reader.bucket(schema::BUCKET_AUTH)? else { return Ok(count) };
    if reader.get(&bucket, schema::AUTH_ENABLED)?.is_none_or(|enabled| enabled != [1]) {
        return Ok(count);
    }
    for name in [schema::BUCKET_AUTH_USERS, schema::BUCKET_AUTH_ROLES] {
        let Some(bucket) = reader.bucket(name)? else { continue };
        let mut cursor = reader.cursor(&bucket)?;
        while let Some((name, _)) = cursor.next()? {
            count.note(name);
        }
    }
    Ok(count)
}

impl Source for BackendStore {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn put_there(&self) -> Option<i128> {
        self.put_there
    }

    fn extent(&self) -> Extent {
        Extent {
            revision: self.revision,
            compacted: self.compacted,
            source_bytes: self.bytes,
            rows: self.live.rows,
            keys_at_most: self.live.keys,
            bytes_at_most: self.bytes,
        }
    }

    fn live_bytes(&self) -> anyhow::Result<u64> {
        let mut total = 0_u64;
        walk::<BackendError>(&self.reader, &self.keys, |row| {
            if self.live.contains(row.place) {
                total += (row.record.key.len() + row.record.value.len()) as u64;
            }
            Ok(())
        })?;
        Ok(total)
    }

    fn leases(&self) -> &[LeaseRecord] {
        &self.leases
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn files(&self) -> anyhow::Result<Vec<FileState>> {
        self.watched.iter().map(|path| FileState::of(path).context("look at the source")).collect()
    }

    fn read(&mut self, out: &mut BatchSender<'_>) -> anyhow::Result<Warnings> {
        let mut warnings = Warnings::default();
        let mut sent = 0;
        walk::<anyhow::Error>(&self.reader, &self.keys, |row| {
            if !self.live.contains(row.place) {
                return Ok(());
            }
            let record = &row.record;
            let lease = self.lease(record.lease);
            if matches!(lease, KeyLease::Held(LeaseRecord { ttl: 0, .. })) {
                warnings.lost_leases.note(record.key);
            }
            if (record.key.len() + record.value.len()) as u64 > DEFAULT_REQUEST_BYTES {
                warnings.large_values.note(record.key);
            }
            sent += 1;
            out.send(&LiveKey {
                key: record.key,
                value: record.value,
                create_revision: record.create_revision,
                mod_revision: record.mod_revision,
                sub: record.sub,
                version: record.version,
                lease,
            })?;
            Ok(())
        })?;
        if sent != self.live.keys {
            return Err(BackendError::Changed.into());
        }
        warnings.auth = self.auth.clone();
        if matches!(self.checksum, snapshot::Checksum::Missing) {
            warnings.no_checksums.add(1, || self.name.clone());
        }
        Ok(warnings)
    }

    fn confirm(&mut self) -> anyhow::Result<()> {
        self.confirm.as_mut().map_or(Ok(()), |confirm| confirm())
    }

    fn side_check(&mut self) -> anyhow::Result<Option<Box<dyn SideCheck>>> {
        match &mut self.checksum {
            // A second reading has nothing more to compare: the file is watched, and was compared beside the first.
            snapshot::Checksum::AtEnd(check) => Ok(check.take().map(|check| Box::new(check) as Box<dyn SideCheck>)),
            snapshot::Checksum::None | snapshot::Checksum::Missing => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
