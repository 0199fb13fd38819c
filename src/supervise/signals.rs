//! Signals that ask us to stop.
//!
//! SIGTERM and SIGINT, and SIGHUP as well: it comes when the terminal of a laptop's user closes, and its default would
//! end us without stopping anything in order. Under nohup(1), which has it ignored from the start, it stays ignored.
//! Settings are not read again by a signal: a changed file is noticed.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for signals that ask to stop.
#[derive(Debug)]
pub struct StopSignals {
    term: Signal,
    int: Signal,
    hangup: Option<Signal>,
}

impl StopSignals {
    /// Listens from now on; the signals' default actions are gone for good.
    pub fn new() -> io::Result<StopSignals> {
        Ok(StopSignals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hangup: if ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// The next signal's name. Can be dropped and called again without missing one.
    pub async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

/// Waits for one signal that asks to stop, and names it.
pub async fn stop_signal() -> io::Result<&'static str> {
    Ok(StopSignals::new()?.next().await)
}

fn ignored(number: libc::c_int) -> bool {
    let mut old = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null second argument sigaction changes nothing and writes one struct to `old`, which was zeroed
    // and is therefore initialised even if it fails.
    let old = unsafe {
        libc::sigaction(number, std::ptr::null(), old.as_mut_ptr());
        old.assume_init()
    };
    old.sa_sigaction == libc::SIG_IGN
}
