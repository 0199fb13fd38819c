//! A PKI directory outside the volume, with its lasting copy.

use std::io;

use super::*;
use crate::disk::{Disk, DiskFile};
use crate::exit::{Exit, exit_of};

fn outside() -> Dir {
    let mut dir = Dir::new(Distro::K8s);
    dir.input.lasting_dir = Some(dir.temp.path().join("data/pki"));
    dir
}

impl Dir {
    fn lasting(&self) -> &Path {
        self.input.lasting_dir.as_deref().unwrap()
    }
}

fn below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let found = contents(dir);
    found.into_iter().map(|(path, bytes)| (path.strip_prefix(dir).unwrap().to_owned(), bytes)).collect()
}

#[test]
fn an_empty_dir_gets_the_same_files_after_each_restart() {
    let dir = outside();
    assert_eq!(dir.ensure(), []);
    let placed = below(&dir.input.pki_dir);
    let mut lasting = below(dir.lasting());
    assert!(lasting.remove(Path::new(layout::RECORD)).is_some());
    assert_eq!((placed.len(), &placed), (25, &lasting));

    fs::remove_dir_all(&dir.input.pki_dir).unwrap();
    assert_eq!(dir.ensure(), []);
    assert_eq!(below(&dir.input.pki_dir), placed, "the service account key must not change");

    fs::remove_file(dir.path("sa.key")).unwrap();
    fs::remove_file(dir.path("etcd/server.crt")).unwrap();
    assert_eq!(dir.ensure(), []);
    assert_eq!(below(&dir.input.pki_dir), placed, "a run that was killed while placing goes on");
}

#[test]
fn a_mounted_directory_wins_and_leaves_the_volume_alone() {
    let dir = outside();
    let mounted = Dir::mounted(Distro::K8s);
    dir.ensure();
    fs::remove_dir_all(&dir.input.pki_dir).unwrap();
    for (path, bytes) in below(&mounted.input.pki_dir) {
        fs::create_dir_all(dir.path("etcd")).unwrap();
        dir.put(path.to_str().unwrap(), bytes);
    }
    let before = dir.contents();
    let (pki, refusals) = dir.run(start(), Mode::Ensure);
    assert_eq!(refusals, []);
    assert!(pki.reports.iter().all(|report| !report.ours));
    assert_eq!(dir.contents(), before);
}

#[test]
fn a_mounted_ca_signs_what_is_missing() {
    let dir = outside();
    let mounted = Dir::mounted(Distro::K8s);
    fs::create_dir_all(dir.path("etcd")).unwrap();
    for file in ["etcd/ca.crt", "etcd/ca.key"] {
        dir.put(file, fs::read(mounted.path(file)).unwrap());
    }
    assert_eq!(dir.ensure(), []);
    assert!(!dir.lasting().join("etcd/ca.key").exists());
    assert!(dir.lasting().join("etcd/server.key").exists());
    assert_eq!(below(&dir.input.pki_dir).len(), 25);
}

#[test]
fn renewal_reaches_both_places() {
    let dir = outside();
    dir.ensure();
    let (pki, refusals) = dir.run(start() + days(300), Mode::Ensure);
    assert_eq!((refusals.len(), pki.renewed().len()), (0, 10));
    let mut lasting = below(dir.lasting());
    lasting.remove(Path::new(layout::RECORD));
    assert_eq!(below(&dir.input.pki_dir), lasting);

    // Killed between the two: the directory has the older one of ours.
    let old = fs::read(dir.path("apiserver.crt")).unwrap();
    let (_, refusals) = dir.run(start() + days(600), Mode::Ensure);
    assert_eq!(refusals, []);
    let new = fs::read(dir.path("apiserver.crt")).unwrap();
    dir.put("apiserver.crt", old);
    assert_eq!(dir.run(start() + days(600), Mode::Ensure).1, []);
    assert_eq!(fs::read(dir.path("apiserver.crt")).unwrap(), new);
}

/// A disk on which one directory is mounted read-only.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn allow(&self, path: &Path) -> io::Result<()> {
        if path.starts_with(&self.0) {
            return Err(crate::disk::at(path, io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        Ok(())
    }
}

impl Disk for ReadOnly {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        self.allow(path).and_then(|()| RealDisk.create(path, mode))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.allow(path).and_then(|()| RealDisk.open(path))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.allow(path).and_then(|()| RealDisk.create_dir(path))
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.allow(to).and_then(|()| RealDisk.link(from, to))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.allow(to).and_then(|()| RealDisk.rename(from, to))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.allow(path).and_then(|()| RealDisk.remove_file(path))
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.allow(path).and_then(|()| RealDisk.remove_dir_all(path))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }
}

#[test]
fn a_read_only_directory_is_used_if_complete_and_refused_if_not() {
    let dir = Dir::mounted(Distro::K8s);
    let disk = ReadOnly(dir.input.pki_dir.clone());
    let (pki, refusals) = ensure_input(&dir.input, &disk, start(), Mode::Ensure).unwrap();
    assert_eq!((refusals.len(), pki.reports.len()), (0, 14));

    fs::remove_file(dir.path("etcd/server.crt")).unwrap();
    let before = dir.contents();
    for lasting in [None, Some(dir.temp.path().join("data/pki"))] {
        let input = Input { lasting_dir: lasting, ..dir.input.clone() };
        let error = ensure_input(&input, &disk, start(), Mode::Ensure).unwrap_err();
        assert_eq!(exit_of(&error), Exit::RefusedPki);
        let text = format!("{error:#}");
        assert!(text.contains("etcd/server.crt is missing") && text.contains("mount a directory"), "{text}");
        assert_eq!(dir.contents(), before);
    }
}
