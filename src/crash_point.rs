//! Named crash points: places where a test kills the process, one for each boundary between durable steps.
//!
//! Compiled in only with the feature `testing`. `SYNCER_CRASH_AT=<name>` makes the process kill itself with SIGKILL
//! at that point, which is what a node that loses power, or `kill -9`, does at the worst moment. `SYNCER_HALT_AT=<name>`
//! makes it halt there by SIGSTOP until it gets SIGCONT, so that a test can change the world around it meanwhile (not as
//! PID 1 of a namespace, to which its own signals do nothing). `SYNCER_CRASH_FILES=<folder>` is for pods that run already,
//! or are to die once: whoever reaches a point of which this folder has a file takes the file away and kills itself. A file
//! that names a pod waits for that one.

use std::time::Duration;

/// Every crash point, in the order in which a migration at boot passes them. Tests loop over this list.
pub const CRASH_POINTS: &[&str] = &[
    "migrate-before-journal",
    "migrate-after-journal",
    "migrate-staging-half-written",
    "migrate-backend-written",
    "migrate-etcd-started",
    "migrate-verified",
    "migrate-staging-synced",
    "migrate-written",
    "migrate-after-flip",
    "migrate-before-commit",
    "migrate-after-commit",
    "migrate-wal-moved",
    "migrate-strays-moved",
    "migrate-journal-done",
    "start-etcd-serving",
    "start-apiserver-spawned",
];

/// Every crash point of a reset, in the order in which it passes them.
pub const RESET_CRASH_POINTS: &[&str] = &[
    "reset-journal-begun",
    "reset-half-copied",
    "reset-copied",
    "reset-tail-cut",
    "reset-appended",
    "reset-etcd-serving",
    "reset-verified",
    "reset-half-bumped",
    "reset-bumped",
    "reset-done",
];

/// Every crash point of the way back to SQLite, in the order in which it passes them.
pub const BACK_CRASH_POINTS: &[&str] = &[
    "back-before-journal",
    "back-journal-begun",
    "back-half-written",
    "back-verified",
    "back-written",
    "back-after-flip",
    "back-done",
];

/// And those that only a boot passes, behind `back-after-flip`.
pub const BACK_BOOT_CRASH_POINTS: &[&str] = &["back-before-commit", "back-after-commit"];

/// Every crash point of a move from a running etcd, beside those of the import, in the order in which it passes them.
pub const FENCE_CRASH_POINTS: &[&str] = &[
    "fence-recorded",
    "fence-half-raised",
    "fence-raised",
    "fence-stands",
    "fence-snapshot-taken",
    "fence-held",
    "fence-kept",
    "fence-half-lifted",
];

/// Every crash point of a snapshot, in the order in which taking one passes them.
pub const SNAPSHOT_CRASH_POINTS: &[&str] = &["snapshot-half-written", "snapshot-before-commit", "snapshot-committed"];

/// Every crash point of staging a restore, around those of its import, in the order in which it passes them.
pub const RESTORE_CRASH_POINTS: &[&str] = &["restore-cleared", "restore-staged", "restore-recorded"];

/// And those of the start at which it takes its place; `restore-marked` only where there is a host API.
pub const RESTORE_BOOT_CRASH_POINTS: &[&str] =
    &["restore-begun", "restore-noted", "restore-set-aside", "restore-in-place", "restore-marked", "restore-done"];

/// Every crash point of a copy that is made of a source elsewhere: of a running etcd's snapshot, and of one in a bucket.
pub const FETCH_CRASH_POINTS: &[&str] = &["source-half-fetched"];

/// Every crash point of members that come and go: in a pod that forms or joins, beside the leader, and in a pod that stops or
/// whose data dir is no member's any more.
pub const SCALING_CRASH_POINTS: &[&str] = &[
    "form-noted",
    "form-built",
    "form-in-place",
    "form-done",
    "join-noted",
    "join-asked",
    "join-added",
    "join-cleared",
    "start-etcd-spawned",
    "start-etcd-applied",
    "lead-fenced",
    "lead-before-add",
    "lead-added",
    "lead-before-promote",
    "lead-promoted",
    "lead-before-remove",
    "lead-removed",
    "lead-before-move",
    "lead-moved",
    "lead-before-url",
    "lead-url-set",
    "stop-told",
    "stop-led-on",
    "stop-asked",
    "stop-etcd-ended",
    "aside-noted",
    "aside-renamed",
];

