//! What pods share through the Secret, with real files.

use crate::boot::{Desired, Known};
use crate::host::secret::SecretData;
use crate::host::share::{Access, Facts, Local, Sharing, Step, There, decide};
use crate::ids::Ordinal;
use crate::pki::plan::CaName;
use crate::pki::shared::{self, Shared, SharedPki};

use super::*;

/// The Secret between pods; decides and acts as `start` does, until there is nothing more to do.
#[derive(Default)]
struct Secret(Option<SecretData>);

impl Secret {
    fn share(&mut self, dir: &Dir, seed: bool) -> Step<Shared> {
        let pki = dir.shared();
        for _ in 0..5 {
            let step = decide(&Facts {
                items: pki.facts(self.0.as_ref()).unwrap(),
                secret: if self.0.is_some() { Access::Present } else { Access::Absent },
                ordinal: Ordinal(u32::from(!seed)),
                seed: Known::Present(Ordinal(0)),
                desired: Desired::Host(3),
                formed: Known::Absent,
                data: false,
            });
            match &step {
                Step::Publish { held, made } => {
                    let new = pki.content(held, made, self.0.as_ref()).unwrap();
                    self.0.get_or_insert_default().0.extend(new.0);
                }
                Step::Adopt(items) => pki.adopt(items, self.0.as_ref().unwrap(), &RealDisk).unwrap(),
                _ => return step,
            }
        }
        panic!("it does not end");
    }
}

impl Dir {
    fn shared(&self) -> SharedPki {
        SharedPki::of(&self.input, self.temp.path().to_owned(), start())
    }
}

const GO: Step<Shared> = Step::Go { shared: true };

