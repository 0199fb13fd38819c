//! No rule is idle: switched off, each makes a scenario fail that holds with it.

use syncer_model::config::Config;
use syncer_model::explore::{Outcome, explore, walk};
use syncer_model::rules::{Rule, Rules};

use crate::{abandoned, broad, targeted};

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
    /// Why it fails by no more than what the rule itself says; `None`: it fails by a loss.
    spared: Option<&'static str>,
}

const fn needed(rule: Rule, scenario: &'static str, search: Search) -> Needed {
    Needed { rule, backed_by: &[], scenario, search, spared: None }
}

const fn backed(rule: Rule, backed_by: &'static [Rule], scenario: &'static str, search: Search) -> Needed {
    Needed { rule, backed_by, scenario, search, spared: None }
}

const fn spared(rule: Rule, scenario: &'static str, search: Search, why: &'static str) -> Needed {
    Needed { rule, backed_by: &[], scenario, search, spared: Some(why) }
}

const NEEDED: &[Needed] = &[
    needed(Rule::SeedForms, "three, first start", Walks(1_500)),
    needed(Rule::FreshToken, "two, one, lost once", States(300_000)),
    needed(Rule::FormedOnce, "two, marker and volume lost", Walks(1_500)),
    backed(Rule::HostAnswers, &[Rule::FormedBeforeServing], "one, lost, host away", States(100_000)),
    needed(Rule::ClaimsAnswer, "two, marker and volume lost", States(40_000)),
    needed(Rule::PeersSayEmpty, "two, marker and volume lost", States(40_000)),
    needed(Rule::JoinersTell, "two, both lost, no host", States(300_000)),
    needed(Rule::MarkerRestored, "one, marker lost, then its volume", Walks(100)),
    needed(Rule::FormedBeforeServing, "two, first start", States(60_000)),
    needed(Rule::FormingNoted, "two, first start", Walks(3_000)),
    needed(Rule::LinearizableProof, "three, one behind, one lost", States(40_000)),
    needed(Rule::OneCluster, "two, first start", Walks(1_500)),
    needed(Rule::RunningCompared, "three, a stray volume", Walks(1_500)),
    needed(Rule::SetAsideNeverForms, "two, lost, to one, no host", States(150_000)),
    needed(Rule::ReplaceListed, "three, lost, then killed", States(1_500_000)),
    needed(Rule::AskLeader, "two, marker and volume lost", States(40_000)),
    spared(
        Rule::OneLearner,
        "three, first start",
        States(20_000),
        "etcd itself takes no second learner: what is saved is a try in each pass",
    ),
    needed(Rule::CaughtUpPromotes, "two, marker and volume lost", States(40_000)),
    needed(Rule::Superseded, "three, restored in parallel", Walks(1_500)),
    needed(Rule::RestoreNoted, "three, restored without a host", Walks(1_500)),
    needed(Rule::RestoreMarked, "three, restored in parallel", Walks(1_500)),
    needed(Rule::RestoredWaits, "three, restored beside others", States(40_000)),
    needed(Rule::Serving, "two, first start in order", Walks(100)),
    needed(Rule::ReadyToBeJoined, "two, paused, in order", Walks(1_500)),
    needed(Rule::ReadyForRollout, "another program, rolled", Walks(100)),
    needed(Rule::OneWriter, "three to one", Walks(1_500)),
    needed(Rule::QuorumKept, "three to one", States(40_000)),
    needed(Rule::FreshDesired, "two, orphaned, one lost", States(40_000)),
    needed(Rule::GoneOrLeaving, "three to one, all rolled, no host", Walks(1_500)),
    needed(Rule::NeverAddSurplus, "one, and one that is not wanted", Walks(3_000)),
    needed(Rule::LeaveFirst, "two to one, no host", Walks(100)),
    needed(Rule::StopOnly, "two, rolled, one lost, no host", States(40_000)),
    needed(Rule::PauseKeeps, "two, paused, one lost", States(40_000)),
    needed(Rule::ResetVoter, "a learner and no voter, then two", Walks(100)),
    needed(Rule::ResetLossless, "three to one", Walks(1_500)),
    needed(Rule::ResetNeeded, "two, both lost, no host", States(300_000)),
    needed(Rule::ResetCommitsAll, "two, marker and volume lost", States(40_000)),
    needed(Rule::ResetNamed, "three, resumed", States(500_000)),
    needed(Rule::ResetFinished, "two, lost, to one", States(700_000)),
    needed(Rule::DropsRecorded, "three to one", Walks(1_500)),
    needed(Rule::DroppedNeverStarts, "two to one and back, lost", States(2_000_000)),
    needed(Rule::StopWithdrawn, "three, resumed", States(1_500_000)),
    spared(
        Rule::LowestLeads,
        "two, marker and volume lost",
        Walks(500),
        "who leads and is not wanted hands that on before it leaves: what is saved is the time for which that holds up \
         writers, and the model has no clock",
    ),
    spared(
        Rule::LeaderStays,
        "two, lost, to one",
        States(20_000),
        "etcd gets over it: what is saved are the seconds in which nobody leads, and the model has no clock",
    ),
    needed(Rule::StartAsIs, "one, marker lost", Walks(100)),
    needed(Rule::StoreOfSeed, "two, a store, first start", Walks(1_500)),
    needed(Rule::JournalTrue, "two, a store, first start", Walks(1_500)),
    needed(Rule::DamagedReplaced, "one, damaged", States(1_000)),
    needed(Rule::EvictStalled, "one to three, a node gone", Walks(1_500)),
    needed(Rule::ReadyWhileWaiting, "two, damaged, then one, in order", Walks(1_500)),
    needed(Rule::ReadySurplus, "three, two lost, in order", Walks(1_500)),
    needed(Rule::SurplusFirst, "two to one, both rolled, no host", Walks(1_500)),
    needed(Rule::ResetAlone, "three, a recovery begun beside others", Walks(1_500)),
    needed(Rule::StopsIfSpared, "three to one, let go late", Walks(100)),
    needed(Rule::PlaceKept, "three, one lost, host away", Walks(100)),
    spared(
        Rule::SecondApart,
        "one to two, lost at once",
        States(20_000),
        "etcd itself takes no ID that was removed, and the next second's is another",
    ),
    needed(Rule::SharedCa, "two, each its own CA", Walks(100)),
    needed(Rule::Settings, "one, switched off", States(1_000)),
    needed(Rule::Released, "one, back to SQLite and again", Walks(100)),
    needed(Rule::ResetByHost, "two to one by a kill, no host", States(150_000)),
];

