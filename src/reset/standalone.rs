//! One run of etcd that nobody else can reach, which must come out as the only member of its cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use etcd_client::Client;

use crate::crash_point;
use crate::disk::Disk;
use crate::ids::{ClusterId, MemberId, RaftIndex, Revision};
use crate::migrate::loopback::{LoopbackEtcd, START};

/// Between two looks at the member list.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What etcd must say of itself.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Its cluster, as before.
    pub cluster: ClusterId,
    /// Its ID, as before.
    pub member: MemberId,
    /// It has applied the log at least up to here.
    pub index: RaftIndex,
    /// The store is at least here.
    pub revision: Revision,
}

/// Starts etcd, waits until it serves, checks it, and stops it; the store's revision.
pub fn run_alone(disk: &dyn Disk, etcd: &LoopbackEtcd<'_>, expected: &Expected) -> anyhow::Result<Revision> {
    etcd.asked(disk, async |mut client, patience| {
        if etcd.force_new_cluster {
            crash_point!("reset-etcd-serving");
        }
        match tokio::time::timeout(patience, check(&mut client, expected)).await {
            Ok(result) => result,
            Err(_) => bail!("etcd did not become the only member within {} s", patience.as_secs()),
        }
    })
}

async fn check(client: &mut Client, expected: &Expected) -> anyhow::Result<Revision> {
    let begun = Instant::now();
    loop {
        let list = client.member_list().await.context("list the members")?;
        let header = list.header().context("list the members: the answer lacks its header")?;
        let (cluster, member) = (ClusterId(header.cluster_id()), MemberId(header.member_id()));
        ensure!(cluster == expected.cluster, "etcd serves cluster {cluster}, not {}", expected.cluster);
        ensure!(member == expected.member, "etcd is member {member}, not {}", expected.member);
        match list.members() {
            [only] if only.id() == expected.member.0 && !only.is_learner() => break,
            // It removes the others one by one.
            members => ensure!(begun.elapsed() < START, "etcd still has {} members", members.len()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let status = client.status().await.context("ask for the status")?;
    let revision = Revision(status.header().map_or(0, |header| header.revision()));
    let applied = RaftIndex(status.raft_applied_index());
    ensure!(
        applied >= expected.index,
        "etcd has applied its log up to {}, and it went up to {}",
        applied.0,
        expected.index.0
    );
    ensure!(revision >= expected.revision, "etcd is at revision {revision}, and was at {}", expected.revision);
    Ok(revision)
}
