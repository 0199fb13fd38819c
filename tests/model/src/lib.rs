//! The model checker of syncer's decisions: stateright explores the shipped functions themselves (`src/boot`,
//! `src/membership`), among pods, volumes, etcd members, a StatefulSet controller and a host API that fail.
//!
//! What is abstracted: an election, the copying of a log to one follower, and each decision's observation are atomic; a
//! partition cuts one pod off from all others; a log is copied whole. DNS is right, silent, or stale: then it goes on
//! saying for a while, to everybody, which pods there were at one time, and where. etcd's own connections do not depend on
//! it, and nobody remembers where another pod was. A pod whose own name does not lead to it starts nothing, unless it is
//! the only one wanted. A lost volume is lost with its pod. A store is one write; its import puts a data dir in place that
//! lacks it until it is committed, as nothing has verified it before; the way back is one step. All pods have one CA, or each its
//! own. Settings change in all pods at once, which start anew. Seconds pass only where IDs are made of them.
//!
//! What is not: a decision is carried out later than it was made, every write of the marker may land late, a process may be
//! killed between any two steps.
//!
//! Not there: what comes from a deployed etcd, certificates but for whose CA they are of, versions of etcd, the clock, damage
//! that only etcd sees, and several operators at once.

#[path = "../../../src/boot/mod.rs"]
pub mod boot;
#[path = "../../../src/exit.rs"]
pub mod exit;
#[path = "../../../src/ids.rs"]
pub mod ids;
#[path = "../../../src/membership/mod.rs"]
pub mod membership;
#[path = "../../../src/rules.rs"]
pub mod rules;

pub mod action;
pub mod config;
pub mod etcd;
pub mod explore;
pub mod heal;
mod leader;
pub mod observe;
mod pod;
mod raft;
mod store;
pub mod world;
