//! The names and addresses in serving certificates. Pure.
//!
//! # Why etcd's names stand in this order
//!
//! A member that is dialled checks that its caller's address belongs to a name in the caller's certificate
//! (`client/pkg/transport/listener_tls.go`): first one reverse lookup of the address, compared with every name and
//! wildcard; then a forward lookup of each name *in the order of the certificate* until one gives the address.
//! Wildcards are never looked up. vCluster once put 20 ordinals in three forms there and every handshake became a
//! storm of DNS queries. So: wildcards, which the reverse lookup of a pod of a headless service satisfies at once;
//! `localhost`, which needs no server; then the one form that peers are called by, lowest ordinals first, so that where
//! reverse lookups do not work the match is among the first few; the other forms, needed by dialling clients only, last.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::plan::{Input, PlanError, San};
use crate::ids::Ordinal;

/// Ordinals that are named even if fewer replicas are desired, so that scaling up needs no new certificate.
const MIN_ORDINALS: u32 = 5;

/// Names and addresses of etcd's server and peer certificates.
pub fn etcd(input: &Input) -> Result<Vec<San>, PlanError> {
    let Input { name, namespace, cluster_domain, .. } = input;
    let service = format!("{name}-headless");
    let suffixes = [
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{cluster_domain}"),
        service,
    ];
    let mut pods: Vec<String> = (0..input.desired.max(MIN_ORDINALS)).map(|i| format!("{name}-{i}")).collect();
    // A pod above the desired replicas, about to be removed, still talks to the others.
    if Ordinal::of_pod(&input.pod).is_some_and(|(set, _)| set == name) && !pods.contains(&input.pod) {
        pods.push(input.pod.clone());
    }

    let mut names: Vec<String> = suffixes.iter().rev().map(|suffix| format!("*.{suffix}")).collect();
    names.push("localhost".to_owned());
    for suffix in &suffixes {
        names.extend(pods.iter().map(|pod| format!("{pod}.{suffix}")));
    }
    names.extend(pods);
    names.push(name.clone());
    let mut sans = dns_names(names)?;
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::UNSPECIFIED)] {
        sans.push(San::Ip(ip));
    }
    additional(input, &mut sans)?;
    Ok(sans)
}

/// Names and addresses of the API server's certificate.
pub fn apiserver(input: &Input) -> Result<Vec<San>, PlanError> {
    let Input { name, namespace, cluster_domain, .. } = input;
    let mut sans = dns_names(vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{cluster_domain}"),
        name.clone(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        "localhost".to_owned(),
    ])?;
    sans.push(San::Ip(Ipv4Addr::LOCALHOST.into()));
    sans.push(San::Ip(Ipv6Addr::LOCALHOST.into()));
    sans.extend(service_addresses(&input.service_cidr)?.into_iter().map(San::Ip));
    sans.extend(input.pod_ip.map(San::Ip));
    additional(input, &mut sans)?;
    Ok(sans)
}

/// The names under which the peers of this virtual cluster call each other, each of which should be in the peer
/// certificate word for word.
pub fn peer_names(input: &Input) -> Vec<San> {
    if !input.in_pod {
        return vec![San::Dns("localhost".to_owned())];
    }
    let Input { name, namespace, .. } = input;
    let mut names: Vec<_> = (0..input.desired).map(|i| format!("{name}-{i}.{name}-headless.{namespace}")).collect();
    let own = format!("{}.{name}-headless.{namespace}", input.pod);
    if !names.contains(&own) {
        names.push(own);
    }
    names.into_iter().map(San::Dns).collect()
}

/// Whether `wildcard` (`*.suffix`) stands for `name`: one label in place of the star, as TLS clients match it.
pub fn wildcard_matches(wildcard: &str, name: &str) -> bool {
    let (Some(suffix), Some((label, rest))) = (wildcard.strip_prefix("*."), name.split_once('.')) else {
        return false;
    };
    !label.is_empty() && rest.eq_ignore_ascii_case(suffix)
}

