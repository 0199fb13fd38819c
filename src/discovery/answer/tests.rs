use std::net::Ipv4Addr;

use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV};
use proptest::prelude::*;

use super::*;

const POD: &str = "vc-1.vc-headless.a.svc.cluster.local.";

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn domain() -> Name {
    name("cluster.local.")
}

fn query() -> Query {
    Query::query(name(POD), RecordType::A)
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

fn a(owner: &str, ttl: u32, last: u8) -> Record {
    record(owner, ttl, RData::A(A(Ipv4Addr::new(10, 0, 0, last))))
}

fn alias(owner: &str, target: &str) -> Record {
    record(owner, 20, RData::CNAME(CNAME(name(target))))
}

fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.dns."), name("hostmaster."), 1, 7200, 1800, 86400, minimum);
    record(owner, ttl, RData::SOA(data))
}

/// A response of CoreDNS to [`query`].
fn response(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
    let mut message = Message::response(7, OpCode::Query);
    message.metadata.response_code = code;
    message.metadata.authoritative = true;
    message.queries = vec![query()];
    message.answers = answers;
    message.authorities = authorities;
    message
}

fn answer(message: &Message) -> Answer<BTreeSet<IpAddr>> {
    addresses(&query(), &domain(), message)
}

fn unknown(message: &Message, reason: &str) {
    match answer(message) {
        Answer::Unknown(why) => assert!(why.contains(reason), "{why:?} should hold {reason:?}"),
        other => panic!("{other:?} instead of unknown: {reason}"),
    }
}

#[test]
fn addresses_are_present_for_the_least_ttl() {
    let got = answer(&response(ResponseCode::NoError, vec![a(POD, 5, 1), a(POD, 3, 2), a(POD, 5, 1)], vec![]));
    let value = BTreeSet::from(["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()]);
    assert_eq!(got, Answer::Present { value, ttl: Duration::from_secs(3) });
}

#[test]
fn the_case_of_names_does_not_matter() {
    let got = answer(&response(ResponseCode::NoError, vec![a(&POD.to_uppercase(), 5, 1)], vec![]));
    assert!(matches!(got, Answer::Present { .. }), "{got:?}");
}

#[test]
fn a_ttl_is_bounded() {
    let ttl = |ttl| answer(&response(ResponseCode::NoError, vec![a(POD, ttl, 1)], vec![])).ttl();
    assert_eq!(ttl(86400), Some(MAX_TTL));
    assert_eq!(ttl(u32::MAX), Some(Duration::ZERO), "the topmost bit makes it zero");
}

#[test]
fn nxdomain_and_nodata_with_authority_are_absent_for_the_soa_minimum() {
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        for (ttl, minimum, want) in [(30, 5, 5), (2, 5, 2), (5, 0, 0), (900, 900, 30)] {
            let got = answer(&response(code, vec![], vec![soa("cluster.local.", ttl, minimum)]));
            assert_eq!(got, Answer::Absent { ttl: Duration::from_secs(want) });
        }
        let got = answer(&response(code, vec![], vec![soa("a.svc.cluster.local.", 5, 5)]));
        assert!(matches!(got, Answer::Absent { .. }), "a zone inside the cluster's: {got:?}");
    }
}

#[test]
fn an_absence_without_authority_is_unknown() {
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        unknown(&response(code, vec![], vec![]), "no SOA");
        // A resolver outside the cluster: the root knows no `local`.
        unknown(&response(code, vec![], vec![soa(".", 86400, 86400)]), "not in the cluster's domain");
        unknown(&response(code, vec![], vec![soa("local.", 5, 5)]), "not in the cluster's domain");
        unknown(&response(code, vec![], vec![soa("b.svc.cluster.local.", 5, 5)]), "does not hold the name");
        unknown(&response(code, vec![], vec![soa("example.com.", 5, 5)]), "does not hold the name");
        unknown(&response(code, vec![], vec![soa("cluster.local.", 5, 5), soa(".", 5, 5)]), "several SOA");
    }
    // The SOA in the wrong section.
    let mut message = response(ResponseCode::NXDomain, vec![], vec![]);
    message.additionals = vec![soa("cluster.local.", 5, 5)];
    unknown(&message, "no SOA");
}

#[test]
fn failures_are_unknown() {
    for (code, want) in [
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::Refused, "REFUSED"),
        (ResponseCode::FormErr, "FORMERR"),
        (ResponseCode::NotImp, "NOTIMP"),
        (ResponseCode::YXDomain, "code 6"),
    ] {
        // Whatever else stands in it.
        unknown(&response(code, vec![a(POD, 5, 1)], vec![soa("cluster.local.", 5, 5)]), want);
    }
    let mut message = response(ResponseCode::NoError, vec![a(POD, 5, 1)], vec![]);
    message.metadata.truncation = true;
    unknown(&message, "truncated");
    unknown(&response(ResponseCode::NXDomain, vec![a(POD, 5, 1)], vec![soa("cluster.local.", 5, 5)]), "NXDOMAIN and");
}

