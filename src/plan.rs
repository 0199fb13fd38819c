//! `syncer plan`: the facts, the decision that they lead to, and the rule that makes it.
//!
//! The facts are those in a file, or those that `syncer start` would see in this pod at boot. Looking changes nothing on
//! the volume and asks the other pods only what anybody may ask, so that it can be done beside a running syncer.
//!
//! With `--membership` it is the membership plan: what the syncer beside the etcd leader would do about what it has observed,
//! which it writes to its log with `--log-level debug`.

mod text;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::boot::{self, BootDecision, DataDirFact, Facts, Known};
use crate::datadir::lock::in_use;
use crate::discovery::Discovery;
use crate::discovery::schedule::Pace;
use crate::etcd::version::EtcdVersion;
use crate::exit::{Exit, refuse};
use crate::host::statefulset::REPLICAS_MAX;
use crate::host::{self, Claims, Host};
use crate::ids::Ordinal;
use crate::membership::{self, Observed};
use crate::migrate::command::Output;
use crate::observe;
use crate::peer::survey::{Survey, Surveyor};
use crate::pki::PkiPaths;
use crate::rules::{Rule, Rules};
use crate::serve::k0s;
use crate::settings::Settings;
use crate::settings::flags::Flags;

/// No facts are longer, in bytes.
const FACTS_MAX: u64 = 4 << 20;
/// So often a data dir that a running etcd writes to is looked at again when a look at it makes no sense.
const LOOKS: u32 = 5;
/// Between two such looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// The command's arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Decide on the facts in this file, JSON or YAML, instead of this pod's: the `facts` of `syncer plan -o json`.
    #[arg(long, value_name = "FILE")]
    pub facts: Option<PathBuf>,
    /// Plan the membership on what is in this file, JSON or YAML: what the syncer beside the etcd leader observed, which
    /// `syncer start` logs at level debug, or the `observed` of `syncer plan --membership FILE -o json`.
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    pub membership: Option<PathBuf>,
    /// Form of what is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Settings, as `syncer start` has them.
    #[command(flatten)]
    pub flags: Flags,
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    facts: Facts,
    decision: BootDecision,
    rule: Rule,
    /// What a wait waits for, or what is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    /// What the facts lack, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
}

/// The same for the membership.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Planned {
    observed: Observed,
    plan: membership::Plan,
    rule: Rule,
}

/// Decides on the facts in a file.
///
/// # Errors
/// [`Exit::Usage`], naming file and line, if it cannot be read or holds no facts, or more pods than any StatefulSet has.
pub fn of_file(file: &Path, output: Output) -> anyhow::Result<String> {
    let facts: Facts = read(file, "facts", "`syncer plan -o json` shows a pod's facts in this form")?;
    if let Some(replicas) = facts.desired.known().filter(|replicas| *replicas > REPLICAS_MAX) {
        let what = format!("{}: {replicas} replicas are desired", file.display());
        return Err(refuse(Exit::Usage, what, format!("the most are {REPLICAS_MAX}, as of a StatefulSet")));
    }
    show(facts, Vec::new(), output)
}

/// Plans the membership on what was observed, in a file.
///
/// # Errors
/// As [`of_file`].
pub fn of_membership(file: &Path, output: Output) -> anyhow::Result<String> {
    let remedy = "`syncer start --log-level debug` logs what its leader observes in this form";
    let observed: Observed = read(file, "observation of a membership", remedy)?;
    let (plan, rule) = membership::explained(&observed, Rules::ALL);
    let planned = Planned { observed, plan, rule };
    Ok(match output {
        Output::Text => text::membership(&planned),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&planned).context("write the plan as JSON")?),
    })
}

/// What a file holds: `what`, for messages, with the way to get it.
fn read<T: DeserializeOwned>(file: &Path, what: &str, remedy: &str) -> anyhow::Result<T> {
    let usage = |what: String| refuse(Exit::Usage, what, remedy);
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(FACTS_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| usage(format!("{} cannot be read: {e}", file.display())))?;
    if bytes.len() as u64 > FACTS_MAX {
        return Err(usage(format!("{} is larger than {} MiB", file.display(), FACTS_MAX >> 20)));
    }
    serde_yaml::from_slice(&bytes).map_err(|e| {
        let line = e.location().map_or(1, |location| location.line());
        let said = e.without_snippet().to_string();
        let said = said.lines().next().unwrap_or_default();
        usage(format!("{}:{line}: this is no {what}: {said}", file.display()))
    })
}

