//! The file formats against real etcd: what we write it serves, what it writes we read.

mod store;
mod written;
