//! What of a PKI all pods share: the CAs and the key pair of service account tokens. Every other certificate is issued by
//! each pod itself, by the CA that it shares.
//!
//! k0s issues its certificates itself, by the CAs and the key pair that it finds in its PKI directory; these are shared too.
//!
//! In the Secret each file is under vCluster's key for it ([`secret_key`]), so that either finds what the other has put
//! there. The record of what syncer issued goes with them: without it nobody would renew an adopted CA.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::{AccessFlags, access};
use time::OffsetDateTime;

use super::cert::Cert;
use super::issue;
use super::key::{PrivateKey, public_keys_of};
use super::layout::{RECORD, RelPath, SA_KEY, SA_PUB, read_pem, secret_key};
use super::plan::{self, CaName, Input, Item};
use super::record::Record;
use super::store::{Content, NewFile, ReadFile, Store};
use crate::disk::{Disk, parent_of};
use crate::host::secret::SecretData;
use crate::host::share::{Fact, Local, Naming, Print, Sharing, There};
use crate::settings::Distro;

/// One thing that all pods share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// A CA, with its key.
    Ca(CaName),
    /// The key pair of service account tokens.
    ServiceAccount,
}

impl Shared {
    /// Its certificate or public key, and its private key.
    const fn files(self) -> (RelPath, RelPath) {
        match self {
            Shared::Ca(name) => (name.pair().cert, name.pair().key),
            Shared::ServiceAccount => (SA_PUB, SA_KEY),
        }
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shared::Ca(CaName::Etcd) => "CA of etcd",
            Shared::Ca(CaName::Kubernetes) => "CA of the virtual cluster",
            Shared::Ca(CaName::FrontProxy) => "CA of the front proxy",
            Shared::ServiceAccount => "key pair of service account tokens",
        })
    }
}

/// What k0s issues by.
const OF_K0S: [Shared; 3] = [Shared::Ca(CaName::Kubernetes), Shared::Ca(CaName::FrontProxy), Shared::ServiceAccount];

/// Which CAs and key pair for tokens are in this folder of k0s', told apart by their keys. `None`: not all of them.
pub fn of_k0s(dir: &Path) -> Option<String> {
    let print = |item: &Shared| {
        let (public, key) = item.files();
        let (public, key) = (read_pem(&dir.join(public)).ok()?, read_pem(&dir.join(key)).ok()?);
        // Of what is no key nothing else can be said than whether it is the same.
        let bits = PrivateKey::from_pem(&key).map_or(public, |key| key.public_bits().to_vec());
        Some(Print::of(&bits).to_string())
    };
    let prints: Option<Vec<_>> = OF_K0S.iter().map(print).collect();
    Some(prints?.join(", "))
}

/// The shared part of a PKI directory.
pub struct SharedPki {
    store: Store,
    pki_dir: PathBuf,
    lasting_dir: Option<PathBuf>,
    volume: PathBuf,
    now: OffsetDateTime,
    /// What is shared; etcd's CA first.
    pub items: Vec<Shared>,
}

impl SharedPki {
    /// That of these settings, on the volume `data_dir`; what is made begins `now`. A plan that cannot be made shares nothing: whoever issues says so.
    pub fn of(input: &Input, data_dir: PathBuf, now: OffsetDateTime) -> SharedPki {
        let plan = plan::plan(input).unwrap_or_default();
        let items = plan.iter().filter_map(|item| match item {
            Item::Ca(name) => Some(Shared::Ca(*name)),
            Item::ServiceAccount => Some(Shared::ServiceAccount),
            Item::Leaf(..) | Item::Kubeconfig { .. } => None,
        });
        // k0s makes what it does not find there (`pkg/component/controller/certificates.go`), each pod another.
        let of_k0s = input.distro == Distro::K0s && input.lasting_dir.is_none();
        let of_k0s = of_k0s.then_some(OF_K0S);
        SharedPki {
            items: items.chain(of_k0s.into_iter().flatten()).collect(),
            store: Store::new(&input.pki_dir, input.lasting_dir.as_deref()),
            pki_dir: input.pki_dir.clone(),
            lasting_dir: input.lasting_dir.clone(),
            volume: data_dir,
            now,
        }
    }

    fn local(&self, item: Shared, record: &Record) -> Local {
        let (public, key) = item.files();
        let contents = self.store.read([public, key], record);
        let read = |file: RelPath| match contents.get(file) {
            None | Some(Content::Absent) => Ok(None),
            Some(Content::Read(read)) => Ok(Some(read)),
            Some(Content::Bad(_)) => Err(()),
        };
        let (Ok(public_file), Ok(key_file)) = (read(public), read(key)) else { return Local::Given };
        // What we have issued and placed is ours. The record does not speak of keys: one beside a certificate of ours is too.
        let placed = self.lasting_dir.is_some() && public_file.is_some_and(|read| read.ours);
        if !placed && [public, key].into_iter().any(|file| self.is_given(file)) {
            return Local::Given;
        }
        let bytes = |file: Option<&'_ ReadFile>| file.map(|read| read.bytes.clone());
        match print(item, bytes(public_file).as_deref(), bytes(key_file).as_deref()) {
            Ok(Some((print, whole))) => Local::Held { print, whole },
            Ok(None) => Local::Absent,
            // It is refused, with the file's name, when it is to be used.
            Err(_) => Local::Given,
        }
    }

