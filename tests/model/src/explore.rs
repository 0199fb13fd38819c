//! The checker's model: what must hold in every state; every state within a bound, and random walks beyond it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use stateright::{Checker, Model, Property};

use crate::action::Action;
use crate::config::Config;
use crate::heal::{Remedied, heals};
use crate::rules::Rules;
use crate::world::World;

/// Of so many states one is let heal.
const HEALED_OF: u64 = 256;

impl Model for Config {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::initial(self)]
    }

    fn actions(&self, w: &World, out: &mut Vec<Action>) {
        w.actions(self, out);
    }

    fn next_state(&self, w: &World, action: Action) -> Option<World> {
        w.next(self, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties =
            vec![Property::always("no harm", |c: &Config, w: &World| harm(c, w).is_none() || (c.hole && w.anew))];
        // With graceful ones everything is to end well without help, which a pod that was hurried may need.
        if self.rules == Rules::ALL && !self.hole && !self.graceful {
            properties.push(Property::always("an end", |c: &Config, w: &World| {
                let sample = hash(w);
                if !sample.is_multiple_of(HEALED_OF) {
                    return true;
                }
                c.healed.fetch_add(1, Ordering::Relaxed);
                heals(c, w, &mut Random::new(sample)).is_ok()
            }));
        }
        if self.hole {
            properties.push(Property::sometimes("the hole", |c: &Config, w: &World| w.anew && harm(c, w).is_some()));
        }
        properties
    }

    /// Longer logs bring nothing new.
    fn within_boundary(&self, w: &World) -> bool {
        w.volumes.iter().all(|v| v.dir.as_ref().is_none_or(|d| d.log.len() <= 14 && d.term <= 5))
    }
}

/// The same for the same state in each run.
fn hash(w: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    w.hash(&mut hasher);
    hasher.finish()
}

/// What must never be: a loss, or a step that comes before one.
pub fn harm(c: &Config, w: &World) -> Option<&'static str> {
    let counts = |o: &usize| {
        let cluster = w.dir(*o).map(|d| d.cluster);
        w.serves(*o) && cluster != w.stray && cluster.is_some_and(|cluster| w.open(cluster))
    };
    let mut servers = (0..w.pods.len()).filter(counts);
    if servers.clone().count() > 1 {
        return Some("two clusters serve");
    }
    if !servers.all(|o| w.dir(o).is_some_and(|d| d.writes() & w.acked == w.acked)) {
        return Some("an acknowledged write is missing");
    }
    if c.borne && w.acked & !w.kept() != 0 {
        return Some("no data dir has an acknowledged write any more");
    }
    w.loss.or(w.bad_step.filter(|_| !c.loss_only))
}

/// The outcome of a search.
#[derive(Default)]
pub struct Outcome {
    /// States generated, and how many of them differ.
    pub states: usize,
    pub unique: usize,
    pub depth: usize,
    /// States from which it was let heal.
    pub healed: usize,
    /// What an operator had to do for that.
    pub remedied: Remedied,
    pub seconds: f64,
    pub complete: bool,
    /// What was found, and how it comes about.
    pub broken: Option<(String, String)>,
    /// Whether the documented hole was reached.
    pub hole: bool,
}

/// Explores up to `limit` generated states, breadth first.
pub fn explore(config: &Config, limit: usize) -> Outcome {
    let began = Instant::now();
    let config = Config { healed: Arc::default(), ..config.clone() };
    let checker = config.clone().checker().threads(2).target_state_count(limit).spawn_bfs().join();
    let mut found = checker.discoveries();
    let hole = found.remove("the hole").is_some();
    let broken = found.remove("no harm").or_else(|| found.remove("an end")).map(|path| {
        let w = path.last_state();
        let ends = || heals(&config, w, &mut Random::new(hash(w))).err();
        let why = harm(&config, w).map(str::to_owned).or_else(ends).unwrap_or_default();
        (why, format!("{:?}", path.into_actions()))
    });
    Outcome {
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        healed: config.healed.load(Ordering::Relaxed),
        remedied: Remedied::default(),
        seconds: began.elapsed().as_secs_f64(),
        complete: checker.state_count() < limit,
        broken,
        hole,
    }
}

/// A fixed sequence of numbers that look random (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Walks at random, the same walks each time, each up to 90 steps long; then lets it heal.
pub fn walk(config: &Config, walks: u64) -> Outcome {
    let began = Instant::now();
    let mut o = Outcome::default();
    for seed in 0..walks {
        let mut random = Random::new(seed + 1);
        let mut w = World::initial(config);
        let mut trail = Vec::new();
        let mut actions = Vec::new();
        for _ in 0..random.below(90) {
            actions.clear();
            w.actions(config, &mut actions);
            actions.retain(|a| !(config.graceful && matches!(a, Action::Hurry(_))));
            if actions.is_empty() {
                break;
            }
            let action = actions[random.below(actions.len())];
            let Some(next) = w.next(config, action) else { continue };
            w = next;
            o.states += 1;
            trail.push(action);
            if let Some(why) = harm(config, &w) {
                o.broken = Some((why.to_owned(), format!("{trail:?}")));
                break;
            }
        }
        o.depth = o.depth.max(trail.len());
        if o.broken.is_none() {
            o.healed += 1;
            match heals(config, &w, &mut random) {
                Ok(remedied) => o.remedied += remedied,
                Err(why) => o.broken = Some((why, format!("{trail:?}"))),
            }
        }
        if o.broken.is_some() {
            break;
        }
    }
    o.unique = o.states;
    o.seconds = began.elapsed().as_secs_f64();
    o
}
