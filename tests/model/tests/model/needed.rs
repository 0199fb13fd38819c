//! No rule is idle: switched off, each makes a scenario fail that holds with it.

use std::collections::BTreeSet;
use std::path::Path;

use syncer_model::explore::{Outcome, explore, walk};
use syncer_model::rules::{Rule, Rules};
use syncer_model::world::Config;

use crate::{broad, targeted};

/// How a scenario is searched.
#[derive(Clone, Copy, Debug)]
enum Search {
    /// So many generated states, breadth first.
    States(usize),
    /// So many random walks, each let heal at its end.
    Walks(u64),
}
use Search::{States, Walks};

/// A rule, the scenario that fails without it, and the search that finds that. Where another rule guards the same, that
/// one is off too: the scenario then holds as long as the first is on.
struct Needed {
    rule: Rule,
    backed_by: &'static [Rule],
    scenario: &'static str,
    search: Search,
}

const fn needed(rule: Rule, scenario: &'static str, search: Search) -> Needed {
    Needed { rule, backed_by: &[], scenario, search }
}

const fn backed(rule: Rule, backed_by: &'static [Rule], scenario: &'static str, search: Search) -> Needed {
    Needed { rule, backed_by, scenario, search }
}

/// By the model.
const NEEDED: &[Needed] = &[
    needed(Rule::SeedForms, "three, first start", Walks(1_500)),
    needed(Rule::FreshToken, "two, one, lost once", States(300_000)),
    needed(Rule::FormedOnce, "two, marker and volume lost", Walks(1_500)),
    backed(Rule::HostAnswers, &[Rule::FormedBeforeServing], "one, lost, host away", States(100_000)),
    needed(Rule::ClaimsAnswer, "two, marker and volume lost", States(40_000)),
    needed(Rule::PeersSayEmpty, "two, marker and volume lost", States(40_000)),
    needed(Rule::JoinersTell, "two, both lost, no host", States(300_000)),
    needed(Rule::MarkerRestored, "one, marker lost", Walks(1_500)),
    needed(Rule::FormedBeforeServing, "two, first start", States(60_000)),
    needed(Rule::FormingNoted, "two, first start", Walks(3_000)),
    needed(Rule::LinearizableProof, "three, lost and killed", Walks(1_500)),
    needed(Rule::OneCluster, "two, first start", Walks(1_500)),
    needed(Rule::RunningCompared, "three, a stray volume", Walks(1_500)),
    needed(Rule::SetAsideNeverForms, "two, lost, to one, no host", States(150_000)),
    needed(Rule::ReplaceListed, "three, lost, then killed", States(1_500_000)),
    needed(Rule::AskLeader, "two, marker and volume lost", States(40_000)),
    needed(Rule::OneLearner, "three, first start", States(40_000)),
    needed(Rule::CaughtUpPromotes, "two, marker and volume lost", States(40_000)),
    needed(Rule::Superseded, "three, restored in parallel", Walks(1_500)),
    needed(Rule::RestoreNoted, "three, restored without a host", Walks(1_500)),
    needed(Rule::RestoreMarked, "three, restored in parallel", Walks(1_500)),
    needed(Rule::RestoredWaits, "three, restored beside others", States(40_000)),
    needed(Rule::Serving, "one, lost, host away", Walks(100)),
    needed(Rule::ReadyToBeJoined, "two, paused, in order", Walks(1_500)),
    needed(Rule::ReadyForRollout, "another program, rolled", Walks(100)),
    needed(Rule::OneWriter, "three, first start", States(40_000)),
    needed(Rule::QuorumKept, "three to one", States(40_000)),
    needed(Rule::FreshDesired, "two to one and back, host away", States(40_000)),
    needed(Rule::GoneOrLeaving, "two, lost, to one", States(40_000)),
    needed(Rule::NeverAddSurplus, "two, lost, to one", States(40_000)),
    needed(Rule::LeaveFirst, "two to one, no host", Walks(100)),
    needed(Rule::StopOnly, "two to one", States(40_000)),
    needed(Rule::PauseKeeps, "two, paused", States(40_000)),
    needed(Rule::ResetVoter, "two, lost, to one", Walks(1_500)),
    needed(Rule::ResetLossless, "three to one", Walks(1_500)),
    needed(Rule::ResetNeeded, "two, both lost, no host", States(300_000)),
    needed(Rule::ResetCommitsAll, "two, marker and volume lost", States(40_000)),
    needed(Rule::ResetNamed, "three, resumed", States(500_000)),
    needed(Rule::ResetFinished, "two, lost, to one", States(700_000)),
    needed(Rule::DropsRecorded, "three to one", Walks(1_500)),
    needed(Rule::DroppedNeverStarts, "two to one and back, lost", States(2_000_000)),
    needed(Rule::StopWithdrawn, "three, resumed", States(1_500_000)),
    needed(Rule::LowestLeads, "two, marker and volume lost", Walks(1_500)),
    needed(Rule::LeaderStays, "two, lost, to one", States(40_000)),
    needed(Rule::StartAsIs, "one, marker lost", Walks(100)),
    needed(Rule::StoreOfSeed, "two, a store, first start", Walks(1_500)),
    needed(Rule::JournalTrue, "two, a store, first start", Walks(1_500)),
    needed(Rule::DamagedReplaced, "two, damaged, no host", Walks(1_500)),
    needed(Rule::EvictStalled, "one to three, a node gone", Walks(1_500)),
    needed(Rule::ReadyWhileWaiting, "two, damaged, then one, in order", Walks(1_500)),
    needed(Rule::ReadySurplus, "three, two lost, in order", Walks(1_500)),
    needed(Rule::SurplusFirst, "two to one, both rolled, no host", Walks(1_500)),
    needed(Rule::ResetAlone, "three, a recovery begun beside others", Walks(1_500)),
];

