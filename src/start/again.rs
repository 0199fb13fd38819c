//! Decides again while an etcd that was started finds no quorum.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::boot::{SAY_EVERY, others};
use super::pod::Pod;
use super::readiness;
use crate::boot::{self, BootDecision, DataDirFact, Wait, Warning};
use crate::host::Claims;
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
    let mut health = pod.health.subscribe();
    let (mut members, mut said) = (Vec::new(), Said::default());
    let mut look_at = tokio::time::Instant::now() + EVERY;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(look_at) => look_at = tokio::time::Instant::now() + EVERY,
            // It serves again: what was said while it did not is taken back at once.
            Ok(()) = health.changed() => {
                if health.borrow_and_update().datastore_ready {
                    readiness::serving(pod);
                }
                continue;
            }
        }
        let now = *health.borrow();
        if now.stopping {
            continue;
        }
        if now.datastore_ready {
            readiness::serving(pod);
            continue;
        }
        // Who runs here is known. etcd may write to the data dir meanwhile: what is read of it is no more than a hint, and
        // nothing is done before etcd has been stopped and it has been read again.
        let Some((member, cluster)) = pod.own.member() else { continue };
        let look = pod.look(members.iter().copied(), Claims::Never).await;
        let Ok(mut facts) = pod.facts(&look).await else { continue };
        facts.data_dir = DataDirFact::Valid { member, cluster };
        members = others(&facts);
        let (decision, rule) = boot::explained(&facts, Rules::ALL);
        if let BootDecision::Start { warnings, .. } = &decision {
            said.say(warnings);
        }
        if !health.borrow().datastore_ready {
            readiness::without_quorum(pod, &facts, &look, Some(false));
        }
        // Told to stop meanwhile, it would be hurried.
        let now = *health.borrow();
        if !matches!(decision, BootDecision::Start { .. }) && !now.datastore_ready && !now.stopping {
            tracing::warn!(?decision, %rule, "etcd finds no quorum: deciding anew");
            control.stop().await;
            return std::future::pending().await;
        }
    }
}

/// The last reason for having no quorum that was said, and when.
#[derive(Default)]
struct Said(Option<(Wait, Instant)>);

impl Said {
    /// Says why there is no quorum, if that is news or long ago.
    fn say(&mut self, warnings: &[Warning]) {
        let wait = warnings.iter().find_map(|warning| match warning {
            Warning::NoQuorum(wait) => Some(wait),
            Warning::StateDbIgnored(_) | Warning::PeersUnknown => None,
        });
        let Some(wait) = wait else { return };
        if self.0.as_ref().is_none_or(|(said, at)| said != wait || at.elapsed() >= SAY_EVERY) {
            tracing::warn!(remedy = wait.remedy(), "waiting: {}", wait.what());
            self.0 = Some((wait.clone(), Instant::now()));
        }
    }
}
