//! Finding the other pods of the StatefulSet in DNS.
//!
//! Three things are kept apart for each name: it is **present** with its addresses; a server that answers for the zone
//! says that it is **absent**, which holds no longer than the zone's SOA minimum; or it is **unknown**, with the reason
//! (SERVFAIL, REFUSED, no answer, a malformed or truncated one ...). See [`answer`].
//!
//! Pure: [`names`] (what the pods are called), [`resolv_conf`] (which servers, which search list), [`answer`] (what a
//! message says), [`schedule`] (what to ask when; **the budget is written there**). The I/O: [`exchange`] (one question
//! to one server), [`Discovery`] (asks, remembers), [`own`] (waits until our own name resolves), [`Discovery::follow`]
//! (watches the service at rest).
//!
//! Names are never resolved by the C library, whose static form reads no configuration of ours, caches nothing and tells
//! no failure from absence. Messages are encoded and parsed by hickory. Its resolver is not used: it goes on through the
//! search list after a failure, so that SERVFAIL and then NXDOMAIN is "no such name"; it repeats datagrams by its own
//! estimate of the round trip, which no budget bounds; and it answers for some names without asking.

pub mod answer;
pub mod exchange;
pub mod names;
pub mod own;
pub mod resolv_conf;
pub mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::boot::Known;
use crate::exit::{Exit, refuse};
use crate::ids::Ordinal;
use crate::settings::Settings;
use answer::{Answer, addresses, of_candidates, targets, type_of};
use names::Names;
use resolv_conf::ResolvConf;
use schedule::{Memory, Next, Pace};

/// How long one server has for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

impl<T: Ord + Clone> From<Answer<BTreeSet<T>>> for Known<Vec<T>> {
    fn from(answer: Answer<BTreeSet<T>>) -> Known<Vec<T>> {
        match answer {
            Answer::Present { value, .. } => Known::Present(value.into_iter().collect()),
            Answer::Absent { .. } => Known::Absent,
            Answer::Unknown(why) => Known::Unknown(why),
        }
    }
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    /// A pod's addresses, by its full name.
    Pod(Ordinal),
    /// The pods of the headless service.
    Peers,
    /// The addresses of the headless service.
    Service,
}

#[derive(Clone, Debug, PartialEq)]
enum Found {
    Addresses(BTreeSet<IpAddr>),
    Pods(BTreeSet<Ordinal>),
}

/// A file that no second try makes readable is refused with what to do about it.
fn unreadable(path: &Path, error: io::Error) -> anyhow::Error {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied};
    if matches!(error.kind(), IsADirectory | NotADirectory | PermissionDenied) {
        let remedy =
            "name a file in the form of resolv.conf(5) that syncer may read with --resolv-conf, or leave that out";
        return refuse(Exit::Usage, format!("read {}: {error}", path.display()), remedy);
    }
    anyhow::Error::from(error).context(format!("read {}", path.display()))
}

/// Asks DNS for the pods of one StatefulSet and remembers the answers for as long as they hold. Cheap to clone; all
/// clones share memory and budget.
#[derive(Clone, Debug)]
pub struct Discovery(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    names: Names,
    conf: ResolvConf,
    servers: Vec<SocketAddr>,
    /// This pod's address is of IPv6, and so are those asked for first.
    v6: bool,
    pace: Pace,
    memory: Mutex<Memory<Question, Found>>,
}

impl Discovery {
    /// For this pod's StatefulSet, by the servers and the search list of its settings.
    pub fn new(settings: &Settings, pace: Pace) -> anyhow::Result<Discovery> {
        let path = &settings.dns.resolv_conf;
        let conf = ResolvConf::read(path).map_err(|e| unreadable(path, e))?;
        let names = Names::new(&settings.name, &settings.namespace, &conf).context("the pods' names in DNS")?;
        let servers = match settings.dns.server {
            Some(server) => vec![server],
            // As the C library does without a `nameserver` line.
            None if conf.servers.is_empty() => vec![SocketAddr::from(([127, 0, 0, 1], 53))],
            None => conf.servers.clone(),
        };
        let v6 = settings.pod.ip.is_some_and(|ip| ip.is_ipv6());
        let memory = Mutex::new(Memory::new(pace.clone(), Instant::now()));
        Ok(Discovery(Arc::new(Inner { names, conf, servers, v6, pace, memory })))
    }

