//! Goes through the plan: checks what is there, issues what is missing, renews what is ours and due. No I/O: it takes
//! what the store read and gives what the store is to write.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use time::{Duration, OffsetDateTime};

use super::cert::Cert;
use super::check::{self, CaState};
use super::issue::{self, CA_LIFE, LEAF_LIFE};
use super::key::{PrivateKey, public_keys_of};
use super::kubeconfig;
use super::layout::{Pair, RelPath, SA_KEY, SA_PUB};
use super::outcome::{Outcome, Report, State};
use super::plan::{CaName, Item, LeafPlan};
use super::problem::{Problem, Refusal};
use super::record::Record;
use super::renew::{self, RENEW_BEFORE};
use super::store::{Content, NewFile, ReadFile, Store};

/// A certificate that nobody renews is told of this long before it ends.
const WARN_BEFORE: Duration = Duration::days(30);

/// Every file that the plan's items are in.
pub fn files(plan: &[Item]) -> Vec<RelPath> {
    let mut files = Vec::new();
    for item in plan {
        match item {
            Item::Ca(ca) => files.extend([ca.pair().cert, ca.pair().key]),
            Item::Leaf(pair, _) => files.extend([pair.cert, pair.key]),
            Item::Kubeconfig { file, .. } => files.push(*file),
            Item::ServiceAccount => files.extend([SA_KEY, SA_PUB]),
        }
    }
    files
}

/// Goes through the plan.
///
/// # Errors
/// Only if signing or random numbers fail; what is wrong with files is in [`Outcome::refusals`].
pub fn complete(
    plan: &[Item],
    store: &Store,
    contents: &BTreeMap<RelPath, Content>,
    record: &Record,
    now: OffsetDateTime,
) -> anyhow::Result<Outcome> {
    let outcome = Outcome { record: record.clone(), ..Outcome::default() };
    let mut walk = Walk { plan, store, contents, now, cas: BTreeMap::new(), outcome };
    for item in plan {
        match item {
            Item::Ca(name) => walk.ca(*name)?,
            Item::Leaf(pair, leaf) => walk.leaf(*pair, leaf)?,
            Item::Kubeconfig { file, server, leaf } => walk.kubeconfig(file, server, leaf)?,
            Item::ServiceAccount => walk.service_account()?,
        }
    }
    walk.exposed_keys();
    Ok(walk.outcome)
}

struct Walk<'a> {
    plan: &'a [Item],
    store: &'a Store,
    contents: &'a BTreeMap<RelPath, Content>,
    now: OffsetDateTime,
    cas: BTreeMap<CaName, CaState>,
    outcome: Outcome,
}

