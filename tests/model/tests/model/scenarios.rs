//! The worlds that are explored: who is there at first, and what may happen how often.

use std::sync::Arc;

use syncer_model::config::{Budget, Config, Start};
use syncer_model::membership::ready::PodManagement::{self, OrderedReady, Parallel};
use syncer_model::rules::Rules;

pub fn config(name: &'static str, pods: usize, host: bool, policy: PodManagement) -> Config {
    Config {
        name,
        pods,
        host,
        policy,
        rules: Rules::ALL,
        budget: Budget::default(),
        desired: pods as u8,
        start: Start::Running,
        scale_to: &[],
        hole: false,
        graceful: false,
        slow: false,
        gone: None,
        at_last: None,
        borne: false,
        away_at_last: false,
        lost_at_last: false,
        seconds: false,
        own_cas: false,
        back: false,
        loss_only: false,
        healed: Arc::default(),
    }
}

/// One kill and one more write.
const KILL: Budget = Budget {
    kills: 1,
    losses: 0,
    scales: 0,
    writes: 1,
    blind: 0,
    late: 0,
    host: 0,
    marker: 0,
    stops: 0,
    cuts: 0,
    hides: 0,
    restores: 0,
    stales: 0,
    damages: 0,
    recovers: 0,
    orphans: 0,
    offs: 0,
};

/// With both policies, with and without a host API.
pub fn broad() -> Vec<Config> {
    let mut all = Vec::new();
    for host in [true, false] {
        for policy in [OrderedReady, Parallel] {
            let of = |name, pods| config(name, pods, host, policy);
            let scaled = &[0, 1, 2][..];
            all.extend([
                Config {
                    start: Start::Nothing,
                    budget: Budget { late: 1, host: 1, losses: 1, stales: 1, ..KILL },
                    ..of("first start", 2)
                },
                Config { budget: Budget { losses: 1, blind: 1, stales: 1, ..KILL }, ..of("two, a lost volume", 2) },
                Config { budget: Budget { scales: 2, late: 1, ..KILL }, scale_to: scaled, ..of("two, scaled", 2) },
                Config {
                    budget: Budget { losses: 1, scales: 2, stales: 1, ..KILL },
                    scale_to: scaled,
                    ..of("two, scaled and lost", 2)
                },
                Config { budget: Budget { losses: 1, blind: 1, ..KILL }, ..of("three, a lost volume", 3) },
                Config {
                    budget: Budget { scales: 2, stales: 1, blind: 1, ..KILL },
                    scale_to: &[0, 1, 2, 3],
                    ..of("three, scaled", 3)
                },
                Config { budget: Budget { stops: 3, cuts: 1, ..KILL }, ..of("three, rolled and cut off", 3) },
                Config {
                    start: Start::OtherProgram,
                    budget: Budget { writes: 1, ..Budget::default() },
                    ..of("another program", 3)
                },
            ]);
            all.push(Config {
                budget: Budget { restores: 1, scales: 2, host: host.into(), stales: 1, ..KILL },
                scale_to: &[0, 3],
                ..of("three, restored", 3)
            });
        }
    }
    all
}

