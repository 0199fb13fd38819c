//! Children: how they are started, bound to our life, listened to and stopped.

pub mod backoff;
pub mod child;
pub mod lines;
pub mod signals;
pub mod spec;

pub use signals::stop_signal;
pub mod thin;
