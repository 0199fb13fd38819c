//! Moving a store from one form into another.

pub mod convert;
pub mod kine;
pub mod pipeline;
pub mod progress;
pub mod sink;
pub mod source;
