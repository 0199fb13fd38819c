//! The PKI directory as a whole: what is refused, what is issued, and that nothing that exists is ever changed.

mod crash;
mod layers;
mod refusals;
mod renewal;
mod shared;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use time::{Duration, OffsetDateTime};

use super::plan::{Input, tests::input};
use super::problem::{Problem, Refusal};
use super::*;
use crate::disk::RealDisk;
use crate::settings::Distro;

/// A directory for one test.
struct Dir {
    temp: tempfile::TempDir,
    input: Input,
}

impl Dir {
    fn new(distro: Distro) -> Dir {
        // In memory where there is such a place: hundreds of runs sync each of their files.
        let memory = Path::new("/dev/shm");
        let temp = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let input = Input { pki_dir: temp.path().join("pki"), ..input(distro) };
        Dir { temp, input }
    }

    /// A directory with everything in it.
    fn complete(distro: Distro) -> Dir {
        let dir = Dir::new(distro);
        assert_eq!(dir.ensure(), []);
        dir
    }

    /// A complete directory of which nothing counts as ours, like a mounted Secret.
    fn mounted(distro: Distro) -> Dir {
        let dir = Dir::complete(distro);
        fs::remove_file(dir.path(layout::RECORD)).unwrap();
        dir
    }

    fn run(&self, now: OffsetDateTime, mode: Mode) -> (Pki, Vec<Refusal>) {
        ensure_input(&self.input, &RealDisk, now, mode).unwrap()
    }

    fn ensure(&self) -> Vec<Refusal> {
        self.run(start(), Mode::Ensure).1
    }

    fn path(&self, file: &str) -> PathBuf {
        self.input.pki_dir.join(file)
    }

    fn put(&self, file: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(file), bytes).unwrap();
    }

    fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        contents(self.temp.path())
    }
}

fn start() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn days(n: i64) -> Duration {
    Duration::days(n)
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_first_run_makes_everything_private_and_a_second_changes_nothing() {
    let dir = Dir::complete(Distro::K8s);
    let made = dir.contents();
    assert_eq!(made.len(), 26, "25 files and the record");
    for path in made.keys() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path), 0o600, "{}", path.display());
        assert_eq!(mode(path.parent().unwrap()), 0o700, "{}", path.display());
    }
    let (pki, refusals) = dir.run(start(), Mode::Check);
    assert_eq!(refusals, []);
    assert_eq!((pki.warnings.as_slice(), pki.peer_skip_san), (&[][..], false));
    assert!(pki.reports.iter().all(|report| report.ours && report.state == State::Good), "{:?}", pki.reports);
    assert_eq!(pki.reports.len(), 14);
    assert_eq!(dir.ensure(), []);
    assert_eq!(dir.contents(), made);
}

#[test]
fn a_check_writes_nothing_and_names_all_that_is_missing() {
    let dir = Dir::new(Distro::K8s);
    let (_, refusals) = dir.run(start(), Mode::Check);
    assert_eq!(refusals.len(), 14, "{refusals:?}");
    assert!(refusals.iter().all(|refusal| refusal.problem == Problem::Missing));
    assert_eq!(dir.contents(), BTreeMap::new());
}

/// Places inside the base64 text of a PEM file, or of the data in a kubeconfig, where any change must be noticed.
fn flip_at(content: &[u8]) -> Vec<usize> {
    let text = std::str::from_utf8(content).unwrap();
    let mut spans: Vec<_> =
        text.match_indices("-data: ").map(|(at, key)| (at + key.len(), at + text[at..].find('\n').unwrap())).collect();
    if spans.is_empty() {
        spans.push((text.find("-----\n").unwrap() + 6, text.rfind("-----END").unwrap()));
    }
    let quarters = spans.iter().flat_map(|(from, to)| (1..4).map(move |quarter| from + (to - from) * quarter / 4));
    quarters.filter(|at| content[*at].is_ascii_alphanumeric()).collect()
}

/// Every file removed, emptied, garbled, cut, exchanged for another of its kind.
#[test]
fn every_mutation_of_a_file_is_refused_or_mended_and_no_file_is_changed() {
    for (dir, exchange) in [(Dir::complete(Distro::K8s), true), (Dir::mounted(Distro::K8s), false)] {
        let good = dir.contents();
        let files: Vec<_> = good.keys().filter(|path| !path.ends_with(layout::RECORD)).cloned().collect();
        for file in &files {
            let original = &good[file];
            let middle = original.len() / 2;
            let mut mutations = vec![
                ("removed".to_owned(), None, false),
                ("emptied".to_owned(), Some(Vec::new()), true),
                ("garbled".to_owned(), Some(vec![0xa5; 700]), true),
                ("cut".to_owned(), Some(original[..middle].to_vec()), true),
            ];
            for at in flip_at(original) {
                let mut flipped = original.clone();
                flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
                mutations.push((format!("flipped at {at}"), Some(flipped), true));
            }
            for other in files.iter().filter(|other| exchange && *other != file) {
                // The two certificates of etcd's members are alike, down to their subject, but not their keys.
                mutations.push((format!("replaced by {}", other.display()), Some(good[other].clone()), true));
            }
            for (what, content, must_refuse) in mutations {
                match content {
                    Some(bytes) => fs::write(file, bytes).unwrap(),
                    None => fs::remove_file(file).unwrap(),
                }
                let before = dir.contents();
                let (pki, refusals) = dir.run(start(), Mode::Ensure);
                let after = dir.contents();
                let case = format!("{} {what}: {refusals:?}", file.display());
                assert!(!must_refuse || !refusals.is_empty(), "{case}");
                if refusals.is_empty() {
                    assert_eq!(dir.run(start(), Mode::Check).1, [], "{case}");
                    // Kubeconfigs of ours that embed a CA certificate that was made again.
                    let renewed: Vec<_> = pki.renewed().into_iter().map(|file| dir.path(file)).collect();
                    let may_change = |path: &PathBuf| path.ends_with(layout::RECORD) || renewed.contains(path);
                    for (path, bytes) in before.iter().filter(|(path, _)| !may_change(path)) {
                        assert!(after.get(path) == Some(bytes), "{case}: {} was changed", path.display());
                    }
                } else {
                    assert!(before == after, "{case}: files were changed");
                    for refusal in &refusals {
                        let text = format!("{} {}: {}", refusal.path.display(), refusal.problem, refusal.remedy());
                        assert!(text.contains(file.to_str().unwrap()) || refusals.len() > 1, "{case}: {text}");
                        assert!(!text.contains("BEGIN") && text.len() < 600, "{text}");
                    }
                }
                for (path, bytes) in good.iter().filter(|(path, bytes)| after.get(*path) != Some(bytes)) {
                    fs::write(path, bytes).unwrap();
                }
                for path in after.keys().filter(|path| !good.contains_key(*path)) {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }
}

#[test]
fn what_can_be_made_again_is_made_again() {
    let mended = |file: &str| {
        let dir = Dir::complete(Distro::K8s);
        fs::remove_file(dir.path(file)).unwrap();
        dir.ensure().is_empty()
    };
    for file in ["etcd/server.crt", "apiserver.crt", "admin.conf", "sa.pub", "ca.crt", "etcd/ca.crt", layout::RECORD] {
        assert!(mended(file), "{file}");
    }
    for file in ["etcd/server.key", "sa.key", "apiserver-etcd-client.key"] {
        assert!(!mended(file), "{file}");
    }
    assert!(mended("ca.key"), "a CA's key is needed only to issue");
}
