//! `syncer certs`: issues or checks a PKI directory and shows what is in it, or the Secret by which pods share it.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ensure::{Mode, ensure_input};
use super::outcome::{Report, State};
use super::plan::Input;
use super::problem::{Refusal, refused};
use super::shared::{SharedPki, there};
use crate::disk::Disk;
use crate::exit::{Exit, refuse};
use crate::host::secret;
use crate::host::share::{Sharing, There};
use crate::settings::Settings;
use crate::settings::flags::Flags;

/// Arguments of `syncer certs`.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Settings, as `syncer start` has them.
    #[command(flatten)]
    pub flags: Flags,

    /// Directory to issue into or to check, complete with etcd's files. Default: the PKI directory of the settings.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Only check: nothing is written; exit 6 if a file is missing or cannot be used.
    #[arg(long)]
    pub check: bool,

    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    Text,
    /// JSON, with every name.
    Json,
    /// The Secret `<name>-certs` for `kubectl apply -f -`: what all pods share, private keys included, under vCluster's keys.
    /// Pods with the host cluster's API adopt it and issue the rest themselves.
    Secret,
}

/// Issues what is missing, or checks. Gives what is to be printed, and the refusal if there is one: what was found is
/// shown in either case.
///
/// # Errors
/// As [`super::ensure`], if there is nothing to show.
pub fn run(
    args: &Args,
    settings: &Settings,
    disk: &dyn Disk,
    now: OffsetDateTime,
) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let mut input = Input::of(settings);
    if let Some(dir) = &args.dir {
        input = Input { pki_dir: dir.clone(), lasting_dir: None, etcd: true, ..input };
    }
    let mode = if args.check { Mode::Check } else { Mode::Ensure };
    let (pki, refusals) = ensure_input(&input, disk, now, mode)?;
    let rows: Vec<Row> = pki.reports.iter().map(Row::of).collect();
    let text = match args.output {
        Output::Text => table(pki.paths.dir(), &rows, &pki.warnings, &refusals),
        Output::Json => json(pki.paths.dir(), rows, &pki.warnings, &refusals),
        Output::Secret if refusals.is_empty() => secret(&input, settings, now)?,
        // A part of it would be taken for the whole.
        Output::Secret => String::new(),
    };
    Ok((text, if refusals.is_empty() { Ok(()) } else { Err(refused(&refusals)) }))
}

#[derive(Serialize)]
struct Row {
    file: &'static str,
    state: &'static str,
    issued_by_syncer: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(flatten)]
    cert: Option<CertRow>,
}

#[derive(Serialize)]
struct CertRow {
    subject: String,
    issuer: String,
    not_before: String,
    not_after: String,
    sans: Vec<String>,
}

impl Row {
    fn of(report: &Report) -> Row {
        let (state, problem) = match &report.state {
            State::Good => ("good", None),
            State::Issued => ("issued", None),
            State::Renewed => ("renewed", None),
            State::Due => ("due", None),
            State::Missing => ("missing", None),
            State::NotChecked => ("not checked", None),
            State::Refused(problem) => ("refused", Some(problem.to_string())),
        };
        let cert = report.cert.as_ref().map(|cert| CertRow {
            subject: cert.subject.clone(),
            issuer: cert.issuer.clone(),
            not_before: rfc3339(cert.not_before),
            not_after: rfc3339(cert.not_after),
            sans: cert.sans.iter().map(ToString::to_string).collect(),
        });
        Row { file: report.file, state, issued_by_syncer: report.ours, problem, cert }
    }
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

fn table(dir: &std::path::Path, rows: &[Row], warnings: &[String], refusals: &[Refusal]) -> String {
    let mut lines = vec![["FILE", "STATE", "EXPIRES", "SUBJECT", "ISSUER", "NAMES"].map(str::to_owned)];
    for row in rows {
        let cert = row.cert.as_ref();
        let names = match cert.map(|cert| cert.sans.as_slice()) {
            None | Some([]) => "-".to_owned(),
            Some(all) if all.len() <= 3 => all.join(","),
            Some(all) => format!("{} and {} more", all[..3].join(","), all.len() - 3),
        };
        let of = |get: fn(&CertRow) -> &String| cert.map_or("-".to_owned(), |cert| get(cert).clone());
        lines.push([
            row.file.to_owned(),
            row.state.to_owned(),
            of(|cert| &cert.not_after),
            of(|cert| &cert.subject),
            of(|cert| &cert.issuer),
            names,
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut text = format!("{}\n", dir.display());
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for refusal in refusals {
        let _ = writeln!(text, "refused: {} {}; {}", refusal.path.display(), refusal.problem, refusal.remedy());
    }
    text
}

fn secret(input: &Input, settings: &Settings, now: OffsetDateTime) -> anyhow::Result<String> {
    let pki = SharedPki::of(input, settings.data_dir.clone(), now);
    let data = pki.content(&pki.items, &[], None).context("read what all pods share")?;
    if let Some(item) = pki.items.iter().find(|item| !matches!(there(**item, &data), There::Whole(_) | There::Absent)) {
        return Err(refuse(
            Exit::RefusedPki,
            format!("the {item} in {} has no private key beside it, or another's", input.pki_dir.display()),
            "put the key there: with a part of it no pod can be given the rest",
        ));
    }
    let manifest = data.manifest(&secret::certs_of(&settings.name), &settings.namespace);
    serde_yaml::to_string(&manifest).map_err(|e| anyhow::anyhow!("write the Secret as YAML: {e}"))
}

fn json(dir: &std::path::Path, rows: Vec<Row>, warnings: &[String], refusals: &[Refusal]) -> String {
    let refusals: Vec<_> = refusals
        .iter()
        .map(|refusal| {
            serde_json::json!({
                "path": refusal.path.display().to_string(),
                "problem": refusal.problem.to_string(),
                "remedy": refusal.remedy(),
            })
        })
        .collect();
    let document = serde_json::json!({
        "dir": dir.display().to_string(),
        "files": rows,
        "warnings": warnings,
        "refusals": refusals,
    });
    format!("{document:#}\n")
}
