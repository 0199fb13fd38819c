//! The rules hold in every state within the bounds, and single rules switched off end in harm.
//!
//! SYNCER_MODEL_STATES bounds the generated states of each scenario (2 500 000 unless set; 20 000 with SYNCER_QUICK), and
//! SYNCER_MODEL_ONLY names the scenarios.

use syncer_model::explore::{Outcome, explore};
use syncer_model::membership::ready::PodManagement::{self, OrderedReady, Parallel};
use syncer_model::rules::{Rule, Rules};
use syncer_model::world::{Budget, Config};

fn config(name: &'static str, pods: usize, host: bool, policy: PodManagement) -> Config {
    Config {
        name,
        pods,
        host,
        policy,
        rules: Rules::ALL,
        budget: Budget::default(),
        desired: pods as u8,
        running: true,
        scale_to: &[],
    }
}

fn scenarios() -> Vec<Config> {
    let mut all = Vec::new();
    for host in [true, false] {
        for policy in [OrderedReady, Parallel] {
            let of = |name, pods| config(name, pods, host, policy);
            let scaled = &[0, 1, 2][..];
            let kill = Budget { kills: 1, writes: 1, ..Budget::default() };
            all.push(Config {
                running: false,
                budget: Budget { late: 1, host: 1, losses: 1, ..kill },
                ..of("first start", 2)
            });
            all.push(Config { budget: Budget { losses: 1, blind: 1, ..kill }, ..of("two, a lost volume", 2) });
            all.push(Config {
                budget: Budget { scales: 2, late: 1, ..kill },
                scale_to: scaled,
                ..of("two, scaled", 2)
            });
            all.push(Config {
                budget: Budget { losses: 1, scales: 2, ..kill },
                scale_to: scaled,
                ..of("two, scaled and lost", 2)
            });
            all.push(Config { budget: Budget { losses: 1, ..kill }, ..of("three, a lost volume", 3) });
            all.push(Config { budget: Budget { scales: 2, ..kill }, scale_to: &[0, 1, 3], ..of("three, scaled", 3) });
        }
    }
    all
}

/// Small worlds in which single rules decide.
fn targeted() -> Vec<Config> {
    let kill = Budget { kills: 1, writes: 1, ..Budget::default() };
    let of = |name, pods, host| config(name, pods, host, Parallel);
    vec![
        Config { budget: Budget { losses: 1, host: 1, ..kill }, ..of("one, lost, host away", 1, true) },
        Config { budget: Budget { losses: 1, marker: 1, ..kill }, ..of("two, marker and volume lost", 2, true) },
        Config { budget: Budget { losses: 1, ..kill }, ..of("two, a lost volume, host", 2, true) },
        Config { budget: Budget { losses: 1, ..kill }, ..of("two, a lost volume, no host", 2, false) },
        Config { budget: Budget { scales: 2, kills: 2, ..kill }, scale_to: &[1, 2], ..of("two to one", 2, true) },
        Config { budget: Budget { scales: 2, late: 1, ..kill }, scale_to: &[0, 1], ..of("two, paused", 2, true) },
        Config {
            budget: Budget { scales: 1, host: 1, ..kill },
            scale_to: &[1],
            ..of("three to one, host away", 3, true)
        },
        Config { budget: Budget { scales: 3, kills: 0, ..kill }, scale_to: &[0, 1, 3], ..of("three, paused", 3, true) },
        Config { budget: Budget { losses: 1, kills: 3, ..kill }, ..of("three, lost and killed", 3, true) },
    ]
}

fn print(c: &Config, o: &Outcome) {
    println!(
        "{:24} host {:5} {:12} {:>9} states {:>8} unique depth {:>3} {:>6.1} s {}{:?}",
        c.name,
        c.host,
        format!("{:?}", c.policy),
        o.states,
        o.unique,
        o.depth,
        o.seconds,
        if o.complete { "complete " } else { "cut off " },
        o.broken
    );
}

#[test]
fn the_rules_hold_within_the_bound() {
    let default = if std::env::var_os("SYNCER_QUICK").is_some() { 20_000 } else { 2_500_000 };
    let limit = std::env::var("SYNCER_MODEL_STATES").map_or(default, |n| n.parse().unwrap());
    let only = std::env::var("SYNCER_MODEL_ONLY").unwrap_or_default();
    let mut broken = 0;
    for c in targeted().into_iter().chain(scenarios()).filter(|c| c.name.contains(&only)) {
        let o = explore(&c, limit);
        print(&c, &o);
        broken += o.broken.len();
    }
    assert_eq!(broken, 0);
}

/// Where it ends in harm without the rule, the same scenario holds with it. The other rules are not shown to be needed here.
#[test]
fn each_of_these_rules_switched_off_makes_the_model_fail() {
    let rules = [
        Rule::FreshToken,
        Rule::ClaimsAnswer,
        Rule::PeersSayEmpty,
        Rule::FormedBeforeServing,
        Rule::FormingNoted,
        Rule::OneCluster,
        Rule::ReplaceListed,
        Rule::CaughtUpPromotes,
        Rule::QuorumKept,
        Rule::PauseKeeps,
        Rule::ResetNeeded,
        Rule::ResetCommitsAll,
        Rule::LeaderStays,
    ];
    for rule in rules {
        let (c, o) = failing(rule, targeted().into_iter().chain(scenarios()).collect(), 300_000)
            .unwrap_or_else(|| panic!("{rule:?} is idle"));
        println!("without {rule:?}: {} breaks \"{}\" after {} states", c.name, o.broken[0].0, o.unique);
    }
}

fn failing(rule: Rule, among: Vec<Config>, limit: usize) -> Option<(Config, Outcome)> {
    among.into_iter().find_map(|c| {
        let c = Config { rules: Rules::without(&[rule]), ..c };
        let o = explore(&c, limit);
        (!o.broken.is_empty()).then_some((c, o))
    })
}

/// Open: without a host API, a lone pod's lost volume (which may be formed anew, as documented) and the return of the other
/// pod's data dir after two kills end with a write missing that one of the two had acknowledged.
#[test]
#[ignore = "an open question: fails"]
fn a_lost_lone_volume_without_a_host_api() {
    let budget = Budget { losses: 1, scales: 2, kills: 2, writes: 1, ..Budget::default() };
    let c = Config { budget, scale_to: &[1, 2], ..config("two, one, lost", 2, false, Parallel) };
    let o = explore(&c, 600_000);
    print(&c, &o);
    assert!(o.broken.is_empty());
}

#[test]
#[ignore = "a survey of which rules the targeted scenarios need"]
fn survey() {
    for c in targeted() {
        print(&c, &explore(&c, 200_000));
    }
    for rule in Rule::ALL {
        let found = failing(*rule, targeted(), 100_000).map(|(c, o)| (c.name, o.broken[0].0));
        println!("{rule:?}: {found:?}");
    }
}
