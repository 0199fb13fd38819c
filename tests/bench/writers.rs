//! Steady writers, and the longest time between two writes that were acknowledged to them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use etcd_client::{Client, Compare, CompareOp, ConnectOptions, Error, Txn, TxnOp, TxnResponse};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How many.
const WRITERS: usize = 8;
/// One try; the next is made with the same transaction, at the next endpoint.
const TRY: Duration = Duration::from_millis(100);
/// From an acknowledgement to the next write.
const PACE: Duration = Duration::from_millis(5);
/// etcd gives a proposal up after 5 s and two election timeouts (`config.go`, `ReqTimeout`); a little more.
const OWN_TIME_OUT: Duration = Duration::from_secs(9);

/// Where to write, and how to connect.
#[derive(Clone)]
pub struct Endpoints {
    /// The members that stay.
    pub urls: Vec<String>,
    /// With their certificates, if they have any.
    pub options: ConnectOptions,
}

/// Writers that run until they are told to finish.
pub struct Writers {
    began: Instant,
    acknowledged: Arc<Vec<Mutex<Vec<Instant>>>>,
    late: Arc<AtomicU64>,
    timed_out: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// What a step cost those who wrote.
pub struct Gap {
    /// The longest time in which nobody's write was acknowledged, in milliseconds.
    pub anyone: f64,
    /// The longest time that one writer waited for an acknowledgement, in milliseconds.
    pub one: f64,
    /// Tries that were not answered in time.
    pub late: u64,
    /// Those of them that etcd itself gave up, after its own time-out of seven seconds.
    pub timed_out: u64,
    /// Writes that were acknowledged.
    pub writes: usize,
}

impl Writers {
    /// Begins, and returns when each has been acknowledged something.
    pub fn start(to: &Endpoints, prefix: &str) -> anyhow::Result<Writers> {
        let acknowledged: Arc<Vec<Mutex<Vec<Instant>>>> = Arc::new((0..WRITERS).map(|_| Mutex::default()).collect());
        let (late, timed_out) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let all = (Arc::clone(&acknowledged), Arc::clone(&late), Arc::clone(&timed_out), Arc::clone(&stop));
        let (to, prefix) = (to.clone(), prefix.to_owned());
        let thread = std::thread::Builder::new().name("writers".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (acknowledged, late, timed_out, stop) = all;
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for writer in 0..WRITERS {
                    let (to, prefix) = (to.clone(), format!("{prefix}/{writer}"));
                    let (acknowledged, late, stop) = (Arc::clone(&acknowledged), Arc::clone(&late), Arc::clone(&stop));
                    let timed_out = Arc::clone(&timed_out);
                    tasks.spawn(async move {
                        let counts = Counts { late: &late, timed_out: &timed_out };
                        write(&to, writer, &prefix, &stop, &counts, |at| {
                            if let Some(Ok(mut times)) = acknowledged.get(writer).map(Mutex::lock) {
                                times.push(at);
                            }
                        })
                        .await
                    });
                }
                while let Some(ended) = tasks.join_next().await {
                    ended??;
                }
                Ok(())
            })
        })?;
        let writers = Writers { began: Instant::now(), acknowledged, late, timed_out, stop, thread: Some(thread) };
        while !writers.times().iter().all(|times| !times.is_empty()) {
            anyhow::ensure!(writers.began.elapsed() < Duration::from_secs(60), "nothing is acknowledged");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(writers)
    }

    fn times(&self) -> Vec<Vec<Instant>> {
        self.acknowledged.iter().map(|times| times.lock().map(|t| t.clone()).unwrap_or_default()).collect()
    }

    /// Ends them; the gaps since they were started.
    pub fn finish(mut self) -> anyhow::Result<Gap> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished once")?;
        thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        let each = self.times();
        let longest = |times: &[Instant]| {
            let between = times.windows(2).filter_map(|two| Some(two.get(1)?.duration_since(*two.first()?)));
            between.max().unwrap_or_default().as_secs_f64() * 1000.0
        };
        let mut all: Vec<_> = each.iter().flatten().copied().collect();
        all.sort();
        Ok(Gap {
            anyone: longest(&all),
            one: each.iter().map(|times| longest(times)).fold(0.0, f64::max),
            late: self.late.load(Ordering::Relaxed),
            timed_out: self.timed_out.load(Ordering::Relaxed),
            writes: all.len(),
        })
    }
}

struct Counts<'a> {
    late: &'a AtomicU64,
    timed_out: &'a AtomicU64,
}

async fn write(
    to: &Endpoints,
    writer: usize,
    prefix: &str,
    stop: &AtomicBool,
    counts: &Counts<'_>,
    acknowledged: impl Fn(Instant),
) -> anyhow::Result<()> {
    let mut clients = Vec::new();
    for url in &to.urls {
        clients.push(Client::connect([url], Some(to.options.clone())).await?);
    }
    // Tries that were given up here run on, so that what etcd makes of them is seen.
    let mut left: JoinSet<Result<TxnResponse, Error>> = JoinSet::new();
    let mut at = writer;
    for n in 0_u64.. {
        let key = format!("{prefix}/{n}");
        loop {
            let turn = at % clients.len().max(1);
            let mut client = clients.get(turn).context("no endpoint")?.clone();
            // The second of two tries finds the first one's key, if that went through.
            let txn = Txn::new().when([Compare::version(key.clone(), CompareOp::Equal, 0)]).and_then([TxnOp::put(
                key.clone(),
                "x",
                None,
            )]);
            let mut asked = tokio::spawn(async move { client.txn(txn).await });
            match tokio::time::timeout(TRY, &mut asked).await {
                Ok(Ok(Ok(_))) => break,
                Ok(_) => tokio::time::sleep(PACE).await,
                Err(_) => {
                    counts.late.fetch_add(1, Ordering::Relaxed);
                    left.spawn(async move { asked.await.unwrap_or(Err(Error::InvalidArgs(String::new()))) });
                }
            }
            at += 1;
        }
        acknowledged(Instant::now());
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(PACE).await;
    }
    let ended = async {
        while let Some(ended) = left.join_next().await {
            if matches!(ended, Ok(Err(error)) if error.to_string().contains("request timed out")) {
                counts.timed_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    // One whose etcd is gone may hang for good, which is not etcd's time-out.
    let _ = tokio::time::timeout(OWN_TIME_OUT, ended).await;
    Ok(())
}

/// Gaps of the same step in several runs, as JSON.
pub fn summary(gaps: &[Gap]) -> Value {
    let of = |value: &dyn Fn(&Gap) -> f64| {
        let values: Vec<_> = gaps.iter().map(value).collect();
        let max = values.iter().copied().fold(0.0, f64::max);
        json!({ "median": crate::sample::median(&values).round(), "max": max.round() })
    };
    json!({
        "no_write_acknowledged_ms": of(&|gap| gap.anyone),
        "one_writer_waits_ms": of(&|gap| gap.one),
        "tries_without_answer_in_100_ms": gaps.iter().map(|gap| gap.late).sum::<u64>(),
        "tries_that_etcd_timed_out_after_7_s": gaps.iter().map(|gap| gap.timed_out).sum::<u64>(),
        "writes": gaps.iter().map(|gap| gap.writes).sum::<usize>(),
    })
}
