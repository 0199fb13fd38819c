//! From a source to a sink: reading on one thread, writing on another, the source's own check on a third.
//!
//! What is on the way is bounded: six batches between the threads, one in each of their hands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;

use anyhow::{Context, anyhow};

use super::convert::Warnings;
use super::progress::Meter;
use super::sink::Sink;
use super::source::{Batch, BatchSender, Source, Stopped};

/// Batches between the two threads.
const IN_FLIGHT: usize = 6;

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// What had to be changed.
    pub warnings: Warnings,
}

/// Copies every live key of `source` to `sink`, with the source's check beside it. If anything fails, what the sink
/// has is of no use.
pub fn copy(source: &mut dyn Source, sink: &mut dyn Sink, meter: &Meter) -> anyhow::Result<Copied> {
    copy_then(source, sink, meter, |copied, _, _| Ok(copied))
}

/// Copies, and goes on with `then`, the source's check beside both. Nothing is final before this returns.
pub fn copy_then<S: Sink, T>(
    source: &mut dyn Source,
    mut sink: S,
    meter: &Meter,
    then: impl FnOnce(Copied, S, &mut dyn Source) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let name = source.name();
    let what = || format!("copy {name}");
    let check = source.side_check().with_context(what)?;
    let cancel = check.as_ref().map(|c| c.canceller());
    let stop = AtomicBool::new(false);
    let (full, arriving) = sync_channel(IN_FLIGHT);
    let (back, empty) = channel();
    thread::scope(|scope| {
        let stop = &stop;
        let check = check.map(|check| {
            scope.spawn(move || {
                give_way();
                let result = check.run();
                if result.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                result
            })
        });
        let reader = scope.spawn(move || {
            let mut out = BatchSender::new(full, empty, stop);
            let read = source.read(&mut out).and_then(|warnings| out.flush().map(|()| warnings).map_err(Into::into));
            (source, read)
        });
        let written = write(&mut sink, arriving, back, meter);
        let (source, read) = match reader.join() {
            Ok((source, read)) => (Some(source), read),
            Err(_) => (None, Err(anyhow!("the reading thread panicked"))),
        };
        // A failed sink is why the reader stopped, and a failed reader why the check was cancelled.
        let copied = match (written, read) {
            (Err(e), _) => Err(e).with_context(what),
            (_, Err(e)) => Err(e).with_context(what),
            (Ok((keys, bytes)), Ok(warnings)) => Ok(Copied { keys, bytes, warnings }),
        };
        let done = match (copied, source) {
            (Ok(copied), Some(source)) => then(copied, sink, source),
            (Err(e), _) => Err(e),
            (Ok(_), None) => Err(anyhow!("the reading thread panicked")),
        };
        // What it has found by now counts for more than what failed without it; cut short, it has found nothing.
        let found = check.as_ref().is_none_or(thread::ScopedJoinHandle::is_finished);
        let stopped = done.as_ref().is_err_and(|e| e.is::<Stopped>());
        if done.is_err()
            && !stopped
            && let Some(cancel) = cancel
        {
            cancel();
        }
        let checked = check.map_or(Ok(()), |c| c.join().unwrap_or_else(|_| Err(anyhow!("the check panicked"))));
        match (done, checked) {
            (Ok(done), checked) => checked.map(|()| done).with_context(what),
            (Err(_), Err(e)) if found || stopped => Err(e).with_context(what),
            (Err(e), _) => Err(e),
        }
    })
}

