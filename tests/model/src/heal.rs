//! Liveness: with the faults ended, everything ends well, or says why not with a remedy that then works.

use crate::action::Action;
use crate::boot::{self, BootDecision, Notes, Refusal, Role, Wait, Warning};
use crate::config::{Config, Start};
use crate::etcd::{Dir, written};
use crate::explore::{Random, harm};
use crate::ids::ClusterId;
use crate::observe::{self, Look};
use crate::world::{Pod, Process, Volume, World};

/// Steps until it must be well, or at rest.
const STEPS: usize = 1500;

/// So many remedies in turn are carried out at most.
const REMEDIES: usize = 4;

/// What a pod says that does not serve, by what its remedy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// Other pods are to be started.
    ScaleUp,
    /// `syncer recover` on the volume with the latest data.
    Recover,
    /// The same, and the marker, by which this member was dropped, is to be deleted.
    RecoverDropped,
    /// `syncer recover --new-cluster` on every volume, and the marker is to be deleted.
    GiveUp,
    /// This pod's data dir is to be moved away.
    MoveAway,
    /// This pod's volume is to be deleted.
    Delete,
    /// The StatefulSet is to be scaled to one, and up again.
    ScaleToOne,
    /// One of two clusters is to be given up.
    Choose,
    /// All pods are to have one CA.
    ShareCa,
}

/// What it took to end well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remedied {
    /// Clusters that went on with one member by `syncer recover`.
    pub recovered: usize,
    /// Those of them that it told of writes that may be lost.
    pub with_loss: usize,
    /// Clusters that were given up, nothing being left of them that etcd could go on from.
    pub given_up: usize,
}

impl std::ops::AddAssign for Remedied {
    fn add_assign(&mut self, other: Remedied) {
        self.recovered += other.recovered;
        self.with_loss += other.with_loss;
        self.given_up += other.given_up;
    }
}

/// Ends the faults, lets everything run, fairly, and carries out what the pods ask for.
///
/// # Errors
/// Why it does not end well.
pub fn heals(c: &Config, from: &World, random: &mut Random) -> Result<Remedied, String> {
    let host_up = !c.away_at_last;
    let mut w = World { host_up, marker_hidden: false, cut: None, stale: None, orphaned: false, ..from.clone() };
    let mut done = Remedied::default();
    if let Some(replicas) = c.at_last {
        (w.desired, w.values) = (replicas, replicas);
    }
    if let Some(o) = c.gone {
        w.pods[o] = Pod::default();
        w.volumes[o] = Volume { claim: true, ..Volume::default() };
    }
    rest(c, &mut w, random)?;
    if w.desired == 0 {
        // Paused: it comes back.
        w.desired = w.values;
        rest(c, &mut w, random)?;
    }
    if c.lost_at_last {
        w.pods[0] = Pod::default();
        w.volumes[0] = Volume { claim: true, ..Volume::default() };
        rest(c, &mut w, random)?;
    }
    if healthy(c, &w) {
        return Ok(done);
    }
    if w.stray.is_some() {
        return one_goes_on(c, &w).map(|()| done);
    }
    if c.graceful {
        return Err(format!("needs help: {:?} {}", says(c, &w), short(&w)));
    }
    for _ in 0..REMEDIES {
        let said = says(c, &w);
        let says = |what: Says| said.iter().find(|(_, said)| *said == what).map(|(o, _)| *o);
        let recover = says(Says::RecoverDropped).or(says(Says::Recover));
        // It says both, and the operator may choose.
        let by_hand = says(Says::ScaleUp).is_some() && says(Says::Recover) == Some(0) && random.below(3) == 0;
        if by_hand
            && c.host
            && w.marker.as_ref().and_then(|m| m.formed()) == w.dir(0).map(|d| ClusterId(d.cluster.into()))
        {
            done += recover_beside(c, &mut w, random)?;
        } else if says(Says::ScaleUp).is_some() && usize::from(w.desired) < c.pods && c.start != Start::OtherProgram {
            (w.desired, w.values) = (c.pods as u8, c.pods as u8);
        } else if says(Says::ScaleToOne) == Some(0) {
            let (desired, values) = (w.desired, w.values);
            (w.desired, w.values) = (1, 1);
            rest(c, &mut w, random)?;
            (w.desired, w.values) = (desired, values);
        } else if says(Says::ShareCa).is_some() {
            w.own_cas = false;
            w.restart_all();
        } else if let Some(o) = says(Says::Delete) {
            w.pods[o] = Pod::default();
            w.volumes[o] = Volume { claim: true, ..Volume::default() };
        } else if let Some(o) = says(Says::MoveAway).filter(|o| one_of_two(&w, *o)) {
            (w.volumes[o].dir, w.volumes[o].damaged) = (None, false);
        } else if let Some(from) = recover.and_then(|o| latest(&w, w.dir(o)?.cluster)) {
            done += recover_from(c, &mut w, from, says(Says::RecoverDropped).is_some(), random)?;
        } else if w.volumes.iter().any(|volume| volume.damaged)
            && !clusters(&w).iter().any(|cluster| w.quorum_left(*cluster, None))
        {
            // The volume is to be repaired.
            return Ok(done);
        } else if recover.or(says(Says::GiveUp)).is_some()
            && clusters(&w).iter().all(|k| w.was_replaced(*k) || latest(&w, *k).is_none())
        {
            done += give_up(c, &mut w, random)?;
        } else if says(Says::Choose).is_some() && clusters(&w).len() > 1 {
            return Ok(done);
        } else {
            break;
        }
        rest(c, &mut w, random)?;
        if healthy(c, &w) {
            return Ok(done);
        }
    }
    Err(format!("does not end well: {:?} {done:?} {}", says(c, &w), short(&w)))
}

