//! `syncer start`: the I/O around the decisions, in the order of a pod's life.
//!
//! Everything that can be refused is looked at before anything is written. The front port answers probes before anything
//! is waited for, so that neither a long migration nor a host cluster's API that is away is taken for a hung pod.

mod again;
mod back;
mod beside;
mod boot;
mod held;
mod leader;
mod migrate_from;
mod pod;
mod readiness;
mod reset;
mod restore;
mod share;
mod snapshots;
mod space;
mod stop;
mod timing;
mod turn;
mod wanted;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use time::OffsetDateTime;
use tokio::sync::{oneshot, watch};

use crate::boot::{BootDecision, Known, Wait, decide};
use crate::datadir::lock::{DatadirLock, LockError};
use crate::discovery::schedule::Pace;
use crate::discovery::{Discovery, own};
use crate::disk::{Disk, RealDisk};
use crate::etcd::args::Bootstrap;
use crate::etcd::launch::{self, Launch};
use crate::etcd::version::EtcdVersion;
use crate::exit::{Exit, refuse};
use crate::host::Host;
use crate::migrate::sqlite;
use crate::observe;
use crate::peer::server::Answers;
use crate::peer::survey::Surveyor;
use crate::peer::{self, Own};
use crate::pki::ensure;
use crate::serve::distro::{self, Backend};
use crate::serve::front::{self, Apiserver, Front};
use crate::serve::health::{Health, Startup};
use crate::serve::k0s;
use crate::serve::prepare;
use crate::serve::token::SharedToken;
use crate::settings::Settings;
use crate::settings::load::Loader;
use crate::supervise::backoff::Backoff;
use crate::supervise::probe::{EtcdAccess, Watch};
use crate::supervise::spec::{ChildSpec, Role};
use crate::supervise::state::FAILURES_MAX;
use crate::supervise::{self, Anew, Plan, StopSignals, Stopped};
use crate::telemetry::{self, Phase};
use boot::Booted;
pub use migrate_from::lift_refused;
use pod::Pod;

/// How long the survivors may take to say that this member is gone, etcd having stopped.
const AFTER_ETCD: Duration = Duration::from_secs(2);

