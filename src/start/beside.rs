//! Compares what a pod serves with what the others do, for as long as it serves: what was not to be seen when it was
//! started may be seen later.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::boot::SAY_EVERY;
use super::pod::Pod;
use crate::boot::beside::{Beside, Looks, NotesRead, another, beside};
use crate::boot::{DataDirFact, Facts, Refusal};
use crate::ids::ClusterId;
use crate::observe::notes;
use crate::peer::survey::Survey;
use crate::rules::{Rule, Rules};
use crate::supervise::Control;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// One look in so many reads the marker as well, for a pod that hears of no other cluster because it is cut off from
/// the seed: a restored one may have replaced its own, and what it acknowledges from then on is lost.
const MARKER_AT: u32 = 3;

/// Stops everything where another cluster is the right one, upon which the boot begins anew. Never ends.
pub async fn compare(pod: &Pod, control: &Control) -> Infallible {
    if pod.surveyor.is_none() {
        return std::future::pending().await;
    }
    let mut health = pod.health.subscribe();
    let mut said: Option<Instant> = None;
    let mut looks = 0_u32;
    let mut found = Looks::default();
    loop {
        tokio::time::sleep(EVERY).await;
        looks = looks.wrapping_add(1);
        if health.wait_for(|health| health.datastore_ready && !health.stopping).await.is_err() {
            return std::future::pending().await;
        }
        let Some((_, cluster)) = pod.own.member() else { continue };
        let heard = heard(pod, cluster, looks.is_multiple_of(MARKER_AT)).await;
        let believed = found.take(heard.map(|(heard, _)| heard));
        let (Some(believed), Some((_, rule))) = (believed, heard) else { continue };
        let overtaken = match believed {
            Beside::Superseded => {
                tracing::warn!(%cluster, %rule, "a restore has replaced this cluster: stopping it and joining the restored one");
                true
            }
            Beside::Overtaken(other) => {
                let refusal = Refusal::TwoClusters { mine: cluster, other };
                tracing::error!(%rule, remedy = refusal.remedy(), "{}: stopping", refusal.what());
                true
            }
            Beside::Outnumbered(other) => {
                let refusal = Refusal::TwoClusters { mine: cluster, other };
                tracing::error!(%rule, remedy = refusal.remedy(), "{}: stopping, as no fewer pods serve the other", refusal.what());
                true
            }
            Beside::Stray(other) => {
                if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                    said = Some(Instant::now());
                    let refusal = Refusal::TwoClusters { mine: cluster, other };
                    tracing::error!(%rule, remedy = refusal.remedy(), "{}: other pods serve the other", refusal.what());
                }
                false
            }
        };
        if overtaken && !health.borrow().stopping {
            control.stop().await;
            return std::future::pending().await;
        }
    }
}

/// What is heard of other clusters. The host API is asked if there is another at all, or where `marker` asks for that.
async fn heard(pod: &Pod, cluster: ClusterId, marker: bool) -> Option<(Beside, Rule)> {
    let survey = pod.survey([]).await;
    let (member, running) = pod.own.member()?;
    let mut seen = Facts::serving(pod.settings.pod.ordinal, DataDirFact::Valid { member, cluster });
    survey.add_to(&mut seen);
    if !(another(&seen, cluster) || marker && pod.host.is_some()) || running != cluster {
        return None;
    }
    let (facts, notes) = facts(pod, &survey).await;
    beside(&facts, cluster, notes, Rules::ALL)
}

/// What a pod whose etcd runs knows of the others, of its notes, and of the marker.
pub async fn facts(pod: &Pod, survey: &Survey) -> (Facts, NotesRead) {
    let data_dir = match pod.own.member() {
        Some((member, cluster)) => DataDirFact::Valid { member, cluster },
        None => DataDirFact::Empty,
    };
    let mut facts = Facts::serving(pod.settings.pod.ordinal, data_dir);
    survey.add_to(&mut facts);
    facts.seed = pod.seed();
    let notes = match notes::load(&pod.settings.data_dir) {
        Ok(notes) => {
            facts.notes = notes;
            NotesRead::Yes
        }
        Err(error) => {
            tracing::error!("what this cluster has replaced is not known: {error:#}");
            NotesRead::Unknown
        }
    };
    if let Some(host) = &pod.host {
        (facts.host_configured, facts.marker) = (true, host.marker().await);
    }
    (facts, notes)
}
