//! A used-up quota (NOSPACE) and what is done about it, one step at a time. No clock, no socket, no file.
//!
//! etcd refuses writes from the moment at which its file would grow beyond the quota, and goes on refusing until
//! somebody disarms the alarm, whatever is free by then. Most of such a file is old revisions, or pages that compaction
//! has emptied and that only a defragmentation gives back: both can be undone without asking anybody. Objects that are
//! alive cannot: then there is nothing to do but to say so, and disarming would only raise the alarm again.
//!
//! * **To which revision.** The API server compacts every five minutes to where the store was five minutes before, so
//!   that nobody's list or watch of the last minutes is cut off; by a write, which NOSPACE refuses. That revision
//!   is compacted to first. If what is left is still too much, to the newest: no object is lost by that, but who reads
//!   in pages or watches from before then lists anew, as after any compaction.
//! * **In which order.** A member serves nothing while it is defragmented. So one at a time, only while every member
//!   answers and has caught up and the membership rests, those that follow before the leader.
//! * **CORRUPT** is never disarmed: it says that members hold different data, and writes would spread that.

use crate::etcd::client::Alarm;
use crate::ids::{MemberId, Revision};

/// What a decision rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Raised alarms, each with who raised it.
    pub alarms: Vec<(MemberId, Alarm)>,
    /// The leader, beside which this is decided.
    pub leader: MemberId,
    /// Every member of the list.
    pub stores: Vec<Store>,
    /// The store's newest revision.
    pub newest: Revision,
    /// The newest revision that is known to be at least five minutes old.
    pub old: Option<Revision>,
    /// Up to where was compacted since the alarm was raised.
    pub compacted: Option<Revision>,
    /// No member is to come or go.
    pub rests: bool,
    /// The member of which a snapshot is being taken.
    pub saved: Option<MemberId>,
}

/// A member's backend file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Whose.
    pub member: MemberId,
    /// Whether it does not vote yet.
    pub learner: bool,
    /// Whether it answers and has caught up; if not, the other fields mean nothing.
    pub well: bool,
    /// Bytes that the file may have.
    pub quota: u64,
    /// Bytes that it has.
    pub size: u64,
    /// Bytes in use in it.
    pub in_use: u64,
}

impl Store {
    /// So much may be in use after a disarming, or the alarm would soon be back: nine tenths of the quota.
    pub const fn room(&self) -> u64 {
        self.quota - self.quota / 10
    }

    /// Whether a defragmentation is wanted and gives back enough (a fiftieth of the quota) to be worth it.
    const fn wasteful(&self) -> bool {
        self.size > self.room() && self.size.saturating_sub(self.in_use) > self.quota / 50
    }

    /// With more in use than this, younger revisions go too: three quarters of the quota.
    const fn tight(&self) -> u64 {
        self.quota / 4 * 3
    }
}

/// What is done about a used-up quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// No alarm.
    Nothing,
    /// Remove what is older than this revision.
    Compact(Revision),
    /// Write this member's file anew.
    Defragment(MemberId),
    /// Take this member's NOSPACE alarm back.
    Disarm(MemberId),
    /// A step is to be taken and may not be taken yet.
    Wait(Hold),
    /// What is alive fills the quota.
    Full {
        /// Bytes in use.
        in_use: u64,
        /// The quota.
        quota: u64,
    },
    /// These members raised CORRUPT.
    Corrupt(Vec<MemberId>),
}

/// Why a step is not taken yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// These members do not answer or lag: defragmenting another could cost the quorum.
    Degraded(Vec<MemberId>),
    /// A member is to come or go.
    Membership,
    /// This member is still removing what was compacted.
    Compacting(MemberId),
    /// A snapshot of this member is being taken, whose end a defragmentation would wait for with everybody.
    Snapshot(MemberId),
}

