//! Reads and writes the PKI directory, and its lasting copy where the directory itself may be lost.
//!
//! A file of the directory (mounted, perhaps) wins over the lasting copy, unless it is one of ours that the lasting
//! copy has renewed since. New files are written to the lasting copy and then placed into the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::layout::{RECORD, RelPath};
use super::problem::{Problem, Refusal, refused};
use super::record::Record;
use crate::disk::{Disk, parent_of};

/// The largest file that is read; a CA bundle of 64 certificates has a few hundred KiB.
const MAX_BYTES: u64 = 1 << 20;

/// A file's content and where it was found.
#[derive(Clone, Debug)]
pub enum Content {
    /// It is not there.
    Absent,
    /// It is there and cannot be read.
    Bad(Problem),
    /// It was read.
    Read(ReadFile),
}

/// A file that was read.
#[derive(Clone)]
pub struct ReadFile {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Whether we issued it.
    pub ours: bool,
    /// Whether its group or others can read it.
    pub exposed: bool,
    /// Whether the PKI directory has this content, or lacks it or has an older one.
    pub in_place: bool,
    path: PathBuf,
}

impl std::fmt::Debug for ReadFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes may be a private key.
        write!(f, "ReadFile({}, {} bytes)", self.path.display(), self.bytes.len())
    }
}

/// A new content of a file.
pub struct NewFile {
    /// Which file.
    pub file: RelPath,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Whether it is a private key by itself: keys are durable before anything that is made from them, so that a run
    /// that is killed goes on with the same key.
    pub key: bool,
}

/// The directories.
#[derive(Clone, Debug)]
pub struct Store {
    live: PathBuf,
    lasting: Option<PathBuf>,
}

impl Store {
    /// The PKI directory `live`, with a lasting copy if it may be lost.
    pub fn new(live: &Path, lasting: Option<&Path>) -> Store {
        Store { live: live.to_owned(), lasting: lasting.map(Path::to_owned) }
    }

    /// Where a file is for its readers.
    pub fn path(&self, file: RelPath) -> PathBuf {
        self.live.join(file)
    }

    /// Where new files are written first.
    fn home(&self) -> &Path {
        self.lasting.as_deref().unwrap_or(&self.live)
    }

    /// The record of what we issued. One that is damaged counts as empty and is told as a warning.
    pub fn record(&self) -> (Record, Option<String>) {
        let path = self.home().join(RECORD);
        let read = match read_file(&path) {
            Content::Absent => return (Record::default(), None),
            Content::Bad(problem) => Err(problem.to_string()),
            Content::Read(file) => Record::from_json(&file.bytes),
        };
        match read {
            Ok(record) => (record, None),
            Err(why) => (
                Record::default(),
                Some(format!("{} is damaged ({why}): no certificate counts as ours or is renewed", path.display())),
            ),
        }
    }

    /// Reads the given files.
    pub fn read(&self, files: impl IntoIterator<Item = RelPath>, record: &Record) -> BTreeMap<RelPath, Content> {
        files.into_iter().map(|file| (file, self.read_one(file, record))).collect()
    }

    fn read_one(&self, file: RelPath, record: &Record) -> Content {
        let mark = |content, in_place| match content {
            Content::Read(read) => Content::Read(ReadFile { ours: record.issued(file, &read.bytes), in_place, ..read }),
            other => other,
        };
        let live = read_file(&self.live.join(file));
        let Some(lasting) = &self.lasting else { return mark(live, true) };
        match (mark(live, true), read_file(&lasting.join(file))) {
            (Content::Absent, lasting) => mark(lasting, false),
            (Content::Read(live), Content::Read(lasting)) if live.ours && live.bytes != lasting.bytes => {
                mark(Content::Read(lasting), false)
            }
            (live, _) => live,
        }
    }

