//! etcd's data dir: its file formats, and what we may do to one.
//!
//! Reading order: [`identity`] (whose data dir), [`schema`] (what the backend holds), [`bolt`], [`wal`] and
//! [`snapshot`] (the files), [`writer`] (a whole new data dir), [`inspect`](mod@inspect) (what stands on a volume),
//! [`members`], [`learners`] and [`log_tail`](mod@log_tail) (what a decision about it rests on), [`place`], [`quarantine`] and
//! [`lock`].
//!
#![doc = include_str!("FORMAT.md")]

pub mod bolt;
pub mod identity;
pub mod inspect;
pub mod learners;
pub mod lock;
pub mod log_tail;
pub mod members;
pub mod place;
pub mod proto;
pub mod quarantine;
pub mod schema;
pub mod snapshot;
pub mod wal;
pub mod writer;

pub use identity::MemberIdentity;
pub use inspect::{InspectError, InspectedDatadir, SchemaVersion, UsableDatadir, inspect};
pub use lock::{DatadirLock, LockError};
pub use log_tail::{LogTail, Membership, Role, TailError, log_tail};
pub use writer::{DatadirWriter, KeyRecord, LeaseRecord, WriteError, WrittenDatadir};
