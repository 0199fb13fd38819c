//! A client on each pod while that runs, which reads and writes through the pod's own etcd the few keys that all of them share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp,
    TxnOpResponse, WatchOptions,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{self, Act, Answer, Change, Operation, Stands};
use super::{Access, CHANGE, TRY, runtime};
use crate::support::poll;
use crate::support::statefulset::TestBox;

const KEYS: usize = 5;
const PREFIX: &str = "/shared/";
/// Between two operations of one client.
const PACE: Duration = Duration::from_millis(25);
/// Between two looks whether its pod is there.
const AGAIN: Duration = Duration::from_millis(500);

/// Clients at work.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Operation>>>,
}

impl Clients {
    /// Of the pods `0..pods`, whether they are there yet or not.
    pub fn start(set: &TestBox, pods: u32) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let work = |ordinal| {
            let (access, stop) = (Access::of(set, ordinal), Arc::clone(&stop));
            std::thread::spawn(move || runtime().block_on(work(ordinal, &access, &stop)))
        };
        let threads = (0..pods).map(work).collect();
        Clients { stop, threads }
    }

    /// Ends them, and compares what they were told with what each of the pods `0..pods` has kept.
    pub fn finish(self, set: &TestBox, pods: u32) {
        self.stop.store(true, Ordering::Relaxed);
        let each: Vec<_> = self.threads.into_iter().map(|thread| thread.join().expect("a client ends")).collect();
        for (ordinal, told) in each.iter().enumerate() {
            assert!(told.iter().any(|o| o.answer.is_some()), "the client of pod {ordinal} was never told anything");
        }
        let mut history = each.concat();
        let kinds: BTreeSet<_> = history.iter().filter_map(kind).collect();
        assert_eq!(kinds.len(), 6, "not each kind of operation was acknowledged: {kinds:?}");
        for pod in 0..pods {
            let access = Access::of(set, pod);
            let last = poll(&format!("pod {pod}: all keys are read, and a last one is written"), CHANGE, || {
                runtime().block_on(at_last(pod, &access, &mut history))
            });
            let kept = poll(&format!("pod {pod}: its changes"), CHANGE, || runtime().block_on(kept(&access, last)));
            let wrong = history::wrong(&history, &kept);
            let (operations, changes) = (history.len(), kept.len());
            assert!(
                wrong.is_empty(),
                "{} of {operations} operations do not fit the {changes} changes that pod {pod} has kept: {:#?}",
                wrong.len(),
                &wrong[..wrong.len().min(10)]
            );
        }
    }
}

/// What was asked for, and whether it has written.
fn kind(operation: &Operation) -> Option<(&'static str, bool)> {
    let name = match operation.act {
        Act::Put(_) => "put",
        Act::Swap { .. } => "swap",
        Act::Delete => "delete",
        Act::Read => "read",
    };
    Some((name, operation.answer.as_ref()?.wrote))
}

fn key(n: usize) -> String {
    format!("{PREFIX}{n}")
}

async fn work(pod: u32, access: &Access, stop: &AtomicBool) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(pod.into());
    // The revision at which each key was last modified, as far as this client knows: others may know better.
    let (mut told, mut seen) = (Vec::new(), [0; KEYS]);
    let over = || stop.load(Ordering::Relaxed);
    while !over() {
        // Nothing is written to a pod that is not there, or the outcome of most writes would be unknown.
        let Some(mut client) = there(access).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        while !over() {
            let n = random.random_range(0..KEYS);
            let value = format!("{pod}-{}", told.len());
            let act = match random.random_range(0..10) {
                0..2 => Act::Put(value),
                2..5 => Act::Swap { from: seen[n], to: value },
                5 => Act::Delete,
                _ => Act::Read,
            };
            let operation = asked(&mut client, pod, key(n), act).await;
            let answer = operation.answer.clone();
            told.push(operation);
            let Some(answer) = answer else { break };
            seen[n] = match &told[told.len() - 1].act {
                Act::Put(_) | Act::Swap { .. } if answer.wrote => answer.revision,
                Act::Delete => 0,
                _ => answer.stood.map_or(0, |stood| stood.modified),
            };
            tokio::time::sleep(PACE).await;
        }
    }
    told
}

