//! What is said in the end: a table for people, JSON for programs.

use std::collections::BTreeMap;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use crate::check::Violation;
use crate::inject::Done;
use crate::watch::Recovery;

/// Violations that are shown; JSON has all.
const SHOWN: usize = 50;

/// Everything there is to say of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// What it was drawn from.
    pub seed: u64,
    /// Requests that were sent.
    pub requests: usize,
    /// What they ended as.
    pub ends: BTreeMap<&'static str, usize>,
    /// Faults.
    pub faults: Vec<Done>,
    /// How long it took to get on after them.
    pub recoveries: Vec<Recovery>,
    /// What must not be.
    pub violations: Vec<Violation>,
    /// Ends of services that nobody brought about.
    pub surprises: Vec<String>,
    /// Other figures: points, returned records, seconds.
    pub figures: BTreeMap<&'static str, f64>,
}

/// Times of recoveries, seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    count: usize,
    p50: f64,
    p99: f64,
    most: f64,
}

impl Spread {
    /// None when there is no time.
    fn of(mut times: Vec<f64>) -> Option<Self> {
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied();
        Some(Self { count: times.len(), p50: at(50)?, p99: at(99)?, most: at(100)? })
    }

    fn json(self) -> Value {
        json!({ "count": self.count, "p50_s": self.p50, "p99_s": self.p99, "max_s": self.most })
    }
}

impl Report {
    /// Whether everything is as it must be.
    #[must_use]
    pub fn is_green(&self) -> bool {
        self.violations.is_empty()
    }

    /// Recoveries that measure one fault, by a name for each.
    fn spreads(&self, name: impl Fn(&Recovery, &Done) -> String) -> BTreeMap<String, Spread> {
        let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for recovery in &self.recoveries {
            let done = self.faults.iter().find(|done| done.number == recovery.fault);
            let Some(done) = done.filter(|done| done.alone && done.took_place) else { continue };
            if let Some(seconds) = recovery.seconds {
                times.entry(name(recovery, done)).or_default().push(seconds);
            }
        }
        times.into_iter().filter_map(|(name, times)| Some((name, Spread::of(times)?))).collect()
    }

    /// Faults by what was hurt and how: how many were carried out, and how many came about.
    fn counted(&self) -> BTreeMap<(String, &'static str), (usize, usize)> {
        let mut counted: BTreeMap<(String, &'static str), (usize, usize)> = BTreeMap::new();
        for done in &self.faults {
            let count = counted.entry((done.target.clone(), done.kind)).or_default();
            count.0 += 1;
            count.1 += usize::from(done.took_place);
        }
        counted
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let spreads = |spreads: BTreeMap<String, Spread>| -> Value {
            spreads.into_iter().map(|(name, spread)| (name, spread.json())).collect::<serde_json::Map<_, _>>().into()
        };
        json!({
            "seed": self.seed,
            "requests": self.requests,
            "ends": self.ends,
            "faults": self.faults,
            "faults_injected": self.faults.iter().filter(|done| done.took_place).count(),
            "recovery": spreads(self.spreads(|_, _| "all".into())),
            "recovery_by_stage": spreads(self.spreads(|recovery, _| recovery.stage.into())),
            "recovery_by_fault": spreads(self.spreads(|_, done| format!("{} {}", done.target, done.kind))),
            "recoveries": self.recoveries,
            "restarted_by_supervisor": self.surprises,
            "figures": self.figures,
            "violations": self.violations,
        })
    }

    /// For people.
    pub fn print(&self) {
        let figure = |value: usize| value.to_string();
        let mut ends = table(&["requests ended as", "count"]);
        for (end, count) in &self.ends {
            ends.add_row([(*end).to_owned(), figure(*count)]);
        }
        println!("\n{ends}");
        let mut faults = table(&["hurt", "how", "faults", "came about"]);
        for ((target, kind), (count, real)) in self.counted() {
            faults.add_row([target, kind.to_owned(), figure(count), figure(real)]);
        }
        println!("{faults}");
        let mut times = table(&["getting on again", "times", "p50 s", "p99 s", "most s"]);
        let rows = self.spreads(|recovery, _| recovery.stage.into()).into_iter();
        for (name, spread) in rows.chain(self.spreads(|_, _| "all stages".into())) {
            let seconds = [spread.p50, spread.p99, spread.most].map(|seconds| format!("{seconds:.2}"));
            let [p50, p99, most] = seconds;
            times.add_row([name, figure(spread.count), p50, p99, most]);
        }
        println!("{times}");
        for (name, value) in &self.figures {
            println!("  {name}: {value:.0}");
        }
        if !self.surprises.is_empty() {
            println!("  services that ended by themselves and were started again: {}", self.surprises.len());
            self.surprises.iter().take(10).for_each(|surprise| println!("    {surprise}"));
        }
        if self.is_green() {
            println!("\nNo violation: {} requests, {} faults (seed {}).", self.requests, self.faults.len(), self.seed);
            return;
        }
        println!("\n{} violations (seed {}):", self.violations.len(), self.seed);
        let mut by_promise: BTreeMap<&str, usize> = BTreeMap::new();
        self.violations.iter().for_each(|violation| *by_promise.entry(violation.promise).or_default() += 1);
        by_promise.iter().for_each(|(promise, count)| println!("  {count:6}  {promise}"));
        for violation in self.violations.iter().take(SHOWN) {
            println!("  {}: {}", violation.promise, violation.what);
        }
        if self.violations.len() > SHOWN {
            println!("  and {} more; --out has them all", self.violations.len() - SHOWN);
        }
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_faults_that_came_about_and_were_alone_count_as_recoveries() {
        let done = |number, alone, took_place| Done {
            number,
            at: 1.0,
            target: "chunk".into(),
            kind: "SIGKILL",
            what: String::new(),
            lasted: 0.0,
            alone,
            took_place,
        };
        let recovery = |fault, seconds| Recovery { fault, stage: "chunk", seconds };
        let report = Report {
            faults: vec![done(0, true, true), done(1, false, true), done(2, true, false), done(3, true, true)],
            recoveries: vec![recovery(0, Some(1.0)), recovery(1, Some(9.0)), recovery(2, Some(9.0)), recovery(3, None)],
            ..Report::default()
        };
        let json = report.json();
        let all = json.pointer("/recovery/all").unwrap();
        assert_eq!((all.get("count").unwrap(), all.get("max_s").unwrap()), (&json!(1), &json!(1.0)));
        assert_eq!(json.get("faults_injected").unwrap(), 3);
    }
}
