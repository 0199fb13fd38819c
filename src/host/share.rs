//! What all pods share through a Secret (rule 4.10): who makes it, who adopts it, who waits. Pure.
//!
//! Files that are given to the pod, mounted say, win over the Secret, and the Secret over what would be made here. What
//! lies on a volume is never replaced: it must be what the Secret has.
//!
//! Only the seed makes anything new, and only if no cluster has been formed with what is missing: another pod's volume has
//! it then, and that pod puts it into the Secret. What is made goes into the Secret first and is adopted from there, so
//! that of two that make it at once both have the first one's.

use std::fmt;

use sha2::{Digest, Sha256};

use super::secret::SecretData;
use crate::boot::{Desired, Known};
use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::ids::{ClusterId, Ordinal};

/// Tells contents apart without showing them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Print(String);

impl Print {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Print {
        Print(Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA-256 {}...", self.0)
    }
}

/// What this pod has of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// Nothing.
    Absent,
    /// It is given to the pod, or what is there cannot be used and is refused by who uses it: the Secret has no say.
    Given,
    /// It lies on the volume.
    Held {
        /// Which it is.
        print: Print,
        /// Whether no part of it is missing.
        whole: bool,
    },
}

/// What the Secret has of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Absent,
    /// All of it.
    Whole(Print),
    /// A part of it, by which no other pod can be given it.
    Part(Print),
    /// Something that cannot be used, with the reason.
    Bad(String),
}

/// One thing, here and there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<I> {
    /// Which.
    pub item: I,
    /// Here.
    pub local: Local,
    /// There; absent if the Secret is, or is not known.
    pub there: There,
}

/// What the API says of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It was read.
    Present,
    /// There is none.
    Absent,
    /// This pod may not read or write it.
    Denied(String),
    /// Not known.
    Unknown(String),
}

/// What a decision rests on.
#[derive(Clone, Debug)]
pub struct Facts<I> {
    /// The things, the one by which a cluster knows its members first.
    pub items: Vec<Fact<I>>,
    /// The Secret.
    pub secret: Access,
    /// This pod.
    pub ordinal: Ordinal,
    /// The seed, by the StatefulSet. Looked at only where something is to be made.
    pub seed: Known<Ordinal>,
    /// Desired replicas.
    pub desired: Desired,
    /// The cluster that the marker says has been formed.
    pub formed: Known<ClusterId>,
    /// Whether this volume has a data dir.
    pub data: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<I> {
    /// Nothing more.
    Go {
        /// Whether all that is not given is known to be what the Secret has.
        shared: bool,
    },
    /// Put these into the Secret, those that lie here and new ones; then decide anew.
    Publish {
        /// As they are here.
        held: Vec<I>,
        /// Made for it.
        made: Vec<I>,
    },
    /// Write these from the Secret to the volume, as far as they are missing there; then decide anew.
    Adopt(Vec<I>),
    /// Go on with what is here, or is made here for this pod alone, as it is the only one: the Secret may not be used.
    Alone(String),
    /// Start nothing, say why, and decide anew with fresh facts.
    Wait(Wait<I>),
    /// Do not start.
    Refuse(Refusal<I>),
}

/// Why a pod waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait<I> {
    /// The API does not say what must be known.
    Away(String),
    /// The pod may not use the Secret, and others need what is in it.
    Denied(String),
    /// Only the seed makes it.
    ForSeed(I, Ordinal),
    /// A cluster has been formed with it: another pod's volume has it.
    Formed(I, ClusterId),
}

/// Why a pod does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal<I> {
    /// The volume's is not the Secret's.
    Differs {
        /// Which.
        item: I,
        /// The volume's.
        here: Print,
        /// The Secret's.
        there: Print,
    },
    /// The Secret has a part of it only, and the volume nothing.
    Part(I),
    /// What the Secret has cannot be used.
    Bad(I, String),
}

/// Whether anything but what is here matters: what the host API says is asked for only then.
pub fn needs_host<I>(items: &[Fact<I>]) -> bool {
    items.iter().any(|fact| fact.local == Local::Absent && fact.there == There::Absent)
}

/// What other pods need and cannot be given: a part of it lies here, and the Secret has nothing of it.
pub fn unshareable<I: Copy>(items: &[Fact<I>]) -> Option<I> {
    let part = |fact: &&Fact<I>| matches!(fact.local, Local::Held { whole: false, .. }) && fact.there == There::Absent;
    items.iter().find(part).map(|fact| fact.item)
}

