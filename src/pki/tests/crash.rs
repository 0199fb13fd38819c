//! A run that is killed at any operation on the disk leaves files with which the next run goes on.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::{Disk, DiskFile};

/// Fails every operation from the given one on, as if the process had been killed before it. A file that is being
/// written then is left with half of its bytes.
struct Killed {
    left: AtomicUsize,
}

impl Killed {
    fn step(&self) -> io::Result<()> {
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("killed")),
        }
    }
}

struct KilledFile<'a> {
    disk: &'a Killed,
    file: Box<dyn DiskFile>,
}

impl DiskFile for KilledFile<'_> {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(e) = self.disk.step() {
            self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(e);
        }
        self.file.write_at(bytes, offset)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.disk.step().and_then(|()| self.file.sync())
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.disk.step().and_then(|()| self.file.truncate(length))
    }
}

/// What [`KilledFile`] borrows from lives as long as the program.
struct Leaked(&'static Killed);

impl Disk for Leaked {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        self.0.step()?;
        Ok(Box::new(KilledFile { disk: self.0, file: RealDisk.create(path, mode)? }))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.step().and_then(|()| RealDisk.open(path))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.step().and_then(|()| RealDisk.create_dir(path))
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.step().and_then(|()| RealDisk.link(from, to))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.step().and_then(|()| RealDisk.rename(from, to))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.step().and_then(|()| RealDisk.remove_file(path))
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.step().and_then(|()| RealDisk.remove_dir_all(path))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.step().and_then(|()| RealDisk.sync_dir(path))
    }
}

/// Runs with a kill before operation 0, 1, 2 ... until a run passes, each time followed by a whole run.
/// `prepare` makes the directory; whole files that the killed run left must be in what the whole run leaves.
fn killed_everywhere(now: OffsetDateTime, prepare: impl Fn() -> Dir) -> usize {
    for step in 0..10_000 {
        let dir = prepare();
        let killed: &'static Killed = Box::leak(Box::new(Killed { left: AtomicUsize::new(step) }));
        if ensure_input(&dir.input, &Leaked(killed), now, Mode::Ensure).is_ok() {
            return step;
        }
        let keys = |dir: &Dir| -> BTreeMap<PathBuf, Vec<u8>> {
            let all = dir.contents();
            all.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "key")).collect()
        };
        let left = keys(&dir);
        let (_, refusals) = dir.run(now, Mode::Ensure);
        assert_eq!(refusals, [], "killed before operation {step}");
        let (pki, refusals) = dir.run(now, Mode::Check);
        assert_eq!(refusals, [], "killed before operation {step}");
        let foreign: Vec<_> = pki.reports.iter().filter(|report| !report.ours || report.state != State::Good).collect();
        assert!(foreign.is_empty(), "killed before operation {step}: {foreign:?}");
        let keys = keys(&dir);
        for (path, bytes) in left {
            assert_eq!(keys.get(&path), Some(&bytes), "killed before operation {step}: {}", path.display());
        }
    }
    panic!("no run passed");
}

#[test]
fn a_first_run_that_is_killed_converges() {
    let steps = killed_everywhere(start(), || Dir::new(Distro::K3s));
    assert!(steps > 40, "{steps} operations");
}

#[test]
fn a_first_run_with_a_lasting_copy_that_is_killed_converges() {
    killed_everywhere(start(), || {
        let mut dir = Dir::new(Distro::None);
        dir.input.lasting_dir = Some(dir.temp.path().join("data/pki"));
        dir
    });
}

#[test]
fn a_renewal_that_is_killed_converges_and_everything_stays_ours() {
    let steps = killed_everywhere(start() + days(300), || Dir::complete(Distro::K3s));
    assert!(steps > 10, "{steps} operations");
}
