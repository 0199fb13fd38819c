//! The names that a StatefulSet's pods have in DNS. Pure.
//!
//! Format: the specification of Kubernetes' DNS-based service discovery, 2.4 (headless services). A pod with a hostname
//! has `<pod>.<service>.<namespace>.svc.<domain>`; a named port has `_<port>._<protocol>.<service>...`, whose SRV
//! records point at those.

use hickory_proto::ProtoError;
use hickory_proto::rr::Name;

use super::resolv_conf::ResolvConf;
use crate::ids::Ordinal;

/// The domain of a cluster that says nothing else.
const USUAL_DOMAIN: &str = "cluster.local.";

/// The names of one StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    set: String,
    namespace: String,
    domain: Name,
    service: Name,
}

impl Names {
    /// Those of the StatefulSet `set` in `namespace`, whose headless service is `<set>-headless`.
    ///
    /// The domain is the host cluster's (the settings know only the virtual cluster's): it stands in the search list
    /// that the kubelet writes, as `svc.<domain>`.
    pub fn new(set: &str, namespace: &str, conf: &ResolvConf) -> Result<Names, ProtoError> {
        let domain = match conf.search.iter().find_map(|entry| behind_svc(entry, namespace)) {
            Some(domain) => domain,
            None => Name::from_ascii(USUAL_DOMAIN)?,
        };
        let service = Name::from_ascii(format!("{set}-headless.{namespace}.svc"))?.append_domain(&domain)?;
        Ok(Names { set: set.to_owned(), namespace: namespace.to_owned(), domain, service })
    }

    /// The host cluster's domain. Only a server that answers for it, or for a zone in it, can say that a name does not
    /// exist: a resolver outside of the cluster answers NXDOMAIN from the root.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// The full name of a pod.
    pub fn pod(&self, ordinal: Ordinal) -> Result<Name, ProtoError> {
        Name::from_ascii(format!("{}-{ordinal}", self.set))?.append_domain(&self.service)
    }

    /// The name that stands in peer URLs: relative, completed by the search list.
    pub fn short(&self, ordinal: Ordinal) -> Result<Name, ProtoError> {
        let mut name = Name::from_ascii(format!("{0}-{ordinal}.{0}-headless.{1}", self.set, self.namespace))?;
        name.set_fqdn(false);
        Ok(name)
    }

    /// The name under which the headless service lists all its pods: that of the port `peer`.
    pub fn peers(&self) -> Result<Name, ProtoError> {
        Name::from_ascii("_peer._tcp")?.append_domain(&self.service)
    }

    /// The headless service's own name.
    pub const fn service(&self) -> &Name {
        &self.service
    }

    /// The ordinal of a pod of this StatefulSet, from its full name.
    pub fn ordinal_of(&self, name: &Name) -> Option<Ordinal> {
        if name.base_name() != self.service {
            return None;
        }
        let pod = String::from_utf8(name.iter().next()?.to_ascii_lowercase()).ok()?;
        Ordinal::of_pod(&pod).filter(|(set, _)| *set == self.set).map(|(_, ordinal)| ordinal)
    }
}

/// `<domain>` of `svc.<domain>` or `<namespace>.svc.<domain>`.
fn behind_svc(entry: &Name, namespace: &str) -> Option<Name> {
    let labels: Vec<&[u8]> = entry.iter().collect();
    let svc = match labels.as_slice() {
        [first, ..] if first.eq_ignore_ascii_case(b"svc") => 1,
        [first, second, ..]
            if first.eq_ignore_ascii_case(namespace.as_bytes()) && second.eq_ignore_ascii_case(b"svc") =>
        {
            2
        }
        _ => return None,
    };
    // `svc.` alone would make the root the cluster's domain, and every NXDOMAIN believed.
    let rest = labels.get(svc..).filter(|rest| !rest.is_empty())?;
    let mut domain = Name::from_labels(rest.iter().copied()).ok()?;
    domain.set_fqdn(true);
    Some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(resolv_conf: &str) -> Names {
        Names::new("vc", "team-a", &ResolvConf::parse(resolv_conf)).unwrap()
    }

    #[test]
    fn the_domain_is_the_host_clusters() {
        for (text, want) in [
            ("search team-a.svc.corp.example svc.corp.example corp.example", "corp.example."),
            ("search lan svc.k8s.lan", "k8s.lan."),
            ("search team-b.svc.other lan", "cluster.local."),
            ("search svc", "cluster.local."),
            ("", "cluster.local."),
        ] {
            assert_eq!(names(text).domain().to_ascii(), want, "{text:?}");
        }
    }

    #[test]
    fn a_pod_has_its_names() {
        let names = names("");
        assert_eq!(names.pod(Ordinal(2)).unwrap().to_ascii(), "vc-2.vc-headless.team-a.svc.cluster.local.");
        assert_eq!(names.short(Ordinal(2)).unwrap().to_ascii(), "vc-2.vc-headless.team-a");
        assert!(!names.short(Ordinal(2)).unwrap().is_fqdn());
        assert_eq!(names.peers().unwrap().to_ascii(), "_peer._tcp.vc-headless.team-a.svc.cluster.local.");
    }

    #[test]
    fn only_a_name_of_this_set_has_an_ordinal() {
        let names = names("");
        let ordinal = |text: &str| names.ordinal_of(&Name::from_ascii(text).unwrap());
        assert_eq!(ordinal("vc-2.vc-headless.team-a.svc.cluster.local."), Some(Ordinal(2)));
        assert_eq!(ordinal("VC-2.vc-HEADLESS.team-a.svc.cluster.local."), Some(Ordinal(2)));
        for other in [
            "vc-02.vc-headless.team-a.svc.cluster.local.",
            "vc.vc-headless.team-a.svc.cluster.local.",
            "db-2.vc-headless.team-a.svc.cluster.local.",
            "vc-2.vc-headless.team-b.svc.cluster.local.",
            "a.vc-2.vc-headless.team-a.svc.cluster.local.",
            "vc-headless.team-a.svc.cluster.local.",
            ".",
        ] {
            assert_eq!(ordinal(other), None, "{other}");
        }
    }
}
