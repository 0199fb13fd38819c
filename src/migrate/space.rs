//! Whether the volume has room for what an import writes.

use std::path::Path;

use anyhow::Context;
use nix::sys::statvfs::statvfs;

use crate::exit::{Exit, refuse};

/// etcd's preallocated WAL segment and the next one (`wal/file_pipeline.go`: 64 MB each), the steps by which the backend
/// grows (`backend/config_linux.go`, bbolt's `AllocSize`: 16 MiB), and a little for everything else.
const ETCD_ITSELF: u64 = (2 * 64 + 2 * 16 + 16) << 20;

/// Bytes that a data dir of so many keys needs at most. A record is the key and value, a revision key of 17 bytes, an
/// element header of 16 and a message around them of at most 40; pages are filled but for their last element.
pub fn needed(keys: u64, bytes: u64) -> u64 {
    let records = bytes.saturating_add(keys.saturating_mul(73));
    records.saturating_add(records / 16).saturating_add(ETCD_ITSELF)
}

/// Bytes that a `state.db` of so many keys needs at most, for names of 150 bytes on average: each stands in the table and
/// in four indexes, and once more in what an index is sorted in.
pub fn needed_sqlite(keys: u64, bytes: u64) -> u64 {
    let rows = bytes.saturating_add(bytes / 8).saturating_add(keys.saturating_mul(64));
    rows.saturating_add(keys.saturating_mul(5 * 170 + 2 * 32)).saturating_add(16 << 20)
}

/// Bytes that an unprivileged user can still write on the volume of `dir`.
pub fn free(dir: &Path) -> anyhow::Result<u64> {
    let stat = statvfs(dir).with_context(|| format!("ask for the free space at {}", dir.display()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Refuses if `free` is less than `needed` and what is to be left.
pub fn check(dir: &Path, needed: u64, left: u64, free: u64) -> anyhow::Result<()> {
    if needed.saturating_add(left) <= free {
        return Ok(());
    }
    let left = if left == 0 { String::new() } else { format!(", and {} MiB are to be left", left.div_ceil(1 << 20)) };
    Err(refuse(
        Exit::RefusedSpace,
        format!(
            "the volume of {} has {} MiB free and the import needs {} MiB{left}",
            dir.display(),
            free >> 20,
            needed.div_ceil(1 << 20)
        ),
        "enlarge the volume, or free space on it; nothing has been changed",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;

    #[test]
    fn a_full_volume_is_refused_with_its_own_code() {
        let dir = Path::new("/data");
        assert!(check(dir, 5, 0, 5).is_ok() && check(dir, 5, 1, 6).is_ok());
        let error = check(dir, 5, 256 << 20, 6).unwrap_err();
        assert!(error.to_string().contains("needs 1 MiB, and 256 MiB are to be left; "), "{error}");
        let error = check(dir, 300 << 20, 0, 7 << 20).unwrap_err();
        assert_eq!(exit_of(&error), Exit::RefusedSpace);
        assert!(error.to_string().starts_with("the volume of /data has 7 MiB free and the import needs 300 MiB"));
        assert!(free(Path::new("/")).unwrap() > 0);
    }

    #[test]
    fn the_need_covers_what_is_written_and_what_etcd_adds() {
        assert_eq!(needed(0, 0), ETCD_ITSELF);
        assert!(needed(1000, 1 << 20) > (1 << 20) + 1000 * 73 + ETCD_ITSELF);
        assert_eq!(needed(u64::MAX, u64::MAX), u64::MAX);
    }
}