impl<'a> Walk<'a> {
    fn get(&self, file: RelPath) -> Result<Option<&'a ReadFile>, Problem> {
        match self.contents.get(file) {
            None | Some(Content::Absent) => Ok(None),
            Some(Content::Bad(problem)) => Err(problem.clone()),
            Some(Content::Read(read)) => Ok(Some(read)),
        }
    }

    fn is_there(&self, file: RelPath) -> bool {
        !matches!(self.contents.get(file), None | Some(Content::Absent))
    }

    fn key(&self, file: RelPath) -> Result<Option<PrivateKey>, Problem> {
        match self.get(file)? {
            None => Ok(None),
            Some(read) => PrivateKey::from_pem(&read.bytes).map(Some).map_err(Problem::NotAKey),
        }
    }

    fn path(&self, file: RelPath) -> PathBuf {
        self.store.path(file)
    }

    /// Notes that `file`, which the table shows as `shown`, is refused.
    fn refuse(&mut self, shown: RelPath, file: RelPath, problem: Problem, reissuable: bool) {
        let ours = matches!(self.get(shown), Ok(Some(read)) if read.ours);
        self.outcome.reports.push(Report { file: shown, state: State::Refused(problem.clone()), ours, cert: None });
        self.outcome.refusals.push(Refusal { reissuable, ..Refusal::new(&self.path(file), problem) });
    }

    fn good(&mut self, file: RelPath, ours: bool, cert: Option<Cert>) {
        if let Some(cert) = &cert
            && cert.not_after - WARN_BEFORE < self.now
        {
            self.outcome.warnings.push(format!(
                "{} ends at {} and is not renewed here: {}",
                self.path(file).display(),
                cert.not_after,
                if ours { "its CA's key is missing, or the CA itself ends then" } else { "it was not issued here" },
            ));
        }
        self.outcome.reports.push(Report { file, state: State::Good, ours, cert });
    }

    /// Notes a new content of `file`.
    fn write(&mut self, file: RelPath, bytes: Vec<u8>, cert: Option<Cert>) {
        let old = match self.get(file) {
            Ok(Some(read)) => Some(&read.bytes[..]),
            _ => None,
        };
        self.outcome.record.replace(file, old, &bytes);
        let state = if old.is_some() { State::Renewed } else { State::Issued };
        self.outcome.reports.push(Report { file, state, ours: true, cert });
        self.outcome.new.push(NewFile { file, bytes, key: false });
    }

    fn write_key(&mut self, file: RelPath, key: &PrivateKey) {
        self.outcome.new.push(NewFile { file, bytes: key.pem().to_vec(), key: true });
    }

    /// Notes when one of our certificates becomes due, unless renewing gains nothing.
    fn note_due(&mut self, not_after: OffsetDateTime, limit: Option<OffsetDateTime>) {
        let at = not_after - RENEW_BEFORE;
        if limit.is_none_or(|limit| limit >= not_after + renew::MIN_GAIN)
            && self.outcome.next_due.is_none_or(|next| at < next)
        {
            self.outcome.next_due = Some(at);
        }
    }

    fn ca(&mut self, name: CaName) -> anyhow::Result<()> {
        let pair = name.pair();
        let key = match self.key(pair.key) {
            Ok(key) => key,
            Err(problem) => {
                self.refuse(pair.cert, pair.key, problem, false);
                return Ok(());
            }
        };
        let read = match self.get(pair.cert) {
            Ok(read) => read,
            Err(problem) => {
                self.refuse(pair.cert, pair.cert, problem, false);
                return Ok(());
            }
        };
        let (key_path, path) = (self.path(pair.key), self.path(pair.cert));
        let Some(read) = read else {
            return self.new_ca(name, key);
        };
        let checked = Cert::all_from_pem(&read.bytes).map_err(Problem::NotACertificate).and_then(|certs| {
            let signing = check::ca(&certs, key.as_ref(), key_path.clone(), self.now);
            match signing {
                Ok(cert) => Ok((cert.clone(), certs, false)),
                // Ours and expired: renewed below, if its key is here.
                Err(Problem::Expired(_)) if read.ours && key.is_some() && certs.len() == 1 => {
                    Ok((certs[0].clone(), certs, true))
                }
                Err(problem) => Err(problem),
            }
        });
        let (cert, certs, expired) = match checked {
            Ok(checked) => checked,
            Err(problem) => {
                self.refuse(pair.cert, pair.cert, problem, false);
                return Ok(());
            }
        };
        match key {
            Some(key) if read.ours && (expired || renew::due(cert.not_after, self.now + CA_LIFE, self.now)) => {
                self.sign_ca(name, key)
            }
            key => {
                if read.ours && key.is_some() {
                    self.note_due(cert.not_after, None);
                }
                self.good(pair.cert, read.ours, Some(cert.clone()));
                let signer = key.map(|key| (cert, key));
                self.cas.insert(name, CaState { path, key_path, pem: read.bytes.clone(), certs, signer });
                Ok(())
            }
        }
    }

    /// A CA of which there is no certificate, and perhaps a key: a run was killed after making it.
    fn new_ca(&mut self, name: CaName, key: Option<PrivateKey>) -> anyhow::Result<()> {
        let signed = self.plan.iter().find_map(|item| match item {
            Item::Leaf(pair, leaf) if leaf.issuer == name && self.is_there(pair.cert) => Some(pair.cert),
            Item::Kubeconfig { file, leaf, .. } if leaf.issuer == name && self.is_there(file) => Some(*file),
            _ => None,
        });
        let pair = name.pair();
        match (key, signed) {
            // What is there must have been signed by this key and name, or it is refused when it is looked at.
            (Some(key), _) => self.sign_ca(name, key),
            (None, None) => {
                let key = PrivateKey::generate().with_context(|| format!("make {}", pair.key))?;
                self.write_key(pair.key, &key);
                self.sign_ca(name, key)
            }
            (None, Some(signed)) => {
                let signed = self.path(signed);
                self.refuse(pair.cert, pair.cert, Problem::CaMissing(signed), false);
                Ok(())
            }
        }
    }

    fn sign_ca(&mut self, name: CaName, key: PrivateKey) -> anyhow::Result<()> {
        let pair = name.pair();
        let pem = issue::ca_certificate(name, &key, self.now)?.into_bytes();
        let certs = Cert::all_from_pem(&pem).map_err(anyhow::Error::msg).context("read back the CA")?;
        let cert = check::ca(&certs, Some(&key), self.path(pair.key), self.now)
            .map_err(|problem| anyhow::anyhow!("{} that was just made {problem}", pair.cert))?
            .clone();
        self.note_due(cert.not_after, None);
        self.write(pair.cert, pem.clone(), Some(cert.clone()));
        let (path, key_path) = (self.path(pair.cert), self.path(pair.key));
        self.cas.insert(name, CaState { path, key_path, pem, certs, signer: Some((cert, key)) });
        Ok(())
    }

    fn leaf(&mut self, pair: Pair, plan: &LeafPlan) -> anyhow::Result<()> {
        // Taken out while its leaf is looked at, so that the walk can be changed meanwhile.
        let Some(ca) = self.cas.remove(&plan.issuer) else {
            self.outcome.reports.push(Report { file: pair.cert, state: State::NotChecked, ours: false, cert: None });
            return Ok(());
        };
        let result = self.leaf_of(pair, plan, &ca);
        self.cas.insert(plan.issuer, ca);
        result
    }

    fn leaf_of(&mut self, pair: Pair, plan: &LeafPlan, ca: &CaState) -> anyhow::Result<()> {
        let reissuable = ca.signer.is_some();
        let (key, read) = match (self.key(pair.key), self.get(pair.cert)) {
            (Ok(key), Ok(read)) => (key, read),
            (Err(problem), _) => {
                self.refuse(pair.cert, pair.key, problem, reissuable);
                return Ok(());
            }
            (_, Err(problem)) => {
                self.refuse(pair.cert, pair.cert, problem, reissuable);
                return Ok(());
            }
        };
        let key_path = self.path(pair.key);
        match (read, key) {
            (None, key) => {
                if ca.signer.is_none() {
                    self.refuse(pair.cert, pair.cert, Problem::CannotIssue(ca.key_path.clone()), false);
                    return Ok(());
                }
                let key = match key {
                    Some(key) => key,
                    None => {
                        let key = PrivateKey::generate().with_context(|| format!("make {}", pair.key))?;
                        self.write_key(pair.key, &key);
                        key
                    }
                };
                let (pem, cert) = self.sign_leaf(pair.cert, plan, &key, ca)?;
                self.write(pair.cert, pem, Some(cert));
            }
            (Some(_), None) => self.refuse(pair.cert, pair.cert, Problem::KeyMissing(key_path), reissuable),
            (Some(read), Some(key)) => match self.usable(&read.bytes, read.ours, &key, key_path, plan, ca) {
                Err(problem) => self.refuse(pair.cert, pair.cert, problem, reissuable),
                Ok((_, true)) => {
                    let (pem, cert) = self.sign_leaf(pair.cert, plan, &key, ca)?;
                    self.write(pair.cert, pem, Some(cert));
                }
                Ok((cert, false)) => self.good(pair.cert, read.ours, Some(cert)),
            },
        }
        Ok(())
    }

    /// Checks a certificate that is there; true if it is ours and to be replaced.
    fn usable(
        &mut self,
        pem: &[u8],
        ours: bool,
        key: &PrivateKey,
        key_path: PathBuf,
        plan: &LeafPlan,
        ca: &CaState,
    ) -> Result<(Cert, bool), Problem> {
        let certs = Cert::all_from_pem(pem).map_err(Problem::NotACertificate)?;
        let checked = check::leaf(&certs, key, key_path, ca, plan.usage, self.now);
        let cert = certs.into_iter().next().ok_or_else(|| Problem::NotACertificate("it is empty".to_owned()))?;
        let limit = ca.signer.as_ref().filter(|_| ours).map(|(ca, _)| (self.now + LEAF_LIFE).min(ca.not_after));
        match (checked, limit) {
            (Err(Problem::Expired(_)), Some(limit)) if limit > self.now => Ok((cert, true)),
            (Err(problem), _) => Err(problem),
            (Ok(()), None) => Ok((cert, false)),
            (Ok(()), Some(limit)) => {
                let lacks = plan.sans.iter().any(|san| !cert.names(san));
                let replace = lacks || renew::due(cert.not_after, limit, self.now);
                if !replace {
                    self.note_due(cert.not_after, ca.signer.as_ref().map(|(ca, _)| ca.not_after));
                }
                Ok((cert, replace))
            }
        }
    }

    fn sign_leaf(
        &mut self,
        file: RelPath,
        plan: &LeafPlan,
        key: &PrivateKey,
        ca: &CaState,
    ) -> anyhow::Result<(Vec<u8>, Cert)> {
        let (ca_cert, ca_key) = ca.signer.as_ref().context("sign without a CA key")?;
        let pem = issue::leaf_certificate(plan, key, ca_cert, ca_key, self.now)
            .with_context(|| format!("issue {}", self.path(file).display()))?
            .into_bytes();
        // Looked at like any other: a CA with a name that cannot be repeated exactly must not give a certificate that
        // nobody accepts.
        let certs = Cert::all_from_pem(&pem).map_err(anyhow::Error::msg).context("read back a certificate")?;
        check::leaf(&certs, key, self.path(file), ca, plan.usage, self.now)
            .map_err(|problem| anyhow::anyhow!("{file} that was just issued {problem}"))?;
        let cert = certs.into_iter().next().context("read back a certificate")?;
        self.note_due(cert.not_after, Some(ca_cert.not_after));
        Ok((pem, cert))
    }

    fn kubeconfig(&mut self, file: RelPath, server: &str, plan: &LeafPlan) -> anyhow::Result<()> {
        let Some(ca) = self.cas.remove(&plan.issuer) else {
            self.outcome.reports.push(Report { file, state: State::NotChecked, ours: false, cert: None });
            return Ok(());
        };
        let result = self.kubeconfig_of(file, server, plan, &ca);
        self.cas.insert(plan.issuer, ca);
        result
    }

    fn kubeconfig_of(&mut self, file: RelPath, server: &str, plan: &LeafPlan, ca: &CaState) -> anyhow::Result<()> {
        let reissuable = ca.signer.is_some();
        let key = match self.get(file) {
            Err(problem) => {
                self.refuse(file, file, problem, reissuable);
                return Ok(());
            }
            Ok(None) if !reissuable => {
                self.refuse(file, file, Problem::CannotIssue(ca.key_path.clone()), false);
                return Ok(());
            }
            Ok(None) => PrivateKey::generate().with_context(|| format!("make a key for {file}"))?,
            Ok(Some(read)) => match self.embedded(file, read, server, plan, ca) {
                Err(problem) => {
                    self.refuse(file, file, problem, reissuable);
                    return Ok(());
                }
                Ok(Embedded::Replace(key)) => key,
                Ok(Embedded::Keep(cert)) => {
                    self.good(file, read.ours, cert);
                    return Ok(());
                }
            },
        };
        let (pem, cert) = self.sign_leaf(file, plan, &key, ca)?;
        let text = kubeconfig::render(&plan.subject.common_name, server, &ca.pem, &pem, key.pem());
        self.write(file, text.into_bytes(), Some(cert));
        Ok(())
    }

    fn embedded(
        &mut self,
        file: RelPath,
        read: &ReadFile,
        server: &str,
        plan: &LeafPlan,
        ca: &CaState,
    ) -> Result<Embedded, Problem> {
        let config = kubeconfig::parse(&read.bytes).map_err(Problem::NotAKubeconfig)?;
        if let Some(pem) = &config.ca {
            let certs = Cert::all_from_pem(pem).map_err(Problem::NotACertificate)?;
            if certs.iter().any(Cert::is_damaged_root) {
                return Err(Problem::NotAKubeconfig("the CA in it was changed: its own signature is wrong".to_owned()));
            }
            let known = |cert: &Cert| ca.certs.iter().any(|ca| ca.public_bits == cert.public_bits);
            if !certs.iter().any(known) {
                return Err(Problem::NotSignedBy(ca.path.clone()));
            }
        }
        let (Some(cert), Some(key)) = (&config.cert, &config.key) else {
            return Ok(Embedded::Keep(None));
        };
        let key = PrivateKey::from_pem(key).map_err(Problem::NotAKey)?;
        let (cert, replace) = self.usable(cert, read.ours, &key, self.path(file), plan, ca)?;
        self.is_users(&cert, plan)?;
        let stale = read.ours && (config.server != server || config.ca.as_deref() != Some(&ca.pem));
        if replace || stale && ca.signer.is_some() {
            Ok(Embedded::Replace(key))
        } else {
            Ok(Embedded::Keep(Some(cert)))
        }
    }

    /// A user of another name is the operator's choice; one whose kubeconfig is another file was put here by mistake,
    /// and would have that file's rights.
    fn is_users(&self, cert: &Cert, plan: &LeafPlan) -> Result<(), Problem> {
        let needs = &plan.subject.common_name;
        let has = cert.common_name.clone().unwrap_or_default();
        let others = self.plan.iter().any(
            |item| matches!(item, Item::Kubeconfig { leaf, .. } if leaf.subject.common_name == has && has != *needs),
        );
        if others { Err(Problem::WrongUser { has, needs: needs.clone() }) } else { Ok(()) }
    }

    fn service_account(&mut self) -> anyhow::Result<()> {
        let (key, public) = match (self.key(SA_KEY), self.get(SA_PUB)) {
            (Ok(key), Ok(public)) => (key, public),
            (Err(problem), _) => {
                self.refuse(SA_PUB, SA_KEY, problem, false);
                return Ok(());
            }
            (_, Err(problem)) => {
                self.refuse(SA_PUB, SA_PUB, problem, true);
                return Ok(());
            }
        };
        let key_path = self.path(SA_KEY);
        match (key, public) {
            (None, None) => {
                let key = PrivateKey::generate().context("make sa.key")?;
                self.write_key(SA_KEY, &key);
                self.write(SA_PUB, key.public_pem().into_bytes(), None);
            }
            (Some(key), None) => self.write(SA_PUB, key.public_pem().into_bytes(), None),
            (None, Some(_)) => self.refuse(SA_PUB, SA_PUB, Problem::KeyMissing(key_path), false),
            (Some(key), Some(read)) => match public_keys_of(&read.bytes) {
                Err(why) => self.refuse(SA_PUB, SA_PUB, Problem::NotAPublicKey(why), true),
                Ok(keys) if keys.iter().any(|bits| bits == key.public_bits()) => self.good(SA_PUB, read.ours, None),
                Ok(_) => self.refuse(SA_PUB, SA_PUB, Problem::KeyMismatch(key_path), true),
            },
        }
        Ok(())
    }

    fn exposed_keys(&mut self) {
        let exposed: Vec<_> = self
            .contents
            .iter()
            .filter(|(file, _)| file.ends_with(".key") || file.ends_with(".conf"))
            .filter(|(_, content)| matches!(content, Content::Read(read) if read.exposed))
            .map(|(file, _)| self.path(file).display().to_string())
            .collect();
        if !exposed.is_empty() {
            self.outcome.warnings.push(format!(
                "private keys can be read by their group or by others (a mounted Secret wants defaultMode 0400): {}",
                exposed.join(", ")
            ));
        }
    }
}

enum Embedded {
    Keep(Option<Cert>),
    Replace(PrivateKey),
}
