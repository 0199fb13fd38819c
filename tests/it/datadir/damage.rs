//! Damaged copies of small data dirs of real etcd: no panic, and never the IDs of somebody else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use syncer::datadir::bolt::BoltReader;
use syncer::datadir::wal::read_wal;
use syncer::datadir::{InspectedDatadir, UsableDatadir, inspect, log_tail};

use super::read::{usable, version};
use super::store::Store;
use crate::support::etcd::{EtcdSpec, run};

for_each_line! {
    a_damaged_data_dir_is_never_taken_for_another => check_damage,
}

/// Bytes of a backend up to its high-water mark; what follows was never used.
fn pages_end(db: &[u8]) -> usize {
    let meta = *BoltReader::open(db).expect("open the backend").meta();
    usize::try_from(meta.pages * u64::from(meta.page_size)).expect("a small file")
}

/// The files of a data dir with their content; zeros at the end of a WAL segment are left out.
struct Files {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Files {
    fn of(dir: &UsableDatadir) -> Files {
        let mut files = Vec::new();
        for folder in ["member/wal", "member/snap"] {
            for entry in fs::read_dir(dir.path().join(folder)).expect("list the data dir") {
                let path = entry.expect("an entry").path();
                if path.extension().is_some_and(|end| end == "tmp") {
                    continue;
                }
                let mut bytes = fs::read(&path).expect("read a file");
                if path == dir.wal().tail.path {
                    bytes.truncate(dir.wal().tail.offset as usize);
                }
                files.push((path.strip_prefix(dir.path()).expect("a path within").to_owned(), bytes));
            }
        }
        files.sort();
        Files { files }
    }

    fn write(&self, to: &Path) {
        for (name, bytes) in &self.files {
            fs::create_dir_all(to.join(name).parent().expect("a folder")).expect("make a folder");
            fs::write(to.join(name), bytes).expect("write a file");
        }
    }
}

/// Replaces a file's content without emptying it first, which some filesystems take for a wish to sync it.
fn put(path: &Path, bytes: &[u8]) {
    let file = File::options().create(true).truncate(false).write(true).open(path).expect("open a file");
    file.write_all_at(bytes, 0).expect("write a file");
    file.set_len(bytes.len() as u64).expect("set a file's length");
}

fn check_damage(line: &'static str) {
    let home = tempfile::tempdir().expect("make a directory");
    let mut spec = EtcdSpec::new(line, "pod-0", &home.path().join("etcd"));
    spec.flags = vec!["--snapshot-count".into(), "20".into()];
    Store::one_key().write(&spec);
    let mut etcd = spec.start();
    run(async {
        let mut client = etcd.client().await;
        for n in 0..60 {
            client.put(format!("/key/{n}"), vec![n; 90], None).await.expect("put");
        }
    });
    etcd.stop();
    let whole = usable(&spec);
    let files = Files::of(&whole);
    let copy = home.path().join("copy");
    files.write(&copy);
    let same = |what: &str| match inspect(&copy, version(line)).expect("inspect a copy") {
        InspectedDatadir::Usable(dir) => {
            assert_eq!((dir.member(), dir.cluster()), (whole.member(), whole.cluster()), "{what}");
            // What a decision rests on is told as it was, or not at all.
            if let Ok(tail) = log_tail(&dir) {
                assert!(tail.is_alone() && tail.last_index <= whole.last_index(), "{what}: {tail:?}");
            }
            true
        }
        InspectedDatadir::Empty => panic!("{what}: called empty"),
        InspectedDatadir::Damaged(_) | InspectedDatadir::Newer(_) => false,
    };
    assert!(same("the whole copy"), "a copy is as usable as the data dir");

    // Each file cut at every sector, and at every byte where it is small; each file gone.
    let (mut cuts, mut refused) = (0, 0);
    for (name, bytes) in &files.files {
        let step = if bytes.len() > 100_000 { 4096 } else { 173 };
        for length in (0..bytes.len()).step_by(step) {
            put(&copy.join(name), &bytes[..length]);
            let what = format!("{} cut to {length}", name.display());
            cuts += 1;
            let usable = same(&what);
            refused += u32::from(!usable);
            let cut_short = name.ends_with("db") && length < pages_end(bytes);
            assert!(!(usable && cut_short), "{what}: a backend that was cut short is called usable");
        }
        fs::remove_file(copy.join(name)).expect("remove a file");
        if name.ends_with("db") || name.extension().is_some_and(|end| end == "wal") {
            assert!(!same(&format!("{} gone", name.display())));
        }
        put(&copy.join(name), bytes);
    }
    assert!(cuts > 20 && refused > 10, "{refused} of {cuts} cuts refused");

    // Random bytes changed: a log either names its owner or is refused.
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..600 {
        let (name, bytes) = &files.files[random.random_range(0..files.files.len())];
        let mut broken = bytes.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..broken.len());
            broken[at] = random.random();
        }
        put(&copy.join(name), &broken);
        same(&format!("round {round}: {} broken", name.display()));
        put(&copy.join(name), bytes);
    }
    assert!(read_wal(&copy.join("member/wal")).is_ok() && same("the mended copy"));
}
