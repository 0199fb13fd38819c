//! Whether what clients were told, and when, and what the store has kept fit into one order in which each operation takes effect at
//! one moment between its beginning and its end: strict linearizability. etcd's revisions are that order, so none is searched
//! for, and each operation is looked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

/// A key that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stands {
    pub value: String,
    pub modified: i64,
    pub version: i64,
}

/// What a client asked for. Each value is given to one operation alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Put(String),
    /// To this value, if the key was last modified at this revision; 0: if it is not there.
    Swap {
        from: i64,
        to: String,
    },
    Delete,
    Read,
}

/// What it was told.
#[derive(Clone, Debug)]
pub struct Answer {
    pub at: Instant,
    /// Of the write; of one that wrote nothing, that at which it has looked.
    pub revision: i64,
    pub wrote: bool,
    /// The key before the write; of one that wrote nothing, as it looked then.
    pub stood: Option<Stands>,
}

/// `answer`: `None` if it was not told anything, so that it may have taken effect, or yet may.
#[derive(Clone, Debug)]
pub struct Operation {
    pub client: u32,
    pub key: String,
    pub act: Act,
    pub began: Instant,
    pub answer: Option<Answer>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Operation { client, key, act, answer, .. } = self;
        let told = answer.as_ref().map(|answer| (answer.revision, answer.wrote, &answer.stood));
        write!(f, "the client of pod {client}, {key}: {act:?}: (revision, wrote, stood): {told:?}")
    }
}

impl Operation {
    fn value(&self) -> Option<&str> {
        match &self.act {
            Act::Put(value) | Act::Swap { to: value, .. } => Some(value),
            Act::Delete | Act::Read => None,
        }
    }
}

/// A change that the store has kept. `left`: the key after it; `None` if it was deleted.
#[derive(Clone, Debug)]
pub struct Change {
    pub revision: i64,
    pub key: String,
    pub left: Option<Stands>,
}

/// What does not fit, one sentence each. `kept`: all changes of the keys, from the first on.
pub fn wrong(history: &[Operation], kept: &[Change]) -> Vec<String> {
    let (kept, mut wrong) = Kept::of(kept);
    let known = Known::of(history);
    let (written, misfits) = acknowledged(history, &kept);
    wrong.extend(misfits);
    wrong.extend(unexplained(history, &kept, &written, &known));
    wrong.extend(out_of_order(history, &known));
    wrong
}

/// What the store has kept, by revision and by key.
struct Kept<'a> {
    changes: BTreeMap<i64, &'a Change>,
    of_key: BTreeMap<&'a str, Vec<&'a Change>>,
}

impl<'a> Kept<'a> {
    /// And what does not fit within itself.
    fn of(kept: &'a [Change]) -> (Kept<'a>, Vec<String>) {
        let (mut changes, mut of_key, mut wrong) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new(), Vec::new());
        for change in kept {
            if let Some(other) = changes.insert(change.revision, change) {
                wrong.push(format!("the store has two changes at one revision: {other:?} and {change:?}"));
            }
        }
        for change in changes.values() {
            let of_key = of_key.entry(change.key.as_str()).or_default();
            let before = of_key.last().and_then(|before: &&Change| before.left.as_ref());
            let fits = match (&change.left, before) {
                (Some(left), before) => {
                    left.modified == change.revision && left.version == before.map_or(0, |before| before.version) + 1
                }
                (None, before) => before.is_some(),
            };
            if !fits {
                wrong.push(format!("the store has {change:?} after {before:?}"));
            }
            of_key.push(*change);
        }
        (Kept { changes, of_key }, wrong)
    }

    /// The key as the latest change of it up to this revision left it.
    fn at(&self, key: &str, revision: i64) -> Option<&'a Stands> {
        let changes = self.of_key.get(key)?;
        let later = changes.partition_point(|change| change.revision <= revision);
        changes.get(later.checked_sub(1)?)?.left.as_ref()
    }
}

/// What clients had been told at any time.
struct Known(Vec<(Instant, i64)>);

