//! `syncer snapshot save`: what it reaches, what it would do, what it has done.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::unistd::{AccessFlags, access};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use super::command::SaveArgs;
use super::digest::CHECKSUM;
use super::directory::Directory;
use super::name::{SnapshotName, cluster_of, expired};
use super::save::{ANSWER, Held, LEFT_FREE, Saved, Wanted, corrupt, not_begun, save};
use super::target::Target;
use crate::disk::{RealDisk, parent_of};
use crate::etcd::client::{ClientError, EtcdClient, EtcdEndpoint, Status, stalled_after};
use crate::exit::{Exit, refuse};
use crate::ids::Revision;
use crate::migrate::command::Output;
use crate::migrate::fenced::votes;
use crate::migrate::progress::{Meter, Show, shown};
use crate::migrate::space;
use crate::migrate::ways::to_voter;
use crate::pki::PkiPaths;
use crate::settings::Settings;
use crate::settings::provenance::without_user;

/// Takes a snapshot, and shows meanwhile how far that is; or only says what that would do. What is to be written to standard
/// output, and whether older ones were removed as asked.
///
/// # Errors
/// As [`save`]; an etcd that does not answer. There is no snapshot then.
pub fn take(args: &SaveArgs, settings: &Settings, runtime: &Runtime) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let meter = Meter::default();
    if args.dry_run {
        return runtime.block_on(looked(args, settings)).map(|text| (text, Ok(())));
    }
    shown(Show::Auto, &meter, || runtime.block_on(taken(args, settings, &meter)))
}

/// A member that can be asked for a snapshot.
struct Member {
    url: String,
    etcd: EtcdClient,
    status: Status,
    /// What was acknowledged before.
    revision: Revision,
}

impl Member {
    async fn reach(args: &SaveArgs, settings: &Settings) -> anyhow::Result<Member> {
        let endpoint = endpoint(args, settings)?;
        let url = without_user(&endpoint.url);
        let reached = to_voter(&endpoint, ANSWER).await;
        let (mut etcd, status) = reached.map_err(|error| {
            let unreached = |error| anyhow::Error::from(error).context(format!("reach etcd at {url}"));
            denied(&url, &error).unwrap_or_else(|| unreached(error))
        })?;
        votes(&url, &status)?;
        let revision = if args.stale { status.revision } else { agreed(&mut etcd, &url).await? };
        Ok(Member { url, etcd, status, revision })
    }

    /// What every report has of it.
    fn json(&self) -> Map<String, Value> {
        object(json!({
            "source": self.url,
            "sourceRevision": self.revision,
            "clusterId": self.status.cluster,
            "memberId": self.status.member,
        }))
    }
}

/// The refusal of an etcd that asks for a user; `None`: it does not.
fn denied(url: &str, error: &ClientError) -> Option<anyhow::Error> {
    let what = format!("the etcd at {url} asks for a user: {error}");
    let remedy = "give the certificate of a user who may read everything, or have `etcdctl --user` save it, which syncer takes too";
    error.is_denied().then(|| refuse(Exit::RefusedSource, what, remedy))
}

async fn agreed(etcd: &mut EtcdClient, url: &str) -> anyhow::Result<Revision> {
    etcd.linearizable_read(ANSWER).await.map_err(|error| {
        if let Some(denied) = denied(url, &error) {
            return denied;
        }
        let what = format!("the etcd at {url} reaches no quorum, and may lack what was acknowledged: {error}");
        refuse(Exit::RefusedSource, what, "bring the others back, or ask another; --stale saves what this one has")
    })
}

async fn taken(args: &SaveArgs, settings: &Settings, meter: &Meter) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let begun = Instant::now();
    // How much it is, etcd tells.
    meter.begin_save(0);
    let mut from = Member::reach(args, settings).await?;
    let now = OffsetDateTime::now_utc();
    let name = SnapshotName::new(&cluster_of(settings), from.status.cluster, now);
    let least = if args.stale { Revision(0) } else { from.revision };
    let wanted = Wanted { name: &name, size: from.status.db_size, least, patience: stalled_after() };
    let saved = save(&RealDisk, &mut from.etcd, &args.to, &wanted, Held::default(), meter).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut removed = Vec::new();
    let pruned = match args.keep {
        Some(keep) => pruned(args, &mut from, &saved, keep, now, &mut removed).await,
        None => Ok(()),
    };
    let place = args.to.place_of(&saved.name);
    if args.output == Output::Text {
        let mut text = format!("saved {place} ({} bytes, {seconds:.1} s)", saved.bytes);
        if let Some(content) = &saved.content {
            write!(text, " at revision {}; hash {:x}", content.revision, content.hash)?;
        }
        text.push('\n');
        for old in removed {
            writeln!(text, "removed {old}")?;
        }
        return Ok((text, pruned));
    }
    let content = serde_json::to_value(&saved.content)?;
    let mut report = from.json();
    report.extend(object(json!({
        "target": place,
        "targetBytes": saved.bytes,
        // Not known of one in a bucket, which is not read again.
        "revision": content.get("revision"),
        "hash": content.get("hash"),
        "place": args.to,
        "snapshot": saved,
        "removed": removed,
        "error": pruned.as_ref().err().map(|error| format!("{error:#}")),
        "seconds": seconds,
        "stages": meter.stages(),
    })));
    Ok((format!("{:#}\n", Value::Object(report)), pruned))
}