    /// The names that are asked for.
    pub fn names(&self) -> &Names {
        &self.0.names
    }

    /// A pod's addresses, of this pod's own family first: those of the other are asked for only if it has none.
    pub async fn pod(&self, ordinal: Ordinal) -> Answer<BTreeSet<IpAddr>> {
        self.ask(Question::Pod(ordinal)).await.map(|found| match found {
            Found::Addresses(addresses) => addresses,
            Found::Pods(_) => BTreeSet::new(),
        })
    }

    /// As [`Discovery::pod`], but an absence is asked for again before its time is over: a record is waited for.
    pub async fn pod_to_appear(&self, ordinal: Ordinal) -> Answer<BTreeSet<IpAddr>> {
        self.memory(|memory, _| memory.doubt(&Question::Pod(ordinal)));
        self.pod(ordinal).await
    }

    /// As [`Discovery::service`], but an answer without this pod, which is there, or that there is none, is asked for again
    /// before its time is over: it may be from before it came.
    pub async fn service_with(&self, own: Ordinal) -> Answer<BTreeSet<Ordinal>> {
        let names = |found: &Found| matches!(found, Found::Pods(pods) if pods.contains(&own));
        self.memory(|memory, _| {
            memory.doubt(&Question::Peers);
            memory.doubt_unless(&Question::Peers, names);
        });
        self.service().await
    }

    /// The addresses of several pods, asked for at the same time.
    pub async fn pods(
        &self,
        ordinals: impl IntoIterator<Item = Ordinal>,
    ) -> BTreeMap<Ordinal, Answer<BTreeSet<IpAddr>>> {
        let mut asked = JoinSet::new();
        let mut answers = BTreeMap::new();
        for ordinal in ordinals {
            answers.insert(ordinal, Answer::Unknown("the question was not finished".to_owned()));
            let this = self.clone();
            asked.spawn(async move { (ordinal, this.pod(ordinal).await) });
        }
        while let Some(done) = asked.join_next().await {
            if let Ok((ordinal, answer)) = done {
                answers.insert(ordinal, answer);
            }
        }
        answers
    }

    /// The pods that the headless service names: all that run, ready or not (`publishNotReadyAddresses`). That one is
    /// missing here does not prove that it is absent; ask for it.
    pub async fn service(&self) -> Answer<BTreeSet<Ordinal>> {
        self.ask(Question::Peers).await.map(|found| match found {
            Found::Pods(pods) => pods,
            Found::Addresses(_) => BTreeSet::new(),
        })
    }

    /// The addresses of all pods that run, which the headless service has whatever its ports are called. An absence, and an
    /// answer without any of this pod's `own`, is asked for again before its time is over.
    pub async fn service_addresses_with(&self, own: &BTreeSet<IpAddr>) -> Answer<BTreeSet<IpAddr>> {
        let has = |found: &Found| matches!(found, Found::Addresses(there) if !there.is_disjoint(own));
        self.memory(|memory, _| {
            memory.doubt(&Question::Service);
            memory.doubt_unless(&Question::Service, has);
        });
        self.ask(Question::Service).await.map(|found| match found {
            Found::Addresses(addresses) => addresses,
            Found::Pods(_) => BTreeSet::new(),
        })
    }

    /// A pod's addresses by the name that stands in peer URLs, completed by the search list as etcd does it.
    pub async fn short(&self, ordinal: Ordinal) -> Answer<BTreeSet<IpAddr>> {
        let Ok(name) = self.0.names.short(ordinal) else { return Answer::Unknown("no such name can be".to_owned()) };
        let mut answers = Vec::new();
        for candidate in self.0.conf.candidates(&name) {
            let (answer, sent) = self.0.addresses(&candidate).await;
            self.memory(|memory, now| memory.charge(sent, now));
            let found = matches!(answer, Answer::Present { .. });
            answers.push(answer);
            if found {
                break;
            }
        }
        of_candidates(answers)
    }

