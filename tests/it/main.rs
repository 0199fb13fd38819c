//! The integration tests: one binary, against real etcd, kine and kube-apiserver (`scripts/parts`).

mod bucket;
mod cli;
mod container;
mod datadir;
mod discovery;
mod host;
mod instants;
mod journey;
mod migrate;
mod migrate_from;
mod pki;
mod plan;
mod reset;
mod restore;
mod scaling;
mod serve;
mod settings;
mod snapshot;
mod space;
mod start;
mod statefulset;
#[path = "../box/mod.rs"]
mod statefulset_box;
mod supervise;
mod support;
mod way_back;
