//! Any facts give a decision, and what is unknown permits nothing.

use proptest::prelude::*;

use super::*;

fn known<T: Clone + std::fmt::Debug + 'static>(value: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Known<T>> {
    prop_oneof![value.prop_map(Known::Present), Just(Known::Absent), Just(Known::Unknown("x".into()))].boxed()
}

fn ids() -> impl Strategy<Value = MemberId> {
    (1..5u64).prop_map(MemberId)
}

fn clusters() -> impl Strategy<Value = ClusterId> {
    prop_oneof![Just(MINE), Just(OTHER), Just(ClusterId(3))]
}

fn ordinals() -> impl Strategy<Value = Ordinal> {
    prop_oneof![9 => 0..4u32, 1 => Just(u32::MAX)].prop_map(Ordinal)
}

fn positions() -> impl Strategy<Value = LogPosition> {
    (0..3u64, 0..3u64).prop_map(|(term, index)| at(term, index))
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    let one = (ids(), prop::option::of(ordinals()), any::<bool>());
    prop::collection::vec(one.prop_map(|(id, ordinal, learner)| Member { id, ordinal, learner }), 0..4)
}

fn lists() -> impl Strategy<Value = MemberList> {
    (clusters(), members()).prop_map(|(cluster, members)| MemberList { cluster, members })
}

fn desireds() -> impl Strategy<Value = Desired> {
    let number = prop_oneof![9 => 0..4u32, 1 => Just(9)];
    prop_oneof![
        number.clone().prop_map(Desired::Host),
        number.prop_map(Desired::Values),
        Just(Desired::Unknown("x".into()))
    ]
}

fn markers() -> impl Strategy<Value = MarkerSeen> {
    let phase = prop_oneof![Just(MarkerPhase::Forming), clusters().prop_map(MarkerPhase::Formed)];
    let stopped = (ids(), positions()).prop_map(|(member, last)| Stopped { member, last });
    let stopped = prop::collection::vec(stopped, 0..3);
    let sets = (prop::collection::vec(clusters(), 0..2), prop::collection::vec(ids(), 0..3), stopped);
    (phase, prop::option::of(ids()), sets).prop_map(|(phase, survivor, (superseded, dropped, stopped))| MarkerSeen {
        version: "7".into(),
        marker: Marker { phase, writes: 1, superseded, survivor, dropped, stopped },
    })
}

fn peers() -> impl Strategy<Value = PeerFact> {
    let state = prop_oneof![
        Just(PeerState::Empty),
        Just(PeerState::Store(db())),
        (ids(), clusters()).prop_map(|(member, cluster)| PeerState::Data { member, cluster, last: None }),
        (ids(), clusters()).prop_map(|(member, cluster)| PeerState::Serving { member, cluster }),
    ];
    let pod = any::<bool>().prop_map(|terminating| PodFact { terminating, current_revision: None });
    let superseded = prop::collection::vec(clusters(), 0..2);
    let joins = prop::option::of(clusters());
    let told = (superseded, joins, any::<bool>());
    (ordinals(), known(Just(())), known(pod), known(lists()), known(state), told).prop_map(
        |(ordinal, dns, pod, members, state, (superseded, joins, other_ca))| PeerFact {
            ordinal,
            dns,
            pod,
            members,
            state,
            superseded,
            settled: vec![],
            dropped: vec![],
            joins,
            other_ca,
        },
    )
}

