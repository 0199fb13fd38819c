//! `syncer start`: the I/O around the decisions, in the order of a pod's life.
//!
//! Everything that can be refused is looked at before anything is written. The front port answers probes from the
//! moment at which the certificates are there, so that a long migration is not taken for a hung pod.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::boot::{BootDecision, Warning, decide};
use crate::datadir::MemberIdentity;
use crate::datadir::inspect::SchemaVersion;
use crate::datadir::lock::{DatadirLock, LockError};
use crate::datadir::quarantine;
use crate::discovery::own;
use crate::disk::{Disk, RealDisk};
use crate::etcd::args::Bootstrap;
use crate::etcd::launch::{self, Launch};
use crate::etcd::version::EtcdVersion;
use crate::exit::{Exit, refuse};
use crate::migrate::commit::finish_commit;
use crate::migrate::import::{ImportOutcome, ImportPlan, import};
use crate::observe;
use crate::pki::ensure;
use crate::reset;
use crate::serve::distro::{self, Backend};
use crate::serve::front::{self, Front};
use crate::serve::health::Health;
use crate::serve::prepare;
use crate::settings::Settings;
use crate::settings::change::{self, Effect};
use crate::settings::load::Loader;
use crate::supervise::probe::{EtcdAccess, Watch};
use crate::supervise::spec::{ChildSpec, Role};
use crate::supervise::{self, Plan};
use crate::telemetry::{self, Phase};

/// How long an etcd that an earlier syncer left behind may take to go.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the pod until it is told to stop. `loader` reads the settings again when the values file changes.
pub async fn run(settings: Settings, loader: Loader) -> anyhow::Result<()> {
    let disk = RealDisk;
    telemetry::set_phase(Phase::Boot);
    disk.create_dir(&settings.data_dir).context("make the data directory")?;
    let lock = lock(&settings)?;

    let etcd = settings.program("etcd");
    let version = if settings.etcd.enabled { Some(EtcdVersion::of(&etcd).map_err(|e| e.refused())?) } else { None };
    let schema = version.map_or(SchemaVersion { major: 3, minor: 7 }, |v| SchemaVersion {
        major: v.major.into(),
        minor: v.minor.into(),
    });
    if let Some(version) = version {
        finish_reset(&settings, &disk, &etcd, version, &lock)?;
    }
    let facts = observe::facts(&settings, schema).context("look at the volume")?;
    let decision = decide(&facts);
    tracing::info!(?decision, "boot decision");
    if let Some(refused) = refused(&decision) {
        return Err(refused);
    }
    let backend = if settings.etcd.enabled { Backend::Etcd } else { Backend::sqlite(&settings) };
    let prepared = prepare::prepare(&settings, &backend, &disk).context("prepare the API server's files")?;
    let servers = distro::specs(&settings, &backend, &prepared).map_err(prepare::usage)?;
    let pki = ensure(&settings, &disk, OffsetDateTime::now_utc())?;
    for warning in &pki.warnings {
        tracing::warn!("{warning}");
    }

    let (health, watched) = watch::channel(Health::default());
    let front = match front::wanted(&settings) {
        true => Some(front::bind(settings.listen.address, settings.listen.front_port).await?),
        false => None,
    };
    let front = front.map(|listener| {
        tokio::spawn(Front::new(&settings, distro::apiserver_address(&servers)).serve(listener, watched))
    });

    let etcd_spec = |settings: &Settings, bootstrap| {
        let Some(version) = version else { return Ok(None) };
        launch::spec(&Launch { settings, pki: &pki, bootstrap, program: etcd.clone(), version }).map(Some)
    };
    if version.is_some() && !own::before_etcd(&settings).await? {
        tracing::info!("told to stop while waiting for this pod's own name");
        return Ok(());
    }
    let datastore = match version {
        Some(_) => {
            let Some(bootstrap) = begin(&settings, &disk, &decision).await? else {
                tracing::info!("told to stop during the migration; the next start begins it anew");
                return Ok(());
            };
            etcd_spec(&settings, bootstrap)?
        }
        None => None,
    };
    let specs: Vec<ChildSpec> = datastore.into_iter().chain(servers).collect();
    let changed = crate::settings::watch::follow(loader, settings.clone());
    let serving = health.subscribe();
    let (control, commands) = supervise::control();
    let plan = Plan {
        specs,
        lock,
        etcd: EtcdAccess {
            port: settings.listen.client_port,
            metrics_port: settings.listen.metrics_port,
            tls: pki.paths.etcd_tls(),
        },
        grace: settings.shutdown_grace,
        watch: Watch::default(),
        commands,
    };
    tokio::select! {
        ended = supervise::run(plan, health) => ended?,
        () = follow_settings(changed, serving, &control, |new| etcd_spec(new, Bootstrap::Restart)) => {}
        () = crate::pki::follow(settings.clone(), disk, &pki, |roles| reads_at_start(&control, roles)) => {}
    }
    if let Some(front) = front {
        front.abort();
    }
    Ok(())
}

