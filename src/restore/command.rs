//! `syncer snapshot restore`: stages a snapshot, or calls that off.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::runtime::Runtime;

use super::look;
use super::record::{self, MadeBy, RestoreRecord};
use crate::boot::restored::replaced;
use crate::crash_point;
use crate::datadir::DatadirLock;
use crate::datadir::lock::{LockError, in_use};
use crate::disk::{Disk, RealDisk};
use crate::etcd::{EtcdVersion, launch};
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::migrate::command::{Output, fresh_token};
use crate::migrate::estimate::estimate;
use crate::migrate::journey::{self, Journey};
use crate::migrate::progress::Show;
use crate::migrate::to_datadir::{DatadirTarget, ImportOutcome};
use crate::migrate::{Origin, Verify};
use crate::record_file::unix_seconds;
use crate::settings::Settings;
use crate::settings::flags::Flags;
use crate::snapshot::fetched::Fetched;
use crate::snapshot::save::LEFT_FREE;

/// How far above everything that clients may have seen the restored store goes on, unless told otherwise.
const BUMP: i64 = 1_000_000_000;
/// How long another `syncer snapshot restore`, or what a killed one has left running, may take to go.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The command's arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The snapshot: a file of syncer's or etcdctl's, or s3://BUCKET/PREFIX/NAME.db.
    #[arg(required_unless_present = "cancel")]
    pub place: Option<PathBuf>,
    /// Call off a restore that is staged and has not taken its place, and remove what a killed attempt has left.
    #[arg(long, conflicts_with_all = ["place", "dry_run", "skip_hash_check"])]
    pub cancel: bool,
    /// How far above all that clients may have seen the restored store goes on: more than there are writes until it takes
    /// its place, so that clients list anew and none sees a revision twice. Default: 1000000000, and once more for each
    /// cluster that the volume or the marker knows to have been replaced before. What clients have seen is the greatest
    /// of the snapshot's revision, the present store's, and that at which the last restored store began.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=1 << 60))]
    pub bump_revision: Option<i64>,
    /// Take a file without a checksum at its end, such as a copy of etcd's own member/snap/db.
    #[arg(long)]
    pub skip_hash_check: bool,
    /// How thoroughly etcd compares what was made of it.
    #[arg(long, value_enum, default_value_t = Verify::Hash)]
    pub verify: Verify,
    /// Read everything and say what would happen; nothing of it stays. A snapshot in a bucket is fetched to TMPDIR for that
    /// time.
    #[arg(long)]
    pub dry_run: bool,
    /// Form of the report on standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Settings, as `syncer start` has them.
    #[command(flatten)]
    pub flags: Flags,
}