impl Known {
    fn of(history: &[Operation]) -> Known {
        let answers = history.iter().filter_map(|operation| operation.answer.as_ref());
        let mut known: Vec<_> = answers.map(|answer| (answer.at, answer.revision)).collect();
        known.sort();
        let mut highest = 0;
        for (_, revision) in &mut known {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Known(known)
    }

    /// The highest revision that anybody had been told before then: whatever begins then takes effect later.
    fn before(&self, then: Instant) -> i64 {
        let told = self.0.partition_point(|(at, _)| *at < then);
        told.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

/// Compares each answer with what the store has kept. The revisions of acknowledged writes, and what does not fit.
fn acknowledged(history: &[Operation], kept: &Kept) -> (BTreeSet<i64>, Vec<String>) {
    let (mut written, mut wrong) = (BTreeSet::new(), Vec::new());
    for operation in history {
        let Some(answer) = &operation.answer else { continue };
        let seen_at = answer.revision - i64::from(answer.wrote);
        let stood = kept.at(&operation.key, seen_at);
        if answer.stood.as_ref() != stood {
            wrong.push(format!("it was told what never was: at revision {seen_at} there was {stood:?}: {operation}"));
        }
        let swaps = matches!(operation.act, Act::Swap { from, .. } if stood.map_or(0, |s| s.modified) == from);
        let able = match operation.act {
            Act::Put(_) => answer.wrote,
            Act::Swap { .. } => answer.wrote == swaps,
            Act::Delete => answer.wrote == stood.is_some(),
            Act::Read => !answer.wrote,
        };
        if !able {
            wrong.push(format!("it cannot have done so: {stood:?} was there: {operation}"));
        }
        if !answer.wrote {
            continue;
        }
        if !written.insert(answer.revision) {
            wrong.push(format!("a second write was acknowledged at the same revision: {operation}"));
        }
        let change = kept.changes.get(&answer.revision);
        let is_there = change.is_some_and(|change| {
            change.key == operation.key && change.left.as_ref().map(|left| left.value.as_str()) == operation.value()
        });
        if !is_there {
            wrong.push(format!("an acknowledged write is lost, the store has {change:?}: {operation}"));
        }
    }
    (written, wrong)
}

/// The changes that nobody was told of and that no operation of unknown outcome can have made. Each makes at most one.
fn unexplained(history: &[Operation], kept: &Kept, written: &BTreeSet<i64>, known: &Known) -> Vec<String> {
    let unknown = || history.iter().filter(|operation| operation.answer.is_none());
    let mut by_value: BTreeMap<_, _> = unknown().filter_map(|o| Some((o.value()?, o))).collect();
    let mut deletes = BTreeMap::<&str, Vec<i64>>::new();
    for delete in unknown().filter(|operation| operation.act == Act::Delete) {
        deletes.entry(&delete.key).or_default().push(known.before(delete.began));
    }
    // The earliest first: whoever can explain a change can explain any later one too.
    deletes.values_mut().for_each(|after| after.sort_by_key(|after| std::cmp::Reverse(*after)));
    let mut explained = |change: &Change| match &change.left {
        Some(left) => by_value.remove(left.value.as_str()).is_some_and(|operation| {
            let stood = kept.at(&change.key, change.revision - 1).map_or(0, |stood| stood.modified);
            operation.key == change.key
                && known.before(operation.began) < change.revision
                && !matches!(operation.act, Act::Swap { from, .. } if from != stood)
        }),
        None => deletes
            .get_mut(change.key.as_str())
            .and_then(|after| after.pop_if(|after| *after < change.revision))
            .is_some(),
    };
    let untold = kept.changes.values().filter(|change| !written.contains(&change.revision));
    let unexplained = untold.filter(|change| !explained(change));
    unexplained.map(|change| format!("nobody can have made this change then: {change:?}")).collect()
}

/// The operations that took effect before something that had been over when they began.
fn out_of_order(history: &[Operation], known: &Known) -> Vec<String> {
    let late = history.iter().filter_map(|operation| {
        let answer = operation.answer.as_ref()?;
        let before = known.before(operation.began);
        // Those that wrote nothing take effect after the write of their revision, in any number.
        let fits = if answer.wrote { before < answer.revision } else { before <= answer.revision };
        (!fits).then(|| format!("revision {before} had been told of before it began: {operation}"))
    });
    late.collect()
}

#[cfg(test)]
mod tests;
