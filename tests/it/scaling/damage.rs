//! Damaged data dirs, and one of another cluster: repaired by the others, or refused and left as they are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use syncer::datadir::inspect::SchemaVersion;
use syncer::datadir::wal::read_wal;
use syncer::datadir::{InspectedDatadir, inspect};

use super::{Access, CHANGE, Scene, ask};
use crate::statefulset_box::protocol::Policy;
use crate::support::poll;
use crate::support::statefulset::TestBox;

/// Cuts the log in the middle of what was written.
fn cut_wal(etcd: &Path) {
    let tail = read_wal(&etcd.join("member/wal")).expect("read the WAL").tail;
    File::options().write(true).open(&tail.path).expect("open it").set_len(tail.offset / 2).expect("cut it");
}

fn empty_backend(etcd: &Path) {
    File::create(etcd.join("member/snap/db")).expect("empty the backend");
}

/// Everything but the meta pages.
fn garble_backend(etcd: &Path) {
    let db = File::options().write(true).open(etcd.join("member/snap/db")).expect("open the backend");
    let pages = db.metadata().expect("its size").len() - 8192;
    let noise: Vec<u8> = (0..pages).map(|n| (n * 7 % 251) as u8 | 1).collect();
    db.write_all_at(&noise, 8192).expect("write noise");
}

/// Where in the backend the first key of the writer stands, stale copies of its page among them.
fn first_key(db: &[u8]) -> Vec<usize> {
    let (prefix, len) = (b"/written/", b"/written/00000000".len());
    let starts = db.windows(prefix.len()).enumerate().filter(|(_, w)| w == prefix).map(|(at, _)| at);
    let keys: Vec<_> = starts.filter_map(|at| Some((db.get(at..at + len)?, at))).collect();
    let first = keys.iter().map(|(key, _)| *key).min().expect("a key is in the backend");
    keys.iter().filter(|(key, _)| *key == first).map(|(_, at)| *at).collect()
}

/// A page of the keys' bucket, which nothing reads before etcd builds its index.
fn garble_keys(etcd: &Path) {
    let file = etcd.join("member/snap/db");
    let mut db = fs::read(&file).expect("read the backend");
    for at in first_key(&db) {
        let page = at / 4096 * 4096;
        db[page..page + 4096].fill(0x5a);
    }
    fs::write(&file, db).expect("write the backend");
}

/// Values that are none, in pages that are whole.
fn garble_values(etcd: &Path) {
    let file = etcd.join("member/snap/db");
    let mut db = fs::read(&file).expect("read the backend");
    for at in first_key(&db) {
        // The tag and the length before the key: no field has this tag.
        db[at - 2] = 0x0f;
    }
    fs::write(&file, db).expect("write the backend");
}

type Damage = fn(&Path);
/// What an inspection does not see, with what etcd then says.
const ETCD_ALONE_SEES: [(Damage, &str); 2] =
    [(garble_keys, "Page expected to be"), (garble_values, "failed to unmarshal mvccpb.KeyValue")];

fn passes_inspection(etcd: &Path) {
    let found = inspect(etcd, SchemaVersion { major: 3, minor: 7 }).expect("look at the data dir");
    assert!(matches!(found, InspectedDatadir::Usable(_)), "{found:?}");
}

/// All pods are stopped and one data dir damaged: in order, those above the pod with the damage come only if it lets them.
#[test]
fn damage_that_only_etcd_sees_is_replaced_too() {
    let mut scene = Scene::begin(Policy::OrderedReady);
    poll("several hundred writes", CHANGE, || (scene.writer.acknowledged().len() > 300).then_some(()));
    for (pod, (damage, said)) in (0..).zip(ETCD_ALONE_SEES) {
        scene.set.scale_only(0).expect("stop the pods");
        scene.set.wait("no pods", CHANGE, |s| s.settled && s.pods.is_empty()).expect("they stop");
        let etcd = scene.set.volume(&format!("vc-{pod}")).join("etcd");
        damage(&etcd);
        passes_inspection(&etcd);
        scene.set.scale_only(3).expect("start the pods");
        let settled = scene.set.wait("three pods", CHANGE, |s| s.settled && s.pods.len() == 3);
        settled.unwrap_or_else(|error| panic!("{error:#}"));
        scene.rests(&format!("pod {pod} had a damaged data dir"), 3);
        let log = scene.set.log(&format!("vc-{pod}"));
        assert!(log.contains(said) && log.contains("DamagedReplaced") && log.contains("set aside"));
    }
    assert!(!scene.writer.finish().is_empty());
}

