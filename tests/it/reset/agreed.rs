//! What is lost without a fence: the leader has removed one of three voters, and has agreed with that one alone, by the
//! three, on what came right behind the removal. The other has the removal, knows that it is committed, and has nothing
//! of the rest.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use syncer::datadir::{InspectedDatadir, UsableDatadir, inspect};
use syncer::ids::RaftIndex;
use syncer::reset::Permission;

use super::pods::{copy_of, keys_of, log_of, reset_member, start_alone};
use crate::datadir::read::version;
use crate::statefulset_box::forward::relay;
use crate::support::etcd::{Etcd, EtcdSpec, PATIENCE, connect, run};
use crate::support::{free_port, poll};

for_each_line! {
    two_that_were_three_a_moment_ago_lack_what_was_acknowledged => check,
}

/// The leader keeps its place for so long without hearing of the others.
const PATIENT: [&str; 3] = ["--heartbeat-interval=100", "--election-timeout=5000", "--strict-reconfig-check=false"];
/// On a busy machine a try may come too late: etcd connects anew where it hears nothing for 5 s.
const TRIES: usize = 4;

/// What a member says to those who have connected to its peer port, on the way to them. Members receive on the connections
/// that they have made themselves: entries of the log on one, everything else on another (`rafthttp/stream.go`).
#[derive(Clone, Default)]
struct Way {
    connections: Arc<AtomicUsize>,
    /// On so many of the first connections nothing comes through.
    entries_held: Arc<AtomicUsize>,
    rest_held: Arc<AtomicUsize>,
}

