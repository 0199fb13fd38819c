//! Which etcd this is: `etcd --version`, and whether its line is one that we know.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::datadir::SchemaVersion;
use crate::exit::{Exit, refuse};
use crate::settings::env;
use crate::supervise::spec::OF_NO_USE;

/// How long `etcd --version` may take. It does nothing but print; a cold, busy disk is what takes time.
const DEADLINE: Duration = Duration::from_secs(20);

/// More than etcd prints, less than anything that could hurt.
const OUTPUT_MAX: u64 = 16 * 1024;

/// The oldest version that is run: the first with the compaction hash check. 3.5.0 to 3.5.2 can corrupt data.
const OLDEST: EtcdVersion = EtcdVersion { major: 3, minor: 5, patch: 5 };

/// The newest line that is run.
const NEWEST_MINOR: u32 = 7;

/// A version of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtcdVersion {
    /// 3.
    pub major: u32,
    /// The line: 5, 6 or 7.
    pub minor: u32,
    /// The release within the line.
    pub patch: u32,
}

impl fmt::Display for EtcdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Why there is no usable etcd.
#[derive(Debug, Error)]
pub enum VersionError {
    /// There is no such program.
    #[error("no etcd at {}", program.display())]
    NotFound {
        /// What was looked for: a file, or a bare name looked for in `PATH`.
        program: PathBuf,
    },
    /// It could not be run.
    #[error("run {} --version", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It did not end in time.
    #[error("{} --version did not end within {} s", program.display(), DEADLINE.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
    },
    /// What it printed is not what etcd prints.
    #[error("{} is not etcd: `--version` printed {said:?}", program.display())]
    NotEtcd {
        /// The program.
        program: PathBuf,
        /// The beginning of its output.
        said: String,
    },
    /// It does not know a flag that it is to be given, or not with this value.
    #[error("{} does not accept extraArgs of the values: {said}", program.display())]
    Arguments {
        /// The program.
        program: PathBuf,
        /// The first line of its complaint.
        said: String,
    },
    /// An etcd of a line that is not known here, or too old a release of one that is.
    #[error("etcd {version} at {} is not supported", program.display())]
    Unsupported {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: EtcdVersion,
    },
}

impl VersionError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            VersionError::NotFound { .. } => {
                "put etcd 3.5, 3.6 or 3.7 into PATH (or beside syncer, or name its folder with --binaries; `syncer migrate` and \
                 `syncer recover`: or name the file with --etcd)"
            }
            VersionError::Run { .. } => "check that the file is executable and built for this machine",
            VersionError::Timeout { .. } => "run it by hand to see what it waits for",
            VersionError::NotEtcd { .. } => {
                "name the folder of the right program with --binaries (`syncer migrate` and `syncer recover`: the file with --etcd)"
            }
            VersionError::Arguments { .. } => "correct etcd's extraArgs in the values; nothing was changed",
            VersionError::Unsupported { .. } => "use etcd 3.5 (3.5.26 or newer), 3.6 or 3.7",
        }
    }

    /// As an error that `main` exits with.
    pub fn refused(self) -> anyhow::Error {
        let remedy = self.remedy();
        match self {
            VersionError::Run { .. } => anyhow::Error::from(self).context(format!("find out etcd's version; {remedy}")),
            other => refuse(Exit::Usage, other.to_string(), remedy),
        }
    }
}

impl EtcdVersion {
    /// The newest backend that it opens.
    pub fn schema(self) -> SchemaVersion {
        SchemaVersion { major: self.major.into(), minor: self.minor.into() }
    }

    /// Asks `program` (a file, or a bare name in `PATH`) for its version; blocks for at most 20 s.
    pub fn of(program: &Path) -> Result<EtcdVersion, VersionError> {
        let version = parse(program, &output_of(program, &[])?.output)?;
        if version.supported() {
            Ok(version)
        } else {
            Err(VersionError::Unsupported { program: program.to_owned(), version })
        }
    }

    /// Asks `program` whether it takes these arguments; it judges all of them before it prints its version. Blocks for at
    /// most 20 s.
    pub fn check_args(program: &Path, args: &[String]) -> Result<(), VersionError> {
        if args.is_empty() {
            return Ok(());
        }
        match output_of(program, args)? {
            Output { success: true, .. } => Ok(()),
            Output { errors, .. } => {
                let said = errors.lines().next().unwrap_or("it ends without a word").chars().take(200).collect();
                Err(VersionError::Arguments { program: program.to_owned(), said })
            }
        }
    }

