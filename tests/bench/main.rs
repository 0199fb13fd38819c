//! The figures: speed and memory of syncer beside a peer, in one run, as JSON. `scripts/bench` runs it.
//!
//! `migrate` compares every journey of a store with whoever else makes it;
//! `start` compares restart-to-serving of one member with bare etcd under the paid edition's timing, and measures what
//! syncer costs at rest; `scale` compares members that come and go by themselves with the same steps by hand.

mod by_hand;
mod by_hand_boxed;
mod contender;
mod journeys;
mod migrate;
mod peers;
mod restart;
mod sample;
mod scale;
#[path = "../box/mod.rs"]
mod statefulset_box;
mod store;
mod switch;
mod writers;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "scripts/bench", about = "Measures syncer beside a peer and writes JSON")]
struct Cli {
    #[command(subcommand)]
    what: What,
    /// Added by `cargo bench`; means nothing here.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// Every journey of a store beside its peer: seconds, CPU time and peak memory.
    Migrate {
        /// The journeys; all unless given.
        #[arg(long, value_delimiter = ',')]
        journeys: Vec<migrate::Journey>,
        /// Numbers of live keys of 1 KiB; each store holds as many dead rows.
        #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000")]
        keys: Vec<u64>,
        /// Rounds; in each, every contender runs once, in turn.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// The Put loop is timed over at most this many keys and extrapolated (the JSON says so).
        #[arg(long, default_value_t = 100_000)]
        put_limit: u64,
        /// Where to write the figures.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Scaling and rolling under steady writers, and joining a large store; the same by hand with etcdctl.
    Scale {
        /// How often the whole journey is made.
        #[arg(long, default_value_t = 10)]
        runs: usize,
        /// How often a second member joins; as often as the journey unless given.
        #[arg(long)]
        join_runs: Option<usize>,
        /// The store that a second member joins, in MiB; 0 leaves that out.
        #[arg(long, default_value_t = 1024)]
        join_mib: u64,
        /// Where to write the figures.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Restart-to-serving of one member, and syncer's cost at rest.
    Start {
        /// Restarts of each, half of them after kill -9.
        #[arg(long, default_value_t = 20)]
        runs: usize,
        /// Live keys in the store.
        #[arg(long, default_value_t = 10_000)]
        keys: u64,
        /// Seconds over which the cost at rest is measured.
        #[arg(long, default_value_t = 60)]
        idle: u64,
        /// Where to write the figures.
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    let (figures, json) = match Cli::parse().what {
        What::Migrate { journeys, keys, rounds, put_limit, json } => {
            (migrate::run(&migrate::Plan { sizes: keys, journeys, rounds, put_limit })?, json)
        }
        What::Scale { runs, join_runs, join_mib, json } => {
            (scale::run(runs, join_runs.unwrap_or(runs), join_mib)?, json)
        }
        What::Start { runs, keys, idle, json } => (restart::run(runs, keys, idle)?, json),
    };
    let text = serde_json::to_string_pretty(&figures)?;
    match json {
        Some(file) => std::fs::write(&file, text + "\n")?,
        None => println!("{text}"),
    }
    Ok(())
}
