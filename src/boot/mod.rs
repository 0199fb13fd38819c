//! The boot decision: facts in, one decision out. No clock, no socket, no file.
//!
//! Every decision is one step; whoever carries it out makes it durable and, unless it starts something, reads the facts
//! anew and decides again. So a pod may be killed anywhere, and the order of the steps stands here and nowhere else.
//!
//! Read [`explained`] from top to bottom: the first line that fits wins, and everything that could lose data stands
//! before everything that writes. Each decision names its rule (`docs/rules.md`).

pub mod beside;
pub mod decision;
pub mod facts;
mod form;
pub mod marker;
pub mod refusal;
pub mod reset;
mod restore;
pub mod restored;
mod stores;
pub mod wait;

use crate::ids::{ClusterId, MemberId};
use crate::rules::{Rule, Rules};
pub use decision::{BootDecision, Record, Warning};
pub use facts::{
    DataDirFact, Desired, Facts, FenceFact, JournalFact, Known, LogFact, LogPosition, Member, MemberList, Notes,
    PeerFact, PeerState, PodFact, RestoreFact, Role, Staged, StoresFact,
};
pub use marker::{Marker, MarkerPhase, MarkerSeen, MarkerWrite, Stopped};
pub use refusal::Refusal;
use stores::{back, lost, sqlite, store_refused, uncommitted, vanished};
pub use wait::Wait;

/// A decision and the rule that made it.
pub type Verdict = (BootDecision, Rule);

/// Decides what this boot does.
pub fn decide(facts: &Facts) -> BootDecision {
    explained(facts, Rules::ALL).0
}

/// Decides what this boot does, and names the rule.
pub fn explained(facts: &Facts, rules: Rules) -> Verdict {
    use BootDecision::{Import, MigrateBack, Refuse, RunOnSqlite};

    if let JournalFact::Damaged(why) = &facts.journal {
        return (Refuse(Refusal::DamagedJournal(why.clone())), Rule::JournalTrue);
    }
    // Nothing else before the source of an unfinished move takes writes again, or is known to never do so.
    match &facts.fence {
        FenceFact::Damaged(why) => return (Refuse(Refusal::DamagedJournal(why.clone())), Rule::JournalTrue),
        FenceFact::Raised { source, .. } if facts.data_dir == DataDirFact::Empty => {
            return (BootDecision::LiftFence { source: source.clone() }, Rule::JournalTrue);
        }
        FenceFact::Raised { moved: true, .. } => return (BootDecision::Record(Record::FenceKept), Rule::JournalTrue),
        // Whoever put it there, it lacks what the source has, and neither may be served as if the other were not there.
        FenceFact::Raised { source, moved: false } => {
            return (Refuse(Refusal::OtherDataDirBesideFence(source.clone())), Rule::JournalTrue);
        }
        FenceFact::Absent | FenceFact::Lifted { .. } | FenceFact::Kept { .. } => {}
    }
    if let Some(verdict) = restore::verdict(facts, rules) {
        return verdict;
    }
    if !facts.enabled {
        let decision = match &facts.data_dir {
            // An uncommitted import never took a write: SQLite is still the truth.
            _ if uncommitted(facts).is_some() => sqlite(facts).map_or(RunOnSqlite, Refuse),
            _ if !rules.on(Rule::Settings) => RunOnSqlite,
            DataDirFact::Empty => sqlite(facts).map_or(RunOnSqlite, Refuse),
            DataDirFact::Valid { member, cluster } if facts.migrate_back => {
                back(facts).map_or(MigrateBack { member: *member, cluster: *cluster }, Refuse)
            }
            DataDirFact::Damaged(why) if facts.migrate_back => Refuse(Refusal::DamagedDataDir(why.clone())),
            _ => Refuse(Refusal::EtcdDirWhileDisabled),
        };
        return (decision, Rule::Settings);
    }
    // An uncommitted import comes first: what stands in the data dir is then ours and never served anyone.
    if let Some(source) = uncommitted(facts)
        && rules.on(Rule::JournalTrue)
    {
        return form::hindrance(facts, rules).unwrap_or((Import { source }, Rule::StoreOfSeed));
    }
    match &facts.data_dir {
        DataDirFact::Empty if facts.notes.resetting && rules.on(Rule::ResetFinished) => {
            (BootDecision::Refuse(Refusal::ResetVanished), Rule::ResetFinished)
        }
        DataDirFact::Damaged(why) => damaged(facts, why, rules),
        DataDirFact::Newer(versions) => unfit(facts, Refusal::NewerDataDir(versions.clone()), rules),
        DataDirFact::Older(versions) => unfit(facts, Refusal::OlderDataDir(versions.clone()), rules),
        DataDirFact::Unpromoted(why) => unfit(facts, Refusal::UnpromotedDataDir(why.clone()), rules),
        DataDirFact::Valid { member, cluster } if rules.on(Rule::StartAsIs) => {
            with_data(facts, *member, *cluster, rules)
        }
        DataDirFact::Valid { .. } | DataDirFact::Empty => without_data(facts, rules),
    }
}

