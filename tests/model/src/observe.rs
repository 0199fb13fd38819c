//! What the pods see of the world, as the facts of the shipped functions.

use std::time::Duration;

use crate::boot::{
    DataDirFact, Desired, Facts, JournalFact, Known, LogFact, MarkerSeen, MemberList, PeerFact, PeerState, PodFact,
    RestoreFact, Staged, StoresFact,
};
use crate::config::Config;
use crate::etcd::{Dir, Op, member, membership};
use crate::ids::{ClusterId, MemberId, Ordinal};
use crate::membership::leave::Leaving;
use crate::membership::ready::{self, Pod};
use crate::membership::{MemberFact, Observed, PodView, Request};
use crate::world::{Act, Process, Store, World};

/// The only SQLite store.
const STATE_DB: &str = "state.db";

pub fn list(dir: &Dir) -> MemberList {
    MemberList { cluster: ClusterId(dir.cluster.into()), members: dir.peers().into_iter().map(member).collect() }
}

/// The members that the last reset of this data dir has dropped, as its journal says.
pub fn dropped(dir: &Dir) -> Vec<MemberId> {
    let forced = dir.log.iter().rposition(|entry| entry.op == Op::Forced(dir.member));
    let before = forced.map(|at| membership(&dir.log, at).0).unwrap_or_default();
    before.into_iter().filter(|peer| peer.id != dir.member).map(|peer| MemberId(peer.id.into())).collect()
}

pub fn marker(w: &World, c: &Config) -> Known<MarkerSeen> {
    match &w.marker {
        _ if !c.host || !w.host_up || w.marker_hidden => Known::default(),
        None => Known::Absent,
        Some(m) => Known::Present(MarkerSeen { version: m.writes.to_string(), marker: m.clone() }),
    }
}

fn desired(w: &World, c: &Config) -> Desired {
    match (c.host, w.host_up) {
        (true, true) if w.orphaned => Desired::Unknown("no such StatefulSet".into()),
        (true, true) => Desired::Host(w.desired.into()),
        (true, false) => Desired::Unknown("away".into()),
        (false, _) => Desired::Values(w.values.into()),
    }
}

fn pod(w: &World, c: &Config, o: usize) -> Known<PodFact> {
    if !c.host || !w.host_up {
        return Known::default();
    }
    let pod = &w.pods[o];
    if pod.exists {
        Known::Present(PodFact { terminating: pod.terminating, current_revision: None })
    } else {
        Known::Absent
    }
}

fn dns(w: &World, o: usize) -> Known<()> {
    if w.named(o) { Known::Present(()) } else { Known::Absent }
}

/// What a look at the others asks beside the pods that are wanted.
#[derive(Clone, Copy)]
pub struct Look {
    /// DNS answers.
    pub dns: bool,
    /// The pods that have a volume, by the host API.
    pub claims: bool,
    /// The members that the log has.
    pub log: bool,
}

impl Look {
    /// Of a pod that boots.
    pub const BOOT: Look = Look { dns: true, claims: true, log: true };
    /// The same while DNS does not answer.
    pub const BLIND: Look = Look { dns: false, ..Look::BOOT };
    /// Of a pod that serves.
    pub const BESIDE: Look = Look { dns: true, claims: false, log: false };
    /// Of a pod whose API server is held back.
    pub const RELEASE: Look = Look { dns: true, claims: true, log: false };
}

/// Whether DNS has said which pods there are, to this one.
fn named(w: &World, o: usize) -> Known<()> {
    match w.stale {
        // An answer from before it came.
        Some(stale) if (stale.named & stale.right) >> o & 1 == 0 => Known::default(),
        _ => Known::Present(()),
    }
}

