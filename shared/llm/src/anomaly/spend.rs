//! Spend of a tenant against what it spends at this hour of the week.
//!
//! **What is ordinary.** The profile has the spend of each of the 168 hours of a week, so that days, nights and weekends
//! of any kind are known a week after the first event; before that there is no verdict. Between the middles of two hours
//! it is interpolated, where that gives more. It is multiplied by a level: the median over the last seven hours of what an
//! hour spent by its profile. A tenant that grows is followed within hours, and an hour out of the ordinary does not move
//! a median. The level falls by 1 % an hour at most, so that the day after a holiday is no spike.
//!
//! **What is a spike.** The last ten minutes spent at least 1.45 times the ordinary, and more than chance explains: spend
//! is counted in units of the calls' mean cost weighted by cost (`Σx² / Σx`), in which its variance is its mean, as that of
//! a Poisson count, however much costs differ; the root of such a count has the same deviation everywhere. Single costs
//! count for three units at most: a spike is made of many calls, and a single dear one is a matter of budgets. The alarm
//! ends below 1.2 times the ordinary, so that one spike is one alarm.
//!
//! **What is learned.** Once an hour, a third of the way to what was spent; not at all from an hour with an alarm in it: a
//! spike does not become ordinary by happening. A change that lasts moves the level in the fourth hour, which ends its
//! alarm. Only the first week is believed as it is.
//!
//! **How well.** Measured on series of two weeks, spikes of twice the questions or twice the cost at random times of the
//! second: Poisson arrivals, four times as many in the day as at night, 40 % fewer at the weekend from midnight to
//! midnight, days that differ by 5 %, log-normal costs with a spread of 1 (`figures_by_volume` in the tests).
//!
//! | questions a second at the peak | spikes | found within 10 minutes | weeks | false alarms a week |
//! |---|---|---|---|---|
//! | 4 | 1000 | 99.8 % | 10 | 0.0 |
//! | 2 | 1000 | 99.5 % | 20 | 0.4 |
//! | 1 | 2000 | 95.7 % | 40 | 0.4 |
//! | 0.5 | 2000 | 78.6 % | 40 | 0.45 |
//!
//! So it needs a question a second at the peak of a day, 300 in ten minutes on average over the week; with fewer it finds
//! less, and false alarms stay as rare.
//! Where costs have a spread of 1.5 it needs twice of that (96 %; 80 % with one a second), and twice the cost is harder
//! to find than twice the questions (93 % and 98 % with one a second). Days that differ by 10 % for no reason are too
//! much for it: three false alarms a week with two questions a second.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::NanoUsd;
use crate::money::whole;

const HOUR_MS: i64 = 3_600_000;

const MINUTE_MS: i64 = 60_000;

const WEEK_HOURS: i64 = 7 * 24;

/// Hours whose median is the level.
const LEVEL_HOURS: usize = 7;

/// The level falls to this share of itself in an hour, at most.
const LEVEL_FALL: f64 = 0.99;

/// How much of what an hour spent goes into the profile.
const LEARN: f64 = 1.0 / 3.0;

/// How much what a call costs weighs after an hour more.
const FADE: f64 = 0.99;

/// Minutes that are looked back on, the one that has begun included: a spike fills them before it is ten minutes old.
const WINDOW_MINUTES: usize = 10;

/// Times the ordinary from which spend is a spike; half-way to twice, and more than days differ by without a reason.
const SPIKE: f64 = 1.45;

/// Times the ordinary below which a spike is over.
const OVER: f64 = 1.2;

/// Standard deviations that a spike is above the ordinary.
const SIGNIFICANT: f64 = 4.2;

/// Units of a single cost that count.
const MOST_UNITS: f64 = 3.0;

/// Units an hour below which spend is never a spike: ten calls in ten minutes say nothing of a tenant that is silent
/// else.
const QUIET_UNITS_PER_HOUR: f64 = 60.0;