/// A damaged data dir. What it lacks, a quorum of the others has: it is worth no more than a lost volume, and replaced as
/// one is, under a new ID, so that a vote or an entry that it has forgotten counts for nothing.
fn damaged(facts: &Facts, why: &str, rules: Rules) -> Verdict {
    let owner = facts.owner.filter(|(member, cluster)| others_go_on(facts, *member, *cluster, rules));
    if let Some((member, cluster)) = owner {
        return (BootDecision::SetAside { member, cluster }, Rule::DamagedReplaced);
    }
    let alone = nobody_else(facts);
    if alone || facts.notes.resetting {
        return (BootDecision::Refuse(Refusal::DamagedDataDir(why.to_owned())), Rule::StartAsIs);
    }
    (BootDecision::Wait(Wait::Damaged(why.to_owned())), Rule::DamagedReplaced)
}

/// A data dir that is whole, and from which the etcd at hand cannot start. What proves that it is nobody's any more, or must
/// not start, holds for it as for any other; nothing else is done with it. Beside others it waits: in order, those above would not
/// come before a pod that has ended, and their word may be that proof.
fn unfit(facts: &Facts, why: Refusal, rules: Rules) -> Verdict {
    use BootDecision::{Record, Refuse, SetAside, Wait as Waits};
    match facts.owner.map(|(member, cluster)| with_data(facts, member, cluster, rules)) {
        Some(verdict @ (SetAside { .. } | Refuse(_) | Record(decision::Record::Overtaken(_)), _)) => verdict,
        Some(verdict @ (Waits(Wait::SupersededNotServed(_) | Wait::Dropped { .. }), _)) => verdict,
        _ if nobody_else(facts) => (Refuse(why), Rule::StartAsIs),
        _ => {
            let go_on = |(member, cluster)| others_go_on(facts, member, cluster, rules);
            (Waits(Wait::Unfit { others_go_on: facts.owner.is_some_and(go_on), why }), Rule::StartAsIs)
        }
    }
}

/// Whether no other pod or volume is known of, and whoever knows of the volumes has been asked.
fn nobody_else(facts: &Facts) -> bool {
    let no_volumes = match &facts.claims {
        Known::Present(claims) => claims.is_empty(),
        Known::Absent => true,
        Known::Unknown(_) => !facts.host_configured,
    };
    facts.peers.is_empty() && no_volumes
}

/// Whether a quorum without this pod's member, which does not run, has given a list of its cluster: with this member as
/// this pod's, or without it.
fn others_go_on(facts: &Facts, member: MemberId, cluster: ClusterId, rules: Rules) -> bool {
    let listed = facts.members.present().is_some_and(|list| {
        let here = list.of(facts.ordinal).map(|listed| listed.id);
        list.cluster == cluster && (here == Some(member) || !list.has(member))
    });
    let proven = listed || !rules.on(Rule::DamagedReplaced);
    proven && other_cluster(facts, cluster).is_none() && facts.shared_ca && !facts.notes.resetting
}

