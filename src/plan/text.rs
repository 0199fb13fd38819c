//! A plan for people: one line for each fact, then the decision and its rule.

use std::fmt::{Display, Write};
use std::path::Path;

use super::{Planned, Shown};
use crate::boot::{
    BootDecision, DataDirFact, Desired, Facts, FenceFact, JournalFact, Known, LogFact, Marker, MarkerPhase, MarkerSeen,
    Member, MemberList, Notes, PeerFact, PeerState, PodFact, Record, RestoreFact, Role, Staged, StoresFact, Warning,
};
use crate::membership::{Hold, Plan, Request, Step};

/// Width of the first column.
const COLUMN: usize = 12;

pub fn text(shown: &Shown) -> String {
    let mut out = String::new();
    for (name, value) in facts(&shown.facts) {
        line(&mut out, &name, &value);
    }
    for remark in &shown.remarks {
        line(&mut out, "note", remark);
    }
    line(&mut out, "decision", &decision(&shown.decision));
    if let BootDecision::Start { warnings, .. } = &shown.decision {
        for warning in warnings {
            line(&mut out, "warning", &warned(warning));
        }
    }
    if let Some(what) = &shown.what {
        line(&mut out, "because", what);
    }
    if let Some(remedy) = &shown.remedy {
        line(&mut out, "remedy", remedy);
    }
    line(&mut out, "rule", &shown.rule.to_string());
    out
}

/// A membership plan for people.
pub fn membership(planned: &Planned) -> String {
    let (mut out, o) = (String::new(), &planned.observed);
    line(&mut out, "cluster", &format!("{}, led by {}; {}", o.cluster, o.leader, desired(&o.desired)));
    for m in &o.members {
        let is = [(m.active, "answers"), (m.caught_up, "caught up"), (m.stalled, "comes no further")];
        let states = joined(is.into_iter().filter(|(is, _)| *is).map(|(_, state)| state));
        line(&mut out, "member", &format!("{}: {states}", member(&m.member)));
    }
    for pod in &o.pods {
        let asks = match pod.request {
            Some(Request::Join { replace: None }) => "; asks to be added",
            Some(Request::Join { replace: Some(_) }) => "; asks to be added in its member's place",
            Some(Request::Leave) => "; asks to be removed",
            Some(Request::Stop) => "; was told to stop",
            None => "",
        };
        line(&mut out, &format!("pod {}", pod.ordinal), &format!("{}{asks}", known(&pod.state, state)));
    }
    let plan = match &planned.plan {
        Plan::Nothing => "nothing is to be done".to_owned(),
        Plan::Do(Step::AddLearner(ordinal)) => format!("add pod {ordinal} as a learner"),
        Plan::Do(Step::Promote(id)) => format!("promote learner {id}"),
        Plan::Do(Step::Remove(id)) => format!("remove member {id}"),
        Plan::Do(Step::MoveLeader(id)) => format!("move leadership to member {id}"),
        Plan::Do(Step::UpdateOwnPeerUrl) => "set the leader's peer URL to its pod's".to_owned(),
        Plan::Wait(hold) => format!("wait: {}", held(hold)),
    };
    line(&mut out, "plan", &plan);
    line(&mut out, "rule", &planned.rule.to_string());
    out
}

fn held(hold: &Hold) -> String {
    match hold {
        Hold::JustChanged => "a change was made less than a second ago".into(),
        Hold::QuorumNeeds(id) => format!("without member {id} the others have no quorum"),
        Hold::NobodyToLead => "the leader is to go, and nobody else can lead yet".into(),
        Hold::AnotherLearner(ordinal) => format!("pod {ordinal} comes after the learner that is catching up"),
        Hold::DesiredUnknown(ordinal) => format!("whether pod {ordinal} is wanted is not known"),
        Hold::NotWanted(ordinal) => format!("pod {ordinal} is not wanted"),
        Hold::Foreign(id) => format!("member {id} is no pod's"),
    }
}

/// Text of others may hold control characters; they do not reach the terminal.
fn line(out: &mut String, name: &str, value: &str) {
    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name:COLUMN$} {value}");
}

