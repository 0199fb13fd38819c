//! The local etcd: which line it is, how it is started, asked, listened to, and what its end means.
//!
//! Reading order: [`version`] and [`args`] (how it is started).

pub mod args;
pub mod client;
pub mod health;
pub mod launch;
pub mod version;

pub use args::{ArgsError, Bootstrap, EtcdLaunch, InitialMember};
pub use version::{EtcdVersion, VersionError};
