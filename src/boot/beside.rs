//! What a pod that serves makes of another cluster: one that was not to be seen when it was started. Pure.

use super::facts::Facts;
use super::marker;
use crate::ids::ClusterId;
use crate::rules::{Rule, Rules};

/// What a pod that serves a cluster has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// A restore has replaced its cluster: it stops everything and decides anew, which has it join the restored one.
    Superseded,
    /// An unrelated cluster is the formed one: it stops everything and decides anew, which is a refusal as long as that stays
    /// so. Nothing is changed.
    Overtaken(ClusterId),
    /// An unrelated cluster is served by at least as many pods: the same, once it has been so for some looks ([`Looks`]).
    Outnumbered(ClusterId),
    /// Fewer pods serve an unrelated cluster. They are to stop; a stray volume must not stop those that have a quorum.
    Stray(ClusterId),
}

/// So many looks in a row must find more pods that serve another cluster: the word of one may be missing in a look.
const OUTNUMBERED: u32 = 3;

/// What look after look comes to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looks {
    outnumbered: u32,
}

impl Looks {
    /// Takes what one look has found, and gives what is to be acted upon: numbers stop nobody before they have been so
    /// for some looks.
    pub fn take(&mut self, heard: Option<Beside>) -> Option<Beside> {
        let Some(Beside::Outnumbered(other)) = heard else {
            self.outnumbered = 0;
            return heard;
        };
        self.outnumbered = self.outnumbered.saturating_add(1);
        Some(if self.outnumbered < OUTNUMBERED { Beside::Stray(other) } else { Beside::Outnumbered(other) })
    }
}

/// Whether anything is to be compared: another pod has another cluster, or says that this one was replaced. Only then is
/// the host API asked.
pub fn another(facts: &Facts, cluster: ClusterId) -> bool {
    let other = |known: Option<ClusterId>| known.is_some_and(|known| known != cluster);
    facts.peers.iter().any(|peer| other(peer.cluster()) || peer.superseded.contains(&cluster))
}

/// Whether this volume's notes, and with them the clusters that it has replaced, could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotesRead {
    /// They are in the facts.
    Yes,
    /// Not known: another cluster may be one that this one has replaced, and must not stop it by its number of pods.
    Unknown,
}

