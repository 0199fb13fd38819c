//! Asking etcd over its client port: each question with a deadline, answers in our own types.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Certificate, Client, CompactionOptions, ConnectOptions, GetOptions, Identity,
    MemberAddOptions, SnapshotStreaming, TlsOptions,
};
use thiserror::Error;

use crate::crash_point::seconds;
pub use crate::datadir::members::Member;
use crate::ids::{ClusterId, MemberId, RaftIndex, Revision, Term};
use crate::pki::layout::read_pem;

/// The key of a probe's read, which does not exist: nothing but the agreement on it is wanted.
const PROBE_KEY: &str = "health";

/// The largest answer that is taken for a page that was asked for without an agreement.
const LOCAL_PAGE_MAX: usize = 256 << 20;

/// Where and how to reach an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdEndpoint {
    /// Client URL, such as `https://localhost:2379`. The certificate must be for its host.
    pub url: String,
    /// How it is known, and we to it; `None` with an `http` URL.
    pub tls: Option<ClientTls>,
    /// The name that the certificate must be for, if it is not the URL's host: an address of a pod, found by its name.
    pub server_name: Option<String>,
}

/// The files with which a client of etcd proves who it is, and knows whom it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// CA of etcd's certificate.
    pub ca: PathBuf,
    /// Client certificate and its key; `None` where etcd asks for none.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why etcd gave no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A certificate or key could not be read.
    #[error("read a certificate or key")]
    File(#[source] std::io::Error),
    /// No answer in time: no quorum, a stalled disk, or nobody there.
    #[error("{what}: no answer within {} ms", deadline.as_millis())]
    Deadline {
        /// The question.
        what: &'static str,
        /// The time that was given.
        deadline: Duration,
    },
    /// etcd, or the way to it, said no.
    #[error("{what}")]
    Etcd {
        /// The question.
        what: &'static str,
        /// Its words.
        #[source]
        source: Box<etcd_client::Error>,
    },
    /// Another cluster than the one that is meant answers.
    #[error("cluster {found} answers, and {wanted} is meant")]
    OtherCluster {
        /// Who answers.
        found: ClusterId,
        /// Who is meant.
        wanted: ClusterId,
        /// By no other way does that one answer.
        last: bool,
    },
    /// An answer without what every such answer has.
    #[error("{what}: the answer lacks its header, or comes from another member than the one before it")]
    Malformed {
        /// The question.
        what: &'static str,
    },
}

impl ClientError {
    /// Whether asking again is no use.
    pub fn is_final(&self) -> bool {
        self.is_denied() || matches!(self, ClientError::OtherCluster { last: true, .. })
    }

    /// Whether etcd has stopped sending a snapshot that it had agreed to send, or never began.
    pub fn is_stalled(&self) -> bool {
        matches!(self, ClientError::Deadline { what: SNAPSHOT, .. })
    }

    /// Whether etcd has said that it did not do what it was asked, and not that it does not know what became of it: a broken
    /// connection, a time-out and a new leader leave that open.
    pub fn is_refusal(&self) -> bool {
        let ClientError::Etcd { source, .. } = self else { return false };
        // Of etcd's `rpctypes`.
        let words = source.to_string();
        words.contains("etcdserver: ")
            && !["timed out", "leader changed", "server stopped", "request cancelled"]
                .iter()
                .any(|open| words.contains(open))
    }

    /// Whether etcd knows us as no user, or as one who may not ask: asking again is no use.
    pub fn is_denied(&self) -> bool {
        let ClientError::Etcd { source, .. } = self else { return false };
        // `ErrUserEmpty`, `ErrPermissionDenied`, `ErrInvalidAuthToken` and `ErrAuthOldRevision` of etcd's `rpctypes`.
        let words = source.to_string();
        ["user name is empty", "permission denied", "invalid auth token", "revision of auth"]
            .iter()
            .any(|said| words.contains(said))
    }
}

/// A member list and what it was read at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberList {
    /// The cluster.
    pub cluster: ClusterId,
    /// The members.
    pub members: Vec<Member>,
}

/// A member's own word on itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who answered.
    pub member: MemberId,
    /// The leader, if it knows one.
    pub leader: Option<MemberId>,
    /// Its version.
    pub version: String,
    /// Size of its backend file in bytes.
    pub db_size: u64,
    /// Bytes in use in that file.
    pub db_in_use: u64,
    /// The size up to which that file may grow; 0 from an etcd that does not tell (before 3.6).
    pub quota: u64,
    /// Its store's revision.
    pub revision: Revision,
    /// Last index in its log.
    pub raft_index: RaftIndex,
    /// Last index it applied.
    pub applied: RaftIndex,
    /// Its term.
    pub term: Term,
    /// Whether it is a learner.
    pub learner: bool,
    /// Its complaints: alarms, or no leader.
    pub errors: Vec<String>,
}

