//! What may happen next, and what follows from it.

use crate::config::Config;
use crate::etcd::{Dir, Op};
use crate::membership::ready::PodManagement;
use crate::observe::{self, Patience};
use crate::rules::Rule;
use crate::world::{Act, Pod, Process, Volume, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Boot(usize),
    BootBlind(usize),
    Do(usize),
    DoLate(usize),
    Land,
    Elect(usize),
    Copy(usize, usize),
    Commit(usize),
    Write(usize),
    Plan(usize),
    /// By a syncer that is not beside the leader.
    PlanBeside(usize, usize),
    Upkeep(usize),
    /// A pod that serves looks at the others' clusters.
    Compare(usize),
    /// A pod whose API server is held back looks whether it may start.
    Release(usize),
    ReleaseBlind(usize),
    Leave(usize),
    /// The same when the leader's etcd has refused what was asked for: a member has been connected for too short a time.
    LeaveRefused(usize),
    Hurry(usize),
    Create(usize),
    Delete(usize),
    Kill(usize),
    Lose(usize),
    Scale(u8),
    HostDown,
    HostUp,
    LoseMarker,
    Stop(usize),
    Cut(usize),
    Mend,
    HideMarker,
    ShowMarker,
    Stage,
    Roll(usize),
    /// DNS goes on saying what it says now.
    Freeze,
    Thaw,
    Damage(usize),
    /// `syncer recover`, killed once it has noted that it has begun.
    BeginRecover(usize),
    Orphan,
    Adopt,
    SwitchOff,
    SwitchOn,
    /// The next second.
    Tick,
}

impl Action {
    pub fn is_fault(self) -> bool {
        use Action::*;
        matches!(
            self,
            BootBlind(_)
                | ReleaseBlind(_)
                | DoLate(_)
                | Kill(_)
                | Lose(_)
                | Scale(_)
                | HostDown
                | LoseMarker
                | Write(_)
                | Hurry(_)
                | Stop(_)
                | Cut(_)
                | HideMarker
                | Stage
                | Freeze
                | Damage(_)
                | BeginRecover(_)
                | Orphan
                | SwitchOff
        )
    }
}