/// A valid data dir: nothing but a proof keeps it from starting.
fn with_data(facts: &Facts, member: MemberId, cluster: ClusterId, rules: Rules) -> Verdict {
    let wait = |wait, rule| (BootDecision::Wait(wait), rule);
    let set_aside = |rule| (BootDecision::SetAside { member, cluster }, rule);
    let marker = facts.marker();

    // Nothing has confirmed what an import that did not commit has left here.
    if let Some(source) = vanished(facts) {
        return (BootDecision::Refuse(Refusal::SourceVanished(source)), Rule::JournalTrue);
    }
    if marker::superseded(facts, cluster) && rules.on(Rule::Superseded) {
        let current = |served: ClusterId| !marker::superseded(facts, served);
        let served = facts.peers.iter().filter_map(|peer| peer.serves()).any(current);
        return if served {
            set_aside(Rule::Superseded)
        } else {
            wait(Wait::SupersededNotServed(cluster), Rule::Superseded)
        };
    }
    if let Some(other) = other_cluster(facts, cluster)
        && rules.on(Rule::OneCluster)
    {
        return (BootDecision::Refuse(Refusal::TwoClusters { mine: cluster, other }), Rule::OneCluster);
    }
    if facts.notes.resetting
        && let Some(decision) = reset::overtaken(facts, member, cluster)
        && rules.on(Rule::ResetAlone)
    {
        return (reset::overtaken_noted(facts, member, decision), Rule::ResetAlone);
    }
    if facts.notes.resetting && rules.on(Rule::ResetFinished) {
        let alone = facts.log.present().is_some_and(|log| log.others.is_empty());
        let decision =
            if alone { BootDecision::Record(Record::ResetDone) } else { BootDecision::Reset { member, cluster } };
        return (decision, Rule::ResetFinished);
    }
    if facts.ordinal != facts.seed && marker.is_some_and(|m| m.phase == MarkerPhase::Forming) {
        return wait(Wait::SeedIsForming(cluster), Rule::FormedOnce);
    }
    let lacks = |list: &MemberList| list.cluster == cluster && !list.has(member);
    if facts.members.present().is_some_and(lacks) {
        return set_aside(Rule::LinearizableProof);
    }
    // etcd could not start from it, whatever it looks like.
    if facts.notes.damaged == Some(member) && others_go_on(facts, member, cluster, Rules::ALL) {
        return set_aside(Rule::DamagedReplaced);
    }
    if !rules.on(Rule::LinearizableProof) && facts.peers.iter().filter_map(|p| p.members.present()).any(lacks) {
        return set_aside(Rule::LinearizableProof);
    }
    let survivor = match marker.filter(|marker| marker.dropped.contains(&member)) {
        Some(marker) => Some(marker.survivor),
        None => dropped_by_word(facts, member, cluster),
    };
    if let Some(survivor) = survivor
        && rules.on(Rule::DroppedNeverStarts)
    {
        return wait(Wait::Dropped { member, survivor }, Rule::DroppedNeverStarts);
    }
    if let Some(decision) = reset::dropped(facts, member, cluster)
        && rules.on(Rule::DropsRecorded)
    {
        return (reset::overtaken_noted(facts, member, decision), Rule::DropsRecorded);
    }
    if let Some(verdict) = form::unrecorded(facts, cluster, rules) {
        return verdict;
    }
    if facts.notes.stopped && rules.on(Rule::StopWithdrawn) {
        return match &facts.marker {
            Known::Present(seen) => {
                (BootDecision::Record(Record::Withdrawn(seen.withdrawing(member))), Rule::StopWithdrawn)
            }
            // The marker that would say whether the seed has gone on alone since is gone, and this voter's word with it: what
            // holds it back then is the seed's own word.
            Known::Absent if seed_is_not_known(facts) => {
                wait(Wait::HostAway("it does not tell the StatefulSet".to_owned()), Rule::StopWithdrawn)
            }
            Known::Absent if seed_is_unheard(facts) => wait(Wait::UnheardSeed(facts.seed), Rule::StopWithdrawn),
            Known::Absent => (BootDecision::Record(Record::WithdrawnAlready), Rule::StopWithdrawn),
            Known::Unknown(why) => wait(Wait::HostAway(why.clone()), Rule::StopWithdrawn),
        };
    }
    reset::verdict(facts, member, cluster, rules).unwrap_or_else(|| start(facts, member, cluster))
}