/// Decides on what this pod sees now. `guessed`: that embedded etcd is on is a guess.
///
/// # Errors
/// As `syncer start` ends when it cannot look: no etcd where it is enabled, an unreadable volume.
pub async fn of_pod(settings: &Settings, guessed: bool, output: Output) -> anyhow::Result<String> {
    let mut remarks = Vec::new();
    if guessed {
        let given =
            "a command of `kubectl exec` has the entrypoint's environment and none of its flags: give it those too";
        remarks.push(format!("nothing says here whether embedded etcd is on: taken for on ({given})"));
    }
    let etcd = settings.program("etcd");
    let version = if settings.etcd.enabled { Some(EtcdVersion::of(&etcd).map_err(|e| e.refused())?) } else { None };
    let host = Host::of(settings).filter(|_| settings.pod.in_pod);
    let mut view = match &host {
        Some(host) => Some(host.view(Claims::of_boot(observe::has_wal(settings))).await),
        None => None,
    };
    let mut settings = settings.clone();
    if let Some(set) = view.as_ref().and_then(|view| view.set.present()) {
        settings.etcd.replicas = set.replicas;
    }
    let settings = &settings;
    let used = in_use(&settings.data_dir)?;
    if used {
        remarks.push("syncer or etcd runs on this volume: so it would decide if it started now".to_owned());
    }
    let mut looks = 1;
    let mut facts = loop {
        let looked = observe::facts(settings, observe::schema(version)).context("look at the volume");
        // Between two reads etcd has written, or has removed a file.
        let torn = !matches!(&looked, Ok(facts) if !matches!(facts.data_dir, DataDirFact::Damaged(_)));
        if !(used && torn && looks < LOOKS) {
            break looked?;
        }
        looks += 1;
        sleep(BETWEEN_LOOKS);
    };
    if used && matches!(facts.data_dir, DataDirFact::Damaged(_)) {
        remarks.push("the data dir is being written to: what was read of it may not fit together".to_owned());
    }
    if let (Some(host), Some(view), true) = (&host, &mut view, observe::is_unusable(settings, &facts.data_dir)) {
        view.claims = host.claims(&view.set).await;
    }
    if settings.pod.in_pod && settings.etcd.enabled {
        let seed = view.as_ref().and_then(|view| view.set.present()).map_or(facts.seed, |set| set.start);
        facts.peers.retain(|peer| peer.ordinal >= seed);
        match survey(settings, &facts, view.as_ref()).await {
            Ok(survey) => {
                survey.add_to(&mut facts);
                facts.k0s_other_cas = survey.other_k0s_cas(k0s::pki_dir(settings));
            }
            Err(error) => {
                remarks.push(format!("the other pods cannot be asked: {error:#}"));
                facts.named = Known::Unknown("they cannot be asked".to_owned());
            }
        }
        if let (Some(host), Some(view)) = (&host, &mut view) {
            view.pods = host.pods(facts.peers.iter().map(|peer| peer.ordinal), &view.set).await;
            view.add_to(&mut facts, seed);
        }
    }
    show(facts, remarks, output)
}

/// Of the wanted pods, those that the log calls members, and those that have a claim, as `syncer start` does.
async fn survey(settings: &Settings, facts: &Facts, view: Option<&host::View>) -> anyhow::Result<Survey> {
    let discovery = Discovery::new(settings, Pace::default())?;
    let surveyor = Surveyor::new(settings.clone(), discovery, PkiPaths::new(&settings.pki_dir).etcd_tls());
    let members = facts.log.present().into_iter().flat_map(|log| log.others.iter().filter_map(|other| other.ordinal));
    let start = view.and_then(|view| view.set.present()).map_or(0, |set| set.start.0);
    let wanted = (0..settings.etcd.replicas).map(|n| Ordinal(start.saturating_add(n)));
    let claims = view.and_then(|view| view.claims.present()).into_iter().flatten().copied();
    surveyor.look(wanted.chain(members).chain(claims)).await
}

fn show(facts: Facts, remarks: Vec<String>, output: Output) -> anyhow::Result<String> {
    let (decision, rule) = boot::explained(&facts, Rules::ALL);
    let (what, remedy) = match &decision {
        BootDecision::Wait(wait) => (Some(wait.what()), Some(wait.remedy())),
        BootDecision::Refuse(refusal) => (Some(refusal.what()), Some(refusal.remedy())),
        _ => (None, None),
    };
    let shown = Shown { facts, decision, rule, what, remedy, remarks };
    Ok(match output {
        Output::Text => text::text(&shown),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&shown).context("write the plan as JSON")?),
    })
}
