use super::*;

fn print(n: u8) -> Print {
    Print::of(&[n])
}

fn held(n: u8) -> Local {
    Local::Held { print: print(n), whole: true }
}

fn whole(n: u8) -> There {
    There::Whole(print(n))
}

/// Three pods wanted, this one the seed, no cluster formed, the Secret read.
fn facts(items: &[(Local, There)]) -> Facts<usize> {
    let fact =
        |(item, (local, there)): (usize, &(Local, There))| Fact { item, local: local.clone(), there: there.clone() };
    Facts {
        items: items.iter().enumerate().map(fact).collect(),
        secret: Access::Present,
        ordinal: Ordinal(0),
        seed: Known::Present(Ordinal(0)),
        desired: Desired::Host(3),
        formed: Known::Absent,
        data: false,
    }
}

fn absent(secret: Access, items: &[Local]) -> Facts<usize> {
    let items: Vec<_> = items.iter().map(|local| (local.clone(), There::Absent)).collect();
    Facts { secret, ..facts(&items) }
}

fn publish(held: &[usize], made: &[usize]) -> Step<usize> {
    Step::Publish { held: held.to_vec(), made: made.to_vec() }
}

fn away() -> Access {
    Access::Unknown("no answer".to_owned())
}

fn denied() -> Access {
    Access::Denied("status 403".to_owned())
}

#[test]
fn the_first_puts_what_it_has_and_makes_the_rest() {
    assert_eq!(decide(&absent(Access::Absent, &[Local::Absent, Local::Absent])), publish(&[], &[0, 1]));
    assert_eq!(decide(&absent(Access::Absent, &[held(1), Local::Absent])), publish(&[0], &[1]));
    // A Secret of vCluster's with other keys is added to.
    assert_eq!(decide(&absent(Access::Present, &[held(1), held(2)])), publish(&[0, 1], &[]));
    // A CA without its key is no use to others.
    let cert_only = Local::Held { print: print(1), whole: false };
    let f = absent(Access::Absent, &[held(2), cert_only]);
    assert_eq!(unshareable(&f.items), Some(1));
    assert_eq!(unshareable(&absent(Access::Absent, &[held(2), Local::Given]).items), None);
    assert_eq!(decide(&Facts { items: f.items[1..].to_vec(), ..f }), Step::Go { shared: false });
}

#[test]
fn what_the_secret_has_is_adopted_and_what_is_here_is_kept() {
    let all = decide(&facts(&[(Local::Absent, whole(1)), (held(2), whole(2)), (Local::Given, whole(3))]));
    assert_eq!(all, Step::Adopt(vec![0]));
    let part = Local::Held { print: print(1), whole: false };
    assert_eq!(decide(&facts(&[(part, whole(1))])), Step::Adopt(vec![0]), "killed while adopting");
    assert_eq!(decide(&facts(&[(held(1), whole(1)), (held(2), whole(2))])), Step::Go { shared: true });
    assert_eq!(decide(&facts(&[(held(1), There::Part(print(1)))])), Step::Go { shared: true });
}

#[test]
fn what_is_given_wins_and_is_put_nowhere() {
    assert_eq!(decide(&facts(&[(Local::Given, whole(1)), (Local::Given, There::Absent)])), Step::Go { shared: false });
    assert_eq!(decide(&absent(away(), &[Local::Given])), Step::Go { shared: false });
    assert_eq!(decide(&absent(Access::Absent, &[Local::Given, Local::Absent])), publish(&[], &[1]));
}

#[test]
fn another_than_the_secrets_is_refused_with_both_named() {
    for there in [whole(2), There::Part(print(2))] {
        let Step::Refuse(refusal) = decide(&facts(&[(held(1), there)])) else { panic!("not refused") };
        let error = refusal.error("vc-certs", &Names);
        let text = format!("{error:#}");
        assert_eq!(crate::exit::exit_of(&error), Exit::RefusedPki);
        for piece in ["vc-certs", "here-0", "there-0", &print(1).0, &print(2).0, "delete the Secret", "move here-0"] {
            assert!(text.contains(piece), "{piece}: {text}");
        }
    }
}

#[test]
fn what_cannot_be_adopted_is_refused_only_where_it_is_needed() {
    let bad = || There::Bad("it is no certificate".to_owned());
    assert_eq!(decide(&facts(&[(Local::Absent, There::Part(print(1)))])), Step::Refuse(Refusal::Part(0)));
    assert!(matches!(decide(&facts(&[(Local::Absent, bad())])), Step::Refuse(Refusal::Bad(0, _))));
    assert_eq!(decide(&facts(&[(held(1), bad())])), Step::Go { shared: false });
    assert!(Refusal::Part(0).error("s", &Names).to_string().contains("there-0"));
    assert!(Refusal::Bad(0, "x".to_owned()).error("s", &Names).to_string().contains("there-0"));
}

