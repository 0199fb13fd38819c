//! A used-up quota of a real etcd: it repairs itself, or says what fills it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmType, Client, DeleteOptions, GetOptions};

use crate::scaling::{Access, runtime};
use crate::statefulset_box::protocol::{PodStatus, Policy};
use crate::support::pod::TestPod;
use crate::support::poll;
use crate::support::statefulset::{TestBox, can_be_held_back};

/// The next look of a lone syncer, compaction and defragmentation, on a busy machine.
const REPAIR: Duration = Duration::from_secs(120);

const SMALL_QUOTA: &str = "embeddedEtcd:\n  enabled: true\n  quotaBackendBytes: 64Mi\n";

/// Puts until etcd says that there is no space. `key` names the nth key.
async fn fill(mut client: Client, key: impl Fn(u32) -> String) {
    let value = vec![b'x'; 1 << 18];
    for n in 0..800 {
        match client.put(key(n), value.clone(), None).await {
            Ok(_) => {}
            Err(error) if error.to_string().contains("database space exceeded") => return,
            // On a slow disk.
            Err(error) => println!("put: {error}"),
        }
    }
    panic!("200 MiB did not use up a quota of 64 MiB");
}

async fn takes_writes(client: &mut Client) -> bool {
    client.put("/probe", "x", None).await.is_ok()
}

async fn alarms(client: &mut Client) -> usize {
    client.alarm(AlarmAction::Get, AlarmType::None, None).await.map_or(usize::MAX, |answer| answer.alarms().len())
}

fn small_pod() -> TestPod {
    let mut pod = TestPod::new();
    pod.values(SMALL_QUOTA);
    pod.start("none", &[]);
    pod.wait_serving();
    pod
}

#[test]
fn a_store_full_of_old_revisions_takes_writes_again_by_itself() {
    let pod = small_pod();
    let before = pod.etcd(async |mut etcd| {
        for n in 0..20 {
            etcd.put(format!("/registry/configmaps/default/kept-{n}"), "kept", None).await.expect("put");
        }
        fill(etcd.clone(), |_| "/registry/leases/kube-system/busy".to_owned()).await;
        let range = GetOptions::new().with_prefix();
        etcd.get("/registry/configmaps/", Some(range)).await.expect("read").take_kvs()
    });
    poll("writes are taken again", REPAIR, || pod.etcd(async |mut etcd| takes_writes(&mut etcd).await.then_some(())));
    pod.etcd(async |mut etcd| {
        let range = GetOptions::new().with_prefix();
        let after = etcd.get("/registry/configmaps/", Some(range)).await.expect("read").take_kvs();
        assert_eq!(format!("{after:?}"), format!("{before:?}"), "values and revisions are as they were");
        assert_eq!(alarms(&mut etcd).await, 0);
        let status = etcd.status().await.expect("status");
        assert!(status.db_size() < 16 << 20, "{}", status.db_size());
    });
    poll("it says so", REPAIR, || {
        let log = pod.log();
        let said = ["quota is used up", "compacted the store", "defragmented", "what has filled", "no alarm is left"];
        said.iter().all(|words| log.contains(words)).then_some(())
    });
    let log = pod.log();
    let filled = log.lines().find(|line| line.contains("what has filled")).expect("a line");
    assert!(filled.contains("leases ("), "{filled}");
}

