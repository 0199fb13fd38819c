//! Why a child ended: status and last words in, cause, remedy and verdict out. No I/O.
//!
//! etcd's exit codes say little: a removed member ends with 0 or 1 as it happens, a damaged store with 1 or 2. Its
//! words are looked at first: those of etcd 3.5.35, 3.6.16 and 3.7.3. Every cause that a machine can be brought to is
//! brought about on the real programs in `tests/it/supervise/exits.rs`. A second etcd on a data dir is no cause: it
//! does not end, it waits for bbolt's lock without a word, which is why the data dir has a lock of ours.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::spec::Role;
use crate::exit::Exit;

/// Why a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// We told it to.
    StoppedAsAsked,
    /// It ended with 0 by itself.
    Finished,
    /// The member was removed from its cluster.
    Removed,
    /// The cluster that it was to form or join is not as its command line says.
    BootstrapRefused(String),
    /// The volume is full. (A used-up quota ends nothing: it raises an alarm.)
    DiskFull,
    /// Another process listens on one of its ports.
    PortTaken(String),
    /// A flag or value that it does not know.
    BadFlag(String),
    /// Its data is damaged or is not what the cluster knows of it.
    Corrupt(String),
    /// It was to listen on an address that this machine does not have.
    NoAddress(String),
    /// It may open too few files to run.
    TooFewFiles,
    /// Killed by a SIGKILL that was not ours: by the kernel for lack of memory, or by somebody.
    Killed,
    /// Killed by the kernel for lack of memory, which the cgroup has counted.
    Oom,
    /// A Go program that panicked for a reason that is not known here.
    Panic(String),
    /// Anything else.
    Unknown(String),
}

/// What etcd says when its data differs from the other members': nothing tells which of them is right.
pub const INCONSISTENT: &str = "found data inconsistency with peers";

/// Pieces of etcd's lines on data that is damaged.
const DAMAGE: &[&str] = &[
    "crc mismatch",
    "failed to open database",
    "failed to map db file",
    "meta pages are invalid",
    "Page expected to be:",
    "already freed",
    "unexpected fault address",
    // A member that has lost what it had acknowledged (raft's `commitTo`).
    "tocommit(",
    "failed to recover v3 backend from snapshot",
    "failed to find db file from snapshot",
    "of the backend is missing",
    "failed to read WAL",
    "failed to unmarshal mvccpb.KeyValue",
    INCONSISTENT,
];

/// Pieces of etcd's lines on a cluster that is not as the command line says.
const BOOTSTRAP: &[&str] = &[
    "has already been bootstrapped",
    // "... member count is unequal", behind all members, where a line may have been cut.
    "error validating peerURLs",
    "could not retrieve cluster information",
    "couldn't find local name",
    "unmatched member while checking PeerURLs",
];

impl ExitCause {
    /// Judges an end. `asked`: we had told it to stop. `words`: its last lines worth looking at, oldest first.
    pub fn of(role: Role, status: ExitStatus, asked: bool, words: &[String]) -> ExitCause {
        let etcd = role == Role::Etcd;
        let find = |pieces: &[&str]| words.iter().find(|line| pieces.iter().any(|piece| line.contains(piece)));
        if asked {
            return ExitCause::StoppedAsAsked;
        }
        if etcd
            && find(&["permanently removed from the cluster", "data-dir used by this member must be removed"]).is_some()
        {
            return ExitCause::Removed;
        }
        if find(&["no space left on device", "disk quota exceeded"]).is_some() {
            return ExitCause::DiskFull;
        }
        if let Some(line) = find(&["address already in use"]) {
            return ExitCause::PortTaken(listener(line));
        }
        if let Some(line) = find(&["bind: cannot assign requested address"]) {
            return ExitCause::NoAddress(listener(line));
        }
        if etcd && find(&["file descriptor limit of etcd process is too low"]).is_some() {
            return ExitCause::TooFewFiles;
        }
        const FLAG: &[&str] = &["flag provided but not defined", "invalid value ", "unknown flag:"];
        // An API server may log a client's words; its own complaint begins the line.
        let begins = |line: &&String| {
            let line = line.strip_prefix("Error: ").unwrap_or(line);
            FLAG.iter().chain(&["invalid argument "]).any(|words| line.starts_with(words))
        };
        let complaint = if etcd { find(FLAG) } else { words.iter().find(begins) };
        if let Some(line) = complaint {
            return ExitCause::BadFlag(line.clone());
        }
        if let Some(line) = find(&["failed to verify flags", "cannot specify both flags"]).filter(|_| etcd) {
            return ExitCause::BadFlag(line.clone());
        }
        if let Some(line) = find(BOOTSTRAP).filter(|_| etcd) {
            return ExitCause::BootstrapRefused(line.clone());
        }
        if let Some(line) = find(DAMAGE).filter(|_| etcd) {
            return ExitCause::Corrupt(line.clone());
        }
        if status.signal() == Some(libc::SIGKILL) {
            return ExitCause::Killed;
        }
        let panic = words.iter().find(|line| line.starts_with("panic: ") || line.starts_with("fatal error: "));
        match panic.or(words.last()) {
            Some(line) if panic.is_some() => ExitCause::Panic(line.clone()),
            _ if status.success() => ExitCause::Finished,
            Some(line) => ExitCause::Unknown(format!("{status}; its last words: {line}")),
            None => ExitCause::Unknown(format!("{status}, without a word")),
        }
    }