/// A hash over the keys of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C over the bucket `key` up to the revision.
    pub hash: u32,
    /// The revision up to which the store is compacted, -1 if it never was.
    pub compacted: Revision,
    /// The revision up to which was hashed; 0 from an etcd that does not tell (before 3.6).
    pub revision: Revision,
}

/// Which alarm is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// The quota is used up: puts are refused.
    NoSpace,
    /// The member's data differs from the others': everything is refused but reads.
    Corrupt,
}

/// One page of a range of keys.
#[derive(Clone, Debug)]
pub struct Page {
    /// Keys with their values, in the order of the keys.
    pub kvs: Vec<etcd_client::KeyValue>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Vec<u8>>,
    /// The store's revision when it was read.
    pub revision: Revision,
}

/// A connection to one etcd. It is made at the first question and again whenever it broke.
#[derive(Clone)]
pub struct EtcdClient {
    client: Client,
}

impl EtcdEndpoint {
    /// The etcd beside us: by its address, as nothing may resolve `localhost` in an image that has no /etc/hosts, and by
    /// that name for its certificate.
    pub fn on_loopback(port: u16, tls: ClientTls) -> EtcdEndpoint {
        let url = format!("https://{}:{port}", Ipv4Addr::LOCALHOST);
        EtcdEndpoint { url, tls: Some(tls), server_name: Some("localhost".to_owned()) }
    }
}

