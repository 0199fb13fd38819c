//! kill -9 at instants spread over each journey of a store. Whatever it leaves: nothing is lost in between, and the next
//! attempt ends in the same state as an undisturbed one.
//!
//! `SYNCER_KILLS` is the number of kills of each journey; what counts is 100. `crash` in `migrate` does the same from a
//! `state.db`, and `journey` in the pod of a real cluster.

mod cli;
mod pods;

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long an undisturbed attempt may take on a busy machine.
const UNDISTURBED: Duration = Duration::from_secs(120);

/// A journey that is killed, again and again.
trait Journey {
    /// Where it goes to.
    type Place;
    /// In messages.
    fn name(&self) -> String;
    /// A place where nothing has been begun.
    fn fresh(&self) -> Self::Place;
    /// One attempt, not started yet.
    fn attempt(&self, place: &Self::Place) -> Command;
    /// Whether an attempt may end so before it is killed.
    fn may_end(&self, status: ExitStatus) -> bool;
    /// Looks at what a killed attempt left. `true`: let it end now.
    fn left(&self, place: &mut Self::Place, what: &str) -> bool;
    /// Lets it end, and looks at the end; how long it took without that look.
    fn end(&self, place: &mut Self::Place, what: &str) -> Duration;
}

/// Kills `journey` as often as `SYNCER_KILLS` says, or so often; every fourth time at the latest it is let end.
fn killed<J: Journey>(journey: &J, kills: u32) {
    let kills = std::env::var("SYNCER_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(kills);
    let logs = tempfile::tempdir().expect("a folder");
    let log = logs.path().join("attempts.log");
    let mut place = journey.fresh();
    // A little more, so that some are killed just after their end.
    let whole = journey.end(&mut place, "undisturbed").mul_f64(1.1);
    drop(place);

    let (mut place, mut ends) = (journey.fresh(), 0);
    for i in 0..kills {
        // Weyl's sequence spreads the instants evenly without a random source.
        let instant = whole.mul_f64((f64::from(i) * 0.618_033_988_749_895).fract());
        let what = format!("{}, kill {i} after {instant:?}", journey.name());
        if let Some(status) = killed_after(journey.attempt(&place), instant, &log) {
            assert!(journey.may_end(status), "{what}: {status}\n{}", tail(&log));
        }
        if journey.left(&mut place, &what) || i % 4 == 3 || i + 1 == kills {
            journey.end(&mut place, &what);
            ends += 1;
            place = journey.fresh();
        }
    }
    eprintln!("instants: {}: {kills} kills within {whole:?}, the same after each of {ends} ends", journey.name());
}

/// Runs it for so long; its status if it ended before.
fn killed_after(mut command: Command, instant: Duration, log: &Path) -> Option<ExitStatus> {
    let output = File::options().create(true).append(true).open(log).expect("open the log");
    let errors = output.try_clone().expect("clone the log");
    let mut child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().expect("syncer starts");
    let begun = Instant::now();
    while begun.elapsed() < instant {
        if let Some(status) = child.try_wait().expect("wait for syncer") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("kill syncer");
    child.wait().expect("wait for syncer");
    None
}

fn tail(log: &Path) -> String {
    crate::support::etcd::tail(log)
}