/// The member that says that a reset has dropped this one. Of two that say so of each other neither is believed.
fn dropped_by_word(facts: &Facts, member: MemberId, of: ClusterId) -> Option<Option<MemberId>> {
    let says = facts.peers.iter().filter(|peer| peer.dropped.contains(&member)).find_map(|peer| match peer.state {
        Known::Present(PeerState::Data { member, cluster, .. } | PeerState::Serving { member, cluster }) => {
            (cluster == of).then_some(member)
        }
        _ => None,
    });
    says.filter(|survivor| !facts.dropped.contains(survivor)).map(Some)
}

/// Whether nobody has said which pod is the seed: ordinals need not begin at 0.
fn seed_is_not_known(facts: &Facts) -> bool {
    matches!(facts.desired, Desired::Unknown(_))
}

/// Whether the seed, which the log of another pod may call a voter, has not said what it has.
fn seed_is_unheard(facts: &Facts) -> bool {
    let listed = facts.log.present().is_none_or(|log| log.others.iter().any(|m| m.ordinal == Some(facts.seed)));
    facts.ordinal != facts.seed && listed && facts.peer(facts.seed).is_none_or(|peer| peer.state.present().is_none())
}

fn start(facts: &Facts, member: MemberId, cluster: ClusterId) -> Verdict {
    let mut warnings: Vec<_> = facts.stores.state_dbs.iter().cloned().map(Warning::StateDbIgnored).collect();
    if facts.desired.known() != Some(1) && facts.peers.iter().all(|peer| peer.state.present().is_none()) {
        warnings.push(Warning::PeersUnknown);
    }
    warnings.extend(reset::hindered(facts, cluster).map(Warning::NoQuorum));
    let finish = !facts.stores.strays.is_empty() || matches!(facts.journal, JournalFact::Importing { .. });
    (BootDecision::Start { member, cluster, finish, warnings }, Rule::StartAsIs)
}

/// Another cluster than `mine` that the marker records, or that a peer has and the marker does not speak against.
fn other_cluster(facts: &Facts, mine: ClusterId) -> Option<ClusterId> {
    match facts.marker().and_then(|marker| marker.formed()) {
        Some(formed) => (formed != mine).then_some(formed),
        None => facts
            .peers
            .iter()
            .filter_map(|peer| peer.cluster())
            .find(|other| *other != mine && !marker::superseded(facts, *other)),
    }
}

