//! What going through the plan found, and what is to be written.

use time::OffsetDateTime;

use super::cert::Cert;
use super::layout::RelPath;
use super::problem::{Problem, Refusal};
use super::record::Record;
use super::store::NewFile;

/// What a file is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was there and is good.
    Good,
    /// It was missing and was issued.
    Issued,
    /// It was ours and was replaced.
    Renewed,
    /// It is ours and due, and was not replaced because only a check was asked for or another file was refused.
    Due,
    /// It is missing and was not issued because another file was refused.
    Missing,
    /// It was not looked into, because its CA was refused.
    NotChecked,
    /// It cannot be used.
    Refused(Problem),
}

/// One file of the plan that holds a certificate or public key.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file.
    pub file: RelPath,
    /// What it is like.
    pub state: State,
    /// Whether we issued it.
    pub ours: bool,
    /// Its certificate, if it holds one that was read.
    pub cert: Option<Cert>,
}

/// The outcome of going through the plan.
#[derive(Default)]
pub struct Outcome {
    /// Every file with a certificate or public key, in the plan's order.
    pub reports: Vec<Report>,
    /// What cannot be used. If there is any, nothing is to be written.
    pub refusals: Vec<Refusal>,
    /// What is to be written, in this order but for keys, which come first.
    pub new: Vec<NewFile>,
    /// The record with what is to be written.
    pub record: Record,
    /// When the first of our certificates becomes due.
    pub next_due: Option<OffsetDateTime>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}
