//! A step that etcd refuses again and again. A moment of it is usual: etcd lets a member go, or another come, only five seconds
//! after all of them have connected, and promotes no learner that is behind. What lasts, somebody must see to.

use std::time::{Duration, Instant};

use super::lasting::Lasting;
use crate::membership::{Observed, Step};

/// What was refused last, and for how long.
#[derive(Debug, Default)]
pub(super) struct Refused(Option<(Step, Lasting)>);

impl Refused {
    /// Another step was taken, or none was to be.
    pub(super) fn ends(&mut self) {
        self.0 = None;
    }

    /// etcd has refused a step with these words.
    pub(super) fn again(&mut self, step: &Step, observed: &Observed, why: &anyhow::Error) {
        let Some(lasts) = self.is_due(step, Instant::now()) else { return };
        let silent: Vec<_> = observed.members.iter().filter(|m| !m.active && m.member.id != observed.leader).collect();
        let name = |m: &&crate::membership::MemberFact| match m.member.ordinal {
            Some(ordinal) => format!("pod {ordinal}'s {}", m.member.id),
            None => m.member.id.to_string(),
        };
        let silent: Vec<_> = silent.iter().map(name).collect();
        let remedy = match silent.is_empty() {
            true => "look at the logs of the members' etcd",
            false => {
                "start the pods that do not answer; a member whose volume is lost is replaced once its pod runs with an empty one"
            }
        };
        tracing::warn!(
            ?step,
            silent = silent.join(", "),
            seconds = lasts.as_secs(),
            remedy,
            "etcd refuses it: {why:#}"
        );
    }

    /// For how long it has been refused, if that is to be said now.
    fn is_due(&mut self, step: &Step, now: Instant) -> Option<Duration> {
        match &mut self.0 {
            Some((of, lasting)) if of == step => lasting.is_due(now),
            other => {
                *other = Some((*step, Lasting::since(now)));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ordinal;

    #[test]
    fn what_is_refused_for_long_is_said() {
        let (mut refused, begun) = (Refused::default(), Instant::now());
        let mut due = |ordinal, seconds| {
            refused
                .is_due(&Step::AddLearner(Ordinal(ordinal)), begun + Duration::from_secs(seconds))
                .map(|d| d.as_secs())
        };
        assert_eq!([due(3, 0), due(3, 14), due(3, 15)], [None, None, Some(15)]);
        assert_eq!([due(4, 60), due(4, 74), due(4, 75)], [None, None, Some(15)], "another step");
        refused.ends();
        let again = refused.is_due(&Step::AddLearner(Ordinal(4)), begun + Duration::from_secs(100));
        assert_eq!(again, None);
    }
}
