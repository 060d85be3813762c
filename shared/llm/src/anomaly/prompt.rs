//! Input tokens of the calls of each version of a prompt against what calls of the same version had before.
//!
//! **What is ordinary.** The logarithm of a call's tokens is about normal; its mean and variance are kept, each call
//! with a weight of one in a few hundred, and no call moves them further than three deviations allow. A version has a
//! baseline after its first 30 calls.
//!
//! **What is a jump.** Evidence for twice the tokens is added up as Page's cumulative sum ("Continuous Inspection
//! Schemes", Biometrika 41, 1954): each call adds the logarithm of how much likelier its tokens are with twice as many
//! than with the usual, and the sum never falls below zero. Of all rules with so few false alarms it is the quickest on
//! average (Moustakides 1986), and where it last left zero the jump began. A call counts for a quarter of what raises an
//! alarm at most, so a jump is at least four calls long.
//!
//! **How well.** Twice the tokens, 200 times for each spread of the logarithm: found after 4 calls (95 % of times within 4)
//! with a spread of 0, 4 (5) with 0.15, 8 (12) with 0.3, 18 (31) with 0.5. No false alarm in a million calls, 200 000
//! with each of these spreads and 0.7.
//!
//! **What is learned.** Nothing while an alarm is on. After 300 calls of it they are the version's new baseline, learned
//! from nothing, and the alarm has ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::money::whole;

/// Versions that are remembered, at most; those used last.
const MOST_VERSIONS: usize = 64;

/// Calls after which a version has a baseline.
const BASELINE_CALLS: u32 = 30;

/// Calls that the baseline reaches back to, about.
const MEMORY_CALLS: u32 = 300;

/// Calls under alarm after which they are what is ordinary.
const ACCEPTED_CALLS: u32 = 300;

/// Least deviation of the logarithm: templates of always the same length have none, and one more line is no jump.
const LEAST_DEVIATION: f64 = 0.1;

/// Evidence that raises an alarm.
const ENOUGH: f64 = 16.0;

/// Evidence of a single call, at most.
const MOST_OF_ONE: f64 = ENOUGH / 4.0;

/// Watches the input tokens of all versions of a prompt; the 64 used last are remembered, about 200 bytes of JSON each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptWatch {
    versions: BTreeMap<String, Version>,
    calls: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Version {
    /// Calls learned from, up to [`MEMORY_CALLS`].
    calls: u32,
    /// Of the logarithm.
    mean: f64,
    variance: f64,
    evidence: Evidence,
    /// Since the evidence was last zero: calls, and the sum of their logarithms.
    run_calls: u32,
    run_sum: f64,
    /// Number of its last call among those of all versions.
    last: u64,
}

/// Calls of a version have about twice the input tokens they had before, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptAlarm {
    /// Calls since that began, as far as can be said.
    pub calls: u32,
    /// Their input tokens; the geometric mean.
    pub tokens: u64,
    /// Those of calls before; the geometric mean.
    pub usual: u64,
}

/// Evidence for a change, and whether there was enough to raise an alarm. The alarm ends when none is left: one change
/// is one alarm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Evidence {
    sum: f64,
    raised: bool,
}

impl Evidence {
    /// Takes away what speaks against a change; whether nothing is left.
    fn weaken(&mut self, by: f64) -> bool {
        self.sum = (self.sum - by).max(0.0);
        if self.sum <= 0.0 {
            self.raised = false;
        }
        self.sum <= 0.0
    }

    /// Adds what speaks for one; whether that raises the alarm. More than twice of what raises it is not kept, so that
    /// the end of a long alarm is noticed as well.
    fn strengthen(&mut self, by: f64, enough: f64) -> bool {
        self.sum = (self.sum + by).min(2.0 * enough);
        let raises = !self.raised && self.sum >= enough;
        self.raised |= raises;
        raises
    }
}

impl PromptWatch {
    /// Takes note of the input tokens of a call.
    pub fn observe(&mut self, version: &str, input_tokens: u64) -> Verdict<PromptAlarm> {
        self.calls = self.calls.saturating_add(1);
        if !self.versions.contains_key(version) {
            self.make_room();
        }
        let entry = self.versions.entry(version.to_owned()).or_default();
        entry.last = self.calls;
        entry.observe((input_tokens.max(1) as f64).ln())
    }

    fn make_room(&mut self) {
        while self.versions.len() >= MOST_VERSIONS {
            let oldest = self.versions.iter().min_by_key(|(_, version)| version.last).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { return };
            self.versions.remove(&oldest);
        }
    }
}

impl Version {
    fn observe(&mut self, logarithm: f64) -> Verdict<PromptAlarm> {
        if self.calls < BASELINE_CALLS {
            self.learn(logarithm);
            return Verdict::NoBaseline;
        }
        let raised = self.weigh(logarithm);
        if !self.evidence.raised {
            self.learn(logarithm);
            return Verdict::Ordinary;
        }
        if raised {
            let tokens = |logarithm: f64| whole(logarithm.exp().round());
            let mean = self.run_sum / f64::from(self.run_calls);
            return Verdict::Raised(PromptAlarm {
                calls: self.run_calls,
                tokens: tokens(mean),
                usual: tokens(self.mean),
            });
        }
        if self.run_calls > ACCEPTED_CALLS {
            *self = Self { last: self.last, ..Self::default() };
            self.learn(logarithm);
            return Verdict::NoBaseline;
        }
        Verdict::Ongoing
    }

    /// Whether the call raises an alarm.
    fn weigh(&mut self, logarithm: f64) -> bool {
        let doubled = std::f64::consts::LN_2;
        let variance = self.deviation().powi(2);
        let evidence = doubled / variance * (logarithm - self.mean - doubled / 2.0);
        let evidence = evidence.clamp(-MOST_OF_ONE, MOST_OF_ONE);
        let (against, towards) = ((-evidence).max(0.0), evidence.max(0.0));
        if self.evidence.weaken(against) {
            (self.run_calls, self.run_sum) = (0, 0.0);
        }
        self.run_calls = self.run_calls.saturating_add(1);
        self.run_sum += logarithm;
        self.evidence.strengthen(towards, ENOUGH)
    }

    fn learn(&mut self, logarithm: f64) {
        let known = self.calls >= BASELINE_CALLS;
        self.calls = (self.calls + 1).min(MEMORY_CALLS);
        let weight = 1.0 / f64::from(self.calls);
        let most = if known { 3.0 * self.deviation() } else { f64::INFINITY };
        let off = (logarithm - self.mean).clamp(-most, most);
        self.mean += weight * off;
        self.variance += weight * (off * off * (1.0 - weight) - self.variance);
    }

    fn deviation(&self) -> f64 {
        self.variance.sqrt().max(LEAST_DEVIATION)
    }
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
