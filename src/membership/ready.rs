//! Readiness (rule 4.8): what the StatefulSet controller and the Service are told. Liveness depends on nothing.
//!
//! A StatefulSet waits for readiness: under `OrderedReady` no pod is created above one that is not ready, and none is
//! deleted while a lower one is not. A pod that cannot serve before another exists must therefore say that it is ready.

use serde::{Deserialize, Serialize};

use crate::boot::Known;
use crate::rules::{Rule, Rules};

/// What readiness rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// A stop was asked for.
    pub stopping: bool,
    /// A caught-up voter here answers linearizable reads.
    pub serves: bool,
    /// The API server says that it is ready, or there is none here.
    pub apiserver_ready: bool,
    /// The boot decision was to start, or to wait: nothing is wrong with this pod itself (no refusal, no crash).
    pub sound: bool,
    /// Whether the volume holds no data dir.
    pub empty: bool,
    /// Whether this is the seed.
    pub seed: bool,
    /// The pod management policy.
    pub policy: Known<PodManagement>,
    /// Whether this ordinal is wanted, if that is known.
    pub wanted: Option<bool>,
    /// Whether a wanted ordinal above this one has no pod: by the host API, or without one by DNS.
    pub missing_above: Option<bool>,
    /// Whether an ordinal above this one is wanted.
    pub wanted_above: Option<bool>,
    /// Whether the seed runs an older revision than this pod: by the host API, or without one because it resolves and
    /// has no `/v1/state`.
    pub seed_is_older: Option<bool>,
}

/// `spec.podManagementPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodManagement {
    /// One pod after the other.
    OrderedReady,
    /// All at once.
    Parallel,
}

/// Whether this pod is ready, and the rule.
pub fn ready(pod: &Pod) -> (bool, Rule) {
    explained(pod, Rules::ALL)
}

/// [`ready`] by some of the rules.
pub fn explained(pod: &Pod, rules: Rules) -> (bool, Rule) {
    let ordered = pod.policy != Known::Present(PodManagement::Parallel);
    let blocks = !pod.stopping && pod.sound && !pod.serves;
    let cases = [
        (Rule::Serving, !pod.stopping && pod.serves && pod.apiserver_ready),
        (Rule::ReadyToBeJoined, ordered && blocks && pod.missing_above == Some(true)),
        (Rule::ReadyWhileWaiting, ordered && blocks && pod.seed && !pod.empty && pod.wanted_above == Some(false)),
        (Rule::ReadySurplus, ordered && !pod.stopping && pod.wanted == Some(false)),
        (Rule::ReadyForRollout, blocks && pod.empty && pod.seed_is_older == Some(true)),
    ];
    let fits = cases.into_iter().find(|(rule, fits)| *fits && rules.on(*rule));
    fits.map_or((false, Rule::Serving), |(rule, _)| (true, rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod {
            stopping: false,
            serves: true,
            apiserver_ready: true,
            sound: true,
            empty: false,
            seed: false,
            policy: Known::Present(PodManagement::OrderedReady),
            wanted: Some(true),
            missing_above: Some(false),
            wanted_above: Some(true),
            seed_is_older: Some(false),
        }
    }

    #[test]
    fn each_rule_makes_a_pod_ready_and_its_absence_does_not() {
        let waits = || Pod { serves: false, apiserver_ready: false, ..pod() };
        let table = [
            (pod(), Rule::Serving),
            (Pod { missing_above: Some(true), ..waits() }, Rule::ReadyToBeJoined),
            (Pod { seed: true, wanted_above: Some(false), ..waits() }, Rule::ReadyWhileWaiting),
            (Pod { wanted: Some(false), sound: false, ..waits() }, Rule::ReadySurplus),
            (Pod { empty: true, seed_is_older: Some(true), ..waits() }, Rule::ReadyForRollout),
        ];
        for (pod, rule) in table {
            assert_eq!(ready(&pod), (true, rule), "{pod:?}");
            assert!(!explained(&pod, Rules::without(&[rule])).0, "{pod:?}");
            assert!(!ready(&Pod { stopping: true, ..pod.clone() }).0, "{pod:?}");
            let known_parallel = Pod { policy: Known::Present(PodManagement::Parallel), ..pod.clone() };
            assert_eq!(ready(&known_parallel).0, matches!(rule, Rule::Serving | Rule::ReadyForRollout), "{pod:?}");
            let policy_unknown = Pod { policy: Known::default(), ..pod };
            assert!(ready(&policy_unknown).0);
        }
    }

    /// A rollout would replace those that serve, one after the other.
    #[test]
    fn a_seed_that_is_cut_off_from_those_that_are_wanted_is_not_ready() {
        let seed = Pod { seed: true, serves: false, apiserver_ready: false, ..pod() };
        assert!(!ready(&seed).0);
        assert!(!ready(&Pod { policy: Known::default(), ..seed }).0);
    }

    #[test]
    fn what_is_not_known_makes_no_pod_ready() {
        let waits =
            Pod { serves: false, wanted: None, missing_above: None, wanted_above: None, seed_is_older: None, ..pod() };
        for pod in [waits.clone(), Pod { seed: true, ..waits.clone() }, Pod { empty: true, ..waits }] {
            assert!(!ready(&pod).0, "{pod:?}");
        }
    }
}
