//! Moving a store from one form into another.
//!
//! One pipeline for every journey: a [`source`] sends its live keys in the order of revisions, a [`sink`] takes them,
//! [`pipeline`] runs both, [`journey`] is the order of durable steps, which survives a kill at any instant by its [`journal`],
//! [`progress`] shows it. A new kind of source is one file that implements [`origin::Store`] and [`source::Source`], a new kind of
//! target one that implements [`sink::Target`]; each has a line in a list of kinds.
//!
//! Reading order: [`journey`]; [`origin`] (what can be read), [`kine`] and [`convert`] (a SQLite store), [`backend`] and
//! [`remote`] (etcd's), [`fence`] and [`fenced`] (a running etcd that takes no more writes); [`to_datadir`] with [`verify`] (asks a
//! running etcd) and [`commit`]; [`to_sqlite`], [`renumber`] and [`sqlite`] (the way back); [`estimate`] (a dry run), [`command`]
//! (`syncer migrate`).

pub mod backend;
pub mod command;
pub mod commit;
pub mod convert;
pub mod estimate;
pub mod fence;
pub mod fenced;
pub mod journal;
pub mod journey;
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
pub mod to_datadir;
pub mod to_sqlite;
pub mod verify;
pub mod ways;

pub use commit::finish_commit;
pub use journey::{Commit, Journey, Outcome};
pub use origin::Origin;
pub use to_datadir::{DatadirTarget, ImportOutcome};
pub use to_sqlite::{ExportOutcome, SqliteTarget};
pub use verify::Verify;
