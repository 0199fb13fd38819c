//! Liveness: with the faults ended, everything ends well, or says why not with a remedy that then works.

use crate::action::Action;
use crate::boot::{self, BootDecision, Refusal, Wait, Warning};
use crate::etcd::membership;
use crate::explore::{Random, harm};
use crate::observe;
use crate::world::{Config, Process, Start, World};

/// Steps until it must be well, or at rest.
const STEPS: usize = 1500;

/// What a pod says that does not serve, by what its remedy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// Other pods are to be started.
    ScaleUp,
    /// A volume that is gone for good is to be restored or recovered from.
    Recover,
    /// One of two clusters is to be given up.
    Choose,
    /// Nothing that helps.
    Nothing,
}

/// Ends the faults and lets everything run, fairly.
///
/// # Errors
/// Why it does not end well.
pub fn heals(c: &Config, from: &World, random: &mut Random) -> Result<(), String> {
    let mut w = World { host_up: true, marker_hidden: false, cut: None, ..from.clone() };
    rest(c, &mut w, random)?;
    if w.desired == 0 {
        // Paused: it comes back.
        w.desired = w.values;
        rest(c, &mut w, random)?;
    }
    if healthy(c, &w) {
        return Ok(());
    }
    if w.stray.is_some() {
        return one_goes_on(c, &w);
    }
    let said = says(c, &w);
    if c.graceful {
        return Err(format!("needs help: {said:?} {}", short(&w)));
    }
    if said.contains(&Says::ScaleUp) && c.start != Start::OtherProgram {
        (w.desired, w.values) = (c.pods as u8, c.pods as u8);
        rest(c, &mut w, random)?;
        if healthy(c, &w) {
            return Ok(());
        }
    }
    let said = says(c, &w);
    let clusters = clusters(&w);
    if (said.contains(&Says::Recover) && !clusters.iter().any(|cluster| quorum_left(&w, *cluster)))
        || (said.contains(&Says::Choose) && clusters.len() > 1)
    {
        return Ok(());
    }
    Err(format!("does not end well: {said:?} {}", short(&w)))
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
    if stray.is_empty() && right.is_empty() && !says(c, w).contains(&Says::Choose) {
        return Err(format!("nobody serves, and nobody says why: {:?} {}", says(c, w), short(w)));
    }
    Ok(())
}

/// Runs until it is healthy or nothing changes any more.
fn rest(c: &Config, w: &mut World, random: &mut Random) -> Result<(), String> {
    let mut actions = Vec::new();
    for _ in 0..STEPS {
        if healthy(c, w) {
            return Ok(());
        }
        actions.clear();
        w.actions(c, &mut actions);
        let (mut fair, mut last): (Vec<_>, Vec<_>) = actions.iter().copied().partition(|a| !a.is_fault());
        // A stop that cannot be orderly ends when its grace does.
        last.retain(|a| matches!(a, Action::Hurry(_)));
        let at = random.below(fair.len());
        fair.rotate_left(at);
        let Some(next) = fair.into_iter().chain(last).find_map(|a| w.next(c, a)) else { return Ok(()) };
        *w = next;
        if let Some(why) = harm(w) {
            return Err(format!("while healing: {why}"));
        }
    }
    Ok(())
}

/// Every wanted pod is there, serves, and is ready; nobody else is there; the lowest leads; the marker says formed.
fn healthy(c: &Config, w: &World) -> bool {
    let wanted = usize::from(w.desired);
    let marked = !c.host || w.marker.as_ref().is_some_and(|marker| marker.formed().is_some());
    (0..w.pods.len()).all(|o| w.pods[o].exists == (o < wanted) && !w.pods[o].terminating)
        && (wanted == 0
            || (marked
                && w.serves(0)
                && w.dir(0).is_some_and(|d| d.peers().len() == wanted && d.peers().iter().all(|p| !p.learner))
                && (0..wanted).all(|o| w.runs(o) && w.pods[o].held.is_empty() && w.ready(c, o))))
}

fn says(c: &Config, w: &World) -> Vec<Says> {
    let silent = |o: &usize| w.pods[*o].exists && !w.serves(*o) && w.pods[*o].process != Process::Other;
    let said = (0..w.pods.len()).filter(silent).map(|o| {
        let facts = observe::facts(w, c, o, false);
        match boot::explained(&facts, c.rules).0 {
            BootDecision::Start { warnings, .. } => {
                let no_quorum = |warning: &Warning| matches!(warning, Warning::NoQuorum(_));
                // Without a quorum, and with pods that may have it to be started.
                if warnings.iter().any(no_quorum) { Says::ScaleUp } else { Says::Nothing }
            }
            BootDecision::Wait(wait) => match wait {
                Wait::PeersNotKnownEmpty(_) | Wait::NobodyToJoin(_) | Wait::Dropped { .. } => Says::ScaleUp,
                Wait::MajorityGone { .. } => Says::ScaleUp,
                Wait::SeedIsForming(_) => Says::Choose,
                _ => Says::Nothing,
            },
            BootDecision::Refuse(Refusal::TwoClusters { .. }) => Says::Choose,
            BootDecision::Refuse(_) => Says::Recover,
            _ => Says::Nothing,
        }
    });
    let mut said: Vec<_> = said.collect();
    // Each of these names recovering too.
    if said.contains(&Says::ScaleUp) {
        said.push(Says::Recover);
    }
    said
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

/// Whether the volumes that are left could elect a leader of this cluster by themselves.
fn quorum_left(w: &World, cluster: u8) -> bool {
    let dirs = || w.volumes.iter().filter_map(|v| v.dir.as_ref()).filter(|d| d.cluster == cluster);
    let Some(latest) = dirs().max_by_key(|d| d.last()) else { return false };
    let voters: Vec<_> = membership(&latest.log, latest.log.len()).0.into_iter().filter(|p| !p.learner).collect();
    voters.iter().filter(|p| dirs().any(|d| d.member == p.id)).count() > voters.len() / 2
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
