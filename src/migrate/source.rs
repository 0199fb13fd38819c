//! Where keys come from. A new kind of source is one file: what it is ([`super::origin::Store`]) and how it is read ([`Source`]).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use serde::{Deserialize, Serialize};

use super::convert::{KeyLease, LiveKey, Warnings};
use crate::datadir::LeaseRecord;
use crate::disk::at;
use crate::ids::Revision;

/// A store that is read: every live key once, in strictly ascending order of mod revision and place within it.
pub trait Source: Send {
    /// What it is, for messages: a path or a URL.
    fn name(&self) -> String;
    /// What is known of it before it is read.
    fn extent(&self) -> Extent;
    /// Bytes of keys and values of the live keys, exactly. It may take as long as reading them.
    fn live_bytes(&self) -> anyhow::Result<u64>;
    /// The leases that it holds, whether keys are attached to them or not; none where they come with the keys.
    fn leases(&self) -> &[LeaseRecord] {
        &[]
    }
    /// Whether nobody else can write to it until it is dropped.
    fn is_exclusive(&self) -> bool;
    /// The state of the files that it is read from, the store's own first. Equal ones are the same content.
    fn files(&self) -> anyhow::Result<Vec<FileState>>;
    /// When the store was put where it lies, by the clock of who keeps it there, in nanoseconds since 1970, where what is read is a
    /// copy of that; `None`: the files tell.
    fn put_there(&self) -> Option<i128> {
        None
    }
    /// Sends every live key, and gives what had to be changed. It may be called again and sends the same.
    fn read(&mut self, out: &mut BatchSender<'_>) -> anyhow::Result<Warnings>;
    /// The last question before the target takes the source's place: whether it may. From a yes on the source is as it was
    /// read for good.
    fn confirm(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    /// A check of the whole source that can run beside the next reading, if there is one. What it finds fails the copy.
    fn side_check(&mut self) -> anyhow::Result<Option<Box<dyn SideCheck>>>;
}

/// What is known of a source before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The store's revision.
    pub revision: Revision,
    /// What it has compacted up to, 0 if never.
    pub compacted: Revision,
    /// Bytes of its files.
    pub source_bytes: u64,
    /// Rows in all: revisions of keys, live or not.
    pub rows: u64,
    /// At most so many live keys.
    pub keys_at_most: u64,
    /// At most so many bytes of keys and values.
    pub bytes_at_most: u64,
}

/// A file as it was seen; all zero if it is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileState {
    /// Its size in bytes.
    pub bytes: u64,
    /// Its modification time, in nanoseconds since 1970.
    pub modified: i128,
    /// Its inode.
    pub inode: u64,
}

impl FileState {
    /// Looks at what is read at `path`: the file itself, where that is a link.
    pub fn of(path: &Path) -> io::Result<FileState> {
        match path.metadata() {
            Ok(m) => Ok(FileState {
                bytes: m.len(),
                modified: i128::from(m.mtime()) * 1_000_000_000 + i128::from(m.mtime_nsec()),
                inode: m.ino(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FileState::default()),
            Err(e) => Err(at(path, e)),
        }
    }
}

/// A check that runs on a thread of its own.
pub trait SideCheck: Send {
    /// Something that ends [`SideCheck::run`] early, with whatever result.
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync>;
    /// Runs the check.
    fn run(self: Box<Self>) -> anyhow::Result<()>;
}

/// A batch is sent when it holds so many bytes or keys, whichever comes first.
const BATCH_BYTES: usize = 512 << 10;
const BATCH_KEYS: usize = 2048;
/// A batch that once held large values is not kept for the next ones.
const KEEP_BYTES: usize = 4 * BATCH_BYTES;

/// Keys on their way from the source to the sink, in one piece of memory.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    keys: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key_end: usize,
    value_end: usize,
    create_revision: Revision,
    mod_revision: Revision,
    sub: i64,
    version: i64,
    lease: KeyLease,
}

impl Batch {
    fn push(&mut self, key: &LiveKey<'_>) {
        self.bytes.extend_from_slice(key.key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(key.value);
        self.keys.push(Entry {
            key_end,
            value_end: self.bytes.len(),
            create_revision: key.create_revision,
            mod_revision: key.mod_revision,
            sub: key.sub,
            version: key.version,
            lease: key.lease,
        });
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.keys.len() >= BATCH_KEYS
    }

    /// The keys, in the order in which they were sent.
    pub fn keys(&self) -> impl Iterator<Item = LiveKey<'_>> {
        let mut start = 0;
        self.keys.iter().map(move |entry| {
            let key = &self.bytes[start..entry.key_end];
            let value = &self.bytes[entry.key_end..entry.value_end];
            start = entry.value_end;
            LiveKey {
                key,
                value,
                create_revision: entry.create_revision,
                mod_revision: entry.mod_revision,
                sub: entry.sub,
                version: entry.version,
                lease: entry.lease,
            }
        })
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The same memory, empty.
    pub fn recycle(mut self) -> Batch {
        if self.bytes.capacity() > KEEP_BYTES {
            return Batch::default();
        }
        self.bytes.clear();
        self.keys.clear();
        self
    }
}

/// The copy is over: the sink failed, or a side check did. Whoever stopped it has the reason.
#[derive(Debug, thiserror::Error)]
#[error("the copy was stopped")]
pub struct Stopped;

/// The source's end of the way.
#[derive(Debug)]
pub struct BatchSender<'a> {
    batch: Batch,
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    stop: &'a AtomicBool,
}

impl<'a> BatchSender<'a> {
    pub(super) fn new(full: SyncSender<Batch>, empty: Receiver<Batch>, stop: &'a AtomicBool) -> Self {
        BatchSender { batch: Batch::default(), full, empty, stop }
    }

    /// Sends a key; waits while the sink is behind.
    pub fn send(&mut self, key: &LiveKey<'_>) -> Result<(), Stopped> {
        self.batch.push(key);
        if self.batch.is_full() { self.flush() } else { Ok(()) }
    }

    /// Sends what is left.
    pub fn flush(&mut self) -> Result<(), Stopped> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        let next = self.empty.try_recv().unwrap_or_default();
        self.full.send(std::mem::replace(&mut self.batch, next)).map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, RealDisk};

    /// What is read is the file that a link names: a link stays as it is when another is put in that one's place.
    #[test]
    fn a_file_behind_a_link_is_seen_to_be_another() {
        let home = tempfile::tempdir().unwrap();
        let (file, link) = (home.path().join("a.db"), home.path().join("latest.db"));
        std::os::unix::fs::symlink("a.db", &link).unwrap();
        assert_eq!(FileState::of(&link).unwrap(), FileState::default(), "a link to nothing");
        std::fs::write(&file, "one").unwrap();
        let before = FileState::of(&link).unwrap();
        assert_eq!(before, FileState::of(&file).unwrap());
        std::fs::write(home.path().join("newer.db"), "two").unwrap();
        RealDisk.rename(&home.path().join("newer.db"), &file).unwrap();
        assert_ne!(FileState::of(&link).unwrap(), before, "a newer file behind the link is taken for the same");
    }
}
