//! syncer is the entrypoint of a virtual cluster's control-plane pod: it runs etcd, moves an existing SQLite store
//! into it with every revision kept, and only then starts the Kubernetes API server.
//!
//! # A pod's life, in order
//!
//! 1. [`settings`]: one immutable [`settings::Settings`] from defaults, values file, environment and flags.
//! 2. [`datadir`]: nobody else uses this data dir, not even an etcd that an earlier syncer left behind.
//!    An interrupted [`reset`] is finished before anything else looks at the data dir.
//! 3. [`observe`]: the facts: data dir, journal, `state.db`, desired replicas, what the peers say.
//! 4. [`boot::decide`]: facts to one decision: start, form, import, join, reset, wait, run on SQLite, or refuse.
//! 5. [`pki`]: certificates and keys; existing ones are used, never overwritten.
//! 6. [`migrate`]: if the decision is to import: read `state.db`, write etcd's files aside, verify them by a
//!    running etcd on loopback, put them in place, commit by renaming `state.db` to `state.db.migrated`. Or from the
//!    chart's deployed etcd, which is fenced first and for good ([`migrate::fenced`]).
//! 7. [`discovery`]: in a pod, its own name must resolve to it before etcd starts.
//!    [`etcd`]: the arguments of the etcd child; started and watched by [`supervise`].
//!    [`peer`]: the other pods are asked what they have and what they want, and told the same.
//! 8. [`serve`]: once etcd serves linearizable reads: the API server and its companions, and port 8443 passed through.
//! 9. [`supervise`]: restarts with backoff until a signal, then stops in reverse: API server, then etcd.
//!    Meanwhile it compares what it serves with what the others do, the syncer beside the etcd leader looks after the
//!    [`membership`], and a pod that is told to stop leaves it first if it is no longer wanted ([`start`]).
//!
//! # Code map
//!
//! Pure (no clock, socket, or file; they take values and return values): [`ids`], [`rules`], [`boot`], [`membership`]
//! (which the model checker in `tests/model` explores as they are), the arguments of etcd, the supervisor's transitions,
//! what a DNS answer says and when to ask.
//! Formats, documented byte by byte: [`datadir`]. All fsync and rename: [`disk`]. Places where tests kill the
//! process: [`crash_point`]. What is written for a moment on a volume that others use: [`scratch`].
//!
//! `syncer plan` shows the facts, the decision and its rule: [`plan`].
//! What the host cluster's API says and keeps: [`host`].
//! Backups, by hand and by a schedule: [`snapshot`].
//! `syncer snapshot restore` puts one in the place of the present store: [`restore`].
//! `syncer recover` goes on with one member of a cluster that lost its majority: [`reset`].
//!
//! # Invariants
//!
//! * The source of a migration is the truth until the commit, which is one rename. The API server never runs before it.
//! * A data dir is never deleted: what is set aside is renamed. Of those that the cluster has gone on without, the newest
//!   three stay.
//! * Unknown is not absent: [`boot::Known`].
//! * Nothing outside `main.rs` exits the process.

pub mod boot;
pub mod cli;
pub mod copy;
pub mod crash_point;
pub mod datadir;
pub mod discovery;
pub mod disk;
pub mod etcd;
pub mod exit;
pub mod host;
pub mod ids;
pub mod kinds;
pub mod membership;
pub mod migrate;
pub mod observe;
pub mod peer;
pub mod pki;
pub mod plan;
pub mod record_file;
pub mod reset;
pub mod restore;
pub mod rules;
pub mod scratch;
pub mod serve;
pub mod settings;
pub mod snapshot;
pub mod start;
pub mod supervise;
pub mod telemetry;