fn state(w: &World, o: usize) -> Known<PeerState> {
    if matches!(w.pods[o].process, Process::Off | Process::Other) {
        return Known::default();
    }
    let imports = matches!(w.pods[o].process, Process::Will(Act::Import | Act::CommitImport));
    if restore(w, o).is_begun() || w.volumes[o].damaged || imports {
        return Known::default();
    }
    Known::Present(match w.dir(o).filter(|d| w.runs(o) || !d.log.is_empty()) {
        None => match w.pods[o].process {
            Process::Will(Act::Form | Act::Write(..)) => return Known::default(),
            _ if w.volumes[o].store == Some(Store::Sqlite) => PeerState::Store(STATE_DB.into()),
            _ => PeerState::Empty,
        },
        Some(d) => {
            let (member, cluster) = (MemberId(d.member.into()), ClusterId(d.cluster.into()));
            let listed = w
                .server(Some(d.cluster))
                .and_then(|s| w.dir(s))
                .is_some_and(|s| s.peers().iter().any(|p| p.id == d.member));
            if w.runs(o) && listed {
                PeerState::Serving { member, cluster }
            } else {
                PeerState::Data { member, cluster, last: None }
            }
        }
    })
}

/// What was staged before this process started.
fn restore(w: &World, o: usize) -> RestoreFact {
    let Some(staged) = w.volumes[o].staged.as_ref().filter(|_| w.pods[o].restores) else { return RestoreFact::Absent };
    RestoreFact::Staged(Staged {
        member: MemberId(staged.member.into()),
        cluster: ClusterId(staged.cluster.into()),
        replaces: staged.replaces.map(|old| ClusterId(old.into())),
        begun: staged.begun.clone(),
        whole: staged.whole,
        outrun: false,
    })
}

pub fn facts(w: &World, c: &Config, o: usize, look: Look) -> Facts {
    let others = (0..w.pods.len()).filter(|p| *p != o);
    let dir = w.dir(o);
    let damaged = w.volumes[o].damaged;
    let whose = dir.map(|d| (MemberId(d.member.into()), ClusterId(d.cluster.into())));
    let log = match dir {
        None => Known::Absent,
        Some(_) if damaged => Known::default(),
        Some(d) => Known::Present(d.fact()),
    };
    let has_log = dir.is_some_and(|d| !d.log.is_empty());
    let formed = w.marker.as_ref().is_some_and(|marker| marker.formed().is_some());
    // What is formed and has data asks nobody else which volumes there are.
    let claims = c.host && w.host_up && look.claims && !(look.log && formed && !w.marker_hidden && has_log);
    let wanted = usize::from(if c.host { w.desired } else { w.values });
    let member = |p: usize| {
        let others = log.present().map(|log: &LogFact| log.others.iter().filter_map(|member| member.ordinal));
        look.log && others.is_some_and(|mut others| others.any(|other| other.0 as usize == p))
    };
    let known = |p: &usize| *p < wanted || (look.dns && w.named(*p)) || (claims && w.volumes[*p].claim) || member(*p);
    let peers: Vec<_> = others
        .clone()
        .filter(known)
        .map(|p| {
            let ordinal = Ordinal(p as u32);
            let dns = if look.dns { dns(w, p) } else { Known::default() };
            if !look.dns || w.apart(o, p) || !w.found(p) {
                // Its handshake tells.
                let other_ca = look.dns && w.own_cas && w.found(p) && w.pods[p].exists;
                return PeerFact { dns, pod: pod(w, c, p), other_ca, ..PeerFact::new(ordinal) };
            }
            let view =
                w.dir(p).filter(|d| w.runs(p) && d.commit > 0).map_or_else(Known::default, |d| Known::Present(list(d)));
            let speaks = !matches!(w.pods[p].process, Process::Off | Process::Other);
            let superseded = if speaks { w.volumes[p].notes.superseded.clone() } else { Vec::new() };
            let settled = if speaks { w.volumes[p].notes.settled.clone() } else { Vec::new() };
            // A joiner whose etcd runs says more than its note.
            let drops = w.dir(p).filter(|d| speaks && !d.log.is_empty()).map(dropped).unwrap_or_default();
            let joins = w.volumes[p].notes.set_aside.filter(|_| speaks && !w.runs(p));
            PeerFact {
                dns,
                pod: pod(w, c, p),
                members: view,
                state: state(w, p),
                superseded,
                settled,
                dropped: drops,
                joins,
                ..PeerFact::new(ordinal)
            }
        })
        .collect();
    let server = w.asked(o).filter(|_| look.dns).and_then(|s| w.dir(s));
    let store = w.volumes[o].store;
    let file = |yes: bool, path: &str| if yes { vec![path.into()] } else { Vec::new() };
    Facts {
        ordinal: Ordinal(o as u32),
        seed: Ordinal(0),
        desired: desired(w, c),
        enabled: w.enabled,
        migrate_back: c.back && !w.enabled,
        sqlite: (!w.enabled).then(|| STATE_DB.into()),
        written_back: w.volumes[o].notes.left.is_some(),
        migrate_from: false,
        fence: Default::default(),
        restore: restore(w, o),
        // A joiner's that has received nothing is taken for an empty one, unless its etcd runs.
        data_dir: match whose.filter(|_| w.runs(o) || has_log) {
            None => DataDirFact::Empty,
            Some(_) if damaged => DataDirFact::Damaged("a hole in the log".into()),
            Some((member, cluster)) => DataDirFact::Valid { member, cluster },
        },
        owner: whose.filter(|_| damaged),
        log,
        dropped: dir.filter(|_| has_log).map(dropped).unwrap_or_default(),
        notes: w.volumes[o].notes.clone(),
        journal: match store {
            None | Some(Store::Sqlite) => JournalFact::Absent,
            Some(Store::Importing) => JournalFact::Importing { source: STATE_DB.into() },
            Some(Store::Migrated) => JournalFact::Done { source: STATE_DB.into() },
        },
        stores: StoresFact {
            state_dbs: file(matches!(store, Some(Store::Sqlite | Store::Importing)), STATE_DB),
            migrated: file(store == Some(Store::Migrated), "state.db.migrated"),
            ..StoresFact::default()
        },
        distro_store: None,
        shared_ca: !w.own_cas,
        k0s_makes_cas: None,
        k0s_other_cas: None,
        host_configured: c.host,
        marker: marker(w, c),
        claims: if claims {
            Known::Present(others.filter(|p| w.volumes[*p].claim).map(|p| Ordinal(p as u32)).collect())
        } else {
            Known::default()
        },
        peers,
        named: if look.dns { named(w, o) } else { Known::default() },
        members: server.map_or_else(Known::default, |d| Known::Present(list(d))),
    }
}