/// The volume with the latest data of a cluster, of those that `syncer recover` takes: a voter's.
fn latest(w: &World, cluster: u8) -> Option<usize> {
    let dir = |o: &usize| w.dir(*o).filter(|d| d.cluster == cluster && d.votes() && !w.volumes[*o].damaged);
    (0..w.pods.len()).filter(|o| dir(o).is_some()).max_by_key(|o| dir(o).map(Dir::last))
}

/// Whether this pod's data dir is one of two voters', and the other has its own.
fn one_of_two(w: &World, o: usize) -> bool {
    let Some(cluster) = w.dir(o).map(|d| d.cluster) else { return false };
    latest(w, cluster).and_then(|other| w.dir(other)).is_some_and(|d| d.fact().voters == 2)
}

/// The StatefulSet is scaled to zero. Without a host API the pods do not know of it, and those that it waits for to become
/// ready are deleted by hand.
fn to_zero(c: &Config, w: &mut World, random: &mut Random) -> Result<(), String> {
    w.desired = 0;
    rest(c, w, random)?;
    for o in (0..w.pods.len()).filter(|_| !c.host) {
        if w.pods[o].exists && !w.pods[o].terminating {
            w.tell_to_stop(o);
        }
    }
    rest(c, w, random)?;
    if healthy(c, w) { Ok(()) } else { Err(format!("is not scaled to zero: {}", short(w))) }
}

/// `syncer recover` on this volume, with --accept-loss if it asks for that; the others begin with empty volumes.
fn recover_from(c: &Config, w: &mut World, o: usize, unmark: bool, random: &mut Random) -> Result<Remedied, String> {
    let Some(cluster) = w.dir(o).map(|d| d.cluster) else { return Ok(Remedied::default()) };
    if !unmark && w.quorum_left(cluster, None) {
        return Err(format!("asks to recover what has a quorum: {}", short(w)));
    }
    let replicas = w.values.max(o as u8 + 1);
    to_zero(c, w, random)?;
    let Some(log) = w.dir(o).map(Dir::fact) else { return Err(format!("has nothing to recover: {}", short(w))) };
    let lossless = log.role == Role::Voter && log.voters <= 2;
    if !lossless || unmark {
        // What may be missing is what only the lost volumes had; the survivor has gone on alone.
        let logs = w.volumes.iter().filter(|v| !v.damaged).filter_map(|v| v.dir.as_ref());
        let left = logs.filter(|d| d.cluster == cluster).fold(0, |writes, d| writes | written(&d.log));
        w.acked &= left;
    }
    w.begin_reset(c, o);
    w.force_alone(o);
    w.volumes[o].notes.resetting = false;
    w.volumes[o].notes.overtaken = None;
    for (p, volume) in w.volumes.iter_mut().enumerate() {
        if p != o && volume.dir.as_ref().is_some_and(|d| d.cluster == cluster) {
            *volume = Volume { claim: true, ..Volume::default() };
        }
    }
    if unmark {
        w.marker = None;
    }
    (w.desired, w.values) = (replicas, replicas);
    Ok(Remedied { recovered: 1, with_loss: usize::from(!lossless || unmark), given_up: 0 })
}

