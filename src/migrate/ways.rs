//! The ways to a source that is being moved from: the URL that was given, and its members' own client URLs.
//!
//! etcd's health check fails behind the fence, and the charts' startup and liveness probes ask it: a member that they restart
//! is not ready for as long as the fence stands, and the source's Service drops it. Its own name in the headless service still
//! leads to it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::crash_point::seconds;
use crate::etcd::client::{ClientError, EtcdClient, EtcdEndpoint, Status};
use crate::ids::ClusterId;

/// One answer of the source. A fenced one may be restarted by whoever watches its health.
pub const ANSWER: Duration = Duration::from_secs(5);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(250);
/// Between two lines on a source that does not answer.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// So many connections that lead to a learner are no chance: one in a thousand beside three voters.
const CONNECTIONS: u32 = 5;

/// The ways to the members of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// The URL that was given first.
    endpoints: Vec<EtcdEndpoint>,
    cluster: ClusterId,
}

impl Ways {
    /// To the members of `cluster` by the URL that was given, and by theirs as far as they are asked in the same manner.
    pub fn new(given: &EtcdEndpoint, cluster: ClusterId, members: &[String]) -> Ways {
        let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
        let same = |url: &&String| **url != given.url && scheme(url) == scheme(&given.url);
        let more = members.iter().filter(same).map(|url| EtcdEndpoint {
            url: url.clone(),
            server_name: None,
            ..given.clone()
        });
        Ways { endpoints: std::iter::once(given.clone()).chain(more).collect(), cluster }
    }

    /// The URL that was given.
    pub fn given(&self) -> &EtcdEndpoint {
        // `new` puts it there.
        &self.endpoints[0]
    }

    /// A way by which a majority of the cluster answers now.
    pub async fn open(&self, patience: Duration) -> Result<EtcdEndpoint, ClientError> {
        self.patiently(patience, async |mut client, etcd| client.linearizable_read(ANSWER).await.map(|_| etcd.clone()))
            .await
    }

    /// Asks by one way after the other until there is an answer of the cluster, or one that asking again does not change.
    ///
    /// # Errors
    /// The last one; [`ClientError::OtherCluster`] if by no way the cluster is there.
    pub async fn patiently<T>(
        &self,
        patience: Duration,
        mut ask: impl AsyncFnMut(EtcdClient, &EtcdEndpoint) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut tries = self.endpoints.iter().enumerate().cycle();
        let mut elsewhere = BTreeSet::new();
        let asked = patiently(patience, async || {
            let Some((way, etcd)) = tries.next() else { return Err(ClientError::Malformed { what: "find a way" }) };
            let (client, Status { cluster: found, .. }) = said_by(etcd, ANSWER).await?;
            if found != self.cluster {
                elsewhere.insert(way);
                let last = elsewhere.len() == self.endpoints.len();
                return Err(ClientError::OtherCluster { found, wanted: self.cluster, last });
            }
            elsewhere.remove(&way);
            ask(client, etcd).await
        });
        Box::pin(asked).await
    }
}

/// Connects to a voter, and has it say what it is. Behind one address there may be a learner beside voters, and another connection
/// leads to another of them.
///
/// # Errors
/// It does not answer at first. Where no connection leads to a voter, a learner's word is given.
pub async fn to_voter(etcd: &EtcdEndpoint, deadline: Duration) -> Result<(EtcdClient, Status), ClientError> {
    let (mut client, mut status) = said_by(etcd, deadline).await?;
    for _ in 1..CONNECTIONS {
        if !status.learner {
            break;
        }
        // Another of them may be away.
        if let Ok(said) = said_by(etcd, deadline.min(ANSWER)).await {
            (client, status) = said;
        }
    }
    Ok((client, status))
}

async fn said_by(etcd: &EtcdEndpoint, deadline: Duration) -> Result<(EtcdClient, Status), ClientError> {
    let mut client = EtcdClient::connect(etcd).await?;
    let status = client.status(deadline).await?;
    Ok((client, status))
}

/// Asks until there is an answer, or one that asking again does not change.
pub async fn patiently<T>(
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let (begun, patience) = (Instant::now(), bounded(patience));
    let mut said: Option<Instant> = None;
    loop {
        match ask().await {
            Err(error) if !error.is_final() && begun.elapsed() + AGAIN < patience => {
                if said.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                    tracing::warn!("the source does not answer: {:#}; asking again", Chain(&error));
                    said = Some(Instant::now());
                }
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// Tests have less patience with a source that they have silenced for good.
pub fn bounded(patience: Duration) -> Duration {
    seconds("SYNCER_PATIENCE_SECONDS", patience).min(patience)
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_given_url_comes_first_and_no_member_is_asked_in_another_manner() {
        let given = EtcdEndpoint { url: "http://vc-etcd:2379".to_owned(), tls: None, server_name: None };
        let members = ["http://vc-etcd-0.x:2379", "https://vc-etcd-1.x:2379", "http://vc-etcd:2379"].map(str::to_owned);
        let ways = Ways::new(&given, ClusterId(1), &members);
        let urls: Vec<_> = ways.endpoints.iter().map(|way| way.url.as_str()).collect();
        assert_eq!(urls, ["http://vc-etcd:2379", "http://vc-etcd-0.x:2379"]);
        assert_eq!(ways.given(), &given);
    }
}
