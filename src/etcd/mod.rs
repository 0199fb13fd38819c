//! The local etcd: which line it is, how it is started, and how it is asked. Its lines and its end are understood by
//! [`crate::supervise`].
//!
//! Reading order: [`version`], [`args`], [`launch`] (how it is started), [`client`], [`tls_flags`], [`health`] (how it is asked), [`space`]
//! (what is done about a used-up quota).

pub mod args;
pub mod client;
pub mod health;
pub mod launch;
pub mod space;
pub mod tls_flags;
pub mod version;

pub use args::{ArgsError, Bootstrap, EtcdLaunch, InitialMember};
pub use version::{EtcdVersion, VersionError};
