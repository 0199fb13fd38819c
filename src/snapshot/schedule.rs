//! When snapshots are taken: a cron expression in UTC, as CronJobs have it.

use std::fmt;
use std::str::FromStr;

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::name::{CLOCKS, SnapshotName};

/// Names for whole expressions, as in CronJobs.
const NAMED: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// A cron expression: minute, hour, day of the month, month, day of the week; or `@daily` and the like.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    times: Crontab,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let cron = NAMED.iter().find(|(name, _)| *name == text).map_or(text, |(_, cron)| *cron);
        // A sixth field would be a time zone, which an image without its data does not know.
        if cron.split_whitespace().count() != 5 {
            return Err(format!("{text:?} is not minute, hour, day of the month, month and day of the week"));
        }
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let times = cronexpr::parse_crontab_with(cron, options).map_err(|e| {
            // A headline, the expression, and what is wrong with it behind a mark below the place.
            let said = e.to_string();
            let why = said.lines().last().unwrap_or_default().trim_start_matches([' ', '^']);
            format!("{text:?} is not a cron expression: {why}")
        })?;
        let schedule = Schedule { text: text.to_owned(), times };
        // Such as the 31st of February.
        match schedule.after(OffsetDateTime::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(format!("{text:?} never comes")),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Schedule {
    /// The first time after `time`.
    pub fn after(&self, time: OffsetDateTime) -> Option<OffsetDateTime> {
        let after = MakeTimestamp::from_second(time.unix_timestamp()).ok()?;
        let next = self.times.find_next(after).ok()?;
        OffsetDateTime::from_unix_timestamp(next.timestamp().as_second()).ok()
    }

    /// When the next snapshot is due, `next` being the name of one that is taken now, where `kept` are there; at once if none of
    /// these is of its store. A time in the past: it was missed, and is made up for at once, once for however many were
    /// missed. `None`: never again.
    ///
    /// One that a wrong clock has named after a time to come must not keep others from being taken until then.
    pub fn due<'a>(
        &self,
        kept: impl IntoIterator<Item = &'a SnapshotName>,
        next: &SnapshotName,
    ) -> Option<OffsetDateTime> {
        let now = next.taken();
        let taken = kept.into_iter().filter(|kept| kept.same_store(next)).map(SnapshotName::taken);
        match taken.filter(|taken| *taken <= now + CLOCKS).max() {
            Some(last) => self.after(last),
            None => Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> OffsetDateTime {
        OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
    }

    #[test]
    fn the_next_time_is_the_first_after() {
        for (schedule, now, next) in [
            ("0 */6 * * *", "2026-11-24T05:59:59Z", "2026-11-24T06:00:00Z"),
            ("0 */6 * * *", "2026-11-24T06:00:00Z", "2026-11-24T12:00:00Z"),
            ("@daily", "2026-12-31T12:00:00Z", "2027-01-01T00:00:00Z"),
            (" 30 2 29 2 * ", "2026-03-01T00:00:00Z", "2028-02-29T02:30:00Z"),
            ("*/5 * * * 1-5", "2026-11-20T23:57:00Z", "2026-11-23T00:00:00Z"),
        ] {
            let schedule: Schedule = schedule.parse().unwrap();
            assert_eq!(schedule.after(at(now)), Some(at(next)), "{schedule}");
        }
    }

    #[test]
    fn missed_ones_are_made_up_for_once() {
        let schedule: Schedule = "@hourly".parse().unwrap();
        let now = at("2026-11-24T10:45:00Z");
        let due = |kept: &[&str]| {
            let kept: Vec<_> = kept.iter().map(|name| name.parse::<SnapshotName>().unwrap()).collect();
            schedule.due(&kept, &"vc-20261124T104500Z-a000000000000001.db".parse().unwrap()).unwrap()
        };
        let (missed, next) = (at("2026-11-20T01:00:00Z"), at("2026-11-24T11:00:00Z"));
        assert_eq!(due(&[]), now, "none at all");
        assert_eq!(due(&["vc-20270101T000000Z-a000000000000001.db"]), now);
        assert_eq!(due(&["vc-20261120T000000Z-a000000000000001.db"]), missed);
        let old = "vc-20261120T000000Z-a000000000000001.db";
        assert_eq!(due(&[old, "vc-20261124T104500Z-a000000000000001.db"]), next);
        // Another virtual cluster's does not count, nor one of another store, such as one that was lost, nor one of a time to
        // come; clocks may differ a little.
        assert_eq!(due(&[old, "o-20261124T104500Z-a000000000000001.db"]), missed);
        assert_eq!(due(&["vc-20261124T104400Z-b000000000000002.db", "vc-20261124T104400Z.db"]), now);
        assert_eq!(due(&[old, "vc-20270101T000000Z-a000000000000001.db"]), missed);
        assert_eq!(due(&[old, "vc-20261124T104600Z-a000000000000001.db"]), next);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in [
            "",
            "hourly",
            "@never",
            "60 * * * *",
            "61 * * * *",
            "* * * *",
            "* * * * * *",
            "0 0 31 2 *",
            "0 0 * * * Mars/City",
        ] {
            let error = bad.parse::<Schedule>().unwrap_err();
            assert!(error.contains(&format!("{bad:?}")) && !error.contains('\n'), "{bad}: {error}");
            let why = error.rsplit(": ").next().unwrap_or_default();
            assert!(!error.ends_with(':') && !why.is_empty() && !why.starts_with('^'), "{bad}: {error}");
        }
    }
}
