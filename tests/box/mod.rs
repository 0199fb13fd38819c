//! A StatefulSet in a box: pods as processes with addresses of their own, a real DNS server that knows them, and the
//! StatefulSet controller's rules, without Kubernetes. For tests and for trying things out (`scripts/statefulset`).
//!
//! * [`protocol`]: what a box is made of, what can be asked of it, what it says about itself.
//! * [`client`]: starts a box and talks to it. **Tests use this.**
//! * [`controller`]: which pod is started and ended when. Pure: state and event to actions.
//! * [`container`]: when a pod's process is started again in its place. Pure.
//! * [`host`]: in its place, with `--host`, a real Kubernetes control plane, whose pods a small [`kubelet`] (pure) runs.
//! * [`daemon`]: the process that is the box: carries out the controller's actions, and answers clients.
//! * [`network`]: addresses, links and partitions. [`coredns`]: the zone and the server's configuration.
//! * [`pod`]: a pod's process, in namespaces of its own. [`probe`]: asks it whether it is ready, and whether it lives, as
//!   the kubelet does.
//! * [`forward`]: reaches a pod's port from outside of the box. [`stand_in`]: a program for pods that does little.
//!
//! Everything that a box starts dies with it: each process has its parent's death as its death signal, a pod is PID 1 of
//! a PID namespace, and the network's namespaces, which have no names, are gone with their last process. A box that was
//! killed leaves only its folder, and another may be brought up in it.

#![allow(dead_code, reason = "the command and the tests each use some of it")]

pub mod client;
pub mod container;
pub mod controller;
pub mod coredns;
pub mod daemon;
pub mod forward;
pub mod host;
pub mod kubelet;
pub mod network;
pub mod pod;
pub mod probe;
pub mod protocol;
pub mod stand_in;
pub mod way;