/// How long an etcd that an earlier syncer left behind may take to go.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the pod until it is told to stop. `loader` reads the settings again when the values file changes.
pub async fn run(mut settings: Settings, loader: Loader) -> anyhow::Result<()> {
    let disk = RealDisk;
    telemetry::set_phase(Phase::Boot);
    let mut stop = StopSignals::new().context("listen for stop signals")?;
    let data_dir = &settings.data_dir;
    disk.create_dir(data_dir).map_err(|error| unusable(data_dir, error, "make the data directory".to_owned()))?;
    check_paths(&settings)?;
    let lock = Arc::new(lock(&settings)?);
    if !migrate_from::lift_left(&settings, &mut stop).await {
        return Ok(());
    }

    let etcd = settings.program("etcd");
    let version = if settings.etcd.enabled { Some(EtcdVersion::of(&etcd).map_err(|e| e.refused())?) } else { None };
    if settings.etcd.enabled {
        EtcdVersion::check_args(&etcd, &settings.etcd.extra_args).map_err(|e| e.refused())?;
    }
    // In a pod the boot decision asks the others first.
    if let Some(version) = version.filter(|_| !settings.pod.in_pod) {
        reset::finish(&settings, &disk, &etcd, version, &lock)?;
    }
    let host = Host::of(&settings);
    // Where it does not say, there may be other pods, whatever the values have.
    let mut may_be_others = false;
    if let Some(host) = &host {
        match host.set().await {
            Known::Present(set) => settings.etcd.replicas = set.replicas,
            unknown => {
                may_be_others = true;
                tracing::warn!(?unknown, "the host cluster's API does not say how many replicas are wanted");
            }
        }
    }
    let facts = observe::facts(&settings, observe::schema(version)).context("look at the volume")?;
    // What others have a say in is decided when they have been asked.
    let others = settings.pod.in_pod && settings.etcd.enabled;
    match decide(&facts) {
        BootDecision::Refuse(refusal) if !(others && refusal.others_decide()) => return Err(refusal.error()),
        BootDecision::Wait(wait @ (Wait::Unfit { .. } | Wait::Damaged(_))) if !others => return Err(wait.refused()),
        _ => {}
    }
    let backend = if settings.etcd.enabled { Backend::Etcd } else { Backend::sqlite(&settings) };
    let (health, watched) = watch::channel(Health::default());
    let apiserver = Apiserver::default();
    let front = match settings.wrapped {
        None => {
            let listener = front::bind(settings.listen.address, settings.listen.front_port).await?;
            Some(tokio::spawn(Front::new(&settings, None).to_be_told(Arc::clone(&apiserver)).serve(listener, watched)))
        }
        Some(_) if others => Some(tokio::spawn(front::until_started(settings.clone(), watched))),
        Some(_) => None,
    };
    let shared_token = match &host {
        Some(host) if SharedToken(&settings).is_shared() => {
            let with = share::With { host, settings: &settings, disk: &disk };
            match share::obtain(&SharedToken(&settings), &host.k3s_token(), &with, &health, &mut stop).await? {
                share::Outcome::Here(shared) => shared,
                share::Outcome::Stopped => return Ok(()),
            }
        }
        _ => false,
    };
    let prepared = prepare::prepare(&settings, &backend, &disk).context("prepare the API server's files")?;
    let specs = |settings: &Settings| distro::specs(settings, &backend, &prepared).map_err(prepare::usage);
    let mut servers = specs(&settings)?;
    prepare::check_programs(&settings, &servers)?;
    if let Some(address) = distro::apiserver_address(&servers) {
        apiserver.get_or_init(|| address);
    }
    let mut among_others = settings.clone();
    among_others.etcd.replicas = among_others.etcd.replicas.max(2);
    let mut companions = specs(&among_others)?;
    companions.retain(|spec| matches!(spec.role, Role::ControllerManager | Role::Scheduler));
    if may_be_others {
        servers.retain(|spec| companions.iter().all(|companion| companion.role != spec.role));
        servers.extend(companions.iter().cloned());
    }
    // What this pod issues is signed by the CA that all of them share.
    let shared_ca = match &host {
        Some(host) => {
            let with = share::With { host, settings: &settings, disk: &disk };
            match share::obtain(&share::pki(&settings), &host.certs(), &with, &health, &mut stop).await? {
                share::Outcome::Here(shared) => shared,
                share::Outcome::Stopped => return Ok(()),
            }
        }
        None => false,
    };
    let pki = ensure(&settings, &disk, OffsetDateTime::now_utc())?;
    for warning in &pki.warnings {
        tracing::warn!("{warning}");
    }

    let surveyor = match settings.pod.in_pod && settings.etcd.enabled {
        true => {
            let discovery = Discovery::new(&settings, Pace::default())?;
            Some(Surveyor::new(settings.clone(), discovery, pki.paths.etcd_tls()))
        }
        false => None,
    };
    let own = Arc::new(Own::new(settings.pod.ordinal));
    // From the first question on: who was dropped must not start beside it.
    if !facts.dropped.is_empty() {
        own.volume(boot::said_of(&facts), &facts.notes);
        own.drops(&facts.dropped);
    }
    let words = match surveyor {
        Some(_) => {
            let listener = peer::server::bind(settings.listen.address, settings.listen.state_port).await?;
            let answers = Answers {
                files: pki.paths.etcd_tls(),
                own: Arc::clone(&own),
                health: health.subscribe(),
                metrics: (Ipv4Addr::LOCALHOST, settings.listen.metrics_port).into(),
                etcd_dir: settings.etcd_dir(),
                k0s_pki: k0s::pki_dir(&settings),
            };
            Some(tokio::spawn(peer::server::serve(listener, answers)))
        }
        None => None,
    };
    let loader = Arc::new(loader);
    let files = crate::settings::watch::follow(Arc::clone(&loader), settings.clone());
    let (now, wanted) = wanted::follow(files, host.as_ref());
    let etcd = version.map(|version| (etcd, version));
    let pod = Pod {
        settings,
        loader,
        now,
        pki,
        shared_ca: shared_ca.into(),
        shared_token: shared_token.into(),
        backend: tokio::sync::Mutex::default(),
        snapshot: Arc::default(),
        disk,
        lock,
        etcd,
        staged: facts.restore.cluster(),
        own,
        surveyor,
        host,
        health,
        broken: Mutex::default(),
        replaced: Mutex::default(),
    };
    let result = tokio::select! {
        result = Box::pin(live(&pod, &servers, &companions, &mut stop)) => result,
        never = Box::pin(share::keep(&pod)) => match never {},
    };
    let tasks = [front.map(|task| task.abort_handle()), words.map(|task| task.abort_handle())];
    tasks.into_iter().flatten().for_each(|task| task.abort());
    drop(wanted);
    result
}