/// Decides.
pub fn decide<I: Copy>(facts: &Facts<I>) -> Step<I> {
    let ours: Vec<_> = facts.items.iter().filter(|fact| fact.local != Local::Given).collect();
    if ours.is_empty() {
        return Step::Go { shared: false };
    }
    let refusal = ours.iter().find_map(|fact| refused(fact));
    if let Some(refusal) = refusal {
        return Step::Refuse(refusal);
    }
    let lacks_any = ours.iter().any(|fact| fact.local == Local::Absent);
    let only_one = facts.desired.known() == Some(1) && facts.seed.present() == Some(&facts.ordinal);
    match &facts.secret {
        Access::Unknown(_) | Access::Denied(_) if !lacks_any => return Step::Go { shared: false },
        Access::Unknown(why) => return Step::Wait(Wait::Away(why.clone())),
        Access::Denied(why) if only_one => return Step::Alone(why.clone()),
        Access::Denied(why) => return Step::Wait(Wait::Denied(why.clone())),
        Access::Present | Access::Absent => {}
    }
    let adopt: Vec<_> = ours.iter().filter(|fact| adopts(fact)).map(|fact| fact.item).collect();
    if !adopt.is_empty() {
        return Step::Adopt(adopt);
    }
    let unshared = || ours.iter().filter(|fact| fact.there == There::Absent);
    let held: Vec<_> =
        unshared().filter(|fact| matches!(fact.local, Local::Held { whole: true, .. })).map(|fact| fact.item).collect();
    let lacking: Vec<_> = unshared().filter(|fact| fact.local == Local::Absent).map(|fact| fact.item).collect();
    let forbidden = lacking.first().and_then(|item| may_not_make(facts, *item));
    match forbidden {
        Some(wait) if held.is_empty() => Step::Wait(wait),
        Some(_) => Step::Publish { held, made: Vec::new() },
        None if held.is_empty() && lacking.is_empty() => {
            Step::Go { shared: ours.iter().all(|fact| matches!(fact.there, There::Whole(_) | There::Part(_))) }
        }
        None => Step::Publish { held, made: lacking },
    }
}

fn refused<I: Copy>(fact: &Fact<I>) -> Option<Refusal<I>> {
    let item = fact.item;
    match (&fact.local, &fact.there) {
        (Local::Absent | Local::Held { whole: false, .. }, There::Bad(why)) => Some(Refusal::Bad(item, why.clone())),
        (Local::Absent, There::Part(_)) => Some(Refusal::Part(item)),
        (Local::Held { print: here, .. }, There::Whole(there) | There::Part(there)) if here != there => {
            Some(Refusal::Differs { item, here: here.clone(), there: there.clone() })
        }
        _ => None,
    }
}

fn adopts<I>(fact: &Fact<I>) -> bool {
    let missing = matches!(fact.local, Local::Absent | Local::Held { whole: false, .. });
    missing && matches!(fact.there, There::Whole(_))
}

/// Why this pod may not make what is missing everywhere that it can see.
fn may_not_make<I: Copy>(facts: &Facts<I>, item: I) -> Option<Wait<I>> {
    // By the first the members know each other: where that is shared, the rest was never made.
    let established = facts.items.first().is_some_and(|first| matches!(first.there, There::Whole(_)));
    let seed = match &facts.seed {
        Known::Present(seed) => *seed,
        Known::Absent => return Some(Wait::Away("there is no such StatefulSet".to_owned())),
        Known::Unknown(why) => return Some(Wait::Away(why.clone())),
    };
    let alone = facts.data && facts.desired.known() == Some(1) && facts.ordinal == seed;
    match &facts.formed {
        Known::Present(cluster) if !established && !alone => Some(Wait::Formed(item, *cluster)),
        _ if facts.ordinal != seed => Some(Wait::ForSeed(item, seed)),
        Known::Unknown(why) if !established && !alone => Some(Wait::Away(why.clone())),
        Known::Present(_) | Known::Absent | Known::Unknown(_) => None,
    }
}

/// What a look at the Secret has found, while the pod boots and runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was read, and does not contradict what is here; whether it has all of that.
    Shared(bool),
    /// It has another than is here.
    Another,
    /// Nothing.
    Unknown,
}

/// What a pod knows of a Secret that it looks after while it boots and runs.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    sure: bool,
    shared: bool,
    was_shared: bool,
    differs: bool,
}

impl Kept {
    /// As the pod was started; `shared`: with what the Secret has.
    pub fn new(shared: bool) -> Kept {
        Kept { sure: shared, shared, was_shared: shared, differs: false }
    }

    /// Takes what a look has found.
    pub fn finds(&mut self, found: Found) {
        self.sure = found == Found::Shared(true);
        self.was_shared |= self.sure;
        self.differs |= found == Found::Another;
        match found {
            Found::Shared(shared) => self.shared = shared,
            Found::Another => self.shared = false,
            // A look that fails tells nothing new.
            Found::Unknown => {}
        }
    }

