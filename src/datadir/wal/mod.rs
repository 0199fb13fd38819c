//! etcd's write-ahead log: framing, records, a writer of a new log, a reader of any, and what is appended to
//! one. Byte maps: `FORMAT.md`.

pub mod append;
pub mod conf_change;
pub mod reader;
pub mod record;
mod torn;
pub mod writer;

#[cfg(test)]
mod tests;

pub use append::{AppendError, append_state};
pub use conf_change::{ConfChange, LoggedChange};
pub use reader::{EntryRun, WalError, WalSummary, WalTail, owner, read_wal, segments};
pub use record::{ConfState, Entry, EntryKind, HardState, Metadata, RecordEncoder, SnapshotRecord};
pub use writer::write_wal;