/// Watches the spend of one tenant; about 3 KB as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpendWatch {
    /// Ordinary spend of each hour of the week at level 1; a place is the hour's number modulo the week.
    profile: Vec<NanoUsd>,
    /// Hours the profile has been learned from.
    learned: i64,
    level: f64,
    /// What the last hours spent by their profile.
    ratios: VecDeque<f64>,
    costs: Costs,
    hour: Option<Hour>,
    /// Milliseconds since the Unix epoch.
    latest: i64,
    /// The last ones, without gaps; the last is that of `latest`.
    minutes: VecDeque<Minute>,
    raised: bool,
}

/// Sums over what calls cost, in billionths of a dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Costs {
    sum: f64,
    squares: f64,
}

/// The hour that has begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Hour {
    number: i64,
    costs: Costs,
    /// Nothing is to be learned from it: it was not seen from its beginning, or an alarm was on.
    disturbed: bool,
}

/// What a minute spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Minute {
    spent: NanoUsd,
    /// With single costs cut to what counts of them.
    counted: f64,
}

/// A tenant spends about twice as much as it does at this time of the week, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpendAlarm {
    /// What was spent in the last ten minutes, the one that has begun included.
    pub spent: NanoUsd,
    /// What is ordinary for them, with single costs cut to three typical ones.
    pub expected: NanoUsd,
}

impl Default for SpendWatch {
    fn default() -> Self {
        Self {
            profile: Vec::new(),
            learned: 0,
            level: 1.0,
            ratios: VecDeque::new(),
            costs: Costs::default(),
            hour: None,
            latest: 0,
            minutes: VecDeque::new(),
            raised: false,
        }
    }
}

impl Costs {
    fn add(&mut self, cost: f64) {
        self.sum += cost;
        self.squares += cost * cost;
    }

    fn fade_into(self, more: Self) -> Self {
        Self { sum: self.sum * FADE + more.sum, squares: self.squares * FADE + more.squares }
    }

    /// The mean cost weighted by cost, if anything has a cost.
    fn unit(&self) -> Option<f64> {
        (self.sum > 0.0).then(|| self.squares / self.sum)
    }
}

impl SpendWatch {
    /// Takes note of what a call has cost, free ones included. Times are milliseconds since the Unix epoch; one before
    /// the latest counts as that.
    pub fn observe(&mut self, at: i64, cost: NanoUsd) -> Verdict<SpendAlarm> {
        let at = at.max(self.latest);
        self.enter_hour_of(at);
        self.enter_minute_of(at);
        let unit = self.costs.unit();
        let counted = (cost.0 as f64).min(unit.map_or(f64::INFINITY, |unit| unit * MOST_UNITS));
        if let Some(hour) = &mut self.hour {
            hour.costs.add(counted);
        }
        if let Some(minute) = self.minutes.back_mut() {
            minute.spent = minute.spent.saturating_add(cost);
            minute.counted += counted;
        }
        let Some(unit) = unit.filter(|_| self.learned >= WEEK_HOURS) else {
            return Verdict::NoBaseline;
        };
        let verdict = self.judge(at, unit);
        if let Some(hour) = &mut self.hour {
            hour.disturbed |= self.raised;
        }
        verdict
    }

    fn judge(&mut self, at: i64, unit: f64) -> Verdict<SpendAlarm> {
        let begun = (at.rem_euclid(MINUTE_MS) + 1) as f64 / MINUTE_MS as f64;
        let hours = (self.minutes.len().saturating_sub(1) as f64 + begun) / 60.0;
        let middle = at.saturating_sub(MINUTE_MS * 5);
        let expected = self.ordinary(middle).max(unit * QUIET_UNITS_PER_HOUR) * hours;
        let counted: f64 = self.minutes.iter().map(|minute| minute.counted).sum();
        if self.raised {
            self.raised = counted >= OVER * expected;
            return if self.raised { Verdict::Ongoing } else { Verdict::Ordinary };
        }
        // Twice the root of a Poisson count is about normal with a deviation of 1 (Anscombe 1948).
        let root = |spend: f64| 2.0 * (spend / unit + 0.375).sqrt();
        self.raised = counted >= SPIKE * expected && root(counted) - root(expected) >= SIGNIFICANT;
        if !self.raised {
            return Verdict::Ordinary;
        }
        let spent = self.minutes.iter().map(|minute| minute.spent).sum();
        Verdict::Raised(SpendAlarm { spent, expected: NanoUsd(whole(expected)) })
    }

