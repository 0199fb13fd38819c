//! The steps of a reset, from wherever it stands.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};

use super::bump::{bump, check_pages};
use super::copy::{Live, forget_partial, keep_copy};
use super::journal::{self, Permission, Phase, ResetJournal};
use super::standalone::{Expected, run_alone};
use crate::crash_point;
use crate::datadir::members::stored_members;
use crate::datadir::quarantine::free_name;
use crate::datadir::wal::{HardState, append_state};
use crate::datadir::{DatadirLock, InspectedDatadir, LogTail, MemberIdentity, Role, UsableDatadir, inspect, log_tail};
use crate::disk::{Disk, at};
use crate::etcd::EtcdVersion;
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, MemberId, Revision};
use crate::migrate::loopback::{LoopbackEtcd, NO_SNAPSHOT};
use crate::migrate::space;
use crate::record_file::{RecordError, unix_seconds};

/// What etcd itself may write meanwhile: two preallocated segments, and steps by which the backend grows.
const ETCD_ITSELF: u64 = (2 * 64 + 2 * 16 + 16) << 20;
/// With this `--snapshot-count` etcd takes a raft snapshot after every second entry.
const SNAPSHOT_SOON: u64 = 1;
/// So often etcd is run for a snapshot. One that is told to stop within the moment in which it begins to serve ends as if it
/// were killed.
const RUNS: u32 = 5;
/// The name of a member that has not published one.
const UNNAMED: &str = "default";
/// What a member that has published none advertises until its next usual start.
const NOWHERE: &str = "https://localhost:2379";
/// Its certificates stand here, beside the data dir, while etcd runs.
const SCRATCH: &str = "reset.tls";

/// A reset to be done.
#[derive(Clone, Debug)]
pub struct ResetPlan<'a> {
    /// The directory that holds `etcd/`, the journal and the copy.
    pub data_dir: PathBuf,
    /// The etcd program.
    pub program: PathBuf,
    /// Its version.
    pub version: EtcdVersion,
    /// The lock of `data_dir`. etcd inherits it.
    pub lock: &'a DatadirLock,
    /// Whose data dir the decision was about; another one is refused.
    pub member: MemberId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// What allows it.
    pub permission: Permission,
}

/// A reset that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetOutcome {
    /// The log as it was found.
    pub before: LogTail,
    /// What allowed it.
    pub permission: Permission,
    /// The store's revision now.
    pub revision: Revision,
    /// Where the copy is.
    pub copy: PathBuf,
    /// How long this attempt took.
    pub duration: Duration,
}

/// Does what `plan` says, or goes on with what an earlier attempt began. The data dir is then that of the only member of
/// its cluster, with etcd stopped.
///
/// Refused, with nothing changed: a learner's or a removed member's data dir, a damaged one, one that etcd has open, one
/// that the permission does not cover, too little space for the copy.
pub fn reset(disk: &dyn Disk, plan: &ResetPlan<'_>) -> anyhow::Result<ResetOutcome> {
    let begun = Instant::now();
    let present = journal::load(&plan.data_dir).context("read the reset's journal")?;
    let mut journal = match present {
        Some(journal) if matches!(journal.phase, Phase::Resetting | Phase::Bumping) => {
            same(plan, journal.before.member, journal.before.cluster)?;
            tracing::warn!(phase = ?journal.phase, "going on with an interrupted reset");
            journal
        }
        interrupted => {
            if let Some(journal) = &interrupted {
                forget_partial(disk, &plan.data_dir.join(&journal.copy)).context("remove a half-made copy")?;
            }
            begin(disk, plan, interrupted.as_ref())?
        }
    };
    loop {
        journal = match journal.phase {
            Phase::Copying => copied(disk, plan, journal)?,
            Phase::Resetting => stand_alone(disk, plan, journal)?,
            Phase::Bumping => bumped(disk, plan, journal)?,
            Phase::Done => break,
        };
        journal::store(disk, &plan.data_dir, &journal)?;
        match journal.phase {
            Phase::Resetting => crash_point!("reset-copied"),
            Phase::Done => crash_point!("reset-done"),
            Phase::Copying | Phase::Bumping => {}
        }
    }
    let revision = journal.after.context("the reset's journal lacks the revision")?;
    let copy = plan.data_dir.join(&journal.copy);
    let (before, permission, duration) = (journal.before, journal.permission, begun.elapsed());
    Ok(ResetOutcome { before, permission, revision, copy, duration })
}

