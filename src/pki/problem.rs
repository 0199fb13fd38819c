//! Why files in the PKI directory cannot be used, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::plan::Usage;
use crate::exit::{Exit, refuse};

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It cannot be read at all: permissions, not a regular file, too large.
    Unreadable(String),
    /// It holds no certificate that can be read.
    NotACertificate(String),
    /// It holds no private key that can be used.
    NotAKey(String),
    /// It holds no public key that can be read.
    NotAPublicKey(String),
    /// It is not a kubeconfig.
    NotAKubeconfig(String),
    /// The certificate or public key belongs to another key.
    KeyMismatch(PathBuf),
    /// Another CA signed it.
    NotSignedBy(PathBuf),
    /// It is used as a CA and is none.
    NotACa,
    /// Its validity has ended.
    Expired(OffsetDateTime),
    /// Its validity has not begun.
    NotYetValid(OffsetDateTime),
    /// It may not be used for what it is needed for.
    WrongUsage {
        /// What the certificate allows.
        has: Usage,
        /// What it is needed for.
        needs: Usage,
    },
    /// It is the kubeconfig of somebody else in the plan: two files were exchanged.
    WrongUser {
        /// Whom it names.
        has: String,
        /// Whom it should name.
        needs: String,
    },
    /// The certificate or public key is here, its private key is not.
    KeyMissing(PathBuf),
    /// Files that this CA signed are here, the CA is not.
    CaMissing(PathBuf),
    /// It is missing and cannot be issued, since the CA's key is not here.
    CannotIssue(PathBuf),
    /// It is missing, and only a check was asked for.
    Missing,
    /// It is missing, and the directory cannot be written.
    ReadOnly(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Problem::NotACertificate(why) => write!(f, "is not a certificate: {why}"),
            Problem::NotAKey(why) => write!(f, "is not a usable private key: {why}"),
            Problem::NotAPublicKey(why) => write!(f, "is not a public key: {why}"),
            Problem::NotAKubeconfig(why) => write!(f, "is not a kubeconfig: {why}"),
            Problem::KeyMismatch(key) => write!(f, "does not belong to the private key {}", key.display()),
            Problem::NotSignedBy(ca) => write!(f, "was not signed by {}", ca.display()),
            Problem::NotACa => f.write_str("is used as a CA, but may not sign certificates"),
            Problem::Expired(at) => write!(f, "expired at {at}"),
            Problem::NotYetValid(at) => write!(f, "is not valid before {at}"),
            Problem::WrongUsage { has, needs } => write!(f, "is for {has}, but needed for {needs}"),
            Problem::WrongUser { has, needs } => write!(f, "is the kubeconfig of {has}, not of {needs}"),
            Problem::KeyMissing(key) => write!(f, "is here, but its private key {} is missing", key.display()),
            Problem::CaMissing(leaf) => write!(f, "is missing, but {}, which it signed, is here", leaf.display()),
            Problem::CannotIssue(key) => {
                write!(f, "is missing and cannot be issued, because {} is missing too", key.display())
            }
            Problem::Missing => f.write_str("is missing"),
            Problem::ReadOnly(why) => write!(f, "is missing, and it cannot be written: {why}"),
        }
    }
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
    /// Whether it would be issued anew if it were removed: it is no CA, and its CA's key is here.
    pub reissuable: bool,
}

impl Refusal {
    pub(super) fn new(path: &Path, problem: Problem) -> Refusal {
        Refusal { path: path.to_owned(), problem, reissuable: false }
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        let file = self.path.display();
        let replace = |with: &str| {
            let or = if self.reissuable { ", or remove it to have one issued" } else { "" };
            format!("replace {file} by {with}{or}")
        };
        match &self.problem {
            Problem::Unreadable(_) => format!("make {file} a regular file that this user can read"),
            Problem::NotACertificate(_) => replace("the right certificate in PEM form"),
            Problem::NotAKey(_) if self.reissuable => format!(
                "restore {file} from a backup; if it is lost, remove it together with its certificate to have both \
                 issued anew"
            ),
            Problem::NotAKey(_) => format!("restore {file} from a backup"),
            Problem::NotAPublicKey(_) => format!("remove {file}; it is made anew from the private key"),
            Problem::NotAKubeconfig(_) => replace("a kubeconfig"),
            Problem::KeyMismatch(key) if self.reissuable => format!(
                "restore the two that belong together; if {} is the right key, remove {file} to have it issued anew",
                key.display()
            ),
            Problem::KeyMismatch(_) => "restore the two that belong together".to_owned(),
            Problem::NotSignedBy(ca) if self.reissuable => format!(
                "restore the CA that signed it; if {} is the right CA, remove {file} to have it issued anew",
                ca.display()
            ),
            Problem::NotSignedBy(_) => "restore the CA that signed it".to_owned(),
            Problem::NotACa => format!("put the CA's own certificate at {file}"),
            Problem::Expired(_) => format!("check this machine's clock; if it is right, {}", replace("a valid one")),
            Problem::NotYetValid(_) => {
                format!("check this machine's clock; if it is right, {}", replace("one that is valid now"))
            }
            Problem::WrongUser { needs, .. } => replace(&format!("the kubeconfig of {needs}")),
            Problem::WrongUsage { .. } => replace("one with the needed extended key usage"),
            Problem::KeyMissing(key) if self.reissuable => {
                format!("restore {}; if it is lost, remove {file} to have both issued anew", key.display())
            }
            Problem::KeyMissing(key) => format!("restore {}", key.display()),
            Problem::CaMissing(leaf) => {
                format!("restore {file}; if it is lost, remove {} and all else that it signed", leaf.display())
            }
            Problem::CannotIssue(key) => format!("provide {file}, or {} to have it issued", key.display()),
            Problem::Missing => "run syncer certs without --check to have it issued".to_owned(),
            Problem::ReadOnly(_) => {
                "mount a directory that is complete, or one that can be written to have the rest issued".to_owned()
            }
        }
    }
}

/// One error for all refusals: the first in full, the others counted.
pub(super) fn refused(refusals: &[Refusal]) -> anyhow::Error {
    let Some(first) = refusals.first() else {
        return anyhow::anyhow!("a refusal without a reason");
    };
    let more = match refusals.len() - 1 {
        0 => String::new(),
        1 => " (and one more file: see syncer certs --check)".to_owned(),
        n => format!(" (and {n} more files: see syncer certs --check)"),
    };
    let what = format!("{} {}{more}", first.path.display(), first.problem);
    refuse(Exit::RefusedPki, what, first.remedy())
}
