//! `syncer migrate`: a store from one form to another, offline.

use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use nix::unistd::{AccessFlags, access};
use serde_json::{Value, json};

use super::commit::with_suffix;
use super::estimate::{Estimate, estimate};
use super::journal::Journal;
use super::journey::{self, Commit, Journey, Outcome};
use super::origin::{KINDS, Kind, Origin, SourceFlags, WAIT_FOR_HOLDER, absolute};
use super::progress::Show;
use super::sink::{Made, Target};
use super::verify::Verify;
use super::{to_datadir, to_sqlite};
use crate::datadir::MemberIdentity;
use crate::datadir::identity::IdentityError;
use crate::datadir::lock::{LOCK_FILE, LockError, PassingLock};
use crate::disk::{Disk, parent_of};
use crate::exit::{Exit, refuse};
use crate::settings::flags::LogFlags;

/// The command's arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to read.
    #[arg(long, value_name = "KIND:PLACE", help = sources_help())]
    pub from: Place,
    /// What to make.
    #[arg(long, value_name = "KIND:PLACE", help = targets_help())]
    pub to: Place,
    /// Read everything and say what would happen; nothing of it stays. The snapshot of a running etcd or of a bucket, and a copy
    /// of a data dir whose log etcd must replay, are written beside the target for that time; 256 MiB of the volume are left free.
    #[arg(long)]
    pub dry_run: bool,
    /// How thoroughly to compare the target, a running etcd or the file read back, with the source before it is put in
    /// place.
    #[arg(long, value_enum, default_value_t = Verify::Hash)]
    pub verify: Verify,
    /// Form of the report on standard output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Afterwards rename the source to state.db.migrated, as `syncer start` does. Otherwise it stays as it is.
    #[arg(long)]
    pub rename_source: bool,
    /// Raise the store's revision by so many, and compact up to there: for a store that is older than what its clients
    /// have seen, so that they list anew. More than there can be missing revisions, such as 1000000000.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..=1 << 60))]
    pub bump_revision: i64,
    /// Name of the new cluster's one member.
    #[arg(long, default_value = "default")]
    pub name: String,
    /// Peer URL of the member. It enters into its ID, together with the token.
    #[arg(long, default_value = "https://localhost:2380")]
    pub peer_url: String,
    /// Client URL that the member advertises.
    #[arg(long, default_value = "https://localhost:2379")]
    pub client_url: String,
    /// Token of the new cluster; random unless given, so that no two clusters are taken for each other.
    #[arg(long)]
    pub token: Option<String>,
    /// The etcd program: it verifies a new data dir, and replays the log of one that was killed.
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    pub etcd: PathBuf,
    /// How the source is read.
    #[command(flatten)]
    pub source: SourceFlags,
    /// What is logged.
    #[command(flatten)]
    pub log: LogFlags,
}

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// A kind of store that is made.
pub struct TargetKind {
    /// The word before the colon.
    pub name: &'static str,
    /// What is made, for the command's help.
    pub help: &'static str,
    /// Makes it of a store at a path, as the arguments say; gives what is to be written to standard output.
    pub make: fn(disk: &dyn Disk, args: &Args, source: Origin, path: PathBuf) -> anyhow::Result<String>,
}

/// What `syncer migrate` makes.
const TARGETS: [&TargetKind; 2] = [&to_datadir::KIND, &to_sqlite::KIND];

/// The kinds of source, as they are written, each with what `tell` makes of it.
fn sources(tell: impl Fn(&Kind) -> String) -> Vec<String> {
    KINDS.iter().map(|kind| format!("{}:{}{}", kind.name, kind.place, tell(kind))).collect()
}

/// The kinds of target.
fn targets(tell: impl Fn(&TargetKind) -> String) -> Vec<String> {
    TARGETS.iter().map(|kind| format!("{}:PATH{}", kind.name, tell(kind))).collect()
}

fn sources_help() -> String {
    format!("What to read: {}", sources(|kind| format!(", {}", kind.help)).join("; "))
}