fn member_facts(w: &World, c: &Config, l: usize) -> Option<Vec<MemberFact>> {
    let dir = w.dir(l)?;
    // Whom nobody could add anew has its minutes; any other is evicted at once.
    let given_time = |o: usize| c.away_at_last && matches!(w.pods[o].process, Process::Will(Act::Join(_)));
    let facts = dir.peers().into_iter().map(|peer| {
        let runner = w.runner(dir.cluster, peer.id).filter(|o| !w.apart(l, *o) && (*o == l || w.found(*o)));
        let runner = runner.and_then(|o| w.dir(o));
        let caught_up = runner.is_some_and(|d| !d.log.is_empty() && d.log.len() + 1 >= dir.log.len());
        MemberFact {
            member: member(peer),
            active: runner.is_some(),
            caught_up,
            stalled: peer.learner && runner.is_none() && !given_time(peer.ordinal.into()),
        }
    });
    Some(facts.collect())
}

/// What the syncer of pod `by` sees, which is beside the leader `l` by rule 5.1. Any other has an older list.
pub fn observed(w: &World, c: &Config, l: usize, by: usize) -> Option<Observed> {
    let dir = w.dir(l)?;
    let pods = (0..w.pods.len()).map(|o| {
        let p = &w.pods[o];
        if w.apart(l, o) || (o != l && !w.found(o)) {
            return PodView { pod: pod(w, c, o), dns: dns(w, o), ..PodView::new(Ordinal(o as u32)) };
        }
        let request = match &p.process {
            Process::Will(Act::Join(replace)) => Some(Request::Join { replace: replace.map(|id| MemberId(id.into())) }),
            _ if p.asks_to_leave => Some(Request::Leave),
            _ if p.terminating => Some(Request::Stop),
            _ => None,
        };
        PodView { ordinal: Ordinal(o as u32), pod: pod(w, c, o), dns: dns(w, o), state: state(w, o), request }
    });
    Some(Observed {
        seed: Ordinal(0),
        desired: desired(w, c),
        cluster: ClusterId(dir.cluster.into()),
        leader: MemberId(dir.member.into()),
        members: member_facts(w, c, by)?,
        pods: pods.collect(),
        // Where seconds do not matter, an addition that is put off is one by a pass that comes later.
        settled: !(c.seconds && w.changed),
        quiet: dir.commit == dir.log.len(),
        replacing: w.pods[by].replacing.map(|o| Ordinal(o.into())).into_iter().collect(),
        own_url_differs: false,
    })
}

