//! `syncer snapshot`: take one, list them, look through one ([`crate::restore`]: put one in the place of the present store).

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;
use tokio::runtime::Runtime;

use super::check::check;
use super::fetched::Fetched;
use super::target::Target;
use crate::disk::RealDisk;
use crate::etcd::tls_flags::TlsFlags;
use crate::migrate::command::Output;
use crate::settings::flags::{Flags, LogFlags};

/// What to do with snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of the etcd beside this pod, or of another, and keep it.
    #[command(
        long_about = "Streams a snapshot from a running member, checks it, and only then gives it its name. By default the \
            member is the one of this pod, with this pod's certificates; --endpoint names another etcd, whose certificates \
            --cacert, --cert and --key name.\n\nA place is a directory, or a bucket of an object storage that speaks S3: \
            s3://BUCKET/PREFIX, with endpoint, region and credentials from the environment as the AWS tools have them \
            (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or a web identity's).",
        after_long_help = "Examples:\n  \
            syncer snapshot save --to /backups\n      \
            in a pod: kubectl exec my-vcluster-0 -- syncer snapshot save --to /data/snapshots\n  \
            syncer snapshot save --to s3://my-backups/my-vcluster --keep 7 --dry-run\n  \
            syncer snapshot save --to s3://my-backups/my-vcluster --keep 7\n  \
            syncer snapshot save --to ./backups --keep 7 --endpoint http://127.0.0.1:2379 --name my-vcluster\n\n\
            Exit codes: 0 saved   1 etcd does not answer or the place fails, or it is saved and an older one could not be removed \
            (the report tells)   2 bad usage, or a place that cannot be written to   4 a learner, a member without a quorum (which may \
            pass), one that asks for a user, or a snapshot that another member has sent and that lacks something   7 no space"
    )]
    Save(Box<SaveArgs>),
    /// Put a snapshot in the place of the present store, at the next start of the seed's pod.
    #[command(
        long_about = "Stages a snapshot on the volume of the seed's pod (the one with the lowest ordinal), beside a syncer that \
            runs there or on a volume that nobody uses: a data dir is made of it aside, and confirmed by an etcd. Nothing \
            is changed for whoever runs. The next start of that pod sets the present data dir aside and serves the \
            snapshot, as a new cluster, at a revision above everything that clients have seen; the other pods set theirs \
            aside and join it by themselves. Killed at any instant, the command can be given again.\n\n\
            What was written since the snapshot is in no store any more. Take one of what is there first: it is the way \
            back. docs/migration.md, \"Restoring a snapshot\", tells the whole journey.",
        after_long_help = "Examples:\n  \
            kubectl exec my-vcluster-0 -- syncer snapshot restore /data/snapshots/team-a.my-vcluster-20261124T060000Z-6d7d1a9c5e0f3b21.db\n      \
            then: kubectl delete pod my-vcluster-0\n  \
            syncer snapshot restore s3://my-backups/my-vcluster/team-a.my-vcluster-20261124T060000Z-6d7d1a9c5e0f3b21.db --dry-run\n  \
            syncer snapshot restore --cancel\n      \
            call it off, before that start\n\n\
            Exit codes: 0 staged, shown or called off   1 a fault   2 bad usage   3 beside an import, a move from a deployed \
            etcd, a reset, another restore, or with embedded etcd off\n  \
            4 the snapshot is damaged, cut off, or none   5 not the seed's volume, or two clusters   7 no space   8 another \
            restore is at work"
    )]
    Restore(Box<crate::restore::command::Args>),
    /// List the snapshots that are kept in a place.
    List {
        /// The place: a directory, or s3://BUCKET/PREFIX.
        #[arg(long, value_name = "PLACE")]
        from: Target,
        /// Form of the list.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// What is logged.
        #[command(flatten)]
        log: LogFlags,
    },
    /// Look through a snapshot file: whether it is whole and undamaged, and what is in it.
    #[command(after_long_help = "The hash is the one that `etcdutl snapshot status` shows.\n\n\
        Exit codes: 0 it can be relied on   1 it cannot be read   2 no such bucket, or not allowed   4 it is damaged, cut off, no \
        snapshot, or not there   7 no space to fetch it")]
    Verify {
        /// The file: a snapshot of syncer's or etcdctl's. One in a bucket, s3://BUCKET/PREFIX/NAME, is fetched to TMPDIR
        /// first.
        file: PathBuf,
        /// Take a file without a checksum at its end, such as a copy of etcd's own member/snap/db.
        #[arg(long)]
        skip_hash_check: bool,
        /// Form of the report.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// What is logged.
        #[command(flatten)]
        log: LogFlags,
    },
}

/// Arguments of `syncer snapshot save`.
#[derive(Clone, Debug, clap::Args)]
pub struct SaveArgs {
    /// Where to keep it: a directory, made when it is missing, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE")]
    pub to: Target,
    /// Afterwards remove the oldest of this virtual cluster and of the same etcd cluster, so that so many are left. None is
    /// removed while etcd has the alarm CORRUPT.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// Reach the etcd and the place, and say what would be written and which older ones removed; write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Save what this etcd has although it reaches no quorum, as when a majority is lost for good: what was acknowledged may
    /// be missing.
    #[arg(long, conflicts_with = "keep")]
    pub stale: bool,
    /// The client URL of another etcd.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Its certificates.
    #[command(flatten)]
    pub tls: TlsFlags,
    /// Form of the report.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Settings, as `syncer start` has them.
    #[command(flatten)]
    pub flags: Flags,
}

/// Lists the snapshots in a place.
///
/// # Errors
/// [`Exit::Fault`] if it cannot be read.
pub async fn list(from: &Target, output: Output) -> anyhow::Result<String> {
    let found = from.list().await?;
    if output == Output::Json {
        return Ok(format!("{:#}\n", json!({ "place": from, "snapshots": found })));
    }
    if found.is_empty() {
        return Ok(format!("no snapshots in {from}\n"));
    }
    let mut text = String::new();
    for stored in found {
        writeln!(text, "{:<60} {:>14} bytes", stored.name.to_string(), stored.bytes)?;
    }
    Ok(text)
}

/// Looks through a snapshot; one in a bucket is fetched first.
///
/// # Errors
/// [`Exit::RefusedSource`] if it is not a snapshot that can be relied on, or not there.
pub fn verify(file: &Path, skip_hash_check: bool, output: Output, runtime: &Runtime) -> anyhow::Result<String> {
    let here = Fetched::from(file, &RealDisk, &std::env::temp_dir(), runtime)?;
    let found = check(here.path(), !skip_hash_check);
    let found = found.map_err(|e| e.refused(&file.display().to_string()))?;
    if output == Output::Json {
        return Ok(format!("{:#}\n", serde_json::to_value(&found)?));
    }
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<10} {value}");
    line("file", file.display().to_string())?;
    line("bytes", found.bytes.to_string())?;
    line("checksum", if found.checksum { "right" } else { "none" }.to_owned())?;
    line("revision", found.content.revision.to_string())?;
    line("revisions", format!("{} of keys are in it", found.content.revisions))?;
    line("members", found.content.members.join(", "))?;
    line("hash", format!("{:x}", found.content.hash))?;
    Ok(text)
}
