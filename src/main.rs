//! The program: argv, logging, runtime, exit code. Everything else is in the library.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use syncer::cli::{Command, ConfigArgs, EXAMPLE_VALUES, Output, Parsed, StartArgs};
use syncer::disk::RealDisk;
use syncer::exit::exit_of;
use syncer::settings::Settings;
use syncer::settings::env::{Env, NOT_OURS, ProcessEnv};
use syncer::settings::flags::{Flags, LogFlags};
use syncer::settings::load::{Loader, Refused, Surroundings};
use syncer::snapshot::command::{self as snapshot, SnapshotCommand};
use syncer::telemetry;

// musl's own allocator is several times slower, most of all with threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, which triple what an idle pod holds. Without effect if it is refused.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if standard error is gone.
            let _ = writeln!(std::io::stderr(), "syncer: error: {}", one_line(&error));
            ExitCode::from(exit_of(&error).code())
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args_os().collect();
    let parsed = syncer::cli::parse(args.iter().cloned()).map_err(|error| not_understood(error, &args))?;
    match parsed {
        Parsed::Print(text) => print(&text),
        Parsed::Run(command, passed_over) => match *command {
            Command::Start(args) => start(args, &passed_over),
            Command::Config(args) => config(args),
            Command::Certs(args) => certs(*args),
            Command::Cp { src, dst } => syncer::copy::copy(&RealDisk, &src, &dst).map(|_| ()),
            Command::Migrate(args) => {
                log_as(&args.log)?;
                print(&syncer::migrate::command::run(&RealDisk, &args)?)
            }
            Command::Recover(args) => {
                log_as(&args.log)?;
                print(&syncer::reset::command::run(&RealDisk, &args)?)
            }
            Command::Snapshot { command } => snapshot(command),
            Command::Plan(args) => plan(*args),
            Command::Version => Ok(()),
        },
    }
}

fn loader(flags: Flags, command: Vec<OsString>) -> Loader {
    Loader {
        flags,
        wrapped: (!command.is_empty()).then_some(command),
        env: Box::new(ProcessEnv),
        surroundings: Surroundings::of_this_machine(),
    }
}

fn start(args: StartArgs, passed_over: &[String]) -> anyhow::Result<()> {
    let loader = loader(args.flags, args.command);
    let loaded = loader.load_or_refused().map_err(refused)?;
    let settings = loaded.settings;
    log(&settings);
    for flag in passed_over {
        tracing::debug!(flag, "this flag of the charts does not concern syncer");
    }
    for variable in NOT_OURS.iter().filter(|name| ProcessEnv.get_os(name).is_some()) {
        tracing::debug!(variable, "this variable of the charts does not concern syncer");
    }
    for warning in &loaded.provenance.warnings {
        tracing::warn!("{warning}");
    }
    // One thread: children die with the thread that started them (PR_SET_PDEATHSIG), so it must be the main one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(syncer::start::run(settings, loader));
    // A snapshot that is being written to a disk that hangs would hold up the end.
    runtime.shutdown_background();
    ended
}

fn log(settings: &Settings) {
    telemetry::init(settings.log_format, &settings.log_level);
    telemetry::set_pod(&settings.pod.name);
}

fn log_as(flags: &LogFlags) -> anyhow::Result<()> {
    let (format, level) = flags.or_env(&ProcessEnv)?;
    telemetry::init(format, &level);
    Ok(())
}

/// Settings that are refused at every start would leave an etcd fenced for good that a killed move has fenced.
fn refused(refused: Refused) -> anyhow::Error {
    let Some(settings) = &refused.settings else { return refused.error };
    log(settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime");
    match runtime.and_then(|runtime| runtime.block_on(syncer::start::lift_refused(settings))) {
        Ok(()) => refused.error,
        // Both are told: the one is why, the other is what the source is left as.
        Err(left) => refused.error.context(format!("{left:#}")),
    }
}

/// The same of a command line.
fn not_understood(error: anyhow::Error, args: &[OsString]) -> anyhow::Error {
    let settings = syncer::cli::volume_of(args).and_then(|flags| loader(flags, Vec::new()).of_volume());
    refused(Refused { error, settings: settings.map(Box::new) })
}

fn config(args: ConfigArgs) -> anyhow::Result<()> {
    if args.example {
        return print(EXAMPLE_VALUES);
    }
    let provenance = loader(args.flags, Vec::new()).load()?.provenance;
    match args.output {
        Output::Yaml => print(&provenance.yaml()),
        Output::Json => print(&format!("{}\n", provenance.json())),
    }
}

fn plan(args: syncer::plan::Args) -> anyhow::Result<()> {
    if let Some(file) = &args.facts {
        return print(&syncer::plan::of_file(file, args.output)?);
    }
    if let Some(file) = &args.membership {
        return print(&syncer::plan::of_membership(file, args.output)?);
    }
    let loaded = loader(args.flags, Vec::new()).load()?;
    // The charts of 0.19 hand the entrypoint flags, and no file.
    let guessed = loaded.settings.pod.in_pod && loaded.settings.values_file.is_none() && loaded.says_nothing_of_etcd();
    let settings = if guessed { loaded.with_etcd() } else { loaded.settings };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    print(&runtime.block_on(syncer::plan::of_pod(&settings, guessed, args.output))?)
}

fn snapshot(command: SnapshotCommand) -> anyhow::Result<()> {
    match &command {
        SnapshotCommand::Restore(args) => log_as(&args.flags.log)?,
        SnapshotCommand::Save(args) => log_as(&args.flags.log)?,
        SnapshotCommand::List { log, .. } | SnapshotCommand::Verify { log, .. } => log_as(log)?,
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    match command {
        SnapshotCommand::Restore(args) => {
            let settings = loader(args.flags.clone(), Vec::new()).load()?.with_etcd();
            print(&syncer::restore::command::run(&args, &settings)?)
        }
        SnapshotCommand::Save(args) => {
            let settings = loader(args.flags.clone(), Vec::new()).load()?.settings;
            let taken = syncer::snapshot::take::take(&args, &settings, &runtime);
            // What is being written to a place that hangs would hold up the end.
            runtime.shutdown_background();
            let (text, pruned) = taken?;
            print(&text)?;
            pruned
        }
        SnapshotCommand::List { from, output, .. } => print(&runtime.block_on(snapshot::list(&from, output))?),
        SnapshotCommand::Verify { file, skip_hash_check, output, .. } => {
            print(&snapshot::verify(&file, skip_hash_check, output, &runtime)?)
        }
    }
}

fn certs(args: syncer::pki::command::Args) -> anyhow::Result<()> {
    let settings = loader(args.flags.clone(), Vec::new()).load()?.settings;
    let (text, outcome) = syncer::pki::command::run(&args, &settings, &RealDisk, time::OffsetDateTime::now_utc())?;
    print(&text)?;
    outcome
}

/// Writes a command's output. A reader that has read enough (`| head`) is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            // Not as the I/O error that it is: a full disk behind the output is not the volume, which has a code of its own.
            Err(anyhow::anyhow!("write to standard output: {e}"))
        }
        _ => Ok(()),
    }
}

/// An error with its causes in one line, whatever text of others is in it.
fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