/// The next step.
pub fn repair(space: &Space) -> Repair {
    let corrupt: Vec<_> = space.alarms.iter().filter(|(_, a)| *a == Alarm::Corrupt).map(|(id, _)| *id).collect();
    if !corrupt.is_empty() {
        return Repair::Corrupt(corrupt);
    }
    let Some((raised_by, _)) = space.alarms.iter().find(|(_, alarm)| *alarm == Alarm::NoSpace) else {
        return Repair::Nothing;
    };
    // A learner stands for no quorum, and is not asked how it is.
    let unwell: Vec<_> =
        space.stores.iter().filter(|store| !store.well && !store.learner).map(|store| store.member).collect();
    let has_room = |store: &Store| store.in_use <= store.room() && !store.wasteful();
    if unwell.is_empty() && space.stores.iter().all(has_room) {
        // Whether one that learns has room by now is not known: without, it would raise the alarm again at the next write.
        let learns = |store: &Store| store.member == *raised_by && store.learner && !store.well;
        return match space.stores.iter().any(learns) {
            true => Repair::Wait(Hold::Membership),
            false => Repair::Disarm(*raised_by),
        };
    }
    let Some(leader) = space.stores.iter().find(|store| store.member == space.leader && store.well) else {
        return Repair::Wait(Hold::Degraded(unwell));
    };
    let beyond = |revision: &Revision| space.compacted.is_none_or(|compacted| compacted < *revision);
    if let Some(old) = space.old.filter(beyond) {
        return Repair::Compact(old);
    }
    if leader.in_use > leader.tight() && beyond(&space.newest) {
        return Repair::Compact(space.newest);
    }
    if leader.in_use > leader.room() {
        return Repair::Full { in_use: leader.in_use, quota: leader.quota };
    }
    if !unwell.is_empty() {
        return Repair::Wait(Hold::Degraded(unwell));
    }
    if !space.rests {
        return Repair::Wait(Hold::Membership);
    }
    let followers = space.stores.iter().filter(|store| store.member != space.leader && !has_room(store));
    match followers.min_by_key(|store| store.member).unwrap_or(leader) {
        // Of the same objects; but files differ a little.
        store if store.in_use > store.room() && leader.in_use.saturating_add(store.quota / 20) > store.room() => {
            Repair::Full { in_use: store.in_use, quota: store.quota }
        }
        store if store.in_use > store.room() => Repair::Wait(Hold::Compacting(store.member)),
        store if space.saved == Some(store.member) => Repair::Wait(Hold::Snapshot(store.member)),
        store => Repair::Defragment(store.member),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ME: MemberId = MemberId(1);
    const MIB: u64 = 1 << 20;

    fn store(id: u64, size: u64, in_use: u64) -> Store {
        Store {
            member: MemberId(id),
            learner: false,
            well: true,
            quota: 100 * MIB,
            size: size * MIB,
            in_use: in_use * MIB,
        }
    }

    /// Three members whose files have reached the quota, nine tenths of it old revisions.
    fn full() -> Space {
        Space {
            alarms: vec![(MemberId(2), Alarm::NoSpace)],
            leader: ME,
            stores: vec![store(1, 100, 99), store(2, 100, 99), store(3, 100, 99)],
            newest: Revision(900),
            old: None,
            compacted: None,
            rests: true,
            saved: None,
        }
    }

    fn compacted() -> Space {
        Space {
            compacted: Some(Revision(900)),
            stores: vec![store(1, 100, 10), store(2, 100, 10), store(3, 100, 10)],
            ..full()
        }
    }

    #[test]
    fn without_an_alarm_nothing_is_done() {
        assert_eq!(repair(&Space { alarms: vec![], ..full() }), Repair::Nothing);
    }

    #[test]
    fn what_the_api_server_would_have_compacted_goes_first_and_the_rest_only_if_need_be() {
        let space = Space { old: Some(Revision(500)), ..full() };
        assert_eq!(repair(&space), Repair::Compact(Revision(500)));
        let space = Space { compacted: Some(Revision(500)), ..space };
        assert_eq!(repair(&space), Repair::Compact(Revision(900)));
        let enough = Space { stores: compacted().stores, ..space };
        assert_eq!(repair(&enough), Repair::Defragment(MemberId(2)));
        assert_eq!(repair(&full()), Repair::Compact(Revision(900)));
    }

    /// A learner's etcd is not asked how it is. But its quota, too, refuses everybody's writes.
    #[test]
    fn a_learner_keeps_the_alarm_from_nobody() {
        let mut space = compacted();
        space.stores = vec![store(1, 12, 10), store(2, 12, 10), Store { learner: true, well: false, ..store(3, 0, 0) }];
        space.rests = false;
        assert_eq!(repair(&space), Repair::Disarm(MemberId(2)));
        space.alarms = vec![(MemberId(3), Alarm::NoSpace)];
        assert_eq!(repair(&space), Repair::Wait(Hold::Membership), "it would raise it again");
        space.stores[1].size = 100 * MIB;
        assert_eq!(repair(&space), Repair::Wait(Hold::Membership), "nothing is defragmented beside one that joins");
        space.stores[2].learner = false;
        assert_eq!(repair(&space), Repair::Wait(Hold::Degraded(vec![MemberId(3)])));
    }

    #[test]
    fn those_that_follow_are_defragmented_first_and_the_leader_last() {
        let mut space = compacted();
        for id in [2, 3, 1] {
            assert_eq!(repair(&space), Repair::Defragment(MemberId(id)));
            space.stores[id as usize - 1] = store(id, 12, 10);
        }
        assert_eq!(repair(&space), Repair::Disarm(MemberId(2)));
    }

    #[test]
    fn a_member_is_not_defragmented_while_a_snapshot_of_it_is_taken() {
        let saved = Space { saved: Some(MemberId(2)), ..compacted() };
        assert_eq!(repair(&saved), Repair::Wait(Hold::Snapshot(MemberId(2))));
        let saved = Space { saved: Some(MemberId(3)), ..compacted() };
        assert_eq!(repair(&saved), Repair::Defragment(MemberId(2)), "another's");
    }

    #[test]
    fn nothing_is_defragmented_while_a_member_is_missing_or_the_membership_changes() {
        let mut space = compacted();
        space.stores[2].well = false;
        assert_eq!(repair(&space), Repair::Wait(Hold::Degraded(vec![MemberId(3)])));
        let space = Space { rests: false, ..compacted() };
        assert_eq!(repair(&space), Repair::Wait(Hold::Membership));
        let mut space = compacted();
        space.stores[1].in_use = 95 * MIB;
        assert_eq!(repair(&space), Repair::Wait(Hold::Compacting(MemberId(2))));
        space.stores[0].in_use = 89 * MIB;
        assert_eq!(repair(&space), Repair::Full { in_use: 95 * MIB, quota: 100 * MIB }, "it is not compacting");
    }

    #[test]
    fn what_is_alive_and_fills_the_quota_is_said_and_nothing_is_disarmed() {
        let space = Space { compacted: Some(Revision(900)), ..full() };
        assert_eq!(repair(&space), Repair::Full { in_use: 99 * MIB, quota: 100 * MIB });
        // Deletions are taken all the while.
        let deleted = Space { newest: Revision(901), ..space.clone() };
        assert_eq!(repair(&deleted), Repair::Compact(Revision(901)));
        // A greater quota is enough.
        let raise = |store: &Store| Store { quota: 200 * MIB, ..*store };
        let raised = Space { stores: space.stores.iter().map(raise).collect(), ..space };
        assert_eq!(repair(&raised), Repair::Disarm(MemberId(2)));
    }

    #[test]
    fn corruption_is_never_disarmed_nor_anything_done_beside_it() {
        let alarms = vec![(MemberId(1), Alarm::NoSpace), (MemberId(3), Alarm::Corrupt)];
        for space in [full(), compacted()] {
            let space = Space { alarms: alarms.clone(), ..space };
            assert_eq!(repair(&space), Repair::Corrupt(vec![MemberId(3)]));
        }
    }

    fn any_space() -> impl Strategy<Value = Space> {
        let stores = proptest::collection::vec((any::<bool>(), 0..200u64, 0..200u64), 1..5);
        let alarms = proptest::collection::vec((0..5u64, any::<bool>()), 0..3);
        let revision = || proptest::option::of(0..1000i64);
        let flags = (any::<bool>(), any::<bool>());
        (stores, alarms, revision(), revision(), flags).prop_map(|(stores, alarms, old, compacted, (rests, saves))| {
            let numbered = stores.into_iter().zip(1..);
            let store_of = |((well, a, b), id): ((bool, u64, u64), u64)| {
                let store = store(id, a.max(b), a.min(b));
                Store { well, ..store }
            };
            let alarm = |no_space| if no_space { Alarm::NoSpace } else { Alarm::Corrupt };
            Space {
                alarms: alarms.into_iter().map(|(id, no_space)| (MemberId(id), alarm(no_space))).collect(),
                leader: ME,
                stores: numbered.map(store_of).collect(),
                newest: Revision(1000),
                old: old.map(Revision),
                compacted: compacted.map(Revision),
                rests,
                saved: saves.then_some(ME),
            }
        })
    }

    proptest! {
        #[test]
        fn no_step_hurts(space in any_space()) {
            let well = space.stores.iter().all(|store| store.well);
            let large = |store: &&Store| store.size > store.room() + store.quota / 50;
            match repair(&space) {
                Repair::Defragment(id) => {
                    prop_assert!(well && space.rests && space.saved != Some(id));
                    prop_assert!(id != ME || !space.stores.iter().filter(large).any(|store| store.member != ME));
                }
                Repair::Disarm(_) => prop_assert!(well && space.stores.iter().filter(large).count() == 0),
                Repair::Compact(revision) => prop_assert!(space.compacted.is_none_or(|done| done < revision)),
                _ => {}
            }
            if space.alarms.iter().any(|(_, alarm)| *alarm == Alarm::Corrupt) {
                prop_assert!(matches!(repair(&space), Repair::Corrupt(_)));
            }
        }

        /// Carried out, the steps come to an end: writes are taken again, or it is said why not.
        #[test]
        fn the_steps_end(mut space in any_space(), alive in 0..120u64) {
            space.alarms.retain(|(_, alarm)| *alarm == Alarm::NoSpace);
            let lives = |s: &mut Store| (s.well, s.in_use, s.size) = (true, alive * MIB, s.size.max(alive * MIB));
            for step in 0..20 {
                match repair(&space) {
                    Repair::Compact(revision) => {
                        space.compacted = Some(revision);
                        space.stores.iter_mut().for_each(lives);
                    }
                    Repair::Defragment(id) => {
                        let store = space.stores.iter_mut().find(|s| s.member == id).unwrap();
                        store.size = store.in_use;
                    }
                    Repair::Disarm(id) => space.alarms.retain(|(by, _)| *by != id),
                    Repair::Wait(Hold::Snapshot(_)) => space.saved = None,
                    Repair::Wait(_) => {
                        space.rests = true;
                        space.stores.iter_mut().for_each(lives);
                    }
                    Repair::Nothing | Repair::Full { .. } | Repair::Corrupt(_) => return Ok(()),
                }
                prop_assert!(step < 19);
            }
        }
    }
}