/// Removes older ones; `removed` has those that are gone.
async fn pruned(
    args: &SaveArgs,
    from: &mut Member,
    saved: &Saved,
    keep: u32,
    now: OffsetDateTime,
    removed: &mut Vec<SnapshotName>,
) -> anyhow::Result<()> {
    let place = args.to.place_of(&saved.name);
    match corrupt(&mut from.etcd).await {
        Ok(false) => {}
        Ok(true) => {
            let what = format!("{place} is saved, and no older one removed: etcd has raised the alarm CORRUPT");
            let remedy = "restore a snapshot from before that, or replace the members that differ";
            return Err(refuse(Exit::Fault, what, remedy));
        }
        Err(error) => {
            let what = format!("{place} is saved, and no older one removed: {error:#}");
            return Err(refuse(Exit::Fault, what, "let the next save do so"));
        }
    }
    args.to.prune(&RealDisk, &saved.name, keep, now, removed).await.map_err(|error| {
        let what = format!("{place} is saved, and {} older ones removed, but not all: {error:#}", removed.len());
        refuse(Exit::Fault, what, "remove the others by hand, or let the next save do so")
    })
}

/// What a save would do, as far as that can be told without it.
async fn looked(args: &SaveArgs, settings: &Settings) -> anyhow::Result<String> {
    let mut from = Member::reach(args, settings).await?;
    let now = OffsetDateTime::now_utc();
    let name = SnapshotName::new(&cluster_of(settings), from.status.cluster, now);
    let bytes = from.status.db_size + CHECKSUM as u64;
    let (name, free) = match &args.to {
        Target::Directory(dir) => {
            let above = writable(dir)?;
            (dir.free(&name), Some(space::free(&above)?))
        }
        // Whether objects can be put there, only an attempt tells. One that is not completed is none.
        Target::Bucket(bucket) => {
            let upload = bucket.begin(&name).await?;
            let name = upload.name().clone();
            upload.abort().await;
            (name, None)
        }
    };
    let (mut removed, mut warnings) = (Vec::new(), Vec::new());
    if let Some(keep) = args.keep {
        if corrupt(&mut from.etcd).await? {
            warnings.push("etcd has raised the alarm CORRUPT: no older one would be removed".to_owned());
        } else {
            let kept = args.to.list().await?.into_iter().map(|stored| stored.name);
            removed = expired(kept.chain([name.clone()]), &name, keep as usize, now);
        }
    }
    let (place, needed) = (args.to.place_of(&name), bytes.saturating_add(LEFT_FREE));
    if args.output == Output::Json {
        let mut report = from.json();
        report.extend(object(json!({
            "target": place,
            "targetBytes": bytes,
            "place": args.to,
            "removed": removed,
            "neededBytes": free.map(|_| needed),
            "freeBytes": free,
            "warnings": warnings,
            "dryRun": true,
        })));
        return Ok(format!("{:#}\n", Value::Object(report)));
    }
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<10} {value}");
    line("source", format!("{} at revision {}", from.url, from.revision))?;
    line("snapshot", format!("{place} (about {bytes} bytes)"))?;
    for old in removed {
        line("removes", old.to_string())?;
    }
    if let Some(free) = free {
        let enough = if needed <= free { "enough" } else { "NOT ENOUGH" };
        line("space", format!("{} MiB needed, {} MiB free: {enough}", needed.div_ceil(1 << 20), free >> 20))?;
    }
    for warning in warnings {
        line("warning", warning)?;
    }
    text.push_str("nothing has been changed\n");
    Ok(text)
}

/// The directory, or the one in which it would be made, in which something can be written.
fn writable(dir: &Directory) -> anyhow::Result<PathBuf> {
    let mut above = std::path::absolute(&dir.0)?;
    while !above.exists() && above != Path::new("/") {
        above = parent_of(&above);
    }
    let refused = |error: nix::Error| not_begun(std::io::Error::from(error), dir);
    if !above.is_dir() {
        return Err(refused(nix::Error::ENOTDIR));
    }
    access(&above, AccessFlags::W_OK | AccessFlags::X_OK).map_err(refused)?;
    Ok(above)
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

fn endpoint(args: &SaveArgs, settings: &Settings) -> anyhow::Result<EtcdEndpoint> {
    match &args.endpoint {
        Some(url) => args.tls.endpoint(url),
        None if args.tls.given() => {
            let what = "--cacert, --cert and --key are those of another etcd, and none is named";
            Err(refuse(Exit::Usage, what, "give --endpoint URL, or leave them out"))
        }
        None => {
            let tls = PkiPaths::new(&settings.pki_dir).etcd_tls().client();
            Ok(EtcdEndpoint::on_loopback(settings.listen.client_port, tls))
        }
    }
}