impl Way {
    /// It leads to this port; gives the one at which it begins.
    fn open(&self, to: u16) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let way = self.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (way, number) = (way.clone(), way.connections.fetch_add(1, Ordering::SeqCst));
                std::thread::spawn(move || {
                    let held = if asks_for_entries(&client) { way.entries_held } else { way.rest_held };
                    let wait = |_| {
                        while number < held.load(Ordering::SeqCst) {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    };
                    let _ = relay(client, SocketAddr::from((Ipv4Addr::LOCALHOST, to)), wait);
                });
            }
        });
        port
    }

    /// Holds everything from now on, or nothing any more.
    fn hold(&self, all: bool) {
        let held = if all { usize::MAX } else { 0 };
        self.entries_held.store(held, Ordering::SeqCst);
        self.rest_held.store(held, Ordering::SeqCst);
    }

    /// Holds entries for those who are connected now.
    fn hold_entries(&self) {
        self.entries_held.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

fn asks_for_entries(client: &TcpStream) -> bool {
    let mut head = [0; 256];
    let read = client.peek(&mut head).unwrap_or_default();
    String::from_utf8_lossy(&head[..read]).contains("/raft/stream/msgapp")
}

fn look(etcd: &Etcd) -> Option<UsableDatadir> {
    // It is written to meanwhile, and may look damaged.
    match inspect(&etcd.spec.data_dir, version(etcd.spec.line)).ok()? {
        InspectedDatadir::Usable(dir) => Some(dir),
        _ => None,
    }
}

fn last(etcd: &Etcd) -> RaftIndex {
    poll("its log", PATIENCE, || Some(look(etcd)?.last().1))
}

fn id_of(etcd: &Etcd) -> u64 {
    run(async { etcd.client().await.status().await.expect("status").header().expect("a header").member_id() })
}

fn put(url: String, key: String) -> JoinHandle<Option<Vec<u8>>> {
    std::thread::spawn(move || {
        run(async {
            let mut client = connect(&url).await;
            client.put(key.clone(), "1", None).await.ok().map(|_| key.into_bytes())
        })
    })
}

/// Three voters, each with a way to its peer port, the leader first.
fn three(line: &'static str, home: &Path) -> (Vec<Etcd>, Vec<Way>) {
    let mut ways: Vec<_> = (0..3).map(|_| Way::default()).collect();
    let mut specs = Vec::new();
    for (n, way) in ways.iter().enumerate() {
        let data_dir = home.join(format!("pod-{n}"));
        std::fs::create_dir(&data_dir).expect("make a pod's directory");
        let listen = free_port();
        let mut spec = EtcdSpec::new(line, &format!("pod-{n}"), &data_dir.join("etcd"));
        spec.peer_port = way.open(listen);
        // The later flag counts.
        spec.flags = PATIENT.map(str::to_owned).into();
        spec.flags.push(format!("--listen-peer-urls=http://127.0.0.1:{listen}"));
        specs.push(spec);
    }
    let all: Vec<_> = specs.iter().map(|spec| format!("{}={}", spec.name, spec.peer_url())).collect();
    specs.iter_mut().for_each(|spec| spec.initial_cluster = Some(all.join(",")));
    let mut members: Vec<_> = specs.iter().map(EtcdSpec::spawn).collect();
    members.iter_mut().for_each(Etcd::wait_until_serving);
    let leader = poll("a leader is known", PATIENCE, || {
        let leader = run(async { Some(members[0].client().await.status().await.ok()?.leader()) })?;
        members.iter().position(|member| id_of(member) == leader)
    });
    members.swap(0, leader);
    ways.swap(0, leader);
    (members, ways)
}

/// What the probe gives within the time. Later a leader that hears from nobody has stepped down, and it never does.
fn within<T>(time: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < time {
        if let Some(found) = probe() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// The survivor, and what was acknowledged behind the removal; `None`: the machine was too slow.
fn removed(line: &'static str, home: &Path) -> Option<(EtcdSpec, BTreeSet<Vec<u8>>)> {
    let (mut members, ways) = three(line, home);
    let (url, gone) = (members[0].spec.client_url(), id_of(&members[2]));
    members[2].kill();
    let before = last(&members[0]);
    // The other hears of the removal, and the leader does not hear that it does.
    ways[1].hold(true);
    let asked = url.clone();
    let removal = std::thread::spawn(move || run(async { connect(&asked).await.member_remove(gone).await.is_ok() }));
    let removed = within(PATIENCE, || {
        look(&members[1])?.wal().changes.iter().map(|change| change.index).find(|index| *index > before)
    })?;
    ways[0].hold_entries();
    let late: Vec<_> = (0..10).map(|n| put(url.clone(), format!("/late/{n}"))).collect();
    within(PATIENCE, || (last(&members[0]).0 >= removed.0 + 10).then_some(()))?;
    // Of all that at once it has the removed one's word, which is still one of three.
    members[2] = members[2].spec.spawn();
    let acknowledged: BTreeSet<_> = late.into_iter().filter_map(|put| put.join().expect("a writer")).collect();
    ways[1].hold(false);
    let knows =
        || run(async { Some(members[1].client().await.member_list().await.ok()?.members().len()) }).filter(|n| *n == 2);
    let told = !acknowledged.is_empty() && removal.join().expect("a removal");
    if told {
        within(PATIENCE, knows)?;
    }
    members[0].kill();
    members[1].stop();
    let (_, log) = log_of(&members[1].spec);
    println!("etcd {line}: removal {removed:?}, {} acknowledged, the log {log:?}", acknowledged.len());
    (told && log.last_index == removed).then(|| (members[1].spec.clone(), acknowledged))
}

/// By the voters that its log names nothing could be missing, and all is. So it is not reset, until a change that changes
/// nothing shows that the leader had counted by two.
fn check(line: &'static str) {
    let tried = (0..TRIES).find_map(|_| {
        let home = tempfile::tempdir().expect("make a directory");
        let (spec, acknowledged) = removed(line, home.path())?;
        Some((home, spec, acknowledged))
    });
    let (_home, spec, acknowledged) = tried.expect("the leader agrees with the removed one on what the other has not");
    let (_, before) = log_of(&spec);
    let voters: Vec<_> = before.memberships.iter().map(|membership| membership.voters.len()).collect();
    assert_eq!(voters, [2], "only what was before the removal is in question: {before:?}");

    // As it is done for who knows that nothing is missing.
    let by_hand = copy_of(&spec, "by-hand");
    reset_member(&by_hand, Permission::StopRecord).expect("reset a copy");
    let kept = keys_of(&start_alone(&by_hand, &before));
    let lost: Vec<_> = acknowledged.difference(&kept).map(|key| String::from_utf8_lossy(key)).collect();
    assert_eq!(lost.len(), acknowledged.len(), "nothing is lost without a fence: is it still needed? {kept:?}");
    println!("etcd {line}: a reset that asks for no fence lost {lost:?}");

    let error = reset_member(&spec, Permission::TwoVoters).expect_err("acknowledged writes are missing");
    assert_eq!(syncer::exit::exit_of(&error).code(), 5, "{error:#}");
}
