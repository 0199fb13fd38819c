//! Setting a data dir aside: renamed, never deleted, unless pruning is asked for.
//!
//! `<dir>` becomes `<dir>.aside-<UTC time>-<n>`, for example `etcd.aside-20260823T101500Z-1`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::disk::{Disk, at, parent_of};

/// How many set-aside data dirs design 4.4's "newest few" are.
pub const KEEP: usize = 3;
/// Set aside more often than this within a second, something is badly wrong.
const MAX_PER_SECOND: u32 = 1000;

/// Renames `etcd_dir` durably and gives its new path; `None` if there is nothing at `etcd_dir`.
pub fn set_aside(disk: &dyn Disk, etcd_dir: &Path, now: SystemTime) -> io::Result<Option<PathBuf>> {
    if !exists(etcd_dir)? {
        return Ok(None);
    }
    let target = free_name(etcd_dir, now)?;
    // The data dir's lock is held, so nobody takes the name between the look and the rename.
    disk.rename_durable(etcd_dir, &target)?;
    Ok(Some(target))
}

/// A name that [`set_aside`] could give `etcd_dir` now, and that nothing has.
pub fn free_name(etcd_dir: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let now = OffsetDateTime::from(now);
    let (date, (hour, minute, second)) = (now.date(), now.to_hms());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let when = format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z");
    for n in 1..=MAX_PER_SECOND {
        let target = beside(etcd_dir, &format!("{when}-{n}"));
        if !exists(&target)? {
            return Ok(target);
        }
    }
    Err(at(etcd_dir, io::Error::other("it was set aside a thousand times within this second")))
}

/// Makes way for forming, joining or importing where an inspection said "empty": sets aside what is there, if anything
/// is. An empty directory stays.
pub fn clear(disk: &dyn Disk, etcd_dir: &Path, now: SystemTime) -> io::Result<Option<PathBuf>> {
    let is_empty = match std::fs::read_dir(etcd_dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Err(e) => return Err(at(etcd_dir, e)),
    };
    if is_empty { Ok(None) } else { set_aside(disk, etcd_dir, now) }
}

/// The data dirs set aside, oldest first.
pub fn asides(etcd_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let parent = parent_of(etcd_dir);
    let prefix = beside(etcd_dir, "");
    let prefix = prefix.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&parent).map_err(|e| at(&parent, e))? {
        let entry = entry.map_err(|e| at(&parent, e))?;
        let name = entry.file_name();
        if let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(parse_suffix) {
            found.push((key, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Removes all but the newest `keep` set-aside data dirs, and says which. Only what [`set_aside`] named is touched.
pub fn prune(disk: &dyn Disk, etcd_dir: &Path, keep: usize) -> io::Result<Vec<PathBuf>> {
    let mut old = asides(etcd_dir)?;
    old.truncate(old.len().saturating_sub(keep));
    for path in &old {
        disk.remove_dir_all(path)?;
    }
    Ok(old)
}

fn beside(etcd_dir: &Path, suffix: &str) -> PathBuf {
    let mut name = etcd_dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".aside-{suffix}"));
    etcd_dir.with_file_name(name)
}

/// `20260823T101500Z-1` as something that sorts by time.
fn parse_suffix(suffix: &str) -> Option<(String, u32)> {
    let (when, n) = suffix.split_once('-')?;
    let shape = when.bytes().map(|b| if b.is_ascii_digit() { b'0' } else { b });
    if !shape.eq("00000000T000000Z".bytes()) || !n.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((when.to_owned(), n.parse().ok()?))
}

fn exists(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(at(path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use std::time::{Duration, UNIX_EPOCH};

    fn make(dir: &Path, content: &str) {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("file"), content).unwrap();
    }

    #[test]
    fn it_renames_and_never_overwrites() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("etcd");
        let now = UNIX_EPOCH + Duration::from_secs(1_787_480_100);
        assert_eq!(set_aside(&RealDisk, &dir, now).unwrap(), None);
        for n in 1..=12 {
            make(&dir, &n.to_string());
            let aside = set_aside(&RealDisk, &dir, now).unwrap().unwrap();
            assert_eq!(aside, home.path().join(format!("etcd.aside-20260823T101500Z-{n}")));
            assert!(!dir.exists());
            assert_eq!(std::fs::read_to_string(aside.join("file")).unwrap(), n.to_string());
        }
        assert_eq!(asides(&dir).unwrap().len(), 12);
    }

    #[test]
    fn clearing_leaves_an_empty_directory() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("etcd");
        assert_eq!(clear(&RealDisk, &dir, UNIX_EPOCH).unwrap(), None);
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(clear(&RealDisk, &dir, UNIX_EPOCH).unwrap(), None);
        std::fs::create_dir(dir.join("member")).unwrap();
        let aside = clear(&RealDisk, &dir, UNIX_EPOCH).unwrap().unwrap();
        assert!(!dir.exists() && aside.join("member").is_dir());
    }

    #[test]
    fn pruning_keeps_the_newest_and_what_it_did_not_make() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("etcd");
        let names = ["20260823T101500Z-2", "20260823T101500Z-10", "20250823T101500Z-1", "20260824T000000Z-1"];
        for name in names {
            make(&home.path().join(format!("etcd.aside-{name}")), name);
        }
        for other in ["etcd.aside-mine", "etcd.aside-20260823T101500Z-1.bak", "etcd2.aside-20260823T101500Z-1", "etcd"]
        {
            make(&home.path().join(other), other);
        }
        let removed = prune(&RealDisk, &dir, 2).unwrap();
        let gone = ["etcd.aside-20250823T101500Z-1", "etcd.aside-20260823T101500Z-2"];
        assert_eq!(removed, gone.map(|name| home.path().join(name)));
        assert_eq!(asides(&dir).unwrap().len(), 2);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 6);
        assert!(prune(&RealDisk, &dir, KEEP).unwrap().is_empty());
    }
}
