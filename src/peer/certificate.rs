//! What a failed handshake says of certificates, and what is to be done. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::boot::PeerFact;
use crate::ids::Ordinal;

/// For so long, look after look, a pod must show a certificate of another CA: where one was, another's may be for a moment,
/// and what is mounted is renewed on one node before the other.
const OTHER_CA_FOR: Duration = Duration::from_secs(10);

/// What is to be done where TLS failed because of the time, in rustls's words (`Display` of its `CertificateError`, and of
/// the alert by which the other side refuses ours).
pub(super) fn clock(why: &str) -> Option<&'static str> {
    let any = |pieces: &[&str]| pieces.iter().any(|piece| why.contains(piece));
    if any(&["certificate not valid yet", "certificate: NotValidYet"]) {
        Some(
            "its etcd/peer.crt begins in the future by this clock: set the clocks of both nodes (NTP), or wait until then",
        )
    } else if any(&["certificate expired", "certificate: Expired"]) {
        Some(
            "its etcd/peer.crt has ended by this clock: set the clocks of both nodes (NTP); if they are right, renew it: \
             restart that pod, or replace the mounted files or the Secret",
        )
    } else if any(&["CertificateExpired"]) {
        Some(
            "it refuses this pod's etcd/healthcheck-client.crt as out of date: set the clocks of both nodes (NTP); if they are right, renew \
             it: restart this pod, or replace the mounted files or the Secret",
        )
    } else {
        None
    }
}

/// The same where the other's certificate is not for the name by which pods call each other, which rustls gives.
pub(super) fn name(why: &str) -> Option<&'static str> {
    ["certificate not valid for name", "certificate: NotValidForName"].iter().any(|piece| why.contains(piece)).then_some(
        "its etcd/peer.crt is not for the name by which other pods call it: issue it, and etcd/server.crt, with the names \
         POD.NAME-headless.NAMESPACE of all pods or with *.NAME-headless.NAMESPACE, as `syncer certs` does, and replace what is \
         mounted there or the Secret",
    )
}

/// Takes nobody's CA for another before it has been so for a while, in each look since then.
pub(super) fn doubt_other_cas(since: &mut BTreeMap<Ordinal, Instant>, peers: &mut [PeerFact], now: Instant) {
    since.retain(|ordinal, _| peers.iter().any(|peer| peer.ordinal == *ordinal && peer.other_ca));
    for peer in peers.iter_mut().filter(|peer| peer.other_ca) {
        let begun = since.entry(peer.ordinal).or_insert(now);
        peer.other_ca = now.saturating_duration_since(*begun) >= OTHER_CA_FOR;
    }
}

/// Whether a handshake failed because one side's certificate is of a CA that the other does not know: rustls' words for ours
/// of theirs (a CA of the same name has another key), and for the alert by which the other side refuses ours.
pub(super) fn of_another_ca(why: &str) -> bool {
    ["UnknownIssuer", "BadSignature", "UnknownCA"].iter().any(|piece| why.contains(piece))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{AlertDescription, CertificateError, Error};

    use super::*;

    #[test]
    fn another_ca_is_believed_after_a_while_in_which_no_look_says_otherwise() {
        let (begun, mut since) = (Instant::now(), BTreeMap::new());
        let mut look = |seconds, other_ca| {
            let mut peers = [PeerFact { other_ca, ..PeerFact::new(Ordinal(1)) }, PeerFact::new(Ordinal(2))];
            doubt_other_cas(&mut since, &mut peers, begun + Duration::from_secs(seconds));
            assert!(!peers[1].other_ca);
            peers[0].other_ca
        };
        for (seconds, shown, believed) in [
            (0, true, false),
            (9, true, false),
            (10, true, true),
            (11, false, false),
            (12, true, false),
            (22, true, true),
        ] {
            assert_eq!(look(seconds, shown), believed, "after {seconds} s");
        }
    }

    #[test]
    fn another_ca_is_told_from_other_failures() {
        let of = |error| of_another_ca(&told(error));
        assert!(of(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
        assert!(of(Error::InvalidCertificate(CertificateError::BadSignature)));
        assert!(of(Error::AlertReceived(AlertDescription::UnknownCA)));
        assert!(!of(Error::InvalidCertificate(CertificateError::Expired)));
        assert!(!of(Error::AlertReceived(AlertDescription::CertificateExpired)));
        assert!(!of_another_ca("connect: Connection refused (os error 111)"));
    }

    /// As a failed handshake is told: with its context, out of an I/O error.
    fn told(error: Error) -> String {
        let failed: Result<(), _> = Err(std::io::Error::other(error));
        format!("{:#}", failed.context("speak TLS").unwrap_err())
    }

    #[test]
    fn a_certificate_that_does_not_fit_a_clock_is_told_from_other_failures() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, not_before, not_after) = (at(5), at(9), at(1));
        for (error, words) in [
            (CertificateError::NotValidYet, Some("future")),
            (CertificateError::NotValidYetContext { time, not_before }, Some("future")),
            (CertificateError::Expired, Some("has ended")),
            (CertificateError::ExpiredContext { time, not_after }, Some("has ended")),
            (CertificateError::UnknownIssuer, None),
        ] {
            let why = told(Error::InvalidCertificate(error));
            assert_eq!(clock(&why).is_some(), words.is_some(), "{why}");
            assert!(clock(&why).is_none_or(|remedy| words.is_some_and(|words| remedy.contains(words))), "{why}");
        }
        let ours = told(Error::AlertReceived(AlertDescription::CertificateExpired));
        assert!(clock(&ours).is_some_and(|remedy| remedy.contains("this pod's")), "{ours}");
        assert_eq!(clock(&told(Error::AlertReceived(AlertDescription::UnknownCA))), None);
    }

    #[test]
    fn a_certificate_for_other_names_is_told_from_other_failures() {
        let expected = ServerName::try_from("vc-1.vc-headless.team-a").unwrap();
        let presented = vec!["other-1.other-headless.team-a".to_owned()];
        for error in [
            CertificateError::NotValidForName,
            CertificateError::NotValidForNameContext { expected, presented: presented.clone() },
        ] {
            let why = told(Error::InvalidCertificate(error));
            assert!(name(&why).is_some() && clock(&why).is_none() && !of_another_ca(&why), "{why}");
        }
        assert_eq!(name(&told(Error::InvalidCertificate(CertificateError::UnknownIssuer))), None);
    }
}
