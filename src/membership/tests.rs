use super::*;
use crate::boot::{Desired, Member, PodFact};
use crate::ids::ClusterId;

fn id(n: u32) -> MemberId {
    MemberId(u64::from(n) + 1)
}

fn voter(n: u32) -> MemberFact {
    let member = Member { id: id(n), ordinal: Some(Ordinal(n)), learner: false };
    MemberFact { member, active: true, caught_up: true, stalled: false }
}

fn learner(n: u32) -> MemberFact {
    MemberFact { member: Member { learner: true, ..voter(n).member }, ..voter(n) }
}

fn dead(m: MemberFact) -> MemberFact {
    MemberFact { active: false, caught_up: false, ..m }
}

fn pod(n: u32, terminating: bool) -> PodView {
    PodView { pod: Known::Present(PodFact { terminating, current_revision: None }), ..PodView::new(Ordinal(n)) }
}

fn gone(n: u32) -> PodView {
    PodView { pod: Known::Absent, ..PodView::new(Ordinal(n)) }
}

fn joins(n: u32, replace: Option<MemberId>) -> PodView {
    PodView { state: Known::Present(PeerState::Empty), request: Some(Request::Join { replace }), ..pod(n, false) }
}

/// A quiet cluster led by pod 0: these members, these pods.
fn observed(desired: u32, members: Vec<MemberFact>, pods: Vec<PodView>) -> Observed {
    Observed {
        seed: Ordinal(0),
        desired: Desired::Host(desired),
        cluster: ClusterId(2),
        leader: id(0),
        members,
        pods,
        settled: true,
        quiet: true,
        replacing: BTreeSet::new(),
        own_url_differs: false,
    }
}

fn running(n: u32) -> Vec<PodView> {
    (0..n).map(|n| pod(n, false)).collect()
}

#[track_caller]
fn expect(o: &Observed, want: Plan, rule: Rule) {
    assert_eq!(explained(o, Rules::ALL), (want, rule), "{o:#?}");
}

#[test]
fn nothing_is_done_to_what_is_as_it_should_be() {
    let o = observed(3, vec![voter(0), voter(1), voter(2)], running(3));
    assert_eq!(plan(&o), Plan::Nothing);
}

#[test]
fn surplus_goes_dead_ones_first_then_the_highest() {
    let pods = vec![pod(0, false), pod(1, true), pod(2, true)];
    let mut o = observed(1, vec![voter(0), voter(1), voter(2)], pods);
    expect(&o, Plan::Do(Step::Remove(id(2))), Rule::GoneOrLeaving);
    o.members[1] = dead(voter(1));
    expect(&o, Plan::Do(Step::Remove(id(1))), Rule::GoneOrLeaving);
    // Both dead: the rest has no quorum either way, and there would be no leader.
    o.members[2] = dead(voter(2));
    expect(&o, Plan::Wait(Hold::QuorumNeeds(id(2))), Rule::QuorumKept);
}

#[test]
fn a_leader_that_stops_removes_those_that_leave_and_does_nothing_else() {
    let leaving = || observed(1, vec![voter(0), voter(1), voter(2)], vec![pod(0, false), pod(1, true), pod(2, true)]);
    let (plan, rule) = explained(&leaving(), Rules::ALL);
    assert_eq!(while_stopping(plan, rule), Plan::Do(Step::Remove(id(2))));
    let joins = observed(2, vec![voter(0)], vec![pod(0, false), joins(1, None)]);
    let lost = vec![pod(0, false), pod(1, false), super::tests::joins(2, Some(id(2)))];
    let lost = observed(3, vec![voter(0), voter(1), dead(voter(2))], lost);
    let led = Observed { leader: id(1), ..observed(2, vec![voter(0), voter(1)], running(2)) };
    for o in [joins, lost, led] {
        let (plan, rule) = explained(&o, Rules::ALL);
        assert!(matches!(plan, Plan::Do(_)), "{plan:?}");
        assert_eq!(while_stopping(plan, rule), Plan::Nothing);
    }
}