/// And those around the writes of the marker, where there is a host API.
pub const MARKER_CRASH_POINTS: &[&str] = &[
    "boot-before-mark",
    "boot-marked",
    "boot-withdrawn",
    "lead-before-mark",
    "lead-marked",
    "stop-noted",
    "stop-before-mark",
    "stop-marked",
];

/// Every list.
pub const ALL_CRASH_POINTS: &[&[&str]] = &[
    CRASH_POINTS,
    RESET_CRASH_POINTS,
    BACK_CRASH_POINTS,
    BACK_BOOT_CRASH_POINTS,
    FENCE_CRASH_POINTS,
    SNAPSHOT_CRASH_POINTS,
    RESTORE_CRASH_POINTS,
    RESTORE_BOOT_CRASH_POINTS,
    FETCH_CRASH_POINTS,
    SCALING_CRASH_POINTS,
    MARKER_CRASH_POINTS,
];

/// Kills or halts the process here if the environment asks for it. `name` must be in one of the lists.
#[cfg(feature = "testing")]
pub fn reach(name: &str) {
    assert!(ALL_CRASH_POINTS.concat().contains(&name), "crash point {name} is not in the list");
    use nix::sys::signal::{Signal, kill};
    // The variables are the tests' own channel, not settings, so they are read here and nowhere else.
    for (variable, signal) in [("SYNCER_CRASH_AT", Signal::SIGKILL), ("SYNCER_HALT_AT", Signal::SIGSTOP)] {
        let by_file = signal == Signal::SIGKILL && is_told_by_file(name);
        if by_file || std::env::var_os(variable).is_some_and(|v| v == name) {
            let _ = kill(nix::unistd::getpid(), signal);
            // A PID 1 cannot kill itself. Ended like this it runs nothing more either, and takes its namespace with it.
            if signal == Signal::SIGKILL {
                // SAFETY: it ends the process without running anything of it, and takes no pointers.
                unsafe { libc::_exit(128 + libc::SIGKILL) };
            }
        }
    }
}

/// Whether a file asks for this process' end at this point. Of several that reach it at once one takes the file.
#[cfg(feature = "testing")]
fn is_told_by_file(name: &str) -> bool {
    let Some(folder) = std::env::var_os("SYNCER_CRASH_FILES") else { return false };
    let file = std::path::Path::new(&folder).join(name);
    let Ok(pod) = std::fs::read_to_string(&file) else { return false };
    (pod.is_empty() || std::env::var_os("POD_NAME").is_some_and(|own| *own == *pod))
        && std::fs::remove_file(file).is_ok()
}

/// A time that tests shorten by the variable, in seconds; `otherwise` without the feature `testing`.
pub fn seconds(variable: &str, otherwise: Duration) -> Duration {
    let shorter = if cfg!(feature = "testing") { std::env::var(variable).ok() } else { None };
    shorter.and_then(|text| text.parse().ok()).map_or(otherwise, Duration::from_secs)
}

/// Marks a crash point; nothing without the feature `testing`.
#[macro_export]
macro_rules! crash_point {
    ($name:expr) => {{
        #[cfg(feature = "testing")]
        $crate::crash_point::reach($name);
        #[cfg(not(feature = "testing"))]
        let _: &str = $name;
    }};
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Two ways to the same step share these.
    const SHARED: &[&str] = &[
        "migrate-staging-half-written",
        "snapshot-half-written",
        "snapshot-before-commit",
        "snapshot-committed",
        "source-half-fetched",
    ];

    /// The sources in a folder, without this file.
    fn sources(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let text = |path: std::path::PathBuf| match path.is_dir() {
            true => sources(&path),
            false if path.ends_with("src/crash_point.rs") => String::new(),
            false => std::fs::read_to_string(path).unwrap(),
        };
        entries.map(text).collect()
    }

    /// A point that no code reaches would leave a boundary untested, and one of two places only the first would be tested.
    #[test]
    fn each_point_is_one_place_in_the_code_and_in_one_list() {
        let (code, all) = (sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")), ALL_CRASH_POINTS.concat());
        for point in &all {
            let places = code.matches(&format!("\"{point}\"")).count();
            let wanted = if SHARED.contains(point) { 2 } else { 1 };
            assert_eq!(places, wanted, "{point} is named in {places} places of src: `grep -rn {point} src`");
            assert_eq!(all.iter().filter(|other| *other == point).count(), 1, "{point} is listed twice");
        }
        for name in code.split("crash_point!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(all.contains(&name), "{name} is in no list of src/crash_point.rs");
        }
    }
}
