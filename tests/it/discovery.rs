//! Finding pods in DNS, against a real CoreDNS.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use syncer::boot::Known;
use syncer::discovery::answer::Answer;
use syncer::discovery::schedule::Pace;
use syncer::discovery::{Discovery, own};
use syncer::exit::{Exit, exit_of};
use syncer::ids::Ordinal;
use syncer::settings::Settings;
use syncer::settings::flags::Flags;
use syncer::settings::load::{Loader, Surroundings};
use syncer::supervise::StopSignals;

use crate::statefulset_box::coredns::{Mood, Zone};
use crate::support::coredns::CoreDns;
use crate::support::etcd::run;
use crate::support::{free_port, poll};

const PATIENCE: Duration = Duration::from_secs(60);

/// A pace at which a test need not wait, and which no test reaches.
fn quick() -> Pace {
    Pace { retry: Duration::from_millis(5), retry_max: Duration::from_millis(20), burst: 100_000, ..Pace::default() }
}

fn discovery(server: Option<SocketAddr>, resolv_conf: PathBuf, pace: Pace) -> Discovery {
    let flags = Flags { dns_server: server, resolv_conf: Some(resolv_conf), ..Flags::default() };
    Discovery::new(&settings(flags), pace).expect("discovery")
}

fn settings(flags: Flags) -> Settings {
    let env = [("POD_NAME", "vc-0"), ("NAMESPACE", "team-a"), ("POD_IP", "10.1.0.10")];
    let env: BTreeMap<_, _> = env.map(|(name, value)| (name.to_owned(), OsString::from(value))).into();
    let surroundings = Surroundings { values_files: vec![], namespace_file: "/none".into(), folders: vec![] };
    let loader = Loader { flags, wrapped: None, env: Box::new(env), surroundings };
    loader.load().expect("settings").settings
}

fn asking(dns: &CoreDns, pace: Pace) -> Discovery {
    discovery(Some(dns.listen), dns.resolv_conf(), pace)
}

fn ip(ordinal: u32) -> IpAddr {
    Ipv4Addr::new(10, 1, u8::try_from(ordinal / 200).expect("small"), u8::try_from(10 + ordinal % 200).expect("small"))
        .into()
}

/// A service of `pods` pods, whose records hold for no time at all.
fn zone(pods: u32) -> Zone {
    let pods = (0..pods).map(|i| (format!("vc-{i}"), ip(i))).collect();
    Zone { ttl: 0, negative_ttl: 0, pods, ..Zone::new("vc", "team-a") }
}

fn present<T>(answer: &Answer<BTreeSet<T>>) -> Option<&BTreeSet<T>> {
    match answer {
        Answer::Present { value, .. } => Some(value),
        _ => None,
    }
}

fn is_absent<T>(answer: &Answer<T>) -> bool {
    matches!(answer, Answer::Absent { .. })
}

/// The reason of an unknown answer that holds `part`.
fn is_unknown<T>(answer: &Answer<T>, part: &str) -> bool {
    matches!(answer, Answer::Unknown(why) if why.contains(part))
}