/// `syncer recover --accept-loss` on the seed's volume although the others have theirs. Scaled to one first, as the remedy says,
/// they come back with their data to one that has dropped them.
fn recover_beside(c: &Config, w: &mut World, random: &mut Random) -> Result<Remedied, String> {
    let replicas = c.pods as u8;
    to_zero(c, w, random)?;
    let Some(dir) = w.dir(0).filter(|dir| dir.votes()) else { return Ok(Remedied::default()) };
    // What only the others have, the operator gives up.
    w.acked &= written(&dir.log);
    w.begin_reset(c, 0);
    w.force_alone(0);
    w.volumes[0].notes.resetting = false;
    w.volumes[0].notes.overtaken = None;
    (w.desired, w.values) = (1, 1);
    rest(c, w, random)?;
    // It is evicted as they come, and gives them no word.
    w.tell_to_stop(0);
    (w.desired, w.values) = (replicas, replicas);
    rest(c, w, random)?;
    Ok(Remedied { recovered: 1, with_loss: 1, given_up: 0 })
}

/// `syncer recover --new-cluster` on every volume, and the marker is deleted: no data is left.
fn give_up(c: &Config, w: &mut World, random: &mut Random) -> Result<Remedied, String> {
    let replicas = w.values;
    to_zero(c, w, random)?;
    for volume in &mut w.volumes {
        let superseded = std::mem::take(&mut volume.notes.superseded);
        let settled = std::mem::take(&mut volume.notes.settled);
        volume.notes = Notes { superseded, settled, ..Notes::default() };
        volume.dir = None;
    }
    w.marker = None;
    w.acked = 0;
    w.desired = replicas;
    Ok(Remedied { given_up: 1, ..Remedied::default() })
}

/// Beside a stray volume: one cluster serves at most, and by the marker's word the formed one does.
fn one_goes_on(c: &Config, w: &World) -> Result<(), String> {
    let strays = |o: &usize| w.dir(*o).map(|d| d.cluster) == w.stray;
    let (stray, right): (Vec<_>, Vec<_>) = (0..w.pods.len()).filter(|o| w.serves(*o)).partition(strays);
    if !stray.is_empty() && !right.is_empty() {
        return Err(format!("two clusters go on side by side: {}", short(w)));
    }
    if c.host && right.is_empty() {
        return Err(format!("the formed cluster does not serve: {:?} {}", says(c, w), short(w)));
    }
    if stray.is_empty() && right.is_empty() && !says(c, w).iter().any(|(_, said)| *said == Says::Choose) {
        return Err(format!("nobody serves, and nobody says why: {:?} {}", says(c, w), short(w)));
    }
    Ok(())
}

/// Runs until it is healthy or nothing changes any more.
fn rest(c: &Config, w: &mut World, random: &mut Random) -> Result<(), String> {
    let mut actions = Vec::new();
    for _ in 0..STEPS {
        if healthy(c, w) && !c.lost_at_last {
            return Ok(());
        }
        actions.clear();
        w.actions(c, &mut actions);
        let (mut fair, mut last): (Vec<_>, Vec<_>) = actions.iter().copied().partition(|a| !a.is_fault());
        // A stop that cannot be orderly ends when its grace does.
        last.retain(|a| matches!(a, Action::Hurry(_)));
        fair.retain(|a| c.gone.is_none_or(|gone| *a != Action::Create(gone)));
        fair.retain(|a| !c.away_at_last || *a != Action::HostUp);
        let at = random.below(fair.len());
        fair.rotate_left(at);
        let Some(next) = fair.into_iter().chain(last).find_map(|a| w.next(c, a)) else { return Ok(()) };
        *w = next;
        if let Some(why) = harm(c, w) {
            return Err(format!("while healing: {why}"));
        }
    }
    Ok(())
}