/// Nobody has what is lost: it is refused with what to do, and the data dir stays where it is.
#[test]
fn damage_that_only_etcd_sees_is_refused_where_there_is_nobody_else() {
    for (damage, said) in ETCD_ALONE_SEES {
        let scene = Scene::of(1, TestBox::syncer(1, Policy::Parallel));
        // More than a page of them: an inspection looks at the last one.
        poll("several hundred writes", CHANGE, || (scene.writer.acknowledged().len() > 300).then_some(()));
        assert!(!scene.writer.finish().is_empty());
        let (set, name) = (scene.set, "vc-0");
        set.scale_only(0).expect("stop the pod");
        set.until("it has stopped", |s| s.settled && s.pods.is_empty());
        let etcd = set.volume(name).join("etcd");
        damage(&etcd);
        passes_inspection(&etcd);
        set.scale_only(1).expect("start the pod");
        let refused = |log: &str| log.contains(said) && log.contains("restore a snapshot");
        poll("it says what to do", CHANGE, || refused(&set.log(name)).then_some(()));
        set.until("it has ended", |s| s.pods[&0].restarts > 0);
        passes_inspection(&etcd);
    }
}

/// In order: a pod that waits with a damaged data dir must let those above it come, for they have the quorum.
#[test]
fn a_damaged_data_dir_of_one_of_three_is_replaced_without_loss() {
    let mut scene = Scene::begin(Policy::OrderedReady);
    let damages: [(u32, Damage); 3] = [(1, cut_wal), (2, empty_backend), (0, garble_backend)];
    for (pod, damage) in damages {
        // The values say three all the while: the pods only stop.
        scene.set.scale_only(0).expect("stop the pods");
        scene.set.wait("no pods", CHANGE, |s| s.settled && s.pods.is_empty()).expect("they stop");
        damage(&scene.set.volume(&format!("vc-{pod}")).join("etcd"));
        scene.set.scale_only(3).expect("start the pods");
        let settled = scene.set.wait("three pods", CHANGE, |s| s.settled && s.pods.len() == 3);
        settled.unwrap_or_else(|error| panic!("{error:#}"));
        scene.rests(&format!("pod {pod} had a damaged data dir"), 3);
        let log = scene.set.log(&format!("vc-{pod}"));
        assert!(log.contains("DamagedReplaced") && log.contains("set aside"));
        let kept = fs::read_dir(scene.set.volume(&format!("vc-{pod}"))).expect("the volume");
        let kept = kept.filter_map(Result::ok).filter(|f| f.file_name().to_string_lossy().starts_with("etcd."));
        assert!(kept.count() > 0, "it is kept");
    }
    assert!(!scene.writer.finish().is_empty());
}

/// Every file below `dir` with its content.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            let content = fs::read(&path).expect("read");
            all.push((path, content));
        }
    }
    all.sort();
    all
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for (path, content) in contents(from) {
        let target = to.join(path.strip_prefix(from).expect("below it"));
        fs::create_dir_all(target.parent().expect("a parent")).expect("make a folder");
        fs::write(target, content).expect("write");
    }
}

#[test]
fn a_data_dir_of_another_cluster_is_refused_and_nothing_is_changed() {
    let set = TestBox::syncer(1, Policy::Parallel);
    let other = TestBox::syncer(1, Policy::Parallel);
    let cluster_of = |set: &TestBox| {
        set.settled();
        poll("its cluster", CHANGE, || ask(&Access::of(set, 0))).cluster
    };
    let (mine, theirs) = (cluster_of(&set), cluster_of(&other));
    assert_ne!(mine, theirs);
    other.scale_only(0).expect("stop it");
    other.until("it has stopped", |s| s.settled && s.pods.is_empty());
    let dir = set.volume("vc-1").join("etcd");
    copy(&other.volume("vc-0").join("etcd"), &dir);
    let before = contents(&dir);

    set.scale(2).expect("scale");
    let refusal = format!("two unrelated clusters: {theirs:x} and {mine:x}");
    poll(&refusal, CHANGE, || set.log("vc-1").contains(&refusal).then_some(()));
    assert!(set.log("vc-1").contains("delete the volumes of the one that is not to be kept"), "the remedy");
    assert!(contents(&dir) == before, "nothing was changed");
    let said = poll("pod 0 serves on", CHANGE, || ask(&Access::of(&set, 0)));
    assert_eq!((said.cluster, said.voters.len(), said.learners), (mine, 1, 0));
}
