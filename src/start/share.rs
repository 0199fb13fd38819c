//! Carries out what is decided about a Secret by which all pods share something: the certificates, k3s' token.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::boot::SAY_EVERY;
use super::pod::Pod;
use super::readiness::{self, Lacks};
use crate::boot::{Desired, Known};
use crate::disk::Disk;
use crate::host::Host;
use crate::host::client::Failure;
use crate::host::secret::{SecretObject, SecretSeen};
use crate::host::share::{self, Access, Facts, Found, Kept, Local, Sharing, Step};
use crate::host::statefulset;
use crate::ids::ClusterId;
use crate::pki::plan::Input;
use crate::pki::shared::SharedPki;
use crate::serve::health::Health;
use crate::serve::token::SharedToken;
use crate::settings::Settings;
use crate::supervise::StopSignals;

/// Between two looks of a pod that waits, at first and at most.
const WAIT_FIRST: Duration = Duration::from_millis(250);
const WAIT_MOST: Duration = Duration::from_secs(3);
/// Between two looks at a Secret that is not known to have what it should.
const UNSURE_EVERY: Duration = Duration::from_secs(30);
/// Between two looks at a Secret that has it: should somebody delete it, a pod that is added later needs it.
const SURE_EVERY: Duration = Duration::from_secs(300);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What is needed is here; true: and is what the Secret has.
    Here(bool),
    /// Told to stop meanwhile.
    Stopped,
}

/// The PKI that the pods share.
pub fn pki(settings: &Settings) -> SharedPki {
    SharedPki::of(&Input::of(settings), settings.data_dir.clone(), OffsetDateTime::now_utc())
}

/// Decides and acts until what is shared is here. Waits, and says so, for as long as that is not to be had; probes are told
/// meanwhile whether the pod is ready all the same.
///
/// # Errors
/// What is here is not what the Secret has, or either cannot be used.
pub async fn obtain<S: Sharing>(
    what: &S,
    secret: &SecretObject,
    with: &With<'_>,
    health: &watch::Sender<Health>,
    stop: &mut StopSignals,
) -> anyhow::Result<Outcome> {
    let mut said = Said::default();
    let mut wait = WAIT_FIRST;
    let mut round = Round::default();
    loop {
        let look = async {
            let step = round.next(what, secret, with).await?;
            // Who has it may come only after this pod is ready.
            if let Step::Wait(wait) = &step {
                let lacks = Lacks::of(wait, round.never_formed);
                readiness::without_secret(with.settings, with.host, lacks, health).await;
            }
            anyhow::Ok(step)
        };
        let step = tokio::select! {
            step = look => step?,
            signal = stop.next() => {
                tracing::info!(signal, "told to stop before the Secret {} was read", secret.name);
                return Ok(Outcome::Stopped);
            }
        };
        match step {
            Step::Go { shared } => {
                readiness::stand_by(health, false, None);
                return Ok(Outcome::Here(shared));
            }
            Step::Alone(why) => {
                tracing::warn!(secret = secret.name, why, "the Secret may not be used: this pod makes its own, alone");
                return Ok(Outcome::Here(false));
            }
            Step::Refuse(refusal) => return Err(refusal.error(&secret.name, what)),
            Step::Adopt(items) => {
                let names: Vec<_> = items.iter().map(ToString::to_string).collect();
                tracing::info!(secret = secret.name, ?names, "adopted from the Secret");
                wait = WAIT_FIRST;
                continue;
            }
            Step::Publish { .. } => {}
            Step::Wait(why) => said.say(&why.what(&secret.name), &why.remedy(what)),
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 3 / 2).min(WAIT_MOST),
            signal = stop.next() => {
                tracing::info!(signal, "told to stop while waiting for the Secret {}", secret.name);
                return Ok(Outcome::Stopped);
            }
        }
    }
}

