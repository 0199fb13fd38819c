//! The undo, step by step as docs/migration.md has it: the source goes on, and can be moved again.

use syncer::disk::Disk;

use super::*;
use crate::support::etcd::SOURCES;
use crate::support::repository;

/// What is to be moved away where the volume stays.
const MOVED_AWAY: [&str; 3] = ["etcd", "migration.fence", "migration.journal"];

/// The part of the page from this heading to the next.
fn part_of_page(heading: &str) -> String {
    let page = std::fs::read_to_string(repository("docs/migration.md")).expect("the page");
    let (_, from) = page.split_once(heading).unwrap_or_else(|| panic!("{heading:?} is not on the page"));
    from.split("\n##").next().expect("a part").to_owned()
}

#[test]
fn undone_as_documented_the_source_goes_on_and_is_moved_again() {
    let (by_hand, undo) = (part_of_page("### By hand, should"), part_of_page("how to undo\n"));
    assert!(by_hand.contains("etcd-server.key alarm disarm\n") && undo.contains("lift the fence by hand as above"));
    for name in MOVED_AWAY {
        assert!(undo.contains(&format!("`{name}`")), "{name} is not on the page");
    }
    for line in SOURCES {
        let (mut pod, tls) = pod_with_certificates(Distro::None);
        let mut source = Deployed::start(line, 1, Some(&tls));
        source.fill(100);
        let url = from(&source.url());
        pod.start("none", &[&url]);
        pod.wait_serving();
        let at_the_switch = source.everything();
        pod.etcd(async |mut client| drop(client.put("/lost", "x", None).await.expect("put")));
        assert_eq!(pod.stop().code(), Some(0), "{line}: {}", pod.log());

        // The chart deploys its etcd on the volume that was retained, still fenced.
        let spec = source.members.pop().expect("a member").spec.clone();
        source.members.push(spec.start());
        assert!(!source.takes_writes(), "{line}");
        source.one().ctl(&["alarm", "disarm"]);
        assert_eq!(source.everything(), at_the_switch, "{line}: it is not what was moved");
        assert!(source.takes_writes(), "{line}");
        source.asked(async |mut client| {
            for n in 0..50 {
                client.put(format!("/registry/configmaps/{n:06}"), "after the undo", None).await.expect("put");
            }
        });

        let away = tempfile::tempdir_in(pod.data().parent().expect("a folder")).expect("a folder");
        for name in MOVED_AWAY {
            RealDisk.rename(&pod.data().join(name), &away.path().join(name)).expect(name);
        }
        let want = source.everything();
        pod.start("none", &[&url]);
        pod.wait_serving();
        assert_eq!(moved(&pod), want, "{line}");
        assert!(!source.takes_writes(), "{line}");
        assert_eq!(pod.stop().code(), Some(0), "{line}: {}", pod.log());
    }
}
