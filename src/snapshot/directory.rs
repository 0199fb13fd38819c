//! Snapshots in a directory. A snapshot gets its name only when it is whole: until then nobody lists it, and what a killed
//! save leaves is removed by the next. Whoever writes one has its file locked (`flock`), so that several may at a time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::name::SnapshotName;
use super::target::Stored;
use crate::disk::{Disk, DiskFile, at};
use crate::scratch::{held, left_behind, lockable};

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

    /// This name, or the next that is not taken.
    pub fn free(&self, name: &SnapshotName) -> SnapshotName {
        let mut name = name.clone();
        while self.file(&name).symlink_metadata().is_ok() {
            name = name.later();
        }
        name
    }

    /// Begins a snapshot that is to be `name`, or the next that is not taken.
    pub fn begin(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<Upload> {
        let Directory(dir) = self;
        if !dir.is_dir() {
            disk.create_dir(dir)?;
        }
        self.forget_partial(disk, name)?;
        loop {
            let partial = dir.join(format!("{name}.{:016x}{PARTIAL}", rand::random::<u64>()));
            let file = disk.create(&partial, 0o600)?;
            let lock = lockable(&partial).map_err(|e| at(&partial, e))?;
            // One that found it before it was locked took it for a killed one's.
            if held(&lock).map_err(|e| at(&partial, e))? {
                return Ok(Upload { dir: self.clone(), name: name.clone(), partial, file, bytes: 0, _lock: lock });
            }
        }
    }

    /// Removes what killed saves of the same cluster left.
    fn forget_partial(&self, disk: &dyn Disk, name: &SnapshotName) -> io::Result<()> {
        let Directory(dir) = self;
        for entry in std::fs::read_dir(dir).map_err(|e| at(dir, e))? {
            let entry = entry.map_err(|e| at(dir, e))?;
            let partial = entry.file_name().to_str().and_then(name_of_partial);
            if partial.is_none_or(|partial| partial.cluster() != name.cluster()) {
                continue;
            }
            let path = entry.path();
            match entry.file_type().and_then(|kind| kind.is_file().then(|| left_behind(&path)).transpose()) {
                Ok(Some(Some(_locked))) => disk.forget_file(&path)?,
                Ok(Some(None) | None) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(at(&path, e)),
            }
        }
        Ok(())
    }
}

/// Of `NAME.RANDOM.part`, and of `NAME.part`, as earlier releases had it.
fn name_of_partial(file: &str) -> Option<SnapshotName> {
    let stem = file.strip_suffix(PARTIAL)?;
    stem.parse().ok().or_else(|| stem.rsplit_once('.')?.0.parse().ok())
}

/// A snapshot that is being written.
pub struct Upload {
    dir: Directory,
    name: SnapshotName,
    partial: PathBuf,
    file: Box<dyn DiskFile>,
    bytes: u64,
    _lock: File,
}

/// Between two hints to write back.
const WRITE_BACK: u64 = 16 << 20;

impl Upload {
    /// Writes the next bytes. True now and then, when it is time to look whether there is room for more.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.file.write_at(bytes, self.bytes)?;
        let before = self.bytes / WRITE_BACK;
        self.bytes += bytes.len() as u64;
        let further = self.bytes / WRITE_BACK > before;
        if further {
            self.file.start_writeback(before * WRITE_BACK, WRITE_BACK);
        }
        Ok(further)
    }

    /// The directory that it is in.
    pub fn directory(&self) -> &Path {
        &self.dir.0
    }

    /// The file before it has its name.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Makes what was written durable. It still does not have its name.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    /// Gives the snapshot its name, durably: that which it was begun with, or the next that is not taken.
    pub fn commit(mut self, disk: &dyn Disk) -> io::Result<SnapshotName> {
        loop {
            let place = self.dir.file(&self.name);
            match disk.link(&self.partial, &place) {
                Ok(()) => {
                    disk.sync_dir(&self.dir.0)?;
                    // Should it stay, it is one more name of the same file, until the next save.
                    let _ = disk.remove_file(&self.partial);
                    return Ok(self.name);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.name = self.name.later(),
                // No filesystem has to know second names.
                Err(_) if place.symlink_metadata().is_ok() => self.name = self.name.later(),
                Err(_) => {
                    disk.rename_durable(&self.partial, &place)?;
                    return Ok(self.name);
                }
            }
        }
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
        // Two more of the same second, at once.
        let both = [(); 2].map(|()| place.begin(&RealDisk, &name).unwrap());
        let names = both.map(|upload| upload.commit(&RealDisk).unwrap());
        assert_eq!(names, [name.later(), name.later().later()]);
        assert_eq!(std::fs::read_dir(&place.0).unwrap().count(), 3);
        names.iter().for_each(|name| place.remove(&RealDisk, name).unwrap());
        place.remove(&RealDisk, &name).unwrap();
        place.remove(&RealDisk, &name).unwrap();
        assert_eq!(place.list().unwrap(), []);
    }

    #[test]
    fn what_a_killed_save_left_is_removed_by_the_next_of_the_same_cluster() {
        let home = tempfile::tempdir().unwrap();
        let place = Directory(home.path().to_owned());
        let killed = ["vc-20261124T060000Z.db.part", "vc-20261124T060000Z.db.0123456789abcdef.part"];
        for left in killed.into_iter().chain(["other-20261124T060000Z.db.part", "vc-notes.part", "x.db"]) {
            std::fs::write(home.path().join(left), "x").unwrap();
        }
        let writing = place.begin(&RealDisk, &name("vc-20261125T060000Z.db")).unwrap();
        place.begin(&RealDisk, &name("vc-20261126T060000Z.db")).unwrap().abort(&RealDisk).unwrap();
        assert!(writing.path().exists(), "what is being written was taken for what a killed save left");
        writing.abort(&RealDisk).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-20261124T060000Z.db.part", "vc-notes.part", "x.db"]);
        assert_eq!(place.list().unwrap(), []);
    }
}
