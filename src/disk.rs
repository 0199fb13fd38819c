//! The one home of fsync and rename.
//!
//! Everything that must survive a crash is written through [`Disk`], so that a test can cut or fail the disk at any
//! operation. The order that makes a file durable: write under a temporary name, sync the file, rename over the final
//! name, sync the directory. A failed sync is an error and never retried: after it, what the kernel holds is unknown.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

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
    /// Gives a file a second name within its filesystem; an error of kind `AlreadyExists` if that is taken. Durable as a rename is.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
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

    /// Makes a directory durable, with all files and directories in it.
    pub fn sync_tree(&self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path).map_err(|e| at(path, e))? {
            let entry = entry.map_err(|e| at(path, e))?;
            let kind = entry.file_type().map_err(|e| at(&entry.path(), e))?;
            if kind.is_dir() {
                self.sync_tree(&entry.path())?;
            } else if kind.is_file() {
                self.open(&entry.path())?.sync()?;
            }
        }
        self.sync_dir(path)
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
    writeback: Writeback,
}

impl RealFile {
    fn boxed(file: File, path: &Path) -> Box<dyn DiskFile> {
        Box::new(RealFile { file, path: path.to_owned(), writeback: Writeback::default() })
    }
}

/// Hints to the kernel, given on a thread of their own: each waits for the disk while its queue is full, and whoever writes
/// has better things to do.
#[derive(Default)]
struct Writeback {
    thread: Option<SyncSender<Range<u64>>>,
    /// What the thread has not been told yet.
    due: Range<u64>,
}

impl Writeback {
    fn start(&mut self, file: &File, range: Range<u64>) {
        self.due = match self.due.is_empty() {
            true => range,
            false => self.due.start.min(range.start)..self.due.end.max(range.end),
        };
        if self.thread.is_none() {
            self.thread = Self::spawn(file).ok();
        }
        // While it is busy with the last range, this one waits for the next.
        if self.thread.as_ref().is_some_and(|thread| thread.try_send(self.due.clone()).is_ok()) {
            self.due = 0..0;
        }
    }

    fn spawn(file: &File) -> io::Result<SyncSender<Range<u64>>> {
        let file = file.try_clone()?;
        let (tell, told) = sync_channel::<Range<u64>>(0);
        let run = move || {
            for range in told {
                // SAFETY: sync_file_range takes no pointers and the descriptor is open for as long as `file` lives. Its
                // result is not needed: it is a hint, and `sync` reports every write error.
                unsafe {
                    let length = (range.end - range.start) as i64;
                    libc::sync_file_range(file.as_raw_fd(), range.start as i64, length, libc::SYNC_FILE_RANGE_WRITE);
                }
            }
        };
        thread::Builder::new().name("writeback".to_owned()).spawn(run)?;
        Ok(tell)
    }
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
        self.writeback.start(&self.file, offset..offset + len);
    }

    fn preallocate(&mut self, length: u64) {
        // A filesystem without it writes the same bytes a little slower.
        let _ = nix::fcntl::fallocate(&self.file, nix::fcntl::FallocateFlags::empty(), 0, length as i64);
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| at(path, e))?;
        Ok(RealFile::boxed(file, path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).open(path).map_err(|e| at(path, e))?;
        Ok(RealFile::boxed(file, path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| at(path, e))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to).map_err(|e| at(to, e))
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

/// A disk that makes nothing durable: whoever writes to it has to, by `sync_tree`, before anything rests on what was written.
pub struct Unsynced<'d>(pub &'d dyn Disk);

struct UnsyncedFile(Box<dyn DiskFile>);

impl DiskFile for UnsyncedFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }

    fn start_writeback(&mut self, offset: u64, len: u64) {
        self.0.start_writeback(offset, len);
    }

    fn preallocate(&mut self, length: u64) {
        self.0.preallocate(length);
    }
}

impl Disk for Unsynced<'_> {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(UnsyncedFile(self.0.create(path, mode)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(UnsyncedFile(self.0.open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir_all(path)
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
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