    /// Forgets the minutes that are too long ago.
    fn enter_minute_of(&mut self, at: i64) {
        let passed = at.div_euclid(MINUTE_MS).saturating_sub(self.latest.div_euclid(MINUTE_MS));
        self.latest = at;
        for _ in 0..usize::try_from(passed).map_or(WINDOW_MINUTES, |passed| passed.min(WINDOW_MINUTES)) {
            self.minutes.push_back(Minute::default());
        }
        while self.minutes.len() > WINDOW_MINUTES {
            self.minutes.pop_front();
        }
    }

    /// Closes the hours before this time.
    fn enter_hour_of(&mut self, at: i64) {
        let number = at.div_euclid(HOUR_MS);
        let Some(hour) = self.hour else {
            self.hour = Some(Hour { number, disturbed: true, ..Hour::default() });
            return;
        };
        let passed = number.saturating_sub(hour.number);
        if passed > WEEK_HOURS {
            // What was ordinary before a silence of a week is of no use.
            *self =
                Self { latest: self.latest, hour: Some(Hour { number, disturbed: true, ..hour }), ..Self::default() };
        } else if passed > 0 {
            self.learn(&hour);
            for silent in hour.number + 1..number {
                self.raised = false;
                self.learn(&Hour { number: silent, ..Hour::default() });
            }
            self.hour = Some(Hour { number, costs: Costs::default(), disturbed: self.raised });
        }
    }

    fn learn(&mut self, hour: &Hour) {
        let Hour { number, costs, disturbed } = *hour;
        let place = place(number);
        let known = self.learned >= WEEK_HOURS;
        if known {
            self.learn_level(place, costs.sum);
        }
        if disturbed {
            return;
        }
        self.costs = self.costs.fade_into(costs);
        self.learned = self.learned.saturating_add(1);
        if self.profile.len() <= place {
            self.profile.resize(place + 1, NanoUsd::ZERO);
        }
        if let Some(ordinary) = self.profile.get_mut(place) {
            let (old, new) = (ordinary.0 as f64, costs.sum / self.level);
            *ordinary = NanoUsd(whole(if known { old + LEARN * (new - old) } else { new }));
        }
    }

    fn learn_level(&mut self, place: usize, spent: f64) {
        let ordinary = self.profile.get(place).map_or(0.0, |ordinary| ordinary.0 as f64);
        // What is quiet by its profile says nothing about the level.
        if !self.costs.unit().is_some_and(|unit| ordinary > unit * QUIET_UNITS_PER_HOUR) {
            return;
        }
        self.ratios.push_back(spent / ordinary);
        while self.ratios.len() > LEVEL_HOURS {
            self.ratios.pop_front();
        }
        let mut sorted: Vec<f64> = self.ratios.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        if sorted.len() == LEVEL_HOURS {
            let median = sorted.get(LEVEL_HOURS / 2).copied().unwrap_or(self.level);
            self.level = median.max(self.level * LEVEL_FALL);
        }
    }

    /// Ordinary spend at this time, billionths of a dollar an hour.
    fn ordinary(&self, at: i64) -> f64 {
        let spend = |number| self.profile.get(place(number)).map_or(0.0, |spend: &NanoUsd| spend.0 as f64);
        let number = at.div_euclid(HOUR_MS);
        // From half an hour before the middle of the hour to half an hour after it.
        let off = at.rem_euclid(HOUR_MS) as f64 / HOUR_MS as f64 - 0.5;
        let neighbour = if off < 0.0 { number - 1 } else { number + 1 };
        let between = spend(number) * (1.0 - off.abs()) + spend(neighbour) * off.abs();
        // Some rhythms change on the hour: then only the hour itself knows.
        self.level * between.max(spend(number))
    }
}

/// Place in the profile of an hour counted from the epoch.
fn place(number: i64) -> usize {
    usize::try_from(number.rem_euclid(WEEK_HOURS)).unwrap_or(0)
}

#[cfg(test)]
#[path = "spend_tests.rs"]
mod tests;