/// Runs the command; gives what is to be written to standard output. Not within a runtime: it makes its own.
///
/// # Errors
/// Nothing has been changed then. [`Exit::RefusedSource`] for a snapshot that cannot be relied on, [`Exit::RefusedSpace`],
/// and whatever a start would refuse the restore for.
pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<String> {
    let disk = RealDisk;
    let dir = &settings.data_dir;
    if !dir.is_dir() {
        let what = format!("{} is not a directory", dir.display());
        return Err(refuse(Exit::Usage, what, "name the seed's volume with --data-dir"));
    }
    let Some(place) = &args.place else { return cancel(&disk, args, dir) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let snapshot = Snapshot { file: look::file(place, args.skip_hash_check)?, place: absolute(place)? };
    if snapshot.place.starts_with(std::path::absolute(record::staging(dir))?) {
        let what = format!("{} lies where restores are staged", snapshot.name());
        return Err(refuse(Exit::Usage, what, "move it elsewhere: what is there is removed"));
    }
    // Whoever changes nothing waits for nobody.
    let lock = if args.dry_run { None } else { Some(Arc::new(locked(dir)?)) };
    if let Some(present) = record::read(dir)? {
        return staged_before(args, settings, &present, &snapshot);
    }
    let Some(lock) = lock else { return dry_run(&disk, args, settings, &snapshot, &runtime) };
    let look = Look::at(args, settings, &runtime)?;
    let (outcome, record) = stage(&disk, args, settings, &snapshot, &look, &runtime, lock)?;
    let mut text = report(args, settings, &record, Some(&outcome));
    if args.output == Output::Text {
        for warning in outcome.warnings.lines() {
            let _ = writeln!(text, "warning    {warning}");
        }
    }
    Ok(text)
}

/// What is to be restored.
struct Snapshot {
    place: PathBuf,
    /// As [`look::file`] gives it.
    file: Option<(u64, i128)>,
}

impl Snapshot {
    /// As it is shown and kept.
    fn name(&self) -> String {
        self.place.display().to_string()
    }
}

/// Where it goes.
struct Look {
    program: PathBuf,
    replaces: Option<crate::ids::ClusterId>,
    /// Of the present store.
    seen: Option<Revision>,
    /// At which the store began that was restored last.
    restored: Option<Revision>,
    /// By how much the restored store is above both.
    bump: i64,
}

impl Look {
    fn at(args: &Args, settings: &Settings, runtime: &Runtime) -> anyhow::Result<Look> {
        let program = settings.program("etcd");
        let version = EtcdVersion::of(&program).map_err(|e| e.refused())?;
        let facts = runtime.block_on(look::facts(settings, version))?;
        look::allowed(&facts, &settings.data_dir)?;
        let seen = runtime.block_on(look::seen(settings));
        if seen.is_none() && look::present_cluster(&facts).is_some() {
            tracing::warn!(
                "the present store does not tell its revision: the restored one goes on above the snapshot's"
            );
        }
        let restored = record::restored_at(&settings.data_dir).context("read the record of the last restore")?;
        // A volume that was lost has taken that record with it, and the marker has not. Each restore leaves one there.
        let before = i64::try_from(replaced(&facts).len()).unwrap_or(i64::MAX);
        let bump = args.bump_revision.unwrap_or(BUMP.saturating_mul(before.saturating_add(1)));
        Ok(Look { program, replaces: look::present_cluster(&facts), seen, restored, bump })
    }

    /// A revision that clients have seen; 0 if none is known.
    fn least(&self) -> Revision {
        self.seen.max(self.restored).unwrap_or(Revision(0))
    }
}

/// Everything up to the record, which is the commit.
fn stage(
    disk: &dyn Disk,
    args: &Args,
    settings: &Settings,
    snapshot: &Snapshot,
    look: &Look,
    runtime: &Runtime,
    lock: Arc<DatadirLock>,
) -> anyhow::Result<(ImportOutcome, RestoreRecord)> {
    let dir = &settings.data_dir;
    let staging = record::staging(dir);
    // What a killed attempt has left: no record speaks of it.
    clear(disk, dir)?;
    crash_point!("restore-cleared");
    let built = || {
        disk.create_dir(&staging).context("make the staging directory")?;
        let here = Fetched::from(&snapshot.place, disk, &staging, runtime)?;
        look::checksummed(&snapshot.place, here.path(), args.skip_hash_check)?;
        let origin = Origin::snapshot(here.path().to_owned(), args.skip_hash_check);
        let identity = launch::identity(settings, fresh_token());
        let of_boot = Journey::of_boot(origin, &staging, identity, look.program.clone());
        let journey = Journey {
            target: DatadirTarget { bump: look.bump, least: look.least(), ..of_boot.target },
            spare: LEFT_FREE,
            verify: args.verify,
            lock: Some(lock),
            ..of_boot
        };
        journey::run(disk, &journey)
    };
    let outcome = match built() {
        Ok(outcome) => outcome,
        Err(error) => {
            if let Err(left) = clear(disk, dir) {
                tracing::warn!("a restore that failed could not be tidied up after: {left:#}");
            }
            return Err(error);
        }
    };
    disk.sync_dir(dir).context("make the staging directory durable")?;
    crash_point!("restore-staged");
    let record = RestoreRecord {
        source: snapshot.name(),
        file: snapshot.file,
        member: outcome.made.member,
        cluster: outcome.made.cluster,
        source_revision: outcome.source_revision,
        revision: outcome.revision,
        keys: outcome.keys,
        hash: outcome.made.hash,
        max_request_bytes: outcome.made.max_request_bytes,
        replaces: look.replaces,
        staged: unix_seconds(),
        made: Some(MadeBy { bump: look.bump, verify: args.verify }),
        begun: None,
    };
    record::store(disk, dir, &record)?;
    crash_point!("restore-recorded");
    Ok((outcome, record))
}

fn dry_run(
    disk: &dyn Disk,
    args: &Args,
    settings: &Settings,
    snapshot: &Snapshot,
    runtime: &Runtime,
) -> anyhow::Result<String> {
    let look = Look::at(args, settings, runtime)?;
    let here = Fetched::from(&snapshot.place, disk, &std::env::temp_dir(), runtime)?;
    look::checksummed(&snapshot.place, here.path(), args.skip_hash_check)?;
    let origin = Origin::snapshot(here.path().to_owned(), args.skip_hash_check);
    let (path, identity) = (settings.etcd_dir(), launch::identity(settings, fresh_token()));
    let target = DatadirTarget { path, identity, bump: look.bump, least: look.least() };
    let found = estimate(disk, &origin, &target, &look.program, Show::Auto)?;
    let (needed, free) = (found.needed_bytes.saturating_add(LEFT_FREE), found.free_bytes);
    if args.output == Output::Json {
        let mut report = found.json()?;
        report["source"] = json!(snapshot.name());
        report["presentRevision"] = json!(look.seen);
        report["replaces"] = json!(look.replaces);
        report["neededBytes"] = json!(needed);
        return Ok(format!("{report:#}\n"));
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| writeln!(text, "{name:<10} {value}").unwrap_or_default();
    line("snapshot", format!("{}: {} keys at revision {}", snapshot.name(), found.keys, found.source_revision));
    line("present", look.seen.map_or("its revision is not known".to_owned(), |seen| format!("at revision {seen}")));
    line("restored", format!("would go on at revision {}, all before compacted", found.revision));
    line("replaces", look.replaces.map_or("no data dir".to_owned(), |old| format!("cluster {old}")));
    let enough = if needed <= free { "enough" } else { "NOT ENOUGH" };
    line("space", format!("{} MiB needed, {} MiB free: {enough}", needed.div_ceil(1 << 20), free >> 20));
    for warning in found.warnings.lines() {
        line("warning", warning);
    }
    text.push_str("nothing has been changed\n");
    Ok(text)
}

/// The same again is done; another one needs the first to be called off.
fn staged_before(
    args: &Args,
    settings: &Settings,
    present: &RestoreRecord,
    snapshot: &Snapshot,
) -> anyhow::Result<String> {
    if present.begun.is_some() {
        let what = format!("{} is taking the place of the present store", present.source);
        return Err(refuse(
            Exit::RefusedDataDir,
            what,
            "start the pod, which goes through with it; then restore this one",
        ));
    }
    let what = if (&present.source, present.file) != (&snapshot.name(), snapshot.file) {
        format!("{} is staged to be restored already", present.source)
    } else if let Some(otherwise) = present.made.and_then(|made| otherwise(args, made)) {
        format!("{} is staged to be restored already, {otherwise}", present.source)
    } else {
        return Ok(report(args, settings, present, None));
    };
    Err(refuse(Exit::RefusedDataDir, what, "call that off first: `syncer snapshot restore --cancel`"))
}

/// What is asked for now that is not so of a staged restore.
fn otherwise(args: &Args, made: MadeBy) -> Option<String> {
    match (args.bump_revision, args.verify, made) {
        (Some(bump), _, MadeBy { bump: was, .. }) if bump != was => {
            Some(format!("with --bump-revision {was}, not {bump}"))
        }
        (_, Verify::Full, MadeBy { verify: Verify::Hash, .. }) => Some("verified by its hash alone".to_owned()),
        _ => None,
    }
}

fn cancel(disk: &dyn Disk, args: &Args, dir: &Path) -> anyhow::Result<String> {
    let _lock = locked(dir)?;
    let present = record::read(dir)?;
    if let Some(present) = present.as_ref().filter(|present| present.begun.is_some()) {
        let what = format!("{} is taking the place of the present store, which has begun", present.source);
        let remedy =
            "start the pod, which goes through with it; the former data dir is kept beside it (etcd.aside-TIME)";
        return Err(refuse(Exit::RefusedDataDir, what, remedy));
    }
    // The record first: without it the rest is rubbish.
    disk.forget_file(&record::path(dir)).context("remove the record of the restore")?;
    disk.sync_dir(dir).context("remove the record of the restore")?;
    clear(disk, dir)?;
    let source = present.map(|present| present.source);
    Ok(match (args.output, source) {
        (Output::Json, source) => format!("{:#}\n", json!({ "calledOff": source })),
        (Output::Text, Some(source)) => {
            format!("called off: {source} is not restored; nothing else has been changed\n")
        }
        (Output::Text, None) => "no restore was staged; nothing has been changed\n".to_owned(),
    })
}

/// Removes what is in the staging directory.
fn clear(disk: &dyn Disk, dir: &Path) -> anyhow::Result<()> {
    disk.forget_dir(&record::staging(dir)).context("remove what staging a restore left")?;
    disk.sync_dir(dir).context("remove what staging a restore left")
}

fn locked(dir: &Path) -> anyhow::Result<DatadirLock> {
    record::lock(dir, LOCK_PATIENCE).map_err(|e| match e {
        LockError::Held { .. } => {
            refuse(Exit::RefusedLocked, e.to_string(), "another `syncer snapshot restore` is at work here: let it end")
        }
        LockError::Io { .. } => e.into(),
    })
}

fn absolute(place: &Path) -> anyhow::Result<PathBuf> {
    match place.to_str() {
        Some(text) if text.starts_with("s3://") => Ok(place.to_owned()),
        _ => std::path::absolute(place).with_context(|| format!("find {}", place.display())),
    }
}

/// What is staged; `done`: just now, and not by an earlier call.
fn report(args: &Args, settings: &Settings, record: &RestoreRecord, done: Option<&ImportOutcome>) -> String {
    let runs = in_use(&settings.data_dir).unwrap_or(true);
    let next = match (runs, settings.pod.in_pod) {
        (true, true) => {
            let (pod, namespace) = (&settings.pod.name, &settings.namespace);
            format!("restart this pod: kubectl delete pod {pod} -n {namespace}")
        }
        (true, false) => "restart syncer".to_owned(),
        (false, _) => "start syncer on this volume".to_owned(),
    };
    if args.output == Output::Json {
        let mut report = json!({
            "source": record.source,
            "target": settings.etcd_dir(),
            "sourceRevision": record.source_revision,
            "revision": record.revision,
            "keys": record.keys,
            "hash": format!("{:08x}", record.hash),
            "memberId": record.member,
            "clusterId": record.cluster,
            "replaces": record.replaces,
            "maxRequestBytes": record.max_request_bytes,
            "verified": record.made.map(|made| made.verify),
            "stagedBefore": done.is_none(),
            "next": next,
        });
        if let Some(done) = done {
            report["bytes"] = json!(done.bytes);
            report["leases"] = json!(done.made.leases);
            report["targetBytes"] = json!(done.target_bytes);
            report["warnings"] = json!(done.warnings);
            report["seconds"] = json!(done.duration.as_secs_f64());
            report["stages"] = json!(done.stages);
        }
        return format!("{report:#}\n");
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| writeln!(text, "{name:<10} {value}").unwrap_or_default();
    let RestoreRecord { source, keys, revision, source_revision, cluster, .. } = record;
    line(
        "staged",
        format!("{source}: {keys} keys at revision {source_revision}; hash {:08x}, confirmed by etcd", record.hash),
    );
    line("restored", format!("goes on at revision {revision} as cluster {cluster}, all before compacted"));
    line(
        "replaces",
        match record.replaces {
            Some(old) => format!("cluster {old}; nothing has changed for it, and it goes on until then"),
            None => "no data dir is here now".to_owned(),
        },
    );
    if done.is_none() {
        let minutes = unix_seconds().saturating_sub(record.staged) / 60;
        let again =
            if record.file.is_none() { " (an object of this name that came since is not looked at)" } else { "" };
        line("before", format!("that was done {minutes} minutes ago, and is left as it is{again}"));
    }
    line("next", next);
    line(
        "then",
        "that start serves the snapshot, and the other pods follow by themselves; what was written since it was".into(),
    );
    line("", "taken is in no store any more, and kept on each volume in etcd.aside-TIME".into());
    line("call off", "syncer snapshot restore --cancel, before that start".into());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::exit_of;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_staged_otherwise_is_not_the_same() {
        let asked = |line: &str| {
            Cli::try_parse_from(["restore", "a.db"].into_iter().chain(line.split_whitespace())).unwrap().args
        };
        let made = |bump, verify| MadeBy { bump, verify };
        for (line, made, want) in [
            ("", made(BUMP, Verify::Hash), None),
            ("", made(5, Verify::Full), None),
            ("--bump-revision 5", made(5, Verify::Hash), None),
            ("--bump-revision 5", made(BUMP, Verify::Hash), Some("with --bump-revision 1000000000, not 5")),
            ("--verify full", made(BUMP, Verify::Full), None),
            ("--verify full", made(BUMP, Verify::Hash), Some("verified by its hash alone")),
        ] {
            assert_eq!(otherwise(&asked(line), made).as_deref(), want, "{line} {made:?}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_refused_as_by_a_start() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(record::read(dir.path()).unwrap(), None);
        std::fs::write(record::path(dir.path()), "junk").unwrap();
        let args = Cli::try_parse_from(["restore", "--cancel"]).unwrap().args;
        for error in [record::read(dir.path()).unwrap_err(), cancel(&RealDisk, &args, dir.path()).unwrap_err()] {
            assert_eq!(exit_of(&error), Exit::RefusedDataDir, "{error:#}");
            assert!(error.to_string().contains("move that file away"), "no remedy: {error:#}");
        }
        assert!(record::path(dir.path()).exists(), "what cannot be read was called off");
    }

    #[test]
    fn a_snapshot_is_named_or_called_off() {
        let parse = |line: &str| Cli::try_parse_from(std::iter::once("restore").chain(line.split_whitespace()));
        let args = parse("/backups/a.db").unwrap().args;
        assert_eq!((args.place, args.bump_revision, args.cancel), (Some("/backups/a.db".into()), None, false));
        assert!(parse("--cancel -o json").unwrap().args.cancel);
        for bad in ["", "a.db --cancel", "a.db --bump-revision 0", "a.db b.db", "--cancel --dry-run"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