/// How a pod that is told to stop is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// There is time left.
    Some,
    /// And the leader's etcd has refused to remove it.
    Refused,
    /// Its grace is nearly spent.
    None,
}

pub fn leaving(w: &World, c: &Config, o: usize, patience: Patience) -> Leaving {
    let dir = w.dir(o);
    let server = dir.and_then(|d| w.server_for(o, Some(d.cluster))).filter(|s| *s == o || w.found(*s));
    Leaving {
        refused: patience == Patience::Refused,
        ordinal: Ordinal(o as u32),
        seed: Ordinal(0),
        desired: desired(w, c),
        // That it is asked again for a while is a step that changes nothing.
        asked_for: Duration::MAX,
        unanswered: None,
        host_configured: c.host,
        member: dir.map(|d| MemberId(d.member.into())),
        apiserver: false,
        etcd: w.runs(o),
        leader: server.and_then(|s| w.dir(s)).map_or(Known::Absent, |d| Known::Present(MemberId(d.member.into()))),
        members: server.and_then(|s| member_facts(w, c, s)).map_or_else(Known::default, Known::Present),
        stopping: (0..w.pods.len())
            .filter(|p| w.pods[*p].terminating)
            .filter_map(|p| w.dir(p))
            .map(|d| MemberId(d.member.into()))
            .collect(),
        last: dir.filter(|_| !w.runs(o)).map(Dir::position),
        noted: w.volumes[o].notes.stopped,
        marker: marker(w, c),
        left: Duration::from_secs(if patience == Patience::None { 1 } else { 8 }),
    }
}

pub fn ready(w: &World, c: &Config, o: usize) -> bool {
    let p = &w.pods[o];
    if p.process == Process::Other {
        return true;
    }
    let d = w.dir(o);
    let server = d.and_then(|d| w.server_for(o, Some(d.cluster))).and_then(|s| w.dir(s));
    let voter = d.is_some_and(|d| server.is_some_and(|s| s.peers().iter().any(|p| p.id == d.member && !p.learner)));
    let wanted = desired(w, c).known().map(|replicas| replicas as usize);
    let missing = |p: usize| if c.host { !w.pods[p].exists } else { !w.named(p) };
    ready::explained(
        &Pod {
            stopping: p.terminating,
            serves: w.runs(o) && voter,
            apiserver_ready: p.held.is_empty(),
            sound: p.process != Process::Off,
            empty: d.is_none(),
            seed: o == 0,
            policy: Known::Present(c.policy),
            wanted: wanted.map(|wanted| o < wanted),
            // Where there is a quorum, this pod only has to catch up.
            missing_above: wanted.filter(|_| w.asked(o).is_none()).map(|wanted| (o + 1..wanted).any(missing)),
            wanted_above: wanted.filter(|_| w.asked(o).is_none()).map(|wanted| o + 1 < wanted),
            seed_is_older: Some(w.pods[0].process == Process::Other),
        },
        c.rules,
    )
    .0
}
