//! A look at all other pods at once: DNS, their word, their etcd's view, and a linearizable member list if one is to be
//! had. Every answer that did not come is unknown, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::certificate::{clock, doubt_other_cas, name, of_another_ca};
use super::dial::{DEADLINE, Dial, Pod};
use super::named::{Named, of_now, unnamed};
use super::{Word, list_of};
use crate::boot::{Facts, Known, MemberList, PeerFact, PeerState};
use crate::discovery::Discovery;
use crate::discovery::answer::Answer;
use crate::discovery::own;
use crate::etcd::client;
use crate::host::statefulset::REPLICAS_MAX;
use crate::ids::Ordinal;
use crate::pki::{EtcdTlsFiles, shared};
use crate::settings::Settings;

/// From one line on a certificate for which a pod cannot be asked to the next.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(60);

/// How long the first look waits for DNS to name the headless service's pods.
const FIRST_NAMED: Duration = Duration::from_secs(5);

/// Looks at the other pods.
pub struct Surveyor {
    settings: Arc<Settings>,
    discovery: Discovery,
    files: EtcdTlsFiles,
    /// Where each pod was last. While DNS does not say, it is asked there: who answers says which pod it is.
    last: Mutex<BTreeMap<Ordinal, IpAddr>>,
    /// Of which pod it was last said that it cannot be asked for a certificate, what to do, and when.
    certificate_said: Mutex<Option<(Ordinal, &'static str, Instant)>>,
    /// The pods that the headless service names, watched at rest by a task that ends with this.
    named: watch::Receiver<Known<Vec<Ordinal>>>,
    /// This pod's own name has led to it: DNS knows of everything that was there before this pod.
    resolved: AtomicBool,
    /// That no pod is named was the answer again since then.
    named_by_none: AtomicBool,
    /// The pods whose certificates are of another CA, and since when.
    other_ca: Mutex<BTreeMap<Ordinal, Instant>>,
    _watching: JoinSet<()>,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Survey {
    /// For the boot decision.
    pub peers: Vec<PeerFact>,
    /// Whether the headless service has said which pods there are.
    pub named: Known<()>,
    /// What each said.
    pub words: BTreeMap<Ordinal, Word>,
    /// Where each is.
    pub pods: BTreeMap<Ordinal, Pod>,
    /// A linearizable list of a cluster that a pod serves, for the boot decision.
    pub members: Known<MemberList>,
    /// The same as etcd gave it.
    pub listed: Option<client::MemberList>,
    /// Whether any pod answered over mTLS, which proves that it has the same CA.
    pub shared_ca: bool,
}

struct Asked {
    word: Result<Word, String>,
    members: Result<MemberList, String>,
}

impl Surveyor {
    /// For this pod. Needs a tokio runtime.
    pub fn new(settings: Settings, discovery: Discovery, files: EtcdTlsFiles) -> Surveyor {
        let (sender, named) = watch::channel(Known::default());
        let (asks, own) = (discovery.clone(), settings.pod.ordinal);
        let mut watching = JoinSet::new();
        watching.spawn(async move { asks.follow(own, sender).await });
        let settings = Arc::new(settings);
        Surveyor {
            settings,
            discovery,
            files,
            last: Mutex::default(),
            certificate_said: Mutex::default(),
            named,
            resolved: AtomicBool::new(false),
            named_by_none: AtomicBool::new(false),
            other_ca: Mutex::default(),
            _watching: watching,
        }
    }

    /// How it asks DNS: with one budget for the pod.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// Looks at these pods and at those that the headless service names. Whoever answers where it was last is there: DNS
    /// is asked for the others only, and its budget lasts.
    pub async fn look(&self, ordinals: impl IntoIterator<Item = Ordinal>) -> anyhow::Result<Survey> {
        let dial = Dial::new(&self.settings, &self.files)?;
        let mut ordinals: BTreeSet<Ordinal> = ordinals.into_iter().collect();
        let (there, named) = self.named().await;
        ordinals.extend(there);
        ordinals.remove(&self.settings.pod.ordinal);
        let ordinals: Vec<_> = ordinals.into_iter().take(REPLICAS_MAX as usize).collect();

        let mut found = Survey::default();
        let last: Vec<_> = ordinals.iter().filter_map(|ordinal| self.pod(*ordinal, None)).collect();
        let mut asked = self.ask_all(&dial, &last, &mut found).await;
        let silent = ordinals.iter().filter(|ordinal| asked.get(ordinal).is_none_or(|answers| answers.word.is_err()));
        let addresses = self.discovery.pods(silent.copied()).await;
        let (same, moved): (Vec<_>, Vec<_>) = addresses
            .iter()
            .filter_map(|(ordinal, answer)| self.pod(*ordinal, Some(answer)))
            .partition(|pod| last.contains(pod));
        // What came from where a pod no longer is says nothing of it; why one that is there gives no word, does.
        asked.retain(|ordinal, answers| answers.word.is_ok() || same.iter().any(|pod| pod.ordinal == *ordinal));
        asked.extend(self.ask_all(&dial, &moved, &mut found).await);
        for ordinal in ordinals {
            let answered = asked.get(&ordinal).is_some_and(|answers| answers.word.is_ok());
            let dns = match addresses.get(&ordinal) {
                Some(answer) => dns_fact(answer),
                None if answered => Known::Present(()),
                None => Known::default(),
            };
            found.add(PeerFact { dns, ..PeerFact::new(ordinal) }, asked.remove(&ordinal));
        }
        found.named = match named {
            Named::Told(known) => known,
            Named::Nobody { there, wrong } => {
                let asked = found.peers.iter().filter(|peer| peer.dns.present().is_some());
                let asked = asked.filter_map(|peer| Some(found.pods.get(&peer.ordinal)?.address));
                unnamed(&self.own_addresses(), &asked.collect(), &there, wrong)
            }
        };
        self.say_certificates(&found);
        let other_ca = || self.other_ca.lock().unwrap_or_else(PoisonError::into_inner);
        doubt_other_cas(&mut other_ca(), &mut found.peers, Instant::now());
        found.list(&dial, &self.settings).await;
        Ok(found)
    }

    /// Says, not too often, that a pod is not heard because its certificate or ours does not fit the time, or its name.
    fn say_certificates(&self, found: &Survey) {
        let silent = found.peers.iter().filter_map(|peer| Some((peer.ordinal, peer.state.unknown()?)));
        let refused = |why| clock(why).map(|remedy| ("a clock", remedy)).or_else(|| Some(("its name", name(why)?)));
        let Some((ordinal, why, (what, remedy))) = silent.filter_map(|(o, why)| Some((o, why, refused(why)?))).next()
        else {
            return;
        };
        let mut said = self.certificate_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|(of, last, at)| (of, last) != (ordinal, remedy) || at.elapsed() >= CERTIFICATE_EVERY) {
            *said = Some((ordinal, remedy, Instant::now()));
            tracing::warn!(%ordinal, remedy, "a pod cannot be asked, as a certificate does not fit {what}: {why}");
        }
    }

    /// The pods that the headless service names, and those that were there last: that DNS does not answer now takes
    /// nobody away. With whether it has answered, as of a time at which this pod was there.
    async fn named(&self) -> (BTreeSet<Ordinal>, Named) {
        let mut named = self.named.clone();
        let answered = named.wait_for(|named| *named != Known::default());
        let now = match tokio::time::timeout(FIRST_NAMED, answered).await {
            Ok(Ok(named)) => named.clone(),
            Ok(Err(_)) | Err(_) => Known::Unknown("DNS has not answered yet".to_owned()),
        };
        let own = self.settings.pod.ordinal;
        let mut there: BTreeSet<_> = now.present().into_iter().flatten().copied().collect();
        // At rest it is asked far too seldom for one who waits for it.
        let now = match now {
            Known::Unknown(_) => self.discovery.service().await.into(),
            Known::Present(now) if !now.contains(&own) => self.discovery.service_with(own).await.into(),
            // All pods may have come since; once this one's name is there, theirs would be.
            Known::Absent
                if !self.named_by_none.load(Ordering::Relaxed) && self.own_name_is_wrong().await.is_none() =>
            {
                let again: Known<Vec<_>> = self.discovery.service_with(own).await.into();
                self.named_by_none.store(again.unknown().is_none(), Ordering::Relaxed);
                again
            }
            known => known,
        };
        there.extend(now.present().into_iter().flatten());
        let answered = match now {
            Known::Present(now) => Named::Told(of_now(own, &now, self.own_name_is_wrong().await)),
            Known::Absent => {
                let there = self.discovery.service_addresses_with(&self.own_addresses()).await;
                Named::Nobody { there, wrong: self.own_name_is_wrong().await }
            }
            Known::Unknown(why) => Named::Told(Known::Unknown(why)),
        };
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (there.into_iter().chain(last.keys().copied()).collect(), answered)
    }

    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        own::own_addresses(self.settings.pod.ip)
    }

