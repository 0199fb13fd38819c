//! What a DNS server's message says: present, authoritatively absent, or unknown. Pure.
//!
//! Messages are untrusted: whatever is not exactly an answer to the question counts as unknown, never as absent.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// More addresses than this for one pod are not believed.
pub const MAX_ADDRESSES: usize = 16;
/// More pods than this in one headless service are not believed.
pub const MAX_PODS: usize = 1024;
/// Aliases that are followed.
const MAX_ALIASES: usize = 8;
/// Nothing is taken for granted longer than this, whatever its TTL says.
pub const MAX_TTL: Duration = Duration::from_secs(30);

/// What is known of a name's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// They exist.
    Present {
        /// They.
        value: T,
        /// How long they may be believed.
        ttl: Duration,
    },
    /// A server that answers for the zone says that there are none.
    Absent {
        /// How long that may be believed: the zone's SOA minimum (RFC 2308, 5).
        ttl: Duration,
    },
    /// Could not be found out, with the reason.
    Unknown(String),
}

impl<T> Answer<T> {
    /// The same with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Answer::Present { value, ttl } => Answer::Present { value: f(value), ttl },
            Answer::Absent { ttl } => Answer::Absent { ttl },
            Answer::Unknown(why) => Answer::Unknown(why),
        }
    }

    /// How long it may be believed.
    pub fn ttl(&self) -> Option<Duration> {
        match self {
            Answer::Present { ttl, .. } | Answer::Absent { ttl } => Some(*ttl),
            Answer::Unknown(_) => None,
        }
    }
}

impl<T: fmt::Debug> fmt::Display for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Present { value, .. } => write!(f, "{value:?}"),
            Answer::Absent { .. } => f.write_str("no such name"),
            Answer::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// Whether a message is the response to this query, and not somebody's guess at one (RFC 5452, 9.1).
pub fn belongs(id: u16, query: &Query, message: &Message) -> bool {
    message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && matches!(message.queries.as_slice(), [asked]
            if asked.name == query.name && asked.query_type == query.query_type && asked.query_class == query.query_class)
}

/// The addresses in a response to a question for A or AAAA records. `domain` is the cluster's: only an SOA record of it,
/// or of a zone in it, makes an absence authoritative.
pub fn addresses(query: &Query, domain: &Name, message: &Message) -> Answer<BTreeSet<IpAddr>> {
    let answer = records(query, domain, message, |data| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    match &answer {
        Answer::Present { value, .. } if value.len() > MAX_ADDRESSES => {
            Answer::Unknown(format!("{} addresses for one pod", value.len()))
        }
        Answer::Present { value, .. } => match value.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
            Some(ip) => Answer::Unknown(format!("{ip} is not a pod's address")),
            None => answer,
        },
        _ => answer,
    }
}

/// The targets in a response to a question for SRV records. See [`addresses`].
pub fn targets(query: &Query, domain: &Name, message: &Message) -> Answer<BTreeSet<Name>> {
    let answer = records(query, domain, message, |data| match data {
        RData::SRV(srv) => Some(srv.target.to_lowercase()),
        _ => None,
    });
    match &answer {
        Answer::Present { value, .. } if value.len() > MAX_PODS => {
            Answer::Unknown(format!("{} pods in one service", value.len()))
        }
        _ => answer,
    }
}

