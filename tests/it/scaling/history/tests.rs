//! What is not linearizable is told, and what is passes.

use std::time::{Duration, Instant};

use super::{Act, Answer, Change, Operation, Stands, wrong};

const KEY: &str = "key";

/// A history in the making, of a store with one key; times are milliseconds.
struct Told {
    zero: Instant,
    history: Vec<Operation>,
    kept: Vec<Change>,
}

impl Told {
    fn new() -> Told {
        Told { zero: Instant::now(), history: Vec::new(), kept: Vec::new() }
    }

    /// What the store keeps: the key has this value from this revision on.
    fn keeps(&mut self, revision: i64, value: Option<&str>) {
        let version = self.stands().map_or(1, |stands| stands.version + 1);
        let left = value.map(|value| Stands { value: value.to_owned(), modified: revision, version });
        self.kept.push(Change { revision, key: KEY.to_owned(), left });
    }

    /// The key as it is now.
    fn stands(&self) -> Option<Stands> {
        self.kept.last().and_then(|change| change.left.clone())
    }

    fn unknown(&mut self, began: u64, act: Act) {
        let began = self.zero + Duration::from_millis(began);
        self.history.push(Operation { client: 0, key: KEY.to_owned(), act, began, answer: None });
    }

    fn answered(&mut self, time: [u64; 2], act: Act, revision: i64, wrote: bool, stood: Option<Stands>) {
        self.unknown(time[0], act);
        let at = self.zero + Duration::from_millis(time[1]);
        self.history.last_mut().expect("it was added").answer = Some(Answer { at, revision, wrote, stood });
    }

    /// A write that is acknowledged, and kept.
    fn writes(&mut self, time: [u64; 2], act: Act, revision: i64) {
        let value = match &act {
            Act::Put(value) | Act::Swap { to: value, .. } => Some(value.clone()),
            Act::Delete | Act::Read => None,
        };
        self.answered(time, act, revision, true, self.stands());
        self.keeps(revision, value.as_deref());
    }

    /// A read of the key as it is now.
    fn reads(&mut self, time: [u64; 2], revision: i64) {
        self.answered(time, Act::Read, revision, false, self.stands());
    }

    #[track_caller]
    fn fits(&self) {
        let wrong = wrong(&self.history, &self.kept);
        assert!(wrong.is_empty(), "a correct history was refused: {wrong:#?}");
    }

    /// This is wrong and nothing else.
    #[track_caller]
    fn is_told(&self, what: &str) {
        let wrong = wrong(&self.history, &self.kept);
        assert!(!wrong.is_empty() && wrong.iter().all(|wrong| wrong.contains(what)), "not ({what}) alone: {wrong:#?}");
    }
}

fn put(value: &str) -> Act {
    Act::Put(value.to_owned())
}

fn swap(from: i64, to: &str) -> Act {
    Act::Swap { from, to: to.to_owned() }
}

#[test]
fn a_correct_history_with_unknown_outcomes_passes() {
    let mut told = Told::new();
    told.reads([0, 1], 1);
    told.answered([1, 2], Act::Delete, 1, false, None);
    told.writes([2, 9], swap(0, "a"), 2);
    // Begun before that was told, though it is later.
    told.writes([3, 8], put("b"), 3);
    told.reads([4, 9], 3);
    // What was not told has taken effect, late and in any order, or never.
    told.unknown(10, put("c"));
    told.unknown(11, put("d"));
    told.unknown(12, Act::Delete);
    told.unknown(13, put("never"));
    told.unknown(14, swap(7, "e"));
    told.unknown(15, swap(3, "never either"));
    told.unknown(16, Act::Delete);
    told.keeps(5, Some("d"));
    told.reads([20, 21], 6);
    told.keeps(7, Some("c"));
    told.answered([22, 23], swap(5, "no"), 7, false, told.stands());
    told.keeps(8, Some("e"));
    told.keeps(9, None);
    told.reads([24, 25], 9);
    told.writes([26, 27], put("f"), 10);
    told.keeps(11, None);
    told.answered([28, 29], Act::Delete, 11, false, None);
    told.writes([30, 31], put("g"), 12);
    told.writes([32, 33], Act::Delete, 13);
    told.fits();
}

