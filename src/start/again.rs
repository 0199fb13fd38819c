//! Decides again while an etcd that was started finds no quorum.

use std::convert::Infallible;
use std::time::Duration;

use super::pod::Pod;
use crate::boot::{self, BootDecision, DataDirFact, Known};
use crate::rules::Rules;
use crate::supervise::Control;

/// From a start, or from the loss of the quorum, to the first look, and between two looks.
const EVERY: Duration = Duration::from_secs(3);

/// For as long as etcd serves no linearizable reads, decides again every few seconds with fresh facts about the others.
/// On anything but a start, stops everything, upon which the boot begins anew. Never ends.
pub async fn decide_again(pod: &Pod, control: &Control) -> Infallible {
    if pod.surveyor.is_none() {
        return std::future::pending().await;
    }
    let health = pod.health.subscribe();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = *health.borrow();
        if now.datastore_ready || now.stopping {
            continue;
        }
        // Who runs here is known, and the data dir is not looked at: etcd writes to it.
        let Some((member, cluster)) = pod.own.member() else { continue };
        let survey = pod.survey([]).await;
        let Ok(mut facts) = pod.facts(&survey) else { continue };
        facts.data_dir = DataDirFact::Valid { member, cluster };
        facts.log = Known::default();
        let (decision, rule) = boot::explained(&facts, Rules::ALL);
        if !matches!(decision, BootDecision::Start { .. }) && !health.borrow().datastore_ready {
            tracing::warn!(?decision, %rule, "etcd finds no quorum: deciding anew");
            control.stop();
            return std::future::pending().await;
        }
    }
}
