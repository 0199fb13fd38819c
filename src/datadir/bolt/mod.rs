//! bbolt files, the format of etcd's backend: a bulk writer and a bounded, validating reader. Byte maps: `FORMAT.md`.

pub mod page;
pub mod reader;
pub mod writer;

#[cfg(test)]
mod tests;

pub use page::BoltError;
pub use reader::{BoltReader, Bucket, Cursor, ReadAt};
pub use writer::BoltWriter;