fn additional(input: &Input, sans: &mut Vec<San>) -> Result<(), PlanError> {
    for text in &input.tls_sans {
        let san = match text.parse() {
            Ok(ip) => San::Ip(ip),
            Err(_) => dns(text.clone())?,
        };
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    Ok(())
}

fn dns_names(names: Vec<String>) -> Result<Vec<San>, PlanError> {
    let mut sans = Vec::with_capacity(names.len());
    for name in names {
        let san = dns(name)?;
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    Ok(sans)
}

/// A DNS name of letters, digits, `-` and `_` in labels, with at most a leading `*.`: anything else makes Go's TLS
/// refuse the whole certificate, not the one name.
fn dns(name: String) -> Result<San, PlanError> {
    let rest = name.strip_prefix("*.").unwrap_or(&name);
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !rest.split('.').all(label_ok) {
        return Err(PlanError::BadName(name));
    }
    Ok(San::Dns(name))
}

/// The first address of each Service range, which is the Service `kubernetes` itself. None for an empty text.
fn service_addresses(cidrs: &str) -> Result<Vec<IpAddr>, PlanError> {
    cidrs.split(',').map(str::trim).filter(|cidr| !cidr.is_empty()).map(first_address).collect()
}

fn first_address(cidr: &str) -> Result<IpAddr, PlanError> {
    let bad = || PlanError::BadServiceCidr(cidr.to_owned());
    let (address, bits) = cidr.split_once('/').ok_or_else(bad)?;
    let bits: u32 = bits.parse().map_err(|_| bad())?;
    match address.parse().map_err(|_| bad())? {
        IpAddr::V4(ip) if bits <= 30 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Ok(Ipv4Addr::from((u32::from(ip) & mask) + 1).into())
        }
        IpAddr::V6(ip) if bits <= 126 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Ok(Ipv6Addr::from((u128::from(ip) & mask) + 1).into())
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::input;
    use super::*;
    use crate::settings::Distro;

    fn texts(sans: &[San]) -> Vec<String> {
        sans.iter().map(San::to_string).collect()
    }

    #[test]
    fn etcd_names_every_form_of_every_ordinal_once() {
        let sans = texts(&etcd(&input(Distro::K3s)).unwrap());
        for i in 0..5 {
            for form in ["", ".my-headless", ".my-headless.team", ".my-headless.team.svc"] {
                assert!(sans.contains(&format!("my-{i}{form}")), "my-{i}{form} in {sans:?}");
            }
            assert!(sans.contains(&format!("my-{i}.my-headless.team.svc.cluster.local")));
        }
        for other in ["localhost", "my", "127.0.0.1", "::1", "0.0.0.0", "my.example.org", "192.0.2.7"] {
            assert!(sans.contains(&other.to_owned()), "{other} in {sans:?}");
        }
        assert!(!sans.iter().any(|s| s.starts_with("my-5")));
        let mut unique = sans.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), sans.len());
    }

    #[test]
    fn the_names_that_peers_use_are_looked_up_first() {
        let sans = texts(&etcd(&input(Distro::K3s)).unwrap());
        let looked_up: Vec<_> = sans.iter().filter(|s| !s.starts_with("*.")).take(3).collect();
        assert_eq!(looked_up, ["localhost", "my-0.my-headless.team", "my-1.my-headless.team"]);
        assert_eq!(sans[0], "*.my-headless");
        assert_eq!(sans[1], "*.my-headless.team.svc.cluster.local");
    }

    #[test]
    fn more_replicas_and_a_pod_above_them_are_named() {
        let sans = texts(&etcd(&Input { desired: 7, pod: "my-9".to_owned(), ..input(Distro::K3s) }).unwrap());
        assert!(sans.contains(&"my-6.my-headless.team".to_owned()));
        assert!(!sans.contains(&"my-7.my-headless.team".to_owned()));
        assert!(sans.contains(&"my-9.my-headless.team".to_owned()));
    }

    #[test]
    fn the_api_server_has_its_service_address() {
        let sans = texts(&apiserver(&input(Distro::K8s)).unwrap());
        for name in ["kubernetes.default.svc.cluster.local", "10.96.0.1", "10.1.2.3", "my.team.svc", "192.0.2.7"] {
            assert!(sans.contains(&name.to_owned()), "{name} in {sans:?}");
        }
        assert_eq!(
            service_addresses("10.96.7.9/12, fd00:1::/108").unwrap(),
            ["10.96.0.1".parse::<IpAddr>().unwrap(), "fd00:1::1".parse().unwrap()]
        );
        assert_eq!(service_addresses("").unwrap(), Vec::<IpAddr>::new());
        for bad in ["10.96.0.0", "10.96.0.0/33", "10.96.0.0/32", "x/8", "10.96.0.0/-1", "fd00::/127"] {
            assert_eq!(service_addresses(bad), Err(PlanError::BadServiceCidr(bad.to_owned())));
        }
        assert_eq!(first_address("0.0.0.0/0").unwrap(), "0.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_name_that_tls_cannot_hold_is_refused() {
        for bad in ["", "a b", "a..b", "-a", "a.*.b", "https://a", "caf\u{e9}", &"a".repeat(64)] {
            let given = Input { tls_sans: vec![bad.to_owned()], ..input(Distro::K8s) };
            assert_eq!(apiserver(&given), Err(PlanError::BadName(bad.to_owned())), "{bad:?}");
        }
        assert!(apiserver(&Input { tls_sans: vec!["*.a_b.example".to_owned()], ..input(Distro::K8s) }).is_ok());
    }

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(wildcard_matches("*.my-headless.team", "my-0.my-headless.team"));
        assert!(!wildcard_matches("*.my-headless", "my-0.my-headless.team"));
        assert!(!wildcard_matches("*.my-headless.team", ".my-headless.team"));
        assert!(!wildcard_matches("my-0.my-headless", "my-0.my-headless"));
    }
}