fn targets_help() -> String {
    format!("What to make: {}", targets(|kind| format!(", {}", kind.help)).join("; "))
}

/// A store of a known kind, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What stands before the colon.
    pub kind: &'static str,
    /// What stands behind it.
    pub place: String,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, place) = text.split_once(':').unwrap_or_default();
        let mut known = KINDS.iter().map(|kind| kind.name).chain(TARGETS.iter().map(|kind| kind.name));
        match (known.find(|known| *known == kind), place) {
            (_, "") if text.ends_with(':') => Err("nothing stands behind the colon".to_owned()),
            (Some(kind), place) => Ok(Place { kind, place: place.to_owned() }),
            _ if kind == "s3" => Err("must be snapshot:s3://BUCKET/PREFIX/NAME.db".to_owned()),
            _ => {
                let [from, to] = [sources(|_| String::new()), targets(|_| String::new())].map(|kinds| kinds.join(", "));
                Err(format!("must be one of {from} to read from, and one of {to} to write to"))
            }
        }
    }
}

/// Runs the command; gives what is to be written to standard output.
pub fn run(disk: &dyn Disk, args: &Args) -> anyhow::Result<String> {
    let none = || {
        let [from, to] = [sources(|_| String::new()), targets(|_| String::new())].map(|kinds| kinds.join(", "));
        args.not_yet(format!("--from takes {from}, and --to {to}"))
    };
    let source = KINDS.iter().find(|kind| kind.name == args.from.kind).ok_or_else(none)?;
    let source = (source.at)(&args.from.place, &args.source)?;
    let target = TARGETS.iter().find(|kind| kind.name == args.to.kind).ok_or_else(none)?;
    if args.rename_source && !source.is_renamed() {
        let what = "--rename-source renames a state.db alone";
        return Err(refuse(Exit::Usage, what, "leave it out: the source stays as it is"));
    }
    let path = absolute(&args.to.place)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
        let what = format!("the folder {} does not exist", folder.display());
        return Err(refuse(Exit::Usage, what, "make it first, or choose another place"));
    }
    (target.make)(disk, args, source, path)
}

impl Args {
    /// The new cluster's one member.
    pub(super) fn identity(&self) -> anyhow::Result<MemberIdentity> {
        let identity = MemberIdentity {
            name: self.name.clone(),
            peer_urls: vec![self.peer_url.clone()],
            client_urls: vec![self.client_url.clone()],
            token: self.token.clone().unwrap_or_else(fresh_token),
        };
        identity.check().map_err(|e| {
            let (flag, remedy) = match &e {
                IdentityError::NoName | IdentityError::BadName(_) => ("--name", "give a name such as vc-0"),
                IdentityError::BadUrl(url) if *url != self.peer_url => {
                    ("--client-url", "write it as https://HOST:2379")
                }
                IdentityError::BadUrl(_) | IdentityError::NoPeerUrl(_) => {
                    ("--peer-url", "write it as https://HOST:2380")
                }
            };
            refuse(Exit::Usage, format!("{flag}: {e}"), remedy)
        })?;
        Ok(identity)
    }

    /// The refusal of a way that there is not.
    pub(super) fn not_yet(&self, remedy: impl Into<String>) -> anyhow::Error {
        let what = format!("moving {} to {} is not in this release", self.from.kind, self.to.kind);
        refuse(Exit::Usage, what, remedy)
    }

    /// A journey of this command's arguments.
    pub(super) fn journey<T: Target>(&self, source: Origin, target: T) -> Journey<T> {
        Journey {
            journal: with_suffix(target.path(), ".migration.journal"),
            source,
            target,
            etcd: self.etcd.clone(),
            verify: self.verify,
            commit: if self.rename_source { Commit::RenameSource } else { Commit::KeepSource },
            spare: 0,
            show: Show::Auto,
            lock: None,
        }
    }
}