/// Compares with what the others have, etcd serving `cluster` here.
///
/// Who only has data of another cluster serves nobody, and refuses by itself when it is started.
pub fn beside(facts: &Facts, cluster: ClusterId, notes: NotesRead, rules: Rules) -> Option<(Beside, Rule)> {
    if !rules.on(Rule::RunningCompared) {
        return None;
    }
    if marker::superseded(facts, cluster) && rules.on(Rule::Superseded) {
        return Some((Beside::Superseded, Rule::Superseded));
    }
    let formed = facts.marker().and_then(|marker| marker.formed());
    if let Some(formed) = formed.filter(|formed| *formed != cluster) {
        return Some((Beside::Overtaken(formed), Rule::RunningCompared));
    }
    let served = |by: ClusterId| facts.peers.iter().filter(|peer| peer.serves() == Some(by)).count();
    let others = facts.peers.iter().filter_map(|peer| peer.serves());
    let other =
        others.filter(|other| *other != cluster && !marker::superseded(facts, *other)).max_by_key(|o| served(*o))?;
    let outnumbered = formed.is_none() && notes == NotesRead::Yes && served(other) > served(cluster);
    let heard = if outnumbered { Beside::Outnumbered(other) } else { Beside::Stray(other) };
    Some((heard, Rule::RunningCompared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{DataDirFact, Known, Marker, MarkerPhase, MarkerSeen, PeerFact, PeerState};
    use crate::ids::{MemberId, Ordinal};

    const MINE: ClusterId = ClusterId(2);
    const OTHER: ClusterId = ClusterId(9);

    /// A pod that serves [`MINE`] beside these, by ordinal from 1.
    fn serving(peers: &[PeerState]) -> Facts {
        let peer = |(n, state): (u32, &PeerState)| PeerFact {
            state: Known::Present(state.clone()),
            ..PeerFact::new(Ordinal(n))
        };
        let data_dir = DataDirFact::Valid { member: MemberId(1), cluster: MINE };
        Facts { peers: (1..).zip(peers).map(peer).collect(), ..Facts::serving(Ordinal(0), data_dir) }
    }

    fn serves(cluster: ClusterId) -> PeerState {
        PeerState::Serving { member: MemberId(5), cluster }
    }

    fn marked(change: impl FnOnce(&mut Marker)) -> Known<MarkerSeen> {
        let mut marker = Marker::new(MarkerPhase::Formed(MINE));
        change(&mut marker);
        Known::Present(MarkerSeen { version: "7".into(), marker })
    }

    fn heard(facts: &Facts) -> Option<Beside> {
        beside(facts, MINE, NotesRead::Yes, Rules::ALL).map(|(heard, _)| heard)
    }

    #[test]
    fn as_many_pods_that_serve_another_cluster_stop_this_one_and_fewer_do_not() {
        assert_eq!(heard(&serving(&[])), None);
        assert_eq!(heard(&serving(&[serves(MINE), serves(MINE)])), None);
        assert_eq!(heard(&serving(&[serves(OTHER)])), Some(Beside::Outnumbered(OTHER)));
        assert_eq!(heard(&serving(&[serves(MINE), serves(OTHER)])), Some(Beside::Stray(OTHER)));
        assert_eq!(heard(&serving(&[serves(OTHER), serves(OTHER)])), Some(Beside::Outnumbered(OTHER)));
        let two_strays = serving(&[serves(MINE), serves(OTHER), serves(ClusterId(8))]);
        assert!(matches!(heard(&two_strays), Some(Beside::Stray(_))));
    }

    /// In one look the word of a pod that serves the same cluster is missing.
    #[test]
    fn numbers_stop_a_pod_only_when_they_are_so_in_three_looks_in_a_row() {
        let outnumbered = heard(&serving(&[serves(OTHER), serves(OTHER)]));
        let even = heard(&serving(&[serves(MINE), serves(MINE), serves(OTHER), serves(OTHER)]));
        assert_eq!((outnumbered, even), (Some(Beside::Outnumbered(OTHER)), Some(Beside::Stray(OTHER))));
        for interrupted_by in [even, None] {
            let mut looks = Looks::default();
            for heard in [outnumbered, outnumbered, interrupted_by, outnumbered, outnumbered] {
                assert!(!matches!(looks.take(heard), Some(Beside::Outnumbered(_))));
            }
            assert_eq!(looks.take(outnumbered), Some(Beside::Outnumbered(OTHER)));
        }
        // What the marker or a restore says counts at once.
        for authority in [Beside::Overtaken(OTHER), Beside::Superseded] {
            assert_eq!(Looks::default().take(Some(authority)), Some(authority));
        }
    }

    /// Unreadable notes are not "no notes": the others may serve what this volume's restore has replaced.
    #[test]
    fn with_notes_that_cannot_be_read_only_the_marker_or_the_seed_stops_a_pod() {
        let unread = |facts: &Facts| beside(facts, MINE, NotesRead::Unknown, Rules::ALL).map(|(heard, _)| heard);
        let outnumbered = serving(&[serves(OTHER), serves(OTHER)]);
        assert_eq!(heard(&outnumbered), Some(Beside::Outnumbered(OTHER)));
        assert_eq!(unread(&outnumbered), Some(Beside::Stray(OTHER)));
        let other = marked(|marker| marker.phase = MarkerPhase::Formed(OTHER));
        assert_eq!(unread(&Facts { marker: other, ..outnumbered.clone() }), Some(Beside::Overtaken(OTHER)));
        let replaced = marked(|marker| marker.superseded.push(MINE));
        assert_eq!(unread(&Facts { marker: replaced, ..outnumbered }), Some(Beside::Superseded));
    }

    #[test]
    fn only_another_cluster_or_a_word_of_a_restore_is_compared() {
        assert!(!another(&serving(&[serves(MINE), PeerState::Empty]), MINE));
        let data = PeerState::Data { member: MemberId(5), cluster: OTHER, last: None };
        assert!(another(&serving(&[serves(MINE), data]), MINE));
        let mut told = serving(&[serves(MINE)]);
        told.peers[0].superseded = vec![MINE];
        assert!(another(&told, MINE));
    }

    #[test]
    fn who_does_not_serve_stops_nobody() {
        let data = PeerState::Data { member: MemberId(5), cluster: OTHER, last: None };
        assert_eq!(heard(&serving(&[data.clone(), data])), None);
        assert_eq!(heard(&serving(&[PeerState::Empty])), None);
    }

    #[test]
    fn the_marker_says_which_cluster_is_the_right_one() {
        let beside_one = serving(&[serves(OTHER), serves(OTHER)]);
        let mine = Facts { marker: marked(|_| ()), ..beside_one.clone() };
        assert_eq!(heard(&mine), Some(Beside::Stray(OTHER)));
        let other = marked(|marker| marker.phase = MarkerPhase::Formed(OTHER));
        assert_eq!(heard(&Facts { marker: other, ..beside_one }), Some(Beside::Overtaken(OTHER)));
    }

    #[test]
    fn a_restore_is_heard_of_from_the_seed_the_marker_or_the_volume_and_from_nobody_else() {
        let restored = marked(|marker| marker.superseded.push(MINE));
        assert_eq!(heard(&Facts { marker: restored, ..serving(&[]) }), Some(Beside::Superseded));
        let mut facts = Facts { seed: Ordinal(1), ordinal: Ordinal(0), ..serving(&[serves(OTHER), serves(MINE)]) };
        facts.peers[1].superseded = vec![MINE];
        assert_eq!(heard(&facts), Some(Beside::Stray(OTHER)), "not the seed's word");
        facts.peers[0].superseded = vec![MINE];
        assert_eq!(heard(&facts), Some(Beside::Superseded));
        assert_eq!(
            beside(&facts, MINE, NotesRead::Yes, Rules::without(&[Rule::Superseded])).map(|(_, rule)| rule),
            Some(Rule::RunningCompared)
        );
        // Of the replaced cluster the restored one takes no notice.
        let mut seed = serving(&[serves(OTHER), serves(OTHER)]);
        seed.notes.superseded = vec![OTHER];
        assert_eq!(heard(&seed), None);
    }
}
