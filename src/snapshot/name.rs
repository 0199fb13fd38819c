//! Names of snapshots: which virtual cluster, when, and which etcd cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::ids::ClusterId;
use crate::settings::Settings;

/// The end of every name.
const SUFFIX: &str = ".db";
const TIME: &[FormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// A snapshot's name, such as `team-a.my-vcluster-20261124T060000Z-6d7d1a9c5e0f3b21.db`, at its end the etcd cluster's ID. One
/// without that is listed, and removed by nobody but a user. A file of any other name is nothing of ours: it is not listed and never removed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName {
    cluster: String,
    taken: OffsetDateTime,
    of: Option<ClusterId>,
}

impl SnapshotName {
    /// The snapshot of `cluster` ([`cluster_of`]), which the etcd cluster `of` is now, taken at `taken`; its name tells whole
    /// seconds of UTC.
    pub fn new(cluster: &str, of: ClusterId, taken: OffsetDateTime) -> Self {
        let taken = taken.to_offset(time::UtcOffset::UTC);
        let taken = taken.replace_nanosecond(0).unwrap_or(taken);
        SnapshotName { cluster: cluster.to_owned(), taken, of: Some(of) }
    }

    /// The name of a snapshot a second later: two are never taken at once.
    pub fn later(&self) -> Self {
        SnapshotName { taken: self.taken.saturating_add(time::Duration::SECOND), ..self.clone() }
    }

    /// The virtual cluster, as [`cluster_of`] names it.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Whether both are of one virtual cluster and one etcd cluster.
    pub fn same_store(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.of == other.of
    }

    /// When it was taken.
    pub fn taken(&self) -> OffsetDateTime {
        self.taken
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.taken.format(TIME).map_err(|_| fmt::Error)?;
        write!(f, "{}-{taken}", self.cluster)?;
        if let Some(of) = self.of {
            write!(f, "-{of}")?;
        }
        f.write_str(SUFFIX)
    }
}

impl FromStr for SnapshotName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let time = |text: &str| PrimitiveDateTime::parse(text, TIME).map(PrimitiveDateTime::assume_utc);
        let (rest, last) = text.strip_suffix(SUFFIX).and_then(|text| text.rsplit_once('-')).ok_or(())?;
        let (cluster, taken, of) = match time(last) {
            Ok(taken) => (rest, taken, None),
            Err(_) => {
                let (cluster, taken) = rest.rsplit_once('-').ok_or(())?;
                (cluster, time(taken).map_err(|_| ())?, Some(last.parse().map_err(|_| ())?))
            }
        };
        let name = SnapshotName { cluster: cluster.to_owned(), taken, of };
        // Whatever the parser lets pass, only what we would write is ours.
        if cluster.is_empty() || name.to_string() != text { Err(()) } else { Ok(name) }
    }
}

impl Serialize for SnapshotName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The virtual cluster in the names of its snapshots: another namespace may have one of the same name, and the same bucket.
/// Neither part has a dot in it.
pub fn cluster_of(settings: &Settings) -> String {
    format!("{}.{}", settings.namespace, settings.name)
}

/// Clocks of two pods differ by less than this.
pub const CLOCKS: time::Duration = time::Duration::minutes(1);

/// The snapshots of the virtual and the etcd cluster of `newest` that are to go so that `keep` stay at `now`, `newest` among
/// them, which has just been saved: whatever its name says beside those of other clocks. The oldest first. What a wrong clock
/// has named after a time to come goes before all others, which it would outlive otherwise.
///
/// Those of another etcd cluster stay: a store that was lost and formed anew, empty, would outlive the last that has its data.
pub fn expired(
    names: impl IntoIterator<Item = SnapshotName>,
    newest: &SnapshotName,
    keep: usize,
    now: OffsetDateTime,
) -> Vec<SnapshotName> {
    let other = |name: &SnapshotName| name.same_store(newest) && name.taken != newest.taken;
    let mut others: Vec<_> = names.into_iter().filter(other).collect();
    others.sort_by_key(|name| (name.taken <= now + CLOCKS, name.taken));
    others.truncate((others.len() + 1).saturating_sub(keep.max(1)));
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SnapshotName {
        text.parse().unwrap_or_else(|()| panic!("{text}"))
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let taken = OffsetDateTime::from_unix_timestamp(1_795_500_000).unwrap() + time::Duration::milliseconds(7);
        let written = SnapshotName::new("my-vc", ClusterId(0xabc0_1234_5678_9def), taken);
        assert_eq!(written.to_string(), "my-vc-20261124T060000Z-abc0123456789def.db");
        for other in ["my-vc-20261124T060000Z.db", "a-20261124T060000Z-20261124T060000Z.db"] {
            assert_eq!(name(other).to_string(), other);
        }
        assert_eq!(name(&written.to_string()), written);
        assert_eq!((written.cluster(), written.taken().unix_timestamp()), ("my-vc", 1_795_500_000));
    }

    #[test]
    fn other_names_are_not_ours() {
        for other in [
            "",
            ".db",
            "vc.db",
            "vc-20261124T060000Z",
            "vc-20261124T060000Z.db.part",
            "-20261124T060000Z.db",
            "vc-20261324T060000Z.db",
            "vc-20261124T0600Z.db",
            "vc-+20261124T060000Z.db",
            "vc-20261124T060000z.db",
            "vc-20261124T060000Z-.db",
            "vc-20261124T060000Z-xyz.db",
            "vc-20261124T060000Z-ABC0123456789DEF.db",
            "-20261124T060000Z-abc0123456789def.db",
        ] {
            assert!(other.parse::<SnapshotName>().is_err(), "{other}");
        }
    }

    #[test]
    fn the_newest_stay_and_those_of_others_do() {
        let names = [
            "vc-20260101T000000Z-a.db",
            "vc-20270101T000000Z-a.db",
            "vc-20260601T000000Z-a.db",
            "o-20200101T000000Z-a.db",
            // Of a store that is lost.
            "vc-20200101T000000Z-b.db",
            "vc-20200101T000000Z.db",
        ]
        .map(|text| {
            text.replace("-a.db", &format!("-{}.db", ClusterId(10))).replace("-b.db", &format!("-{}.db", ClusterId(11)))
        });
        let gone = |newest: usize, now: &str, keep| {
            let now = OffsetDateTime::parse(now, &time::format_description::well_known::Rfc3339).unwrap();
            expired(names.iter().map(|text| name(text)), &name(&names[newest]), keep, now)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let at = "2027-01-01T00:00:00Z";
        assert_eq!(gone(1, at, 3), [""; 0]);
        assert_eq!(gone(1, at, 2), [&*names[0]]);
        assert_eq!(gone(1, at, 1), [&*names[0], &names[2]]);
        assert_eq!(gone(1, at, 100), [""; 0]);
        // A clock was wrong once: what is taken now stays.
        assert_eq!(gone(2, "2026-06-01T00:00:00Z", 2), [&*names[1]]);
        // Another pod's clock is ahead by less than clocks differ: what has just been saved stays all the same.
        assert_eq!(gone(2, "2026-12-31T23:59:59Z", 1), [&*names[0], &names[1]]);
        assert_eq!(gone(2, "2026-12-31T23:59:59Z", 2), [&*names[0]]);
    }
}
