//! The checker's model: what must hold in every state, and that faults end well.

use std::time::Instant;

use stateright::{Checker, Model, Property};

use crate::action::Action;
use crate::world::{Config, Process, World};

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
        vec![
            Property::always("one cluster serves", |_, w: &World| servers(w).count() <= 1),
            Property::always("no acknowledged write is missing", |_, w: &World| {
                servers(w).all(|o| w.dir(o).is_some_and(|d| d.writes() & w.acked == w.acked))
            }),
            Property::always("no step of ours does harm", |_, w: &World| w.bad_step.is_none()),
        ]
    }

    /// Longer logs bring nothing new.
    fn within_boundary(&self, w: &World) -> bool {
        w.volumes.iter().all(|v| v.dir.as_ref().is_none_or(|d| d.log.len() <= 14 && d.term <= 5))
    }
}

fn servers(w: &World) -> impl Iterator<Item = usize> {
    (0..w.pods.len()).filter(|o| w.serves(*o))
}

/// The outcome of an exploration.
pub struct Outcome {
    pub states: usize,
    pub unique: usize,
    pub depth: usize,
    pub seconds: f64,
    pub complete: bool,
    pub broken: Vec<(&'static str, String)>,
}

/// Explores up to `limit` generated states, breadth first.
pub fn explore(config: &Config, limit: usize) -> Outcome {
    let began = Instant::now();
    let checker = config.clone().checker().threads(2).target_state_count(limit).spawn_bfs().join();
    let broken = checker.discoveries().into_iter().map(|(name, path)| {
        let why = path.last_state().bad_step.unwrap_or_default();
        (name, format!("{why} {:?}", path.into_actions()))
    });
    Outcome {
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        seconds: began.elapsed().as_secs_f64(),
        complete: checker.state_count() < limit,
        broken: broken.collect(),
    }
}

/// Ends the faults and lets everything run, fairly: whether every wanted pod then serves, or says what it waits for.
pub fn heals(config: &Config, from: &World) -> Result<(), Box<World>> {
    let mut w = World { host_up: true, ..from.clone() };
    let (mut at, mut actions) = (0, Vec::new());
    for _ in 0..600 {
        if healthy(config, &w) {
            return Ok(());
        }
        actions.clear();
        w.actions(config, &mut actions);
        actions.retain(|a| !a.is_fault());
        let Some(next) = (0..actions.len()).find_map(|i| w.next(config, actions[(at + i) % actions.len()])) else {
            break;
        };
        w = next;
        at += 1;
    }
    let says_why = w.pods.iter().any(|p| matches!(p.process, Process::Waits(_)));
    if says_why { Ok(()) } else { Err(Box::new(w)) }
}

fn healthy(c: &Config, w: &World) -> bool {
    let wanted = usize::from(w.desired);
    (0..w.pods.len()).all(|o| w.pods[o].exists == (o < wanted)) && (0..wanted).all(|o| w.ready(c, o))
}