/// Small worlds in which single rules decide.
pub fn targeted() -> Vec<Config> {
    let of = |name, pods, host| config(name, pods, host, Parallel);
    let ordered = |name, pods, host| config(name, pods, host, OrderedReady);
    vec![
        Config { budget: Budget { losses: 1, host: 1, hides: 1, ..KILL }, ..of("one, lost, host away", 1, true) },
        Config { budget: Budget { marker: 1, ..KILL }, ..of("one, marker lost", 1, true) },
        Config { budget: Budget { losses: 1, marker: 1, ..KILL }, ..of("two, marker and volume lost", 2, true) },
        Config { budget: Budget { losses: 1, ..KILL }, borne: true, ..of("two, a lost volume, host", 2, true) },
        Config { budget: Budget { losses: 1, ..KILL }, borne: true, ..of("two, a lost volume, no host", 2, false) },
        Config {
            budget: Budget { losses: 1, scales: 1, kills: 2, ..KILL },
            scale_to: &[1],
            ..of("two, lost, to one", 2, true)
        },
        Config {
            budget: Budget { losses: 1, scales: 1, kills: 2, ..KILL },
            scale_to: &[1],
            ..of("two, lost, to one, no host", 2, false)
        },
        Config { budget: Budget { scales: 2, kills: 2, ..KILL }, scale_to: &[1, 2], ..of("two to one", 2, true) },
        Config {
            budget: Budget { scales: 2, kills: 2, losses: 1, ..KILL },
            scale_to: &[1, 2],
            ..of("two to one and back, lost", 2, true)
        },
        Config {
            budget: Budget { scales: 2, kills: 0, host: 1, ..KILL },
            scale_to: &[1, 2],
            ..of("two to one and back, host away", 2, true)
        },
        Config {
            budget: Budget { scales: 1, kills: 0, ..KILL },
            scale_to: &[1],
            graceful: true,
            ..of("two to one, no host", 2, false)
        },
        Config { budget: Budget { scales: 2, late: 1, ..KILL }, scale_to: &[0, 1], ..of("two, paused", 2, true) },
        Config {
            budget: Budget { scales: 2, kills: 0, ..KILL },
            scale_to: &[0, 2],
            ..ordered("two, paused, in order", 2, true)
        },
        Config { start: Start::Nothing, budget: KILL, ..of("three, first start", 3, true) },
        Config {
            desired: 1,
            budget: Budget { scales: 1, losses: 1, ..KILL },
            scale_to: &[3],
            ..of("one to three", 3, true)
        },
        Config { budget: Budget { scales: 1, ..KILL }, scale_to: &[1], ..of("three to one", 3, true) },
        Config { budget: Budget { scales: 2, ..KILL }, scale_to: &[2, 3], ..of("three to two and back", 3, true) },
        Config {
            budget: Budget { scales: 2, kills: 0, ..KILL },
            scale_to: &[2, 3],
            graceful: true,
            ..of("three to two and back, no host", 3, false)
        },
        Config {
            budget: Budget { scales: 2, ..KILL },
            scale_to: &[2, 3],
            ..ordered("three to two and back, in order", 3, true)
        },
        Config {
            budget: Budget { scales: 1, stops: 1, kills: 0, ..KILL },
            scale_to: &[1],
            graceful: true,
            ..of("three to one, all rolled, no host", 3, false)
        },
        Config {
            budget: Budget { scales: 1, stops: 1, kills: 0, ..KILL },
            scale_to: &[1],
            graceful: true,
            slow: true,
            ..of("two to one, both rolled, no host", 2, false)
        },
        Config {
            budget: Budget { scales: 1, host: 1, ..KILL },
            scale_to: &[1],
            ..of("three to one, host away", 3, true)
        },
        Config {
            budget: Budget { scales: 1, kills: 2, losses: 1, ..KILL },
            scale_to: &[1],
            ..ordered("three to one, in order", 3, true)
        },
        Config { budget: Budget { scales: 3, kills: 0, ..KILL }, scale_to: &[0, 1, 3], ..of("three, paused", 3, true) },
        Config {
            start: Start::Paused,
            budget: Budget { scales: 2, kills: 0, ..KILL },
            scale_to: &[1, 3],
            ..of("three, resumed", 3, true)
        },
        Config {
            start: Start::Paused,
            budget: Budget { scales: 3, kills: 0, late: 1, hides: 1, ..KILL },
            scale_to: &[0, 1],
            graceful: true,
            ..of("three, resumed as one", 3, true)
        },
        Config {
            start: Start::Paused,
            budget: Budget { scales: 3, kills: 2, late: 1, host: 1, hides: 1, ..KILL },
            scale_to: &[0, 1, 3],
            ..of("three, resumed as one and killed", 3, true)
        },
        Config { budget: Budget { losses: 1, kills: 3, ..KILL }, borne: true, ..of("three, lost and killed", 3, true) },
        Config {
            budget: Budget { losses: 1, kills: 2, ..KILL },
            borne: true,
            ..of("three, lost, then killed", 3, false)
        },
        Config {
            budget: Budget { restores: 1, scales: 2, kills: 0, ..KILL },
            scale_to: &[0, 3],
            graceful: true,
            ..of("three, restored in parallel", 3, true)
        },
        Config { budget: Budget { restores: 1, ..KILL }, ..of("three, restored beside others", 3, true) },
        Config { budget: Budget { restores: 1, ..KILL }, ..of("three, restored beside others, no host", 3, false) },
        Config {
            budget: Budget { restores: 1, scales: 2, kills: 0, ..KILL },
            scale_to: &[0, 3],
            graceful: true,
            ..of("three, restored without a host", 3, false)
        },
        Config {
            budget: Budget { restores: 2, kills: 3, late: 1, host: 1, hides: 1, ..KILL },
            ..of("two, restored and killed", 2, true)
        },
        Config {
            budget: Budget { restores: 2, kills: 3, ..KILL },
            ..of("two, restored and killed, no host", 2, false)
        },
        Config { budget: Budget { restores: 1, losses: 1, kills: 2, ..KILL }, ..of("two, lost and restored", 2, true) },
        Config {
            start: Start::Stray,
            budget: Budget { cuts: 1, blind: 1, hides: 1, host: 1, ..KILL },
            ..of("three, a stray volume", 3, true)
        },
        Config {
            start: Start::Stray,
            budget: Budget { cuts: 1, blind: 1, ..KILL },
            ..of("three, a stray volume, no host", 3, false)
        },
        Config { start: Start::OtherProgram, graceful: true, ..ordered("another program, rolled", 3, false) },
        Config {
            start: Start::Nothing,
            budget: Budget { late: 1, host: 1, losses: 1, ..KILL },
            ..of("two, first start", 2, true)
        },
        Config {
            budget: Budget { losses: 1, scales: 2, ..KILL },
            scale_to: &[1, 2],
            ..of("two, one, lost once", 2, false)
        },
        Config {
            budget: Budget { losses: 1, scales: 1, kills: 2, ..KILL },
            scale_to: &[1],
            ..ordered("two, lost, to one, in order", 2, true)
        },
        Config { budget: Budget { losses: 2, kills: 2, ..KILL }, ..of("two, both lost", 2, true) },
        Config { budget: Budget { losses: 2, kills: 2, ..KILL }, ..of("two, both lost, no host", 2, false) },
        Config { start: Start::Nothing, budget: KILL, ..ordered("two, first start in order", 2, true) },
        Config {
            budget: Budget { losses: 1, scales: 1, stops: 1, stales: 1, ..KILL },
            scale_to: &[1],
            ..of("two, lost, to one, stale names", 2, false)
        },
        Config {
            budget: Budget { losses: 1, stops: 1, stales: 1, marker: 1, ..KILL },
            ..of("two, lost, marker lost, stale names", 2, true)
        },
        Config {
            start: Start::Staged,
            budget: Budget { scales: 1, blind: 1, host: 1, kills: 0, writes: 0, ..KILL },
            scale_to: &[1],
            ..of("three, restored, to one, silent names", 3, true)
        },
        Config {
            start: Start::Staged,
            budget: Budget { scales: 1, blind: 1, kills: 0, writes: 0, ..KILL },
            scale_to: &[1],
            ..of("three, restored, to one, no host", 3, false)
        },
        Config { budget: Budget { losses: 2, kills: 2, ..KILL }, ..of("three, two lost", 3, true) },
        Config { budget: Budget { losses: 2, kills: 2, ..KILL }, ..ordered("three, two lost, in order", 3, true) },
        Config { budget: Budget { losses: 2, kills: 2, ..KILL }, ..ordered("three, two lost, no host", 3, false) },
        Config { budget: Budget { recovers: 1, ..KILL }, ..of("three, a recovery begun beside others", 3, true) },
        Config { budget: Budget { damages: 1, ..KILL }, ..of("two, damaged, no host", 2, false) },
        Config { budget: Budget { damages: 1, kills: 2, ..KILL }, borne: true, ..of("three, damaged", 3, true) },
        Config {
            budget: Budget { damages: 1, ..KILL },
            graceful: true,
            at_last: Some(1),
            ..ordered("two, damaged, then one, in order", 2, true)
        },
        Config {
            desired: 1,
            budget: Budget { scales: 1, ..KILL },
            scale_to: &[3],
            gone: Some(2),
            ..of("one to three, a node gone", 3, true)
        },
        Config {
            start: Start::Store,
            budget: Budget { kills: 2, late: 1, host: 1, ..KILL },
            ..of("two, a store, first start", 2, true)
        },
        Config {
            start: Start::Store,
            budget: Budget { kills: 2, blind: 1, stales: 1, ..KILL },
            ..of("two, a store, no host", 2, false)
        },
        Config {
            budget: Budget { stops: 1, losses: 1, ..KILL },
            borne: true,
            ..of("two, rolled, one lost, no host", 2, false)
        },
        Config {
            budget: Budget { scales: 2, losses: 1, kills: 0, ..KILL },
            scale_to: &[0, 2],
            borne: true,
            ..of("two, paused, one lost", 2, true)
        },
        Config {
            budget: Budget { orphans: 1, stops: 1, losses: 1, ..KILL },
            borne: true,
            ..of("two, orphaned, one lost", 2, true)
        },
        Config {
            desired: 1,
            start: Start::Surplus,
            budget: Budget { writes: 0, ..KILL },
            graceful: true,
            ..of("one, and one that is not wanted", 2, false)
        },
        Config { budget: Budget { damages: 1, ..KILL }, borne: true, ..of("one, damaged", 1, true) },
        Config {
            budget: Budget { scales: 1, kills: 0, ..KILL },
            scale_to: &[1],
            graceful: true,
            ..of("three to one, let go late", 3, true)
        },
        Config {
            desired: 1,
            budget: Budget { scales: 1, losses: 1, ..KILL },
            scale_to: &[2],
            seconds: true,
            ..of("one to two, lost at once", 2, true)
        },
        // Without a kill: another leader, or a joiner that starts anew, knows of no place that is kept.
        Config {
            start: Start::Lost,
            budget: Budget { kills: 0, ..KILL },
            borne: true,
            away_at_last: true,
            ..of("three, one lost, host away", 3, true)
        },
        Config { start: Start::Nothing, budget: KILL, own_cas: true, ..of("two, each its own CA", 2, false) },
        Config { budget: Budget { offs: 1, ..KILL }, ..of("one, switched off", 1, true) },
        Config {
            budget: Budget { offs: 1, writes: 0, ..KILL },
            back: true,
            graceful: true,
            ..of("one, back to SQLite and again", 1, true)
        },
        Config {
            start: Start::Learner,
            desired: 1,
            budget: KILL,
            graceful: true,
            at_last: Some(2),
            ..of("a learner and no voter, then two", 2, true)
        },
        Config {
            start: Start::Behind,
            budget: Budget { losses: 1, kills: 2, ..KILL },
            borne: true,
            ..of("three, one behind, one lost", 3, true)
        },
        Config {
            budget: Budget { marker: 1, ..KILL },
            lost_at_last: true,
            ..of("one, marker lost, then its volume", 1, true)
        },
    ]
}

/// Scaled to one, and the other killed before it has left: without a host API its volume is that of a voter.
pub fn abandoned() -> Config {
    let of = config("two to one by a kill, no host", 2, false, Parallel);
    let budget = Budget { losses: 1, scales: 1, ..KILL };
    Config { start: Start::Abandoned, desired: 1, budget, scale_to: &[2], hole: true, ..of }
}

/// Without a host API a lone pod's lost volume cannot be told from a first start, and is formed anew (rule 4.2). The other
/// pod's data dir, of the time before it was scaled down, may then come back.
pub fn hole() -> Config {
    let budget = Budget { losses: 1, scales: 2, kills: 2, ..KILL };
    Config { budget, scale_to: &[1, 2], hole: true, ..config("two, one, lost", 2, false, Parallel) }
}