/// The records of the type that was asked for, at the end of the aliases.
fn records<T: Ord>(
    query: &Query,
    domain: &Name,
    message: &Message,
    value: impl Fn(&RData) -> Option<T>,
) -> Answer<BTreeSet<T>> {
    if message.metadata.truncation {
        return Answer::Unknown("the answer is truncated".to_owned());
    }
    let code = message.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Answer::Unknown(format!("the server answers {}", name_of(code)));
    }
    let (owner, alias_ttl) = match end_of_aliases(query, message) {
        Ok(end) => end,
        Err(why) => return Answer::Unknown(why),
    };
    let mut found = BTreeSet::new();
    let mut ttl = alias_ttl;
    for record in message.answers.iter().filter(|r| r.record_type() == query.query_type && r.name == *owner) {
        if record.dns_class != DNSClass::IN {
            return Answer::Unknown("a record of another class".to_owned());
        }
        if let Some(value) = value(&record.data) {
            found.insert(value);
            ttl = ttl.min(seconds(record.ttl));
        }
    }
    match (found.is_empty(), code) {
        (false, ResponseCode::NoError) => Answer::Present { value: found, ttl },
        (false, _) => Answer::Unknown("the server answers NXDOMAIN and with records".to_owned()),
        (true, _) => match negative_ttl(owner, domain, message) {
            Ok(negative) => Answer::Absent { ttl: ttl.min(negative) },
            Err(why) => Answer::Unknown(format!("{} without authority: {why}", name_of(code))),
        },
    }
}

/// The name at the end of the chain of aliases that begins at the question, all of which must stand in the answer.
fn end_of_aliases<'m>(query: &'m Query, message: &'m Message) -> Result<(&'m Name, Duration), String> {
    let (mut name, mut ttl) = (&query.name, MAX_TTL);
    for _ in 0..=MAX_ALIASES {
        let mut aliases = message.answers.iter().filter_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name => Some((&target.0, record.ttl)),
            _ => None,
        });
        match (aliases.next(), aliases.next()) {
            (None, _) => return Ok((name, ttl)),
            (Some(_), Some(_)) => return Err(format!("two aliases for {name}")),
            (Some((target, seconds_left)), None) => {
                name = target;
                ttl = ttl.min(seconds(seconds_left));
            }
        }
    }
    Err(format!("more than {MAX_ALIASES} aliases, or a loop of them"))
}

/// How long the absence of `owner` may be believed. An error if nobody with authority has spoken.
fn negative_ttl(owner: &Name, domain: &Name, message: &Message) -> Result<Duration, String> {
    let mut soa = message.authorities.iter().filter_map(|record| match &record.data {
        RData::SOA(soa) if record.dns_class == DNSClass::IN => Some((record, soa)),
        _ => None,
    });
    let (record, data) = soa.next().ok_or("there is no SOA record")?;
    if soa.next().is_some() {
        return Err("there are several SOA records".to_owned());
    }
    if !record.name.zone_of(owner) {
        return Err(format!("the zone {} does not hold the name", record.name));
    }
    if !domain.zone_of(&record.name) {
        return Err(format!("the zone {} is not in the cluster's domain {domain}", record.name));
    }
    Ok(seconds(record.ttl).min(seconds(data.minimum)))
}

fn seconds(ttl: u32) -> Duration {
    // RFC 2181, 8: a TTL with the topmost bit set is zero.
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    Duration::from_secs(ttl.into()).min(MAX_TTL)
}

/// The code's name as it is known in the field.
fn name_of(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        other => format!("code {}", u16::from(other)),
    }
}

/// Of the answers to the names that one relative name may stand for, tried in this order: the first that is present;
/// absent only if all are. A C library's resolver, and hickory's, would take SERVFAIL and then NXDOMAIN for absent.
pub fn of_candidates<T>(answers: impl IntoIterator<Item = Answer<T>>) -> Answer<T> {
    let mut absent: Option<Duration> = None;
    let mut unknown = None;
    for answer in answers {
        match answer {
            Answer::Present { .. } => return answer,
            Answer::Absent { ttl } => absent = Some(absent.map_or(ttl, |least| least.min(ttl))),
            Answer::Unknown(why) => unknown = unknown.or(Some(why)),
        }
    }
    match (unknown, absent) {
        (Some(why), _) => Answer::Unknown(why),
        (None, Some(ttl)) => Answer::Absent { ttl },
        (None, None) => Answer::Unknown("there is no name to ask for".to_owned()),
    }
}

/// The record type that holds addresses of this family.
pub fn type_of(v6: bool) -> RecordType {
    if v6 { RecordType::AAAA } else { RecordType::A }
}

#[cfg(test)]
mod tests;