    /// Why this pod's own name does not lead to it; asked for until it has once.
    async fn own_name_is_wrong(&self) -> Option<String> {
        if self.resolved.load(Ordering::Relaxed) {
            return None;
        }
        let pod = &self.settings.pod;
        let why = own::wrong(&pod.name, &own::own_addresses(pod.ip), &self.discovery.pod_to_appear(pod.ordinal).await);
        self.resolved.store(why.is_none(), Ordering::Relaxed);
        why
    }

    async fn ask_all(&self, dial: &Dial, pods: &[Pod], found: &mut Survey) -> BTreeMap<Ordinal, Asked> {
        let mut questions = JoinSet::new();
        for pod in pods {
            found.pods.insert(pod.ordinal, pod.clone());
            let (dial, settings, pod) = (dial.clone(), Arc::clone(&self.settings), pod.clone());
            questions.spawn(async move { (pod.ordinal, Box::pin(ask(&dial, &settings, &pod)).await) });
        }
        let mut asked = BTreeMap::new();
        while let Some(done) = questions.join_next().await {
            if let Ok((ordinal, answers)) = done {
                asked.insert(ordinal, answers);
            }
        }
        asked
    }

    fn pod(&self, ordinal: Ordinal, answer: Option<&Answer<BTreeSet<IpAddr>>>) -> Option<Pod> {
        self.address(ordinal, answer).map(|address| Pod::new(&self.settings, ordinal, address))
    }

