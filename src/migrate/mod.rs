//! Moving a store from one form into another.
//!
//! One pipeline for every journey: a [`source`] sends its live keys in the order of revisions, a [`sink`] takes them,
//! [`pipeline`] runs both, [`journal`] and [`commit`] make it survive a kill at any instant, [`verify`] asks a running
//! etcd, [`progress`] shows it. A new kind of source or sink is one file.
//!
//! Reading order: [`origin`] (what can be read), [`kine`] and [`convert`] (a SQLite store), [`backend`] and [`remote`] (etcd's), [`import`] (the order of
//! durable steps), [`export`], [`renumber`] and [`sqlite`] (the way back), [`fence`] and [`fenced`] (a running etcd that takes no more writes), [`estimate`] (a dry run), [`command`] (`syncer migrate`).

pub mod backend;
pub mod command;
pub mod commit;
pub mod convert;
pub mod estimate;
pub mod export;
pub mod fence;
pub mod fenced;
pub mod import;
pub mod journal;
pub mod kine;
pub mod loopback;
pub mod origin;
pub mod pipeline;
pub mod progress;
pub mod remote;
pub mod renumber;
pub mod sink;
pub mod source;
pub mod space;
pub mod sqlite;
pub mod verify;

pub use commit::finish_commit;
pub use export::{ExportOutcome, ExportPlan, export};
pub use import::{Commit, ImportOutcome, ImportPlan, import};
pub use origin::Origin;
pub use verify::Verify;