/// Every wanted pod is there, serves, and is ready; nobody else is there; the lowest leads; the marker says formed. While the
/// host API is away nobody is made a voter, as nobody knows who is wanted: a learner does.
fn healthy(c: &Config, w: &World) -> bool {
    let wanted = |o: &usize| *o < usize::from(w.desired) && c.gone != Some(*o);
    let replicas = (0..w.pods.len()).filter(wanted).count();
    let marked = !c.host || c.loss_only || w.marker.as_ref().is_some_and(|marker| marker.formed().is_some());
    let leader = w.server(None).filter(|o| *o == 0 || c.loss_only || c.away_at_last);
    let members = leader.and_then(|o| w.dir(o)).is_some_and(|d| {
        let peers = d.peers();
        let mut there = peers.iter().filter(|p| c.gone != Some(p.ordinal.into()));
        there.clone().count() == replicas && there.all(|p| !p.learner || c.away_at_last)
    });
    let ready = |o| w.runs(o) && w.pods[o].held.is_empty() && (c.away_at_last || w.ready(c, o));
    (0..w.pods.len()).all(|o| w.pods[o].exists == wanted(&o) && !w.pods[o].terminating)
        && (replicas == 0 || (marked && members && (0..replicas).all(ready)))
}

/// What the pods say that do not serve, each with its ordinal.
fn says(c: &Config, w: &World) -> Vec<(usize, Says)> {
    let silent = |o: &usize| w.pods[*o].exists && !w.serves(*o) && w.pods[*o].process != Process::Other;
    let waits = |wait: &Wait| match wait {
        Wait::PeersNotKnownEmpty(_) => vec![Says::ScaleUp],
        Wait::NobodyToJoin(_) => vec![Says::ScaleUp, Says::GiveUp],
        Wait::Dropped { .. } => vec![Says::ScaleUp, Says::RecoverDropped],
        Wait::MajorityGone { .. } => vec![Says::ScaleUp, Says::Recover],
        Wait::MajorityLost(_) => vec![Says::Recover],
        Wait::SeedIsForming(_) => vec![Says::Choose],
        Wait::Damaged(_) => vec![Says::MoveAway],
        Wait::OthersThere(_) => vec![Says::ScaleToOne],
        _ => Vec::new(),
    };
    let of = |o: usize| {
        let said: Vec<Says> = match boot::explained(&observe::facts(w, c, o, Look::BOOT), c.rules).0 {
            BootDecision::Start { warnings, .. } => {
                let no_quorum = |warning: &Warning| match warning {
                    Warning::NoQuorum(wait) => waits(wait),
                    _ => Vec::new(),
                };
                warnings.iter().flat_map(no_quorum).collect()
            }
            BootDecision::Wait(wait) => waits(&wait),
            BootDecision::Refuse(Refusal::TwoClusters { .. }) => vec![Says::Choose],
            BootDecision::Refuse(Refusal::FormedElsewhere(_)) => vec![Says::ScaleUp, Says::GiveUp],
            BootDecision::Refuse(Refusal::ResetOvertaken { .. }) => vec![Says::Delete],
            BootDecision::Refuse(Refusal::NoSharedCa) => vec![Says::ShareCa],
            _ => Vec::new(),
        };
        said.into_iter().map(move |said| (o, said))
    };
    (0..w.pods.len()).filter(silent).flat_map(of).collect()
}

/// The clusters that anything is left of.
fn clusters(w: &World) -> Vec<u8> {
    let marked = w.marker.as_ref().and_then(|marker| marker.formed()).map(|cluster| cluster.0 as u8);
    let aside = w.volumes.iter().filter_map(|v| v.notes.set_aside).map(|cluster| cluster.0 as u8);
    let dirs = w.volumes.iter().filter_map(|v| v.dir.as_ref()).map(|d| d.cluster);
    let mut found: Vec<_> = dirs.chain(marked).chain(aside).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A state in a few words.
fn short(w: &World) -> String {
    let pod = |o: usize| {
        let (pod, volume) = (&w.pods[o], &w.volumes[o]);
        let dir = volume.dir.as_ref().map(|d| {
            let peers: Vec<_> = d.peers().iter().map(|p| (p.id, p.learner)).collect();
            format!(
                "member {} of {} term {} log {} commit {} {peers:?}",
                d.member,
                d.cluster,
                d.term,
                d.log.len(),
                d.commit
            )
        });
        let gone = if pod.terminating { "stopping " } else { "" };
        let there = if pod.exists { "" } else { "no pod " };
        format!("{o}: {there}{gone}{:?} leads {:?} {dir:?} {:?}", pod.process, pod.leads, volume.notes)
    };
    let pods: Vec<_> = (0..w.pods.len()).map(pod).collect();
    format!("of {}: {}; marker {:?}", w.desired, pods.join("; "), w.marker)
}
