//! The one home of fsync and rename.
//!
//! Everything that must survive a crash is written through [`Disk`], so that a test can cut or fail the disk at any
//! operation. The order that makes a file durable: write under a temporary name, sync the file, rename over the final
//! name, sync the directory. A failed sync is an error and never retried: after it, what the kernel holds is unknown.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file being written. Writes are positioned, so that a header can be written after what it describes.
pub trait DiskFile: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file off at `length`.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Starts writing back what was written without waiting for it; a hint that keeps the last sync short.
    fn start_writeback(&mut self, _offset: u64, _len: u64) {}
    /// Reserves space up to `length` and makes the file that long, with zeros; a hint that may do nothing.
    fn preallocate(&mut self, _length: u64) {}
}

/// What we do to directories and files that must survive a crash.
pub trait Disk: Send + Sync {
    /// Creates a new file (it must not exist) with the given permission bits.
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a directory (0700) and its parents where missing.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames within one filesystem. Durable only after [`Disk::sync_dir`] of the parent.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

impl dyn Disk + '_ {
    /// Replaces `path` by `bytes`, atomically and durably.
    pub fn write_durable(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let temporary = temporary_beside(path);
        self.forget_file(&temporary)?;
        let mut file = self.create(&temporary, mode)?;
        file.write_at(bytes, 0).map_err(|e| at(&temporary, e))?;
        file.sync().map_err(|e| at(&temporary, e))?;
        drop(file);
        self.rename_durable(&temporary, path)
    }

    /// Removes a file. That there is none is no error.
    pub fn forget_file(&self, path: &Path) -> io::Result<()> {
        gone(self.remove_file(path))
    }

    /// Removes a directory and all in it. That there is none is no error.
    pub fn forget_dir(&self, path: &Path) -> io::Result<()> {
        gone(self.remove_dir_all(path))
    }

    /// Renames and syncs the directories concerned.
    pub fn rename_durable(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename(from, to)?;
        let (old, new) = (parent_of(from), parent_of(to));
        self.sync_dir(&new)?;
        if old != new {
            self.sync_dir(&old)?;
        }
        Ok(())
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The real filesystem.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile {
    file: File,
    path: PathBuf,
}

impl DiskFile for RealFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| at(&self.path, e))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.sync_all().map_err(|e| at(&self.path, e))
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length).map_err(|e| at(&self.path, e))
    }

    fn start_writeback(&mut self, offset: u64, len: u64) {
        use std::os::fd::AsRawFd;
        // SAFETY: sync_file_range takes no pointers and the descriptor is open for as long as `self.file` lives. Its
        // result is not needed: it is a hint, and `sync` reports every write error.
        unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    fn preallocate(&mut self, length: u64) {
        // A filesystem without it writes the same bytes a little slower.
        let _ = nix::fcntl::fallocate(&self.file, nix::fcntl::FallocateFlags::empty(), 0, length as i64);
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| at(path, e))?;
        Ok(Box::new(RealFile { file, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).open(path).map_err(|e| at(path, e))?;
        Ok(Box::new(RealFile { file, path: path.to_owned() }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| at(path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[expect(clippy::disallowed_methods, reason = "this is the one home")]
        fs::rename(from, to).map_err(|e| at(from, e))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path).map_err(|e| at(path, e))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path).map_err(|e| at(path, e))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| at(path, e))
    }
}

/// The directory that holds `path`, `.` for a bare name.
pub fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The name under which a new content of `path` is written before the rename.
pub fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Names the path in an I/O error and keeps its kind.
pub fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