/// Found by the model: the highest stops before it is removed, as the other two are a quorum by its list, and one of those has
/// just been removed.
#[test]
fn a_live_one_does_not_go_before_a_higher_one_that_may_stop_meanwhile() {
    let asks = |n, request| PodView { request, pod: Known::default(), ..PodView::new(Ordinal(n)) };
    let members = || vec![voter(0), voter(1), voter(2)];
    let pods = |highest| vec![asks(0, None), asks(1, Some(Request::Leave)), asks(2, highest)];
    let by_values = |values, pods| Observed { desired: Desired::Values(values), ..observed(1, members(), pods) };
    // By the leader's values file too, and by the leavers' newer ones alone.
    for values in [1, 3] {
        expect(&by_values(values, pods(None)), Plan::Wait(Hold::QuorumNeeds(id(1))), Rule::QuorumKept);
        let both = by_values(values, pods(Some(Request::Leave)));
        expect(&both, Plan::Do(Step::Remove(id(2))), Rule::GoneOrLeaving);
    }
    // One that leads hands that on first, and would be free to stop.
    for values in [1, 3] {
        let led = Observed { leader: id(2), ..by_values(values, pods(Some(Request::Leave))) };
        let (plan, rule) = explained(&led, Rules::ALL);
        let waits = matches!(plan, Plan::Do(Step::MoveLeader(_)) | Plan::Wait(Hold::NobodyToLead));
        assert!(waits && rule == Rule::LeaderStays, "{values}: {plan:?}");
    }
    // Of five, so many are left that it does not matter.
    let mut o = by_values(1, pods(None));
    o.members.extend([voter(3), voter(4)]);
    o.pods.extend([asks(3, None), asks(4, None)]);
    o.desired = Desired::Values(4);
    o.pods[3].request = Some(Request::Leave);
    o.pods[1].request = None;
    expect(&o, Plan::Do(Step::Remove(id(3))), Rule::GoneOrLeaving);
}

#[test]
fn nothing_is_removed_unless_it_is_known_not_to_be_wanted_and_its_pod_goes() {
    let members = || vec![voter(0), voter(1), voter(2)];
    let all = vec![pod(0, false), gone(1), pod(2, true)];
    let wanted = observed(3, members(), all.clone());
    let unknown = Observed { desired: Desired::Unknown("timeout".into()), ..observed(1, members(), all.clone()) };
    let stays = observed(1, members(), running(3));
    let not_asked = observed(1, members(), vec![PodView::new(Ordinal(1)), PodView::new(Ordinal(2))]);
    let pause = observed(0, members(), all);
    for o in [wanted, unknown, stays, not_asked, pause] {
        assert!(!matches!(plan(&o), Plan::Do(Step::Remove(_))), "{o:?}");
    }
}

#[test]
fn without_a_host_api_dns_and_the_pods_request_say_who_leaves() {
    let mut o = observed(1, vec![voter(0), voter(1)], vec![PodView::new(Ordinal(1))]);
    o.desired = Desired::Values(1);
    assert_eq!(plan(&o), Plan::Nothing);
    o.pods[0].dns = Known::Absent;
    assert_eq!(plan(&o), Plan::Do(Step::Remove(id(1))));
    o.pods[0] = PodView { request: Some(Request::Leave), ..PodView::new(Ordinal(1)) };
    assert_eq!(plan(&o), Plan::Do(Step::Remove(id(1))));
    // Its own file says so already, the leader's not yet; at zero nobody leaves.
    o.desired = Desired::Values(2);
    assert_eq!(plan(&o), Plan::Do(Step::Remove(id(1))));
    o.desired = Desired::Values(0);
    assert_eq!(plan(&o), Plan::Nothing);
    o.desired = Desired::Host(2);
    assert_eq!(plan(&o), Plan::Nothing);
    // With one, DNS has no say.
    let pods = vec![PodView { dns: Known::Absent, ..PodView::new(Ordinal(1)) }];
    assert_eq!(plan(&observed(1, vec![voter(0), voter(1)], pods)), Plan::Nothing);
}