/// An empty data dir: join if a cluster exists, form or import if it is proven that none does.
fn without_data(facts: &Facts, rules: Rules) -> Verdict {
    let refuse = |refusal, rule| (BootDecision::Refuse(refusal), rule);
    if let JournalFact::Importing { source } = &facts.journal {
        return refuse(Refusal::SourceVanished(source.clone()), Rule::JournalTrue);
    }
    if let Some(left) = facts.notes.left.filter(|_| !facts.stores.state_dbs.is_empty())
        && let marker::Release::Write(write) = marker::release(&facts.marker, left)
        && rules.on(Rule::Released)
    {
        return (BootDecision::Record(Record::Released(write)), Rule::Released);
    }
    if let Some(cluster) = form::evidence(facts, rules)
        && rules.on(Rule::FormedOnce)
    {
        return join(facts, cluster, rules);
    }
    let told = matches!(facts.journal, JournalFact::Done { .. }) || matches!(facts.fence, FenceFact::Kept { .. });
    if told && facts.notes.left.is_some() && !facts.stores.state_dbs.is_empty() {
        return (BootDecision::Record(Record::WentBack), Rule::JournalTrue);
    }
    if let Some(refusal) = lost(facts) {
        return refuse(refusal, Rule::JournalTrue);
    }
    // The cluster's data is there; a new one would be empty.
    if let FenceFact::Lifted { source } = &facts.fence
        && !facts.migrate_from
    {
        return refuse(Refusal::MoveUnfinished(source.clone()), Rule::JournalTrue);
    }
    if facts.written_back && facts.stores.state_dbs.is_empty() {
        return refuse(Refusal::WrittenBackButGone, Rule::JournalTrue);
    }
    if let Some(refusal) = store_refused(facts) {
        return refuse(refusal, Rule::JournalTrue);
    }
    if facts.migrate_from
        && facts.ordinal == facts.seed
        && let Some(store) = facts.stores.state_dbs.first()
    {
        return refuse(Refusal::TwoSources(store.clone()), Rule::StoreOfSeed);
    }
    if let Some(verdict) = form::hindrance(facts, rules) {
        return verdict;
    }
    match facts.stores.state_dbs.as_slice() {
        _ if facts.migrate_from => (BootDecision::MigrateFrom, Rule::StoreOfSeed),
        _ if !rules.on(Rule::StoreOfSeed) => (BootDecision::Form, Rule::SeedForms),
        [] => (BootDecision::Form, Rule::SeedForms),
        [source] => (BootDecision::Import { source: source.clone() }, Rule::StoreOfSeed),
        several => refuse(Refusal::SeveralStores(several.to_vec()), Rule::JournalTrue),
    }
}

/// An empty volume while `cluster` exists.
fn join(facts: &Facts, cluster: ClusterId, rules: Rules) -> Verdict {
    let wait = |wait, rule| (BootDecision::Wait(wait), rule);
    let refuse = |refusal, rule| (BootDecision::Refuse(refusal), rule);
    if let Some(other) = other_cluster(facts, cluster)
        && rules.on(Rule::OneCluster)
    {
        return refuse(Refusal::TwoClusters { mine: cluster, other }, Rule::OneCluster);
    }
    // The restored cluster is the one to join, not one that it has replaced.
    let Some(list) = facts.members.present().filter(|list| list.cluster == cluster) else {
        let alone = nobody_else(facts);
        return if alone {
            refuse(Refusal::FormedElsewhere(cluster), Rule::FormedOnce)
        } else {
            wait(Wait::NobodyToJoin(cluster), Rule::FormedOnce)
        };
    };
    if !facts.shared_ca && rules.on(Rule::SharedCa) {
        return refuse(Refusal::NoSharedCa, Rule::SharedCa);
    }
    if let Some(dir) = &facts.k0s_makes_cas
        && rules.on(Rule::SharedCa)
    {
        return refuse(Refusal::K0sMakesCas(dir.clone()), Rule::SharedCa);
    }
    if let Some((dir, ordinal)) = &facts.k0s_other_cas
        && rules.on(Rule::SharedCa)
    {
        return refuse(Refusal::K0sOtherCas { dir: dir.clone(), ordinal: *ordinal }, Rule::SharedCa);
    }
    let listed = list.of(facts.ordinal).map(|member| member.id);
    let wanted = match (facts.desired.wants(facts.seed, facts.ordinal), &facts.desired) {
        _ if !rules.on(Rule::NeverAddSurplus) => None,
        (Some(false), desired) => {
            Some(Wait::Surplus { ordinal: facts.ordinal, desired: desired.known().unwrap_or_default() })
        }
        // Whoever is listed was wanted; its place is filled again without asking.
        (None, Desired::Unknown(why)) if listed.is_none() => Some(Wait::HostAway(why.clone())),
        _ => None,
    };
    if let Some(not_wanted) = wanted {
        return wait(not_wanted, Rule::NeverAddSurplus);
    }
    match listed {
        Some(replace) if rules.on(Rule::ReplaceListed) => {
            (BootDecision::Join { cluster, replace: Some(replace) }, Rule::ReplaceListed)
        }
        _ => (BootDecision::Join { cluster, replace: None }, Rule::AskLeader),
    }
}

#[cfg(test)]
mod tests;