/// Goes the journey, or only looks, and reports.
pub(super) fn go<T: Target>(disk: &dyn Disk, args: &Args, mut journey: Journey<T>) -> anyhow::Result<String> {
    let (from, to) = (journey.source.path().to_owned(), journey.target.path().to_owned());
    let before = |journey: &Journey<T>, journal: &Journal| match (journey.target.otherwise(journal), args.output) {
        (Some(otherwise), _) => Err(refuse(
            Exit::RefusedDataDir,
            format!("{} was moved to {} before, {otherwise}", from.display(), to.display()),
            format!(
                "go on with {} as it is; or, if nothing was served from it, move it and {} aside{}, and try again",
                to.display(),
                journey.journal.display(),
                if journal.renames {
                    ", rename the source back (state.db.migrated, with its -wal and -shm)"
                } else {
                    ""
                }
            ),
        )),
        (None, Output::Text) => Ok(format!(
            "{} was moved to {} before; nothing is left to do, whatever member or verification is asked for now\n",
            from.display(),
            to.display()
        )),
        (None, Output::Json) => Ok(format!("{:#}\n", json!({ "movedBefore": true, "journal": journal }))),
    };
    // Before a lock is made in the target's folder.
    journey::apart(&journey)?;
    if args.dry_run {
        if let Some(journal) = journey::made(&journey)? {
            return before(&journey, &journal);
        }
        journey::admit(&journey)?;
        writable(&parent_of(&to))?;
        let found = estimate(disk, &journey.source, &journey.target, &args.etcd, Show::Auto)?;
        return Ok(match args.output {
            Output::Text => estimate_text(&found),
            Output::Json => format!("{:#}\n", found.json()?),
        });
    }
    let lock = lock(&to)?;
    journey.lock = Some(lock.shared());
    if let Some(journal) = journey::finish(disk, &journey)? {
        return before(&journey, &journal);
    }
    let outcome = journey::run(disk, &journey)?;
    Ok(match args.output {
        Output::Text => outcome_text(&journey, &outcome),
        Output::Json => format!("{:#}\n", outcome_json(&journey, &outcome)),
    })
}

/// Keeps pods and other migrations away from where the target is to be: a pod's volume has the same lock.
fn lock(target: &Path) -> anyhow::Result<PassingLock> {
    let folder = parent_of(target);
    PassingLock::acquire(&folder.join(LOCK_FILE), WAIT_FOR_HOLDER).map_err(|error| match error {
        LockError::Held { .. } => refuse(
            Exit::RefusedLocked,
            format!("a syncer runs, or makes something else, in {}: {error}", folder.display()),
            "let that one end, or stop it; or choose another place",
        ),
        LockError::Io { source, .. }
            if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
        {
            not_writable(&folder, &source)
        }
        error => anyhow::Error::from(error),
    })
}

/// Refuses a folder in which nothing can be made, before the source is read for nothing.
fn writable(folder: &Path) -> anyhow::Result<()> {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| not_writable(folder, &error.into()))
}

fn not_writable(folder: &Path, why: &io::Error) -> anyhow::Error {
    refuse(
        Exit::Usage,
        format!("nothing can be written in {}: {why}", folder.display()),
        "let the user that syncer runs as write there, or choose another place",
    )
}

/// 128 random bits, as text.
pub fn fresh_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn estimate_text(found: &Estimate) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| writeln!(text, "{name:<14} {value}").unwrap_or_default();
    line("source", format!("{} ({})", found.source.display(), mib(found.source_bytes)));
    line("revision", format!("{}, compacted at {}", found.source_revision, found.compacted));
    if found.revision != found.source_revision {
        line("target", format!("{} at revision {}", found.target.display(), found.revision));
    }
    line("rows", found.rows.to_string());
    line("live keys", format!("{} ({})", found.keys, mib(found.bytes)));
    line("leases", found.leases.to_string());
    line("largest", format!("{} bytes", found.largest));
    for kind in &found.kinds {
        line("  kind", format!("{:<45} {:>9} keys {:>12}", kind.kind, kind.keys, mib(kind.bytes)));
    }
    for warning in found.warnings.lines() {
        line("warning", warning);
    }
    let enough = if found.needed_bytes <= found.free_bytes { "enough" } else { "NOT ENOUGH" };
    line("space", format!("{} needed, {} free: {enough}", mib(found.needed_bytes), mib(found.free_bytes)));
    line("time", format!("about {:.1} s", found.seconds));
    text.push_str("nothing has been changed\n");
    text
}

