//! migrateFromEtcd: how long nobody's writes are taken, neither by the source nor by the target, beside the same by hand.
//!
//! A writer puts to the source without a pause. What it was last acknowledged is when the pause began; the pause is over
//! when the target answers a linearizable read, which must have that write.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};

use crate::contender::{Contender, rounds};
use crate::journeys::{etcdctl_save, restore};
use crate::peers::{Etcd, Running, copy_tree};
use crate::restart::{Site, connected, syncer};
use crate::sample::{Cost, Watch, median, summary};
use crate::store::stores;

/// For whatever must come to an end.
const PATIENCE: Duration = Duration::from_secs(600);
/// The writer's key.
const KEY: &str = "/registry/bench/writer";

/// The pause in seconds, and for each GiB of the source's backend.
pub fn from_etcd(what: &str, keys: u64, count: usize) -> anyhow::Result<Value> {
    let stores = stores(keys)?;
    let gib = std::fs::metadata(&stores.snapshot)?.len() as f64 / f64::from(1 << 30);
    let source = |work: &Path| -> anyhow::Result<Etcd> {
        let data = work.join("source");
        copy_tree(&stores.datadir, &data)?;
        // So that what is copied here is not what the disk is busy with.
        std::fs::File::open(data.join("member/snap/db"))?.sync_all()?;
        let etcd = Etcd::start(&data)?;
        etcd.serves(PATIENCE)?;
        Ok(etcd)
    };
    let contenders = vec![
        Contender::new("syncer", |work| ours(&source(work)?, work)),
        Contender::new("by_hand", |work| by_hand(&source(work)?, work)),
    ];
    let figures = rounds(what, &stores.folder, count, contenders)?;
    let for_each_gib = |name: &str| figures.seconds(name).iter().map(|seconds| seconds / gib).collect::<Vec<_>>();
    let mut json = figures.json("by_hand");
    json["source_gib"] = json!(gib);
    json["pause_seconds_per_gib"] = summary(&for_each_gib("syncer"));
    json["pause_seconds_per_gib_by_hand"] = json!(median(&for_each_gib("by_hand")));
    Ok(json)
}

/// A pod that moves the source, from its start on.
fn ours(source: &Etcd, work: &Path) -> anyhow::Result<Cost> {
    let site = Site::new(&work.join("pod"))?;
    let writer = Writer::start(source)?;
    let pod = Running(syncer(&site, &[format!("--migrate-from={}", source.client_url())])?);
    let memory = Watch::begin(pod.0.id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (served, value) = runtime.block_on(async {
        let mut client = connected(&site, &site.data, PATIENCE).await?;
        let served = Instant::now();
        anyhow::Ok((served, written(&mut client).await?))
    })?;
    pause(writer, served, value, memory.end()?)
}

/// Somebody with etcdctl and etcdutl who loses no time; the writer is stopped first, as nothing fences the source.
fn by_hand(source: &Etcd, work: &Path) -> anyhow::Result<Cost> {
    let mut writer = Writer::start(source)?;
    writer.stop()?;
    let saved = work.join("snapshot.db");
    etcdctl_save(source, &saved)?;
    restore(&saved, true, work)?;
    let target = Etcd::start(&work.join("restored"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (served, value) = runtime.block_on(async {
        let mut client = target.connected(PATIENCE).await?;
        let served = Instant::now();
        anyhow::Ok((served, written(&mut client).await?))
    })?;
    pause(writer, served, value, 0)
}

async fn written(client: &mut etcd_client::Client) -> anyhow::Result<u64> {
    let answer = client.get(KEY, None).await?;
    let value = answer.kvs().first().context("the target lacks the writer's key")?;
    Ok(value.value_str()?.parse()?)
}

fn pause(mut writer: Writer, served: Instant, value: u64, peak_anonymous: u64) -> anyhow::Result<Cost> {
    let (last, at) = writer.stop()?;
    ensure!(at < served, "the source takes writes while the target serves");
    ensure!(value >= last, "the target has write {value}, and the source has acknowledged {last}");
    Ok(Cost { seconds: (served - at).as_secs_f64(), peak_anonymous, ..Cost::default() })
}

/// Puts one number after another, each until it is acknowledged.
struct Writer {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<(u64, Instant)>>>,
    last: Option<(u64, Instant)>,
}

impl Writer {
    /// Begins, and returns behind the first acknowledged write.
    fn start(etcd: &Etcd) -> anyhow::Result<Writer> {
        let over = Arc::new(AtomicBool::new(false));
        let (told, url) = (over.clone(), etcd.client_url());
        let (first, begun) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut client = etcd_client::Client::connect([url], None).await?;
                let mut last = None;
                let mut next = 1_u64;
                while !told.load(Ordering::Relaxed) {
                    match client.put(KEY, next.to_string(), None).await {
                        Ok(_) => {
                            last = Some((next, Instant::now()));
                            next += 1;
                            let _ = first.send(());
                        }
                        // Fenced: it would take long to be let in again.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
                last.context("the writer was never acknowledged")
            })
        });
        begun.recv_timeout(PATIENCE).context("wait for the writer")?;
        Ok(Writer { over, thread: Some(thread), last: None })
    }

    /// Ends it; its last acknowledged write, and when that was.
    fn stop(&mut self) -> anyhow::Result<(u64, Instant)> {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            self.last = Some(thread.join().map_err(|_| anyhow!("the writer panicked"))??);
        }
        self.last.context("the writer was never acknowledged")
    }
}
