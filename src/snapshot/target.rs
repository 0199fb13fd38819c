//! Where snapshots are kept. A snapshot gets its name only when it is whole: until then nobody lists it, and what a killed
//! save leaves is removed by the next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use super::name::SnapshotName;
use crate::disk::{Disk, DiskFile, at};

/// The end of the name of a snapshot that is being written.
const PARTIAL: &str = ".part";

/// A place for snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Target {
    /// A directory, made when it is missing.
    Directory(PathBuf),
}

/// A snapshot that is kept somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Its name.
    pub name: SnapshotName,
    /// Its length in bytes.
    pub bytes: u64,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some((scheme, _)) => {
                Err(format!("{scheme}:// is no place for snapshots that is known here: name a directory"))
            }
            None if text.is_empty() => Err("no place is named".to_owned()),
            None => Ok(Target::Directory(text.into())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Directory(dir) => write!(f, "{}", dir.display()),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

impl Target {
    /// The snapshots that are there, oldest first, those of each cluster together. None where there is no directory.
    pub fn list(&self) -> io::Result<Vec<Stored>> {
        let Target::Directory(dir) = self;
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(at(dir, e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| at(dir, e))?;
            let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match entry.metadata() {
                Ok(meta) if meta.is_file() => found.push(Stored { name, bytes: meta.len() }),
                // Another pod has just removed it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => {}
                Err(e) => return Err(at(&entry.path(), e)),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The file of a snapshot.
    pub fn file(&self, name: &SnapshotName) -> PathBuf {
        let Target::Directory(dir) = self;
        dir.join(name.to_string())
    }

    /// Removes a snapshot. One that is gone already is no error.
    pub fn remove(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<()> {
        disk.forget_file(&self.file(name))
    }

    /// Begins a snapshot. One of the same name is an error of kind `AlreadyExists`.
    pub fn begin(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<Upload> {
        let Target::Directory(dir) = self;
        if !dir.is_dir() {
            disk.create_dir(dir)?;
        }
        let place = self.file(name);
        if place.symlink_metadata().is_ok() {
            return Err(at(&place, io::ErrorKind::AlreadyExists.into()));
        }
        self.forget_partial(disk, name)?;
        let partial = partial_of(&place);
        let file = disk.create(&partial, 0o600)?;
        Ok(Upload { partial, place, file, bytes: 0 })
    }

    /// Removes what killed saves of the same cluster left: only one save of a cluster goes on at a time, and an older one
    /// that still does fails at its end, without having harmed anything.
    fn forget_partial(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<()> {
        let Target::Directory(dir) = self;
        for entry in std::fs::read_dir(dir).map_err(|e| at(dir, e))? {
            let file = entry.map_err(|e| at(dir, e))?.file_name();
            let of = file.to_str().and_then(|file| file.strip_suffix(PARTIAL)).and_then(|name| name.parse().ok());
            if of.is_some_and(|of: SnapshotName| of.cluster() == name.cluster()) {
                disk.forget_file(&dir.join(file))?;
            }
        }
        Ok(())
    }
}

fn partial_of(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}

/// A snapshot that is being written.
pub struct Upload {
    partial: PathBuf,
    place: PathBuf,
    file: Box<dyn DiskFile>,
    bytes: u64,
}

/// Between two hints to write back.
const WRITE_BACK: u64 = 16 << 20;

impl Upload {
    /// Writes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.bytes)?;
        let before = self.bytes / WRITE_BACK;
        self.bytes += bytes.len() as u64;
        if self.bytes / WRITE_BACK > before {
            self.file.start_writeback(before * WRITE_BACK, WRITE_BACK);
        }
        Ok(())
    }

    /// The file before it has its name.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Makes what was written durable. It still does not have its name.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    /// Gives the snapshot its name, durably.
    pub fn commit(self, disk: &dyn Disk) -> io::Result<()> {
        disk.rename_durable(&self.partial, &self.place)
    }

    /// Removes what was written.
    pub fn abort(self, disk: &dyn Disk) -> io::Result<()> {
        disk.remove_file(&self.partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn name(text: &str) -> SnapshotName {
        text.parse().unwrap_or_else(|()| panic!("{text}"))
    }

    #[test]
    fn a_snapshot_is_there_when_it_is_whole_and_not_before() {
        let home = tempfile::tempdir().unwrap();
        let target = Target::Directory(home.path().join("a/b"));
        assert_eq!(target.list().unwrap(), []);
        let name = name("vc-20261124T060000Z.db");
        let mut upload = target.begin(&RealDisk, &name).unwrap();
        upload.write(b"12345").unwrap();
        upload.write(b"678").unwrap();
        upload.sync().unwrap();
        assert_eq!(target.list().unwrap(), []);
        upload.commit(&RealDisk).unwrap();
        assert_eq!(target.list().unwrap(), [Stored { name: name.clone(), bytes: 8 }]);
        assert_eq!(std::fs::read(target.file(&name)).unwrap(), b"12345678");
        let again = target.begin(&RealDisk, &name).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        target.remove(&RealDisk, &name).unwrap();
        target.remove(&RealDisk, &name).unwrap();
        assert_eq!(target.list().unwrap(), []);
    }

    #[test]
    fn what_a_killed_save_left_is_removed_by_the_next_of_the_same_cluster() {
        let home = tempfile::tempdir().unwrap();
        let target = Target::Directory(home.path().to_owned());
        for left in ["vc-20261124T060000Z.db.part", "other-20261124T060000Z.db.part", "vc-notes.part", "x.db"] {
            std::fs::write(home.path().join(left), "x").unwrap();
        }
        target.begin(&RealDisk, &name("vc-20261125T060000Z.db")).unwrap().abort(&RealDisk).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-20261124T060000Z.db.part", "vc-notes.part", "x.db"]);
        assert_eq!(target.list().unwrap(), []);
    }

    #[test]
    fn places_are_parsed() {
        assert_eq!("/backups".parse(), Ok(Target::Directory("/backups".into())));
        assert!("".parse::<Target>().is_err());
        assert!("ftp://x".parse::<Target>().unwrap_err().contains("ftp://"));
    }
}
