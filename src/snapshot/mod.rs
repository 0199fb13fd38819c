//! Backups of the store: files as `etcdctl snapshot save` writes them, so that etcd's own tools read ours and we theirs.
//!
//! A snapshot is etcd's backend file with the SHA-256 of it behind ([`digest`]). [`save`] streams one from a running
//! member to a [`target`], which is a [`directory`] or a [`bucket`], where it gets its [`name`] only when it is whole;
//! [`check`] looks through a file, [`fetched`] makes one of what is kept elsewhere. On a [`schedule`] the leader's pod takes them, and removes old ones. [`command`] is
//! `syncer snapshot`.

pub mod bucket;
pub mod check;
pub mod command;
pub mod digest;
pub mod directory;
mod environment;
pub mod fetched;
pub mod https;
pub mod name;
mod parts;
pub mod save;
pub mod schedule;
pub mod take;
pub mod target;
