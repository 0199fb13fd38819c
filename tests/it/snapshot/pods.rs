//! Three pods with one schedule and one place: each time that is due yields one snapshot, by the pod beside the etcd leader.

use super::*;
use crate::scaling::{Access, CHANGE, runtime};
use crate::statefulset_box::protocol::{Policy, Program, Status};
use crate::support::statefulset::TestBox;

/// A box whose pods are told of a schedule by their values.
struct Scene {
    set: TestBox,
    place: PathBuf,
    keep: u32,
}

impl Scene {
    /// All pods see this change, and look at what is due.
    fn told_anew(&mut self) {
        self.keep += 1;
        let values = format!(
            "pro: true\nembeddedEtcd:\n  enabled: true\n  snapshots:\n    schedule: '@yearly'\n    keep: {}\n    target: {}\nsyncer:\n  \
             replicas: 3\n",
            self.keep,
            self.place.display()
        );
        let (file, new) = (self.set.dir().join("values.yaml"), self.set.dir().join("values.new"));
        std::fs::write(&new, values).expect("write the values");
        syncer::disk::Disk::rename(&syncer::disk::RealDisk, &new, &file).expect("replace the values");
    }

    fn status(&self) -> Status {
        self.set.status().expect("a status")
    }

    /// The pod beside the etcd leader.
    fn leader(&self) -> u32 {
        let leads = |ordinal: &u32| {
            let access = Access::of(&self.set, *ordinal);
            let told = runtime().block_on(async {
                let status = access.connect().await?.status().await.ok()?;
                Some(status.leader() == status.header()?.member_id())
            });
            told == Some(true)
        };
        poll("a leader", CHANGE, || (0..3).find(&leads))
    }

    /// Sends a signal to the syncer of a pod, not to its etcd.
    fn signal(&self, ordinal: u32, signal: Signal) {
        let pid = self.status().pods[&ordinal].pid.expect("it runs");
        kill(Pid::from_raw(pid), signal).expect("send a signal");
    }

    /// How often a pod has said this.
    fn said(&self, ordinal: u32, words: &str) -> usize {
        self.set.log(&format!("vc-{ordinal}")).matches(words).count()
    }

    /// Tells all of them anew, and waits until these have said once more that nothing is due, or that another takes it.
    fn looked(&mut self, ordinals: &[u32], words: &str) {
        let before: Vec<_> = ordinals.iter().map(|ordinal| self.said(*ordinal, words)).collect();
        self.told_anew();
        for (ordinal, before) in ordinals.iter().zip(before) {
            poll(&format!("pod {ordinal}: {words}"), CHANGE, || (self.said(*ordinal, words) > before).then_some(()));
        }
    }

    /// The snapshots that are kept, besides those of a year that is over; nothing else is there.
    fn kept(&self) -> Vec<PathBuf> {
        let mut kept = files(&self.place);
        assert!(kept.iter().all(|file| text(file).contains("/team-a.vc-2")), "{kept:?}");
        kept.retain(|file| !text(file).contains("-2024") && text(file).ends_with(".db"));
        kept
    }

    /// Waits for one snapshot, and makes sure that no pod takes another.
    fn one_is_kept(&mut self) -> PathBuf {
        poll("a snapshot is kept", CHANGE, || (!self.kept().is_empty()).then_some(()));
        self.looked(&[0, 1, 2], NOT_DUE);
        let mut kept = self.kept();
        assert_eq!(kept.len(), 1, "{kept:?}");
        json(&ran(&mut snapshot(&["verify", text(&kept[0]), "-o", "json"])));
        kept.remove(0)
    }
}

const NOT_DUE: &str = "no snapshot is due";
const ANOTHERS: &str = "a snapshot is due: the pod beside the etcd leader takes it";

#[test]
fn of_three_pods_the_leaders_takes_each_snapshot_that_is_due_and_takes_it_once() {
    let set = TestBox::syncer_with(3, Policy::Parallel, |config| {
        if let Program::Syncer { args, .. } = &mut config.program {
            args.push("--log-level=debug".to_owned());
        }
    });
    if !set.has_namespaces() {
        return;
    }
    set.wait("three pods", CHANGE, |s| s.settled && s.pods.len() == 3).expect("three pods");
    let place = set.dir().join("kept");
    let mut scene = Scene { set, place, keep: 3 };

    // The leader's pod says nothing while the others look: they leave it to that one.
    let leader = scene.leader();
    let others: Vec<_> = (0..3).filter(|ordinal| *ordinal != leader).collect();
    scene.signal(leader, Signal::SIGSTOP);
    scene.looked(&others, ANOTHERS);
    assert!(files(&scene.place).is_empty(), "another than the leader's pod has taken one");
    scene.signal(leader, Signal::SIGCONT);
    let first = scene.one_is_kept();
    assert_eq!(scene.said(leader, "snapshot kept"), 1);

    // Due once more, and the pod that would take it is killed.
    let old = first.with_file_name("team-a.vc-20240102T000000Z.db");
    scene.signal(leader, Signal::SIGSTOP);
    syncer::disk::Disk::rename(&syncer::disk::RealDisk, &first, &old).expect("make it an old one");
    scene.looked(&others, ANOTHERS);
    assert!(scene.kept().is_empty(), "another than the leader's pod has taken one");
    let before = scene.status().pods[&leader].incarnation;
    scene.set.kill9(leader).expect("kill");
    poll("another leader", CHANGE, || Some(scene.leader()).filter(|next| *next != leader));
    scene.told_anew();
    poll("the new leader's pod takes it", CHANGE, || (!scene.kept().is_empty()).then_some(()));
    let back = |s: &Status| s.settled && s.pods.get(&leader).is_some_and(|pod| pod.incarnation > before);
    scene.set.wait("the killed pod is back", CHANGE, back).expect("the killed pod is back");
    let second = scene.one_is_kept();
    assert!(old.exists() && second != first);
    assert_eq!((0..3).map(|ordinal| scene.said(ordinal, "snapshot kept")).sum::<usize>(), 2);
}
