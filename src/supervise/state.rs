//! What the supervisor does next: state and event in, actions out. No clock, no process.
//!
//! Children stand in tiers: the datastore, the API server, its companions. A tier is started when the one below is
//! ready, and stopped when the one above has ended. A child that ends is started again after a pause; one that fails
//! again and again without ever having been well ends the program, so that the failure is seen.

use std::time::Duration;

use super::backoff::Backoff;
use super::spec::Role;

/// Failures in a row, without a healthy time between them, after which the program gives up.
pub const FAILURES_MAX: u32 = 8;

/// A child's number: its place in the list of specs.
pub type Index = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not running; started when the tier below is ready.
    Waiting,
    /// Not running; waits for its pause to be over.
    Pausing,
    /// Runs, and has not said that it serves.
    Starting,
    /// Runs and serves.
    Ready,
    /// Runs, was told to end, and is started again when it has.
    Restarting,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The program starts.
    Begin,
    /// A child serves.
    Ready(Index),
    /// A child serves no longer, although it runs.
    Lost(Index),
    /// A child is to end and to be started again: it hangs, or what it reads only at start has changed.
    Restart(Index),
    /// A child ended, having been ready for so long.
    Exited(Index, Duration),
    /// A child ended for a reason that starting it again cannot help.
    Broken(Index),
    /// A child's pause is over.
    PauseOver(Index),
    /// The program is told to stop; the second time it hurries.
    Stop,
    /// A child did not end within its grace.
    GraceOver(Index),
    /// What [`Action::Depart`] asked for is done, or its time is over.
    Departed,
    /// What is above the datastore may be started ([`State::holding`]).
    Release,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the child, and send [`Event::Ready`] when it serves.
    Start(Index),
    /// Send [`Event::PauseOver`] after this time.
    Pause(Index, Duration),
    /// Send it SIGTERM, and [`Event::GraceOver`] after its grace.
    Terminate(Index),
    /// Send it SIGKILL.
    Kill(Index),
    /// Everything above the datastore has ended: see to this member's leaving while its etcd runs, then send
    /// [`Event::Departed`].
    Depart,
    /// All children have ended as asked.
    Finished,
    /// This child cannot be kept running: end the program once everything has stopped.
    GiveUp(Index),
}

/// The state of all children.
#[derive(Clone, Debug)]
pub struct State {
    tiers: Vec<u8>,
    stages: Vec<Stage>,
    backoffs: Vec<Backoff>,
    stopping: bool,
    finished: bool,
    departure: Departure,
    /// Nothing above the datastore is started.
    held: bool,
}

/// What is between the last API server's end and the datastore's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    /// To be asked for.
    Due,
    /// Asked for.
    Begun,
    /// Over, or not wanted.
    Done,
}

fn tier(role: Role) -> u8 {
    match role {
        Role::Etcd | Role::Kine => 0,
        Role::ApiServer => 1,
        Role::ControllerManager | Role::Scheduler => 2,
    }
}

impl State {
    /// No child runs.
    pub fn new(roles: impl IntoIterator<Item = Role>) -> State {
        let tiers: Vec<u8> = roles.into_iter().map(tier).collect();
        let count = tiers.len();
        State {
            tiers,
            stages: vec![Stage::Waiting; count],
            backoffs: vec![Backoff::default(); count],
            stopping: false,
            finished: false,
            departure: Departure::Done,
            held: false,
        }
    }

    /// With nothing above the datastore started before [`Event::Release`].
    pub fn holding(mut self) -> State {
        self.held = true;
        self
    }

    /// With [`Action::Depart`] before the datastore is told to stop.
    pub fn departing(mut self) -> State {
        self.departure = Departure::Due;
        self
    }

    /// Whether a stop was asked for or decided.
    pub fn stopping(&self) -> bool {
        self.stopping
    }

    /// Whether this child was told to end.
    pub fn told_to_end(&self, child: Index) -> bool {
        self.stopping || self.stages.get(child) == Some(&Stage::Restarting)
    }

    /// Whether every child of this role's tier serves.
    pub fn serves(&self, role: Role) -> bool {
        self.tier_ready(tier(role))
    }