/// Asks again until the answer is as it should be. Never sees one of `never` on the way.
async fn until<T, F: Future<Output = T>>(what: &str, mut ask: impl FnMut() -> F, wanted: impl Fn(&T) -> bool) -> T
where
    T: std::fmt::Debug,
{
    let started = Instant::now();
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}, last {answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn pods_come_and_go_as_their_records_do() {
    let mut dns = CoreDns::start(zone(2));
    run(async {
        let discovery = asking(&dns, quick());
        let pods = discovery.pods([0, 1, 2].map(Ordinal)).await;
        assert_eq!(present(&pods[&Ordinal(0)]), Some(&BTreeSet::from([ip(0)])), "{pods:?}");
        assert_eq!(present(&pods[&Ordinal(1)]), Some(&BTreeSet::from([ip(1)])), "{pods:?}");
        assert!(is_absent(&pods[&Ordinal(2)]), "{pods:?}");
        let service = discovery.service().await;
        assert_eq!(present(&service), Some(&BTreeSet::from([Ordinal(0), Ordinal(1)])), "{service:?}");

        dns.change(|zone| {
            zone.pods.insert("vc-2".to_owned(), ip(2));
            zone.pods.remove("vc-1");
        });
        until("pod 2 appears", || discovery.pod(Ordinal(2)), |a| present(a).is_some()).await;
        until("pod 1 goes", || discovery.pod(Ordinal(1)), is_absent).await;
        let both = BTreeSet::from([Ordinal(0), Ordinal(2)]);
        until("the service follows", || discovery.service(), |a| present(a) == Some(&both)).await;

        // The last one goes: the service's name is gone as well.
        dns.change(|zone| zone.pods.clear());
        until("the service is empty", || discovery.service(), is_absent).await;
    });
}

#[test]
fn a_pod_with_addresses_of_the_other_family_only_is_present() {
    let mut zone = zone(0);
    zone.pods.insert("vc-1".to_owned(), "fd00::1".parse().expect("an address"));
    let dns = CoreDns::start(zone);
    run(async {
        let answer = asking(&dns, quick()).pod(Ordinal(1)).await;
        assert_eq!(present(&answer), Some(&BTreeSet::from(["fd00::1".parse().expect("an address")])), "{answer:?}");
    });
}

#[test]
fn an_absence_holds_as_long_as_its_ttl_says() {
    let mut dns = CoreDns::start(Zone { negative_ttl: 2, ..zone(0) });
    run(async {
        let discovery = asking(&dns, quick());
        let asked = Instant::now();
        assert!(is_absent(&discovery.pod(Ordinal(0)).await));
        // It notes questions after its answers.
        let mut before = 0;
        poll("the server has noted all of them", PATIENCE, || {
            let noted = std::mem::replace(&mut before, dns.questions());
            (noted > 0 && noted == before).then_some(())
        });
        assert!(is_absent(&discovery.pod(Ordinal(0)).await));
        if asked.elapsed() < Duration::from_secs(2) {
            assert_eq!(dns.questions(), before, "an answer that holds is not asked for again");
        }
        dns.set_mood(Mood::ServFail);
        until("it is unknown once its time is over", || discovery.pod(Ordinal(0)), |a| is_unknown(a, "SERVFAIL")).await;
        assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
    });
}

/// How often the server was asked which pods the service names, once more than once: it notes a question after its answer.
fn srv_questions(dns: &CoreDns) -> usize {
    let asked = || dns.log().lines().filter(|line| line.contains("[INFO] ") && line.contains("SRV IN ")).count();
    poll("the server has noted two questions", PATIENCE, || (asked() > 1).then_some(()));
    asked()
}

/// A service that has no pod yet does not exist. At rest nobody asks again while that holds, however short the pace; who
/// waits for it to appear does, as often as the pace allows.
#[test]
fn a_service_that_did_not_exist_is_found_when_its_absence_is_over() {
    const HOLDS: u32 = 2;
    let first = || Zone { negative_ttl: HOLDS, ..zone(0) };
    let pods = BTreeSet::from([Ordinal(0), Ordinal(1)]);
    let come = |zone: &mut Zone| zone.pods = [("vc-0".to_owned(), ip(0)), ("vc-1".to_owned(), ip(1))].into();

    let mut dns = CoreDns::start(first());
    run(async {
        // It looks every 150 ms.
        let discovery = asking(&dns, Pace { rest: Duration::from_millis(150), ..quick() });
        let began = Instant::now();
        assert!(is_absent(&discovery.service().await));
        let (sender, mut watched) = tokio::sync::watch::channel(Known::default());
        let found = async {
            watched.wait_for(|seen| *seen == Known::Absent).await.expect("it is watched");
            dns.change(come);
            let all = Known::Present(pods.iter().copied().collect());
            watched.wait_for(|seen| *seen == all).await.expect("it is watched");
            began.elapsed()
        };
        let after = tokio::select! {
            found = tokio::time::timeout(PATIENCE, found) => found.expect("the pods are found"),
            () = discovery.follow(Ordinal(0), sender) => unreachable!("it watches for ever"),
        };
        let holds = Duration::from_secs(HOLDS.into());
        assert!(after >= holds, "it was asked for again after {after:?}, while it held");
        let (asked, most) = (srv_questions(&dns), 1 + after.div_duration_f64(holds) as usize);
        assert!(asked <= most, "{asked} questions for SRV records in {after:?}: {}", dns.log());
    });

    let mut dns = CoreDns::start(Zone { negative_ttl: 3600, ..first() });
    run(async {
        let retry = Duration::from_millis(200);
        let pace = Pace { retry, retry_max: retry, ..quick() };
        let discovery = asking(&dns, pace.clone());
        let began = Instant::now();
        assert!(is_absent(&discovery.service_with(Ordinal(0)).await));
        dns.change(come);
        let named = |answer: &_| present(answer) == Some(&pods);
        until("the pods are found", || discovery.service_with(Ordinal(0)), named).await;
        let (after, asked) = (began.elapsed(), srv_questions(&dns));
        // A fifth of a second, less a quarter.
        let most = 1 + after.div_duration_f64(pace.retry.mul_f64(0.75)) as usize;
        assert!(asked <= most, "{asked} questions for SRV records in {after:?}: {}", dns.log());
    });
}

#[test]
fn failures_are_unknown_and_never_absent() {
    let mut dns = CoreDns::start(zone(1));
    run(async {
        let discovery = asking(&dns, quick());
        let both = async |reason: &str| {
            for ordinal in [0, 1] {
                let answer = until(reason, || discovery.pod(Ordinal(ordinal)), |a| is_unknown(a, reason)).await;
                assert!(is_unknown(&answer, "vc-"), "it names what was asked: {answer:?}");
            }
            until(reason, || discovery.service(), |a| is_unknown(a, reason)).await;
        };
        dns.set_mood(Mood::ServFail);
        both("SERVFAIL").await;
        dns.set_mood(Mood::Refuses);
        both("REFUSED").await;
        dns.set_mood(Mood::Silent);
        both("no answer in").await;
        dns.stop();
        both("refused").await;
        dns.run();
        dns.set_mood(Mood::Well);
        until("it is known again", || discovery.pod(Ordinal(0)), |a| present(a).is_some()).await;
        until("it is absent again", || discovery.pod(Ordinal(1)), is_absent).await;
    });
}

#[test]
fn a_resolver_outside_the_cluster_is_no_authority() {
    // It says NXDOMAIN, with the SOA record of the root.
    let dns = CoreDns::start(Zone { domain: "elsewhere.example".to_owned(), ..zone(1) });
    let resolv_conf = dns.dir().join("without-search.conf");
    std::fs::write(&resolv_conf, "").expect("write");
    run(async {
        let answer = discovery(Some(dns.listen), resolv_conf, quick()).pod(Ordinal(0)).await;
        assert!(is_unknown(&answer, "not in the cluster's domain cluster.local."), "{answer:?}");
    });
}

#[test]
fn the_next_server_is_asked_when_one_fails() {
    // Servers in resolv.conf have no ports, so two addresses of loopback: 53 is nobody's in this namespace.
    let resolv_conf = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(resolv_conf.path(), "nameserver 127.0.0.53\nnameserver 127.0.0.54\n").expect("write");
    run(async {
        let answer = discovery(None, resolv_conf.path().to_owned(), quick()).pod(Ordinal(0)).await;
        assert!(is_unknown(&answer, "127.0.0.53:53") && is_unknown(&answer, "127.0.0.54:53"), "{answer:?}");
    });
}

#[test]
fn the_name_in_peer_urls_is_completed_by_the_search_list() {
    let mut dns = CoreDns::start(zone(1));
    run(async {
        let discovery = asking(&dns, quick());
        let short = discovery.short(Ordinal(0)).await;
        assert_eq!(present(&short), Some(&BTreeSet::from([ip(0)])), "{short:?}");
        // The name as it stands is asked for at the root, which speaks for no pod.
        let short = discovery.short(Ordinal(1)).await;
        assert!(is_unknown(&short, "not in the cluster's domain"), "{short:?}");
        dns.set_mood(Mood::ServFail);
        let short = discovery.short(Ordinal(0)).await;
        assert!(is_unknown(&short, "SERVFAIL"), "{short:?}");
    });
}

#[test]
fn an_answer_too_large_for_a_datagram_comes_by_tcp() {
    let dns = CoreDns::start(zone(200));
    run(async {
        let service = asking(&dns, quick()).service().await;
        assert_eq!(present(&service).map(BTreeSet::len), Some(200), "{service:?}");
    });
    assert!(dns.log().contains(" tcp "), "{}", dns.log());
}

#[test]
fn strangers_answers_are_passed_over_and_malformed_ones_unknown() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = server.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = server.recv_from(&mut buffer) {
            // Nonsense, the question itself, and NXDOMAIN under another ID.
            let question = &buffer[..length];
            let mut guess = question.to_vec();
            (guess[0], guess[2], guess[3]) = (!guess[0], 0x84, 0x03);
            for answer in [b"\xff".as_slice(), question, &guess] {
                let _ = server.send_to(answer, client);
            }
        }
    });
    run(async {
        let answer = discovery(Some(address), "/none".into(), quick()).pod(Ordinal(0)).await;
        assert!(is_unknown(&answer, "3 datagrams and none that answers the question"), "{answer:?}");
    });
}