/// Goes on with a reset that was interrupted after it had begun to change the data dir, if there is one. Whoever starts
/// etcd calls this first: in between, the data dir must not be started in any other way.
pub fn finish(
    disk: &dyn Disk,
    data_dir: &Path,
    program: &Path,
    version: EtcdVersion,
    lock: &DatadirLock,
) -> anyhow::Result<Option<ResetOutcome>> {
    let journal = pending(data_dir)?;
    let Some(ResetJournal { before, permission, .. }) = journal else { return Ok(None) };
    let (member, cluster) = (before.member, before.cluster);
    let (data_dir, program) = (data_dir.to_owned(), program.to_owned());
    reset(disk, &ResetPlan { data_dir, program, version, lock, member, cluster, permission }).map(Some)
}

/// Whether there is a reset that [`finish`] would go on with. An error, and never false, where that cannot be read.
pub fn is_pending(data_dir: &Path) -> anyhow::Result<bool> {
    pending(data_dir).map(|journal| journal.is_some())
}

/// As [`journal::pending`], with what to do about a damaged one.
pub(super) fn pending(data_dir: &Path) -> anyhow::Result<Option<ResetJournal>> {
    journal::pending(data_dir).map_err(|e| match e {
        RecordError::Io(e) => anyhow::Error::from(e).context("read the reset's journal"),
        damaged => refuse(
            Exit::RefusedDataDir,
            damaged.to_string(),
            "a copy of the data dir as it was stands beside it (etcd.aside-TIME); with that in place, move the journal \
             aside",
        ),
    })
}

/// Looks at everything that can be refused, and writes the journal. `earlier`: the journal that it takes the place of.
fn begin(disk: &dyn Disk, plan: &ResetPlan<'_>, earlier: Option<&ResetJournal>) -> anyhow::Result<ResetJournal> {
    let dir = usable(&plan.data_dir, plan.version)?;
    same(plan, dir.member(), dir.cluster())?;
    not_open(dir.path())?;
    let before = log_tail(&dir).map_err(|e| {
        let text =
            format!("the log of {} does not tell its members: {:#}", dir.path().display(), anyhow::Error::from(e));
        refuse(Exit::RefusedDataDir, text, "restore from a backup, or ask for help with a copy of the data dir")
    })?;
    allowed(&before, plan.permission)?;
    check_pages(dir.backend()).map_err(|e| {
        let text = format!("the backend {} is damaged: {e:#}", dir.backend().display());
        refuse(Exit::RefusedDataDir, text, "restore from a backup; nothing has been changed")
    })?;
    let live = Live { tail: dir.wal().tail.path.clone() };
    let backend = std::fs::metadata(dir.backend()).context("look at the backend")?.len();
    let rewritten = if matches!(plan.permission, Permission::LossAccepted { .. }) { backend } else { 0 };
    room(&plan.data_dir, live.bytes(dir.path())?.saturating_add(rewritten).saturating_add(ETCD_ITSELF))?;
    let copy = free_name(&plan.data_dir.join("etcd"), SystemTime::now()).context("name the copy")?;
    let copy = copy.file_name().and_then(|name| name.to_str()).context("name the copy")?.to_owned();
    let (phase, permission, started) = (Phase::Copying, plan.permission, unix_seconds());
    let of =
        earlier.filter(|earlier| (earlier.before.member, earlier.before.cluster) == (before.member, before.cluster));
    let dropped_before = match of {
        Some(done) if done.phase == Phase::Done => done.drops(),
        Some(begun) => begun.dropped_before.clone(),
        None => BTreeSet::new(),
    };
    let journal = ResetJournal {
        phase,
        permission,
        before,
        copy,
        started,
        finished: None,
        bump_to: None,
        after: None,
        dropped_before,
    };
    journal::store(disk, &plan.data_dir, &journal)?;
    crash_point!("reset-journal-begun");
    Ok(journal)
}

