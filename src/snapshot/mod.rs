//! Backups of the store: files as `etcdctl snapshot save` writes them, so that etcd's own tools read ours and we theirs.
//!
//! A snapshot is etcd's backend file with the SHA-256 of it behind ([`digest`]). [`save`] streams one from a running
//! member to a [`target`], where it gets its [`name`] only when it is whole; [`check`] looks through a file. On a
//! [`schedule`] the leader's pod takes them, and removes old ones. [`command`] is `syncer snapshot`.

pub mod check;
pub mod command;
pub mod digest;
pub mod name;
pub mod save;
pub mod schedule;
pub mod target;
