//! What a journey of a store shows while it runs: a bar on a terminal, a log line every few seconds otherwise.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Between two drawings of the bar.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// What the journey is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Finding the live rows.
    #[default]
    Survey,
    /// Copying keys.
    Copy,
    /// Asking the running etcd.
    Verify,
    /// Renaming.
    Commit,
    /// Streaming a snapshot.
    Save,
    /// Copying a snapshot from a bucket, or that of a running etcd, to read it.
    Fetch,
}

impl Stage {
    /// Whether bytes alone are counted.
    const fn in_bytes(self) -> bool {
        matches!(self, Stage::Save | Stage::Fetch)
    }

    const fn name(self) -> &'static str {
        match self {
            Stage::Survey => "survey",
            Stage::Copy => "copy",
            Stage::Verify => "verify",
            Stage::Commit => "commit",
            Stage::Save => "save",
            Stage::Fetch => "fetch",
        }
    }
}

/// How long the stages took that are over, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageSeconds {
    /// Finding the live rows, and whatever must be fetched or replayed for that.
    pub survey: f64,
    /// Copying keys.
    pub copy: f64,
    /// Comparing the target with the source.
    pub verify: f64,
}

/// How far the journey is; written by its threads, read by the display.
#[derive(Debug, Default)]
pub struct Meter {
    stage: Mutex<(Stage, Option<Instant>)>,
    over: Mutex<StageSeconds>,
    keys: AtomicU64,
    bytes: AtomicU64,
    keys_at_most: AtomicU64,
    bytes_at_most: AtomicU64,
}

/// A reading of the meter.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    stage: Stage,
    keys: u64,
    bytes: u64,
    keys_at_most: u64,
    bytes_at_most: u64,
    elapsed: Duration,
}

impl Meter {
    /// Begins a stage of at most so many keys.
    pub fn begin(&self, stage: Stage, keys_at_most: u64) {
        self.begin_of(stage, keys_at_most, 0);
    }

    /// Begins to stream a snapshot of at most so many bytes; 0: that is not known yet.
    pub fn begin_save(&self, bytes_at_most: u64) {
        self.begin_of(Stage::Save, 0, bytes_at_most);
    }

    /// Begins to copy a snapshot of at most so many bytes; 0: that is not known yet.
    pub fn begin_fetch(&self, bytes_at_most: u64) {
        self.begin_of(Stage::Fetch, 0, bytes_at_most);
    }

    fn begin_of(&self, stage: Stage, keys_at_most: u64, bytes_at_most: u64) {
        self.keys.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.keys_at_most.store(keys_at_most, Ordering::Relaxed);
        self.bytes_at_most.store(bytes_at_most, Ordering::Relaxed);
        let mut now = self.stage.lock().unwrap_or_else(|e| e.into_inner());
        let (before, since) = std::mem::replace(&mut *now, (stage, Some(Instant::now())));
        let mut over = self.over.lock().unwrap_or_else(|e| e.into_inner());
        let seconds = match before {
            Stage::Survey | Stage::Fetch => &mut over.survey,
            Stage::Copy => &mut over.copy,
            Stage::Verify => &mut over.verify,
            Stage::Commit | Stage::Save => return,
        };
        *seconds += since.map_or(0.0, |since| since.elapsed().as_secs_f64());
    }

