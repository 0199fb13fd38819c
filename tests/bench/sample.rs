//! Measuring processes: wall time, CPU time, peak anonymous memory, and medians.

use std::io::{Read, Seek};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

/// Between two looks at a process's memory.
const EVERY: Duration = Duration::from_millis(5);

/// What one run cost.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Wall time.
    pub seconds: f64,
    /// User and system time of the process and all it has waited for; not known of one that still runs.
    pub cpu_seconds: Option<f64>,
    /// Peak of RssAnon of the process itself, not of its children, in bytes.
    pub peak_anonymous: u64,
    /// Parts of the wall time, by name, as the program itself tells them.
    pub parts: Vec<(&'static str, f64)>,
}

/// Runs a program to its end, which must be a good one; what it cost, and its standard output.
pub fn run(command: &mut Command) -> anyhow::Result<(Cost, String)> {
    let name = command.get_program().display().to_string();
    let (mut output, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdout(output.try_clone()?).stderr(errors.try_clone()?);
    let cpu = waited_cpu_seconds();
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    let memory = Watch::begin(child.id());
    let status = child.wait()?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu_seconds = Some(waited_cpu_seconds() - cpu);
    let peak_anonymous = memory.end()?;
    if !status.success() {
        let text = text_of(&mut errors)?;
        let last: Vec<_> = text.lines().rev().take(5).collect();
        return Err(anyhow!("{name} failed ({status}): {}", last.into_iter().rev().collect::<Vec<_>>().join("\n")));
    }
    Ok((Cost { seconds, cpu_seconds, peak_anonymous, parts: Vec::new() }, text_of(&mut output)?))
}

fn text_of(file: &mut std::fs::File) -> anyhow::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Watches a process's anonymous memory on a thread of its own.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    /// Of the process `pid`.
    pub fn begin(pid: u32) -> Watch {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !told.load(Ordering::Relaxed) {
                peak = peak.max(status_bytes(pid, "RssAnon:").unwrap_or(0));
                std::thread::sleep(EVERY);
            }
            peak
        });
        Watch { over, thread }
    }

    /// The peak, in bytes.
    pub fn end(self) -> anyhow::Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let peak = self.thread.join().map_err(|_| anyhow!("the watching thread panicked"))?;
        ensure!(peak > 0, "the process's memory was never seen");
        Ok(peak)
    }
}

/// User and system time of all children that were waited for, and of those that they have waited for.
fn waited_cpu_seconds() -> f64 {
    // SAFETY: an all-zero rusage is valid, and getrusage writes nothing but it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// A field of /proc/PID/status that is given in kB, in bytes.
pub fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// CPU time a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), the third being the first after the name; in clock ticks of 10 ms.
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// The median; the upper one of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `{median, min, max, all}` of seconds, rounded to 1 ms.
pub fn summary(values: &[f64]) -> serde_json::Value {
    let round = |v: f64| (v * 1000.0).round() / 1000.0;
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    serde_json::json!({
        "median": round(median(values)),
        "min": round(min),
        "max": round(max),
        "all": values.iter().map(|v| round(*v)).collect::<Vec<_>>(),
    })
}
