//! Each refusal once, and what is accepted beside it.

use super::super::issue::{ca_certificate, leaf_certificate};
use super::super::key::PrivateKey;
use super::super::plan::{CaName, LeafPlan, San, Subject, Usage};
use super::*;
use crate::exit::{Exit, exit_of};

fn only(dir: &Dir) -> (String, Problem, String) {
    let before = dir.contents();
    let refusals = dir.ensure();
    assert_eq!(dir.contents(), before, "a refusal must write nothing");
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let file = refusals[0].path.strip_prefix(&dir.input.pki_dir).unwrap().to_str().unwrap().to_owned();
    (file, refusals[0].problem.clone(), refusals[0].remedy())
}

/// A CA and a certificate for the etcd server in a directory that has no other files.
fn server(dir: &Dir, at: OffsetDateTime, usage: Usage, sans: &[&str]) {
    let (ca_key, key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let ca_pem = ca_certificate(CaName::Etcd, &ca_key, at).unwrap();
    let ca = &Cert::all_from_pem(ca_pem.as_bytes()).unwrap()[0];
    let plan = LeafPlan {
        issuer: CaName::Etcd,
        subject: Subject { common_name: "theirs".to_owned(), organization: None },
        usage,
        sans: sans.iter().map(|name| San::Dns((*name).to_owned())).collect(),
    };
    fs::create_dir_all(dir.path("etcd")).unwrap();
    dir.put("etcd/ca.crt", &ca_pem);
    dir.put("etcd/ca.key", ca_key.pem());
    for name in ["server", "peer"] {
        dir.put(&format!("etcd/{name}.crt"), leaf_certificate(&plan, &key, ca, &ca_key, at).unwrap());
        dir.put(&format!("etcd/{name}.key"), key.pem());
    }
    for file in ["etcd/server.key", "etcd/peer.key", "etcd/ca.key"] {
        fs::set_permissions(dir.path(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

const BOTH: Usage = Usage { server: true, client: true };

#[test]
fn a_key_of_another_certificate() {
    let dir = Dir::complete(Distro::None);
    dir.put("etcd/server.key", PrivateKey::generate().unwrap().pem());
    let (file, problem, remedy) = only(&dir);
    assert_eq!((file.as_str(), problem), ("etcd/server.crt", Problem::KeyMismatch(dir.path("etcd/server.key"))));
    assert!(remedy.contains("restore the two that belong together"), "{remedy}");
}

#[test]
fn a_certificate_of_another_ca() {
    let (dir, other) = (Dir::complete(Distro::None), Dir::complete(Distro::None));
    for file in ["etcd/server.crt", "etcd/server.key"] {
        dir.put(file, fs::read(other.path(file)).unwrap());
    }
    let (file, problem, _) = only(&dir);
    assert_eq!((file.as_str(), problem), ("etcd/server.crt", Problem::NotSignedBy(dir.path("etcd/ca.crt"))));
}

#[test]
fn a_ca_that_is_a_leaf() {
    let dir = Dir::complete(Distro::None);
    for end in ["crt", "key"] {
        dir.put(&format!("etcd/ca.{end}"), fs::read(dir.path(&format!("etcd/server.{end}"))).unwrap());
    }
    assert_eq!(only(&dir).1, Problem::NotACa);
}

#[test]
fn expired_and_not_yet_valid_certificates_of_others() {
    let dir = Dir::new(Distro::None);
    server(&dir, start() - days(400), BOTH, &["localhost"]);
    let refusals = dir.ensure();
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    assert_eq!(refusals[0].problem, Problem::Expired(start() - days(35)));
    assert!(refusals[0].remedy().contains("clock"), "{}", refusals[0].remedy());

    let dir = Dir::new(Distro::None);
    server(&dir, start() + days(1), BOTH, &["localhost"]);
    assert_eq!(only(&dir).1, Problem::NotYetValid(start() + days(1) - Duration::hours(1)));
    let soon = start() + days(1) - Duration::hours(1) - Duration::minutes(4);
    assert_eq!(dir.run(soon, Mode::Ensure).1, [], "a clock that is a little behind");
}

#[test]
fn the_wrong_usage() {
    let dir = Dir::new(Distro::None);
    server(&dir, start(), Usage { server: true, client: false }, &["localhost"]);
    let refusals = dir.ensure();
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    let expected = Problem::WrongUsage { has: Usage { server: true, client: false }, needs: BOTH };
    assert_eq!(refusals[0].problem, expected);
}

#[test]
fn a_missing_certificate_whose_ca_has_no_key() {
    let dir = Dir::complete(Distro::None);
    for file in ["etcd/ca.key", "etcd/server.crt", "etcd/server.key"] {
        fs::remove_file(dir.path(file)).unwrap();
    }
    let (file, problem, remedy) = only(&dir);
    assert_eq!((file.as_str(), problem), ("etcd/server.crt", Problem::CannotIssue(dir.path("etcd/ca.key"))));
    assert!(remedy.contains("etcd/ca.key to have it issued"), "{remedy}");
}

#[test]
fn certificates_whose_ca_is_gone() {
    let dir = Dir::complete(Distro::None);
    for file in ["etcd/ca.key", "etcd/ca.crt"] {
        fs::remove_file(dir.path(file)).unwrap();
    }
    let (file, problem, _) = only(&dir);
    assert_eq!((file.as_str(), problem), ("etcd/ca.crt", Problem::CaMissing(dir.path("etcd/server.crt"))));
    let (pki, _) = dir.run(start(), Mode::Ensure);
    assert!(pki.reports[1..].iter().all(|report| report.state == State::NotChecked), "{:?}", pki.reports);
}

#[test]
fn a_service_account_key_that_is_gone_or_another() {
    let dir = Dir::complete(Distro::K8s);
    dir.put("sa.key", PrivateKey::generate().unwrap().pem());
    assert_eq!(only(&dir).1, Problem::KeyMismatch(dir.path("sa.key")));
    fs::remove_file(dir.path("sa.key")).unwrap();
    let (_, problem, remedy) = only(&dir);
    assert_eq!(problem, Problem::KeyMissing(dir.path("sa.key")));
    assert!(!remedy.contains("issued anew"), "every token would become invalid: {remedy}");
}

#[test]
fn exchanged_kubeconfigs() {
    let dir = Dir::complete(Distro::K8s);
    dir.put("admin.conf", fs::read(dir.path("scheduler.conf")).unwrap());
    let expected = Problem::WrongUser { has: "system:kube-scheduler".to_owned(), needs: "kubernetes-admin".to_owned() };
    assert_eq!(only(&dir).1, expected);
}

#[test]
fn things_that_are_not_files() {
    for make in [
        (|path: &Path| fs::create_dir(path).unwrap()) as fn(&Path),
        |path| std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap(),
        |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        |path| fs::write(path, vec![b'x'; (1 << 20) + 1]).unwrap(),
    ] {
        for file in ["etcd/server.crt", "etcd/server.key"] {
            let dir = Dir::complete(Distro::None);
            fs::remove_file(dir.path(file)).unwrap();
            make(&dir.path(file));
            let refusals = dir.ensure();
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            assert!(matches!(refusals[0].problem, Problem::Unreadable(_)), "{refusals:?}");
            assert_eq!(refusals[0].path, dir.path(file));
        }
    }
}

#[test]
fn names_that_a_mounted_peer_certificate_lacks_are_a_warning() {
    let exact = ["my-0.my-headless.team", "my-1.my-headless.team", "my-2.my-headless.team"];
    for (sans, skip, warned) in
        [(&exact[..], false, false), (&["*.my-headless.team"], true, false), (&["my-0.my-headless"], true, true)]
    {
        let dir = Dir::new(Distro::None);
        server(&dir, start(), BOTH, sans);
        let (pki, refusals) = dir.run(start(), Mode::Ensure);
        assert_eq!(refusals, []);
        assert_eq!((pki.peer_skip_san, !pki.warnings.is_empty()), (skip, warned), "{sans:?}: {:?}", pki.warnings);
    }
}

#[test]
fn mounted_keys_that_others_can_read_are_a_warning() {
    let dir = Dir::mounted(Distro::None);
    fs::set_permissions(dir.path("etcd/server.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (pki, refusals) = dir.run(start(), Mode::Ensure);
    assert_eq!(refusals, []);
    assert!(pki.warnings.iter().any(|w| w.contains("etcd/server.key") && w.contains("0400")), "{:?}", pki.warnings);
}

#[test]
fn certificates_through_an_intermediate_and_a_bundle_of_cas() {
    let dir = Dir::mounted(Distro::None);
    let (root_key, middle_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let root_pem = ca_certificate(CaName::Kubernetes, &root_key, start()).unwrap();
    let root = &Cert::all_from_pem(root_pem.as_bytes()).unwrap()[0];
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = start() - days(1);
    params.not_after = start() + days(100);
    let der = rustls::pki_types::CertificateDer::from(root.der());
    let issuer = rcgen::Issuer::from_ca_cert_der(&der, &root_key).unwrap();
    let middle_pem = params.signed_by(&middle_key, &issuer).unwrap().pem();
    let middle = &Cert::all_from_pem(middle_pem.as_bytes()).unwrap()[0];
    let plan = LeafPlan {
        issuer: CaName::Etcd,
        subject: Subject { common_name: "x".to_owned(), organization: None },
        usage: BOTH,
        sans: Vec::new(),
    };
    let key = PrivateKey::generate().unwrap();
    let leaf = leaf_certificate(&plan, &key, middle, &middle_key, start()).unwrap();
    let old_ca = fs::read_to_string(dir.path("etcd/ca.crt")).unwrap();
    dir.put("etcd/ca.crt", format!("{old_ca}{root_pem}"));
    dir.put("etcd/server.key", key.pem());
    dir.put("etcd/server.crt", &leaf);
    assert_eq!(only(&dir).1, Problem::NotSignedBy(dir.path("etcd/ca.crt")), "without the intermediate");
    dir.put("etcd/server.crt", format!("{leaf}{middle_pem}"));
    assert_eq!(dir.ensure(), []);
}

#[test]
fn the_error_names_file_and_remedy_with_its_own_exit_code() {
    let dir = Dir::complete(Distro::None);
    dir.put("etcd/server.crt", "");
    let error = crate::pki::problem::refused(&dir.ensure());
    assert_eq!(exit_of(&error), Exit::RefusedPki);
    let text = format!("{error:#}");
    assert!(text.contains("etcd/server.crt is not a certificate") && text.contains("remove"), "{text}");
}

#[test]
fn a_name_that_cannot_stand_in_a_certificate_is_bad_usage() {
    let mut dir = Dir::new(Distro::K8s);
    dir.input.tls_sans = vec!["not a name".to_owned()];
    let error = ensure_input(&dir.input, &RealDisk, start(), Mode::Ensure).unwrap_err();
    assert_eq!(exit_of(&error), Exit::Usage);
}