impl World {
    pub fn actions(&self, c: &Config, out: &mut Vec<Action>) {
        use Action::*;
        let b = &self.budget;
        let n = self.pods.len();
        let mut clusters = self.volumes.iter().filter_map(|v| v.dir.as_ref()).map(|d| d.cluster);
        let several = clusters.next().is_some_and(|first| clusters.any(|other| other != first));
        for o in 0..n {
            let pod = &self.pods[o];
            match &pod.process {
                Process::Off | Process::Waits if pod.exists && !pod.terminating && self.resolves_itself(o) => {
                    out.push(Boot(o));
                    if b.blind > 0 {
                        out.push(BootBlind(o));
                    }
                }
                Process::Will(act) if pod.exists && !pod.terminating => {
                    out.push(Do(o));
                    if b.late > 0 && matches!(act, Act::Write(Some(_), _)) && self.late.is_none() {
                        out.push(DoLate(o));
                    }
                }
                Process::Etcd if !pod.terminating && !self.answers(o) => out.push(Boot(o)),
                Process::Etcd if !pod.terminating && several => out.push(Compare(o)),
                _ => {}
            }
            if !pod.held.is_empty() && self.runs(o) && !pod.terminating {
                out.push(Release(o));
                if b.blind > 0 {
                    out.push(ReleaseBlind(o));
                }
            }
            if pod.terminating {
                out.push(Leave(o));
                if pod.asks_to_leave {
                    out.push(LeaveRefused(o));
                }
                out.push(Hurry(o));
            }
            if pod.leads.is_none() {
                out.push(Elect(o));
            } else {
                out.extend((0..n).filter(|f| *f != o).map(|f| Copy(o, f)));
                out.push(Commit(o));
                if self.serves(o) {
                    out.push(Plan(o));
                    if !c.rules.on(Rule::OneWriter) {
                        out.extend((0..n).filter(|by| *by != o && self.runs(*by)).map(|by| PlanBeside(o, by)));
                    }
                    out.push(Upkeep(o));
                    if b.writes > 0 && self.dir(o).is_some_and(|d| self.open(d.cluster)) {
                        out.push(Write(o));
                    }
                }
            }
            // Where it takes long to come back, it is the scaling that rolls them, as helm does.
            let rolled = !c.slow || b.scales == 0;
            if b.stops > 0 && rolled && pod.exists && !pod.terminating && o < usize::from(self.desired) {
                out.push(Stop(o));
            }
            if b.cuts > 0 && self.cut.is_none() && pod.exists {
                out.push(Cut(o));
            }
            if b.kills > 0 && pod.exists && pod.process != Process::Off {
                out.push(Kill(o));
            }
            if b.losses > 0 && pod.process == Process::Off && self.volumes[o].dir.is_some() {
                out.push(Lose(o));
            }
            if b.damages > 0 && pod.process == Process::Off && o + 1 == n && self.sound(o) {
                out.push(Damage(o));
            }
            if b.recovers > 0 && pod.process == Process::Off && self.sound(o) && self.dir(o).is_some_and(Dir::votes) {
                out.push(BeginRecover(o));
            }
        }
        self.controller(c, out);
        if self.late.is_some() {
            out.push(Land);
        }
        if b.scales > 0 {
            out.extend(c.scale_to.iter().filter(|n| **n != self.desired).map(|n| Scale(*n)));
        }
        if c.host && !self.host_up {
            out.push(HostUp);
        }
        if b.host > 0 && self.host_up && c.host {
            out.push(HostDown);
        }
        if self.cut.is_some() {
            out.push(Mend);
        }
        if self.stale.is_some() {
            out.push(Thaw);
        } else if b.stales > 0 && self.may_freeze(c) {
            out.push(Freeze);
        }
        if self.marker_hidden {
            out.push(ShowMarker);
        } else if b.hides > 0 && c.host {
            out.push(HideMarker);
        }
        if b.restores > 0 && self.volumes[0].staged.is_none() && self.acked & 1 == 1 {
            out.push(Stage);
        }
        if self.orphaned {
            out.push(Adopt);
        } else if b.orphans > 0 {
            out.push(Orphan);
        }
        if !self.enabled {
            out.push(SwitchOn);
        } else if b.offs > 0 {
            out.push(SwitchOff);
        }
        if c.seconds && self.changed {
            out.push(Tick);
        }
        if b.marker > 0 && self.marker.is_some() {
            out.push(LoseMarker);
        }
    }

    /// Whether DNS may fall behind now. Without a host API a lone volume that was lost is formed anew (rule 4.2): after the
    /// loss it does not go on speaking of a moment at which the pod with the data was away.
    fn may_freeze(&self, c: &Config) -> bool {
        let lost = self.budget.losses < c.budget.losses;
        c.host || !lost || (0..usize::from(self.desired)).all(|o| self.pods[o].exists)
    }

    /// Whether there is a data dir from which etcd could start.
    fn sound(&self, o: usize) -> bool {
        !self.volumes[o].damaged && self.dir(o).is_some_and(|d| !d.log.is_empty())
    }

    fn controller(&self, c: &Config, out: &mut Vec<Action>) {
        if self.orphaned {
            return;
        }
        let desired = usize::from(self.desired);
        let ordered = c.policy == PodManagement::OrderedReady;
        let fine = |o: usize| self.pods[o].exists && !self.pods[o].terminating && self.ready(c, o);
        let calm = || self.pods.iter().all(|p| !p.terminating);
        if let Some(o) = (0..desired).find(|o| !self.pods[*o].exists)
            && (!ordered || (0..o).all(fine))
            && (!c.slow || calm())
        {
            out.push(Action::Create(o));
        }
        let old = (0..desired).rev().find(|o| self.pods[*o].process == Process::Other);
        if let Some(o) = old
            && (0..desired).all(fine)
        {
            out.push(Action::Roll(o));
        }
        let surplus = (desired..self.pods.len()).rev().find(|o| self.pods[*o].exists && !self.pods[*o].terminating);
        if let Some(o) = surplus {
            let lowest_unready = (0..self.pods.len()).find(|o| self.pods[*o].exists && !fine(*o));
            if !ordered || (calm() && (0..desired).all(fine) && (fine(o) || lowest_unready == Some(o))) {
                out.push(Action::Delete(o));
            }
        }
    }

