//! Only what is ours is renewed: same key, the certificate alone replaced.

use super::*;
use crate::supervise::spec::Role;

#[test]
fn ours_are_renewed_ninety_days_before_the_end_with_the_same_keys() {
    let dir = Dir::complete(Distro::K8s);
    let before = dir.contents();
    let (pki, _) = dir.run(start() + days(274), Mode::Ensure);
    assert_eq!(pki.renewed(), [] as [&str; 0]);
    assert_eq!(dir.contents(), before);
    assert_eq!(pki.next_check(start() + days(274)), std::time::Duration::from_secs(12 * 3600));
    assert_eq!(pki.next_check(start() + days(275) - Duration::hours(1)), std::time::Duration::from_secs(3600));

    let now = start() + days(275);
    assert!(dir.run(now, Mode::Check).0.reports.iter().any(|report| report.state == State::Due));
    let (pki, refusals) = dir.run(now, Mode::Ensure);
    assert_eq!(refusals, []);
    assert_eq!(pki.renewed().len(), 10, "every leaf, no CA: {:?}", pki.renewed());
    assert_eq!(pki.restart(), [Role::ControllerManager, Role::Scheduler]);
    let after = dir.contents();
    for (path, bytes) in &before {
        let file = path.strip_prefix(&dir.input.pki_dir).unwrap().to_str().unwrap();
        let replaced = pki.renewed().contains(&file) || file == layout::RECORD;
        assert_eq!(after[path] != *bytes, replaced, "{file}");
    }
    let (pki, _) = dir.run(now, Mode::Ensure);
    assert_eq!(pki.renewed(), [] as [&str; 0]);
    assert_eq!(pki.reports[1].cert.as_ref().unwrap().not_after, now + days(365));
}

#[test]
fn ours_are_renewed_even_after_their_end_and_a_mounted_one_never() {
    let now = start() + days(500);
    let dir = Dir::complete(Distro::K3s);
    let (pki, refusals) = dir.run(now, Mode::Ensure);
    assert_eq!((refusals.len(), pki.renewed().len()), (0, 4));

    let dir = Dir::mounted(Distro::K3s);
    let before = dir.contents();
    let (_, refusals) = dir.run(start() + days(300), Mode::Ensure);
    assert_eq!(refusals, []);
    assert_eq!(dir.contents(), before, "due, but not ours");
    let (_, refusals) = dir.run(now, Mode::Ensure);
    assert_eq!(refusals.len(), 4, "{refusals:?}");
    assert_eq!(dir.contents(), before);
}

#[test]
fn a_mounted_certificate_that_ends_soon_is_told_of() {
    let dir = Dir::mounted(Distro::None);
    let (pki, _) = dir.run(start() + days(340), Mode::Ensure);
    assert!(pki.warnings.iter().any(|w| w.contains("etcd/server.crt") && w.contains("not issued here")), "{pki:?}");
    let ours = Dir::complete(Distro::None);
    fs::remove_file(ours.path("etcd/ca.key")).unwrap();
    let (pki, refusals) = ours.run(start() + days(340), Mode::Ensure);
    assert_eq!((refusals.len(), pki.renewed().len()), (0, 0));
    assert!(pki.warnings.iter().any(|w| w.contains("its CA's key is missing")), "{pki:?}");
}

#[test]
fn a_ca_is_renewed_with_its_key_and_its_leaves_stay_good() {
    let dir = Dir::complete(Distro::K8s);
    let leaf_year = start() + days(3650 - 91);
    dir.run(leaf_year, Mode::Ensure);
    let server = fs::read(dir.path("etcd/server.crt")).unwrap();
    let now = start() + days(3650 - 90);
    let (pki, refusals) = dir.run(now, Mode::Ensure);
    assert_eq!(refusals, []);
    for file in ["etcd/ca.crt", "ca.crt", "front-proxy-ca.crt", "admin.conf"] {
        assert!(pki.renewed().contains(&file), "{file} in {:?}", pki.renewed());
    }
    assert_eq!(pki.restart(), [Role::Etcd, Role::ApiServer, Role::ControllerManager, Role::Scheduler]);
    // A leaf that ended with the old CA now gains, so it is renewed too: signed by the same key either way.
    assert_ne!(fs::read(dir.path("etcd/server.crt")).unwrap(), server);
    assert_eq!(dir.run(now, Mode::Check).1, []);
    assert_eq!(dir.run(now, Mode::Ensure).0.renewed(), [] as [&str; 0]);
}

#[test]
fn new_names_replace_our_certificates_only() {
    let mut dir = Dir::complete(Distro::K8s);
    dir.input.tls_sans.push("new.example.org".to_owned());
    dir.input.pod_ip = Some("10.1.2.4".parse().unwrap());
    dir.input.desired = 7;
    let (pki, refusals) = dir.run(start(), Mode::Ensure);
    assert_eq!(refusals, []);
    assert_eq!(pki.renewed(), ["etcd/server.crt", "etcd/peer.crt", "apiserver.crt"]);
    dir.input.apiserver_port = 7443;
    let (pki, _) = dir.run(start(), Mode::Ensure);
    assert_eq!(pki.renewed(), ["admin.conf", "controller-manager.conf", "scheduler.conf"]);
    assert!(fs::read_to_string(dir.path("admin.conf")).unwrap().contains("https://127.0.0.1:7443"));

    fs::remove_file(dir.path(layout::RECORD)).unwrap();
    let before = dir.contents();
    dir.input.tls_sans.push("newer.example.org".to_owned());
    dir.input.apiserver_port = 8443;
    assert_eq!(dir.run(start(), Mode::Ensure).1, []);
    assert_eq!(dir.contents(), before);
}

#[test]
fn a_damaged_record_means_that_nothing_is_ours() {
    let dir = Dir::complete(Distro::None);
    dir.put(layout::RECORD, "{");
    let (pki, refusals) = dir.run(start() + days(300), Mode::Ensure);
    assert_eq!((refusals.len(), pki.renewed().len()), (0, 0));
    assert!(pki.warnings.iter().any(|w| w.contains(layout::RECORD)), "{pki:?}");
    assert_eq!(fs::read(dir.path(layout::RECORD)).unwrap(), b"{");
}