#[test]
fn a_leader_moves_leadership_and_never_removes_itself() {
    let pods = || vec![pod(0, false), pod(1, true)];
    let mut o = Observed { leader: id(1), ..observed(1, vec![voter(0), voter(1)], pods()) };
    expect(&o, Plan::Do(Step::MoveLeader(id(0))), Rule::LeaderStays);
    o.members[0].caught_up = false;
    expect(&o, Plan::Wait(Hold::NobodyToLead), Rule::LeaderStays);
    // It goes before a lower one; a higher one does not wait for it.
    let pods = || vec![pod(0, false), pod(1, true), pod(2, true)];
    let led_by = |n| Observed { leader: id(n), ..observed(1, vec![voter(0), voter(1), voter(2)], pods()) };
    expect(&led_by(2), Plan::Do(Step::MoveLeader(id(0))), Rule::LeaderStays);
    expect(&led_by(1), Plan::Do(Step::Remove(id(2))), Rule::GoneOrLeaving);
}

#[test]
fn an_empty_pod_whose_url_is_listed_is_replaced() {
    let members = || vec![voter(0), voter(1), dead(voter(2))];
    let pods = |join| vec![pod(0, false), pod(1, false), join];
    let o = observed(3, members(), pods(joins(2, Some(id(2)))));
    expect(&o, Plan::Do(Step::Remove(id(2))), Rule::ReplaceListed);
    // Not the one that its list had: this one was added for it.
    let o = observed(3, members(), pods(joins(2, None)));
    assert_eq!(plan(&o), Plan::Nothing);
    // It has not said that it is empty.
    let pod = PodView { state: Known::default(), ..joins(2, Some(id(2))) };
    assert_eq!(plan(&observed(3, members(), pods(pod))), Plan::Nothing);
    let o = observed(2, vec![voter(0), dead(voter(1)), dead(voter(2))], pods(joins(2, Some(id(2)))));
    expect(&o, Plan::Wait(Hold::QuorumNeeds(id(2))), Rule::QuorumKept);
}

#[test]
fn the_removal_of_a_wanted_voter_makes_room_for_its_successor() {
    let o = |desired| Observed { desired, ..observed(3, vec![voter(0), voter(1), learner(2)], running(3)) };
    assert_eq!(o(Desired::Host(3)).makes_room(id(1)), Some(Ordinal(1)));
    assert_eq!(o(Desired::Unknown("away".into())).makes_room(id(1)), Some(Ordinal(1)));
    assert_eq!(o(Desired::Host(1)).makes_room(id(1)), None);
    assert_eq!(o(Desired::Host(3)).makes_room(id(2)), None, "a learner");
}

#[test]
fn a_replaced_pod_is_added_anew_a_second_later_and_without_asking_the_host_api() {
    let pods = vec![pod(0, false), pod(1, false), joins(2, Some(id(2)))];
    let mut o = observed(3, vec![voter(0), voter(1)], pods);
    o.settled = false;
    expect(&o, Plan::Wait(Hold::JustChanged), Rule::SecondApart);
    // Only a new ID needs another second: a removal makes none, and a leaver's time is short.
    let leaving = observed(2, vec![voter(0), voter(1), voter(2)], vec![pod(0, false), pod(1, false), pod(2, true)]);
    expect(&Observed { settled: false, ..leaving }, Plan::Do(Step::Remove(id(2))), Rule::GoneOrLeaving);
    o.settled = true;
    expect(&o, Plan::Do(Step::AddLearner(Ordinal(2))), Rule::AskLeader);
    o.desired = Desired::Unknown("timeout".into());
    expect(&o, Plan::Wait(Hold::DesiredUnknown(Ordinal(2))), Rule::NeverAddSurplus);
    o.replacing.insert(Ordinal(2));
    expect(&o, Plan::Do(Step::AddLearner(Ordinal(2))), Rule::AskLeader);
    // One of whom nobody knows whether it is wanted does not stand in its way.
    o.pods[1] = joins(1, None);
    o.members.remove(1);
    expect(&o, Plan::Do(Step::AddLearner(Ordinal(2))), Rule::AskLeader);
    o.replacing.insert(Ordinal(1));
    expect(&o, Plan::Do(Step::AddLearner(Ordinal(1))), Rule::AskLeader);
    // A place is kept until it is taken, or not wanted any more.
    assert_eq!(o.kept_places(), BTreeSet::from([Ordinal(1), Ordinal(2)]));
    assert_eq!(Observed { desired: Desired::Host(2), ..o.clone() }.kept_places(), BTreeSet::from([Ordinal(1)]));
    let taken = Observed { members: vec![voter(0), voter(1)], ..o.clone() };
    assert_eq!(taken.kept_places(), BTreeSet::from([Ordinal(2)]));
    o.replacing.clear();
    expect(&o, Plan::Wait(Hold::DesiredUnknown(Ordinal(1))), Rule::NeverAddSurplus);
}

