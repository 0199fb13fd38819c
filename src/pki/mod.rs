//! Certificates and keys: vCluster's files and names, used where they exist, issued where they are missing.

mod layout;
mod throwaway;

pub use layout::{EtcdTlsFiles, PkiPaths};
pub use throwaway::throwaway;