fn outcome_text<T: Target>(journey: &Journey<T>, done: &Outcome<T::Made>) -> String {
    let mut text = format!(
        "moved {} keys ({}) at revision {} from {} to {} in {:.1} s; {}\n",
        done.keys,
        mib(done.bytes),
        done.revision,
        journey.source.path().display(),
        journey.target.path().display(),
        done.duration.as_secs_f64(),
        done.made.confirmed(),
    );
    // Writing to a String cannot fail.
    for warning in done.warnings.lines() {
        let _ = writeln!(text, "warning: {warning}");
    }
    for note in done.made.notes(done.revision, done.source_revision) {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn outcome_json<T: Target>(journey: &Journey<T>, done: &Outcome<T::Made>) -> Value {
    let mut report = json!({
        "source": journey.source.path(),
        "sourceRenamed": journey.commit == Commit::RenameSource,
        "sourceRevision": done.source_revision,
        "target": journey.target.path(),
        "targetBytes": done.target_bytes,
        "revision": done.revision,
        "keys": done.keys,
        "bytes": done.bytes,
        "verified": journey.verify,
        "warnings": done.warnings,
        "seconds": done.duration.as_secs_f64(),
        "stages": done.stages,
    });
    if let (Value::Object(report), Value::Object(made)) = (&mut report, done.made.json()) {
        report.extend(made);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::exit::exit_of;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from([&["migrate"], words].concat()).map(|c| c.args)
    }

    #[test]
    fn places_are_parsed() {
        let args = parse(&["--from", "sqlite:/a:b", "--to", "datadir:x"]).unwrap();
        let place = |kind, place: &str| Place { kind, place: place.to_owned() };
        assert_eq!((args.from, args.to), (place("sqlite", "/a:b"), place("datadir", "x")));
        assert_eq!((args.verify, args.output, args.rename_source), (Verify::Hash, Output::Text, false));
        for bad in ["", "sqlite", "sqlite:", "mysql:x", "/path"] {
            assert!(parse(&["--from", bad, "--to", "datadir:x"]).is_err(), "{bad}");
        }
        // Every kind is named by whoever refuses another, and in the help.
        let error = parse(&["--from", "mysql:x", "--to", "datadir:x"]).unwrap_err().to_string();
        for kind in KINDS {
            let place = format!("{}:{}", kind.name, kind.place);
            assert!(error.contains(&place) && sources_help().contains(&place), "{place}: {error}");
        }
        assert!(error.contains("etcd:URL"), "{error}");
    }

    #[test]
    fn other_ways_are_known_and_refused_as_bad_usage() {
        for (from, to) in
            [("sqlite:a", "sqlite:b"), ("datadir:a", "etcd:https://a:1"), ("sqlite:a", "etcd:https://a:1")]
        {
            let error = run(&RealDisk, &parse(&["--from", from, "--to", to]).unwrap()).unwrap_err();
            assert_eq!(exit_of(&error), Exit::Usage);
            assert!(error.to_string().contains("is not in this release"), "{error}");
        }
    }

    #[test]
    fn a_running_etcd_needs_a_url_and_over_tls_its_ca() {
        for (from, why) in [("etcd:a:2379", "must begin with"), ("etcd:https://a:2379", "needs the CA")] {
            let error = run(&RealDisk, &parse(&["--from", from, "--to", "sqlite:x"]).unwrap()).unwrap_err();
            assert!(exit_of(&error) == Exit::Usage && error.to_string().contains(why), "{error}");
        }
        assert!(parse(&["--from", "etcd:https://a:1", "--to", "sqlite:x", "--cert", "f"]).is_err());
    }

    #[test]
    fn a_bad_member_is_bad_usage() {
        for (flag, value) in [
            ("--name", "a b"),
            ("--name", "a=b"),
            ("--name", ""),
            ("--name", "a\nb"),
            ("--peer-url", "localhost:2380"),
            ("--client-url", "https://a b:2379"),
        ] {
            for dry in [None, Some("--dry-run")] {
                let words = ["--from", "sqlite:a", "--to", "datadir:b", flag, value].into_iter().chain(dry);
                let error = run(&RealDisk, &parse(&words.collect::<Vec<_>>()).unwrap()).unwrap_err();
                assert_eq!(exit_of(&error), Exit::Usage);
                assert!(error.to_string().starts_with(&format!("{flag}: ")), "{flag} {value:?}: {error}");
            }
        }
    }

    #[test]
    fn a_target_within_the_source_is_bad_usage_and_nothing_is_made_there() {
        let home = tempfile::tempdir().unwrap();
        let (member, link) = (home.path().join("etcd/member"), home.path().join("link"));
        std::fs::create_dir_all(&member).unwrap();
        std::os::unix::fs::symlink(&member, &link).unwrap();
        let from = format!("datadir:{}", home.path().join("etcd").display());
        for to in [member.join("new"), home.path().join("etcd/new"), link.join("new")] {
            for to in [format!("datadir:{}", to.display()), format!("sqlite:{}", to.display())] {
                for dry in [None, Some("--dry-run")] {
                    let words: Vec<_> = ["--from", &from, "--to", &to].into_iter().chain(dry).collect();
                    let error = run(&RealDisk, &parse(&words).unwrap()).unwrap_err();
                    assert_eq!(exit_of(&error), Exit::Usage, "{to} is in the source: {error:#}");
                    assert!(error.to_string().contains("is inside"), "{to}: {error:#}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(&member).unwrap().count(), 0, "something was left in the source");
        // Beside it is not in it, however that is written.
        let beside = format!("datadir:{}/etcd/../other", home.path().display());
        let error = run(&RealDisk, &parse(&["--from", &from, "--to", &beside, "--dry-run"]).unwrap()).unwrap_err();
        assert_ne!(exit_of(&error), Exit::Usage, "{error:#}");
    }

    #[test]
    fn a_folder_in_which_nothing_can_be_made_is_told_with_a_remedy() {
        let why = io::Error::from(ErrorKind::ReadOnlyFilesystem);
        for error in [writable(Path::new("/there/is/none")).unwrap_err(), not_writable(Path::new("/there"), &why)] {
            assert_eq!(exit_of(&error), Exit::Usage, "{error:#}");
            assert!(error.to_string().contains("choose another place"), "no remedy: {error:#}");
        }
    }

    #[test]
    fn a_path_too_long_for_sqlite_is_bad_usage() {
        let long = format!("sqlite:/{}", "x/".repeat(260));
        for (from, to) in [(&*long, "datadir:b"), ("datadir:a", &*long)] {
            let error = run(&RealDisk, &parse(&["--from", from, "--to", to]).unwrap()).unwrap_err();
            assert!(exit_of(&error) == Exit::Usage && !error.to_string().is_empty(), "{error}");
        }
    }

    #[test]
    fn a_state_db_has_the_revision_that_the_store_has() {
        let args = parse(&["--from", "datadir:a", "--to", "sqlite:b", "--bump-revision", "5"]).unwrap();
        let error = run(&RealDisk, &args).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Usage);
        assert!(error.to_string().contains("--bump-revision"), "{error}");
    }

    #[test]
    fn tokens_are_fresh() {
        assert_ne!(fresh_token(), fresh_token());
        assert_eq!(fresh_token().len(), 32);
    }
}