#[test]
fn a_lost_write_is_told() {
    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.answered([2, 3], put("b"), 3, true, told.stands());
    told.is_told("an acknowledged write is lost");

    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.answered([2, 3], Act::Delete, 3, true, told.stands());
    told.is_told("an acknowledged write is lost");
}

#[test]
fn a_read_of_what_was_not_there_is_told() {
    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    let old = told.stands();
    told.writes([2, 3], put("b"), 3);
    told.answered([4, 5], Act::Read, 3, false, old.clone());
    told.is_told("it was told what never was");

    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.answered([2, 3], Act::Read, 2, false, Some(Stands { version: 2, ..told.stands().expect("a key") }));
    told.is_told("it was told what never was");
}

#[test]
fn a_stale_read_is_told() {
    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    let old = told.stands();
    told.writes([2, 3], put("b"), 3);
    // As it was, by a member that has not heard of the later one.
    told.answered([4, 5], Act::Read, 2, false, old);
    told.is_told("had been told of before it began");
}

#[test]
fn two_swaps_from_the_same_revision_are_told() {
    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.writes([2, 9], swap(2, "b"), 3);
    told.writes([2, 9], swap(2, "c"), 4);
    told.is_told("it cannot have done so");

    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.unknown(2, swap(2, "b"));
    told.keeps(3, Some("b"));
    told.unknown(2, swap(2, "c"));
    told.keeps(4, Some("c"));
    told.is_told("nobody can have made this change");
}

#[test]
fn a_swap_that_was_refused_for_nothing_is_told() {
    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.answered([2, 3], swap(2, "b"), 2, false, told.stands());
    told.is_told("it cannot have done so");
}

#[test]
fn a_revision_of_two_writes_is_told() {
    let mut told = Told::new();
    told.writes([0, 9], put("a"), 2);
    told.answered([0, 9], put("a"), 2, true, None);
    told.is_told("a second write was acknowledged at the same revision");

    let mut told = Told::new();
    told.writes([0, 9], put("a"), 2);
    told.kept.push(told.kept[0].clone());
    told.is_told("two changes at one revision");
}

#[test]
fn writes_that_overtake_what_is_over_are_told() {
    let mut told = Told::new();
    told.writes([6, 7], put("a"), 2);
    told.writes([1, 2], put("b"), 3);
    told.is_told("had been told of before it began");

    // A read has told of it.
    let mut told = Told::new();
    told.keeps(4, Some("a"));
    told.reads([0, 1], 5);
    told.answered([2, 3], put("a"), 4, true, None);
    told.is_told("had been told of before it began");

    let mut told = Told::new();
    told.unknown(6, put("a"));
    told.keeps(2, Some("a"));
    told.writes([1, 2], put("b"), 3);
    told.is_told("nobody can have made this change");
}

#[test]
fn a_change_that_nobody_asked_for_or_that_is_made_twice_is_told() {
    let mut told = Told::new();
    told.keeps(2, Some("a"));
    told.is_told("nobody can have made this change");

    let mut told = Told::new();
    told.unknown(0, put("a"));
    told.keeps(2, Some("a"));
    told.keeps(3, Some("a"));
    told.is_told("nobody can have made this change");

    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.unknown(2, Act::Delete);
    told.keeps(3, None);
    told.writes([4, 5], put("b"), 4);
    told.keeps(5, None);
    told.is_told("nobody can have made this change");
}

#[test]
fn a_store_that_does_not_fit_itself_is_told() {
    let mut told = Told::new();
    told.writes([0, 1], put("a"), 2);
    told.unknown(2, Act::Delete);
    told.unknown(2, Act::Delete);
    told.keeps(3, None);
    told.keeps(4, None);
    told.is_told("after None");
}