/// A rule of which the model has no counterpart, the unit test that shows what it decides, and why the model has none.
struct Elsewhere {
    rule: Rule,
    file: &'static str,
    test: &'static str,
    why: &'static str,
}

const SHOWN_ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        rule: Rule::Released,
        file: "boot/tests/many/released.rs",
        test: "a_cluster_that_was_left_is_released_and_its_store_imported_again",
        why: "embedded etcd is on in every world: what goes back to SQLite is one pod's, without etcd or others",
    },
    Elsewhere {
        rule: Rule::SharedCa,
        file: "boot/tests/many/join.rs",
        test: "joining_needs_one_shared_ca_and_starting_does_not",
        why: "who has a CA of its own is heard by nobody, so that the list by which it would join never comes: the rule \
              makes a silence that another world already has into a refusal that says why",
    },
    Elsewhere {
        rule: Rule::ResetByHost,
        file: "boot/tests/many/reset.rs",
        test: "without_a_host_api_scaling_to_one_never_resets",
        why: "of two voters the one that goes on alone has every write: what the rule keeps from mattering is a later loss of \
              that lone volume and the return of the older one, which without a host API is the documented limit anyway",
    },
    Elsewhere {
        rule: Rule::Settings,
        file: "boot/tests.rs",
        test: "each_refusal_has_its_facts",
        why: "it is about what the settings forbid before there is anything to decide",
    },
];

fn search(c: &Config, search: Search) -> Outcome {
    match search {
        States(limit) => explore(c, limit),
        Walks(walks) => walk(c, walks),
    }
}

#[test]
fn each_rule_switched_off_makes_the_model_fail() {
    let mut idle = Vec::new();
    for Needed { rule, backed_by, scenario, search: how } in NEEDED {
        let c = targeted().into_iter().chain(broad()).find(|c| c.name == *scenario).expect(scenario);
        if !backed_by.is_empty() {
            let with = search(&Config { rules: Rules::without(backed_by), ..c.clone() }, *how);
            assert!(with.broken.is_none(), "{scenario} fails without {backed_by:?} alone: {:?}", with.broken);
        }
        let off: Vec<_> = backed_by.iter().copied().chain([*rule]).collect();
        let o = search(&Config { rules: Rules::without(&off), ..c }, *how);
        let Some((why, _)) = &o.broken else {
            idle.push((rule, scenario, how));
            continue;
        };
        let why: String = why.chars().take(60).collect();
        let found = if o.healed > 0 { format!("{} walks", o.healed) } else { format!("{} states", o.unique) };
        println!("without {:34} \"{scenario}\" after {found}: {why}", format!("{off:?}"));
    }
    assert!(idle.is_empty(), "not needed: {idle:?}");
}

/// The scenarios hold with every rule on, as far as the table searches them.
#[test]
fn each_of_their_scenarios_holds_with_every_rule() {
    if std::env::var_os("SYNCER_QUICK").is_some() {
        return;
    }
    let mut furthest = std::collections::BTreeMap::new();
    for row in NEEDED {
        let (states, walks) = furthest.entry(row.scenario).or_insert((0, 0));
        match row.search {
            States(limit) => *states = limit.max(*states),
            Walks(count) => *walks = count.max(*walks),
        }
    }
    for (scenario, (states, walks)) in furthest {
        let c = targeted().into_iter().chain(broad()).find(|c| c.name == scenario).expect(scenario);
        let broken = walk(&c, walks).broken.or_else(|| if states > 0 { explore(&c, states).broken } else { None });
        assert!(broken.is_none(), "{scenario}: {broken:?}");
    }
}

#[test]
fn each_rule_is_shown_in_exactly_one_place() {
    let by_model: Vec<_> = NEEDED.iter().map(|row| row.rule).collect();
    let elsewhere: Vec<_> = SHOWN_ELSEWHERE.iter().map(|row| row.rule).collect();
    let mut shown: Vec<_> = by_model.iter().chain(&elsewhere).copied().collect();
    shown.sort();
    assert_eq!(shown, Rule::ALL.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    for Elsewhere { rule, file, test, why } in SHOWN_ELSEWHERE {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.contains(&format!("fn {test}()")), "{rule:?}: {file} has no test {test}");
        println!("{rule:?} is shown by {test}: {why}");
    }
}