#[test]
fn unknown_is_not_absent() {
    // Whoever has what is needed starts; nobody makes anything.
    for secret in [away(), denied()] {
        assert_eq!(decide(&absent(secret.clone(), &[held(1), Local::Given])), Step::Go { shared: false });
        for n in [3, 2] {
            let f = Facts { desired: Desired::Host(n), ..absent(secret.clone(), &[held(1), Local::Absent]) };
            let Step::Wait(wait) = decide(&f) else { panic!("{:?}", decide(&f)) };
            assert!(wait.remedy(&Names).contains("or mount"), "{wait:?}");
        }
    }
    let one = |secret| Facts { desired: Desired::Host(1), ..absent(secret, &[Local::Absent]) };
    assert!(matches!(decide(&one(away())), Step::Wait(Wait::Away(_))), "the Secret may have it");
    assert!(matches!(decide(&one(denied())), Step::Alone(_)), "nobody else needs it");
    let second = Facts { ordinal: Ordinal(1), ..one(denied()) };
    assert!(matches!(decide(&second), Step::Wait(Wait::Denied(_))), "a pod that is not wanted makes nothing");
    let unknown = Facts { desired: Desired::Unknown("x".to_owned()), ..one(denied()) };
    assert!(matches!(decide(&unknown), Step::Wait(Wait::Denied(_))));
}

#[test]
fn only_the_seed_makes_anything() {
    let f = |seed: Known<Ordinal>| Facts { seed, ..absent(Access::Absent, &[Local::Absent, Local::Absent]) };
    assert_eq!(decide(&f(Known::Present(Ordinal(2)))), Step::Wait(Wait::ForSeed(0, Ordinal(2))));
    assert!(matches!(decide(&f(Known::Absent)), Step::Wait(Wait::Away(_))));
    assert!(matches!(decide(&f(Known::default())), Step::Wait(Wait::Away(_))));
    // What it has it puts there all the same.
    let f = Facts { seed: Known::Present(Ordinal(2)), ..absent(Access::Absent, &[held(1), Local::Absent]) };
    assert_eq!(decide(&f), publish(&[0], &[]));
}

#[test]
fn where_a_cluster_has_been_formed_another_pod_has_it() {
    let cluster = ClusterId(0xabc);
    let formed = |f: Facts<usize>| Facts { formed: Known::Present(cluster), ..f };
    let empty = || absent(Access::Absent, &[Local::Absent]);
    assert_eq!(decide(&formed(empty())), Step::Wait(Wait::Formed(0, cluster)));
    let other = Facts { ordinal: Ordinal(1), ..formed(empty()) };
    assert_eq!(decide(&other), Step::Wait(Wait::Formed(0, cluster)), "the seed makes none either");
    assert!(Wait::Formed(0, cluster).remedy(&Names).contains("here-0"));
    assert!(matches!(decide(&Facts { formed: Known::default(), ..empty() }), Step::Wait(Wait::Away(_))));
    // The only pod, with the only data: nobody else could have it.
    let alone = Facts { desired: Desired::Host(1), data: true, ..formed(empty()) };
    assert_eq!(decide(&alone), publish(&[], &[0]));
    assert!(matches!(decide(&Facts { data: false, ..alone.clone() }), Step::Wait(_)));
    assert!(matches!(decide(&Facts { desired: Desired::Host(3), ..alone }), Step::Wait(_)));
    // The members' CA is shared: another distro's keys were never made.
    let more = formed(facts(&[(held(1), whole(1)), (Local::Absent, There::Absent)]));
    assert_eq!(decide(&more), publish(&[], &[1]));
}

/// While a pod boots and runs.
#[test]
fn who_has_another_than_the_secret_had_makes_none_anew() {
    let publishes = |kept: &Kept| kept.may_publish(true, &Known::default());
    let mut odd = Kept::new(false);
    assert!(publishes(&odd), "the Secret could not be used when it was started");
    odd.finds(Found::Unknown);
    assert!(publishes(&odd) && !odd.is_sure());
    odd.finds(Found::Another);
    odd.finds(Found::Unknown);
    assert!(!publishes(&odd), "the Secret was deleted, and the others have what was in it");
    // Overwritten with another, and deleted, as the remedy has it: theirs comes back.
    let mut others = Kept::new(true);
    others.finds(Found::Another);
    assert!(publishes(&others) && !others.is_shared());
    others.finds(Found::Unknown);
    assert!(publishes(&others) && !others.is_shared(), "a look that fails tells nothing");
    others.finds(Found::Shared(true));
    assert!(others.is_shared() && others.is_sure());
    others.finds(Found::Unknown);
    assert!(others.is_shared() && !others.is_sure());
    others.finds(Found::Shared(false));
    assert!(!others.is_shared());
}

