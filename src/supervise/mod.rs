//! The supervisor.
pub mod spec;