impl EtcdClient {
    /// A client of `endpoint`. Reads the certificates, connects to nobody yet.
    pub async fn connect(endpoint: &EtcdEndpoint) -> Result<EtcdClient, ClientError> {
        let mut options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(2));
        if let Some(files) = &endpoint.tls {
            let pem = |path| read_pem(path).map_err(ClientError::File);
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(pem(&files.ca)?));
            if let Some((cert, key)) = &files.identity {
                tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
            }
            if let Some(name) = &endpoint.server_name {
                tls = tls.domain_name(name);
            }
            options = options.with_tls(tls);
        }
        let client = Client::connect([&endpoint.url], Some(options))
            .await
            .map_err(|e| ClientError::Etcd { what: "set up a connection", source: Box::new(e) })?;
        Ok(EtcdClient { client })
    }

    /// Reads what a majority agrees on now. The store's revision.
    pub async fn linearizable_read(&mut self, deadline: Duration) -> Result<Revision, ClientError> {
        const WHAT: &str = "read linearizably";
        let options = GetOptions::new().with_count_only();
        let answer = within(WHAT, deadline, self.client.get(PROBE_KEY, Some(options))).await?;
        answer.header().map(|h| Revision(h.revision())).ok_or(ClientError::Malformed { what: WHAT })
    }

    /// The hash of all keys up to `revision`, by the member that is asked. Reads the whole store: give it time.
    pub async fn hash_kv(&mut self, revision: Revision, deadline: Duration) -> Result<HashKv, ClientError> {
        let answer = within("hash the keys", deadline, self.client.hash_kv(revision.0)).await?;
        Ok(HashKv {
            hash: answer.hash(),
            compacted: Revision(answer.compact_version()),
            revision: Revision(answer.hash_revision()),
        })
    }

    /// The state of the member that is asked.
    pub async fn status(&mut self, deadline: Duration) -> Result<Status, ClientError> {
        const WHAT: &str = "ask for the status";
        let answer = within(WHAT, deadline, self.client.status()).await?;
        let header = answer.header().ok_or(ClientError::Malformed { what: WHAT })?;
        Ok(Status {
            cluster: ClusterId(header.cluster_id()),
            member: MemberId(header.member_id()),
            leader: Some(answer.leader()).filter(|id| *id != 0).map(MemberId),
            version: answer.version().to_owned(),
            db_size: u64::try_from(answer.db_size()).unwrap_or(0),
            db_in_use: u64::try_from(answer.raft_used_db_size()).unwrap_or(0),
            quota: u64::try_from(answer.db_size_quota()).unwrap_or(0),
            revision: Revision(header.revision()),
            raft_index: RaftIndex(answer.raft_index()),
            applied: RaftIndex(answer.raft_applied_index()),
            term: Term(answer.raft_term()),
            learner: answer.is_learner(),
            errors: answer.errors().to_vec(),
        })
    }

    /// One page of the keys from `from` on, at `revision` (now, if `None`), at most `limit` of them. Give the revision
    /// of the first page to all others, or they do not fit together.
    pub async fn page(
        &mut self,
        from: &[u8],
        revision: Option<Revision>,
        limit: u32,
        deadline: Duration,
    ) -> Result<Page, ClientError> {
        let mut options = GetOptions::new().with_from_key().with_limit(limit.into());
        if let Some(revision) = revision {
            options = options.with_revision(revision.0);
        }
        page_of(within(PAGE, deadline, self.client.get(least(from), Some(options))).await?)
    }

    /// One page of the keys from `from` on, at most `limit` of them, as this member has them: its quorum is not asked.
    pub async fn local_page(&mut self, from: &[u8], limit: u32, deadline: Duration) -> Result<Page, ClientError> {
        let options = GetOptions::new().with_from_key().with_limit(limit.into()).with_serializable();
        let mut client = self.client.kv_client().max_decoding_message_size(LOCAL_PAGE_MAX);
        page_of(within(PAGE, deadline, client.get(least(from), Some(options))).await?)
    }

    /// The members, as a majority agrees on them now.
    ///
    /// The client library asks for the member's own list, which may lag. So a linearizable read of the same member comes
    /// first: its answer means that everything committed before it is applied there, changes of the membership too,
    /// which is what etcd itself does for a linearizable list (`MemberList` in `server/etcdserver/api/v3rpc/member.go`).
    pub async fn member_list(&mut self, deadline: Duration) -> Result<MemberList, ClientError> {
        const WHAT: &str = "list the members";
        let options = GetOptions::new().with_count_only();
        let read = within(WHAT, deadline, self.client.get(PROBE_KEY, Some(options))).await?;
        let answer = within(WHAT, deadline, self.client.member_list()).await?;
        let (Some(read), Some(header)) = (read.header(), answer.header()) else {
            return Err(ClientError::Malformed { what: WHAT });
        };
        // Another process at the same address, in between, has agreed with nobody on anything.
        if (read.member_id(), read.cluster_id()) != (header.member_id(), header.cluster_id()) {
            return Err(ClientError::Malformed { what: WHAT });
        }
        let cluster = ClusterId(header.cluster_id());
        let members = answer.members().iter().map(|m| Member {
            id: MemberId(m.id()),
            name: m.name().to_owned(),
            peer_urls: m.peer_urls().to_vec(),
            client_urls: m.client_urls().to_vec(),
            learner: m.is_learner(),
        });
        Ok(MemberList { cluster, members: members.collect() })
    }

    /// Changes a voter's peer URLs. Never to be asked of a learner: before 3.5.31 and 3.6.12 it loses its mark.
    pub async fn member_update(
        &mut self,
        id: MemberId,
        peer_urls: Vec<String>,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        within("change a member's peer URLs", deadline, self.client.member_update(id.0, peer_urls)).await.map(drop)
    }

    /// Adds a learner with these peer URLs.
    pub async fn member_add_learner(&mut self, peer_urls: Vec<String>, deadline: Duration) -> Result<(), ClientError> {
        let options = MemberAddOptions::new().with_is_learner();
        within("add a learner", deadline, self.client.member_add(peer_urls, Some(options))).await.map(drop)
    }

    /// Makes a learner a voter.
    pub async fn member_promote(&mut self, id: MemberId, deadline: Duration) -> Result<(), ClientError> {
        within("promote a learner", deadline, self.client.member_promote(id.0)).await.map(drop)
    }

    /// Removes a member.
    pub async fn member_remove(&mut self, id: MemberId, deadline: Duration) -> Result<(), ClientError> {
        within("remove a member", deadline, self.client.member_remove(id.0)).await.map(drop)
    }

    /// Moves leadership to this voter. Only the leader can be asked.
    pub async fn move_leader(&mut self, to: MemberId, deadline: Duration) -> Result<(), ClientError> {
        within("move leadership", deadline, self.client.move_leader(to.0)).await.map(drop)
    }

    /// Compacts the store to `revision` in every member; answered when this one has removed from its file what is older.
    pub async fn compact(&mut self, revision: Revision, deadline: Duration) -> Result<(), ClientError> {
        let options = CompactionOptions::new().with_physical();
        within("compact the store", deadline, self.client.compact(revision.0, Some(options))).await.map(drop)
    }

    /// Writes this member's file anew, without its free pages. It serves nothing meanwhile.
    pub async fn defragment(&mut self, deadline: Duration) -> Result<(), ClientError> {
        within("defragment the store", deadline, self.client.defragment()).await.map(drop)
    }

    /// Begins a snapshot of the member's backend: etcd answers when it has read up to this moment's revision.
    pub async fn snapshot(&mut self) -> Result<SnapshotStream, ClientError> {
        within(SNAPSHOT, stalled_after(), self.client.snapshot()).await.map(SnapshotStream)
    }

    /// Raises an alarm in the name of `member`; none is raised twice.
    pub async fn raise_alarm(&mut self, member: MemberId, alarm: Alarm, deadline: Duration) -> Result<(), ClientError> {
        let raised = self.client.alarm(AlarmAction::Activate, alarm.into(), Some(alarm_of(member)));
        within("raise an alarm", deadline, raised).await.map(drop)
    }

    /// Takes a member's alarm back; one that is not raised is no error.
    pub async fn disarm_alarm(
        &mut self,
        member: MemberId,
        alarm: Alarm,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let disarmed = self.client.alarm(AlarmAction::Deactivate, alarm.into(), Some(alarm_of(member)));
        within("disarm an alarm", deadline, disarmed).await.map(drop)
    }

    /// Whether writes are refused because of the alarm CORRUPT, by an attempt to delete `key`, which must not exist.
    pub async fn refuses_writes(&mut self, key: &str, deadline: Duration) -> Result<bool, ClientError> {
        match within("delete what is not there", deadline, self.client.delete(key, None)).await {
            Ok(_) => Ok(false),
            // `ErrCorrupt` in `etcdserver/errors.go`.
            Err(ClientError::Etcd { source, .. }) if source.to_string().contains("corrupt cluster") => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Raised alarms, each with the member that raised it.
    pub async fn alarms(&mut self, deadline: Duration) -> Result<Vec<(MemberId, Alarm)>, ClientError> {
        let answer =
            within("list the alarms", deadline, self.client.alarm(AlarmAction::Get, AlarmType::None, None)).await?;
        let mut alarms: Vec<_> = answer
            .alarms()
            .iter()
            .filter_map(|raised| match raised.alarm() {
                AlarmType::Nospace => Some((MemberId(raised.member_id()), Alarm::NoSpace)),
                AlarmType::Corrupt => Some((MemberId(raised.member_id()), Alarm::Corrupt)),
                AlarmType::None => None,
            })
            .collect();
        alarms.sort();
        Ok(alarms)
    }
}

fn alarm_of(member: MemberId) -> AlarmOptions {
    let mut of = AlarmOptions::new();
    of.with_member(member.0);
    of
}

impl From<Alarm> for AlarmType {
    fn from(alarm: Alarm) -> AlarmType {
        match alarm {
            Alarm::NoSpace => AlarmType::Nospace,
            Alarm::Corrupt => AlarmType::Corrupt,
        }
    }
}

const SNAPSHOT: &str = "take a snapshot";

/// etcd sends nothing of a snapshot for so long: it hangs.
const STALLED: Duration = Duration::from_secs(60);

/// How long nothing may come of a snapshot, or be taken of it.
pub fn stalled_after() -> Duration {
    seconds("SYNCER_SNAPSHOT_STALLED_SECONDS", STALLED)
}

/// A snapshot on its way: etcd's backend file, and the SHA-256 of it at the end.
pub struct SnapshotStream(SnapshotStreaming);

impl SnapshotStream {
    /// The next bytes; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let piece = within(SNAPSHOT, stalled_after(), self.0.message()).await?;
        Ok(piece.map(|piece| piece.blob().to_vec()))
    }
}

const PAGE: &str = "read a page of keys";

/// etcd takes an empty key for a mistake; the least key is one zero byte.
fn least(from: &[u8]) -> &[u8] {
    if from.is_empty() { &[0] } else { from }
}

fn page_of(mut answer: etcd_client::GetResponse) -> Result<Page, ClientError> {
    let revision = answer.header().map(|h| Revision(h.revision())).ok_or(ClientError::Malformed { what: PAGE })?;
    let more = answer.more();
    let kvs = answer.take_kvs();
    let next = kvs.last().filter(|_| more).map(|last| [last.key(), &[0]].concat());
    Ok(Page { kvs, next, revision })
}

async fn within<T>(
    what: &'static str,
    deadline: Duration,
    question: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(deadline, question).await {
        Err(_) => Err(ClientError::Deadline { what, deadline }),
        Ok(Err(e)) => Err(ClientError::Etcd { what, source: Box::new(e) }),
        Ok(Ok(answer)) => Ok(answer),
    }
}
