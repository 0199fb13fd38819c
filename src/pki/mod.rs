//! Certificates and keys: vCluster's files and names, used where they exist, issued where they are missing.
//!
//! [`ensure`] does everything, at each start and at each look at the clock after it: [`plan`] says which files are
//! needed; the store reads them; `complete` checks each, issues what is missing and renews what is ours and due;
//! only if nothing was refused is anything written. A file that exists is never overwritten, unless it is a
//! certificate (or kubeconfig) that we issued ourselves and that is due, see `record`.
//!
//! With a host API the CAs and the service account key pair come from Secret `<name>-certs`, and go there: [`shared`].
//!
//! Crash-safe: each key is durable before anything that is made from it, the record of what we issued before the
//! certificate that it speaks of, and each file appears whole or not at all. A run that is killed anywhere leaves
//! files with which the next run goes on.

mod cert;
mod check;
pub mod command;
mod complete;
mod ensure;
mod follow;
mod issue;
mod key;
mod kubeconfig;
pub mod layout;
mod outcome;
pub mod plan;
mod problem;
mod record;
pub mod renew;
mod sans;
pub mod shared;
mod store;
mod throwaway;

pub use cert::Cert;
pub use ensure::{Mode, Pki, ensure, ensure_input};
pub use follow::follow;
pub use layout::{EtcdTlsFiles, PkiPaths};
pub use outcome::{Report, State};
pub use problem::{Problem, Refusal};
pub use throwaway::throwaway;

#[cfg(test)]
mod tests;
