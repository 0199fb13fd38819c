//! `syncer recover`: what is left of a cluster that lost its majority for good, and a reset of it on request.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::Serialize;

use super::journal::{self, Permission, Phase};
use super::run::{ResetOutcome, ResetPlan, allowed, newer, not_open, pending, reset, usable};
use crate::boot::{FenceFact, Notes, Refusal};
use crate::datadir::lock::LockError;
use crate::datadir::members::{Member, stored_members};
use crate::datadir::{DatadirLock, InspectedDatadir, LogTail, Role, UsableDatadir, inspect, log_tail, quarantine};
use crate::disk::Disk;
use crate::etcd::EtcdVersion;
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId, Revision};
use crate::migrate::command::Output;
use crate::migrate::commit::keep_migrated;
use crate::migrate::fence;
use crate::observe::notes;
use crate::restore::record;
use crate::settings::flags::LogFlags;

/// How far the revision is raised unless told otherwise: no cluster has that many revisions in flight.
const BUMP: i64 = 1_000_000_000;
/// How long another syncer may take to go.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Where an API server's SQLite store may have been moved from.
const STATE_DBS: [&str; 3] = ["state.db", "server/db/state.db", "k0s/db/state.db"];

/// The command's arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The volume of the member that is to go on alone; etcd's data dir is `etcd` in it.
    #[arg(long, value_name = "DIR", default_value = "/data")]
    pub data_dir: PathBuf,
    /// Act on this cluster: the ID that the command shows without this flag. Nothing is changed without it.
    #[arg(long, value_name = "ID")]
    pub cluster_id: Option<ClusterId>,
    /// Reset even if acknowledged writes may be missing, and raise the store's revision so that clients list anew.
    #[arg(long, requires = "cluster_id")]
    pub accept_loss: bool,
    /// By how much --accept-loss raises the revision: more than there can be missing revisions.
    #[arg(long, value_name = "N", default_value_t = BUMP, value_parser = clap::value_parser!(i64).range(1..=1 << 60))]
    pub bump_revision: i64,
    /// The old data is gone for good: set aside what is left of it, so that the next start forms a new, empty cluster.
    #[arg(long, conflicts_with = "accept_loss")]
    pub new_cluster: bool,
    /// With --new-cluster, where there is no cluster to name because the data dir is damaged or missing.
    #[arg(long, requires = "new_cluster")]
    pub yes: bool,
    /// The etcd program, of the version that is to go on.
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    pub etcd: PathBuf,
    /// Form of the report on standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What is logged.
    #[command(flatten)]
    pub log: LogFlags,
}

/// What the note of a member that was overtaken says.
const OVERTAKEN: &str = "others were seen to serve it since this member was, or was to be, made the only one";

/// What was found, and what was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    data_dir: PathBuf,
    member: MemberId,
    name: String,
    cluster: ClusterId,
    etcd: String,
    log: LogTail,
    members: Vec<Listed>,
    /// Whether a reset loses nothing that was acknowledged, by the log.
    lossless: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// An interrupted reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    interrupted: Option<Phase>,
    /// Others were seen to serve the cluster since this member was, or was to be, made the only one.
    overtaken: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Done>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: MemberId,
    name: String,
    peer_urls: Vec<String>,
    learner: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    lossless: bool,
    revision: Revision,
    copy: PathBuf,
    seconds: f64,
}

