//! What the host API says in a pass of the leader, and the marker that the leader's pod looks after.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::boot::marker::{self, Remembered};
use crate::boot::{Desired, Known, PodFact};
use crate::crash_point;
use crate::etcd::client::MemberList;
use crate::host;
use crate::ids::Ordinal;
use crate::observe::notes;
use crate::peer::list_of;
use crate::peer::survey::Survey;
use crate::reset;
use crate::rules::Rules;
use crate::start::pod::Pod;

/// Between two looks at the marker while nothing changes.
const MARKER_EVERY: Duration = Duration::from_secs(30);

/// What the host API has said in a pass.
pub enum HostView {
    /// None is configured.
    None,
    /// It was not asked: the members are those that were wanted when that was seen last, and nobody asks for anything.
    AtRest(Desired),
    /// It was asked in this pass.
    Fresh(Box<host::View>),
}

impl HostView {
    /// Desired replicas; `None`: the host API is not who says so.
    pub fn desired(&self) -> Option<Desired> {
        match self {
            HostView::None => None,
            HostView::AtRest(desired) => Some(desired.clone()),
            HostView::Fresh(view) => Some(view.desired()),
        }
    }

    /// The pod of an ordinal.
    pub fn pod(&self, ordinal: Ordinal) -> Known<PodFact> {
        match self {
            HostView::Fresh(view) => view.pods.get(&ordinal).cloned().unwrap_or_default(),
            HostView::None | HostView::AtRest(_) => Known::default(),
        }
    }
}

/// The leader's way to the host API.
#[derive(Default)]
pub struct ByHost {
    /// When the marker was last seen to be as it should.
    marked: Option<Instant>,
}

impl ByHost {
    /// Asks, unless there is nothing that the answer could change.
    pub async fn view(&self, pod: &Pod, before: &MemberList, survey: &Survey) -> HostView {
        let Some(host) = &pod.host else { return HostView::None };
        let last = host.last().borrow().clone();
        if let Some(last) = last
            && self.marked.is_some_and(|at| at.elapsed() < MARKER_EVERY)
            && survey.words.values().all(|word| word.request.is_none())
        {
            let members = list_of(&pod.settings, before).members;
            let listed: BTreeSet<_> = members.iter().filter_map(|m| m.ordinal).collect();
            let voters = members.iter().all(|m| !m.learner && m.ordinal.is_some());
            if voters && last.ordinals().collect::<BTreeSet<_>>() == listed {
                return HostView::AtRest(Desired::Host(last.replicas));
            }
        }
        let (set, marker) = tokio::join!(host.set(), host.marker());
        let pods = host.pods(survey.peers.iter().map(|peer| peer.ordinal), &set).await;
        HostView::Fresh(Box::new(host::View { set, marker, pods, ..host::View::default() }))
    }

    /// Writes a missing marker again. `list` is linearizable.
    pub async fn keep_marker(&mut self, pod: &Pod, list: &MemberList, view: &HostView) {
        let (Some(host), HostView::Fresh(view)) = (&pod.host, view) else { return };
        if view.marker.unknown().is_some() {
            return;
        }
        let remembered = match view.marker.is_absent().then(|| remembered(pod)) {
            Some(Err(error)) => {
                tracing::warn!("the marker is gone, and what this volume kept of it cannot be read: {error:#}");
                return;
            }
            Some(Ok(remembered)) => remembered,
            None => Remembered::default(),
        };
        match marker::upkeep(&view.marker, &list_of(&pod.settings, list), &remembered, Rules::ALL) {
            None => self.marked = Some(Instant::now()),
            Some(write) => {
                crash_point!("lead-before-mark");
                let written = host.write_marker(&write).await;
                crash_point!("lead-marked");
                tracing::warn!(?written, marker = ?write.marker, "the marker was not as the cluster is");
            }
        }
    }
}

fn remembered(pod: &Pod) -> anyhow::Result<Remembered> {
    let Some((member, cluster)) = pod.own.member() else { return Ok(Remembered::default()) };
    let data_dir = &pod.settings.data_dir;
    let dropped = reset::dropped(data_dir, member, cluster)?;
    let superseded = notes::load(data_dir)?.superseded.into_iter().collect();
    Ok(Remembered { member: Some(member), dropped, superseded })
}
