//! Identifiers of the StatefulSet and of etcd, one newtype each, so that a member ID is never taken for a cluster ID.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A pod's number in its StatefulSet, from the end of its name (`my-vcluster-2` is 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ordinal(pub u32);

impl Ordinal {
    /// The ordinal of a pod name of the form `<name>-<ordinal>`; `None` if the name does not end in a number.
    pub fn of_pod(pod: &str) -> Option<(&str, Ordinal)> {
        let (set, number) = pod.rsplit_once('-')?;
        let canonical = number == "0" || !number.starts_with('0');
        if set.is_empty() || !canonical || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some((set, Ordinal(number.parse().ok()?)))
    }
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                u64::from_str_radix(s, 16).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id! {
    /// An etcd member ID. Shown as etcd shows it: lower-case hex, not padded.
    MemberId
}
hex_id! {
    /// An etcd cluster ID. Shown as etcd shows it: lower-case hex, not padded.
    ClusterId
}

/// An etcd revision, which is also a Kubernetes resourceVersion and a kine row id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An index in the raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RaftIndex(pub u64);

/// A raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_name_gives_set_and_ordinal() {
        for (pod, want) in [
            ("my-vcluster-0", Some(("my-vcluster", 0))),
            ("a-12", Some(("a", 12))),
            ("a-012", None),
            ("a-", None),
            ("-1", None),
            ("a", None),
            ("a-+1", None),
            ("a-99999999999", None),
        ] {
            assert_eq!(Ordinal::of_pod(pod), want.map(|(s, n)| (s, Ordinal(n))), "{pod}");
        }
    }

    #[test]
    fn ids_print_as_etcd_prints_them() {
        assert_eq!(MemberId(0x0f00).to_string(), "f00");
        assert_eq!("8e9e05c52164694d".parse::<ClusterId>().unwrap().0, 0x8e9e_05c5_2164_694d);
    }
}