/// A client of a pod whose etcd serves.
async fn there(access: &Access) -> Option<Client> {
    let mut client = access.connect().await?;
    let look = client.get(PREFIX, Some(GetOptions::new().with_count_only()));
    tokio::time::timeout(TRY, look).await.ok()?.ok()?;
    Some(client)
}

/// Does it, and notes when it began and what it was told.
async fn asked(client: &mut Client, pod: u32, key: String, act: Act) -> Operation {
    let began = Instant::now();
    let told = tokio::time::timeout(TRY, answered(client, &key, &act)).await.ok().flatten();
    let at = Instant::now();
    let answer = told.map(|(revision, wrote, stood)| Answer { at, revision, wrote, stood });
    Operation { client: pod, key, act, began, answer }
}

async fn answered(client: &mut Client, key: &str, act: &Act) -> Option<(i64, bool, Option<Stands>)> {
    let revision = |header: Option<&ResponseHeader>| header.map(ResponseHeader::revision);
    let with_previous = || Some(PutOptions::new().with_prev_key());
    Some(match act {
        Act::Put(value) => {
            let told = client.put(key, value.as_str(), with_previous()).await.ok()?;
            (revision(told.header())?, true, told.prev_key().map(stands))
        }
        Act::Delete => {
            let told = client.delete(key, Some(DeleteOptions::new().with_prev_key())).await.ok()?;
            (revision(told.header())?, told.deleted() > 0, told.prev_kvs().first().map(stands))
        }
        Act::Read => {
            let told = client.get(key, None).await.ok()?;
            (revision(told.header())?, false, told.kvs().first().map(stands))
        }
        Act::Swap { from, to } => {
            let txn = Txn::new()
                .when([Compare::mod_revision(key, CompareOp::Equal, *from)])
                .and_then([TxnOp::put(key, to.as_str(), with_previous())])
                .or_else([TxnOp::get(key, None)]);
            let told = client.txn(txn).await.ok()?;
            let stood = match told.op_responses().first()? {
                TxnOpResponse::Put(put) => put.prev_key().map(stands),
                TxnOpResponse::Get(get) => get.kvs().first().map(stands),
                other => panic!("an answer to another question: {other:?}"),
            };
            (revision(told.header())?, told.succeeded(), stood)
        }
    })
}

fn stands(kv: &KeyValue) -> Stands {
    let value = String::from_utf8_lossy(kv.value()).into_owned();
    Stands { value, modified: kv.mod_revision(), version: kv.version() }
}

/// Reads each key, then writes one more: the revision of that write, up to which everything in the history is. What nobody was told
/// of may still take effect later.
async fn at_last(pod: u32, access: &Access, history: &mut Vec<Operation>) -> Option<i64> {
    let mut client = there(access).await?;
    for n in 0..KEYS {
        history.push(asked(&mut client, pod, key(n), Act::Read).await);
        history.last()?.answer.as_ref()?;
    }
    let value = format!("last-{pod}-{}", history.len());
    history.push(asked(&mut client, pod, format!("{PREFIX}last"), Act::Put(value)).await);
    Some(history.last()?.answer.as_ref()?.revision)
}

/// All changes of the keys up to this revision, as a pod's etcd has them.
async fn kept(access: &Access, last: i64) -> Option<Vec<Change>> {
    let mut client = access.connect().await?;
    let from_the_first = WatchOptions::new().with_prefix().with_start_revision(1);
    let mut stream = client.watch(PREFIX, Some(from_the_first)).await.ok()?;
    let mut kept = Vec::new();
    loop {
        let told = tokio::time::timeout(TRY, stream.message()).await.ok()?.ok()??;
        assert!(!told.canceled(), "the first changes are not there: {told:?}");
        for event in told.events() {
            let kv = event.kv()?;
            let (revision, key) = (kv.mod_revision(), String::from_utf8_lossy(kv.key()).into_owned());
            if revision > last {
                return Some(kept);
            }
            let left = (event.event_type() == EventType::Put).then(|| stands(kv));
            kept.push(Change { revision, key, left });
            if revision == last {
                return Some(kept);
            }
        }
    }
}
