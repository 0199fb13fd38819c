//! Waiting until this pod's own name resolves to this pod.
//!
//! etcd resolves its own peer URL when it starts, and its peers check that our certificate's names resolve to where we
//! come from (reference: client/pkg/transport/listener_tls.go). A record appears some time after the pod, and a replaced
//! pod's old address stays in caches for a while: started too early, etcd ends, and the cluster's DNS remembers for up to
//! 30 s that there is no such name.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Discovery;
use super::answer::Answer;
use super::schedule::Pace;
use crate::ids::Ordinal;
use crate::settings::Settings;
use crate::supervise::StopSignals;

/// Between two log lines while waiting.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// Between two tries at most: a pod's record appears within seconds.
const TRY_AT_MOST: Duration = Duration::from_secs(5);

/// How long a pod without peers waits.
const PATIENCE_ALONE: Duration = Duration::from_secs(10);

/// What to do about a name that does not become right by itself.
const REMEDY: &str = "see that the cluster's DNS answers, that the headless service <name>-headless selects this pod and has \
                      publishNotReadyAddresses: true, and that no other pod has this one's name";

/// The addresses of this pod: the one that it was told, else all of its interfaces but loopback.
pub fn own_addresses(told: Option<IpAddr>) -> BTreeSet<IpAddr> {
    if let Some(ip) = told {
        return BTreeSet::from([ip]);
    }
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    addresses.filter(|ip| !ip.is_loopback()).collect()
}

/// Why our own name does not do yet. Pure.
pub fn wrong(name: &str, own: &BTreeSet<IpAddr>, answer: &Answer<BTreeSet<IpAddr>>) -> Option<String> {
    match answer {
        Answer::Present { value, .. } if value.is_subset(own) || own.is_empty() => None,
        // One of ours among others: an earlier pod of this name is still listed, and peers may come to it.
        Answer::Present { value, .. } => {
            Some(format!("{name} resolves to {value:?}, this pod's addresses are {own:?}: an earlier pod's record?"))
        }
        Answer::Absent { .. } => Some(format!(
            "{name} does not exist: the headless service needs publishNotReadyAddresses, and the pod a moment"
        )),
        Answer::Unknown(why) => Some(format!("{name} cannot be resolved: {why}")),
    }
}

/// Waits until `ordinal`, which is this pod, resolves to its own addresses, both by its full name and by the one in peer
/// URLs. Gives up once it has waited for `patience`, if there is one by then, with what is wrong.
pub async fn wait(
    discovery: &Discovery,
    ordinal: Ordinal,
    own: &BTreeSet<IpAddr>,
    patience: impl Fn() -> Option<Duration>,
) -> Result<(), String> {
    let started = Instant::now();
    let mut said = None;
    for tries in 1_u32.. {
        let Some(why) = look(discovery, ordinal, own).await else {
            if tries > 1 {
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(seconds, "this pod's own name resolves");
            }
            return Ok(());
        };
        if patience().is_some_and(|patience| started.elapsed() >= patience) {
            return Err(why);
        }
        if said.is_none_or(|at: Instant| at.elapsed() >= SAY_EVERY) {
            let waited_seconds = started.elapsed().as_secs();
            tracing::warn!(waited_seconds, remedy = REMEDY, "etcd waits for this pod's own name: {why}");
            said = Some(Instant::now());
        }
        let pace = Pace { retry_max: TRY_AT_MOST, ..discovery.0.pace.clone() };
        tokio::time::sleep(pace.next_retry(tries, rand::random())).await;
    }
    Err("waited too often to count".to_owned())
}

/// What has to hold before etcd starts in a pod. `false`: told to stop meanwhile, or before.
///
/// With one replica by the settings of `now`, which may change meanwhile, it is waited for only briefly: that etcd needs
/// nobody, and a DNS that is down must not keep what is on the volume from being served.
pub async fn before_etcd(now: &watch::Receiver<Settings>, discovery: &Discovery, stop: &mut StopSignals) -> bool {
    let patience = || (now.borrow().etcd.replicas <= 1).then_some(PATIENCE_ALONE);
    let (ordinal, own) = {
        let settings = now.borrow();
        (settings.pod.ordinal, own_addresses(settings.pod.ip))
    };
    tokio::select! {
        resolved = wait(discovery, ordinal, &own, patience) => {
            if let Err(why) = resolved {
                tracing::warn!(remedy = REMEDY, "going on all the same, as the only replica: {why}");
            }
            true
        }
        _ = stop.next() => false,
    }
}

async fn look(discovery: &Discovery, ordinal: Ordinal, own: &BTreeSet<IpAddr>) -> Option<String> {
    let full = discovery.names().pod(ordinal).map(|n| n.to_ascii()).unwrap_or_default();
    if let Some(why) = wrong(&full, own, &discovery.pod_to_appear(ordinal).await) {
        return Some(why);
    }
    let short = discovery.names().short(ordinal).map(|n| n.to_ascii()).unwrap_or_default();
    wrong(&short, own, &discovery.short(ordinal).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn our_name_must_lead_to_us_and_to_nobody_else() {
        let own = ips(&["10.0.0.5", "fd00::5"]);
        let present = |list| Answer::Present { value: ips(list), ttl: Duration::ZERO };
        assert_eq!(wrong("n", &own, &present(&["10.0.0.5"])), None);
        assert_eq!(wrong("n", &own, &present(&["10.0.0.5", "fd00::5"])), None);
        for (answer, reason) in [
            (present(&["10.0.0.4"]), "earlier pod"),
            (present(&["10.0.0.4", "10.0.0.5"]), "earlier pod"),
            (Answer::Absent { ttl: Duration::ZERO }, "publishNotReadyAddresses"),
            (Answer::Unknown("SERVFAIL".into()), "SERVFAIL"),
        ] {
            let why = wrong("n", &own, &answer).unwrap();
            assert!(why.contains(reason), "{why}");
        }
    }

    #[test]
    fn the_address_that_a_pod_was_told_is_its_own() {
        assert_eq!(own_addresses("10.0.0.5".parse().ok()), ips(&["10.0.0.5"]));
        assert!(!own_addresses(None).contains(&"127.0.0.1".parse().unwrap()));
    }
}