    fn address(&self, ordinal: Ordinal, answer: Option<&Answer<BTreeSet<IpAddr>>>) -> Option<IpAddr> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some(Answer::Present { value, .. }) => {
                let address = value.iter().next().copied()?;
                last.insert(ordinal, address);
                Some(address)
            }
            Some(Answer::Absent { .. }) => {
                last.remove(&ordinal);
                None
            }
            Some(Answer::Unknown(_)) | None => last.get(&ordinal).copied(),
        }
    }

    /// Has the pods that serve look again now.
    pub async fn wake(&self, survey: &Survey) {
        let Ok(dial) = Dial::new(&self.settings, &self.files) else { return };
        for (ordinal, word) in &survey.words {
            if let (Some(PeerState::Serving { .. }), Some(pod)) = (&word.state, survey.pods.get(ordinal))
                && let Err(error) = dial.wake(pod).await
            {
                tracing::debug!(asked = pod.host, "wake it: {error:#}");
            }
        }
    }

    /// Asks pods directly.
    pub fn dial(&self) -> anyhow::Result<Dial> {
        Dial::new(&self.settings, &self.files)
    }
}

async fn ask(dial: &Dial, settings: &Settings, pod: &Pod) -> Asked {
    let members = async {
        let view = dial.members(pod).await.map_err(|e| format!("{e:#}"))?;
        let list = client::MemberList { cluster: view.cluster, members: view.members };
        Ok(list_of(settings, &list))
    };
    let word = async { dial.word(pod).await.map_err(|e| format!("{e:#}")) };
    let (word, members) = tokio::join!(word, members);
    Asked { word, members }
}

fn dns_fact(answer: &Answer<BTreeSet<IpAddr>>) -> Known<()> {
    match answer {
        Answer::Present { .. } => Known::Present(()),
        Answer::Absent { .. } => Known::Absent,
        Answer::Unknown(why) => Known::Unknown(why.clone()),
    }
}

impl Survey {
    /// Puts what was found in the place of what the volume alone lets one know.
    pub fn add_to(&self, facts: &mut Facts) {
        facts.peers.retain(|peer| !self.peers.iter().any(|found| found.ordinal == peer.ordinal));
        facts.peers.extend(self.peers.iter().cloned());
        facts.peers.sort_by_key(|peer| peer.ordinal);
        facts.named.clone_from(&self.named);
        facts.members.clone_from(&self.members);
        facts.shared_ca = self.shared_ca;
    }

    /// A pod that serves, whose k0s has other CAs than are in this folder, or another key pair for tokens.
    pub fn other_k0s_cas(&self, own: Option<PathBuf>) -> Option<(PathBuf, Ordinal)> {
        let dir = own?;
        let here = shared::of_k0s(&dir)?;
        let serves = |word: &Word| matches!(word.state, Some(PeerState::Serving { .. }));
        let other = |word: &Word| serves(word) && word.k0s_cas.as_ref().is_some_and(|there| *there != here);
        self.words.iter().find(|(_, word)| other(word)).map(|(ordinal, _)| (dir, *ordinal))
    }

    fn add(&mut self, mut fact: PeerFact, asked: Option<Asked>) {
        let Some(Asked { word, members }) = asked else { return self.peers.push(fact) };
        self.shared_ca |= word.is_ok() || members.is_ok();
        fact.other_ca = word.as_ref().is_err_and(|why| of_another_ca(why));
        fact.members = members.map_or_else(Known::Unknown, Known::Present);
        match word {
            Ok(word) => {
                let between = || "it is in between two states".to_owned();
                fact.state = word.state.clone().map_or_else(|| Known::Unknown(between()), Known::Present);
                fact.superseded.clone_from(&word.superseded);
                fact.dropped.clone_from(&word.dropped);
                fact.settled.clone_from(&word.settled);
                fact.joins = word.joins;
                self.words.insert(fact.ordinal, word);
            }
            Err(why) => fact.state = Known::Unknown(why),
        }
        self.peers.push(fact);
    }

