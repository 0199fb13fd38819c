//! The journeys of a store, each beside whoever else makes it: by size, in interleaved rounds.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::contender::{Contender, rounds};
use crate::journeys;
use crate::peers::{copy_and_sync, put_loop};
use crate::sample::{self, Cost, median, summary};
use crate::store::{program, state_db};
use crate::switch;

/// A way that a store goes, and its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Journey {
    /// state.db to a data dir, beside one Put after another and beside a plain copy.
    Sqlite,
    /// A snapshot file to a data dir, beside `etcdutl snapshot restore`.
    Snapshot,
    /// A stopped etcd's data dir to a new one, beside `etcdutl snapshot restore` of its backend.
    Datadir,
    /// A snapshot file to a state.db, beside the sqlite3 program that inserts the same rows.
    Back,
    /// `syncer snapshot save` beside `etcdctl snapshot save`, of the same etcd.
    Save,
    /// migrateFromEtcd: how long the source takes no writes, beside the same by hand.
    FromEtcd,
}

/// What is measured.
pub struct Plan {
    /// Numbers of live keys.
    pub sizes: Vec<u64>,
    /// The journeys; all if there are none.
    pub journeys: Vec<Journey>,
    /// In each round every contender works once.
    pub rounds: usize,
    /// The Put loop is timed over at most so many keys.
    pub put_limit: u64,
}

/// Runs all sizes; the figures as JSON.
pub fn run(plan: &Plan) -> anyhow::Result<Value> {
    let chosen = if plan.journeys.is_empty() { Journey::value_variants() } else { &plan.journeys };
    let mut sizes = Vec::new();
    for &keys in &plan.sizes {
        let mut size = Map::new();
        size.insert("keys".into(), json!(keys));
        for journey in chosen {
            let name = journey.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let what = format!("{keys} keys, {name}");
            let figures = match journey {
                Journey::Sqlite => sqlite(&what, keys, plan)?,
                Journey::Snapshot => json!({ name: journeys::snapshot(&what, keys, plan.rounds)? }),
                Journey::Datadir => json!({ name: journeys::datadir(&what, keys, plan.rounds)? }),
                Journey::Back => json!({ name: journeys::back(&what, keys, plan.rounds)? }),
                Journey::Save => json!({ name: journeys::save(&what, keys, plan.rounds)? }),
                Journey::FromEtcd => json!({ name: switch::from_etcd(&what, keys, plan.rounds)? }),
            };
            size.extend(figures.as_object().cloned().unwrap_or_default());
        }
        sizes.push(Value::Object(size));
    }
    Ok(json!({ "bench": "migrate", "value_bytes": crate::store::VALUE, "rounds": plan.rounds, "sizes": sizes }))
}

fn sqlite(what: &str, keys: u64, plan: &Plan) -> anyhow::Result<Value> {
    let original = state_db(keys)?;
    let folder = original.parent().context("the store has a folder")?;
    // A source of its own, as SQLite makes files beside it.
    let source = tempfile::tempdir_in(folder)?;
    let copy = source.path().join("copy.db");
    copy_and_sync(&original, &copy)?;
    let limit = plan.put_limit.min(keys);
    let contenders = vec![
        Contender::new("copy", |work| copy_and_sync(&original, &work.join("copy.db"))),
        Contender::new("syncer", |work| migrate(&format!("sqlite:{}", copy.display()), "datadir", work)),
        Contender::new("put_loop", |work| {
            let (cost, count) = put_loop(&copy, &work.join("peer"), limit)?;
            ensure!(count == limit, "the Put loop put {count} keys, not {limit}");
            Ok(Cost { seconds: cost.seconds * keys as f64 / count as f64, ..cost })
        }),
    ];
    let figures = rounds(what, folder, plan.rounds, contenders)?;
    let (import, copy, puts) = (figures.seconds("syncer"), figures.seconds("copy"), figures.seconds("put_loop"));
    Ok(json!({
        "state_db_bytes": std::fs::metadata(&original)?.len(),
        "import_seconds": summary(&import),
        "import_peak_anonymous_mib": summary(&figures.peak_mib("syncer")),
        "copy_fsync_seconds": summary(&copy),
        "copy_peak_anonymous_mib": summary(&figures.peak_mib("copy")),
        "put_loop_seconds": summary(&puts),
        "put_loop_etcd_peak_anonymous_mib": summary(&figures.peak_mib("put_loop")),
        "put_loop_extrapolated_from": (plan.put_limit < keys).then_some(plan.put_limit),
        "speedup_over_put_loop": median(&puts) / median(&import),
        "import_over_copy": median(&import) / median(&copy),
    }))
}

/// `syncer migrate` into `work`, with the time that each of its stages took.
pub fn migrate(from: &str, kind: &str, work: &Path) -> anyhow::Result<Cost> {
    let mut command = Command::new(program("SYNCER_RELEASE", "")?);
    command
        .args(["migrate", "--output=json", "--from", from, "--to"])
        .arg(format!("{kind}:{}", work.join("target").display()))
        .arg("--etcd")
        .arg(program("SYNCER_PARTS", "etcd")?);
    let (mut cost, report) = sample::run(&mut command)?;
    let report: Value = serde_json::from_str(&report).context("read syncer's report")?;
    for stage in ["survey", "copy", "verify"] {
        let seconds = report["stages"][stage].as_f64().with_context(|| format!("no stage {stage} in {report}"))?;
        cost.parts.push((stage, seconds));
    }
    Ok(cost)
}