#[test]
fn joiners_come_one_at_a_time_the_lowest_first_and_only_if_wanted() {
    let pods = vec![pod(0, false), joins(1, None), joins(2, None)];
    let mut o = observed(3, vec![voter(0)], pods);
    expect(&o, Plan::Do(Step::AddLearner(Ordinal(1))), Rule::AskLeader);
    o.members.push(MemberFact { caught_up: false, ..learner(1) });
    expect(&o, Plan::Wait(Hold::AnotherLearner(Ordinal(2))), Rule::OneLearner);
    o.members[1] = voter(1);
    o.desired = Desired::Host(2);
    expect(&o, Plan::Wait(Hold::NotWanted(Ordinal(2))), Rule::NeverAddSurplus);
}

#[test]
fn a_learner_is_promoted_once_caught_up_while_it_is_wanted_and_stays() {
    let with = |m: MemberFact, p: PodView, desired| observed(desired, vec![voter(0), m], vec![pod(0, false), p]);
    expect(&with(learner(1), pod(1, false), 2), Plan::Do(Step::Promote(id(1))), Rule::CaughtUpPromotes);
    for o in [
        with(MemberFact { caught_up: false, ..learner(1) }, pod(1, false), 2),
        with(MemberFact { active: false, ..learner(1) }, pod(1, false), 2),
        with(learner(1), pod(1, true), 2),
        with(learner(1), PodView { request: Some(Request::Stop), ..pod(1, false) }, 2),
    ] {
        assert_eq!(plan(&o), Plan::Nothing, "{o:?}");
    }
    let unwanted = with(learner(1), pod(1, false), 1);
    expect(&unwanted, Plan::Wait(Hold::NotWanted(Ordinal(1))), Rule::NeverAddSurplus);
    let unknown = Observed { desired: Desired::Unknown("x".into()), ..unwanted };
    expect(&unknown, Plan::Wait(Hold::DesiredUnknown(Ordinal(1))), Rule::NeverAddSurplus);
    // One of two voters is down: with a third, two of three must be up, and the new one makes it two.
    let o = observed(3, vec![voter(0), dead(voter(1)), learner(2)], running(3));
    assert_eq!(plan(&o), Plan::Do(Step::Promote(id(2))));
    let o = observed(4, vec![voter(0), dead(voter(1)), dead(voter(2)), learner(3)], running(4));
    expect(&o, Plan::Wait(Hold::QuorumNeeds(id(3))), Rule::QuorumKept);
}

#[test]
fn a_learner_without_progress_is_evicted() {
    let o = observed(2, vec![voter(0), MemberFact { stalled: true, ..dead(learner(1)) }], running(2));
    expect(&o, Plan::Do(Step::Remove(id(1))), Rule::EvictStalled);
}

