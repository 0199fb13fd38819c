//! The whole of it: plan, read, check and issue, write.

use std::time::Duration;

use anyhow::Context;
use time::OffsetDateTime;

use super::check;
use super::complete::{complete, files};
use super::layout::{ETCD_PEER, PkiPaths, RelPath};
use super::outcome::{Outcome, Report, State};
use super::plan::{self, Input};
use super::problem::{Problem, Refusal, refused};
use super::renew;
use super::sans;
use super::store::Store;
use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::settings::Settings;
use crate::supervise::spec::Role;

/// A PKI directory that is complete and sound.
#[derive(Clone, Debug)]
pub struct Pki {
    /// Where its files are.
    pub paths: PkiPaths,
    /// Whether etcd must be told not to compare its callers' addresses with the names in their certificate
    /// (`--peer-skip-client-san-verification`), because the certificate was issued by others without our names.
    pub peer_skip_san: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Each certificate, in the plan's order.
    pub reports: Vec<Report>,
    next_due: Option<OffsetDateTime>,
}

impl Pki {
    /// Certificates and kubeconfigs that were replaced in this pass.
    pub fn renewed(&self) -> Vec<RelPath> {
        self.reports.iter().filter(|report| report.state == State::Renewed).map(|report| report.file).collect()
    }

    /// Who must be restarted to use what was replaced in this pass. Nobody at start, when nobody runs yet.
    pub fn restart(&self) -> Vec<Role> {
        renew::restart(&self.renewed())
    }

    /// How long to sleep until [`ensure`] is to be called again to renew what is then due: at most twelve hours.
    pub fn next_check(&self, now: OffsetDateTime) -> Duration {
        renew::wait(self.next_due, now)
    }
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Issue what is missing, renew what is due.
    Ensure,
    /// Look only.
    Check,
}

/// Checks the PKI directory of these settings, issues what is missing and renews what is ours and due. Call it before
/// anything is started, and again after [`Pki::next_check`]; it does nothing if there is nothing to do.
///
/// # Errors
/// [`Exit::RefusedPki`], naming the file and the remedy, if a file cannot be used or what is missing cannot be issued;
/// nothing was written then. Other errors are of the disk.
pub fn ensure(settings: &Settings, disk: &dyn Disk, now: OffsetDateTime) -> anyhow::Result<Pki> {
    let input = Input::of(settings);
    let (pki, refusals) = ensure_input(&input, disk, now, Mode::Ensure)?;
    if !refusals.is_empty() {
        return Err(refused(&refusals)).with_context(|| format!("use the PKI directory {}", input.pki_dir.display()));
    }
    for report in pki.reports.iter().filter(|r| matches!(r.state, State::Issued | State::Renewed)) {
        let until = report.cert.as_ref().map(|cert| cert.not_after.to_string());
        let verb = if report.state == State::Issued { "issued" } else { "renewed" };
        tracing::info!(file = report.file, until, "certificate {verb}");
    }
    Ok(pki)
}

/// As [`ensure`], and gives the refusals as values beside what was found, for `syncer certs`. In [`Mode::Check`] a file
/// that would be issued is a refusal, and nothing is written.
pub fn ensure_input(
    input: &Input,
    disk: &dyn Disk,
    now: OffsetDateTime,
    mode: Mode,
) -> anyhow::Result<(Pki, Vec<Refusal>)> {
    let plan = plan::plan(input)
        .map_err(|e| refuse(Exit::Usage, e.to_string(), "correct the names, --tls-san or the Service range"))?;
    let store = Store::new(&input.pki_dir, input.lasting_dir.as_deref());
    let (record, damaged) = store.record();
    let contents = store.read(files(&plan), &record);
    let mut outcome = complete(&plan, &store, &contents, &record, now)?;
    outcome.warnings.extend(damaged);
    match mode {
        Mode::Check => as_missing(&store, &mut outcome),
        Mode::Ensure if outcome.refusals.is_empty() => {
            store.write(disk, &outcome.record, &contents, &outcome.new)?;
        }
        Mode::Ensure => as_not_written(&mut outcome),
    }

    let peer = outcome.reports.iter().find(|report| report.file == ETCD_PEER.cert).and_then(|r| r.cert.as_ref());
    let path = store.path(ETCD_PEER.cert);
    let names = peer.map(|cert| check::peer_names(&path, cert, &sans::peer_names(input))).unwrap_or_default();
    outcome.warnings.extend(names.warning);
    let pki = Pki {
        paths: PkiPaths::new(&input.pki_dir),
        peer_skip_san: names.skip_san,
        warnings: outcome.warnings,
        reports: outcome.reports,
        next_due: outcome.next_due,
    };
    Ok((pki, outcome.refusals))
}

/// What would be issued is missing; what would be renewed is as it is.
fn as_missing(store: &Store, outcome: &mut Outcome) {
    for report in &mut outcome.reports {
        match report.state {
            State::Issued => {
                report.state = State::Refused(Problem::Missing);
                report.cert = None;
                outcome.refusals.push(Refusal::new(&store.path(report.file), Problem::Missing));
            }
            State::Renewed => report.state = State::Due,
            _ => {}
        }
    }
}

/// Nothing is written if anything was refused.
fn as_not_written(outcome: &mut Outcome) {
    for report in &mut outcome.reports {
        match report.state {
            State::Issued => (report.state, report.cert) = (State::Missing, None),
            State::Renewed => report.state = State::Due,
            _ => {}
        }
    }
}