fn facts(f: &Facts) -> Vec<(String, String)> {
    let mut lines = vec![("pod", format!("{}, the seed is {}; {}", f.ordinal, f.seed, desired(&f.desired)))];
    if !f.enabled {
        lines.push(("etcd", "embedded etcd is disabled".into()));
    }
    if let Some(file) = &f.sqlite {
        lines.push(("SQLite", format!("would be at {}", file.display())));
    }
    if f.written_back {
        lines.push(("writtenBack", "a state.db was made of etcd's store earlier".into()));
    }
    if f.migrate_back {
        lines.push(("migrateBack", "true".into()));
    }
    if f.migrate_from {
        lines.push(("migrateFrom", "a deployed etcd".into()));
    }
    if !f.fence.is_absent() {
        lines.push(("fence", fence(&f.fence)));
    }
    if !f.restore.is_absent() {
        lines.push(("restore", restore(&f.restore)));
    }
    lines.push(("data dir", data_dir(&f.data_dir)));
    if f.data_dir != DataDirFact::Empty {
        lines.push(("log", known(&f.log, log)));
        if !f.dropped.is_empty() {
            lines.push(("dropped", format!("by a reset of this data dir: {}", joined(&f.dropped))));
        }
    }
    lines.push(("notes", notes(&f.notes)));
    lines.push(("journal", journal(&f.journal)));
    lines.push(("state.db", stores(&f.stores)));
    if let Some(store) = &f.distro_store {
        lines.push(("distro", format!("an etcd of its own has left {}", store.display())));
    }
    lines.push(("shared CA", if f.shared_ca { "yes" } else { "not known to be shared" }.into()));
    if let Some(dir) = &f.k0s_makes_cas {
        lines.push(("k0s", format!("would make CAs of its own in {}", dir.display())));
    }
    if let Some((dir, ordinal)) = &f.k0s_other_cas {
        lines.push(("k0s", format!("has other CAs or keys in {} than pod {ordinal}", dir.display())));
    }
    if f.host_configured {
        lines.push(("marker", known(&f.marker, marker)));
        lines.push(("volumes", known(&f.claims, |claims| format!("of pods {}", joined(claims)))));
    } else {
        lines.push(("host API", "not configured".into()));
    }
    if f.named.unknown().is_some() {
        lines.push(("which pods", known(&f.named, |()| String::new())));
    }
    let mut lines: Vec<_> = lines.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    lines.extend(f.peers.iter().map(|p| (format!("pod {}", p.ordinal), peer(p, f.host_configured))));
    lines.push(("members".to_owned(), known(&f.members, list)));
    lines
}

fn known<T>(fact: &Known<T>, show: impl Fn(&T) -> String) -> String {
    match fact {
        Known::Present(value) => show(value),
        Known::Absent => "none".into(),
        Known::Unknown(why) => format!("unknown: {why}"),
    }
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

fn paths<'a>(files: impl IntoIterator<Item = &'a std::path::PathBuf>) -> String {
    joined(files.into_iter().map(|file| file.display()))
}

fn desired(desired: &Desired) -> String {
    match desired {
        Desired::Host(n) => format!("replicas: {n} (StatefulSet)"),
        Desired::Values(n) => format!("replicas: {n} (values)"),
        Desired::Unknown(why) => format!("replicas: unknown: {why}"),
    }
}

fn data_dir(fact: &DataDirFact) -> String {
    match fact {
        DataDirFact::Empty => "empty".into(),
        DataDirFact::Valid { member, cluster } => format!("valid: member {member} of cluster {cluster}"),
        DataDirFact::Damaged(why) => format!("damaged: {why}"),
        DataDirFact::Newer(why) => format!("too new: {why}"),
        DataDirFact::Older(why) => format!("too old: {why}"),
        DataDirFact::Unpromoted(why) => format!("lacks promotions: {why}"),
    }
}

fn log(log: &LogFact) -> String {
    let role = match log.role {
        Role::Voter => "a voter",
        Role::Learner => "a learner",
        Role::Removed => "removed",
    };
    let (term, index) = (log.last.term.0, log.last.index.0);
    format!(
        "ends at term {term}, index {index}; this is {role}; at most {} voters; others: {}",
        log.voters,
        joined(log.others.iter().map(member))
    )
}

fn member(member: &Member) -> String {
    let pod = member.ordinal.map_or("no pod of ours".to_owned(), |ordinal| format!("pod {ordinal}"));
    format!("{} ({pod}{})", member.id, if member.learner { ", learner" } else { "" })
}

