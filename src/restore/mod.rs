//! `syncer snapshot restore`: a snapshot's store in the place of the present one, as a new cluster.
//!
//! In two parts, so that nothing is changed for whoever runs before the operator says so by restarting the seed's pod:
//!
//! 1. [`command`] *stages*: it makes a data dir of the snapshot on the volume, aside, by the pipeline of every other journey
//!    ([`crate::migrate`]), has an etcd confirm it, and writes a [`record`].
//! 2. The next start of the seed's pod puts it in place (`boot::restore` decides each step, `start::restore` does it).
//!
//! Crash points of the first: `restore-cleared`, those of an import up to `migrate-journal-done`, `restore-staged`,
//! `restore-recorded`; of the second: `restore-begun`, `restore-noted`, `restore-set-aside`, `restore-in-place`,
//! `restore-marked` (with a host API), `restore-done`.

pub mod command;
mod look;
pub mod record;