#[test]
fn leadership_rests_on_the_lowest_caught_up_voter_that_is_wanted_and_stays() {
    let lead_by_2 = |members, pods| Observed { leader: id(2), ..observed(3, members, pods) };
    let members = || vec![voter(0), voter(1), voter(2)];
    let o = lead_by_2(members(), running(3));
    expect(&o, Plan::Do(Step::MoveLeader(id(0))), Rule::LowestLeads);
    assert_eq!(plan(&Observed { quiet: false, ..o }), Plan::Nothing);
    let behind = vec![MemberFact { caught_up: false, ..voter(0) }, voter(1), voter(2)];
    assert_eq!(plan(&lead_by_2(behind, running(3))), Plan::Do(Step::MoveLeader(id(1))));
    let stopping = vec![PodView { request: Some(Request::Stop), ..pod(0, false) }, pod(1, true), pod(2, false)];
    assert_eq!(plan(&lead_by_2(members(), stopping)), Plan::Nothing);
}

#[test]
fn a_lone_member_corrects_its_own_url() {
    let o = Observed { own_url_differs: true, ..observed(1, vec![voter(0)], running(1)) };
    expect(&o, Plan::Do(Step::UpdateOwnPeerUrl), Rule::OneWriter);
    let o = Observed { own_url_differs: true, ..observed(2, vec![voter(0), voter(1)], running(2)) };
    assert_eq!(plan(&o), Plan::Nothing);
}

mod leaving {
    use std::time::Duration;

    use super::*;
    use crate::boot::{LogPosition, Marker, MarkerPhase, MarkerSeen, Stopped};
    use crate::membership::leave::{
        ANSWERS_IN, ASKS_FOR, Announcing, FOR_ETCD, LeaveStep, LeaveWait, Leaving, TO_LEAVE, explained, leave,
    };

    /// Pod `n` of three healthy voters led by pod 0, told to stop, its API server gone.
    fn pod(n: u32, desired: u32) -> Leaving {
        let marker = Marker::new(MarkerPhase::Formed(ClusterId(2)));
        Leaving {
            ordinal: Ordinal(n),
            seed: Ordinal(0),
            desired: Desired::Host(desired),
            asked_for: Duration::ZERO,
            unanswered: None,
            host_configured: true,
            member: Some(id(n)),
            apiserver: false,
            etcd: true,
            leader: Known::Present(id(0)),
            members: Known::Present(vec![voter(0), voter(1), voter(2)]),
            stopping: Vec::new(),
            last: None,
            refused: false,
            noted: false,
            marker: Known::Present(MarkerSeen { version: "7".into(), marker }),
            left: Duration::from_secs(8),
        }
    }

    fn stopped(l: Leaving) -> Leaving {
        Leaving { etcd: false, last: Some(LogPosition::default()), members: Known::default(), ..l }
    }

    #[test]
    fn the_note_of_a_stop_is_taken_back_only_where_no_write_of_its_record_may_have_been_made() {
        let mut announcing = Announcing::default();
        assert!(announcing.denied());
        announcing.unanswered();
        assert!(!announcing.denied(), "an earlier write may be in the marker");
    }

    #[test]
    fn the_api_server_goes_first() {
        for desired in 0..4 {
            assert_eq!(leave(&Leaving { apiserver: true, ..pod(1, desired) }), LeaveStep::StopApiServer);
        }
        assert_eq!(leave(&Leaving { apiserver: true, member: None, ..pod(1, 3) }), LeaveStep::StopApiServer);
        assert_eq!(leave(&Leaving { member: None, ..pod(1, 3) }), LeaveStep::Exit);
    }

    #[test]
    fn who_is_not_wanted_is_removed_before_it_stops() {
        let mut l = pod(2, 1);
        assert_eq!(explained(&l, Rules::ALL), (LeaveStep::AskRemoval, Rule::LeaveFirst));
        l.leader = Known::Present(id(2));
        assert_eq!(leave(&l), LeaveStep::MoveLeader(id(0)));
        l.stopping = vec![id(0)];
        assert_eq!(leave(&l), LeaveStep::Wait(LeaveWait::Heir));
        l.members = Known::Present(vec![voter(0)]);
        assert_eq!(leave(&l), LeaveStep::StopEtcd);
        l.etcd = false;
        assert_eq!(leave(&l), LeaveStep::SetAside);
    }

