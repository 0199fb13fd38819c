//! The API server beside the datastore: how its processes are started ([`distro`], after [`prepare`]), and the port of
//! the charts' Service and probes, on which [`health`] answers until the API server does.

mod answer;
pub mod distro;
pub mod flags;
pub mod front;
pub mod health;
pub mod k0s;
mod k3s;
mod k8s;
pub mod prepare;
mod pump;
pub mod silent;
#[cfg(test)]
mod tests;
pub mod token;