    /// Whether a file that is here was mounted: it is on no volume of this pod's, or cannot be changed.
    fn is_given(&self, file: RelPath) -> bool {
        let live = self.pki_dir.join(file);
        let Ok(bytes) = fs::read(&live) else { return false };
        match &self.lasting_dir {
            Some(lasting) => fs::read(lasting.join(file)).ok() != Some(bytes),
            None => {
                let folder = parent_of(&live);
                let device = |path: &std::path::Path| fs::metadata(path).map(|meta| meta.dev()).ok();
                device(&folder) != device(&self.volume) || access(&folder, AccessFlags::W_OK).is_err()
            }
        }
    }
}

impl Sharing for SharedPki {
    type Item = Shared;

    fn facts(&self, secret: Option<&SecretData>) -> anyhow::Result<Vec<Fact<Shared>>> {
        let (record, _) = self.store.record();
        let fact = |item: &Shared| {
            let there = secret.map_or(There::Absent, |data| there(*item, data));
            Fact { item: *item, local: self.local(*item, &record), there }
        };
        Ok(self.items.iter().map(fact).collect())
    }

    fn content(&self, held: &[Shared], made: &[Shared], there: Option<&SecretData>) -> anyhow::Result<SecretData> {
        let mut data = SecretData::default();
        let mut put = |file: RelPath, bytes: Vec<u8>| drop(data.0.insert(secret_key(file), bytes));
        let (mine, _) = self.store.record();
        let mut record = there.map(record_in).unwrap_or_default();
        for item in held {
            let (public, key) = item.files();
            for (file, content) in self.store.read([public, key], &mine) {
                let Content::Read(read) = content else { continue };
                if read.ours {
                    record.replace(file, None, &read.bytes);
                }
                put(file, read.bytes);
            }
        }
        for item in made {
            let (public, key) = item.files();
            let new = PrivateKey::generate().with_context(|| format!("make {key}"))?;
            let made = match item {
                Shared::Ca(name) => issue::ca_certificate(*name, &new, self.now)?,
                Shared::ServiceAccount => new.public_pem(),
            };
            record.replace(public, None, made.as_bytes());
            put(public, made.into_bytes());
            put(key, new.pem().to_vec());
        }
        put(RECORD, record.to_json());
        Ok(data)
    }

    fn adopt(&self, items: &[Shared], secret: &SecretData, disk: &dyn Disk) -> anyhow::Result<()> {
        let issued = record_in(secret);
        let (mut record, _) = self.store.record();
        let files: Vec<_> = items.iter().flat_map(|item| <[RelPath; 2]>::from(item.files())).collect();
        let contents = self.store.read(files.iter().copied(), &record);
        let missing = files.into_iter().filter(|file| matches!(contents.get(file), None | Some(Content::Absent)));
        let mut new = Vec::new();
        for file in missing {
            let Some(bytes) = secret.0.get(&secret_key(file)).cloned() else { continue };
            if issued.issued(file, &bytes) {
                record.replace(file, None, &bytes);
            }
            new.push(NewFile { file, bytes, key: file.ends_with(".key") });
        }
        self.store.write(disk, &record, &contents, &new)
    }
}

impl Naming<Shared> for SharedPki {
    fn here(&self, item: Shared) -> String {
        let (public, _) = item.files();
        let home = self.lasting_dir.as_ref().unwrap_or(&self.pki_dir);
        home.join(public).display().to_string()
    }

    fn there(&self, item: Shared) -> String {
        let (public, key) = item.files();
        format!("{} and {}", secret_key(public), secret_key(key))
    }

    fn given(&self) -> &'static str {
        "mount one PKI into every pod (`syncer certs` makes one), which wins"
    }
}

/// The record that goes with what syncer has put there. A damaged one is none.
fn record_in(secret: &SecretData) -> Record {
    secret.0.get(&secret_key(RECORD)).and_then(|bytes| Record::from_json(bytes).ok()).unwrap_or_default()
}

/// What a Secret with this content has of one thing.
pub fn there(item: Shared, data: &SecretData) -> There {
    let (public, key) = item.files();
    let get = |file: RelPath| data.0.get(&secret_key(file)).map(Vec::as_slice).filter(|bytes| !bytes.is_empty());
    let (cert, private) = (get(public), get(key));
    match print(item, cert, private) {
        Ok(None) => There::Absent,
        Ok(Some((print, true))) => There::Whole(print),
        Ok(Some((print, false))) => There::Part(print),
        Err(why) => There::Bad(why),
    }
}

/// Which it is, by its public key, and whether it is all there. The public half of a key pair follows from the other.
fn print(item: Shared, public: Option<&[u8]>, key: Option<&[u8]>) -> Result<Option<(Print, bool)>, String> {
    let key = key.map(PrivateKey::from_pem).transpose()?;
    let public = match (item, public) {
        (_, None) => None,
        (Shared::Ca(_), Some(pem)) => Some(Cert::all_from_pem(pem)?.into_iter().map(|cert| cert.public_bits).collect()),
        (Shared::ServiceAccount, Some(pem)) => Some(public_keys_of(pem)?),
    };
    let whole = key.is_some() && (public.is_some() || item == Shared::ServiceAccount);
    let bits = match (&key, &public) {
        (Some(key), Some(public)) if !public.iter().any(|bits| bits == key.public_bits()) => {
            return Err("the two do not belong together".to_owned());
        }
        (Some(key), _) => key.public_bits().to_vec(),
        (None, Some(public)) => public.first().cloned().unwrap_or_default(),
        (None, None) => return Ok(None),
    };
    Ok(Some((Print::of(&bits), whole)))
}
