//! Snapshots in a directory. A snapshot gets its name only when it is whole: until then nobody lists it, and what a killed
//! save leaves is removed by the next.

use std::io;
use std::path::{Path, PathBuf};

use super::name::SnapshotName;
use super::target::Stored;
use crate::disk::{Disk, DiskFile, at};

/// The end of the name of a snapshot that is being written.
const PARTIAL: &str = ".part";

/// A directory of snapshots, made when it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(pub PathBuf);

impl Directory {
    /// The snapshots that are there, in no order. None where there is no directory.
    pub fn list(&self) -> io::Result<Vec<Stored>> {
        let Directory(dir) = self;
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
        Ok(found)
    }

    /// The file of a snapshot.
    pub fn file(&self, name: &SnapshotName) -> PathBuf {
        self.0.join(name.to_string())
    }

    /// Removes a snapshot. One that is gone already is no error.
    pub fn remove(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<()> {
        disk.forget_file(&self.file(name))
    }

    /// Begins a snapshot. One of the same name is an error of kind `AlreadyExists`.
    pub fn begin(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<Upload> {
        let Directory(dir) = self;
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
        let Directory(dir) = self;
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
        let place = Directory(home.path().join("a/b"));
        assert_eq!(place.list().unwrap(), []);
        let name = name("vc-20261124T060000Z.db");
        let mut upload = place.begin(&RealDisk, &name).unwrap();
        upload.write(b"12345").unwrap();
        upload.write(b"678").unwrap();
        upload.sync().unwrap();
        assert_eq!(place.list().unwrap(), []);
        upload.commit(&RealDisk).unwrap();
        assert_eq!(place.list().unwrap(), [Stored { name: name.clone(), bytes: 8 }]);
        assert_eq!(std::fs::read(place.file(&name)).unwrap(), b"12345678");
        let again = place.begin(&RealDisk, &name).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        place.remove(&RealDisk, &name).unwrap();
        place.remove(&RealDisk, &name).unwrap();
        assert_eq!(place.list().unwrap(), []);
    }

    #[test]
    fn what_a_killed_save_left_is_removed_by_the_next_of_the_same_cluster() {
        let home = tempfile::tempdir().unwrap();
        let place = Directory(home.path().to_owned());
        for left in ["vc-20261124T060000Z.db.part", "other-20261124T060000Z.db.part", "vc-notes.part", "x.db"] {
            std::fs::write(home.path().join(left), "x").unwrap();
        }
        place.begin(&RealDisk, &name("vc-20261125T060000Z.db")).unwrap().abort(&RealDisk).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-20261124T060000Z.db.part", "vc-notes.part", "x.db"]);
        assert_eq!(place.list().unwrap(), []);
    }
}
