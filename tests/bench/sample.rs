//! Measuring processes: wall time, peak anonymous memory, CPU at rest, and medians.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// What one run of a process cost.
pub struct Cost {
    /// Wall time.
    pub seconds: f64,
    /// Peak of RssAnon, sampled every 5 ms, in bytes.
    pub peak_anonymous: u64,
}

/// Waits for `child`, sampling its own anonymous memory (not its children's).
pub fn wait(child: &mut Child, started: Instant) -> anyhow::Result<(ExitStatus, Cost)> {
    let pid = child.id();
    let mut peak = 0;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, Cost { seconds: started.elapsed().as_secs_f64(), peak_anonymous: peak }));
        }
        peak = peak.max(status_bytes(pid, "RssAnon:").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
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