/// Runs etcd by the new settings whenever they ask for another command line. Never ends, and holds the receiver, which
/// is what keeps the values file watched.
async fn follow_settings(
    mut changed: watch::Receiver<Settings>,
    mut serving: watch::Receiver<Health>,
    control: &supervise::Control,
    etcd_spec: impl Fn(&Settings) -> anyhow::Result<Option<ChildSpec>>,
) {
    let mut runs_by = changed.borrow().clone();
    // The command line of a restart would not form the cluster that a first start is about to form.
    while serving.wait_for(|health| health.datastore_ready).await.is_ok() {
        let new = changed.borrow_and_update().clone();
        if change::between(&runs_by, &new).iter().any(|change| change.effect == Effect::EtcdRestart) {
            match etcd_spec(&new) {
                Ok(Some(spec)) => {
                    if !control.replace(spec) {
                        tracing::warn!("the supervisor does not keep up: etcd keeps its settings until its restart");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::error!("{error:#}; etcd runs on by the old settings"),
            }
        }
        runs_by = new;
        if changed.changed().await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Restarts those that go on with the certificates they were started with.
fn reads_at_start(control: &supervise::Control, roles: &[Role]) {
    let children: Vec<_> = roles.iter().map(|role| role.name()).collect();
    if control.restart(roles) {
        tracing::info!(?children, "restarting those that read the renewed certificates only at start");
    } else {
        tracing::warn!(?children, "renewed certificates are read only at start: restart this pod within 90 days");
    }
}

/// Goes on with an interrupted reset. It runs etcd itself, on a runtime of its own, and so on a thread of its own.
fn finish_reset(
    settings: &Settings,
    disk: &RealDisk,
    etcd: &Path,
    version: EtcdVersion,
    lock: &DatadirLock,
) -> anyhow::Result<()> {
    let finished =
        std::thread::scope(|scope| scope.spawn(|| reset::finish(disk, &settings.data_dir, etcd, version, lock)).join());
    let finished = finished.map_err(|_| anyhow::anyhow!("the reset's thread panicked"))?;
    if let Some(outcome) = finished.context("finish an interrupted reset")? {
        tracing::warn!(
            member = %outcome.before.member,
            revision = outcome.revision.0,
            copy = %outcome.copy.display(),
            "an interrupted reset is finished: this is the only member of its cluster"
        );
    }
    Ok(())
}

/// Why this decision is not carried out: it refuses, or it needs the other pods.
fn refused(decision: &BootDecision) -> Option<anyhow::Error> {
    let later = |what: &str| {
        let what = format!("{what} is not part of this release");
        Some(refuse(Exit::RefusedMembership, what, "run one replica, or use a release that does"))
    };
    match decision {
        BootDecision::Refuse(refusal) => Some(refusal.error()),
        BootDecision::Wait(wait) => Some(refuse(
            Exit::RefusedMembership,
            format!("{}; waiting for that is not part of this release", wait.what()),
            wait.remedy(),
        )),
        BootDecision::Record(_) => later("the marker in the host cluster's API"),
        BootDecision::Join { .. } => later("joining a cluster"),
        BootDecision::SetAside { .. } => later("setting a data dir aside to join"),
        BootDecision::Reset { .. } => later("resetting a cluster to one member"),
        BootDecision::Start { .. } | BootDecision::Form | BootDecision::Import { .. } | BootDecision::RunOnSqlite => {
            None
        }
    }
}

fn lock(settings: &Settings) -> anyhow::Result<DatadirLock> {
    DatadirLock::acquire(&settings.data_dir, LOCK_PATIENCE).map_err(|e| match e {
        LockError::Held { .. } => {
            refuse(Exit::RefusedLocked, e.to_string(), "stop that process; one syncer runs on a data directory")
        }
        LockError::Io { .. } => e.into(),
    })
}

/// Does what the decision says before etcd starts; how etcd then comes to its cluster. `None`: told to stop.
async fn begin(settings: &Settings, disk: &RealDisk, decision: &BootDecision) -> anyhow::Result<Option<Bootstrap>> {
    match decision {
        BootDecision::Start { member, cluster, finish, warnings } => {
            telemetry::set_member(Some(*member));
            tracing::info!(%cluster, "starting from the data dir");
            for warning in warnings {
                warn(warning);
            }
            if *finish {
                finish_commit(disk, &settings.data_dir, &settings.state_db_candidates(), seconds())?;
            }
            Ok(Some(Bootstrap::Restart))
        }
        BootDecision::Form => {
            let cleared = quarantine::clear(disk, &settings.etcd_dir(), SystemTime::now());
            if let Some(kept) = cleared.context("set aside what a killed first start left")? {
                tracing::warn!(kept = %kept.display(), "an earlier first start was killed; what it left was set aside");
            }
            Ok(Some(launch::form(settings, token())))
        }
        BootDecision::Import { source } => {
            telemetry::set_phase(Phase::Migrate);
            let Some(outcome) = migrated(settings, disk, source).await? else { return Ok(None) };
            telemetry::set_member(Some(outcome.member));
            tracing::info!(
                source = %source.display(),
                keys = outcome.keys,
                bytes = outcome.bytes,
                revision = outcome.revision.0,
                leases = outcome.leases,
                cluster = %outcome.cluster,
                seconds = outcome.duration.as_secs_f64(),
                "migrated and committed"
            );
            Ok(Some(Bootstrap::Restart))
        }
        BootDecision::RunOnSqlite
        | BootDecision::Refuse(_)
        | BootDecision::Wait(_)
        | BootDecision::Record(_)
        | BootDecision::Join { .. }
        | BootDecision::SetAside { .. }
        | BootDecision::Reset { .. } => anyhow::bail!("etcd is not to run: {decision:?}"),
    }
}

/// Imports on a thread of its own, which also starts and ends the etcd that verifies. `None`: told to stop meanwhile;
/// the thread ends with the process, and what it leaves is begun anew by the next start.
async fn migrated(settings: &Settings, disk: &RealDisk, source: &Path) -> anyhow::Result<Option<ImportOutcome>> {
    let identity = MemberIdentity {
        name: settings.pod.name.clone(),
        peer_urls: vec![settings.peer_url()],
        client_urls: vec![settings.client_url()],
        token: token(),
    };
    let plan = ImportPlan::of_boot(source.to_owned(), &settings.data_dir, identity, settings.program("etcd"));
    let disk = *disk;
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("import".into())
        .spawn(move || {
            // The receiver is gone only when the process is about to end.
            let _ = done.send(import(&disk, &plan));
        })
        .context("start the import's thread")?;
    tokio::select! {
        outcome = outcome => outcome.context("the import's thread ended without a result")?.map(Some),
        signal = supervise::stop_signal() => { signal?; Ok(None) }
    }
}

fn warn(warning: &Warning) {
    match warning {
        Warning::StateDbIgnored(file) => tracing::warn!(
            file = %file.display(),
            "a SQLite store lies beside a formed cluster; it is not imported: move it away if it is not needed"
        ),
        Warning::NoQuorum(wait) => tracing::warn!("{}; {}", wait.what(), wait.remedy()),
        Warning::PeersUnknown => tracing::warn!(
            "more than one replica is asked for; this release runs one and leaves the other members to themselves"
        ),
    }
}

/// A token that no cluster has had before, so that a lost and newly formed cluster has other IDs [4.1].
fn token() -> String {
    format!("syncer-{:032x}", rand::random::<u128>())
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
