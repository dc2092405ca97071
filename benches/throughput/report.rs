//! What is to be measured, how often, and how it is printed.

use std::{env, fmt, time::Duration};

use crate::{
    process::{Pinning, Process},
    target::{self, Target},
};

/// The scenarios, as `BENCH_ONLY` names them.
pub(crate) const SCENARIOS: [&str; 6] = ["json", "access", "burst", "paced", "idle", "resume"];

/// The settings of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) duration: Duration,
    pub(crate) rounds: usize,
    only: Vec<String>,
    pinning: Pinning,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { duration, rounds, pinning, .. } = self;
        write!(f, "{rounds} rounds of {:.1} s each, medians; {pinning}", duration.as_secs_f64())
    }
}

impl Plan {
    pub(crate) fn from_environment() -> Self {
        let number = |name: &str, default: f64| {
            let text = setting(name);
            text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
        };
        let only = setting("BENCH_ONLY").unwrap_or_else(|| SCENARIOS.join(","));
        let only: Vec<String> = only.split(',').map(|name| name.trim().to_owned()).collect();
        if let Some(name) = only.iter().find(|name| !SCENARIOS.contains(&name.as_str())) {
            panic!("BENCH_ONLY: no {name:?}; there are {}", SCENARIOS.join(", "));
        }
        Self {
            duration: Duration::from_secs_f64(number("BENCH_SECONDS", 3.0).clamp(0.1, 60.0)),
            rounds: number("BENCH_ROUNDS", 3.0).clamp(1.0, 100.0) as usize,
            only,
            pinning: Pinning::default(),
        }
    }

    pub(crate) fn pinned(self, pinning: Pinning) -> Self {
        Self { pinning, ..self }
    }

    pub(crate) fn wants(&self, scenario: &str) -> bool {
        self.only.iter().any(|name| name == scenario)
    }

    /// The targets of every round, there and back, so that no one of them always has the same neighbour.
    pub(crate) fn visits<'t>(&self, targets: &'t [Target]) -> impl Iterator<Item = &'t Target> + use<'t> {
        (0..self.rounds).flat_map(move |round| {
            (0..targets.len())
                .map(move |place| &targets[if round % 2 == 0 { place } else { targets.len() - 1 - place }])
        })
    }

    pub(crate) fn start_upstream(&self, role: &str) -> Process {
        Process::start(target::ROLE, role, None, self.pinning.upstream())
    }

    /// Afresh for every visit, so that nobody inherits the memory of an earlier load.
    pub(crate) fn start(&self, target: &Target, upstream: &Process) -> Process {
        Process::start(target::ROLE, target.role, Some(&upstream.address), self.pinning.target())
    }
}

fn setting(name: &str) -> Option<String> {
    let text = env::var_os(name)?;
    Some(text.into_string().unwrap_or_else(|_| panic!("{name} must be text")))
}

/// All measurements of one scenario, by the row they belong to.
#[derive(Debug)]
pub(crate) struct Found<M>(Vec<(String, M)>);

/// A column: its title, how many decimals it has, and its figure.
pub(crate) type Column<M> = (&'static str, usize, fn(&M) -> f64);

impl<M> Found<M> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, row: impl Into<String>, measured: M) {
        self.0.push((row.into(), measured));
    }

    pub(crate) fn median(&self, row: &str, figure: impl Fn(&M) -> f64) -> f64 {
        median(self.0.iter().filter(|(name, _)| name == row).map(|(_, measured)| figure(measured)))
    }

    /// A markdown table of the medians.
    pub(crate) fn print(&self, title: &str, columns: &[Column<M>]) {
        let titles: Vec<_> = columns.iter().map(|(title, ..)| *title).collect();
        println!("\n{title}\n\n| target | {} |", titles.join(" | "));
        println!("|---|{}", "---:|".repeat(columns.len()));
        let mut rows: Vec<&str> = Vec::new();
        for (row, _) in &self.0 {
            if !rows.contains(&row.as_str()) {
                rows.push(row);
            }
        }
        for row in rows {
            let figures =
                columns.iter().map(|(_, decimals, figure)| format!("{:.*}", decimals, self.median(row, figure)));
            println!("| {row} | {} |", figures.collect::<Vec<_>>().join(" | "));
        }
        println!();
    }
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
