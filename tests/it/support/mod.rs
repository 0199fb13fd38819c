//! What the integration tests share.
//!
//! `SYNCER_PARTS` names the folder of real programs (`scripts/test` sets it); without it a test that needs one fails
//! and says so.

#![allow(dead_code, reason = "each test module uses some of it")]

pub mod coredns;
pub mod etcd;
pub mod https;
pub mod kine_db;
pub mod kube;
pub mod pod;
pub mod populate;
pub mod processes;
pub mod statefulset;
pub mod versitygw;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The file of a real program built by `scripts/parts`.
pub fn part(name: &str) -> PathBuf {
    let folder = std::env::var_os("SYNCER_PARTS")
        .expect("SYNCER_PARTS is not set: run scripts/test, or SYNCER_PARTS=$(scripts/parts) cargo test");
    let file = PathBuf::from(folder).join(name);
    assert!(file.is_file(), "{} is missing: run scripts/parts {name}", file.display());
    file
}

/// The `syncer` binary under test, built by Cargo with this test binary.
pub fn syncer() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_syncer"))
}

/// A file of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with `tests/golden/NAME`; `SYNCER_BLESS=1` writes it instead.
#[track_caller]
pub fn golden(name: &str, got: &str) {
    let file = repository("tests/golden").join(name);
    if std::env::var_os("SYNCER_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, got).unwrap();
    }
    let want = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}; SYNCER_BLESS=1", file.display()));
    assert!(got == want, "{} differs (SYNCER_BLESS=1 writes it):\n--- want\n{want}--- got\n{got}", file.display());
}

/// Polls `probe` every 20 ms until it gives a value; panics with `what` after `deadline`.
pub fn poll<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < deadline, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes a script that can be run at once. Another process writes it: a child that another test has just forked holds for a
/// moment what this one has open, and what is open for writing cannot be run.
pub fn script(file: &Path, text: impl AsRef<[u8]>) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(file).stdin(Stdio::piped());
    let mut shell = shell.spawn().expect("run a shell");
    shell.stdin.take().expect("its input").write_all(text.as_ref()).expect("write a script");
    assert!(shell.wait().expect("a shell ends").success(), "{} was not written", file.display());
}

/// A TCP port on loopback that is free now. Handed out from a range of this process's own, so that tests that run in
/// parallel do not get the same one.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = 20_000 + u16::try_from(std::process::id() % 100).unwrap_or(0) * 100;
        let port = base + step % 10_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A terminal of 80 columns: the end at which what it shows can be read, which never blocks, and the end that a program has.
pub fn terminal() -> (File, File) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (mut shown, mut program) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let (no_name, no_modes) = (std::ptr::null_mut(), std::ptr::null());
    // SAFETY: both descriptors are written to and the size is read; neither a name nor modes are asked for.
    let made = unsafe { libc::openpty(&raw mut shown, &raw mut program, no_name, no_modes, &raw const size) };
    assert_eq!(made, 0, "a terminal: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptors are new and nobody else's.
    let (shown, program) = unsafe { (File::from_raw_fd(shown), File::from_raw_fd(program)) };
    fcntl(&shown, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("read without blocking");
    (shown, program)
}

/// Waits until a terminal shows these words.
pub fn shows(screen: &mut File, words: &str) {
    let mut shown = Vec::new();
    poll(words, Duration::from_secs(60), || {
        let mut piece = [0; 4096];
        // That nothing is there yet is an error too.
        let read = screen.read(&mut piece).unwrap_or(0);
        shown.extend_from_slice(&piece[..read]);
        String::from_utf8_lossy(&shown).contains(words).then_some(())
    });
}

/// A tmpfs of a fixed size; unmounted on drop, whoever may still use it.
pub struct SmallVolume {
    at: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl SmallVolume {
    /// In a folder of its own. `None`: it may not be mounted here, and what needs it is not tested, as
    /// [`has_namespaces`](statefulset::TestBox::has_namespaces) has it.
    pub fn mount(bytes: u64) -> Option<SmallVolume> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut small = SmallVolume::over(dir.path(), bytes)?;
        small._dir = Some(dir);
        Some(small)
    }

    /// Over this folder; `None` as by [`mount`](SmallVolume::mount).
    pub fn over(folder: &Path, bytes: u64) -> Option<SmallVolume> {
        let size = format!("size={bytes}");
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(size.as_str())) {
            Ok(()) => Some(SmallVolume { at: folder.to_owned(), _dir: None }),
            Err(error) => {
                let required = std::env::var_os("SYNCER_REQUIRE_NAMESPACES").is_some();
                assert!(!required, "no tmpfs can be mounted here ({error}), and SYNCER_REQUIRE_NAMESPACES is set");
                println!("no tmpfs can be mounted here ({error}): this is not tested");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH);
    }
}