/// Boots and runs, and boots again when what has started turns out not to be what should run. `companions`: the API
/// server's, as they are run where there are other pods.
async fn live(
    pod: &Pod,
    servers: &[ChildSpec],
    companions: &[ChildSpec],
    stop: &mut StopSignals,
) -> anyhow::Result<()> {
    let settings = &pod.settings;
    let mut rounds = Backoff::default();
    loop {
        let begun = Instant::now();
        // What etcd is started by in this round: the file may have changed since the last.
        let now = pod.now.borrow().clone();
        if let (Some(_), Some(surveyor)) = (&pod.etcd, &pod.surveyor)
            && !own::before_etcd(&pod.now, surveyor.discovery(), stop).await
        {
            tracing::info!("told to stop while waiting for this pod's own name");
            return Ok(());
        }
        let bootstrap = match boot::boot(pod, stop).await? {
            Booted::Etcd(bootstrap) => Some(bootstrap),
            Booted::Sqlite => None,
            Booted::Stopped => return Ok(()),
        };
        // A joiner's list of the members holds for one start; whom the cluster does not know may join it anew.
        let joins = matches!(bootstrap, Some(Bootstrap::Existing { .. }));
        let among_others = pod.surveyor.is_some();
        let anew = Anew { unserved: joins, refused: among_others, damaged: among_others };
        let datastore = bootstrap.map(|bootstrap| etcd_spec(pod, &now, bootstrap)).transpose()?.flatten();
        let alone = watch::Sender::new(datastore.as_ref().is_some_and(|spec| launch::chosen_alone(spec, &now)));
        let replaced = if among_others { pod.replaced() } else { BTreeSet::new() };
        let (control, commands) = supervise::control();
        let (depart, told) = oneshot::channel();
        let ends_by = Cell::new(None);
        let plan = Plan {
            specs: datastore.into_iter().chain(servers.iter().cloned()).collect(),
            lock: Arc::clone(&pod.lock),
            etcd: EtcdAccess {
                port: settings.listen.client_port,
                metrics_port: settings.listen.metrics_port,
                snap_dir: settings.etcd_dir().join("member/snap"),
                tls: pod.pki.paths.etcd_tls(),
            },
            grace: settings.shutdown_grace,
            watch: Watch::default(),
            commands,
            anew,
            hold: !replaced.is_empty(),
            depart: pod.surveyor.is_some().then_some(depart),
        };
        let certificates =
            crate::pki::follow(settings.clone(), pod.disk, &pod.pki, |roles| reads_at_start(&control, roles));
        let stopped = tokio::select! {
            stopped = supervise::run(plan, stop, pod.health.clone()) => stopped?,
            never = turn::follow(pod, &now, &alone, |now| etcd_spec(pod, now, Bootstrap::Restart), &control) => match never {},
            never = timing::follow(pod, &alone, || etcd_spec(pod, &pod.now.borrow(), Bootstrap::Restart), &control) => match never {},
            never = elect_leaders(pod, companions, &control) => match never {},
            never = certificates => match never {},
            never = back::release(pod) => match never {},
            never = leader::look_after(pod) => match never {},
            never = snapshots::keep(pod) => match never {},
            never = stop::departure(pod, told, &control, &ends_by) => match never {},
            never = again::decide_again(pod, &control) => match never {},
            never = beside::compare(pod, &control) => match never {},
            never = held::release(pod, replaced, &control) => match never {},
            never = restore::remind(pod) => match never {},
        };
        let pause = match stopped {
            Stopped::BySignal => {
                let least = Instant::now() + AFTER_ETCD;
                return stop::after_etcd(pod, ends_by.get().map_or(least, |by| least.max(by))).await;
            }
            Stopped::ByControl => Duration::ZERO,
            Stopped::ByEtcd(error) => {
                boot::note_damage(pod, &error);
                let pause = rounds.failed(begun.elapsed());
                if rounds.failures() >= FAILURES_MAX {
                    return Err(error);
                }
                pause
            }
        };
        // Decided anew: what ran is not what should.
        pod.health.send_modify(|health| {
            let startup = if health.startup == Startup::First { Startup::First } else { Startup::Again };
            *health = Health { startup, ..Health::default() };
        });
        telemetry::set_phase(Phase::Boot);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.next() => return Ok(()),
        }
    }
}