    /// Whether we know how to run it.
    pub fn supported(self) -> bool {
        self >= OLDEST && self.major == OLDEST.major && self.minor <= NEWEST_MINOR
    }

    /// A reason to move to a newer release of the same line, if there is one.
    pub fn advice(self) -> Option<&'static str> {
        match (self.minor, self.patch) {
            (5, ..26) => {
                Some("etcd before 3.5.26 can forget a promotion or keep a removed member; use 3.5.26 or newer")
            }
            (6, ..6) => Some("etcd before 3.6.6 can snapshot badly during a defragmentation; use 3.6.6 or newer"),
            _ => None,
        }
    }
}

/// What a program printed.
struct Output {
    success: bool,
    output: String,
    errors: String,
}

/// Runs `program ARGS --version`.
fn output_of(program: &Path, args: &[String]) -> Result<Output, VersionError> {
    let run = |source| VersionError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    // Its own settings in the environment could make it do something else. The rest stays: a bare name is looked for in
    // the child's PATH.
    let of_no_use =
        |name: &&OsString| OF_NO_USE.iter().any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()));
    for name in env::names().iter().filter(of_no_use) {
        command.env_remove(name);
    }
    command.args(args).arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        // A file that is there lacks its interpreter, or the image lacks /dev/null.
        std::io::ErrorKind::NotFound if !program.is_file() => VersionError::NotFound { program: program.to_owned() },
        _ => run(source),
    })?;
    // What it prints fits into the pipes' buffers, so that waiting for the end first cannot block it.
    let ended = wait_until(&mut child, Instant::now() + DEADLINE).map_err(run)?;
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
        return Err(VersionError::Timeout { program: program.to_owned() });
    }
    let read = |pipe: Option<&mut dyn Read>| -> Result<String, VersionError> {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            pipe.take(OUTPUT_MAX).read_to_end(&mut bytes).map_err(run)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Output {
        output: read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read))?,
        errors: read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read))?,
        success: child.wait().map_err(run)?.success(),
    })
}

fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<bool> {
    let mut pause = Duration::from_millis(1);
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(true)
}

/// Parses `etcd Version: 3.6.16` (`printVersion` in etcd's `server/etcdmain/config.go`). A pre-release counts as its
/// release.
fn parse(program: &Path, output: &str) -> Result<EtcdVersion, VersionError> {
    let number = |text: &str| -> Option<EtcdVersion> {
        let mut parts = text.trim().split(['-', '+']).next()?.split('.').map(|part| part.parse::<u32>().ok());
        let version = EtcdVersion { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    };
    output
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version:"))
        .and_then(number)
        .ok_or_else(|| VersionError::NotEtcd { program: program.to_owned(), said: output.chars().take(120).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_judged() {
        for (text, want, supported) in [
            ("etcd Version: 3.6.16\nGit SHA: x\n", Some((3, 6, 16)), true),
            ("etcd Version: 3.5.5\n", Some((3, 5, 5)), true),
            ("etcd Version: 3.5.2\n", Some((3, 5, 2)), false),
            ("etcd Version: 3.4.45\n", Some((3, 4, 45)), false),
            ("etcd Version: 3.8.0-alpha.0\n", Some((3, 8, 0)), false),
            ("etcd Version: 4.0.0\n", Some((4, 0, 0)), false),
            ("etcd Version: 3.6\n", None, false),
            ("etcd Version: 3.6.1.2\n", None, false),
            ("kine version v0.13\n", None, false),
            ("etcd Version: 99999999999.1.1\n", None, false),
            ("", None, false),
        ] {
            let got = parse(Path::new("etcd"), text).ok();
            assert_eq!(got, want.map(|(major, minor, patch)| EtcdVersion { major, minor, patch }), "{text}");
            assert_eq!(got.is_some_and(EtcdVersion::supported), supported, "{text}");
        }
    }

    #[test]
    fn a_missing_program_and_another_program_are_told_apart() {
        assert!(matches!(EtcdVersion::of(Path::new("/nowhere/etcd")), Err(VersionError::NotFound { .. })));
        assert!(matches!(EtcdVersion::of(Path::new("echo")), Err(VersionError::NotEtcd { .. })));
        let error = EtcdVersion::of(Path::new("/")).expect_err("a directory is not a program");
        assert!(matches!(error, VersionError::Run { .. }), "{error:?}");
    }
}