    /// Watches the service at rest, for as long as it is polled: publishes the pods that it names, whenever they change.
    pub async fn follow(&self, own: Ordinal, pods: watch::Sender<Known<Vec<Ordinal>>>) {
        let mut failures = 0;
        for look in 0_u32.. {
            let answer = self.service().await;
            failures = if matches!(answer, Answer::Unknown(_)) { failures + 1 } else { 0 };
            let now = Known::from(answer);
            pods.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            if look % self.0.pace.own_every.max(1) == 0
                && let Answer::Absent { .. } = self.pod(own).await
            {
                tracing::warn!("DNS no longer knows this pod's own name; peers cannot reach it");
            }
            tokio::time::sleep(self.0.pace.next_rest(failures, rand::random())).await;
        }
    }

    async fn ask(&self, question: Question) -> Answer<Found> {
        match self.memory(|memory, now| memory.next(&question, now)) {
            Next::Known(answer) => return answer,
            Next::Later { why, .. } => return Answer::Unknown(why),
            Next::Ask => {}
        }
        let inner = &self.0;
        let (answer, sent) = match question {
            Question::Pod(ordinal) => match inner.names.pod(ordinal) {
                Ok(name) => {
                    let (answer, sent) = inner.addresses(&name).await;
                    (answer.map(Found::Addresses), sent)
                }
                Err(e) => (Answer::Unknown(e.to_string()), 0),
            },
            Question::Service => {
                let (answer, sent) = inner.addresses(inner.names.service()).await;
                (answer.map(Found::Addresses), sent)
            }
            Question::Peers => match inner.names.peers() {
                Ok(name) => {
                    let (answer, sent) = inner.exchange(&Query::query(name, RecordType::SRV), targets).await;
                    let ordinals =
                        |found: BTreeSet<Name>| found.iter().filter_map(|n| inner.names.ordinal_of(n)).collect();
                    (answer.map(ordinals).map(Found::Pods), sent)
                }
                Err(e) => (Answer::Unknown(e.to_string()), 0),
            },
        };
        self.memory(|memory, now| memory.learn(&question, answer.clone(), sent, now, rand::random()));
        answer
    }

    fn memory<R>(&self, f: impl FnOnce(&mut Memory<Question, Found>, Instant) -> R) -> R {
        // Nothing panics while it is held, and what it holds is whole at any time.
        f(&mut self.0.memory.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }
}

impl Inner {
    /// The addresses of a full name, and how many datagrams that took.
    async fn addresses(&self, name: &Name) -> (Answer<BTreeSet<IpAddr>>, u32) {
        let mut no_such_name = false;
        let query = Query::query(name.clone(), type_of(self.v6));
        let (first, mut sent) = self
            .exchange(&query, |query, domain, message| {
                no_such_name = message.metadata.response_code == ResponseCode::NXDomain;
                addresses(query, domain, message)
            })
            .await;
        let Answer::Absent { ttl } = first else { return (first, sent) };
        if no_such_name {
            return (first, sent);
        }
        // The name exists, and may have addresses of the other family only.
        let (second, more) = self.exchange(&Query::query(name.clone(), type_of(!self.v6)), addresses).await;
        sent += more;
        let both = match second {
            Answer::Absent { ttl: other } => Answer::Absent { ttl: ttl.min(other) },
            other => other,
        };
        (both, sent)
    }

    /// Asks the servers one after another until one knows.
    async fn exchange<T>(
        &self,
        query: &Query,
        mut read: impl FnMut(&Query, &Name, &Message) -> Answer<T>,
    ) -> (Answer<T>, u32) {
        let mut reasons = Vec::new();
        for (sent, server) in (1..).zip(&self.servers) {
            let answer = match exchange::ask(*server, query, PATIENCE).await {
                Ok(message) => read(query, self.names.domain(), &message),
                Err(why) => Answer::Unknown(why),
            };
            match answer {
                Answer::Unknown(why) if why.starts_with(&server.to_string()) => reasons.push(why),
                Answer::Unknown(why) => reasons.push(format!("{server}: {why}")),
                known => return (known, sent),
            }
        }
        let sent = u32::try_from(self.servers.len()).unwrap_or(u32::MAX);
        (Answer::Unknown(format!("{} {}: {}", query.query_type(), query.name(), reasons.join("; "))), sent)
    }
}