#[test]
fn a_resolv_conf_that_no_try_makes_readable_is_bad_usage() {
    let folder = tempfile::tempdir().expect("make a directory");
    let flags = Flags { resolv_conf: Some(folder.path().to_owned()), ..Flags::default() };
    let error = Discovery::new(&settings(flags), quick()).expect_err("a folder");
    assert_eq!(exit_of(&error), Exit::Usage, "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains(folder.path().to_str().expect("text")) && text.contains("--resolv-conf"), "{text}");
}

#[test]
fn etcd_waits_until_this_pods_name_leads_to_it() {
    let mut dns = CoreDns::start(zone(0));
    run(async {
        let discovery = asking(&dns, quick());
        let own = own::own_addresses(Some(ip(0)));
        let short = Duration::from_millis(50);
        let why = own::wait(&discovery, Ordinal(0), &own, || Some(short)).await.expect_err("there is no record");
        assert!(why.contains("does not exist"), "{why}");
        dns.change(|zone| zone.pods = [("vc-0".to_owned(), ip(9))].into());
        let old = |a: &_| present(a) == Some(&BTreeSet::from([ip(9)]));
        until("the old record", || discovery.pod(Ordinal(0)), old).await;
        let why = own::wait(&discovery, Ordinal(0), &own, || Some(short)).await.expect_err("another pod's record");
        assert!(why.contains("an earlier pod's record?"), "{why}");
        let wait = own::wait(&discovery, Ordinal(0), &own, || None);
        let appear = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            dns.change(|zone| zone.pods = [("vc-0".to_owned(), ip(0))].into());
        };
        let both = async { tokio::join!(wait, appear).0 };
        tokio::time::timeout(PATIENCE, both).await.expect("in time").expect("it resolves");
    });
}

