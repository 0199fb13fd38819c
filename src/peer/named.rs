//! Whether DNS has said which pods there are. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::boot::Known;
use crate::discovery::answer::Answer;
use crate::ids::Ordinal;

/// Whether an answer that names these pods is known to be of a time at which this pod, `own`, was there. One that does not
/// name it, or while its name leads elsewhere (`wrong`), may be from a cache and lack pods that have come since.
pub(super) fn of_now(own: Ordinal, named: &[Ordinal], wrong: Option<String>) -> Known<()> {
    match wrong {
        _ if !named.contains(&own) => Known::Unknown("its answer does not name this pod yet".to_owned()),
        Some(why) => Known::Unknown(format!("its answer may be of an earlier pod's time: {why}")),
        None => Known::Present(()),
    }
}

/// Whether DNS has said which pods there are.
pub(super) enum Named {
    /// It has, or has not.
    Told(Known<()>),
    /// It names nobody, which leaves out this pod.
    Nobody {
        /// The addresses of the headless service.
        there: Answer<BTreeSet<IpAddr>>,
        /// Why this pod's own name does not lead to it.
        wrong: Option<String>,
    },
}

/// The same where nobody is named: the service has no port of that name, or DNS does not know it yet. Its addresses, `there`,
/// tell as well who is there, if they are those of this pod, `own`, and of others that have been `asked` by their names.
/// Without this pod's they may be from a cache, of a time before it and others came.
pub(super) fn unnamed(
    own: &BTreeSet<IpAddr>,
    asked: &BTreeSet<IpAddr>,
    there: &Answer<BTreeSet<IpAddr>>,
    wrong: Option<String>,
) -> Known<()> {
    let there = match (wrong, there) {
        (Some(why), _) => return Known::Unknown(format!("it names no pod, and not this one: {why}")),
        (None, Answer::Unknown(why)) => return Known::Unknown(why.clone()),
        (None, Answer::Present { value, .. }) => value.clone(),
        (None, Answer::Absent { .. }) => BTreeSet::new(),
    };
    let others = there.iter().filter(|address| !own.contains(address) && !asked.contains(address));
    let others: Vec<_> = others.map(ToString::to_string).collect();
    match others.is_empty() {
        true if !there.is_disjoint(own) => Known::Present(()),
        true => Known::Unknown("the headless service's addresses do not have this pod's yet".to_owned()),
        false => Known::Unknown(format!(
            "the headless service has the pods at {}, and its port `peer` (2380), by which pods are named, is missing",
            others.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Stale DNS, found by the model: the seed's volume was lost, and the answer is from before the pod that has the data came
    /// again, which is no longer wanted and serves on.
    #[test]
    fn an_answer_from_before_this_pod_was_there_does_not_say_which_pods_there_are() {
        let (own, other) = (Ordinal(0), Ordinal(1));
        assert_eq!(of_now(own, &[own, other], None), Known::Present(()));
        assert_eq!(of_now(own, &[own], None), Known::Present(()));
        assert!(of_now(own, &[other], None).unknown().is_some());
        let elsewhere = Some("vc-0 resolves to 10.0.0.4: an earlier pod's record?".to_owned());
        assert!(of_now(own, &[own], elsewhere).unknown().is_some_and(|why| why.contains("earlier pod's record")));
    }

    #[test]
    fn that_no_pod_is_named_does_not_say_that_there_is_none() {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let own = BTreeSet::from([address(4)]);
        let has = |value: &[u8]| Answer::Present {
            value: value.iter().map(|last| address(*last)).collect(),
            ttl: Duration::from_secs(5),
        };
        let absent = Answer::Absent { ttl: Duration::from_secs(5) };
        let asked = BTreeSet::from([address(6)]);
        assert_eq!(unnamed(&own, &asked, &has(&[4]), None), Known::Present(()));
        assert_eq!(unnamed(&own, &asked, &has(&[4, 6]), None), Known::Present(()));
        let why = |there: &Answer<BTreeSet<IpAddr>>, wrong: Option<&str>| -> String {
            let known = unnamed(&own, &asked, there, wrong.map(str::to_owned));
            known.unknown().map(str::to_owned).unwrap_or_else(|| panic!("{known:?}"))
        };
        assert!(why(&has(&[4, 5]), None).contains("10.0.0.5, and its port `peer`"));
        assert!(why(&has(&[5]), None).contains("10.0.0.5, and its port `peer`"));
        assert!(why(&has(&[6]), None).contains("this pod's yet"), "of a time before this pod was there");
        assert!(why(&absent, None).contains("this pod's yet"));
        assert!(why(&Answer::Unknown("SERVFAIL".to_owned()), None).contains("SERVFAIL"));
        assert!(why(&has(&[4]), Some("vc-0 does not exist")).contains("vc-0 does not exist"));
    }
}
