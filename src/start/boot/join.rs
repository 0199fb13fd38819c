//! A joiner: asks the leader's pod to be added, and starts etcd from the list that has it.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Boot, Booted};
use crate::crash_point;
use crate::etcd::args::{Bootstrap, InitialMember};
use crate::etcd::client;
use crate::ids::{ClusterId, MemberId};
use crate::membership::Request;
use crate::observe::notes;
use crate::peer::survey::Survey;
use crate::peer::{host_of, list_of, ordinal_of};
use crate::start::pod::{ETCD_DEADLINE, Pod};
use crate::telemetry;

/// Between two looks at whether the leader's pod has added us.
const ADDED_EVERY: Duration = Duration::from_millis(100);
/// Between two requests that the leader's pod look again.
const WAKE_EVERY: Duration = Duration::from_secs(1);
/// After this time without having been added, everything is looked at anew.
const ADDED_WITHIN: Duration = Duration::from_secs(15);

impl Boot<'_> {
    /// Asks to be added, and waits for a new member of this pod's URL in a linearizable list.
    pub(super) async fn join(
        &self,
        survey: &Survey,
        cluster: ClusterId,
        replace: Option<MemberId>,
    ) -> anyhow::Result<Option<Booted>> {
        let pod = self.pod;
        let (Some(surveyor), Some(known)) = (&pod.surveyor, &survey.listed) else { return Ok(None) };
        let known: Vec<_> = known.members.iter().map(|m| m.id).collect();
        let needed = survey.words.values().filter_map(|word| word.request_bytes).max();
        notes::change(&pod.disk, &pod.settings.data_dir, |notes| {
            notes.set_aside = Some(cluster);
            notes.request_bytes = notes.request_bytes.max(needed);
        })?;
        crash_point!("join-noted");
        pod.own.joins(cluster);
        pod.own.ask(Some(Request::Join { replace }));
        let deadline = Instant::now() + ADDED_WITHIN;
        let ordinal = pod.settings.pod.ordinal;
        let mut woken: Option<Instant> = None;
        while Instant::now() < deadline {
            if woken.is_none_or(|at| at.elapsed() >= WAKE_EVERY) {
                surveyor.wake(survey).await;
                crash_point!("join-asked");
                woken = Some(Instant::now());
            }
            tokio::time::sleep(ADDED_EVERY).await;
            let dial = surveyor.dial()?;
            for peer in survey.pods.values() {
                let asked = async {
                    let mut etcd = dial.etcd(peer).await?;
                    let list = etcd.member_list(ETCD_DEADLINE).await?;
                    // The joiner's etcd is to take a store of this size, whatever quota is asked for.
                    anyhow::Ok((list, etcd.status(ETCD_DEADLINE).await?.db_size))
                };
                let Ok((list, store_bytes)) = asked.await else { continue };
                let me = list_of(&pod.settings, &list).of(ordinal).map(|member| member.id);
                let Some(me) = me.filter(|id| list.cluster == cluster && !known.contains(id)) else { continue };
                crash_point!("join-added");
                self.clear().context("set aside what a killed join left")?;
                crash_point!("join-cleared");
                telemetry::set_member(Some(me));
                tracing::info!(%cluster, member = %me, "added as a learner: joining");
                pod.own.ask(None);
                pod.own.runs(Some((me, cluster)));
                let members = initial_cluster(pod, &list);
                return Ok(Some(Booted::Etcd(Bootstrap::Existing { members, store_bytes })));
            }
        }
        tracing::info!("not added yet: looking anew");
        Ok(None)
    }
}

/// `--initial-cluster` of a joiner: every member by the name of its pod.
fn initial_cluster(pod: &Pod, list: &client::MemberList) -> Vec<InitialMember> {
    let settings = &pod.settings;
    let member = |m: &client::Member| {
        let ordinal = ordinal_of(settings, &m.peer_urls);
        let name = ordinal.map(|o| host_of(settings, o)).and_then(|host| host.split('.').next().map(str::to_owned));
        let name = name.unwrap_or_else(|| format!("member-{}", m.id));
        m.peer_urls
            .iter()
            .map(move |url| InitialMember { name: name.clone(), peer_url: url.clone() })
            .collect::<Vec<_>>()
    };
    list.members.iter().flat_map(member).collect()
}