/// Whether a log allows a reset; pure.
pub fn allowed(log: &LogTail, permission: Permission) -> anyhow::Result<()> {
    let last = log.memberships.last().map_or(Role::Absent, |membership| membership.role);
    let no = |what: String, remedy: &str| Err(refuse(Exit::RefusedMembership, what, remedy));
    match last {
        Role::Voter => {}
        Role::Learner => {
            return no(
                format!("member {} is a learner: etcd cannot go on from its data dir alone", log.member),
                "reset a voter; if no voter's volume is left, copy its member/snap/db to another file and have `syncer \
                 migrate --from snapshot:FILE --skip-hash-check --to datadir:PATH --bump-revision 1000000000` make a new cluster of what has \
                 reached it (docs/migration.md, \"A learner is all that is left\"), or restore a snapshot",
            );
        }
        Role::Absent => {
            return no(
                format!("member {} was removed from cluster {}", log.member, log.cluster),
                "set its data dir aside and let it join anew, or reset a voter",
            );
        }
    }
    match permission {
        Permission::TwoVoters if !log.always_voter() => no(
            format!(
                "member {} did not vote in every membership by which writes may have been acknowledged that it does not \
                 have",
                log.member
            ),
            "bring the other voters back, or use `syncer recover`, which says what may be lost",
        ),
        Permission::TwoVoters if log.voters_max() > 2 => no(
            format!(
                "{} voters may have acknowledged writes that member {} does not have",
                log.voters_max(),
                log.member
            ),
            "bring the other voters back, or use `syncer recover`, which says what may be lost",
        ),
        Permission::LossAccepted { bump } if bump < 1 => no(
            format!("the revision would be raised by {bump}"),
            "raise it by more than there can be missing revisions",
        ),
        _ => Ok(()),
    }
}

fn copied(disk: &dyn Disk, plan: &ResetPlan<'_>, journal: ResetJournal) -> anyhow::Result<ResetJournal> {
    let dir = usable(&plan.data_dir, plan.version)?;
    let live = Live { tail: dir.wal().tail.path.clone() };
    let to = plan.data_dir.join(&journal.copy);
    tracing::info!(copy = %to.display(), "keeping a copy of the data dir");
    keep_copy(disk, dir.path(), &to, &live).context("keep a copy of the data dir")?;
    Ok(ResetJournal { phase: Phase::Resetting, ..journal })
}

/// Makes the log say that all of it is committed, and runs etcd once with `--force-new-cluster`.
fn stand_alone(disk: &dyn Disk, plan: &ResetPlan<'_>, journal: ResetJournal) -> anyhow::Result<ResetJournal> {
    let dir = usable(&plan.data_dir, plan.version)?;
    not_open(dir.path())?;
    let wanted = committed_to_the_end(&dir);
    if dir.wal().hard_state != Some(wanted) {
        let entries = wanted.commit.saturating_sub(dir.commit().0);
        tracing::info!(entries, commit = wanted.commit, "noting in the log that all of it is committed");
        append_state(disk, &dir.wal().tail, &wanted)?;
    }
    crash_point!("reset-appended");
    let before = &journal.before;
    let expected = Expected {
        cluster: before.cluster,
        member: before.member,
        index: before.last_index,
        revision: before.revision,
    };
    let bump = match journal.permission {
        Permission::LossAccepted { bump } => Some(bump),
        Permission::TwoVoters | Permission::StopRecord => None,
    };
    tracing::warn!(cluster = %before.cluster, member = %before.member, "making this the only member");
    let snapshot_count = if bump.is_some() { SNAPSHOT_SOON } else { NO_SNAPSHOT };
    let revision =
        run(disk, plan, &dir, true, snapshot_count, &expected).context("run etcd with --force-new-cluster")?;
    alone(plan, before)?;
    crash_point!("reset-verified");
    Ok(match bump {
        None => ResetJournal { phase: Phase::Done, finished: Some(unix_seconds()), after: Some(revision), ..journal },
        Some(bump) => {
            let to = revision.0.checked_add(bump).context("the revision would be too large")?;
            ResetJournal { phase: Phase::Bumping, bump_to: Some(Revision(to)), ..journal }
        }
    })
}