#[test]
fn a_volume_without_data_gives_nothing_to_a_cluster_that_was_formed() {
    let kept = Kept::new(false);
    assert!(kept.may_publish(false, &Known::Absent));
    assert!(!kept.may_publish(false, &Known::Present(ClusterId(1))));
    assert!(!kept.may_publish(false, &Known::default()), "unknown is not absent");
    assert!(kept.may_publish(true, &Known::default()));
}

struct Names;

impl Naming<usize> for Names {
    fn here(&self, item: usize) -> String {
        format!("here-{item}")
    }
    fn there(&self, item: usize) -> String {
        format!("there-{item}")
    }
    fn given(&self) -> &'static str {
        "mount it"
    }
}

/// Several pods in any order, each step of each made once at a time, the Secret kept by compare-and-swap: all of them end
/// with the same, whoever is first.
mod together {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Act {
        /// A pod reads the Secret.
        Reads(usize),
        /// It acts on what it has read, and may then not know whether that was done.
        Acts(usize),
        /// It is killed, and knows no longer what it has read.
        Dies(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let pod = 0_usize..3;
        let one = prop_oneof![
            4 => pod.clone().prop_map(Act::Reads),
            4 => pod.clone().prop_map(Act::Acts),
            1 => pod.prop_map(Act::Dies),
        ];
        proptest::collection::vec(one, 0..40)
    }

    /// The Secret's version and content.
    type Versioned = (u32, Vec<Option<u8>>);

    #[derive(Default)]
    struct World {
        /// The Secret with its version.
        secret: Option<Versioned>,
        volumes: Vec<Vec<Option<u8>>>,
        read: BTreeMap<usize, Option<Versioned>>,
        made: u8,
        /// A cluster was formed before there was a Secret: pod 1's volume has what its members know each other by.
        formed: bool,
    }

    impl World {
        fn act(&mut self, act: Act) {
            match act {
                Act::Reads(pod) => drop(self.read.insert(pod, self.secret.clone())),
                Act::Dies(pod) => drop(self.read.remove(&pod)),
                Act::Acts(pod) => {
                    let Some(read) = self.read.remove(&pod) else { return };
                    self.step(pod, read);
                }
            }
        }

        fn step(&mut self, pod: usize, read: Option<Versioned>) -> bool {
            let there = |item: usize| read.as_ref().and_then(|(_, items)| items[item]);
            let items: Vec<_> = self.volumes[pod]
                .iter()
                .enumerate()
                .map(|(item, here)| (here.map_or(Local::Absent, held), there(item).map_or(There::Absent, whole)))
                .collect();
            let secret = if read.is_some() { Access::Present } else { Access::Absent };
            let ordinal = Ordinal(u32::try_from(pod).expect("small"));
            let formed = if self.formed { Known::Present(ClusterId(1)) } else { Known::Absent };
            match decide(&Facts { secret, ordinal, formed, ..facts(&items) }) {
                Step::Publish { held, made } => {
                    let (version, mut new) = read.clone().unwrap_or((0, vec![None, None]));
                    for item in held {
                        new[item] = self.volumes[pod][item];
                    }
                    for item in made {
                        self.made += 1;
                        new[item] = Some(100 + self.made);
                    }
                    // Compare and swap.
                    if read.map(|(version, _)| version) == self.secret.as_ref().map(|(version, _)| *version) {
                        self.secret = Some((version + 1, new));
                    }
                }
                Step::Adopt(items) => {
                    for item in items {
                        self.volumes[pod][item] = there(item);
                    }
                }
                Step::Go { shared } => return shared,
                Step::Wait(_) => {}
                other => panic!("{other:?}"),
            }
            false
        }
    }

    proptest! {
        #[test]
        fn all_end_with_the_same(acts in acts(), formed in any::<bool>()) {
            let mut world = World { volumes: vec![vec![None, None]; 3], formed, ..World::default() };
            if formed {
                world.volumes[1][0] = Some(7);
            }
            acts.into_iter().for_each(|act| world.act(act));
            let mut rounds = 0;
            while (0..3).filter(|pod| !world.step(*pod, world.secret.clone())).count() > 0 {
                rounds += 1;
                prop_assert!(rounds < 10, "it does not end");
            }
            prop_assert!(world.volumes.windows(2).all(|two| two[0] == two[1]), "{:?}", world.volumes);
            prop_assert!(world.secret.is_some_and(|(_, items)| items == world.volumes[0]));
            prop_assert!(!formed || world.volumes[0][0] == Some(7));
        }
    }
}
