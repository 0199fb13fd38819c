//! When certificates are renewed, and who must be restarted for it.
//!
//! A renewed certificate keeps its key and replaces the certificate file by one rename, so readers see the old or the
//! new one and both fit the key. etcd 3.5 to 3.7 read both files anew in every handshake, as server, peer and client
//! (`client/pkg/transport/listener.go`, `baseConfig`), and so does kube-apiserver's etcd client, which is etcd's.
//! kube-apiserver watches its serving, kubelet and front proxy certificates and its client CAs
//! (`k8s.io/apiserver/pkg/server/dynamiccertificates`). Open connections go on with the certificate that they began
//! with. What is read only at start: an etcd CA, by etcd and by its clients; the root CA, by kube-controller-manager;
//! the certificate inside a kubeconfig, by whoever uses it.

use std::collections::BTreeSet;
use std::time::Duration;

use time::OffsetDateTime;

use super::layout::{self, RelPath};
use crate::supervise::spec::Role;

/// Certificates are renewed this long before they end, as vCluster does.
pub const RENEW_BEFORE: time::Duration = time::Duration::days(90);
/// A renewal that gains less is left out: it would be done again and again.
pub const MIN_GAIN: time::Duration = time::Duration::days(1);
/// Renewal is looked at no less often than this.
const MAX_WAIT: Duration = Duration::from_secs(12 * 60 * 60);
/// Renewal is looked at no more often than this: one that is overdue failed, and is tried again in a while.
const MIN_WAIT: Duration = Duration::from_secs(10 * 60);

/// Whether a certificate that ends at `not_after` is to be renewed, where a new one would end at `new_end`, which the
/// CA limits.
pub fn due(not_after: OffsetDateTime, new_end: OffsetDateTime, now: OffsetDateTime) -> bool {
    now >= not_after - RENEW_BEFORE && new_end >= not_after + MIN_GAIN
}

/// How long to sleep until the certificates are looked at again, where `next` is when the first becomes due.
pub fn wait(next: Option<OffsetDateTime>, now: OffsetDateTime) -> Duration {
    let until = next.map_or(MAX_WAIT, |next| Duration::try_from(next - now).unwrap_or(Duration::ZERO));
    until.clamp(MIN_WAIT, MAX_WAIT)
}

/// Who reads these files only at start, so that it must be restarted now that they have changed.
pub fn restart(changed: &[RelPath]) -> Vec<Role> {
    let mut roles = BTreeSet::new();
    for file in changed {
        if *file == layout::ETCD_CA.cert {
            roles.extend([Role::Etcd, Role::ApiServer]);
        } else if *file == layout::CA.cert || *file == layout::CONTROLLER_MANAGER_CONF {
            roles.insert(Role::ControllerManager);
        } else if *file == layout::SCHEDULER_CONF {
            roles.insert(Role::Scheduler);
        }
    }
    roles.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap() + time::Duration::days(n)
    }

    #[test]
    fn due_ninety_days_before_the_end() {
        assert!(!due(day(365), day(365 + 274), day(274)));
        assert!(due(day(365), day(365 + 275), day(275)));
        assert!(due(day(365), day(800), day(400)));
    }

    #[test]
    fn not_due_if_the_ca_allows_no_more() {
        assert!(!due(day(30), day(30), day(0)));
        assert!(!due(day(30), day(20), day(0)));
    }

    #[test]
    fn the_wait_is_bounded() {
        assert_eq!(wait(None, day(0)), MAX_WAIT);
        assert_eq!(wait(Some(day(200)), day(0)), MAX_WAIT);
        assert_eq!(wait(Some(day(0) + time::Duration::hours(1)), day(0)), Duration::from_secs(3600));
        assert_eq!(wait(Some(day(-5)), day(0)), MIN_WAIT);
    }

    #[test]
    fn only_those_who_do_not_reread_are_restarted() {
        let leaves = [layout::ETCD_SERVER, layout::ETCD_PEER, layout::APISERVER, layout::FRONT_PROXY_CLIENT];
        assert_eq!(restart(&leaves.map(|pair| pair.cert)), []);
        assert_eq!(
            restart(&[layout::SCHEDULER_CONF, layout::CONTROLLER_MANAGER_CONF, layout::ADMIN_CONF]),
            [Role::ControllerManager, Role::Scheduler]
        );
        assert_eq!(restart(&[layout::ETCD_CA.cert]), [Role::Etcd, Role::ApiServer]);
    }
}