    #[test]
    fn who_is_not_let_go_stops_first_if_it_can_be_spared_and_asks_on() {
        let l = Leaving { refused: true, ..pod(2, 1) };
        assert_eq!(explained(&l, Rules::ALL), (LeaveStep::StopEtcd, Rule::LeaveFirst));
        let down = Leaving { etcd: false, ..l.clone() };
        assert_eq!(leave(&down), LeaveStep::AskRemoval);
        assert_eq!(leave(&Leaving { members: Known::default(), ..down.clone() }), LeaveStep::Wait(LeaveWait::Quorum));
        assert_eq!(
            leave(&Leaving { members: Known::Present(vec![voter(0), voter(1)]), ..down.clone() }),
            LeaveStep::SetAside
        );
        assert_eq!(leave(&Leaving { left: FOR_ETCD, ..down }), LeaveStep::Exit);

        let stays = |l: Leaving| assert_eq!(leave(&l), LeaveStep::AskRemoval, "{l:?}");
        stays(Leaving { refused: true, ..pod(1, 1) });
        stays(Leaving { members: Known::Present(vec![voter(0), voter(2)]), ..l.clone() });
        let mut away = voter(1);
        away.active = false;
        stays(Leaving { members: Known::Present(vec![voter(0), away, voter(2)]), ..l });
        // Once the higher one is gone, two are left, and neither can be spared.
        stays(Leaving { refused: true, members: Known::Present(vec![voter(0), voter(1)]), ..pod(1, 1) });
    }

    #[test]
    fn without_a_quorum_it_waits_until_its_grace_is_nearly_spent() {
        let mut l = Leaving { members: Known::default(), ..pod(2, 1) };
        assert_eq!(leave(&l), LeaveStep::Wait(LeaveWait::Quorum));
        l.left = FOR_ETCD;
        assert_eq!(leave(&l), LeaveStep::StopEtcd);
        assert_eq!(leave(&stopped(l)), LeaveStep::Exit);
    }

    #[test]
    fn who_is_wanted_only_stops_and_hands_leadership_on() {
        for desired in [Desired::Host(3), Desired::Values(3), Desired::Unknown("timeout".into())] {
            let l = Leaving { desired, asked_for: ASKS_FOR, ..pod(0, 3) };
            assert_eq!(explained(&l, Rules::ALL), (LeaveStep::MoveLeader(id(1)), Rule::StopOnly));
            assert_eq!(leave(&Leaving { stopping: vec![id(1)], ..l.clone() }), LeaveStep::MoveLeader(id(2)));
            assert_eq!(leave(&Leaving { leader: Known::Present(id(1)), ..l.clone() }), LeaveStep::StopEtcd);
            assert_eq!(leave(&Leaving { members: Known::default(), ..l.clone() }), LeaveStep::StopEtcd);
            assert_eq!(leave(&stopped(l)), LeaveStep::Exit);
        }
    }

    #[test]
    fn an_etcd_that_served_is_given_time_to_answer_before_a_stop_goes_on_without_its_word() {
        let silent = |time: Duration| Leaving {
            leader: Known::default(),
            members: Known::default(),
            unanswered: Some(time),
            ..pod(0, 3)
        };
        assert_eq!(leave(&silent(Duration::ZERO)), LeaveStep::Wait(LeaveWait::Answer));
        for goes_on in [
            silent(ANSWERS_IN),
            Leaving { left: TO_LEAVE, ..silent(Duration::ZERO) },
            Leaving { unanswered: None, ..silent(Duration::ZERO) },
        ] {
            assert_eq!(leave(&goes_on), LeaveStep::StopEtcd, "{goes_on:?}");
        }
        let ended = Leaving { etcd: false, ..silent(Duration::ZERO) };
        assert_eq!(leave(&ended), LeaveStep::Exit);
    }

