//! Import beside the Put loop and beside a plain copy.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

use crate::peers::{copy_and_sync, put_loop};
use crate::sample::{self, median, summary};
use crate::store::{program, state_db};

/// Runs all sizes; the figures as JSON.
pub fn run(sizes: &[u64], rounds: usize, put_limit: u64) -> anyhow::Result<Value> {
    let mut figures = Vec::new();
    for &keys in sizes {
        figures.push(one_size(keys, rounds, put_limit)?);
    }
    Ok(json!({ "bench": "migrate", "value_bytes": crate::store::VALUE, "rounds": rounds, "sizes": figures }))
}

fn one_size(keys: u64, rounds: usize, put_limit: u64) -> anyhow::Result<Value> {
    let original = state_db(keys)?;
    let folder = original.parent().context("the store has a folder")?;
    let (mut import, mut copy, mut puts, mut peak) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds.max(1) {
        let work = tempfile::tempdir_in(folder)?;
        copy.push(copy_and_sync(&original, &work.path().join("copy.db"))?);
        let source = work.path().join("copy.db");

        let started = Instant::now();
        let mut child = Command::new(program("SYNCER_RELEASE", "")?)
            .args(["migrate", "--from"])
            .arg(format!("sqlite:{}", source.display()))
            .arg("--to")
            .arg(format!("datadir:{}", work.path().join("etcd").display()))
            .arg("--etcd")
            .arg(program("SYNCER_PARTS", "etcd")?)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .context("start syncer migrate")?;
        let (status, cost) = sample::wait(&mut child, started)?;
        anyhow::ensure!(status.success(), "syncer migrate failed: {status}");
        import.push(cost.seconds);
        peak.push(cost.peak_anonymous as f64 / f64::from(1 << 20));

        let limit = put_limit.min(keys);
        let (seconds, count) = put_loop(&source, &work.path().join("peer"), limit)?;
        anyhow::ensure!(count == limit, "the Put loop put {count} keys, not {limit}");
        puts.push(seconds * keys as f64 / count as f64);
        eprintln!(
            "bench: {keys} keys, round {}: import {:.2} s ({:.0} MiB), copy {:.2} s, Put loop {:.1} s",
            round + 1,
            import[round],
            peak[round],
            copy[round],
            puts[round]
        );
    }
    Ok(json!({
        "keys": keys,
        "state_db_bytes": std::fs::metadata(&original)?.len(),
        "import_seconds": summary(&import),
        "import_peak_anonymous_mib": summary(&peak),
        "copy_fsync_seconds": summary(&copy),
        "put_loop_seconds": summary(&puts),
        "put_loop_extrapolated_from": (put_limit < keys).then_some(put_limit),
        "speedup_over_put_loop": median(&puts) / median(&import),
        "import_over_copy": median(&import) / median(&copy),
    }))
}