/// The HardState that leaves nothing of the log uncommitted. A vote belongs to its term.
fn committed_to_the_end(dir: &UsableDatadir) -> HardState {
    let old = dir.wal().hard_state.unwrap_or_default();
    let term = dir.term().0;
    HardState { term, vote: if term == old.term { old.vote } else { 0 }, commit: dir.last_index().0 }
}

fn bumped(disk: &dyn Disk, plan: &ResetPlan<'_>, journal: ResetJournal) -> anyhow::Result<ResetJournal> {
    let to = journal.bump_to.context("the reset's journal lacks the revision to raise to")?;
    let before = &journal.before;
    let mut dir = usable(&plan.data_dir, plan.version)?;
    not_open(dir.path())?;
    for _ in 0..RUNS {
        // With the log from index 1 at hand, etcd would send that to a member that joins, instead of this backend. And what
        // it replays behind the raised revision would get revisions that nobody was told.
        if dir.start().1.0 > 0 && dir.consistent_index() >= before.last_index {
            break;
        }
        tracing::info!("etcd was ended before it had written all: it is run again");
        let (index, revision) = (before.last_index, before.revision);
        let expected = Expected { cluster: before.cluster, member: before.member, index, revision };
        run(disk, plan, &dir, false, SNAPSHOT_SOON, &expected).context("run etcd until it has taken a snapshot")?;
        dir = usable(&plan.data_dir, plan.version)?;
    }
    ensure!(dir.start().1.0 > 0, "etcd has taken no raft snapshot; start this command again");
    ensure!(
        dir.consistent_index() >= before.last_index,
        "etcd has not written its log to its backend; start this again"
    );
    ensure!(dir.backend().ends_with("snap/db"), "a received backend is not yet in place; start this command again");
    tracing::info!(to = to.0, "raising the store's revision");
    bump(disk, &dir.path().join("member/snap"), to).context("raise the store's revision")?;
    crash_point!("reset-bumped");
    let expected = Expected { cluster: before.cluster, member: before.member, index: before.last_index, revision: to };
    let revision = run(disk, plan, &dir, false, NO_SNAPSHOT, &expected).context("run etcd at the raised revision")?;
    Ok(ResetJournal { phase: Phase::Done, finished: Some(unix_seconds()), after: Some(revision), ..journal })
}

fn run(
    disk: &dyn Disk,
    plan: &ResetPlan<'_>,
    dir: &UsableDatadir,
    force_new_cluster: bool,
    snapshot_count: u64,
    expected: &Expected,
) -> anyhow::Result<Revision> {
    let stored = stored_members(dir.backend()).context("read the member's name")?;
    let me = stored.members.into_iter().find(|member| member.id == dir.member());
    let (name, peer_urls, client_urls) = me.map(|me| (me.name, me.peer_urls, me.client_urls)).unwrap_or_default();
    let or = |urls: Vec<String>, other: &str| if urls.is_empty() { vec![other.to_owned()] } else { urls };
    let member = MemberIdentity {
        name: if name.is_empty() { UNNAMED.to_owned() } else { name },
        peer_urls: or(peer_urls, NOWHERE),
        client_urls: or(client_urls, NOWHERE),
        token: String::new(),
    };
    let etcd = LoopbackEtcd {
        program: &plan.program,
        version: plan.version,
        data_dir: dir.path(),
        scratch: &plan.data_dir.join(SCRATCH),
        backend_bytes: std::fs::metadata(dir.backend()).map_or(0, |meta| meta.len()),
        member: &member,
        lock: Some(plan.lock),
        force_new_cluster,
        snapshot_count,
        unsynced: false,
    };
    run_alone(disk, &etcd, expected)
}