/// The DNS server is dead, as far as this pod can tell.
#[test]
fn a_pod_that_is_to_be_the_only_one_waits_for_its_name_no_longer() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let replicas = |n| settings(Flags { etcd_replicas: Some(n), ..Flags::default() });
    let server = Some(silent.local_addr().expect("an address"));
    run(async {
        let discovery = discovery(server, "/none".into(), quick());
        let (sender, now) = tokio::sync::watch::channel(replicas(2));
        let mut stop = StopSignals::new().expect("listen for signals");
        // As long as one that is the only one from the start.
        let (_alone, alone) = tokio::sync::watch::channel(replicas(1));
        assert!(own::before_etcd(&alone, &discovery, &mut stop).await);
        let mut waits = Box::pin(own::before_etcd(&now, &discovery, &mut stop));
        let early = tokio::time::timeout(Duration::from_secs(12), &mut waits).await;
        assert!(early.is_err(), "of two, none starts without its name");
        sender.send_replace(replicas(1));
        assert!(tokio::time::timeout(PATIENCE, waits).await.expect("the scale to 1 is noticed while it waits"));
    });
}

/// Follows the service for `minutes` of the default pace's time, each of them shortened to 600 ms; the questions that
/// the server saw in each minute on average.
fn questions_a_minute(mood: Mood, minutes: u32) -> f64 {
    let mut dns = CoreDns::start(zone(5));
    dns.set_mood(mood);
    let before = dns.questions();
    run(async {
        let discovery = asking(&dns, Pace::default().scaled(0.01));
        let (sender, watched) = tokio::sync::watch::channel(Known::Unknown("not asked".to_owned()));
        let rest = discovery.follow(Ordinal(0), sender);
        let _ = tokio::time::timeout(Duration::from_millis(600) * minutes, rest).await;
        match mood {
            Mood::Well => assert_eq!(*watched.borrow(), Known::Present((0..5).map(Ordinal).collect())),
            _ => assert!(matches!(&*watched.borrow(), Known::Unknown(why) if why.contains("SERVFAIL"))),
        }
    });
    (dns.questions() - before) as f64 / f64::from(minutes)
}

#[test]
fn at_rest_a_pod_asks_no_more_than_twelve_times_a_minute() {
    for (mood, least) in [(Mood::Well, 0.5), (Mood::ServFail, 0.2)] {
        let rate = questions_a_minute(mood, 10);
        println!("{mood:?}: {rate:.1} DNS queries a minute at rest");
        assert!((least..=12.0).contains(&rate), "{mood:?}: {rate} queries a minute");
    }
}

#[test]
fn callers_in_a_hurry_do_not_make_a_storm() {
    let dns = CoreDns::start(zone(3));
    let started = Instant::now();
    run(async {
        let discovery = asking(&dns, Pace::default());
        let mut asked = 0;
        while started.elapsed() < Duration::from_secs(2) {
            asked += discovery.pods((0..5).map(Ordinal)).await.len();
            tokio::task::yield_now().await;
        }
        assert!(asked > 200, "the test does hurry: {asked}");
    });
    let pace = Pace::default();
    let allowed = f64::from(pace.burst) + started.elapsed().div_duration_f64(pace.refill) + 1.0;
    assert!(dns.questions() as f64 <= allowed, "{} questions", dns.questions());
    assert!(dns.questions() >= 5, "{} questions", dns.questions());
}

#[test]
fn a_port_that_nobody_listens_on_is_told_at_once() {
    run(async {
        let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let started = Instant::now();
        let answer = discovery(Some(nobody), "/none".into(), quick()).pod(Ordinal(0)).await;
        assert!(is_unknown(&answer, "refused") && started.elapsed() < Duration::from_secs(2), "{answer:?}");
    });
}