/// Runs the command; gives what is to be written to standard output.
pub fn run(disk: &dyn Disk, args: &Args) -> anyhow::Result<String> {
    let data_dir = std::path::absolute(&args.data_dir)?;
    if !data_dir.is_dir() {
        let what = format!("{} is not a directory", data_dir.display());
        return Err(refuse(Exit::Usage, what, "name the volume with --data-dir"));
    }
    let lock = lock(&data_dir)?;
    not_open(&data_dir.join("etcd"))?;
    if args.new_cluster || args.cluster_id.is_some() {
        not_restoring(&data_dir)?;
    }
    let version = EtcdVersion::of(&args.etcd).map_err(|e| e.refused())?;
    if args.new_cluster {
        return new_cluster(disk, args, &data_dir, version);
    }
    let dir = usable(&data_dir, version)?;
    let mut report = look(&dir, &data_dir, version)?;
    let Some(cluster) = args.cluster_id else { return shown(args, &report) };
    if cluster != report.cluster {
        return Err(refuse(
            Exit::RefusedDataDir,
            format!("{} is of cluster {}, not {cluster}", dir.path().display(), report.cluster),
            "give the command without --cluster-id to see what is there; nothing has been changed",
        ));
    }
    let asked = Asked {
        alone: report.log.is_alone(),
        overtaken: report.overtaken,
        interrupted: report.interrupted.is_some(),
        lossless: report.lossless,
        accepted: args.accept_loss.then_some(args.bump_revision),
    };
    let permission = match answer(&asked) {
        Answer::NothingToDo => return shown(args, &report),
        Answer::Reset(permission) => permission,
        Answer::TakenSince => {
            return Err(refuse(
                Exit::RefusedMembership,
                format!("what others of cluster {cluster} have acknowledged since would be lost: {OVERTAKEN}"),
                "start those that have served it, with their volumes; if they are gone for good, or to give up what they took, \
                 add --accept-loss",
            ));
        }
        Answer::MayLose => {
            allowed(&report.log, Permission::LossAccepted { bump: args.bump_revision })?;
            let reason = report.reason.unwrap_or_default();
            return Err(refuse(
                Exit::RefusedMembership,
                format!("a reset may lose acknowledged writes: {reason}"),
                "bring back enough of the others, with their volumes; if they are gone for good, add --accept-loss",
            ));
        }
    };
    let plan = ResetPlan {
        data_dir,
        program: args.etcd.clone(),
        version,
        lock: &lock,
        member: report.member,
        cluster,
        permission,
    };
    let mut outcome = reset(disk, &plan)?;
    // One that was interrupted goes on with what allowed it; the others had not served then.
    if report.overtaken && !matches!(outcome.permission, Permission::LossAccepted { .. }) {
        outcome = reset(disk, &plan)?;
    }
    // The marker that was seen to drop the others may be another since.
    notes::change(disk, &plan.data_dir, |notes| {
        if notes.overtaken.take().is_some() {
            notes.dropped.clear();
        }
    })?;
    let ResetOutcome { permission, revision, copy, duration, .. } = outcome;
    let lossless = !matches!(permission, Permission::LossAccepted { .. });
    report.done = Some(Done { lossless, revision, copy, seconds: duration.as_secs_f64() });
    shown(args, &report)
}

/// What a reset of the cluster that was named depends on.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// This is the only member by its log.
    alone: bool,
    /// Others have served since it was, or was to be, made the only one.
    overtaken: bool,
    /// A reset was begun.
    interrupted: bool,
    /// Nothing that was acknowledged is missing, by the log.
    lossless: bool,
    /// The loss is accepted, and the revision is to be raised by so much.
    accepted: Option<i64>,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is what it should be.
    NothingToDo,
    /// It is made the only member.
    Reset(Permission),
    /// Refused: it would lose what others have acknowledged since.
    TakenSince,
    /// Refused: it may lose what the others have acknowledged before.
    MayLose,
}

fn answer(asked: &Asked) -> Answer {
    match (asked.accepted, asked.overtaken) {
        (None, true) => Answer::TakenSince,
        (Some(bump), true) => Answer::Reset(Permission::LossAccepted { bump }),
        _ if asked.alone && !asked.interrupted => Answer::NothingToDo,
        _ if asked.lossless => Answer::Reset(Permission::TwoVoters),
        (Some(bump), false) => Answer::Reset(Permission::LossAccepted { bump }),
        // It goes on with what allowed it.
        (None, false) if asked.interrupted => Answer::Reset(Permission::TwoVoters),
        (None, false) => Answer::MayLose,
    }
}

/// The next start puts a staged snapshot in the place of whatever is here.
fn not_restoring(data_dir: &Path) -> anyhow::Result<()> {
    let Some(staged) = record::read(data_dir)? else { return Ok(()) };
    Err(refuse(
        Exit::RefusedDataDir,
        format!("{} is staged on this volume, and its next start serves that", staged.source),
        "start the pod; or call the restore off first, if it has not begun: `syncer snapshot restore --cancel`",
    ))
}

