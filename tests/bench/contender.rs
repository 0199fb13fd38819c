//! Contenders: they do the same work, in turn, and what that cost each is compared.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::sample::{Cost, median, summary};

/// Does the work once, in an empty folder.
type Work<'a> = Box<dyn FnMut(&Path) -> anyhow::Result<Cost> + 'a>;

/// One that does the work in an empty folder, which is removed behind it.
pub struct Contender<'a> {
    /// Its name in the figures.
    pub name: &'static str,
    work: Work<'a>,
}

impl<'a> Contender<'a> {
    /// A contender of this name.
    pub fn new(name: &'static str, work: impl FnMut(&Path) -> anyhow::Result<Cost> + 'a) -> Self {
        Contender { name, work: Box::new(work) }
    }
}

/// What every run cost.
pub struct Figures(Vec<(&'static str, Vec<Cost>)>);

/// So many rounds below `folder`, in each of which every contender works once; every other round in reverse, so that none
/// always finds the disk as the same one has left it.
pub fn rounds(what: &str, folder: &Path, rounds: usize, mut all: Vec<Contender<'_>>) -> anyhow::Result<Figures> {
    let mut figures = Figures(all.iter().map(|contender| (contender.name, Vec::new())).collect());
    for round in 0..rounds.max(1) {
        let mut order: Vec<usize> = (0..all.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let work = tempfile::tempdir_in(folder)?;
            let contender = &mut all[at];
            let cost = (contender.work)(work.path()).with_context(|| format!("{what}: {}", contender.name))?;
            let mib = cost.peak_anonymous >> 20;
            let cpu = cost.cpu_seconds.map_or_else(String::new, |cpu| format!(" ({cpu:.2} s of CPU)"));
            let parts: String = cost.parts.iter().map(|(name, seconds)| format!(", {name} {seconds:.2} s")).collect();
            let (round, name, seconds) = (round + 1, contender.name, cost.seconds);
            eprintln!("bench: {what}, round {round}: {name} {seconds:.2} s{cpu}, {mib} MiB{parts}");
            figures.0[at].1.push(cost);
        }
    }
    Ok(figures)
}

impl Figures {
    fn of(&self, name: &str, what: impl Fn(&Cost) -> Option<f64>) -> Vec<f64> {
        let costs = self.0.iter().find(|(known, _)| *known == name).map(|(_, costs)| costs.as_slice());
        costs.unwrap_or_default().iter().filter_map(what).collect()
    }

    /// The wall times of one contender.
    pub fn seconds(&self, name: &str) -> Vec<f64> {
        self.of(name, |cost| Some(cost.seconds))
    }

    /// The peaks of one contender's memory, in MiB.
    pub fn peak_mib(&self, name: &str) -> Vec<f64> {
        self.of(name, |cost| (cost.peak_anonymous > 0).then_some(cost.peak_anonymous as f64 / f64::from(1 << 20)))
    }

    /// Every contender's figures, and how ours compares with `peer`: by the medians of wall time and of CPU time.
    pub fn json(&self, peer: &str) -> Value {
        let mut all = Map::new();
        for (name, costs) in &self.0 {
            let mut one = Map::new();
            one.insert("seconds".into(), summary(&self.seconds(name)));
            for (key, values) in
                [("cpu_seconds", self.of(name, |cost| cost.cpu_seconds)), ("peak_anonymous_mib", self.peak_mib(name))]
            {
                if !values.is_empty() {
                    one.insert(key.into(), summary(&values));
                }
            }
            for (at, (part, _)) in costs.first().iter().flat_map(|cost| cost.parts.iter().enumerate()) {
                let values = self.of(name, |cost| cost.parts.get(at).map(|(_, seconds)| *seconds));
                one.insert(format!("{part}_seconds"), summary(&values));
            }
            all.insert((*name).to_owned(), Value::Object(one));
        }
        let over = |what: fn(&Cost) -> Option<f64>| {
            let ratio = median(&self.of("syncer", what)) / median(&self.of(peer, what));
            ratio.is_finite().then_some(ratio)
        };
        all.insert(
            format!("syncer_over_{peer}"),
            json!({ "seconds": over(|cost| Some(cost.seconds)), "cpu_seconds": over(|cost| cost.cpu_seconds) }),
        );
        Value::Object(all)
    }
}