fn etcd_spec(pod: &Pod, settings: &Settings, bootstrap: Bootstrap) -> anyhow::Result<Option<ChildSpec>> {
    let Some((program, version)) = pod.etcd.clone() else { return Ok(None) };
    pod.own.needs(launch::largest_request(settings)?);
    launch::spec(&Launch { settings, pki: &pod.pki, bootstrap, program, version }).map(Some)
}

/// Has the companions elect a leader from the moment at which there are to be other pods, before the others' come up: a
/// controller-manager that was started as the only one would act beside theirs. Not taken back. Never ends.
async fn elect_leaders(pod: &Pod, companions: &[ChildSpec], control: &supervise::Control) -> Infallible {
    let mut now = pod.now.clone();
    if now.wait_for(|settings| settings.etcd.replicas > 1).await.is_ok() {
        for spec in companions {
            if !control.replace(spec.clone()) {
                tracing::warn!(child = spec.role.name(), "it does not elect a leader before this pod's restart");
            }
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

/// Refuses a data directory whose databases SQLite could not open: one that is there, or is to be.
fn check_paths(settings: &Settings) -> anyhow::Result<()> {
    let candidates = settings.state_db_candidates();
    let to_be = if settings.etcd.enabled { 0 } else { 1 };
    let concerned = candidates.iter().enumerate().filter(|(place, file)| *place < to_be || file.exists());
    concerned.map(|(_, file)| file).try_for_each(|file| sqlite::check_path(file))
}

fn lock(settings: &Settings) -> anyhow::Result<DatadirLock> {
    DatadirLock::acquire(&settings.data_dir, LOCK_PATIENCE).map_err(|e| match e {
        LockError::Held { .. } => {
            refuse(Exit::RefusedLocked, e.to_string(), "stop that process; one syncer runs on a data directory")
        }
        LockError::Io { path, source } => unusable(&settings.data_dir, source, format!("lock {}", path.display())),
    })
}

/// A data directory that no second try makes usable is refused with what to do about it.
fn unusable(dir: &Path, error: io::Error, doing: String) -> anyhow::Error {
    use io::ErrorKind::{AlreadyExists, InvalidInput, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    let remedy = match error.kind() {
        PermissionDenied => "let the user that syncer runs as write to it (in a pod: securityContext.fsGroup)",
        ReadOnlyFilesystem => "mount the volume so that it can be written to",
        AlreadyExists | NotADirectory => {
            let what = format!("{doing}: {} is not a directory", dir.display());
            return refuse(Exit::Usage, what, "name a directory with --data-dir");
        }
        InvalidInput => "move it away",
        _ => return anyhow::Error::from(error).context(doing),
    };
    refuse(Exit::Usage, format!("{doing}: {error}"), remedy)
}