    #[test]
    fn whether_it_is_wanted_is_asked_for_a_while_before_a_stop_is_only_a_stop() {
        let l = Leaving { desired: Desired::Unknown("late".into()), ..pod(1, 3) };
        assert_eq!(explained(&l, Rules::ALL), (LeaveStep::Wait(LeaveWait::Desired), Rule::StopOnly));
        assert_eq!(leave(&Leaving { apiserver: true, ..l.clone() }), LeaveStep::StopApiServer);
        for over in [
            Leaving { asked_for: ASKS_FOR, ..l.clone() },
            Leaving { left: TO_LEAVE, ..l.clone() },
            Leaving { host_configured: false, ..l.clone() },
        ] {
            assert_eq!(leave(&over), LeaveStep::StopEtcd, "{over:?}");
        }
        assert_eq!(leave(&stopped(l)), LeaveStep::Exit);
    }

    #[test]
    fn who_is_wanted_stays_until_those_who_are_not_have_left() {
        let l = pod(0, 1);
        assert_eq!(leave(&l), LeaveStep::Wait(LeaveWait::Surplus));
        assert_eq!(leave(&Leaving { left: FOR_ETCD, ..l.clone() }), LeaveStep::StopEtcd);
        assert_eq!(leave(&Leaving { members: Known::Present(vec![voter(0), learner(1)]), ..l }), LeaveStep::StopEtcd);
    }

    #[test]
    fn at_zero_replicas_nobody_leaves_and_each_notes_its_last_entry() {
        let l = pod(1, 0);
        assert_eq!(explained(&l, Rules::ALL), (LeaveStep::StopEtcd, Rule::PauseKeeps));
        assert_eq!(leave(&Leaving { leader: Known::Present(id(1)), ..l.clone() }), LeaveStep::MoveLeader(id(0)));
        let mut l = stopped(l);
        assert_eq!(leave(&l), LeaveStep::NoteStopped);
        // Nothing is noted on the volume that no record could be made of: nothing would ever take it back.
        for noted in [false, true] {
            let l = Leaving { noted, ..l.clone() };
            assert_eq!(leave(&Leaving { marker: Known::Absent, ..l.clone() }), LeaveStep::Exit);
            let l = Leaving { marker: Known::default(), ..l };
            assert_eq!(leave(&l), LeaveStep::Wait(LeaveWait::Marker));
            assert_eq!(leave(&Leaving { left: FOR_ETCD, ..l }), LeaveStep::Exit);
        }
        l.noted = true;
        let LeaveStep::Announce(write) = leave(&l) else { panic!() };
        assert_eq!(write.marker.stopped, [Stopped { member: id(1), last: LogPosition::default() }]);
        l.marker = Known::Present(MarkerSeen { version: "8".into(), marker: write.marker });
        assert_eq!(leave(&l), LeaveStep::Exit);
        assert_eq!(
            leave(&Leaving { host_configured: false, marker: Known::default(), noted: false, ..l }),
            LeaveStep::Exit
        );
    }

    #[test]
    fn at_zero_replicas_the_seed_goes_last_where_it_can() {
        let l = pod(0, 0);
        assert_eq!(leave(&l), LeaveStep::Wait(LeaveWait::Others));
        assert_eq!(leave(&Leaving { left: FOR_ETCD, ..l.clone() }), LeaveStep::StopEtcd);
        assert_eq!(leave(&Leaving { members: Known::default(), ..l }), LeaveStep::StopEtcd);
    }
}

mod totality {
    use proptest::prelude::*;

    use super::*;

    fn desireds() -> impl Strategy<Value = Desired> {
        prop_oneof![
            (0..4u32).prop_map(Desired::Host),
            (0..4u32).prop_map(Desired::Values),
            Just(Desired::Unknown("x".into()))
        ]
    }