/// While the pod boots and runs: puts into the Secrets what they lack, so that pods that are added find it, and says when
/// they have something else. A pod that has all of it starts without being able to use them, and those that have nothing
/// wait for it, which may wait for them. Never ends.
pub async fn keep(pod: &Pod) -> Infallible {
    let Some(host) = &pod.host else { return std::future::pending().await };
    let with = With { host, settings: &pod.settings, disk: &pod.disk };
    let (pki, token) = (pki(&pod.settings), SharedToken(&pod.settings));
    let (certs, k3s_token) = (host.certs(), host.k3s_token());
    tokio::select! {
        never = kept(&pki, &certs, &with, pod, &pod.shared_ca) => never,
        never = kept(&token, &k3s_token, &with, pod, &pod.shared_token), if token.is_shared() => never,
    }
}

/// One Secret looked after; `shared`: whether all that is here is known to be what it has.
async fn kept<S: Sharing>(
    what: &S,
    secret: &SecretObject,
    with: &With<'_>,
    pod: &Pod,
    shared: &AtomicBool,
) -> Infallible {
    let mut kept = Kept::new(shared.load(Ordering::Relaxed));
    let (mut round, mut said) = (Round::default(), Said::default());
    loop {
        tokio::time::sleep(if kept.is_sure() { SURE_EVERY } else { UNSURE_EVERY }).await;
        // Where the virtual cluster is being removed, nothing of it is to come back.
        if pod.health.borrow().stopping {
            continue;
        }
        round.kept = Some(kept);
        match round.next(what, secret, with).await {
            Ok(Step::Go { shared }) if round.read => kept.finds(Found::Shared(shared)),
            Ok(Step::Refuse(refusal)) => {
                said.say(&format!("{:#}", refusal.error(&secret.name, what)), "before this pod is started again");
                kept.finds(Found::Another);
            }
            Ok(_) => kept.finds(Found::Unknown),
            Err(error) => {
                tracing::debug!("the Secret {} is not looked after: {error:#}", secret.name);
                kept.finds(Found::Unknown);
            }
        }
        shared.store(kept.is_shared(), Ordering::Relaxed);
    }
}

/// What is looked at besides the Secret, and written to.
pub struct With<'a> {
    /// The host API.
    pub host: &'a Host,
    /// The settings.
    pub settings: &'a Settings,
    /// The disk.
    pub disk: &'a dyn Disk,
}

/// The cluster that the marker says has been formed.
async fn marked(host: &Host) -> Known<ClusterId> {
    match host.marker().await {
        Known::Present(seen) => seen.marker.formed().map_or(Known::Absent, Known::Present),
        Known::Absent => Known::Absent,
        Known::Unknown(why) => Known::Unknown(why),
    }
}

/// One look, decision and act after the other.
#[derive(Default)]
struct Round {
    /// The API has refused a write, with its reason.
    denied: Option<String>,
    /// It is looked after while the pod boots and runs. Then nothing is adopted, and nothing made: this pod would not have it.
    kept: Option<Kept>,
    /// The Secret was read, or there is none.
    read: bool,
    /// It was said what cannot be put into it.
    said: bool,
    /// The marker was read, and no cluster has been formed.
    never_formed: bool,
}

