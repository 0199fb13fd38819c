//! A reset: a voter whose others are gone for good goes on as the only member of its cluster, with its data, its IDs and
//! its revisions.
//!
//! etcd's own `--force-new-cluster` discards the entries that the member does not know to be committed, and acknowledged
//! writes are among them: a follower learns of a commit only with the next message, and stores what it learnt with the
//! next entry. Here the log itself is first made to say that all of it is committed. With at most two voters that is
//! what happened to every acknowledged entry, so nothing is lost ([`Permission::TwoVoters`]); with more, entries that
//! only others have are lost all the same, and the revisions are raised so that no client sees one twice
//! ([`Permission::LossAccepted`]).
//!
//! # Steps
//!
//! ```text
//! refuse? -> journal -> keep a copy -> append the HardState -> etcd --force-new-cluster on loopback, verified, stopped
//!         -> [raise the revision, verified] -> journal done
//! ```
//!
//! Killed anywhere and run again it converges ([`journal`]); between the append and the end the data dir must not be
//! started in any other way: whoever starts etcd calls [`finish`] first.
//!
//! # What the caller guarantees
//!
//! * The data dir's lock is held, and the others are gone for good: none of them is ever started again with its data.
//!   After the append an entry that only this member has counts as committed, and the others' logs may hold another one
//!   in its place.
//! * This is the survivor, and no other member is reset: the marker names it first. Nothing in a data dir shows that its
//!   volume was rolled back, or that the member was removed while it was down.
//! * For a reset to be allowed soon after a change of the voters: whoever made the change asks the leader for one more that
//!   changes nothing, the leader's own peer URLs as they are ([`crate::datadir::log_tail`](mod@crate::datadir::log_tail),
//!   "When a change counts"). Never a learner's.
//! * It starts etcd as usual afterwards: with its own certificates and addresses.

pub mod bump;
pub mod command;
pub mod copy;
pub mod journal;
pub mod run;
pub mod standalone;

pub use journal::{Permission, ResetJournal, dropped, forget, pending};
pub use run::{ResetOutcome, ResetPlan, finish, is_pending, reset};
