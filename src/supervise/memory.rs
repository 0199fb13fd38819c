//! What the kernel has killed in this container for lack of memory, as the cgroup counts it: what tells such an end from
//! a SIGKILL that somebody sent.

use std::path::Path;

/// How many processes of this cgroup the kernel has killed for lack of memory (cgroup v2, `memory.events`, `oom_kill`).
/// `None` where that cannot be read: with cgroup v1, or outside of any cgroup.
pub fn oom_kills() -> Option<u64> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    count(&std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("memory.events")).ok()?)
}

fn count(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_and_nothing_else() {
        assert_eq!(count("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n"), Some(2));
        for none in ["", "oom 3\n", "oom_group_kill 1\n", "oom_kill many\n"] {
            assert_eq!(count(none), None, "{none:?}");
        }
    }
}