fn lock(data_dir: &Path) -> anyhow::Result<DatadirLock> {
    DatadirLock::acquire(data_dir, LOCK_PATIENCE).map_err(|e| match e {
        LockError::Held { .. } => refuse(
            Exit::RefusedLocked,
            e.to_string(),
            "stop it first: scale the StatefulSet to 0 and run this command in a pod that mounts the volume",
        ),
        LockError::Io { .. } => e.into(),
    })
}

fn look(dir: &UsableDatadir, data_dir: &Path, version: EtcdVersion) -> anyhow::Result<Report> {
    let interrupted = pending(data_dir)?;
    let log = match (log_tail(dir), &interrupted) {
        (Ok(log), _) => log,
        (Err(_), Some(journal)) => journal.before.clone(),
        (Err(e), None) => {
            let text = format!("the log does not tell its members: {:#}", anyhow::Error::from(e));
            return Err(refuse(Exit::RefusedDataDir, text, "restore from a backup, or use another voter's volume"));
        }
    };
    let stored = stored_members(dir.backend()).context("read the members")?;
    let reason = allowed(&log, Permission::TwoVoters).err();
    let name = stored.members.iter().find(|m| m.id == log.member).map(|m| m.name.clone()).unwrap_or_default();
    let listed = |m: Member| Listed { id: m.id, name: m.name, peer_urls: m.peer_urls, learner: m.learner };
    Ok(Report {
        data_dir: data_dir.to_owned(),
        member: log.member,
        name,
        cluster: log.cluster,
        etcd: version.to_string(),
        lossless: reason.is_none(),
        reason: reason.map(|e| e.downcast_ref::<crate::exit::ExitError>().map_or(e.to_string(), |e| e.what.clone())),
        interrupted: interrupted.map(|journal| journal.phase),
        overtaken: notes::load(data_dir)?.overtaken == Some(log.member),
        members: stored.members.into_iter().map(listed).collect(),
        log,
        done: None,
    })
}