impl Round {
    /// Looks, decides and acts. Gives what was decided: something is to be done again after anything but `Go`.
    async fn next<S: Sharing>(
        &mut self,
        what: &S,
        secret: &SecretObject,
        with: &With<'_>,
    ) -> anyhow::Result<Step<S::Item>> {
        let items = what.facts(None)?;
        if items.iter().all(|fact| fact.local == Local::Given) {
            return Ok(Step::Go { shared: false });
        }
        let (access, seen) = match secret.get().await {
            Ok(seen) => (Access::Present, Some(seen)),
            Err(Failure::NotFound) => (Access::Absent, None),
            Err(Failure::Denied(why)) => (Access::Denied(why), None),
            Err(Failure::Unknown(why)) => (Access::Unknown(why), None),
            Err(Failure::Conflict) => (Access::Unknown("status 409 for a question".to_owned()), None),
        };
        self.read = matches!(access, Access::Present | Access::Absent);
        let items = match &seen {
            Some(seen) => what.facts(Some(&seen.data))?,
            None => items,
        };
        let mut facts = self.facts(items, access, with).await;
        self.never_formed = facts.formed.is_absent();
        let mut step = share::decide(&facts);
        if let (Step::Publish { .. }, Some(why)) = (&step, self.denied.take()) {
            facts.secret = Access::Denied(why);
            step = share::decide(&facts);
        }
        if let (Some(item), true, false) = (share::unshareable(&facts.items), self.read, self.said) {
            self.said = true;
            let remedy = format!("put its key beside {}; or {}", what.here(item), what.given());
            tracing::warn!(
                secret = secret.name,
                remedy,
                "a part of the {item} is missing here: no pod can be given it from the Secret"
            );
        }
        match (&step, self.kept) {
            (Step::Publish { held, made }, None) => self.publish(what, secret, seen.as_ref(), held, made).await?,
            (Step::Publish { held, .. }, Some(kept)) if !held.is_empty() => {
                let formed = if facts.data { Known::default() } else { marked(with.host).await };
                if kept.may_publish(facts.data, &formed) {
                    self.publish(what, secret, seen.as_ref(), held, &[]).await?;
                }
            }
            (Step::Adopt(items), None) => {
                if let Some(seen) = &seen {
                    what.adopt(items, &seen.data, with.disk)?;
                }
            }
            _ => {}
        }
        Ok(step)
    }

    async fn facts<I>(&self, items: Vec<share::Fact<I>>, secret: Access, with: &With<'_>) -> Facts<I> {
        let mut facts = Facts {
            items,
            secret,
            ordinal: with.settings.pod.ordinal,
            seed: Known::default(),
            desired: Desired::Unknown("not asked".to_owned()),
            formed: Known::default(),
            data: with.settings.etcd_dir().join("member/wal").exists(),
        };
        if share::needs_host(&facts.items) {
            let (set, formed) = tokio::join!(with.host.set(), marked(with.host));
            facts.desired = statefulset::desired(&set);
            facts.seed = match set {
                Known::Present(set) => Known::Present(set.start),
                Known::Absent => Known::Absent,
                Known::Unknown(why) => Known::Unknown(why),
            };
            facts.formed = formed;
        }
        facts
    }

    /// One try. Whatever came of it, the Secret is read again before anything else is decided.
    async fn publish<S: Sharing>(
        &mut self,
        what: &S,
        secret: &SecretObject,
        seen: Option<&SecretSeen>,
        held: &[S::Item],
        made: &[S::Item],
    ) -> anyhow::Result<()> {
        let content = what.content(held, made, seen.map(|seen| &seen.data))?;
        let done = match seen {
            None => secret.create(&content).await,
            Some(seen) => secret.add(&seen.version, &content).await,
        };
        match done {
            Ok(()) => tracing::info!(secret = secret.name, keys = ?content, "put into the Secret"),
            Err(Failure::Conflict | Failure::NotFound) => {
                tracing::info!(secret = secret.name, "somebody else was first: reading the Secret again");
            }
            Err(Failure::Denied(why)) => {
                tracing::warn!(secret = secret.name, why, "the Secret may not be written");
                self.denied = Some(why);
            }
            Err(Failure::Unknown(why)) => {
                tracing::warn!(
                    secret = secret.name,
                    why,
                    "whether the Secret was written is not known: reading it again"
                );
            }
        }
        Ok(())
    }
}

/// What was said last, and when.
#[derive(Default)]
struct Said(Option<(String, Instant)>);

impl Said {
    fn say(&mut self, what: &str, remedy: &str) {
        if self.0.as_ref().is_none_or(|(said, at)| said != what || at.elapsed() >= SAY_EVERY) {
            tracing::warn!(remedy, "waiting: {what}");
            self.0 = Some((what.to_owned(), Instant::now()));
        }
    }
}