#[test]
fn a_store_full_of_objects_says_so_until_there_is_room() {
    let pod = small_pod();
    let full = "objects that are alive fill etcd's quota";
    // What is free in the middle of the file is given back first, as often as it takes.
    for round in 0.. {
        pod.etcd(async |etcd| fill(etcd, |n| format!("/registry/example.com/blobs/default/{round}-{n}")).await);
        let end =
            poll("it says what is the matter, or takes writes again", REPAIR, || match pod.log().contains(full) {
                true => Some(true),
                false => pod.etcd(async |mut etcd| takes_writes(&mut etcd).await.then_some(false)),
            });
        if end {
            break;
        }
        assert!(round < 5, "{}", pod.log());
    }
    let log = poll("and what it is", REPAIR, || Some(pod.log()).filter(|log| log.contains("what has filled")));
    let filled = log.lines().find(|line| line.contains("what has filled")).expect("a line");
    assert!(filled.contains("example.com/blobs ("), "{filled}");
    assert!(log.contains("quotaBackendBytes"), "{log}");
    pod.etcd(async |mut etcd| {
        assert!(!takes_writes(&mut etcd).await);
        assert_eq!(alarms(&mut etcd).await, 1);
        // Room is made by hand.
        let half = DeleteOptions::new().with_range("/registry/example.com/blobs/default/0-5");
        etcd.delete("/registry/example.com/blobs/default/0", Some(half)).await.expect("a deletion is taken");
    });
    poll("writes are taken again", REPAIR, || pod.etcd(async |mut etcd| takes_writes(&mut etcd).await.then_some(())));
}

#[test]
fn a_greater_quota_lets_writes_in_again() {
    let pod = small_pod();
    pod.etcd(async |etcd| fill(etcd, |n| format!("/registry/example.com/blobs/default/{n}")).await);
    pod.values(&SMALL_QUOTA.replace("64Mi", "256Mi"));
    poll("writes are taken again", REPAIR, || pod.etcd(async |mut etcd| takes_writes(&mut etcd).await.then_some(())));
    let count = pod.etcd(async |mut etcd| {
        let range = GetOptions::new().with_prefix().with_count_only();
        etcd.get("/registry/example.com/", Some(range)).await.expect("read").count()
    });
    assert!(count > 160, "{count}");
}

#[test]
fn corruption_is_said_and_never_disarmed() {
    let pod = small_pod();
    pod.etcd(async |mut etcd| {
        etcd.alarm(AlarmAction::Activate, AlarmType::Corrupt, None).await.expect("raise CORRUPT");
        etcd.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.expect("raise NOSPACE");
    });
    poll("it says so", REPAIR, || pod.log().contains("members hold different data (CORRUPT)").then_some(()));
    pod.etcd(async |mut etcd| assert_eq!(alarms(&mut etcd).await, 2));
    assert!(!pod.log().contains("disarmed"));
}

/// One member after the other, the leader last, and not while one is missing; and meanwhile the kubelet ends nobody, although etcd
/// says of itself that it is not healthy.
#[test]
fn three_members_are_repaired_one_after_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let set = TestBox::syncer_with(0, Policy::Parallel, |config| can_be_held_back(config, folder.path()));
    let values = format!("{SMALL_QUOTA}syncer:\n  replicas: 3\n");
    std::fs::write(set.dir().join("values.yaml"), values).expect("write the values");
    set.scale_only(3).expect("scale");
    let voters = || {
        let list = set.etcdctl(0, &["member", "list"]);
        (list.matches("false").count() == 3).then_some(())
    };
    set.settle(REPAIR).expect("three pods");
    poll("three voters", REPAIR, voters);
    // Leadership rests on the lowest.
    let access = Access::of(&set, 0);
    let leads = || {
        runtime().block_on(async {
            let status = access.connect().await?.status().await.ok()?;
            (status.leader() == status.header()?.member_id()).then_some(status.leader())
        })
    };
    let leader = poll("pod 0 leads", REPAIR, leads);
    let before = set.status().expect("a status").pods;
    let hold = folder.path().join("hold-vc-2");
    std::fs::write(&hold, "").expect("hold pod 2 back");
    set.kill9(2).expect("kill");
    runtime().block_on(async {
        let client = access.connect().await.expect("a client");
        fill(client, |_| "/registry/leases/kube-system/busy".to_owned()).await;
    });
    let writes = || {
        runtime().block_on(async {
            match access.connect().await {
                Some(mut etcd) => takes_writes(&mut etcd).await,
                None => false,
            }
        })
    };
    // One that is blocked by its defragmentation is not to be missed where another is missing already.
    poll("nothing is repaired while pod 2 is away", REPAIR, || {
        let log = set.log("vc-0");
        assert!(!log.contains("defragmented a member"), "{}", ours(&set));
        log.contains("members do not answer or lag behind").then_some(())
    });
    std::fs::remove_file(&hold).expect("let pod 2 go on");
    poll("pod 2 is back", REPAIR, || {
        let voters = runtime().block_on(async { Access::of(&set, 2).connect().await?.status().await.ok() });
        voters.map(|_| ())
    });
    let began = Instant::now();
    while !writes() {
        assert!(began.elapsed() < REPAIR, "no writes are taken within {REPAIR:?}:{}", ours(&set));
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = set.status().expect("a status").pods;
    for ordinal in [0, 1] {
        let of =
            |pods: &BTreeMap<u32, PodStatus>| (pods[&ordinal].incarnation, pods[&ordinal].restarts, pods[&ordinal].pid);
        assert_eq!(of(&after), of(&before), "pod {ordinal} was ended while the quota was used up:{}", ours(&set));
    }
    assert_eq!(after[&2].restarts, 0, "pod 2 was ended while the quota was used up:{}", set.log("vc-2"));
    let log = set.log("vc-0");
    let lines = log.lines().filter(|line| line.contains("defragmented a member"));
    let repaired: Vec<String> = lines
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("a line")["of"].as_str().expect("whose").to_owned()
        })
        .collect();
    // Pod 2's, which it was sent when it came back, need not be large.
    let each: std::collections::BTreeSet<_> = repaired.iter().collect();
    assert!(repaired.len() >= 2 && each.len() == repaired.len(), "one after the other, once each: {repaired:?}");
    assert_eq!(repaired.last(), Some(&format!("{leader:x}")), "the leader is the last: {repaired:?}");
}