fn scenario(name: &str) -> Config {
    let mut all = targeted().into_iter().chain(broad()).chain([abandoned()]);
    all.find(|c| c.name == name).unwrap_or_else(|| panic!("scenarios.rs has no world \"{name}\""))
}

fn search(c: &Config, search: Search) -> Outcome {
    match search {
        States(limit) => explore(c, limit),
        Walks(walks) => walk(c, walks),
    }
}

#[test]
fn each_rule_switched_off_makes_the_model_fail() {
    let (mut idle, mut lost) = (Vec::new(), Vec::new());
    for Needed { rule, backed_by, scenario: name, search: how, spared } in NEEDED {
        let c = scenario(name);
        if !backed_by.is_empty() {
            let with = search(&Config { rules: Rules::without(backed_by), ..c.clone() }, *how);
            assert!(with.broken.is_none(), "{name} fails without {backed_by:?} alone: {:?}", with.broken);
        }
        let off: Vec<_> = backed_by.iter().copied().chain([*rule]).collect();
        let by = |loss_only| search(&Config { rules: Rules::without(&off), loss_only, ..c.clone() }, *how);
        let o = by(spared.is_none());
        let Some((why, _)) = &o.broken else {
            idle.push((rule, name, how));
            continue;
        };
        let why: String = why.chars().take(60).collect();
        let found = if o.healed > 0 { format!("{} walks", o.healed) } else { format!("{} states", o.unique) };
        println!("without {:34} \"{name}\" after {found}: {why}", format!("{off:?}"));
        if let Some(spared) = spared {
            println!("{:42} no loss: {spared}", "");
            lost.extend(by(true).broken.map(|broken| (rule, name, broken)));
        }
    }
    assert!(idle.is_empty(), "not needed, or no longer for what is lost without them: {idle:?}");
    assert!(lost.is_empty(), "more is lost without them than their rows say: {lost:?}");
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
        let c = self::scenario(scenario);
        let broken = walk(&c, walks).broken.or_else(|| if states > 0 { explore(&c, states).broken } else { None });
        assert!(broken.is_none(), "{scenario}: {broken:?}");
    }
}

#[test]
fn each_rule_has_one_row() {
    let mut shown: Vec<_> = NEEDED.iter().map(|row| row.rule).collect();
    shown.sort();
    let mut all = Rule::ALL.to_vec();
    all.sort();
    assert_eq!(shown, all, "NEEDED lacks a rule of src/rules.rs, or has one twice");
}