    pub fn next(&self, c: &Config, action: Action) -> Option<World> {
        use Action::*;
        let mut w = self.clone();
        match action {
            Boot(o) => w.boot(c, o, false),
            BootBlind(o) => {
                w.budget.blind -= 1;
                w.boot(c, o, true);
            }
            Do(o) => w.act(c, o, false),
            DoLate(o) => {
                w.budget.late -= 1;
                w.act(c, o, true);
            }
            Land => {
                let write = w.late.take()?;
                w.swap(&write);
            }
            Elect(o) => w.elect(o)?,
            Copy(l, f) => w.copy(l, f)?,
            Commit(o) => w.commit(o)?,
            Write(o) => {
                w.budget.writes -= 1;
                let k = w.next_write;
                w.next_write += 1;
                w.append(o, Op::Write(k));
            }
            Plan(o) => w.plan(c, o, o),
            PlanBeside(l, by) => w.plan(c, l, by),
            Upkeep(o) => {
                if !(c.host && w.host_up) {
                    return None;
                }
                let list = observe::list(w.dir(o)?);
                let dir = w.dir(o)?;
                let kept = crate::boot::marker::Remembered {
                    member: Some(crate::ids::MemberId(dir.member.into())),
                    dropped: observe::dropped(dir),
                    superseded: Vec::new(),
                };
                let write = crate::boot::marker::upkeep(&observe::marker(&w, c), &list, &kept, c.rules)?;
                w.swap(&write);
            }
            Compare(o) => w.compare(c, o),
            Release(o) => w.release(c, o, false),
            ReleaseBlind(o) => {
                w.budget.blind -= 1;
                w.release(c, o, true);
            }
            Leave(o) => w.leave(c, o, Patience::Some),
            LeaveRefused(o) => w.leave(c, o, Patience::Refused),
            Hurry(o) => w.leave(c, o, Patience::None),
            Create(o) => {
                w.pods[o] = Pod { exists: true, ..Pod::default() };
                w.volumes[o].claim = true;
                w.moved(o);
            }
            Delete(o) => w.tell_to_stop(o),
            Kill(o) => {
                w.budget.kills -= 1;
                if w.pods[o].terminating {
                    w.pods[o] = Pod::default();
                } else {
                    w.stop_etcd(o, Process::Off);
                }
            }
            Lose(o) => {
                w.budget.losses -= 1;
                w.volumes[o] = Volume { claim: w.volumes[o].claim, ..Volume::default() };
                // Another volume is another pod's.
                w.moved(o);
            }
            Scale(n) => {
                w.budget.scales -= 1;
                w.desired = n;
                if n > 0 {
                    w.values = n;
                }
            }
            HostDown => {
                w.budget.host -= 1;
                w.host_up = false;
            }
            HostUp => w.host_up = true,
            Stop(o) => {
                w.budget.stops -= 1;
                w.tell_to_stop(o);
            }
            Cut(o) => {
                w.budget.cuts -= 1;
                w.cut = Some(o);
            }
            Mend => w.cut = None,
            HideMarker => {
                w.budget.hides -= 1;
                w.marker_hidden = true;
            }
            ShowMarker => w.marker_hidden = false,
            Stage => {
                w.budget.restores -= 1;
                w.stage();
            }
            Roll(o) => {
                w.pods[o] = Pod { exists: true, ..Pod::default() };
                w.moved(o);
            }
            Freeze => {
                w.budget.stales -= 1;
                w.freeze_dns();
            }
            Thaw => w.stale = None,
            Damage(o) => {
                w.budget.damages -= 1;
                w.volumes[o].damaged = true;
            }
            BeginRecover(o) => {
                w.budget.recovers -= 1;
                w.begin_reset(c, o);
            }
            Orphan => {
                w.budget.orphans -= 1;
                w.orphaned = true;
            }
            Adopt => w.orphaned = false,
            SwitchOff => {
                w.budget.offs -= 1;
                w.enabled = false;
                w.restart_all();
            }
            SwitchOn => {
                w.enabled = true;
                w.restart_all();
            }
            Tick => {
                w.changed = false;
                w.given.clear();
            }
            LoseMarker => {
                w.budget.marker -= 1;
                w.marker = None;
            }
        }
        (w != *self).then_some(w)
    }
}
