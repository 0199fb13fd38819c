//! Pods that are killed within their own comings and goings, at each point between two durable steps. Whoever is left, and they
//! themselves when they are back, end as the right members of one cluster, and no acknowledged write is lost.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use syncer::crash_point::SCALING_CRASH_POINTS;
use syncer::disk::{Disk, RealDisk};
use tempfile::TempDir;

use super::{CHANGE, Scene, etcd_calls_it_healthy};
use crate::statefulset_box::protocol::{Config, Policy};
use crate::support::poll;
use crate::support::statefulset::{TestBox, has_time_to_leave};

/// A point, and whose pod is killed there; `None`: the first that comes by.
pub type Kill = (&'static str, Option<u32>);

/// So many times a way is gone that may lead past a point.
const TRIES: usize = 3;

/// So long a leader that is not the lowest may take to see that it is, and that nothing is written.
const GIVEN_BACK: Duration = Duration::from_secs(20);

/// The kills of a box: a file for each that is still to come.
pub struct Kills {
    folder: TempDir,
    done: BTreeSet<&'static str>,
    count: usize,
}

impl Kills {
    pub fn new() -> Kills {
        let folder = tempfile::tempdir().expect("a folder");
        // Pods take files away.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).expect("open the folder");
        Kills { folder, done: BTreeSet::new(), count: 0 }
    }

    /// Its pods look for them.
    pub fn are_of(&self, config: &mut Config) {
        config.env.insert("SYNCER_CRASH_FILES".to_owned(), self.folder.path().display().to_string());
    }

    /// These are to come next, in whatever order; a pod that is back may meet another.
    pub fn next(&mut self, kills: &[Kill]) {
        for (point, ordinal) in kills {
            let pod = ordinal.map(|ordinal| format!("vc-{ordinal}")).unwrap_or_default();
            // At once under its name: half a name is no pod's.
            let file = self.folder.path().join(point);
            assert!(!file.exists(), "nobody has come to {point} since it was said before");
            self.done.insert(point);
            self.count += 1;
            std::fs::write(file.with_extension("new"), pod).expect("write a file");
            RealDisk.rename(&file.with_extension("new"), &file).expect("rename a file");
        }
    }

    /// Those that have not come yet.
    fn left(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path()).expect("the folder");
        files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect()
    }

    /// Whether all come in this time.
    fn all_come_within(&self, time: Duration) -> bool {
        let began = Instant::now();
        while !self.left().is_empty() {
            if began.elapsed() >= time {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Waits until all have come.
    pub fn come(&self, set: &TestBox) {
        self.come_within(CHANGE, set);
    }

    /// The same, for many.
    pub fn come_within(&self, time: Duration, set: &TestBox) {
        assert!(self.all_come_within(time), "nobody was killed at {:?} in {time:?}", self.left());
        // What has taken a file away and lives on is seen by this.
        let ended = |pod: u32| {
            let log = set.log(&format!("vc-{pod}"));
            log.matches("has ended: exit status: 137").count() + log.matches("has ended: signal: 9").count()
        };
        poll(&format!("pods' processes were killed {} times", self.count), CHANGE, || {
            ((0..3).map(ended).sum::<usize>() >= self.count).then_some(())
        });
    }

    /// All of a list have come.
    pub fn were_all(&self, points: &[&'static str]) {
        let missed: Vec<_> = points.iter().filter(|point| !self.done.contains(*point)).collect();
        assert!(missed.is_empty(), "no step of this test leads to {missed:?}");
    }
}

impl Scene {
    /// Scales, by ways that lead pods to their ends, and waits until all rest.
    fn scale_by(&mut self, kills: &mut Kills, replicas: u32, next: &[Kill]) {
        kills.next(next);
        self.set.scale(replicas).expect("scale");
        kills.come(&self.set);
        self.scaled(replicas);
    }

    /// From three pods down by such ways, and back up by others.
    fn down_and_up_by(&mut self, kills: &mut Kills, replicas: u32, down: &[Kill], up: &[Kill]) {
        etcd_calls_it_healthy();
        self.scale_by(kills, replicas, down);
        self.scale_by(kills, 3, up);
    }
}

#[test]
fn a_kill_within_any_step_loses_no_write_and_no_member() {
    let mut kills = Kills::new();
    let set = TestBox::syncer_with(0, Policy::Parallel, |config| {
        kills.are_of(config);
        // No kill of these would be to blame.
        has_time_to_leave(config);
    });
    let seed = Some(0);
    kills.next(&[("form-noted", seed), ("form-built", seed), ("form-in-place", seed), ("form-done", seed)]);
    set.scale(1).expect("scale");
    let mut scene = Scene::of(1, set);
    kills.come(&scene.set);

    // A data dir that was another's before.
    kills.next(&[("lead-before-url", None), ("lead-url-set", None)]);
    let member = format!("{:x}", scene.voters().first().expect("its member"));
    scene.set.etcdctl(0, &["member", "update", &member, "--peer-urls=https://elsewhere.example:2380"]);
    kills.come(&scene.set);
    scene.rests("its peer URL was another's", 1);
    assert!(scene.set.etcdctl(0, &["member", "list"]).contains("vc-0.vc-headless"));

    let leads = ["lead-before-add", "lead-added", "lead-before-promote", "lead-promoted", "lead-fenced"];
    scene.scale_by(&mut kills, 2, &leads.map(|point| (point, None)));
    let joins = ["join-noted", "join-asked", "join-added", "join-cleared", "start-etcd-spawned"];
    scene.scale_by(&mut kills, 3, &joins.map(|point| (point, Some(2))));

    // What is left of one that was killed before it was removed comes back as a data dir that is no member's any more.
    let comes_back = ["aside-noted", "aside-renamed", "start-etcd-serving"].map(|point| (point, Some(2)));
    scene.down_and_up_by(&mut kills, 1, &[("stop-told", Some(2)), ("stop-etcd-ended", Some(1))], &comes_back);
    scene.down_and_up_by(&mut kills, 1, &[("stop-asked", Some(2)), ("aside-noted", Some(1))], &[("lead-added", None)]);
    etcd_calls_it_healthy();
    scene.led_by(2);
    scene.scale_by(&mut kills, 2, &[("stop-led-on", Some(2)), ("lead-before-remove", None)]);
    scene.scale_by(&mut kills, 3, &[]);

    // The leader that comes next asks a joiner whose etcd runs how far it is, unless that takes it too long to say.
    let lost = ["join-noted", "join-cleared", "start-etcd-applied"].map(|point| (point, Some(1)));
    kills.next(&[&lost[..], &[("lead-removed", None)]].concat());
    for _ in 0..TRIES {
        kills.next(&[("lead-before-promote", None)]);
        scene.replaced(1, "pod 1 lost its volume", |set| set.lose_volume(1).expect("lose the volume"));
        if kills.left().is_empty() {
            break;
        }
    }
    kills.come(&scene.set);

    // Leadership goes back to the lowest where nothing is written.
    scene.writer.stop.store(true, Ordering::Relaxed);
    for point in ["lead-before-move", "lead-moved"] {
        kills.next(&[(point, None)]);
        for _ in 0..TRIES {
            scene.led_by(1);
            // Given back again at once, its etcd would not see that it was given away.
            if kills.all_come_within(GIVEN_BACK) {
                break;
            }
        }
        kills.come(&scene.set);
        scene.rests(point, 3);
    }
    kills.were_all(SCALING_CRASH_POINTS);
    assert!(!scene.writer.finish().is_empty());
}
