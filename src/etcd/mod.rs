//! The local etcd: which line it is, how it is started, asked, listened to, and what its end means.
//!
//! Reading order: [`version`] and [`args`] (how it is started), [`client`] and [`health`] (how it is asked), [`log`] and
//! [`exit`] (what it says and why it ended).

pub mod args;
pub mod version;

pub use args::{ArgsError, Bootstrap, EtcdLaunch, InitialMember};
pub use version::{EtcdVersion, VersionError};
