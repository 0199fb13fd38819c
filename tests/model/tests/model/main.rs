//! The rules hold in every state within the bounds and every walk ends well; single rules switched off end in harm.
//!
//! SYNCER_MODEL_STATES bounds the generated states of each scenario, SYNCER_MODEL_WALKS its random walks, and
//! SYNCER_MODEL_ONLY names the scenarios. Unset: enough for some minutes on two cores; with SYNCER_QUICK, for 15 seconds.

mod needed;
mod scenarios;

use scenarios::{abandoned, broad, hole, targeted};
use syncer_model::config::Config;
use syncer_model::explore::{Outcome, explore, walk};
use syncer_model::heal::Remedied;

fn bound(variable: &str, quick: usize, full: usize) -> usize {
    let default = if std::env::var_os("SYNCER_QUICK").is_some() { quick } else { full };
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

fn print(c: &Config, kind: &str, o: &Outcome) {
    println!(
        "{:40} {:7} {:12} {kind:7} {:>9} states {:>8} unique {:>6} healed depth {:>3} {:>6.1} s {}{}{:?}",
        c.name,
        if c.host { "host" } else { "no host" },
        format!("{:?}", c.policy),
        o.states,
        o.unique,
        o.healed,
        o.depth,
        o.seconds,
        if o.complete { "complete " } else { "" },
        remedied(o),
        o.broken
    );
}

fn remedied(o: &Outcome) -> String {
    match o.remedied {
        Remedied { recovered: 0, given_up: 0, .. } => String::new(),
        Remedied { recovered, with_loss, given_up } => {
            format!("{recovered} recovered ({with_loss} with loss), {given_up} given up ")
        }
    }
}

/// What an operator had to do in all of them, and how many states were let heal.
fn each(kind: &str, search: impl Fn(&Config) -> Outcome) -> (Remedied, usize) {
    let only = std::env::var("SYNCER_MODEL_ONLY").unwrap_or_default();
    let (mut broken, mut remedied, mut healed) = (0, Remedied::default(), 0);
    for c in targeted().into_iter().chain(broad()).filter(|c| c.name.contains(&only)) {
        let o = search(&c);
        print(&c, kind, &o);
        broken += usize::from(o.broken.is_some());
        remedied += o.remedied;
        healed += o.healed;
    }
    assert_eq!(broken, 0);
    (remedied, healed)
}

#[test]
fn the_rules_hold_within_the_bound() {
    let limit = bound("SYNCER_MODEL_STATES", 15_000, 300_000);
    let (_, healed) = each("states", |c| explore(c, limit));
    assert!(healed > 0, "no state of the search is let heal any more");
}

#[test]
fn every_walk_ends_well() {
    let walks = bound("SYNCER_MODEL_WALKS", 150, 1_500) as u64;
    let (Remedied { recovered, with_loss, given_up }, _) = each("walks", |c| walk(c, walks));
    if std::env::var_os("SYNCER_MODEL_ONLY").is_none() {
        assert!(with_loss > 0 && recovered > with_loss && given_up > 0, "no remedy is carried out any more");
    }
}

/// The limit that rule 4.2 documents: it can be reached, and by nothing but the lone volume that was lost and formed anew.
#[test]
fn without_a_host_api_a_lone_volume_that_is_lost_is_formed_anew() {
    let o = explore(&hole(), bound("SYNCER_MODEL_STATES", 300_000, 600_000));
    print(&hole(), "states", &o);
    assert!(o.broken.is_none(), "harm without that loss");
    assert!(o.hole, "it can no longer be reached: say so in docs/rules.md");
}