#[test]
fn records_of_other_names_and_types_are_not_the_answer() {
    let strangers = vec![
        a("vc-2.vc-headless.a.svc.cluster.local.", 5, 2),
        record(POD, 5, RData::AAAA(AAAA("fd00::1".parse().unwrap()))),
        alias("other.cluster.local.", POD),
    ];
    unknown(&response(ResponseCode::NoError, strangers.clone(), vec![]), "no SOA");
    let mut with_ours = strangers;
    with_ours.push(a(POD, 5, 1));
    let got = answer(&response(ResponseCode::NoError, with_ours, vec![]));
    assert_eq!(got.map(|value| value.len()), Answer::Present { value: 1, ttl: Duration::from_secs(5) });
    let mut foreign = a(POD, 5, 1);
    foreign.dns_class = DNSClass::CH;
    unknown(&response(ResponseCode::NoError, vec![foreign], vec![]), "another class");
}

#[test]
fn aliases_are_followed_within_the_answer_only() {
    let there = response(ResponseCode::NoError, vec![a("y.", 5, 1), alias("x.", "y."), alias(POD, "x.")], vec![]);
    assert!(matches!(answer(&there), Answer::Present { ttl, .. } if ttl == Duration::from_secs(5)));
    unknown(&response(ResponseCode::NoError, vec![alias(POD, "x.")], vec![]), "no SOA");
    unknown(&response(ResponseCode::NoError, vec![alias(POD, POD)], vec![]), "loop");
    unknown(&response(ResponseCode::NoError, vec![alias(POD, "x."), alias("x.", POD)], vec![]), "loop");
    unknown(&response(ResponseCode::NoError, vec![alias(POD, "x."), alias(POD, "y.")], vec![]), "two aliases");
    let chain = |n: usize| (0..n).map(|i| alias(&format!("n{i}."), &format!("n{}.", i + 1))).collect::<Vec<_>>();
    let mut long = chain(20);
    long.push(alias(POD, "n0."));
    unknown(&response(ResponseCode::NoError, long, vec![]), "more than 8 aliases");
    // The zone of the question does not speak for the alias' target.
    let out = response(ResponseCode::NXDomain, vec![alias(POD, "x.")], vec![soa("cluster.local.", 5, 5)]);
    unknown(&out, "does not hold the name");
}

#[test]
fn huge_sets_and_impossible_addresses_are_not_believed() {
    let many: Vec<_> = (0..=MAX_ADDRESSES).map(|i| a(POD, 5, u8::try_from(i).unwrap())).collect();
    unknown(&response(ResponseCode::NoError, many, vec![]), "17 addresses");
    for ip in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(224, 0, 0, 1)] {
        unknown(&response(ResponseCode::NoError, vec![record(POD, 5, RData::A(A(ip)))], vec![]), "not a pod's");
    }
    let query = Query::query(name("_peer._tcp.vc-headless.a.svc.cluster.local."), RecordType::SRV);
    let srv = |i: usize| {
        let target = name(&format!("vc-{i}.vc-headless.a.svc.cluster.local."));
        Record::from_rdata(query.name.clone(), 5, RData::SRV(SRV::new(0, 100, 2380, target)))
    };
    let service = |n| targets(&query, &domain(), &response(ResponseCode::NoError, (0..n).map(srv).collect(), vec![]));
    assert!(matches!(service(3), Answer::Present { value, .. } if value.len() == 3));
    assert!(matches!(service(MAX_PODS + 1), Answer::Unknown(_)));
}

#[test]
fn only_the_response_to_the_question_belongs() {
    type Change = fn(&mut Message);
    let good = response(ResponseCode::NoError, vec![], vec![]);
    assert!(belongs(7, &query(), &good));
    let changes: &[Change] = &[
        |m| m.metadata.id = 8,
        |m| m.metadata.message_type = MessageType::Query,
        |m| m.metadata.op_code = OpCode::Notify,
        |m| m.queries.clear(),
        |m| m.queries.push(m.queries[0].clone()),
        |m| m.queries[0].name = name("vc-2.vc-headless.a.svc.cluster.local."),
        |m| m.queries[0].query_type = RecordType::AAAA,
        |m| m.queries[0].query_class = DNSClass::CH,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(!belongs(7, &query(), &bad), "change {index}");
    }
}

#[test]
fn a_failure_on_the_way_through_the_search_list_is_no_absence() {
    let absent = |s| Answer::<()>::Absent { ttl: Duration::from_secs(s) };
    let failed = || Answer::<()>::Unknown("SERVFAIL".to_owned());
    let present = || Answer::Present { value: (), ttl: Duration::ZERO };
    assert_eq!(of_candidates([failed(), absent(5)]), failed());
    assert_eq!(of_candidates([absent(5), failed()]), failed());
    assert_eq!(of_candidates([absent(9), absent(5)]), absent(5));
    assert_eq!(of_candidates([absent(9), failed(), present()]), present());
    assert!(matches!(of_candidates::<()>([]), Answer::Unknown(_)));
}

proptest! {
    /// Whatever arrives, it is parsed or refused; absent comes only with an SOA record of ours.
    #[test]
    fn no_bytes_make_it_panic_or_absent_without_authority(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        flip in proptest::collection::vec((0usize..300, any::<u8>()), 0..8),
        from_real in any::<bool>(),
    ) {
        if from_real {
            bytes = response(ResponseCode::NXDomain, vec![a(POD, 5, 1)], vec![soa(".", 5, 5)]).to_vec().unwrap();
            for (at, value) in flip {
                if let Some(byte) = bytes.get_mut(at) { *byte = value }
            }
        }
        if let Ok(message) = Message::from_vec(&bytes) {
            let authority = message.authorities.iter().any(|r| matches!(r.data, RData::SOA(_)));
            if let Answer::Absent { .. } = answer(&message) {
                prop_assert!(authority);
            }
        }
    }
}