/// Everybody waits for the copy and what follows it, and nobody for the check, unless it is the last: this thread takes
/// only what the others leave of the processor.
fn give_way() {
    // SAFETY: it takes no pointers. 0 is the calling thread, as Linux has a niceness for each (setpriority(2)). Where it
    // fails, the check is as quick as the copy.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

fn write(
    sink: &mut dyn Sink,
    arriving: Receiver<Batch>,
    back: Sender<Batch>,
    meter: &Meter,
) -> anyhow::Result<(u64, u64)> {
    let (mut keys, mut bytes) = (0, 0);
    for batch in arriving {
        for key in batch.keys() {
            sink.put(&key)?;
        }
        keys += batch.len() as u64;
        bytes += batch.bytes();
        meter.advance(batch.len() as u64, batch.bytes());
        // The reader may be done and gone.
        let _ = back.send(batch.recycle());
    }
    Ok((keys, bytes))
}

#[cfg(test)]
mod tests {
    use super::super::convert::{KeyLease, LiveKey};
    use super::super::source::{Extent, FileState, SideCheck};
    use super::*;
    use crate::ids::Revision;
    use std::sync::Arc;

    struct Numbers {
        count: i64,
        fail_at: i64,
        check: Option<anyhow::Result<()>>,
    }

    struct Check {
        result: anyhow::Result<()>,
        cancelled: Arc<AtomicBool>,
    }

    impl SideCheck for Check {
        fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
            let cancelled = self.cancelled.clone();
            Box::new(move || cancelled.store(true, Ordering::SeqCst))
        }
        fn run(self: Box<Self>) -> anyhow::Result<()> {
            self.result
        }
    }

    impl Source for Numbers {
        fn name(&self) -> String {
            "numbers".into()
        }
        fn extent(&self) -> Extent {
            Extent {
                revision: Revision(self.count),
                compacted: Revision(0),
                source_bytes: 0,
                rows: self.count as u64,
                keys_at_most: self.count as u64,
                bytes_at_most: u64::MAX,
            }
        }
        fn live_bytes(&self) -> anyhow::Result<u64> {
            Ok(0)
        }
        fn is_exclusive(&self) -> bool {
            true
        }
        fn files(&self) -> anyhow::Result<Vec<FileState>> {
            Ok(Vec::new())
        }
        fn read(&mut self, out: &mut BatchSender<'_>) -> anyhow::Result<Warnings> {
            for i in 1..=self.count {
                if i == self.fail_at {
                    return Err(anyhow!("the source broke"));
                }
                let text = i.to_string();
                out.send(&LiveKey {
                    key: text.as_bytes(),
                    value: &[7; 100],
                    create_revision: Revision(i),
                    mod_revision: Revision(i),
                    sub: 0,
                    version: 1,
                    lease: KeyLease::None,
                })?;
            }
            Ok(Warnings::default())
        }
        fn side_check(&mut self) -> anyhow::Result<Option<Box<dyn SideCheck>>> {
            Ok(self.check.as_ref().map(|r| {
                let result = r.as_ref().copied().map_err(|e| anyhow!("{e}"));
                Box::new(Check { result, cancelled: Arc::default() }) as Box<dyn SideCheck>
            }))
        }
    }

    #[derive(Default)]
    struct Collect {
        keys: Vec<(Vec<u8>, i64)>,
        fail_at: usize,
    }

    impl Sink for Collect {
        fn put(&mut self, key: &LiveKey<'_>) -> anyhow::Result<()> {
            anyhow::ensure!(self.fail_at == 0 || self.keys.len() < self.fail_at, "the sink broke");
            self.keys.push((key.key.to_vec(), key.mod_revision.0));
            Ok(())
        }
    }

    fn run(source: Numbers, sink: &mut Collect) -> Result<Copied, String> {
        let mut source = source;
        copy(&mut source, sink, &Meter::default()).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn every_key_arrives_once_and_in_order() {
        for count in [0, 1, 2048, 2049, 50_000] {
            let mut sink = Collect::default();
            let copied = run(Numbers { count, fail_at: 0, check: Some(Ok(())) }, &mut sink).unwrap();
            assert_eq!(copied.keys, count as u64);
            let want: Vec<_> = (1..=count).map(|i| (i.to_string().into_bytes(), i)).collect();
            assert!(sink.keys == want, "{count}");
            assert_eq!(copied.bytes, want.iter().map(|(k, _)| k.len() as u64 + 100).sum::<u64>());
        }
    }

    #[test]
    fn whatever_fails_is_what_is_reported() {
        for (fail_at, sink_fails, check, want) in [
            (40_000, 0, None, "copy numbers: the source broke"),
            (0, 30_000, None, "copy numbers: the sink broke"),
            (0, 30_000, Some(Ok(())), "copy numbers: the sink broke"),
            (0, 0, Some(Err(anyhow!("the check broke"))), "copy numbers: the check broke"),
        ] {
            let mut sink = Collect { fail_at: sink_fails, ..Collect::default() };
            assert_eq!(run(Numbers { count: 50_000, fail_at, check }, &mut sink), Err(want.to_owned()));
        }
    }

    #[test]
    fn the_check_has_the_last_word_on_what_followed_the_copy() {
        let follow = |check, fail_at, then: fn() -> anyhow::Result<u32>| {
            let mut source = Numbers { count: 5000, fail_at, check: Some(check) };
            let done = copy_then(&mut source, Collect::default(), &Meter::default(), |_, _, _| then());
            done.map_err(|e| format!("{e:#}"))
        };
        assert_eq!(follow(Ok(()), 0, || Ok(7)), Ok(7));
        assert_eq!(follow(Ok(()), 0, || Err(anyhow!("etcd says no"))), Err("etcd says no".into()));
        let broke = || Err(anyhow!("the check broke"));
        assert_eq!(follow(broke(), 0, || Ok(7)), Err("copy numbers: the check broke".into()));
        // Nothing follows a copy that failed. If both have found something, whichever did first is told.
        let error = follow(broke(), 100, || unreachable!("the copy failed")).unwrap_err();
        assert!(error == "copy numbers: the source broke" || error == "copy numbers: the check broke", "{error}");
    }
}