    /// Whether the last look found all that is here.
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// Whether what is here is what the Secret has, by the last look that told.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether this pod may put what is here into a Secret that lacks it. Not if the Secret never had this and has had
    /// another, which those that have it are to make anew; and not from a volume without data (`data`) where a cluster may have
    /// been formed with another.
    pub fn may_publish(&self, data: bool, formed: &Known<ClusterId>) -> bool {
        (self.was_shared || !self.differs) && (data || formed.is_absent())
    }
}

/// How things and places are named to the operator.
pub trait Naming<I> {
    /// Where it is, or would be, in this pod.
    fn here(&self, item: I) -> String;
    /// The Secret's key, or keys.
    fn there(&self, item: I) -> String;
    /// How it is given to the pod so that the Secret has no say.
    fn given(&self) -> &'static str;
}

/// What is shared, as its files are read and written.
pub trait Sharing: Naming<Self::Item> {
    /// One thing.
    type Item: Copy + fmt::Debug + fmt::Display;

    /// What is here, and what is in the Secret, the thing by which a cluster knows its members first.
    ///
    /// # Errors
    /// If the volume cannot be read.
    fn facts(&self, secret: Option<&SecretData>) -> anyhow::Result<Vec<Fact<Self::Item>>>;

    /// What is to be put into the Secret: `held` as they are here and `made` anew. `there` is what it has already.
    ///
    /// # Errors
    /// If nothing can be made, or read.
    fn content(
        &self,
        held: &[Self::Item],
        made: &[Self::Item],
        there: Option<&SecretData>,
    ) -> anyhow::Result<SecretData>;

    /// Writes what is missing here of `items` from the Secret, durably.
    ///
    /// # Errors
    /// If it cannot be written.
    fn adopt(&self, items: &[Self::Item], secret: &SecretData, disk: &dyn Disk) -> anyhow::Result<()>;
}

impl<I: Copy + fmt::Display> Wait<I> {
    /// What is missing.
    pub fn what(&self, secret: &str) -> String {
        match self {
            Wait::Away(why) => format!("the host cluster's API does not say what Secret {secret} has: {why}"),
            Wait::Denied(why) => format!("this pod may not use Secret {secret}, and shares what is in it: {why}"),
            Wait::ForSeed(item, seed) => format!("Secret {secret} has no {item}, and only pod {seed} makes one"),
            Wait::Formed(item, cluster) => {
                format!("cluster {cluster} has been formed, and Secret {secret} has no {item}")
            }
        }
    }

    /// What brings it on.
    pub fn remedy(&self, names: &impl Naming<I>) -> String {
        let given = names.given();
        match self {
            Wait::Away(_) => format!("make the host cluster's API reachable; or {given}"),
            Wait::Denied(_) => {
                format!("let the pod's Role get, create and patch Secrets, as vCluster's does; or {given}")
            }
            Wait::ForSeed(_, seed) => format!("look at pod {seed}"),
            Wait::Formed(item, _) => format!(
                "start a pod whose volume has it ({}), which puts it there; or restore the Secret ({}) from a backup; or \
                 {given}",
                names.here(*item),
                names.there(*item)
            ),
        }
    }
}

impl<I: Copy + fmt::Display> Refusal<I> {
    /// The error that ends the program.
    pub fn error(&self, secret: &str, names: &impl Naming<I>) -> anyhow::Error {
        let given = names.given();
        let (what, remedy) = match self {
            Refusal::Differs { item, here, there } => (
                format!(
                    "the {item} on this volume ({}, {here}) is not that of Secret {secret} ({}, {there})",
                    names.here(*item),
                    names.there(*item)
                ),
                format!(
                    "nothing was changed: to keep the Secret's, move {} of the volume away, and what was made with it; to keep \
                     the volume's, delete the Secret, and every pod that has the same puts it there again; or {given}",
                    names.here(*item)
                ),
            ),
            Refusal::Part(item) => (
                format!("Secret {secret} has not all of the {item}, and this volume has nothing of it"),
                format!("nothing was changed: complete the Secret ({}); or {given}", names.there(*item)),
            ),
            Refusal::Bad(item, why) => (
                format!("the {item} in Secret {secret} cannot be used: {why}"),
                format!(
                    "nothing was changed: put the right {} there, or delete the Secret, and a pod that has it puts it there \
                     again; or {given}",
                    names.there(*item)
                ),
            ),
        };
        refuse(Exit::RefusedPki, what, remedy)
    }
}

#[cfg(test)]
mod tests;