    /// Asks those that say that they serve for a linearizable list, until one gives it.
    async fn list(&mut self, dial: &Dial, settings: &Settings) {
        let mut why = "no pod serves".to_owned();
        for ordinal in serving(&self.words) {
            let Some(pod) = self.pods.get(&ordinal) else { continue };
            let asked = async { anyhow::Ok(dial.etcd(pod).await?.member_list(DEADLINE).await?) };
            match asked.await {
                Ok(list) => {
                    self.members = Known::Present(list_of(settings, &list));
                    self.listed = Some(list);
                    return;
                }
                Err(error) => why = format!("{}: {error:#}", pod.host),
            }
        }
        self.members = Known::Unknown(why);
    }
}

/// The pods that say that they serve: those of a cluster that another has replaced last, those of the one that most serve first.
fn serving(words: &BTreeMap<Ordinal, Word>) -> Vec<Ordinal> {
    let of = |word: &Word| match word.state {
        Some(PeerState::Serving { cluster, .. }) => Some(cluster),
        _ => None,
    };
    let served = || words.values().filter_map(of);
    let replaced = |cluster| words.values().any(|word| word.superseded.contains(&cluster));
    let mut found: Vec<_> = words.iter().filter_map(|(ordinal, word)| Some((*ordinal, of(word)?))).collect();
    found.sort_by_key(|(ordinal, cluster)| {
        let pods = served().filter(|other| other == cluster).count();
        (replaced(*cluster), std::cmp::Reverse(pods), *ordinal)
    });
    found.into_iter().map(|(ordinal, _)| ordinal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClusterId, MemberId};

    #[test]
    fn the_list_is_asked_of_the_cluster_that_most_serve_and_of_a_replaced_one_last() {
        let own = |n: u32, cluster, superseded: &[u64]| {
            let own = crate::peer::Own::new(Ordinal(n));
            let superseded = superseded.iter().copied().map(ClusterId).collect();
            own.volume(None, &crate::boot::Notes { superseded, ..Default::default() });
            own.runs(Some((MemberId(n.into()), ClusterId(cluster))));
            let health = crate::serve::health::Health { datastore_ready: true, ..Default::default() };
            (Ordinal(n), own.word(health))
        };
        let asked = |words: &[(Ordinal, Word)]| serving(&words.iter().cloned().collect());
        let (a, b, c) = (own(0, 1, &[]), own(1, 2, &[]), own(2, 2, &[]));
        assert_eq!(asked(&[a.clone(), b.clone(), c.clone()]), [Ordinal(1), Ordinal(2), Ordinal(0)]);
        assert_eq!(asked(&[own(0, 1, &[2]), b, c]), [Ordinal(0), Ordinal(1), Ordinal(2)]);
        assert_eq!(asked(&[a]), [Ordinal(0)]);
    }

    #[test]
    fn k0s_cas_are_compared_with_those_of_pods_that_serve() {
        let dir = tempfile::tempdir().unwrap();
        let word = |serves: bool, cas: Option<String>| {
            let own = crate::peer::Own::new(Ordinal(1));
            own.runs(Some((MemberId(1), ClusterId(1))));
            let health = crate::serve::health::Health { datastore_ready: serves, ..Default::default() };
            let words = [(Ordinal(1), Word { k0s_cas: cas, ..own.word(health) })].into();
            Survey { words, ..Survey::default() }
        };
        let here = || Some(dir.path().to_owned());
        let other = Some("others".to_owned());
        assert_eq!(word(true, other.clone()).other_k0s_cas(here()), None, "nothing is here");
        for file in ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.pub", "sa.key"] {
            std::fs::write(dir.path().join(file), file).unwrap();
        }
        assert_eq!(word(true, other.clone()).other_k0s_cas(here()), Some((dir.path().to_owned(), Ordinal(1))));
        assert_eq!(word(true, shared::of_k0s(dir.path())).other_k0s_cas(here()), None, "the same");
        assert_eq!(word(true, None).other_k0s_cas(here()), None, "it has none, or runs no k0s");
        assert_eq!(word(false, other.clone()).other_k0s_cas(here()), None, "it does not serve");
        assert_eq!(word(true, other).other_k0s_cas(None), None, "no k0s runs here");
    }
}
