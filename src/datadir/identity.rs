//! Member and cluster IDs as etcd computes them when a cluster is formed.
//!
//! Source: `etcdserver/api/membership/{member,cluster}.go` (`computeMemberID`, `genID`). A member's ID is the first
//! eight bytes, big endian, of SHA-1 over its peer URLs (sorted, joined without a separator) followed by the
//! `--initial-cluster-token`; a cluster's is the same over the sorted member IDs, eight bytes big endian each. Equal
//! URLs and an equal token therefore give equal IDs: a fresh token is what tells a cluster from its successor.

use sha1::{Digest, Sha1};
use thiserror::Error;

use crate::ids::{ClusterId, MemberId};

/// The one member of a cluster to be formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberIdentity {
    /// `--name`: the pod's name.
    pub name: String,
    /// `--initial-advertise-peer-urls`, each `http[s]://host:port`.
    pub peer_urls: Vec<String>,
    /// `--advertise-client-urls`, each `http[s]://host:port`; etcd publishes them anew at each start.
    pub client_urls: Vec<String>,
    /// `--initial-cluster-token`: random for each formation.
    pub token: String,
}

/// An identity that etcd would refuse, or of which it would compute other IDs than we do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// A member without a name is one that has not started yet.
    #[error("the member has no name")]
    NoName,
    /// It could not stand in a list of members as etcd takes one.
    #[error("{0:?} cannot be a member's name: it has a comma, an equals sign, a space or a control character")]
    BadName(String),
    /// A member needs a peer URL.
    #[error("member {0} has no peer URL")]
    NoPeerUrl(String),
    /// Not of the form `http[s]://host:port`.
    #[error("{0:?} is not a URL of the form https://host:port")]
    BadUrl(String),
}

impl MemberIdentity {
    /// Checks what etcd would check at start. URLs are held to the plain form that etcd leaves unchanged when it
    /// parses and prints them, because the IDs are computed from the printed form.
    pub fn check(&self) -> Result<(), IdentityError> {
        if self.name.is_empty() {
            return Err(IdentityError::NoName);
        }
        if self.name.contains(|c: char| matches!(c, '=' | ',') || c.is_whitespace() || c.is_control()) {
            return Err(IdentityError::BadName(self.name.clone()));
        }
        if self.peer_urls.is_empty() {
            return Err(IdentityError::NoPeerUrl(self.name.clone()));
        }
        match self.peer_urls.iter().chain(&self.client_urls).find(|url| !is_plain_url(url)) {
            Some(url) => Err(IdentityError::BadUrl(url.clone())),
            None => Ok(()),
        }
    }

    /// The member's ID.
    pub fn member_id(&self) -> MemberId {
        let mut urls: Vec<&str> = self.peer_urls.iter().map(String::as_str).collect();
        urls.sort_unstable();
        let mut hash = Sha1::new();
        for url in urls {
            hash.update(url);
        }
        hash.update(&self.token);
        MemberId(first_eight(hash))
    }

    /// The ID of the cluster of this one member.
    pub fn cluster_id(&self) -> ClusterId {
        cluster_id_of(&[self.member_id()])
    }
}

/// The ID of a cluster formed of these members.
pub fn cluster_id_of(members: &[MemberId]) -> ClusterId {
    let mut ids: Vec<u64> = members.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    ClusterId(first_eight(hash))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

fn is_plain_url(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else { return false };
    let Some((host, port)) = rest.rsplit_once(':') else { return false };
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    host_ok && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(urls: &[&str], token: &str) -> MemberIdentity {
        MemberIdentity {
            name: "a".into(),
            peer_urls: urls.iter().map(|u| u.to_string()).collect(),
            client_urls: vec![],
            token: token.into(),
        }
    }

    #[test]
    fn the_default_identity_has_the_ids_every_etcd_prints() {
        let m = member(&["http://localhost:2380"], "etcd-cluster");
        assert_eq!(m.member_id().to_string(), "8e9e05c52164694d");
        assert_eq!(m.cluster_id().to_string(), "cdf818194e3a8c32");
    }

    #[test]
    fn the_order_of_urls_does_not_matter_and_the_token_does() {
        let one = member(&["https://a:1", "https://b:1"], "t");
        assert_eq!(one.member_id(), member(&["https://b:1", "https://a:1"], "t").member_id());
        assert_ne!(one.member_id(), member(&["https://a:1", "https://b:1"], "u").member_id());
        assert_ne!(one.cluster_id(), member(&["https://a:1", "https://b:1"], "u").cluster_id());
    }

    #[test]
    fn only_plain_urls_pass() {
        for (url, ok) in [
            ("https://a-0.a-headless.ns:2380", true),
            ("http://127.0.0.1:1", true),
            ("http://[::1]:2380", true),
            ("https://a:2380/", false),
            ("https://a", false),
            ("https://:2380", false),
            ("https://a:99999", false),
            ("https://a:+1", false),
            ("https://u@a:1", false),
            ("unix://a:1", false),
            (" https://a:1", false),
            ("http://[::z]:1", false),
        ] {
            assert_eq!(member(&[url], "t").check().is_ok(), ok, "{url}");
        }
        assert_eq!(member(&[], "t").check(), Err(IdentityError::NoPeerUrl("a".into())));
    }
}
