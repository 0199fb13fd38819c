//! The safety rules by name and number (`docs/rules.md` says each in words).
//!
//! Every decision names the rule that made it. The model checker (`tests/model`) switches single rules off, by
//! [`Rules::without`], and expects to see data lost: a rule whose absence harms nothing does not belong here.

use std::fmt;

use serde::Serialize;

macro_rules! rules {
    ($($name:ident $number:literal $text:literal,)*) => {
        /// A rule of `docs/rules.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule { $(#[doc = concat!($number, ": ", $text)] $name,)* }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// The section of `docs/rules.md`.
            pub const fn number(self) -> &'static str {
                match self { $(Rule::$name => $number,)* }
            }

            /// What it says.
            pub const fn text(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }
        }
    };
}

rules! {
    SeedForms "4.1" "only the seed forms a cluster, alone, as one member",
    FreshToken "4.1" "each formation has a fresh random token, and with it IDs that no cluster had before",
    FormedOnce "4.2" "nothing is formed where the marker says formed or a peer has a cluster's data",
    HostAnswers "4.2" "nothing is formed while a configured host API does not answer",
    ClaimsAnswer "4.2" "without a formed marker a pod whose volume exists must itself say that it is empty",
    PeersSayEmpty "4.2" "absence from DNS is no answer: every pod that is to exist must itself say that it is empty",
    JoinersTell "4.2" "nothing is formed beside a pod that is to join a cluster and tells which",
    Released "4.2" "a formed cluster is released only where its store was written back into SQLite, and stays superseded",
    MarkerRestored "4.2" "the leader's pod writes a missing marker again",
    FormedBeforeServing "4.3" "no write is taken before the marker durably says formed",
    FormingNoted "4.3" "a data dir whose formation is not recorded yet waits for the host API",
    StoreOfSeed "4.3" "importing is forming; a store beside a formed cluster is never imported",
    LinearizableProof "4.4" "a data dir is set aside only on a linearizable member list of its cluster without it",
    OneCluster "4.4" "two unrelated cluster IDs: nothing is changed",
    RunningCompared "4.4" "a pod that serves goes on comparing, and stops where another cluster is the right one",
    SetAsideNeverForms "4.4" "a volume whose data dir was set aside joins, and never forms",
    ReplaceListed "4.5" "an empty dir whose peer URL is listed: that member is removed and the pod added anew",
    SecondApart "4.5" "nobody is added within a second of another change, or it may get the ID of one that was removed",
    PlaceKept "4.5" "a pod whose voter was removed to be added anew is added even while nobody says how many are wanted",
    DamagedReplaced "4.5" "a damaged dir is set aside where a quorum of the others lists its member, and the pod added anew",
    AskLeader "4.6" "a joiner asks the leader's pod, which adds it as a learner",
    OneLearner "4.6" "one learner at a time",
    CaughtUpPromotes "4.6" "a learner is promoted once it has caught up and while its pod stays",
    EvictStalled "4.6" "a learner that makes no progress for minutes is removed",
    Superseded "4.7" "a data dir of a superseded cluster never starts; it is set aside once a peer serves the current one",
    RestoreNoted "4.7" "what a staged restore replaces is noted before anything is changed",
    RestoreMarked "4.7" "a restored data dir serves nobody before the marker names its cluster",
    RestoredWaits "4.7" "the API server of a restored cluster waits until nobody serves one that it has replaced",
    Serving "4.8" "ready: a voter that answers linearizable reads, its API server ready",
    ReadyToBeJoined "4.8" "ready: a sound pod without quorum while a pod above it does not exist yet",
    ReadyWhileWaiting "4.8" "ready: the seed while it waits for what only scaling can bring",
    ReadySurplus "4.8" "ready: a pod that is no longer wanted, until it is told to stop",
    ReadyForRollout "4.8" "ready: an empty pod while the seed still runs an older revision",
    SharedCa "4.10" "more than one replica needs one shared CA",
    OneWriter "5.1" "the syncer beside the leader changes membership, one step a pass",
    QuorumKept "5.2" "a member is removed only if the rest keeps its quorum",
    FreshDesired "5.2" "nothing is removed for scaling without a fresh answer on how many replicas are wanted",
    GoneOrLeaving "5.2" "a member is removed for scaling only when its pod is terminating, gone, or asks to leave",
    NeverAddSurplus "5.2" "an ordinal that is not wanted is never added or promoted",
    LeaveFirst "5.3" "a pod that is no longer wanted leaves before it stops",
    StopsIfSpared "5.3" "a pod that leaves and is not let go stops first only if the others can spare it",
    StopOnly "5.3" "a pod that is still wanted only stops",
    SurplusFirst "5.3" "a stopping pod keeps etcd until those that are not wanted have left",
    PauseKeeps "5.3" "at zero replicas nobody leaves",
    ResetVoter "5.4" "only a voter of every membership at the end of its WAL resets",
    ResetLossless "5.4" "reset only with at most two voters, or if every other voter has noted a log that is not ahead",
    ResetNeeded "5.4" "reset only when the others are gone for good: scaled to one, or an empty disk of two",
    ResetByHost "5.4" "scaled to one: reset only by the host API's word, never by the values or DNS",
    ResetCommitsAll "5.4" "the WAL's last entry is made the committed one before the reset",
    ResetNamed "5.4" "the marker names the survivor and those it drops before the reset",
    ResetFinished "5.4" "a reset that was begun is finished",
    ResetAlone "5.4" "a reset that was begun is not finished where others have a quorum of the cluster",
    DropsRecorded "5.4" "who was made the only one by hand has the marker drop the others before it serves",
    DroppedNeverStarts "5.4" "a data dir that a reset dropped never starts",
    StopWithdrawn "5.4" "a voter that has noted its last log takes that back, durably, before it starts etcd",
    LowestLeads "5.5" "leadership rests on the lowest caught-up voter that is wanted",
    LeaderStays "5.5" "a leader moves leadership before it is removed, and never removes itself",
    Settings "3" "what the settings and the volume say",
    StartAsIs "4" "a valid data dir starts as it is",
    JournalTrue "7" "the source of a move is the truth until the commit, and is never lost sight of",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}): {}", self.number(), self, self.text())
    }
}

impl Serialize for Rule {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Which rules hold: in production all of them, always, at no cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    #[cfg(any(test, feature = "testing"))]
    off: u64,
}

impl Rules {
    /// Every rule holds.
    pub const ALL: Rules = Rules {
        #[cfg(any(test, feature = "testing"))]
        off: 0,
    };

    /// Every rule but these: for the model, which must then see data lost.
    #[cfg(any(test, feature = "testing"))]
    pub fn without(rules: &[Rule]) -> Rules {
        Rules { off: rules.iter().fold(0, |off, rule| off | 1 << *rule as u64) }
    }

    /// Whether `rule` holds.
    #[cfg(any(test, feature = "testing"))]
    pub const fn on(self, rule: Rule) -> bool {
        self.off & (1 << rule as u64) == 0
    }

    /// Whether `rule` holds.
    #[cfg(not(any(test, feature = "testing")))]
    pub const fn on(self, _: Rule) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_can_be_switched_off_alone() {
        assert!(Rule::ALL.len() <= 64);
        for rule in Rule::ALL {
            assert!(Rules::ALL.on(*rule));
            assert!(Rule::ALL.iter().all(|other| Rules::without(&[*rule]).on(*other) == (other != rule)));
        }
    }
}