fn notes(notes: &Notes) -> String {
    let mut said = Vec::new();
    if notes.forming {
        said.push("forming".to_owned());
    }
    if notes.resetting {
        said.push("resetting".into());
    }
    if notes.stopped {
        said.push("stopped".into());
    }
    if let Some(cluster) = notes.set_aside {
        said.push(format!("set aside or joining: cluster {cluster}"));
    }
    if !notes.superseded.is_empty() {
        said.push(format!("superseded: {}", joined(&notes.superseded)));
    }
    if let Some(cluster) = notes.left {
        said.push(format!("written back into SQLite: {cluster}"));
    }
    if let Some(member) = notes.overtaken {
        said.push(format!("others served the cluster of member {member}"));
    }
    if !notes.dropped.is_empty() {
        said.push(format!("dropped: {}", joined(&notes.dropped)));
    }
    if !notes.settled.is_empty() {
        said.push(format!("seen to be served by nobody: {}", joined(&notes.settled)));
    }
    if said.is_empty() { "none".into() } else { said.join("; ") }
}

fn journal(journal: &JournalFact) -> String {
    match journal {
        JournalFact::Absent => "none".into(),
        JournalFact::Importing { source } => format!("importing {}", source.display()),
        JournalFact::Done { source } => format!("imported {}", source.display()),
        JournalFact::Damaged(why) => format!("damaged: {why}"),
    }
}

fn fence(fence: &FenceFact) -> String {
    match fence {
        FenceFact::Absent => "none".into(),
        FenceFact::Raised { source, moved: false } => format!("around {source}, which takes no writes"),
        FenceFact::Raised { source, moved: true } => format!("around {source}, to stay: its data dir is in place"),
        FenceFact::Lifted { source } => format!("around {source}, lifted"),
        FenceFact::Kept { source } => format!("around {source}, to stay: its store was moved"),
        FenceFact::Damaged(why) => format!("damaged: {why}"),
    }
}

fn restore(restore: &RestoreFact) -> String {
    match restore {
        RestoreFact::Absent => "none".into(),
        RestoreFact::Damaged(why) => format!("damaged: {why}"),
        RestoreFact::Staged(Staged { member, cluster, replaces, begun, whole, outrun }) => {
            let mut said = vec![format!("staged: member {member} of cluster {cluster}")];
            if let Some(old) = replaces {
                said.push(format!("in the place of cluster {old}"));
            }
            if let Some(replaced) = begun {
                said.push(format!("taking its place, superseding {}", joined(replaced)));
            }
            if !whole {
                said.push("not in its staging directory".into());
            }
            if *outrun {
                said.push("the present store has come to its revision".into());
            }
            said.join("; ")
        }
    }
}

fn stores(found: &StoresFact) -> String {
    let lists = [
        ("", &found.state_dbs),
        ("migrated: ", &found.migrated),
        ("left over: ", &found.strays),
        ("without its database: ", &found.orphan_wals),
    ];
    let said: Vec<_> = lists.iter().filter(|(_, l)| !l.is_empty()).map(|(n, l)| format!("{n}{}", paths(*l))).collect();
    if said.is_empty() { "none".into() } else { said.join("; ") }
}

fn marker(seen: &MarkerSeen) -> String {
    let Marker { phase, writes: _, superseded, survivor, dropped, stopped } = &seen.marker;
    let mut said = vec![match phase {
        MarkerPhase::Forming => "forming".to_owned(),
        MarkerPhase::Formed(cluster) => format!("formed: cluster {cluster}"),
    }];
    if !superseded.is_empty() {
        said.push(format!("superseded: {}", joined(superseded)));
    }
    if let Some(survivor) = survivor {
        said.push(format!("survivor: {survivor}"));
    }
    if !dropped.is_empty() {
        said.push(format!("dropped: {}", joined(dropped)));
    }
    for stop in stopped {
        said.push(format!("{} stopped at term {}, index {}", stop.member, stop.last.term.0, stop.last.index.0));
    }
    said.join("; ")
}

fn list(list: &MemberList) -> String {
    format!("{} of cluster {}", joined(list.members.iter().map(member)), list.cluster)
}

fn peer(peer: &PeerFact, host: bool) -> String {
    let mut said = vec![known(&peer.state, state)];
    if let Known::Present(seen) = &peer.members {
        said.push(format!("its etcd lists {}", list(seen)));
    }
    said.push(format!("DNS: {}", known(&peer.dns, |()| "present".into())));
    if host {
        said.push(format!("pod: {}", known(&peer.pod, pod)));
    }
    if !peer.superseded.is_empty() {
        said.push(format!("superseded: {}", joined(&peer.superseded)));
    }
    said.join("; ")
}