#[test]
fn pods_of_one_secret_trust_each_other_and_keys_stay_private() {
    let (a, b) = (Dir::new(Distro::K8s), Dir::new(Distro::K8s));
    let mut secret = Secret::default();
    assert!(matches!(secret.share(&b, false), Step::Wait(_)), "only the seed makes one");
    for (dir, seed) in [(&a, true), (&b, false)] {
        assert_eq!(secret.share(dir, seed), GO);
        assert_eq!(dir.ensure(), []);
        for (path, _) in dir.contents() {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
    }
    let keys: Vec<_> = secret.0.as_ref().unwrap().0.keys().map(String::as_str).collect();
    let names = [
        "ca.crt",
        "ca.key",
        "etcd-ca.crt",
        "etcd-ca.key",
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "sa.key",
        "sa.pub",
    ];
    assert_eq!(keys, [&names[..], &["syncer-issued.json"]].concat(), "vCluster's names");
    for file in ["ca.crt", "ca.key", "etcd/ca.key", "etcd/ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"] {
        assert_eq!(fs::read(a.path(file)).unwrap(), fs::read(b.path(file)).unwrap(), "{file}");
    }
    assert_ne!(fs::read(a.path("etcd/peer.key")).unwrap(), fs::read(b.path("etcd/peer.key")).unwrap());
    // A leaf of one is good by the other's CA.
    for file in ["etcd/peer.crt", "etcd/peer.key"] {
        b.put(file, fs::read(a.path(file)).unwrap());
    }
    assert_eq!(b.ensure(), []);
    for file in ["etcd/peer.crt", "etcd/peer.key"] {
        fs::remove_file(b.path(file)).unwrap();
    }
    assert_eq!(b.ensure(), []);
    // What syncer has made it renews, in each pod alike.
    let (pki, refusals) = b.run(start() + days(3650), Mode::Ensure);
    assert_eq!((refusals.len(), pki.renewed().contains(&"etcd/ca.crt")), (0, true));
    assert_eq!(secret.share(&b, false), GO, "the same key");
}

/// k0s uses the CAs and the key pair that it finds, and makes what it does not.
#[test]
fn k0s_in_each_pod_finds_the_same_and_what_it_has_made_is_shared() {
    let files = ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub", "etcd/ca.key"];
    let same = |a: &Dir, b: &Dir| {
        for file in files {
            assert_eq!(fs::read(a.path(file)).unwrap(), fs::read(b.path(file)).unwrap(), "{file}");
        }
    };
    let (a, b) = (Dir::new(Distro::K0s), Dir::new(Distro::K0s));
    let mut secret = Secret::default();
    for (dir, seed) in [(&a, true), (&b, false)] {
        assert_eq!((secret.share(dir, seed), dir.ensure()), (GO, vec![]));
        assert!(!dir.path("apiserver.crt").exists(), "that is for k0s to issue");
    }
    same(&a, &b);

    // A volume on which k0s has run as the only one.
    let (theirs, alone, added) = (Dir::mounted(Distro::K8s), Dir::complete(Distro::K0s), Dir::new(Distro::K0s));
    for file in &files[..6] {
        alone.put(file, fs::read(theirs.path(file)).unwrap());
    }
    let mut secret = Secret::default();
    assert_eq!((secret.share(&alone, true), secret.share(&added, false)), (GO, GO));
    same(&alone, &added);
    // One that has made its own beside the others is refused, and changed in nothing.
    let before = a.contents();
    let Step::Refuse(refusal) = secret.share(&a, false) else { panic!("two CAs") };
    assert!(format!("{:#}", refusal.error("vc-certs", &a.shared())).contains("CA of etcd"));
    assert_eq!(a.contents(), before);

    // Mounted elsewhere, it is not where k0s looks.
    let mut elsewhere = Dir::new(Distro::K0s);
    elsewhere.input.lasting_dir = Some(elsewhere.temp.path().join("data/pki"));
    assert_eq!(elsewhere.shared().items, [Shared::Ca(CaName::Etcd)]);
}

#[test]
fn a_secret_of_vclusters_is_adopted_added_to_and_never_renewed() {
    let theirs = Dir::mounted(Distro::K8s);
    let mut data = SecretData::default();
    for file in ["etcd/ca.crt", "etcd/ca.key", "ca.crt", "ca.key", "sa.key", "sa.pub", "apiserver.crt", "admin.conf"] {
        data.0.insert(layout::secret_key(file), fs::read(theirs.path(file)).unwrap());
    }
    let mut secret = Secret(Some(data.clone()));
    let (a, b) = (Dir::new(Distro::K8s), Dir::new(Distro::K8s));
    for dir in [&a, &b] {
        assert_eq!(secret.share(dir, true), GO);
        assert_eq!(dir.ensure(), []);
        assert_eq!(fs::read(dir.path("sa.key")).unwrap(), fs::read(theirs.path("sa.key")).unwrap());
    }
    let now = secret.0.clone().unwrap();
    assert!(data.0.iter().all(|(key, bytes)| now.0[key] == *bytes), "what was there stays");
    assert!(now.0.contains_key("front-proxy-ca.key"), "what it lacked was added");
    let (pki, _) = a.run(start() + days(3500), Mode::Ensure);
    assert!(!pki.renewed().contains(&"etcd/ca.crt") && !pki.renewed().contains(&"ca.crt"), "{:?}", pki.renewed());
}

#[test]
fn what_a_volume_has_is_put_there_and_another_is_refused() {
    let (a, b) = (Dir::complete(Distro::None), Dir::complete(Distro::None));
    let mut secret = Secret::default();
    assert_eq!(secret.share(&a, false), GO, "it need not be the seed");
    let before = b.contents();
    let Step::Refuse(refusal) = secret.share(&b, true) else { panic!("two CAs") };
    let text = format!("{:#}", refusal.error("vc-certs", &b.shared()));
    for piece in ["vc-certs", "etcd-ca.crt", b.path("etcd/ca.crt").to_str().unwrap()] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    assert!(!text.contains("BEGIN"), "{text}");
    assert_eq!(b.contents(), before);
}

#[test]
fn an_adoption_that_was_killed_goes_on() {
    let a = Dir::complete(Distro::None);
    let mut secret = Secret::default();
    assert_eq!(secret.share(&a, true), GO);
    let b = Dir::new(Distro::None);
    fs::create_dir_all(b.path("etcd")).unwrap();
    b.put("etcd/ca.key", fs::read(a.path("etcd/ca.key")).unwrap());
    assert_eq!(secret.share(&b, false), GO);
    assert_eq!(fs::read(b.path("etcd/ca.crt")).unwrap(), fs::read(a.path("etcd/ca.crt")).unwrap());
}

#[test]
fn a_mounted_directory_wins_over_the_secret() {
    let mut dir = Dir::mounted(Distro::K8s);
    dir.input.lasting_dir = Some(dir.temp.path().join("data/pki"));
    let local = |dir: &Dir| dir.shared().facts(None).unwrap().into_iter().map(|fact| fact.local).collect::<Vec<_>>();
    assert_eq!(local(&dir), [Local::Given, Local::Given, Local::Given, Local::Given]);
    let mut secret = Secret::default();
    assert_eq!(secret.share(&dir, true), Step::Go { shared: false });
    assert!(secret.0.is_none());

    // An emptyDir into which we have placed what we made, or adopted, is none.
    for theirs in [false, true] {
        let mut dir = Dir::new(Distro::K8s);
        dir.input.lasting_dir = Some(dir.temp.path().join("data/pki"));
        let mut secret = Secret::default();
        assert_eq!(secret.share(&dir, true), GO);
        if theirs {
            secret.0.as_mut().unwrap().0.remove("syncer-issued.json");
            fs::remove_dir_all(dir.temp.path().join("data")).unwrap();
            fs::remove_dir_all(&dir.input.pki_dir).unwrap();
            assert_eq!(secret.share(&dir, true), GO);
        }
        assert_eq!(dir.ensure(), []);
        assert!(local(&dir).iter().all(|local| matches!(local, Local::Held { whole: true, .. })), "{theirs}");
        assert_eq!(secret.share(&dir, true), GO);
        fs::remove_dir_all(&dir.input.pki_dir).unwrap();
        assert_eq!((dir.ensure(), secret.share(&dir, true)), (vec![], GO), "a restart empties it");
    }
}

#[test]
fn what_a_secret_has_is_told_apart() {
    let dir = Dir::complete(Distro::K8s);
    let get = |file: &str| fs::read(dir.path(file)).unwrap();
    let there = |keys: &[(&str, Vec<u8>)]| {
        let data = SecretData(keys.iter().map(|(key, bytes)| ((*key).to_owned(), bytes.clone())).collect());
        let facts = Dir::new(Distro::K8s).shared().facts(Some(&data)).unwrap();
        let of = |item: Shared| facts.iter().find(|fact| fact.item == item).unwrap().there.clone();
        (of(Shared::Ca(CaName::Etcd)), of(Shared::ServiceAccount))
    };
    let (cert, key) = (("etcd-ca.crt", get("etcd/ca.crt")), ("etcd-ca.key", get("etcd/ca.key")));
    assert!(matches!(there(&[cert.clone(), key.clone()]).0, There::Whole(_)));
    assert!(matches!(there(std::slice::from_ref(&cert)).0, There::Part(_)));
    assert!(matches!(there(std::slice::from_ref(&key)).0, There::Part(_)));
    assert_eq!(there(&[("etcd-ca.crt", Vec::new())]).0, There::Absent);
    assert!(matches!(there(&[cert, ("etcd-ca.key", get("ca.key"))]).0, There::Bad(_)), "of another CA");
    assert!(matches!(there(&[("etcd-ca.crt", b"x".to_vec()), key]).0, There::Bad(_)));
    assert!(matches!(there(&[("sa.key", get("sa.key"))]).1, There::Whole(_)), "sa.pub follows from it");
    assert!(matches!(there(&[("sa.pub", get("sa.pub"))]).1, There::Part(_)));
    assert!(matches!(there(&[("sa.pub", get("sa.pub")), ("sa.key", get("ca.key"))]).1, There::Bad(_)));
}

#[test]
fn k0s_cas_are_told_apart_by_their_keys() {
    let (a, b) = (Dir::new(Distro::K8s), Dir::new(Distro::K8s));
    assert_eq!((a.ensure(), b.ensure()), (vec![], vec![]));
    let read = |dir: &Dir, file: &str| fs::read(dir.path(file)).unwrap();
    let of = |dir: &Dir| shared::of_k0s(&dir.input.pki_dir);
    let first = of(&a);
    assert!(first.is_some() && of(&b).is_some() && of(&b) != first, "{first:?}");
    // A certificate that was renewed, or a bundle, is of the same CA.
    a.put("ca.crt", [read(&a, "ca.crt"), read(&b, "ca.crt")].concat());
    assert_eq!(of(&a), first);
    for file in ["ca.key", "front-proxy-ca.key", "sa.key"] {
        let own = read(&a, file);
        a.put(file, read(&b, file));
        assert_ne!(of(&a), first, "{file}");
        fs::remove_file(a.path(file)).unwrap();
        assert_eq!(of(&a), None, "{file}");
        a.put(file, own);
    }
    assert_eq!(of(&a), first);
}