/// What etcd left on the disk is a member that is alone, and lacks nothing.
fn alone(plan: &ResetPlan<'_>, before: &LogTail) -> anyhow::Result<()> {
    let dir = usable(&plan.data_dir, plan.version)?;
    let after = log_tail(&dir).context("read the log after the reset")?;
    ensure!((after.member, after.cluster) == (before.member, before.cluster), "etcd has changed its identity");
    ensure!(after.is_alone(), "the data dir is not that of a single member: {:?}", after.memberships);
    ensure!(after.last_index >= before.last_index, "the log has become shorter");
    ensure!(after.revision >= before.revision, "the store's revision has become lower");
    Ok(())
}

/// The data dir in `data_dir`, as the etcd at hand could go on from it.
pub fn usable(data_dir: &Path, version: EtcdVersion) -> anyhow::Result<UsableDatadir> {
    let etcd_dir = data_dir.join("etcd");
    match inspect(&etcd_dir, version.schema())? {
        InspectedDatadir::Usable(dir) => Ok(dir),
        InspectedDatadir::Empty => Err(refuse(
            Exit::RefusedDataDir,
            format!("{} holds no data of etcd", etcd_dir.display()),
            "name the directory that holds etcd/",
        )),
        InspectedDatadir::Newer(versions) => Err(newer(&etcd_dir, &versions)),
        InspectedDatadir::Damaged(reason) => Err(refuse(
            Exit::RefusedDataDir,
            format!("{} is damaged: {reason}", etcd_dir.display()),
            "restore from a backup, or use another voter's volume",
        )),
    }
}

/// What is written by a newer etcd than the one at hand is not looked at any further.
pub(super) fn newer(etcd_dir: &Path, versions: &str) -> anyhow::Error {
    refuse(
        Exit::RefusedDataDir,
        format!("{} cannot be opened: {versions}", etcd_dir.display()),
        "use that version of etcd or a newer one",
    )
}

fn same(plan: &ResetPlan<'_>, member: MemberId, cluster: ClusterId) -> anyhow::Result<()> {
    if (plan.member, plan.cluster) == (member, cluster) {
        return Ok(());
    }
    Err(refuse(
        Exit::RefusedDataDir,
        format!("this is member {member} of cluster {cluster}, not member {} of cluster {}", plan.member, plan.cluster),
        "look again at what is to be reset; nothing has been changed",
    ))
}

/// Refuses a data dir whose backend a process has open: etcd holds a lock on it, whoever started it.
pub fn not_open(etcd_dir: &Path) -> anyhow::Result<()> {
    let db = etcd_dir.join("member/snap/db");
    let file = match File::open(&db) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(at(&db, e)).context("look whether etcd runs"),
    };
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(refuse(
            Exit::RefusedLocked,
            format!("another process has {} open", db.display()),
            "stop the etcd that runs on this data dir",
        )),
        Err(std::fs::TryLockError::Error(e)) => bail!("lock {}: {e}", db.display()),
    }
}

fn room(data_dir: &Path, needed: u64) -> anyhow::Result<()> {
    let free = space::free(data_dir)?;
    if needed <= free {
        return Ok(());
    }
    let (has, wants) = (free >> 20, needed.div_ceil(1 << 20));
    Err(refuse(
        Exit::RefusedSpace,
        format!("the volume of {} has {has} MiB free, and a reset with its copy needs {wants} MiB", data_dir.display()),
        "enlarge the volume, or free space on it; nothing has been changed",
    ))
}