fn state(state: &PeerState) -> String {
    match state {
        PeerState::Empty => "says that it is empty".into(),
        PeerState::Store(file) => format!("has a store that was not moved: {}", file.display()),
        PeerState::Data { member, cluster, last } => {
            let last = last.map(|last| format!(", up to term {}, index {}", last.term.0, last.index.0));
            format!("has data: member {member} of cluster {cluster}{}", last.unwrap_or_default())
        }
        PeerState::Serving { member, cluster } => format!("serves: member {member} of cluster {cluster}"),
    }
}

fn pod(pod: &PodFact) -> String {
    let revision = match pod.current_revision {
        Some(true) => ", newest revision",
        Some(false) => ", older revision",
        None => "",
    };
    format!("{}{revision}", if pod.terminating { "terminating" } else { "present" })
}

fn decision(decision: &BootDecision) -> String {
    match decision {
        BootDecision::Start { member, cluster, finish, .. } => {
            let finish = if *finish { ", after finishing a committed import" } else { "" };
            format!("start etcd as member {member} of cluster {cluster}{finish}")
        }
        BootDecision::Form => "form a new, empty cluster of one member".into(),
        BootDecision::Import { source } => format!("move {} into a new cluster of one member", source.display()),
        BootDecision::MigrateFrom => {
            "fence the deployed etcd, and move its store into a new cluster of one member".into()
        }
        BootDecision::LiftFence { source } => format!("lift the fence around {source}, then decide again"),
        BootDecision::Record(record) => format!("record, then decide again: {}", recorded(record)),
        BootDecision::Join { cluster, replace: None } => format!("ask to be added to cluster {cluster}"),
        BootDecision::Join { cluster, replace: Some(member) } => {
            format!("ask to be added to cluster {cluster} in the place of member {member}")
        }
        BootDecision::SetAside { member, cluster } => {
            format!("set the data dir of member {member} of cluster {cluster} aside, then decide again")
        }
        BootDecision::Reset { member, cluster } => {
            format!("make member {member} the only one of cluster {cluster}, then decide again")
        }
        BootDecision::Wait(_) => "wait".into(),
        BootDecision::MigrateBack { member, cluster } => {
            format!(
                "write the store of member {member} of cluster {cluster} into a state.db, and set the data dir aside"
            )
        }
        BootDecision::PutRestored { cluster, .. } => {
            format!("put the restored data dir of cluster {cluster} in place, and set aside what is there")
        }
        BootDecision::RunOnSqlite => "run the API server on SQLite".into(),
        BootDecision::Refuse(refusal) => format!("refuse to start, exit code {}", refusal.exit().code()),
    }
}

fn recorded(record: &Record) -> &'static str {
    match record {
        Record::Forming(Some(_)) => "a cluster is about to be formed, on the volume and in the marker",
        Record::Forming(None) => "a cluster is about to be formed, on the volume",
        Record::Formed(_) => "the cluster is formed, in the marker",
        Record::FormingDone => "the cluster is formed, on the volume",
        Record::Withdrawn(_) => "in the marker that this member is about to start",
        Record::WithdrawnAlready => "on the volume that this member is about to start",
        Record::Survivor(_) => "in the marker that this member goes on alone",
        Record::NoSurvivor(_) => "in the marker that no member goes on alone",
        Record::Released(_) => "in the marker that the store of its cluster is SQLite's again",
        Record::FenceKept => "on the volume that the move from the deployed etcd is committed",
        Record::RestoreBegun(_) => "on the volume that the staged restore takes its place, and what it replaces",
        Record::Restored(_) => "in the marker that the restored cluster is the formed one",
        Record::RestoreDone => "on the volume that the restore is complete",
        Record::WentBack => "on the volume that the store is SQLite's again",
        Record::Dropped(_) => "on the volume that the other members are dropped",
        Record::Overtaken(_) => "on the volume that others serve its cluster",
        Record::ResetDone => "on the volume that the reset is done",
    }
}

fn warned(warning: &Warning) -> String {
    match warning {
        Warning::StateDbIgnored(file) => format!("{} is not imported", Path::display(file)),
        Warning::PeersUnknown => "no other pod has answered".into(),
        Warning::NoQuorum(wait) => format!("{}; {}", wait.what(), wait.remedy()),
    }
}
