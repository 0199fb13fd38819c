//! What a pod moves at its boot: the chart's deployed etcd, and its own store back into SQLite.

use std::cell::Cell;

use super::*;
use crate::migrate::back::live_of;
use crate::migrate_from::switch::Writers;
use crate::migrate_from::{Deployed, ended, from, moved};
use crate::reset::pods::copy_tree;
use crate::support::kine_db::Live;
use crate::support::pod::{Dump, TestPod, child_running};
use crate::support::poll;

/// `migrateFromEtcd`: after a kill the source takes writes again with the next start, or the pod has everything and the
/// source takes none.
struct FromEtcd {
    source: Deployed,
    url: String,
    looked: Cell<u32>,
}

impl FromEtcd {
    /// Started without the setting, which is what lifts a fence and moves nothing.
    fn settle(&self, pod: &mut TestPod, what: &str) {
        if pod.data().join("etcd").exists() {
            pod.start("none", &[]);
            pod.wait_serving();
            assert_eq!(moved(pod), self.source.everything(), "{what}");
            assert!(!self.source.takes_writes(), "{what}: it takes writes that are lost");
            pod.kill9();
            // By hand, so that the next one can be moved.
            self.source.one().ctl(&["alarm", "disarm"]);
        } else if pod.data().join("migration.fence").exists() {
            let (code, log) = ended(pod, &[]);
            assert_eq!(code, Some(4), "{what}: {log}");
        }
        assert_eq!(self.source.one().ctl(&["alarm", "list"]).trim(), "", "{what}: alarms are left");
        assert!(self.source.takes_writes(), "{what}: it takes no writes");
    }
}

impl Journey for FromEtcd {
    type Place = TestPod;

    fn name(&self) -> String {
        "migrateFromEtcd".to_owned()
    }

    fn fresh(&self) -> TestPod {
        TestPod::new()
    }

    fn attempt(&self, pod: &TestPod) -> Command {
        pod.command("none", &[&self.url])
    }

    fn may_end(&self, _: ExitStatus) -> bool {
        false
    }

    fn left(&self, pod: &mut TestPod, what: &str) -> bool {
        if pod.data().join("etcd").exists() {
            return true;
        }
        // Not each time, so that some kills come while the fence of the one before is lifted.
        self.looked.set(self.looked.get() + 1);
        if self.looked.get() % 2 == 1 {
            self.settle(pod, what);
        }
        false
    }

    fn end(&self, pod: &mut TestPod, what: &str) -> Duration {
        let begun = Instant::now();
        if !pod.data().join("etcd").exists() {
            pod.start("none", &[&self.url]);
            pod.wait_serving();
            pod.kill9();
        }
        let took = begun.elapsed();
        self.settle(pod, what);
        took
    }
}

#[test]
fn a_move_from_a_deployed_etcd_converges() {
    let source = Deployed::start("3.6", 1, None);
    source.fill(300);
    // Whatever it acknowledges between a fence that is lifted and the next is in what is moved in the end.
    let writer = Writers::start(&source, 1);
    let url = from(&source.url());
    killed(&FromEtcd { source, url, looked: Cell::new(0) }, 40);
    let (written, refused) = writer.finish();
    assert!(!written.is_empty() && refused > 0, "{} writes, {refused} refused", written.len());
}

/// `migrateBack`: the data dir is whole under its name, or the `state.db` is.
struct Back {
    volume: TestPod,
    want: Dump,
}

const BACK: &str = "embeddedEtcd:\n  enabled: false\n  migrateBack: true\n";

impl Back {
    fn check(&self, pod: &TestPod, what: &str) {
        let want: Live = self.want.keys.iter().map(|k| (k.0.clone(), (k.1.clone(), k.2, k.3, 0))).collect();
        let (found, revision) = live_of(&pod.data().join("state.db"));
        assert!(found == want && revision == self.want.revision, "{what}: another store");
    }
}

impl Journey for Back {
    type Place = TestPod;

    fn name(&self) -> String {
        "migrateBack".to_owned()
    }

    fn fresh(&self) -> TestPod {
        let pod = TestPod::new();
        copy_tree(&self.volume.data(), &pod.data());
        pod.values(BACK);
        pod
    }

    fn attempt(&self, pod: &TestPod) -> Command {
        pod.command("none", &["--", "/bin/sleep", "600"])
    }

    fn may_end(&self, _: ExitStatus) -> bool {
        false
    }

    fn left(&self, pod: &mut TestPod, what: &str) -> bool {
        let committed = !pod.data().join("etcd").exists();
        if committed {
            self.check(pod, what);
        }
        committed
    }

    fn end(&self, pod: &mut TestPod, what: &str) -> Duration {
        let begun = Instant::now();
        pod.start("none", &["--", "/bin/sleep", "600"]);
        poll(&format!("{what}: the command runs on SQLite"), UNDISTURBED, || {
            pod.assert_running();
            child_running(pod.pid(), "sleep").map(|_| ())
        });
        let took = begun.elapsed();
        pod.kill9();
        assert!(!pod.data().join("etcd").exists(), "{what}: {}", pod.log());
        self.check(pod, what);
        took
    }
}

#[test]
fn the_way_back_converges() {
    let mut volume = TestPod::new();
    volume.start("none", &[]);
    volume.wait_serving();
    volume.etcd(async |mut client| {
        for n in 0..500 {
            client.put(format!("/registry/configmaps/{:03}", n % 300), vec![b'v'; 1000], None).await.expect("put");
        }
    });
    let want = volume.dump();
    // Killed, so that etcd's log is ahead of its backend.
    volume.kill_everything();
    killed(&Back { volume, want }, 16);
}