    /// The stages that are over.
    pub fn stages(&self) -> StageSeconds {
        *self.over.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// So many more keys and bytes are done.
    pub fn advance(&self, keys: u64, bytes: u64) {
        self.keys.fetch_add(keys, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Reading {
        let (stage, since) = *self.stage.lock().unwrap_or_else(|e| e.into_inner());
        Reading {
            stage,
            keys: self.keys.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            keys_at_most: self.keys_at_most.load(Ordering::Relaxed),
            bytes_at_most: self.bytes_at_most.load(Ordering::Relaxed),
            elapsed: since.map_or(Duration::ZERO, |s| s.elapsed()),
        }
    }
}

impl Reading {
    /// How many are done, and of how many: keys, or bytes where those alone are counted.
    fn counted(&self) -> (u64, u64) {
        match self.stage {
            stage if stage.in_bytes() => (self.bytes, self.bytes_at_most),
            _ => (self.keys, self.keys_at_most),
        }
    }

    fn bytes_per_second(&self) -> u64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { (self.bytes as f64 / seconds) as u64 } else { 0 }
    }

    /// Time left at the present rate; `None` while there is none.
    fn left(&self) -> Option<Duration> {
        let (done, at_most) = self.counted();
        if done == 0 {
            return None;
        }
        let left = at_most.saturating_sub(done) as f64 / done as f64;
        Duration::try_from_secs_f64(self.elapsed.as_secs_f64() * left).ok()
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Show {
    /// A bar if standard error is a terminal on which one can be drawn (`TERM` says how), else log lines.
    #[default]
    Auto,
    /// Log lines.
    Log,
    /// Nothing.
    Nothing,
}

/// Runs `work` while its meter is shown.
pub fn shown<T>(show: Show, meter: &Meter, work: impl FnOnce() -> T) -> T {
    let bar = match show {
        Show::Nothing => return work(),
        Show::Auto => Some(bar()).filter(|bar| !bar.is_hidden()),
        Show::Log => None,
    };
    let (done, waiting) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let every = if bar.is_some() { DRAW_EVERY } else { LOG_EVERY };
            while waiting.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let now = meter.read();
                match &bar {
                    Some(bar) => draw(bar, now),
                    None => log(now),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn bar() -> ProgressBar {
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr())
}

const COUNTS: &str = "{prefix:>8} [{bar:40}] {human_pos}/{human_len} keys {msg}";
const COUNTS_BYTES: &str = "{prefix:>8} [{bar:40}] {binary_bytes}/{binary_total_bytes} {msg}";
/// Of a stage that counts nothing, in which etcd is waited for.
const WAITS: &str = "{prefix:>8} {msg}";

fn draw(bar: &ProgressBar, now: Reading) {
    let (done, at_most) = now.counted();
    let counts = at_most.max(done) > 0;
    let template = match now.stage {
        _ if !counts => WAITS,
        stage if stage.in_bytes() => COUNTS_BYTES,
        _ => COUNTS,
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(now.stage.name());
    if !counts {
        bar.set_message(format!("{} s", now.elapsed.as_secs()));
        return;
    }
    bar.set_length(at_most.max(done));
    bar.set_position(done);
    let left = now.left().map_or_else(String::new, |left| format!(", {} s left", left.as_secs()));
    let rate = format!("{}/s{left}", indicatif::BinaryBytes(now.bytes_per_second()));
    bar.set_message(match now.stage {
        stage if stage.in_bytes() => rate,
        _ => format!("{}, {rate}", indicatif::BinaryBytes(now.bytes)),
    });
}

fn log(now: Reading) {
    tracing::info!(
        stage = now.stage.name(),
        keys = now.keys,
        keys_at_most = now.keys_at_most,
        bytes = now.bytes,
        bytes_at_most = now.bytes_at_most,
        bytes_per_second = now.bytes_per_second(),
        seconds_left = now.left().map(|l| l.as_secs()),
        "the work goes on"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_follow_the_reading() {
        let reading = Reading {
            stage: Stage::Copy,
            keys: 25,
            bytes: 5000,
            keys_at_most: 100,
            bytes_at_most: 0,
            elapsed: Duration::from_secs(10),
        };
        assert_eq!(reading.bytes_per_second(), 500);
        assert_eq!(reading.left(), Some(Duration::from_secs(30)));
        assert_eq!(Reading { keys: 0, ..reading }.left(), None);
        assert_eq!(Reading { keys: 200, ..reading }.left(), Some(Duration::ZERO));
        assert_eq!(Reading { elapsed: Duration::ZERO, ..reading }.bytes_per_second(), 0);
        let save = Reading { stage: Stage::Save, keys: 0, keys_at_most: 0, bytes_at_most: 20_000, ..reading };
        assert_eq!((save.bytes_per_second(), save.left()), (500, Some(Duration::from_secs(30))));
    }

    #[test]
    fn the_bar_shows_what_is_counted_and_nothing_else() {
        let bar = ProgressBar::hidden();
        let reading = Reading {
            stage: Stage::Copy,
            keys: 25,
            bytes: 5 << 20,
            keys_at_most: 100,
            bytes_at_most: 0,
            elapsed: Duration::from_secs(10),
        };
        draw(&bar, reading);
        assert_eq!((bar.prefix().as_str(), bar.position(), bar.length()), ("copy", 25, Some(100)));
        assert_eq!(bar.message(), "5.00 MiB, 512.00 KiB/s, 30 s left");
        draw(&bar, Reading { stage: Stage::Verify, keys: 0, bytes: 0, keys_at_most: 0, ..reading });
        assert_eq!((bar.prefix().as_str(), bar.message().as_str()), ("verify", "10 s"));
        draw(&bar, Reading { stage: Stage::Save, keys: 0, keys_at_most: 0, bytes_at_most: 20 << 20, ..reading });
        assert_eq!((bar.prefix().as_str(), bar.position(), bar.length()), ("save", 5 << 20, Some(20 << 20)));
        assert_eq!(bar.message(), "512.00 KiB/s, 30 s left");
    }

    #[test]
    fn each_stage_has_its_own_time() {
        let meter = Meter::default();
        meter.begin(Stage::Survey, 0);
        assert_eq!(meter.stages(), StageSeconds::default());
        meter.begin_fetch(1);
        let looked = meter.stages();
        assert!(looked.survey > 0.0 && looked.copy == 0.0, "{looked:?}");
        meter.begin(Stage::Survey, 0);
        assert!(meter.stages().survey > looked.survey, "what is fetched to be read counts to the survey");
        meter.begin(Stage::Copy, 1);
        let first = meter.stages();
        assert!(first.survey > looked.survey && first.copy == 0.0);
        meter.begin(Stage::Verify, 1);
        meter.begin(Stage::Commit, 0);
        let all = meter.stages();
        assert!(all.survey == first.survey && all.copy > 0.0 && all.verify > 0.0);
    }

    #[test]
    fn the_display_ends_with_the_work() {
        let meter = Meter::default();
        for show in [Show::Nothing, Show::Log, Show::Auto] {
            let started = Instant::now();
            assert_eq!(shown(show, &meter, || 7), 7);
            assert!(started.elapsed() < LOG_EVERY, "{show:?}");
        }
    }
}
