//! Setting a data dir aside: renamed, and never deleted but by [`retire`], of what it has set aside itself.
//!
//! Killed anywhere and called again, each function ends in the same state. A reset's copy of a data dir has a name of the
//! same form; that, and what a restore or an operator has replaced, stays until somebody deletes it.
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
        // A rename by an earlier, killed call may not be durable yet.
        disk.sync_dir(&parent_of(etcd_dir))?;
        return Ok(None);
    }
    let target = free_name(etcd_dir, now)?;
    // The data dir's lock is held, so nobody takes the name between the look and the rename.
    disk.rename_durable(etcd_dir, &target)?;
    // One that somebody has put back into use is a new one.
    if target.is_dir() {
        disk.forget_file(&target.join(RETIRED))?;
    }
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
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&parent).map_err(|e| at(&parent, e))? {
        let entry = entry.map_err(|e| at(&parent, e))?;
        let name = entry.file_name();
        if let Some(key) = name.to_str().and_then(|name| aside_key(etcd_dir, name)) {
            found.push((key, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// In a data dir that [`retire`] has set aside: the cluster goes on without it, and it may be removed.
const RETIRED: &str = "retired";

/// Sets a data dir aside that its cluster goes on without, and removes all but the newest [`KEEP`] of these; its new path.
pub fn retire(disk: &dyn Disk, etcd_dir: &Path, now: SystemTime) -> io::Result<Option<PathBuf>> {
    let kept = set_aside(disk, etcd_dir, now)?;
    if let Some(kept) = &kept {
        // A kill before this keeps it for ever, which is the safe side.
        disk.write_durable(&kept.join(RETIRED), b"", 0o600)?;
    }
    // By its name it may be the oldest, where the clock was set back.
    removed(disk, etcd_dir, KEEP, kept.as_deref())?;
    Ok(kept)
}

/// Removes all but the newest `keep` data dirs that were [retired](retire), and says which. What
/// is removed is renamed first, so that a half-removed data dir never looks like a whole one.
pub fn prune(disk: &dyn Disk, etcd_dir: &Path, keep: usize) -> io::Result<Vec<PathBuf>> {
    removed(disk, etcd_dir, keep, None)
}

/// The same; `newest` is one that is kept.
fn removed(disk: &dyn Disk, etcd_dir: &Path, keep: usize, newest: Option<&Path>) -> io::Result<Vec<PathBuf>> {
    let parent = parent_of(etcd_dir);
    let mut old = asides(etcd_dir)?;
    old.retain(|path| path.join(RETIRED).exists() && newest != Some(path));
    old.truncate((old.len() + usize::from(newest.is_some())).saturating_sub(keep));
    for path in &old {
        disk.rename_durable(path, &going(path))?;
    }
    for entry in std::fs::read_dir(&parent).map_err(|e| at(&parent, e))? {
        let path = entry.map_err(|e| at(&parent, e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(GOING));
        if name.is_some_and(|name| aside_key(etcd_dir, name).is_some()) {
            disk.remove_dir_all(&path)?;
        }
    }
    disk.sync_dir(&parent)?;
    Ok(old)
}

/// Marks a data dir that is being removed.
const GOING: &str = ".removing";

fn going(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(GOING);
    name.into()
}

/// What sorts the names that [`set_aside`] gives by time; `None` for any other name.
fn aside_key(etcd_dir: &Path, name: &str) -> Option<(String, u32)> {
    let prefix = beside(etcd_dir, "");
    parse_suffix(name.strip_prefix(prefix.file_name()?.to_str()?)?)
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
            let aside = home.path().join(format!("etcd.aside-{name}"));
            make(&aside, name);
            std::fs::write(aside.join(RETIRED), "").unwrap();
        }
        // Nobody has gone on without this one.
        make(&home.path().join("etcd.aside-20200823T101500Z-1"), "kept");
        for other in ["etcd.aside-mine", "etcd.aside-20260823T101500Z-1.bak", "etcd2.aside-20260823T101500Z-1", "etcd"]
        {
            make(&home.path().join(other), other);
        }
        let removed = prune(&RealDisk, &dir, 2).unwrap();
        let gone = ["etcd.aside-20250823T101500Z-1", "etcd.aside-20260823T101500Z-2"];
        assert_eq!(removed, gone.map(|name| home.path().join(name)));
        assert_eq!(asides(&dir).unwrap().len(), 3);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 7);
        assert!(prune(&RealDisk, &dir, KEEP).unwrap().is_empty());
    }

    #[test]
    fn what_was_just_retired_is_kept_although_the_clock_was_set_back() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("etcd");
        let retired = [9, 8, 7, 1].map(|second| {
            make(&dir, "data");
            retire(&RealDisk, &dir, UNIX_EPOCH + Duration::from_secs(second)).unwrap().unwrap()
        });
        assert_eq!(asides(&dir).unwrap(), [&retired[3], &retired[1], &retired[0]].map(Clone::clone));
    }

    #[test]
    fn retiring_keeps_the_newest_few_and_finishes_what_was_begun() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("etcd");
        for n in 0..6 {
            make(&dir, &n.to_string());
            let kept = retire(&RealDisk, &dir, UNIX_EPOCH + Duration::from_secs(n)).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), n.to_string());
        }
        let left = asides(&dir).unwrap();
        let content: Vec<_> = left.iter().map(|dir| std::fs::read_to_string(dir.join("file")).unwrap()).collect();
        assert_eq!(content, ["3", "4", "5"]);
        // One that was put back into use is set aside as any other, and stays.
        RealDisk.rename(&left[2], &dir).unwrap();
        let again = set_aside(&RealDisk, &dir, UNIX_EPOCH).unwrap().unwrap();
        assert!(!again.join(RETIRED).exists());
        RealDisk.rename(&again, &left[2]).unwrap();
        // Killed amid a removal: half of a data dir is left, and not taken for a whole one.
        make(&home.path().join("etcd.aside-20200101T000000Z-1.removing"), "half");
        make(&home.path().join("etcd.aside-mine.removing"), "not ours");
        assert_eq!(asides(&dir).unwrap(), left);
        assert_eq!(retire(&RealDisk, &dir, UNIX_EPOCH).unwrap(), None);
        assert!(!home.path().join("etcd.aside-20200101T000000Z-1.removing").exists());
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), KEEP + 1);
    }
}