    fn known<T: Clone + std::fmt::Debug + 'static>(
        value: impl Strategy<Value = T> + 'static,
    ) -> BoxedStrategy<Known<T>> {
        prop_oneof![value.prop_map(Known::Present), Just(Known::Absent), Just(Known::default())].boxed()
    }

    fn any_observed() -> impl Strategy<Value = Observed> {
        let member =
            (0..5u32, any::<[bool; 4]>(), any::<bool>()).prop_map(|(n, [learner, active, caught_up, stalled], url)| {
                let ordinal = url.then_some(Ordinal(n));
                MemberFact { member: Member { id: id(n), ordinal, learner }, active, caught_up, stalled }
            });
        let request = prop_oneof![
            prop::option::of(0..5u32).prop_map(|n| Request::Join { replace: n.map(id) }),
            Just(Request::Leave),
            Just(Request::Stop)
        ];
        let info = any::<bool>().prop_map(|terminating| PodFact { terminating, current_revision: None });
        let pod = (0..5u32, known(info), known(Just(())), known(Just(PeerState::Empty)), prop::option::of(request));
        let pod =
            pod.prop_map(|(n, pod, dns, state, request)| PodView { ordinal: Ordinal(n), pod, dns, state, request });
        let members = prop::collection::vec(member, 0..5);
        (desireds(), members, prop::collection::vec(pod, 0..5), any::<(bool, bool, bool)>(), 0..5u32).prop_map(
            |(desired, mut members, pods, (settled, quiet, own_url_differs), leader)| {
                members.sort_by_key(|m| m.member.id);
                members.dedup_by_key(|m| m.member.id);
                let o = observed(1, members, pods);
                Observed { desired, settled, quiet, own_url_differs, leader: id(leader), ..o }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn every_step_keeps_the_rules(o in any_observed()) {
            for rule in Rule::ALL {
                explained(&o, Rules::without(&[*rule]));
            }
            let of = |id: MemberId| o.members.iter().find(|m| m.member.id == id).unwrap();
            let up = |m: &MemberFact| m.active || m.member.id == o.leader;
            match plan(&o) {
                Plan::Do(Step::Remove(gone)) => {
                    let m = of(gone);
                    prop_assert!(gone != o.leader);
                    let rest: Vec<_> = o.members.iter().filter(|m| !m.member.learner && m.member.id != gone).collect();
                    let quorum = rest.iter().filter(|m| up(m)).count() > rest.len() / 2;
                    prop_assert!(m.member.learner || quorum, "{:?}", o);
                    let emptied = o.pods.iter().any(|pod| pod.request == Some(Request::Join { replace: Some(gone) }));
                    let asks = |n| {
                        let leaves = o.pod(n).is_some_and(|pod| pod.request == Some(Request::Leave));
                        leaves && matches!(o.desired, Desired::Values(_))
                    };
                    let unwanted = m.member.ordinal.is_some_and(|n| o.wants(n) == Some(false) || asks(n));
                    prop_assert!(emptied || m.stalled || (unwanted && o.desired.known() != Some(0)), "{:?}", o);
                }
                Plan::Do(Step::AddLearner(n)) => {
                    prop_assert_eq!(o.wants(n), Some(true));
                    prop_assert!(o.members.iter().all(|m| !m.member.learner && m.member.ordinal != Some(n)));
                }
                Plan::Do(Step::Promote(id)) => {
                    let m = of(id);
                    prop_assert!(m.member.learner && m.active && m.caught_up, "{:?}", o);
                    prop_assert_eq!(o.wants(m.member.ordinal.unwrap()), Some(true));
                }
                Plan::Do(Step::MoveLeader(to)) => {
                    let m = of(to);
                    prop_assert!(!m.member.learner && up(m) && o.wants(m.member.ordinal.unwrap()) == Some(true), "{:?}", o);
                }
                Plan::Do(Step::UpdateOwnPeerUrl) => prop_assert_eq!(o.members.len(), 1),
                Plan::Nothing | Plan::Wait(_) => {}
            }
        }
    }
}
