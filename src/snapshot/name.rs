//! Names of snapshots: which virtual cluster, and when.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::settings::Settings;

/// The end of every name.
const SUFFIX: &str = ".db";
const TIME: &[FormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// A snapshot's name, such as `team-a.my-vcluster-20261124T060000Z.db`. A file of any other name is nothing of ours: it is
/// not listed and never removed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName {
    cluster: String,
    taken: OffsetDateTime,
}

impl SnapshotName {
    /// The snapshot of `cluster` ([`cluster_of`]), taken at `taken`; its name tells whole seconds of UTC.
    pub fn new(cluster: &str, taken: OffsetDateTime) -> Self {
        let taken = taken.to_offset(time::UtcOffset::UTC);
        SnapshotName { cluster: cluster.to_owned(), taken: taken.replace_nanosecond(0).unwrap_or(taken) }
    }

    /// The name of a snapshot a second later: two are never taken at once.
    pub fn later(&self) -> Self {
        SnapshotName { taken: self.taken.saturating_add(time::Duration::SECOND), ..self.clone() }
    }

    /// The virtual cluster, as [`cluster_of`] names it.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// When it was taken.
    pub fn taken(&self) -> OffsetDateTime {
        self.taken
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.taken.format(TIME).map_err(|_| fmt::Error)?;
        write!(f, "{}-{taken}{SUFFIX}", self.cluster)
    }
}

impl FromStr for SnapshotName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (cluster, taken) = text.strip_suffix(SUFFIX).and_then(|text| text.rsplit_once('-')).ok_or(())?;
        let taken = PrimitiveDateTime::parse(taken, TIME).map_err(|_| ())?.assume_utc();
        let name = SnapshotName { cluster: cluster.to_owned(), taken };
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

/// The snapshots of `cluster` that are to go so that the `keep` newest stay at `now`; the oldest first. What a wrong clock
/// has named after a time to come goes before all others, which it would outlive otherwise, the newest ones included.
pub fn expired(
    names: impl IntoIterator<Item = SnapshotName>,
    cluster: &str,
    keep: usize,
    now: OffsetDateTime,
) -> Vec<SnapshotName> {
    let mut own: Vec<_> = names.into_iter().filter(|name| name.cluster == cluster).collect();
    own.sort_by_key(|name| (name.taken <= now + CLOCKS, name.taken));
    own.truncate(own.len().saturating_sub(keep));
    own
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
        let written = SnapshotName::new("my-vc", taken);
        assert_eq!(written.to_string(), "my-vc-20261124T060000Z.db");
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
        ] {
            assert!(other.parse::<SnapshotName>().is_err(), "{other}");
        }
    }

    #[test]
    fn the_newest_stay_and_those_of_others_do() {
        let names =
            ["vc-20260101T000000Z.db", "vc-20270101T000000Z.db", "vc-20260601T000000Z.db", "o-20200101T000000Z.db"];
        let at = |now: &str, keep| {
            let now = OffsetDateTime::parse(now, &time::format_description::well_known::Rfc3339).unwrap();
            expired(names.map(name), "vc", keep, now).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let gone = |keep| at("2027-01-01T00:00:00Z", keep);
        assert_eq!(gone(3), [""; 0]);
        assert_eq!(gone(1), [names[0], names[2]]);
        assert_eq!(gone(0), [names[0], names[2], names[1]]);
        assert_eq!(gone(100), [""; 0]);
        // A clock was wrong once: what is taken now stays.
        assert_eq!(at("2026-06-01T00:00:00Z", 1), [names[1], names[0]]);
    }
}
