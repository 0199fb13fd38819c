//! Holds the API server of a restored cluster back until nobody serves one that the restore has replaced (rule 4.7). etcd
//! runs meanwhile, so that the others hear of the restore, stop, and join.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::beside;
use super::boot::SAY_EVERY;
use super::pod::Pod;
use crate::boot::Known;
use crate::boot::beside::NotesRead;
use crate::boot::restored::{held, replaced, unnoted};
use crate::ids::ClusterId;
use crate::observe::notes;
use crate::rules::{Rule, Rules};
use crate::supervise::Control;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Lets the API server start once nothing holds it back. `known`: the clusters that were known to be replaced when the start
/// was decided; what hides them later, such as a host API that is away, takes none of them back. Never ends.
pub async fn release(pod: &Pod, mut known: BTreeSet<ClusterId>, control: &Control) -> Infallible {
    if known.is_empty() {
        return std::future::pending().await;
    }
    let mut said: Option<(String, Instant)> = None;
    loop {
        // Also the pods that are no longer wanted, which only DNS would name.
        let claims = match &pod.host {
            Some(host) => host.claims(&host.set().await).await,
            None => Known::default(),
        };
        let survey = pod.survey(claims.present().into_iter().flatten().copied()).await;
        let (mut facts, read) = beside::facts(pod, &survey).await;
        facts.claims = claims;
        if let (Some(host), true) = (&pod.host, read == NotesRead::Yes) {
            let pods = host.pods(facts.peers.iter().map(|peer| peer.ordinal), &Known::Absent).await;
            for peer in &mut facts.peers {
                peer.pod = pods.get(&peer.ordinal).cloned().unwrap_or_default();
            }
        }
        known.extend(replaced(&facts));
        if let Some((_, cluster)) = pod.own.member() {
            known.remove(&cluster);
        }
        match held(&facts, &known, Rules::ALL) {
            None if read == NotesRead::Yes => {
                settle(pod, &unnoted(&facts, &known));
                while !control.release() {
                    tokio::time::sleep(EVERY).await;
                }
                return std::future::pending().await;
            }
            None => {}
            Some(held) => {
                let what = held.what();
                if said.as_ref().is_none_or(|(before, at)| *before != what || at.elapsed() >= SAY_EVERY) {
                    tracing::warn!(rule = %Rule::RestoredWaits, remedy = held.remedy(), "waiting: {what}");
                    said = Some((what, Instant::now()));
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Notes that nobody serves them any more, so that no later start asks for a silent pod again.
fn settle(pod: &Pod, clusters: &BTreeSet<ClusterId>) {
    if clusters.is_empty() {
        return;
    }
    let clusters: Vec<_> = clusters.iter().copied().collect();
    tracing::info!(?clusters, "nobody serves what the restore has replaced: the API server may start");
    match notes::change(&pod.disk, &pod.settings.data_dir, |notes| notes.settled.extend(&clusters)) {
        Ok(()) => pod.own.settled(&clusters),
        // It is asked again at the next start.
        Err(error) => tracing::warn!("that could not be noted: {error:#}"),
    }
}