    /// The same, knowing how many processes the kernel had killed for lack of memory when the child was started, and when
    /// it had ended.
    pub fn with_oom_kills(self, before: Option<u64>, after: Option<u64>) -> ExitCause {
        match (self, before, after) {
            (ExitCause::Killed, Some(before), Some(after)) if after > before => ExitCause::Oom,
            (cause, ..) => cause,
        }
    }

    /// Whether starting it again can help.
    pub fn restart_helps(&self) -> bool {
        match self {
            ExitCause::Removed
            | ExitCause::BootstrapRefused(_)
            | ExitCause::BadFlag(_)
            | ExitCause::Corrupt(_)
            | ExitCause::TooFewFiles => false,
            ExitCause::StoppedAsAsked
            | ExitCause::Finished
            | ExitCause::DiskFull
            | ExitCause::PortTaken(_)
            | ExitCause::NoAddress(_)
            | ExitCause::Killed
            | ExitCause::Oom
            | ExitCause::Panic(_)
            | ExitCause::Unknown(_) => true,
        }
    }

    /// What an operator does about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            ExitCause::StoppedAsAsked => "",
            ExitCause::Finished | ExitCause::Unknown(_) => "see its last lines in the log",
            ExitCause::Removed => {
                "the cluster goes on without it: set its data dir aside (rename it) and start anew to join again"
            }
            ExitCause::BootstrapRefused(_) => {
                "the data dir has no WAL although its cluster is known: restore the volume (docs/rules.md, joining)"
            }
            ExitCause::DiskFull => "make the volume larger or free space on it",
            ExitCause::PortTaken(_) => "stop the process that listens there, or choose other ports",
            ExitCause::BadFlag(_) => {
                "correct the flag in extraArgs or in the command, which this version does not know"
            }
            ExitCause::Corrupt(_) => {
                "keep the data dir; restore a snapshot, or, if other members are healthy, set it aside and join anew"
            }
            ExitCause::NoAddress(_) => {
                "bring the interface with that address up (127.0.0.1 must be there: `ip link set lo up`), or choose an \
                 address of this machine with --listen-address"
            }
            ExitCause::TooFewFiles => {
                "raise the limit on open files to 1024 or more: the hard one (`ulimit -Hn`), or that of the container runtime"
            }
            ExitCause::Killed => "raise the memory limit of the container, or find out who sends SIGKILL",
            ExitCause::Oom => "raise the memory limit of the container",
            ExitCause::Panic(_) => "see its stack in the log; if it comes back, report it with that stack",
        }
    }

    /// The exit code of the program if it ends for this.
    pub fn exit(&self) -> Exit {
        match self {
            ExitCause::StoppedAsAsked => Exit::Ok,
            ExitCause::Removed | ExitCause::BootstrapRefused(_) => Exit::RefusedMembership,
            ExitCause::DiskFull => Exit::RefusedSpace,
            ExitCause::BadFlag(_) => Exit::Usage,
            ExitCause::Corrupt(_) => Exit::RefusedDataDir,
            ExitCause::Finished
            | ExitCause::PortTaken(_)
            | ExitCause::NoAddress(_)
            | ExitCause::TooFewFiles
            | ExitCause::Killed
            | ExitCause::Oom
            | ExitCause::Panic(_)
            | ExitCause::Unknown(_) => Exit::Fault,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::StoppedAsAsked => f.write_str("stopped as asked"),
            ExitCause::Finished => f.write_str("ended by itself, without an error"),
            ExitCause::Removed => f.write_str("was removed from its cluster"),
            ExitCause::BootstrapRefused(line) => write!(f, "could not form or join its cluster ({line})"),
            ExitCause::DiskFull => f.write_str("found no space left on the volume"),
            ExitCause::PortTaken(listener) => write!(f, "found its port taken ({listener})"),
            ExitCause::BadFlag(line) => write!(f, "did not accept its command line ({line})"),
            ExitCause::Corrupt(line) => write!(f, "found its data damaged ({line})"),
            ExitCause::NoAddress(listener) => {
                write!(f, "was to listen on an address that this machine does not have ({listener})")
            }
            ExitCause::TooFewFiles => f.write_str("may open too few files to run"),
            ExitCause::Killed => {
                f.write_str("was killed with SIGKILL, by the kernel for lack of memory or by somebody")
            }
            ExitCause::Oom => f.write_str("was killed by the kernel for lack of memory"),
            ExitCause::Panic(line) => write!(f, "broke down ({line})"),
            ExitCause::Unknown(what) => write!(f, "ended with {what}"),
        }
    }
}