fn shown(args: &Args, report: &Report) -> anyhow::Result<String> {
    Ok(match args.output {
        Output::Json => format!("{:#}\n", serde_json::to_value(report).context("encode the report")?),
        Output::Text => text(report),
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let log = &report.log;
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| writeln!(text, "{name:<12} {value}").unwrap_or_default();
    line("data dir", report.data_dir.join("etcd").display().to_string());
    line("cluster", report.cluster.to_string());
    let role = match log.memberships.last().map(|membership| membership.role) {
        Some(Role::Voter) => "a voter",
        Some(Role::Learner) => "a learner",
        Some(Role::Absent) | None => "removed",
    };
    line("member", format!("{} ({}), {role}", report.member, report.name));
    line(
        "log",
        format!(
            "ends at index {} of term {}; known to be committed up to {}",
            log.last_index.0, log.last_term.0, log.committed.0
        ),
    );
    line("revision", format!("{} at index {}", log.revision, log.consistent_index.0));
    if let Some(before) = &log.before_change {
        let voters: Vec<_> = before.voters.iter().map(|id| named(report, *id)).collect();
        line("voters", format!("{} until shortly before the end; they may have agreed on more", voters.join(", ")));
    }
    for membership in &log.memberships {
        let (from, certain) = (membership.since.0, if membership.committed { "" } else { " (perhaps)" });
        let of = |ids: &[MemberId]| ids.iter().map(|id| named(report, *id)).collect::<Vec<_>>().join(", ");
        let learners = match of(&membership.learners) {
            learners if learners.is_empty() => String::new(),
            learners => format!("; learners {learners}"),
        };
        line("voters", format!("{} from index {from} on{certain}{learners}", of(&membership.voters)));
    }
    match (&report.done, &report.reason) {
        (Some(done), _) => {
            let how = if done.lossless { "nothing that was acknowledged is lost" } else { "see what is missing" };
            line("done", format!("this is the only member now, at revision {}; {how}", done.revision));
            line("copy", done.copy.display().to_string());
            line(
                "next",
                "scale to one replica first: by the host cluster's API this member then drops the others, whatever their volumes \
                 have; without that API, or on another volume than the lowest ordinal's, set the data dirs of the other volumes \
                 aside instead; then scale up"
                    .into(),
            );
        }
        (None, _) if report.overtaken => {
            line("loss", format!("what they have acknowledged: {OVERTAKEN}"));
            line(
                "next",
                format!(
                    "start those that have served it, with their volumes; to keep this one all the same: --cluster-id {} \
                     --accept-loss; a copy is kept",
                    report.cluster
                ),
            );
        }
        (None, _) if report.interrupted.is_some() => {
            line("interrupted", format!("a reset stands at {:?}", report.interrupted));
            line("next", format!("go on with it: --cluster-id {}", report.cluster));
        }
        (None, _) if log.is_alone() => {
            line("next", "nothing is to be recovered: this is the only member of its cluster".into());
        }
        (None, None) => {
            line("loss", "none: every acknowledged write is in this log, if the others are gone for good".into());
            line("next", format!("reset it: --cluster-id {}; a copy is kept", report.cluster));
        }
        (None, Some(reason)) => {
            line("loss", format!("possible: {reason}"));
            let next = match allowed(log, Permission::LossAccepted { bump: 1 }) {
                Ok(()) => format!(
                    "bring the others back with their volumes; if that cannot be, reset it: --cluster-id {} \
                     --accept-loss; a copy is kept",
                    report.cluster
                ),
                Err(e) => format!("{e}"),
            };
            line("next", next);
        }
    }
    if report.done.is_none() {
        text.push_str("nothing has been changed\n");
    }
    text
}

fn named(report: &Report, id: MemberId) -> String {
    match report.members.iter().find(|member| member.id == id) {
        Some(member) if !member.name.is_empty() => format!("{} ({id})", member.name),
        _ => id.to_string(),
    }
}

/// Sets aside what keeps the next start from forming a cluster: the data dir, the journals of a reset and of a migration,
/// and the SQLite stores that were migrated into it. Everything is renamed, nothing is deleted.
fn new_cluster(disk: &dyn Disk, args: &Args, data_dir: &Path, version: EtcdVersion) -> anyhow::Result<String> {
    let etcd_dir = data_dir.join("etcd");
    let found = inspect(&etcd_dir, version.schema()).map_err(|e| {
        let what = format!("whether {} is sound cannot be told: {:#}", etcd_dir.display(), anyhow::Error::from(e));
        refuse(
            Exit::Fault,
            what,
            "have the volume and its file system looked at, and try again; nothing has been changed",
        )
    })?;
    match (found, args.cluster_id) {
        (InspectedDatadir::Usable(dir), Some(cluster)) if dir.cluster() == cluster => {}
        (InspectedDatadir::Usable(dir), _) => {
            return Err(refuse(
                Exit::RefusedDataDir,
                format!("{} holds sound data of cluster {}", etcd_dir.display(), dir.cluster()),
                format!(
                    "without --new-cluster the command says how to go on with it; to give it up all the same, add \
                     --cluster-id {}",
                    dir.cluster()
                ),
            ));
        }
        // As far as can be told it is sound.
        (InspectedDatadir::Newer(versions), _) => return Err(newer(&etcd_dir, &versions)),
        (InspectedDatadir::Empty | InspectedDatadir::Damaged(_), None) if args.yes => {}
        (nameless @ (InspectedDatadir::Empty | InspectedDatadir::Damaged(_)), _) => {
            let found = match nameless {
                InspectedDatadir::Damaged(reason) => format!("{} is damaged: {reason}", etcd_dir.display()),
                _ => format!("{} holds no data of etcd", etcd_dir.display()),
            };
            return Err(refuse(
                Exit::RefusedDataDir,
                format!("there is no cluster that could be named: {found}"),
                "to set aside what is there, add --yes, and no --cluster-id",
            ));
        }
    }
    // Without it the next start would know neither that a fence is to be lifted nor that one was.
    let fence = fence::fact(data_dir).context("read the record of a fence")?;
    match &fence {
        FenceFact::Raised { source, .. } => {
            return Err(refuse(
                Exit::RefusedSource,
                format!("{source} may still have this volume's fence around it, by which it takes no writes"),
                "start this pod, which lifts it, or lift it by hand (docs/migration.md); then try again",
            ));
        }
        FenceFact::Damaged(why) => return Err(Refusal::DamagedJournal(why.clone()).error()),
        FenceFact::Absent | FenceFact::Lifted { .. } | FenceFact::Kept { .. } => {}
    }
    let mut moved: Vec<PathBuf> = Vec::new();
    moved.extend(quarantine::set_aside(disk, &etcd_dir, SystemTime::now()).context("set the data dir aside")?);
    let of_migrations = [crate::migrate::journal::FILE_NAME, crate::migrate::journal::BACK_FILE_NAME];
    let mut records = vec![journal::FILE_NAME];
    records.extend(of_migrations);
    records.extend((!fence.is_absent()).then_some(fence::FILE_NAME));
    for name in records {
        moved.extend(
            quarantine::set_aside(disk, &data_dir.join(name), SystemTime::now()).context("set a journal aside")?,
        );
    }
    // What is noted of the given-up cluster would keep the volume from forming another. What was superseded stays so.
    if notes::load(data_dir).is_err() {
        let damaged = data_dir.join(notes::FILE_NAME);
        moved.extend(quarantine::set_aside(disk, &damaged, SystemTime::now()).context("set the notes aside")?);
    }
    notes::change(disk, data_dir, |notes| {
        let (superseded, settled) = (std::mem::take(&mut notes.superseded), std::mem::take(&mut notes.settled));
        *notes = Notes { superseded, settled, ..Notes::default() };
    })?;
    for name in STATE_DBS {
        moved.extend(keep_migrated(disk, &data_dir.join(name)).context("keep a migrated store")?);
    }
    let store = STATE_DBS.iter().map(|name| data_dir.join(name)).find(|db| db.exists());
    Ok(match args.output {
        Output::Json => format!("{:#}\n", serde_json::json!({ "setAside": moved, "stateDb": store })),
        Output::Text => {
            let mut text: String = moved.iter().map(|path| format!("set aside    {}\n", path.display())).collect();
            text.push_str(&match store {
                Some(db) => format!("next         the next start moves {} into a new cluster\n", db.display()),
                None => "next         the next start of the lowest ordinal forms a new, empty cluster\n".to_owned(),
            });
            text.push_str(
                "marker       in a pod that uses the host cluster's API: delete the ConfigMap <name>-etcd before that, which \
                 names the given-up cluster; every other volume that is left must then be empty\n",
            );
            text
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(std::iter::once("recover").chain(line.split_whitespace())).map(|cli| cli.args)
    }

    #[test]
    fn what_was_acknowledged_is_given_up_by_word_alone() {
        let (alone, overtaken, interrupted) = ([false, true], [false, true], [false, true]);
        let all =
            alone.into_iter().flat_map(|a| overtaken.into_iter().flat_map(move |o| interrupted.map(|i| (a, o, i))));
        for ((alone, overtaken, interrupted), lossless) in all.flat_map(|facts| [true, false].map(|l| (facts, l))) {
            let asked = |accepted| answer(&Asked { alone, overtaken, interrupted, lossless, accepted });
            let (word, none) = (asked(Some(7)), asked(None));
            let facts = format!("alone {alone}, overtaken {overtaken}, interrupted {interrupted}, lossless {lossless}");
            let loses = Answer::Reset(Permission::LossAccepted { bump: 7 });
            assert_ne!(none, loses, "{facts}");
            assert_eq!(none == Answer::TakenSince, overtaken, "{facts}");
            match () {
                () if overtaken => assert_eq!(word, loses, "{facts}"),
                () if alone && !interrupted => {
                    assert_eq!((word, none), (Answer::NothingToDo, Answer::NothingToDo), "{facts}")
                }
                () if lossless => assert_eq!((word, none), (Answer::Reset(Permission::TwoVoters), word), "{facts}"),
                () => assert_eq!((word, none == Answer::MayLose), (loses, !interrupted), "{facts}"),
            }
        }
    }

    #[test]
    fn nothing_is_done_without_the_cluster_s_id() {
        let args = parse("--data-dir /x").unwrap();
        assert_eq!((args.cluster_id, args.accept_loss, args.new_cluster), (None, false, false));
        assert_eq!(parse("--cluster-id cdf818194e3a8c32").unwrap().cluster_id, Some(ClusterId(0xcdf8_1819_4e3a_8c32)));
        for bad in [
            "--accept-loss",
            "--yes",
            "--cluster-id xyz",
            "--new-cluster --accept-loss --cluster-id 1",
            "--cluster-id 1 --accept-loss --bump-revision 0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
