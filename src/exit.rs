//! Exit codes, which are part of the command line's contract (README, "Exit codes").

use std::fmt;

/// How a command ended. The numbers never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done, or stopped as asked.
    Ok,
    /// 1: a fault of the environment or of this program; trying again may help.
    Fault,
    /// 2: bad usage or bad values; the message names file, line and remedy.
    Usage,
    /// 3: refused: the etcd data dir is damaged, foreign, or contradicts the settings.
    RefusedDataDir,
    /// 4: refused: the store or snapshot to read is not there, damaged, held by another process, incomplete or not what it
    /// should be.
    RefusedSource,
    /// 5: refused: forming or joining a cluster could lose or split data.
    RefusedMembership,
    /// 6: refused: certificates or keys are mismatched, expired or unreadable.
    RefusedPki,
    /// 7: refused: not enough space on the volume.
    RefusedSpace,
    /// 8: refused: another syncer or etcd uses the same data dir.
    RefusedLocked,
}

impl Exit {
    /// The process exit code.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Fault => 1,
            Exit::Usage => 2,
            Exit::RefusedDataDir => 3,
            Exit::RefusedSource => 4,
            Exit::RefusedMembership => 5,
            Exit::RefusedPki => 6,
            Exit::RefusedSpace => 7,
            Exit::RefusedLocked => 8,
        }
    }
}

/// An error that carries its exit code to `main`. Put it at the root of an `anyhow` chain with [`refuse`] or `?`;
/// `main` finds it wherever it stands in the chain.
#[derive(Debug)]
pub struct ExitError {
    /// The code to exit with.
    pub exit: Exit,
    /// What is wrong, naming the thing.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for ExitError {}

/// An error with an exit code, what is wrong, and the remedy.
pub fn refuse(exit: Exit, what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
    ExitError { exit, what: what.into(), remedy: remedy.into() }.into()
}

/// The exit code of an error: that of the [`ExitError`] in its chain, 7 for a full disk, else 1.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<ExitError>() {
            return e.exit;
        }
        if let Some(e) = cause.downcast_ref::<std::io::Error>()
            && matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return Exit::RefusedSpace;
        }
    }
    Exit::Fault
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_code_is_found_below_contexts() {
        let e = Err::<(), _>(refuse(Exit::RefusedSource, "held", "stop it")).context("open the source").unwrap_err();
        assert_eq!(exit_of(&e), Exit::RefusedSource);
        assert_eq!(format!("{e:#}"), "open the source: held; stop it");
    }

    #[test]
    fn a_full_disk_has_its_own_code() {
        let e = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull)).context("write pages");
        assert_eq!(exit_of(&e), Exit::RefusedSpace);
    }
}