fn logs() -> impl Strategy<Value = LogFact> {
    let role = prop_oneof![Just(Role::Voter), Just(Role::Learner), Just(Role::Removed)];
    (positions(), role, 0..4u32, members()).prop_map(|(last, role, voters, others)| LogFact {
        last,
        role,
        voters,
        others,
        voters_now: Vec::new(),
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let unfit = Just(DataDirFact::Older("x".into()));
    let dir = prop_oneof![Just(DataDirFact::Empty), Just(valid()), Just(DataDirFact::Damaged("x".into())), unfit];
    let notes = (any::<(bool, bool, bool)>(), prop::option::of(clusters()), prop::option::of(ids()));
    let notes = notes.prop_map(|((forming, resetting, stopped), set_aside, damaged)| Notes {
        forming,
        resetting,
        stopped,
        set_aside,
        damaged,
        superseded: vec![],
        settled: vec![],
        dropped: vec![],
        overtaken: None,
        left: None,
        request_bytes: None,
    });
    let owner = prop::option::of((ids(), clusters()));
    let own = (ordinals(), desireds(), (dir, owner), known(logs()), notes);
    let seen = (any::<bool>(), known(markers()), known(prop::collection::vec(ordinals(), 0..3)));
    let others = (prop::collection::vec(peers(), 0..4), known(Just(())), known(lists()), any::<bool>());
    (own, seen, others).prop_map(
        |(
            (ordinal, desired, (data_dir, owner), log, notes),
            (host_configured, marker, claims),
            (peers, named, members, shared_ca),
        )| {
            Facts {
                ordinal,
                desired,
                data_dir,
                owner,
                log,
                notes,
                host_configured,
                marker,
                claims,
                peers,
                named,
                members,
                shared_ca,
                ..facts()
            }
        },
    )
}

fn begins(decision: &BootDecision) -> bool {
    matches!(decision, BootDecision::Form | BootDecision::Import { .. } | BootDecision::Record(Record::Forming(_)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn any_facts_give_a_decision_with_its_rule(f in any_facts()) {
        let (decision, rule) = explained(&f, Rules::ALL);
        prop_assert!(!rule.text().is_empty());
        if let BootDecision::Wait(wait) = &decision {
            prop_assert!(!wait.what().is_empty() && !wait.remedy().is_empty());
        }
        for rule in Rule::ALL {
            explained(&f, Rules::without(&[*rule]));
        }
    }

    /// Unknown is not absent: nothing is begun, reset or set aside but on what was seen or authoritatively denied.
    #[test]
    fn what_is_unknown_permits_nothing(f in any_facts()) {
        let decision = decide(&f);
        let is_empty = |n: Ordinal| f.peer(n).is_some_and(|peer| peer.state == Known::Present(PeerState::Empty));
        if begins(&decision) {
            let nobody_else = f.host_configured && (f.claims.is_absent() || f.claims == Known::Present(vec![]));
            let Some(desired) = f.desired.known().or(nobody_else.then_some(0)) else { panic!() };
            prop_assert_eq!(f.ordinal, f.seed);
            prop_assert_eq!(f.notes.set_aside, None);
            prop_assert!(!f.host_configured || f.marker.unknown().is_none());
            prop_assert!(f.host_configured || f.named.unknown().is_none());
            prop_assert_eq!(f.marker().and_then(Marker::formed), None);
            prop_assert!(nobody_else || (1..desired).map(Ordinal).all(is_empty));
            let named = |p: &&PeerFact| p.ordinal != f.ordinal && !p.dns.is_absent();
            prop_assert!(nobody_else || f.peers.iter().filter(named).all(|p| is_empty(p.ordinal)));
            let claimed = f.claims.present().into_iter().flatten().filter(|n| **n != f.ordinal);
            prop_assert!(claimed.copied().all(is_empty));
        }
        if matches!(f.data_dir, DataDirFact::Older(_)) {
            let starts_nothing = matches!(
                decision,
                BootDecision::Refuse(_)
                    | BootDecision::SetAside { .. }
                    | BootDecision::Wait(_)
                    | BootDecision::Record(Record::Overtaken(_))
            );
            prop_assert!(starts_nothing);
        }
        if matches!(decision, BootDecision::SetAside { .. }) {
            let (owner, of) = f.owner.filter(|_| f.data_dir != valid()).unwrap_or((MemberId(1), MINE));
            let lacks = |list: &MemberList| list.cluster == of && !list.has(owner);
            let damaged = matches!(f.data_dir, DataDirFact::Damaged(_)) || f.notes.damaged == Some(owner);
            let replaced = |list: &MemberList| {
                let here = list.of(f.ordinal).map(|member| member.id);
                list.cluster == of && (here == Some(owner) || !list.has(owner))
            };
            let list = f.members.present();
            let proven = list.is_some_and(|list| lacks(list) || (damaged && f.shared_ca && replaced(list)));
            prop_assert!(proven || marker::superseded(&f, of));
        }
        let resets = matches!(decision, BootDecision::Reset { .. } | BootDecision::Record(Record::Survivor(_)));
        if resets && !f.notes.resetting {
            let log = f.log.present().unwrap();
            let others = || log.others.iter().filter(|other| !other.learner);
            let pod_gone = |m: &Member| f.peer(m.ordinal.unwrap()).unwrap().pod.is_absent();
            let alone = f.desired == Desired::Host(1) && others().all(pod_gone);
            prop_assert!(alone || (others().count() == 1 && others().all(|m| is_empty(m.ordinal.unwrap()))));
            prop_assert_eq!(log.role, Role::Voter);
            prop_assert!(log.voters <= 2 || !f.marker().unwrap().stopped.is_empty());
            prop_assert!(!f.host_configured || f.marker().and_then(Marker::formed) == Some(MINE));
        }
    }

    /// A staged restore begins on the seed alone, and supersedes whatever cluster was seen here; where none was, everybody
    /// who is wanted has spoken.
    #[test]
    fn a_restore_begins_on_what_was_seen(f in any_facts(), replaces in prop::option::of(clusters())) {
        let staged = Staged { member: MemberId(7), cluster: ClusterId(7), replaces, begun: None, whole: true, outrun: false };
        let f = Facts { restore: RestoreFact::Staged(staged), ..f };
        if let BootDecision::Record(Record::RestoreBegun(replaced)) = decide(&f) {
            prop_assert_eq!(f.ordinal, f.seed);
            prop_assert!(!f.host_configured || f.marker.unknown().is_none());
            let told = |cluster: ClusterId| replaced.contains(&cluster) || marker::superseded(&f, cluster);
            prop_assert!(f.data_dir != valid() || told(MINE));
            prop_assert!(f.marker().and_then(Marker::formed).is_none_or(told));
            prop_assert!(replaces.is_none_or(told));
            let nobody_else = f.host_configured && (f.claims.is_absent() || f.claims == Known::Present(vec![]));
            let others = (0..f.desired.known().unwrap_or_default()).map(Ordinal).filter(|n| *n != f.ordinal);
            let speaks = |n: Ordinal| f.peer(n).is_some_and(|peer| peer.state.present().is_some());
            let marked = f.marker().is_some_and(|m| m.formed().is_some()) || marker::released(&f).is_some();
            let known = !replaced.is_empty() || nobody_else || marked;
            prop_assert!(known || others.into_iter().all(speaks));
        }
    }
}