    /// Takes an event. An event of a child that is not in the state it speaks of changes nothing.
    pub fn next(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Begin => self.start_what_may(),
            Event::Ready(child) if self.stages.get(child) == Some(&Stage::Starting) => {
                self.set(child, Stage::Ready);
                self.start_what_may()
            }
            Event::Lost(child) if self.stages.get(child) == Some(&Stage::Ready) => {
                self.set(child, Stage::Starting);
                Vec::new()
            }
            Event::Restart(child) if !self.told_to_end(child) && self.runs(child) => {
                self.set(child, Stage::Restarting);
                vec![Action::Terminate(child)]
            }
            Event::Exited(child, ready_for) if self.runs(child) => self.exited(child, ready_for),
            Event::Broken(child) if self.runs(child) && !self.told_to_end(child) => {
                self.set(child, Stage::Waiting);
                [Action::GiveUp(child)].into_iter().chain(self.stop()).collect()
            }
            Event::Broken(child) => self.next(Event::Exited(child, Duration::ZERO)),
            Event::PauseOver(child) if self.stages.get(child) == Some(&Stage::Pausing) => {
                self.set(child, Stage::Waiting);
                self.start_what_may()
            }
            Event::Stop if self.stopping && self.departure == Departure::Begun => self.next(Event::Departed),
            Event::Stop if self.stopping => {
                (0..self.stages.len()).filter(|c| self.runs(*c) && self.tiers[*c] > 0).map(Action::Kill).collect()
            }
            Event::Departed if self.departure == Departure::Begun => {
                self.departure = Departure::Done;
                self.stop_next_tier(u8::MAX)
            }
            Event::Stop => self.stop(),
            Event::Release => {
                self.held = false;
                self.start_what_may()
            }
            Event::GraceOver(child) if self.told_to_end(child) && self.runs(child) => vec![Action::Kill(child)],
            _ => Vec::new(),
        }
    }

    fn exited(&mut self, child: Index, ready_for: Duration) -> Vec<Action> {
        let asked = self.told_to_end(child);
        self.set(child, Stage::Waiting);
        if self.stopping {
            return self.stop_next_tier(self.tiers[child]);
        }
        if asked {
            return self.start_what_may();
        }
        let pause = self.backoffs[child].failed(ready_for);
        if self.backoffs[child].failures() >= FAILURES_MAX {
            return [Action::GiveUp(child)].into_iter().chain(self.stop()).collect();
        }
        self.set(child, Stage::Pausing);
        vec![Action::Pause(child, pause)]
    }

    fn stop(&mut self) -> Vec<Action> {
        self.stopping = true;
        self.stop_next_tier(u8::MAX)
    }

    /// Stops the highest tier that runs. `ended` is the tier of the child that has just ended: while others of it run,
    /// they have been told already.
    fn stop_next_tier(&mut self, ended: u8) -> Vec<Action> {
        let highest = (0..self.stages.len()).filter(|c| self.runs(*c)).map(|c| self.tiers[c]).max();
        match highest {
            None if self.finished => Vec::new(),
            None => {
                self.finished = true;
                vec![Action::Finished]
            }
            Some(tier) if tier == ended => Vec::new(),
            Some(0) if self.departure == Departure::Due => {
                self.departure = Departure::Begun;
                vec![Action::Depart]
            }
            Some(0) if self.departure == Departure::Begun => Vec::new(),
            Some(tier) => {
                let in_tier = (0..self.stages.len()).filter(|c| self.runs(*c) && self.tiers[*c] == tier);
                in_tier.map(Action::Terminate).collect()
            }
        }
    }

    fn start_what_may(&mut self) -> Vec<Action> {
        if self.stopping {
            return Vec::new();
        }
        let may: Vec<_> = (0..self.stages.len())
            .filter(|c| self.stages[*c] == Stage::Waiting && (0..self.tiers[*c]).all(|below| self.tier_ready(below)))
            .filter(|c| !self.held || self.tiers[*c] == 0)
            .collect();
        for child in &may {
            self.set(*child, Stage::Starting);
        }
        may.into_iter().map(Action::Start).collect()
    }

    fn tier_ready(&self, tier: u8) -> bool {
        self.tiers.iter().zip(&self.stages).all(|(t, stage)| *t != tier || *stage == Stage::Ready)
    }

    fn runs(&self, child: Index) -> bool {
        matches!(self.stages.get(child), Some(Stage::Starting | Stage::Ready | Stage::Restarting))
    }

    fn set(&mut self, child: Index, stage: Stage) {
        if let Some(slot) = self.stages.get_mut(child) {
            *slot = stage;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Role; 4] = [Role::Etcd, Role::ApiServer, Role::ControllerManager, Role::Scheduler];

    #[test]
    fn tiers_start_upwards_and_stop_downwards() {
        let mut state = State::new(ALL);
        assert_eq!(state.next(Event::Begin), [Action::Start(0)]);
        assert_eq!(state.next(Event::Ready(0)), [Action::Start(1)]);
        assert_eq!(state.next(Event::Ready(1)), [Action::Start(2), Action::Start(3)]);
        assert_eq!(state.next(Event::Stop), [Action::Terminate(2), Action::Terminate(3)]);
        assert_eq!(state.next(Event::Exited(3, Duration::ZERO)), []);
        assert_eq!(state.next(Event::GraceOver(2)), [Action::Kill(2)]);
        assert_eq!(state.next(Event::Exited(2, Duration::ZERO)), [Action::Terminate(1)]);
        assert_eq!(state.next(Event::Exited(1, Duration::ZERO)), [Action::Terminate(0)]);
        assert_eq!(state.next(Event::Exited(0, Duration::ZERO)), [Action::Finished]);
    }

    #[test]
    fn a_child_that_ends_is_started_again_and_the_others_go_on() {
        let mut state = State::new(ALL);
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        state.next(Event::Ready(1));
        let [Action::Pause(0, pause)] = state.next(Event::Exited(0, Duration::from_secs(100)))[..] else { panic!() };
        assert!(pause < Duration::from_secs(2));
        assert!(!state.serves(Role::Etcd) && state.serves(Role::ApiServer));
        assert_eq!(state.next(Event::PauseOver(0)), [Action::Start(0)]);
    }

    #[test]
    fn a_child_that_never_gets_well_ends_the_program_after_the_others_have_stopped() {
        let mut state = State::new([Role::Etcd, Role::ApiServer]);
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        for _ in 1..FAILURES_MAX {
            assert!(matches!(state.next(Event::Exited(1, Duration::ZERO))[..], [Action::Pause(1, _)]));
            state.next(Event::PauseOver(1));
        }
        assert_eq!(state.next(Event::Exited(1, Duration::ZERO)), [Action::GiveUp(1), Action::Terminate(0)]);
        assert_eq!(state.next(Event::Exited(0, Duration::ZERO)), [Action::Finished]);
    }

    #[test]
    fn a_second_stop_hurries_the_api_server_and_never_the_datastore() {
        let mut state = State::new(ALL);
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        state.next(Event::Stop);
        assert_eq!(state.next(Event::Stop), [Action::Kill(1)]);
    }

    #[test]
    fn a_child_that_cannot_be_helped_ends_the_program_at_once() {
        let mut state = State::new([Role::Etcd, Role::ApiServer]);
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        assert_eq!(state.next(Event::Broken(0)), [Action::GiveUp(0), Action::Terminate(1)]);
        assert_eq!(state.next(Event::Broken(1)), [Action::Finished], "told to end, it broke nothing");
    }

    #[test]
    fn a_restart_has_no_pause_and_leaves_the_others_alone() {
        let mut state = State::new(ALL);
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        state.next(Event::Ready(1));
        assert_eq!(state.next(Event::Restart(0)), [Action::Terminate(0)]);
        assert_eq!(state.next(Event::Restart(0)), [], "once");
        assert_eq!(state.next(Event::GraceOver(0)), [Action::Kill(0)]);
        assert_eq!(state.next(Event::Broken(0)), [Action::Start(0)], "its end was asked for");
        assert_eq!(state.next(Event::GraceOver(0)), [], "the grace was the earlier process's");
        assert_eq!(state.next(Event::Stop), [Action::Terminate(2), Action::Terminate(3)]);
        assert_eq!(state.next(Event::Restart(1)), [], "nothing is started any more");
    }

    #[test]
    fn what_is_lost_holds_back_those_above_until_it_serves_again() {
        let mut state = State::new([Role::Etcd, Role::ApiServer]);
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        state.next(Event::Ready(1));
        assert_eq!(state.next(Event::Lost(0)), []);
        assert!(!state.serves(Role::Etcd) && state.serves(Role::ApiServer));
        state.next(Event::Exited(1, Duration::ZERO));
        assert_eq!(state.next(Event::PauseOver(1)), []);
        assert_eq!(state.next(Event::Ready(0)), [Action::Start(1)]);
    }

    #[test]
    fn a_departure_stands_between_the_api_servers_end_and_the_datastores() {
        let begun = || {
            let mut state = State::new([Role::Etcd, Role::ApiServer]).departing();
            state.next(Event::Begin);
            state.next(Event::Ready(0));
            assert_eq!(state.next(Event::Stop), [Action::Terminate(1)]);
            assert_eq!(state.next(Event::Departed), [], "not asked for yet");
            assert_eq!(state.next(Event::Exited(1, Duration::ZERO)), [Action::Depart]);
            state
        };
        let mut state = begun();
        assert_eq!(state.next(Event::Departed), [Action::Terminate(0)]);
        assert_eq!(state.next(Event::Departed), [], "once");
        assert_eq!(state.next(Event::Exited(0, Duration::ZERO)), [Action::Finished]);
        // Hurried, or with an etcd that ends by itself.
        assert_eq!(begun().next(Event::Stop), [Action::Terminate(0)]);
        let mut state = begun();
        assert_eq!(state.next(Event::Exited(0, Duration::ZERO)), [Action::Finished]);
        assert_eq!(state.next(Event::Departed), []);
    }

    #[test]
    fn held_back_nothing_above_the_datastore_starts_before_it_is_released() {
        let mut state = State::new([Role::Etcd, Role::ApiServer]).holding();
        assert_eq!(state.next(Event::Begin), [Action::Start(0)]);
        assert_eq!(state.next(Event::Ready(0)), []);
        assert!(state.serves(Role::Etcd));
        assert_eq!(state.next(Event::Release), [Action::Start(1)]);
        // Released before the datastore serves, and told to stop while held back.
        let mut state = State::new([Role::Etcd, Role::ApiServer]).holding();
        state.next(Event::Begin);
        assert_eq!(state.next(Event::Release), []);
        assert_eq!(state.next(Event::Ready(0)), [Action::Start(1)]);
        let mut state = State::new([Role::Etcd, Role::ApiServer]).holding();
        state.next(Event::Begin);
        state.next(Event::Ready(0));
        assert_eq!(state.next(Event::Stop), [Action::Terminate(0)]);
        assert_eq!(state.next(Event::Release), []);
    }

    fn event() -> impl Strategy<Value = Event> {
        let child = 0..4usize;
        prop_oneof![
            child.clone().prop_map(Event::Ready),
            child.clone().prop_map(Event::Lost),
            child.clone().prop_map(Event::Restart),
            child.clone().prop_map(Event::Broken),
            (child.clone(), 0..100u64).prop_map(|(c, s)| Event::Exited(c, Duration::from_secs(s))),
            child.clone().prop_map(Event::PauseOver),
            child.prop_map(Event::GraceOver),
            Just(Event::Stop),
            Just(Event::Release),
        ]
    }

    proptest! {
        #[test]
        fn no_history_breaks_the_order(events in proptest::collection::vec(event(), 0..80)) {
            let mut state = State::new(ALL);
            let mut running = [false; 4];
            let mut stopped = false;
            for event in std::iter::once(Event::Begin).chain(events) {
                if let Event::Exited(child, _) | Event::Broken(child) = event {
                    if !running[child] { continue; }
                    running[child] = false;
                }
                let serving: Vec<_> = ALL.iter().map(|role| state.serves(*role)).collect();
                stopped |= event == Event::Stop;
                for action in state.next(event) {
                    match action {
                        Action::Start(child) => {
                            prop_assert!(!running[child], "started twice");
                            prop_assert!(!stopped, "started after the stop");
                            let below_ready = child == 0 || serving[0] || event == Event::Ready(0);
                            prop_assert!(below_ready, "started before the datastore serves");
                            running[child] = true;
                        }
                        Action::Terminate(0) if stopped => {
                            prop_assert!(!running[1] && !running[2] && !running[3], "the datastore is stopped last");
                        }
                        Action::Kill(child) => prop_assert!(running[child]),
                        Action::GiveUp(_) => stopped = true,
                        Action::Finished => prop_assert!(running.iter().all(|r| !r)),
                        Action::Terminate(child) => prop_assert!(running[child], "{child} does not run"),
                        Action::Pause(..) | Action::Depart => {}
                    }
                }
            }
            // Whatever happened: told to stop, and every child that is told so ends, it finishes.
            let mut finished = false;
            let mut todo = state.next(Event::Stop);
            todo.extend((0..4).filter(|c| running[*c]).map(Action::Terminate));
            for _ in 0..16 {
                let Some(action) = todo.pop() else { break };
                match action {
                    Action::Terminate(child) | Action::Kill(child) if running[child] => {
                        running[child] = false;
                        todo.extend(state.next(Event::Exited(child, Duration::ZERO)));
                    }
                    Action::Finished => finished = true,
                    Action::Start(_) => prop_assert!(false, "started after the stop"),
                    _ => {}
                }
            }
            prop_assert!(running.iter().all(|r| !r) && (finished || state.finished));
        }
    }
}
