//! One run of etcd that nobody else can reach, which must come out as the only member of its cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use etcd_client::Client;

use crate::crash_point;
use crate::disk::Disk;
use crate::ids::{ClusterId, MemberId, RaftIndex, Revision};
use crate::migrate::loopback::{LoopbackEtcd, Running};
use crate::migrate::verify::remove_scratch;
use crate::pki::{EtcdTlsFiles, throwaway};

/// A start may wait for a slow disk and for as much of the store as it reads first.
const START: Duration = Duration::from_secs(60);
/// What no disk is slower than when read from end to end, in bytes a second.
const SLOWEST_READ: u64 = 4 << 20;
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
    remove_scratch(disk, etcd.scratch)?;
    let tls = throwaway(etcd.scratch).context("make certificates for etcd on loopback")?;
    let result = serve_and_check(etcd, &tls, expected);
    remove_scratch(disk, etcd.scratch)?;
    result
}

fn serve_and_check(etcd: &LoopbackEtcd<'_>, tls: &EtcdTlsFiles, expected: &Expected) -> anyhow::Result<Revision> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let patience = START + Duration::from_secs(etcd.backend_bytes / SLOWEST_READ);
    let mut running = Running::start(etcd, tls)?;
    let result = runtime.block_on(async {
        let mut client = running.serving(etcd, tls, patience).await?;
        if etcd.force_new_cluster {
            crash_point!("reset-etcd-serving");
        }
        match tokio::time::timeout(patience, check(&mut client, expected)).await {
            Ok(result) => result,
            Err(_) => bail!("etcd did not become the only member within {} s", patience.as_secs()),
        }
    });
    // With it go the connections, for which etcd would wait.
    drop(runtime);
    let result = match running.last_lines() {
        lines if result.is_ok() || lines.is_empty() => result,
        lines => result.with_context(|| format!("etcd's last words: {lines}")),
    };
    running.stop()?;
    result
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