/// `listen tcp 127.0.0.1:2379: bind: address already in use`, out of a longer line.
fn listener(line: &str) -> String {
    line.find("listen ").and_then(|at| line.get(at..)).unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(role: Role, raw: i32, words: &[&str]) -> ExitCause {
        let words: Vec<_> = words.iter().map(|w| (*w).to_owned()).collect();
        ExitCause::of(role, ExitStatus::from_raw(raw), false, &words)
    }

    const CODE_1: i32 = 1 << 8;
    const CODE_2: i32 = 2 << 8;

    #[test]
    fn the_words_count_more_than_the_code() {
        let removed = "server error: the member has been permanently removed from the cluster";
        for raw in [0, CODE_1] {
            assert_eq!(judge(Role::Etcd, raw, &[removed]), ExitCause::Removed);
        }
        let full = ["failed to create WAL: no space left on device", "panic: failed to create WAL"];
        assert_eq!(judge(Role::Etcd, CODE_2, &full), ExitCause::DiskFull);
        let port = "discovery failed: listen tcp 127.0.0.1:2379: bind: address already in use";
        let taken = ExitCause::PortTaken("listen tcp 127.0.0.1:2379: bind: address already in use".into());
        assert_eq!(judge(Role::Etcd, CODE_1, &[port]), taken);
        let address = "discovery failed: listen tcp 127.0.0.1:2379: bind: cannot assign requested address";
        let none = ExitCause::NoAddress("listen tcp 127.0.0.1:2379: bind: cannot assign requested address".into());
        assert_eq!(judge(Role::Etcd, CODE_1, &[address]), none);
        assert!(none.remedy().contains("lo up"));
        // Not one of its own listeners.
        let dialed = "prober: dial tcp 10.0.0.1:2380: connect: cannot assign requested address";
        assert!(matches!(judge(Role::Etcd, CODE_1, &[dialed]), ExitCause::Unknown(_)));
        let files = judge(Role::Etcd, CODE_1, &["file descriptor limit of etcd process is too low; please set higher"]);
        assert_eq!(files, ExitCause::TooFewFiles);
        assert!(!files.restart_helps() && files.remedy().contains("ulimit"), "the limit stays as it is");
    }

    #[test]
    fn what_etcd_says_of_data_is_not_looked_for_in_another_childs_words() {
        let word = "panic: crc mismatch in a frame";
        assert!(matches!(judge(Role::Etcd, CODE_2, &[word]), ExitCause::Corrupt(_)));
        assert!(matches!(judge(Role::ApiServer, CODE_2, &[word]), ExitCause::Panic(_)));
        let flag = "Error: unknown flag: --nonsense";
        assert!(matches!(judge(Role::ApiServer, CODE_1, &[flag]), ExitCause::BadFlag(_)));
        let logged = "E1123 10:00:00 1 x.go:1] a client said: Error: unknown flag: --nonsense";
        assert!(!matches!(judge(Role::ApiServer, CODE_1, &[logged]), ExitCause::BadFlag(_)));
    }

    #[test]
    fn without_known_words_the_status_speaks() {
        let killed = judge(Role::Etcd, libc::SIGKILL, &[]);
        assert_eq!(killed, ExitCause::Killed);
        let counted = |before, after| killed.clone().with_oom_kills(before, after);
        assert_eq!(counted(Some(1), Some(2)), ExitCause::Oom);
        for (before, after) in [(Some(2), Some(2)), (None, Some(2)), (Some(1), None), (None, None)] {
            assert_eq!(counted(before, after), ExitCause::Killed);
        }
        assert_eq!(ExitCause::Finished.with_oom_kills(Some(1), Some(2)), ExitCause::Finished);
        assert!(killed.to_string().contains("SIGKILL") && killed.to_string().contains("somebody"), "{killed}");
        assert_eq!(judge(Role::ApiServer, 0, &["bye"]), ExitCause::Finished);
        let unknown = judge(Role::ApiServer, CODE_1, &["first", "it broke"]);
        assert!(unknown.to_string().contains("it broke"), "{unknown}");
        let all = ExitStatus::from_raw(libc::SIGKILL);
        assert_eq!(ExitCause::of(Role::Etcd, all, true, &["crc mismatch".into()]), ExitCause::StoppedAsAsked);
    }

    #[test]
    fn what_restarting_cannot_help_has_a_code_and_a_remedy_of_its_own() {
        for cause in [
            ExitCause::Removed,
            ExitCause::BootstrapRefused("x".into()),
            ExitCause::BadFlag("x".into()),
            ExitCause::Corrupt("x".into()),
        ] {
            assert!(!cause.restart_helps() && cause.exit() != Exit::Fault && !cause.remedy().is_empty(), "{cause:?}");
        }
        assert!(ExitCause::DiskFull.restart_helps());
        assert_eq!(ExitCause::DiskFull.exit(), Exit::RefusedSpace);
    }
}