    /// Writes new files, keys first, then the record, then the rest; then places what the PKI directory lacks.
    /// `contents` is what [`Store::read`] gave. Nothing is written if there is nothing to write.
    pub fn write(
        &self,
        disk: &dyn Disk,
        record: &Record,
        contents: &BTreeMap<RelPath, Content>,
        new: &[NewFile],
    ) -> anyhow::Result<()> {
        let place = self.to_place(contents, new);
        self.prove_writable(disk, new, &place)?;
        if !new.is_empty() {
            let home = self.home();
            for file in new.iter().filter(|f| f.key) {
                write(disk, home, file.file, &file.bytes)?;
            }
            let bytes = record.to_json();
            if fs::read(home.join(RECORD)).ok().as_deref() != Some(&bytes) {
                write(disk, home, RECORD, &bytes)?;
            }
            for file in new.iter().filter(|f| !f.key) {
                write(disk, home, file.file, &file.bytes)?;
            }
        }
        for (file, bytes) in place {
            write(disk, &self.live, file, bytes)?;
        }
        Ok(())
    }

    /// What the PKI directory lacks once the new files are written, keys first.
    fn to_place<'a>(&self, contents: &'a BTreeMap<RelPath, Content>, new: &'a [NewFile]) -> Vec<(RelPath, &'a [u8])> {
        if self.lasting.is_none() {
            return Vec::new();
        }
        let written: BTreeSet<_> = new.iter().map(|f| f.file).collect();
        let mut place: Vec<_> = contents
            .iter()
            .filter_map(|(file, content)| match content {
                Content::Read(read) if !read.in_place && !written.contains(file) => Some((*file, &read.bytes[..])),
                _ => None,
            })
            .chain(new.iter().map(|f| (f.file, &f.bytes[..])))
            .collect();
        place.sort_by_key(|(file, _)| !file.ends_with(".key"));
        place
    }

    /// Refuses before anything is written if a directory that lacks files cannot take them.
    fn prove_writable(&self, disk: &dyn Disk, new: &[NewFile], place: &[(RelPath, &[u8])]) -> anyhow::Result<()> {
        let home: Vec<_> = new.iter().map(|f| f.file).collect();
        let live: Vec<_> = place.iter().map(|(file, _)| *file).collect();
        for (dir, files) in [(self.live.as_path(), live), (self.home(), home)] {
            let Some(first) = files.first() else { continue };
            let probe = dir.join(".syncer-writable");
            let tried = make_dir(disk, dir).and_then(|()| match disk.create(&probe, 0o600) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
                _ => disk.remove_file(&probe),
            });
            match tried {
                Err(e) if matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => {
                    let others = match files.len() {
                        1 => String::new(),
                        _ => format!(" (missing are {})", files.join(", ")),
                    };
                    let problem = Problem::ReadOnly(format!("{e}{others}"));
                    return Err(refused(&[Refusal::new(&dir.join(first), problem)]));
                }
                other => other.with_context(|| format!("write to the PKI directory {}", dir.display()))?,
            }
        }
        Ok(())
    }
}

fn write(disk: &dyn Disk, dir: &Path, file: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(file);
    make_dir(disk, &parent_of(&path))
        .and_then(|()| disk.write_durable(&path, bytes, 0o600))
        .with_context(|| format!("write {}", path.display()))
}

/// Makes a directory (0700) and its name durable.
fn make_dir(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = parent_of(dir);
    if parent != dir {
        make_dir(disk, &parent)?;
    }
    disk.create_dir(dir)?;
    disk.sync_dir(&parent)
}

fn read_file(path: &Path) -> Content {
    match try_read(path) {
        Ok(Some(read)) => Content::Read(read),
        Ok(None) => Content::Absent,
        Err(why) => Content::Bad(Problem::Unreadable(why)),
    }
}

fn try_read(path: &Path) -> Result<Option<ReadFile>, String> {
    // A link to nothing is not an absent file: writing there would replace the link.
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
        Ok(_) => {}
    }
    let metadata = fs::metadata(path).map_err(|e| e.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let exposed = metadata.permissions().mode() & 0o077 != 0;
    Ok(Some(ReadFile { bytes, ours: false, exposed, in_place: true, path: path.to_owned() }))
}
