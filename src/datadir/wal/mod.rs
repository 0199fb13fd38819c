//! etcd's write-ahead log: framing, records, a writer of a new log and a reader of any. Byte maps: `FORMAT.md`.

pub mod reader;
pub mod record;
pub mod writer;

#[cfg(test)]
mod tests;

pub use reader::{EntryRun, WalError, WalSummary, WalTail, read_wal, segments};
pub use record::{ConfState, Entry, EntryKind, HardState, Metadata, RecordEncoder, SnapshotRecord};
pub use writer::write_wal;