/// A joiner is sent a store that is larger than the quota that is asked for, which members that start from theirs make room for. Its
/// etcd would refuse everybody's writes with the first that it applies.
#[test]
fn a_joiner_has_room_for_the_store_that_it_is_sent() {
    let set = TestBox::syncer_with(0, Policy::Parallel, |_| {});
    let write = |values: &str| std::fs::write(set.dir().join("values.yaml"), values).expect("write the values");
    write("embeddedEtcd:\n  enabled: true\nsyncer:\n  replicas: 1\n");
    set.scale_only(1).expect("scale");
    set.settle(REPAIR).expect("a pod");
    let access = Access::of(&set, 0);
    let put = |key: String, bytes: usize| {
        runtime().block_on(async {
            let mut client = access.connect().await?;
            client.put(key, vec![b'x'; bytes], None).await.ok()
        })
    };
    for n in 0..320 {
        poll("a large store is written", REPAIR, || put(format!("/registry/secrets/default/s-{n}"), 1 << 18));
    }
    write(&format!("{SMALL_QUOTA}syncer:\n  replicas: 2\n"));
    set.scale_only(2).expect("scale");
    set.settle(REPAIR).expect("two pods");
    poll("two voters", REPAIR, || (set.etcdctl(0, &["member", "list"]).matches("false").count() == 2).then_some(()));
    for n in 0..20 {
        // One may be lost while an etcd is started again for what has changed.
        let taken = poll("a write is taken or refused", REPAIR, || {
            runtime().block_on(async {
                let answer = access.connect().await?.put(format!("/probe-{n}"), "x", None).await;
                match answer {
                    Ok(_) => Some(true),
                    Err(error) => error.to_string().contains("database space exceeded").then_some(false),
                }
            })
        });
        assert!(taken, "a write is refused:{}", ours(&set));
    }
    let alarms = set.etcdctl(1, &["alarm", "list"]);
    assert_eq!(alarms.trim(), "", "{}", ours(&set));
}

/// What the leader's syncer has said.
fn ours(set: &TestBox) -> String {
    let log = set.log("vc-0");
    let lines = log.lines().filter(|line| !line.contains("\"target\":\"etcd\""));
    lines.fold(String::new(), |all, line| all + "\n" + line)
}
