//! Tenants of known rhythm with spikes at random times: how many are found, and how often there is an alarm without one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use proptest::prelude::{any, prop, prop_assert, proptest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * HOUR_MS;
const WEEK: i64 = 7 * DAY;
/// Monday, 5 January 2026.
const START: i64 = 1_767_571_200_000;

/// A tenant: questions of a Poisson process with a daily rhythm (four times as many at three in the afternoon as at three
/// at night), less at the weekend, no two days alike, and costs that are log-normal.
#[derive(Debug, Clone)]
struct Tenant {
    random: StdRng,
    /// Questions a second at the peak of an ordinary day.
    peak: f64,
    /// Deviation of the costs' logarithm.
    spread: f64,
    /// Of the logarithm of a day's level.
    unlike: f64,
    days: Vec<f64>,
    at: f64,
}

/// From when on there are how many times more questions, of how many times the cost.
#[derive(Debug, Clone, Copy)]
struct Factor {
    questions: f64,
    cost: f64,
}

const NONE: Factor = Factor { questions: 1.0, cost: 1.0 };
const TWICE_AS_MANY: Factor = Factor { questions: 2.0, cost: 1.0 };
const TWICE_AS_DEAR: Factor = Factor { questions: 1.0, cost: 2.0 };

impl Tenant {
    fn new(seed: u64, peak: f64) -> Self {
        let (spread, unlike) = (1.0, 0.05);
        let mut tenant =
            Self { random: StdRng::seed_from_u64(seed), peak, spread, unlike, days: Vec::new(), at: START as f64 };
        tenant.days = (0..60).map(|_| (tenant.unlike * tenant.normal()).exp()).collect();
        tenant
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        let (radius, angle): (f64, f64) = (self.random.random(), self.random.random());
        (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// Questions a second.
    fn rate(&self, at: f64) -> f64 {
        let days = (at - START as f64) / DAY as f64;
        let weekend = if days.rem_euclid(7.0) >= 5.0 { 0.6 } else { 1.0 };
        let night = (1.0 - (std::f64::consts::TAU * (days - 15.0 / 24.0)).cos()) / 2.0;
        self.peak * weekend * 0.25f64.powf(night) * self.days[days as usize % self.days.len()]
    }

    /// The next question: when, and what it costs.
    fn next(&mut self, factor: Factor) -> (i64, NanoUsd) {
        let most = self.peak * (1.0 + 6.0 * self.unlike) * factor.questions / 1_000.0;
        loop {
            self.at -= (1.0 - self.random.random::<f64>()).ln() / most;
            let rate = self.rate(self.at) * factor.questions / 1_000.0;
            if self.random.random::<f64>() * most < rate {
                let cost = 0.002 * factor.cost * (self.spread * self.normal()).exp();
                return (self.at as i64, NanoUsd::from(crate::Usd(cost)));
            }
        }
    }

    /// Lets the watch see everything until then; when alarms were raised.
    fn run(&mut self, watch: &mut SpendWatch, until: i64, factor: Factor) -> Vec<(i64, SpendAlarm)> {
        let mut alarms = Vec::new();
        while self.at < until as f64 {
            let (at, cost) = self.next(factor);
            if let Verdict::Raised(alarm) = watch.observe(at, cost) {
                alarms.push((at, alarm));
            }
        }
        alarms
    }

    /// How long a spike that begins now is without an alarm; none if it stays so for an hour.
    fn delay(&self, watch: &SpendWatch, factor: Factor, seed: u64) -> Option<i64> {
        let (mut tenant, mut watch) = (self.clone(), watch.clone());
        tenant.random = StdRng::seed_from_u64(seed);
        let began = tenant.at;
        while tenant.at < began + HOUR_MS as f64 {
            let (at, cost) = tenant.next(factor);
            if matches!(watch.observe(at, cost), Verdict::Raised(_)) {
                return Some(at - began as i64);
            }
        }
        None
    }
}

/// What was measured over several seeds.
#[derive(Debug, Default)]
struct Score {
    spikes: usize,
    /// Within ten minutes.
    found: usize,
    false_alarms: usize,
    weeks: usize,
}

/// Two weeks of each seed: the second one is watched, with spikes at random times that leave no trace.
fn measure(peak: f64, seeds: std::ops::Range<u64>, spikes: usize) -> Score {
    let mut score = Score::default();
    for seed in seeds {
        let (mut tenant, mut watch) = (Tenant::new(seed, peak), SpendWatch::default());
        let mut random = StdRng::seed_from_u64(seed + 1_000_000);
        assert_eq!(tenant.run(&mut watch, START + WEEK + HOUR_MS, NONE), []);
        let mut times: Vec<i64> = (0..spikes).map(|_| START + WEEK + random.random_range(2 * HOUR_MS..WEEK)).collect();
        times.sort_unstable();
        for (count, time) in times.into_iter().enumerate() {
            score.false_alarms += tenant.run(&mut watch, time, NONE).len();
            let factor = if count % 2 == 0 { TWICE_AS_MANY } else { TWICE_AS_DEAR };
            let delay = tenant.delay(&watch, factor, random.random());
            score.found += usize::from(delay.is_some_and(|delay| delay <= 10 * MINUTE));
            score.spikes += 1;
        }
        score.false_alarms += tenant.run(&mut watch, START + 2 * WEEK, NONE).len();
        score.weeks += 1;
    }
    score
}

#[test]
fn spikes_are_found_within_ten_minutes_and_false_alarms_are_rare() {
    for (peak, seeds, spikes) in [(4.0, 0..4, 50), (1.0, 10..18, 50)] {
        let score = measure(peak, seeds, spikes);
        let recall = score.found as f64 / score.spikes as f64;
        let a_week = score.false_alarms as f64 / score.weeks as f64;
        println!(
            "{peak} questions a second at the peak: recall {recall:.3}, {a_week:.2} false alarms a week, {score:?}"
        );
        assert!(recall >= 0.95, "{score:?}");
        assert!(a_week <= 1.0, "{score:?}");
    }
}

/// The figures of the module's documentation.
#[test]
#[ignore = "half a minute; prints figures"]
fn figures_by_volume() {
    for (peak, seeds, spikes) in [(4.0, 100..110, 100), (2.0, 200..220, 50), (1.0, 300..340, 50), (0.5, 400..440, 50)] {
        println!("{peak}: {:?}", measure(peak, seeds, spikes));
    }
}

/// A tenant and what is known of it a week and a bit after its first question, on Monday at `hour`.
fn known(seed: u64, hour: i64) -> (Tenant, SpendWatch) {
    let (mut tenant, mut watch) = (Tenant::new(seed, 1.0), SpendWatch::default());
    assert_eq!(tenant.run(&mut watch, START + WEEK + hour * HOUR_MS, NONE), []);
    (tenant, watch)
}

#[test]
fn there_is_no_verdict_in_the_first_week_whatever_happens() {
    let (mut tenant, mut watch) = (Tenant::new(1, 0.1), SpendWatch::default());
    while tenant.at < (START + WEEK) as f64 {
        let factor = if tenant.at > (START + 3 * DAY) as f64 { TWICE_AS_DEAR } else { NONE };
        let (at, cost) = tenant.next(factor);
        assert_eq!(watch.observe(at, cost), Verdict::NoBaseline);
    }
    tenant.run(&mut watch, START + WEEK + 2 * HOUR_MS, NONE);
    let (at, cost) = tenant.next(NONE);
    assert_ne!(watch.observe(at, cost), Verdict::NoBaseline);
}

#[test]
fn one_spike_is_one_alarm_and_does_not_become_ordinary() {
    let (mut tenant, mut watch) = known(2, 10);
    for week in 1..4 {
        let began = START + week * WEEK + 10 * HOUR_MS;
        let alarms = tenant.run(&mut watch, began + 100 * MINUTE, TWICE_AS_MANY);
        let [(at, alarm)] = alarms.as_slice() else { panic!("{alarms:?}") };
        assert!(*at - began <= 10 * MINUTE, "after {} s", (at - began) / 1_000);
        assert!(alarm.spent > alarm.expected);
        assert_eq!(tenant.run(&mut watch, began + WEEK, NONE), [], "week {week}");
    }
}

#[test]
fn what_lasts_becomes_ordinary_within_hours() {
    let (mut tenant, mut watch) = known(3, 10);
    let began = START + WEEK + 10 * HOUR_MS;
    assert_eq!(tenant.run(&mut watch, began + 3 * HOUR_MS, TWICE_AS_DEAR).len(), 1);
    assert!(watch.raised);
    assert_eq!(tenant.run(&mut watch, began + 6 * HOUR_MS, TWICE_AS_DEAR), []);
    assert!(!watch.raised, "twice is ordinary now");
    assert_eq!(tenant.run(&mut watch, began + WEEK, TWICE_AS_DEAR), [], "on all other days as well");
    let twice_again = Factor { questions: 2.0, cost: 2.0 };
    assert_eq!(tenant.run(&mut watch, began + WEEK + 10 * MINUTE, twice_again).len(), 1);
}

#[test]
fn the_day_after_a_holiday_is_no_spike() {
    let (mut tenant, mut watch) = known(4, 24);
    let holiday = Factor { questions: 0.6, cost: 1.0 };
    let tuesday = START + WEEK + DAY;
    assert_eq!(tenant.run(&mut watch, tuesday + DAY, holiday), []);
    assert_eq!(tenant.run(&mut watch, tuesday + 2 * DAY, NONE), []);
}

#[test]
fn a_single_dear_call_is_no_spike() {
    let (tenant, watch) = known(5, 10);
    for cost in [0.1, 10.0, 1e9] {
        let verdict = watch.clone().observe(tenant.at as i64, NanoUsd::from(crate::Usd(cost)));
        assert_eq!(verdict, Verdict::Ordinary, "{cost}");
    }
}

#[test]
fn a_tenant_that_is_silent_else_may_ask_a_few_questions() {
    let (mut watch, cost) = (SpendWatch::default(), NanoUsd(2_000_000));
    for hour in 0..=14 * 24 {
        watch.observe(START + hour * HOUR_MS, if hour % 24 == 10 { cost } else { NanoUsd::ZERO });
    }
    let began = START + WEEK * 2 + HOUR_MS / 2;
    let verdicts: Vec<_> = (0..100).map(|call| watch.observe(began + call * 1_000, cost)).collect();
    let first = verdicts.iter().position(|verdict| *verdict != Verdict::Ordinary);
    assert!(first.is_some_and(|first| (20..40).contains(&first)), "{first:?}");
}

#[test]
fn after_a_week_of_silence_it_begins_anew() {
    let (tenant, mut watch) = known(6, 10);
    let cost = NanoUsd(2_000_000);
    assert_eq!(watch.clone().observe(tenant.at as i64 + WEEK - HOUR_MS, cost), Verdict::Ordinary);
    assert_eq!(watch.observe(tenant.at as i64 + WEEK + 2 * HOUR_MS, cost), Verdict::NoBaseline);
}

#[test]
fn a_record_goes_on_where_it_was_and_is_small() {
    let (mut tenant, watch) = known(7, 30);
    let json = serde_json::to_string(&watch).unwrap();
    println!("{} bytes", json.len());
    assert!(json.len() < 4_096, "{} bytes", json.len());
    let (mut kept, mut watch): (SpendWatch, _) = (serde_json::from_str(&json).unwrap(), watch);
    let mut verdicts = Vec::new();
    for call in 0..5_000 {
        let (at, cost) = tenant.next(if call < 2_000 { NONE } else { TWICE_AS_MANY });
        let verdict = watch.observe(at, cost);
        assert_eq!(kept.observe(at, cost), verdict);
        verdicts.push(verdict);
    }
    assert!(verdicts.contains(&Verdict::Ongoing));
    assert_eq!(serde_json::from_str::<SpendWatch>("{}").unwrap(), SpendWatch::default());
}

#[test]
fn a_clock_that_runs_backwards_is_taken_to_stand_still() {
    let (tenant, mut watch) = known(8, 10);
    let at = tenant.at as i64;
    for back in [1, MINUTE, DAY, at, i64::MAX] {
        assert_eq!(watch.observe(at - back, NanoUsd(1)), Verdict::Ordinary);
    }
    assert_eq!(watch.observe(at, NanoUsd(1)), Verdict::Ordinary);
}

proptest! {
    #[test]
    fn no_clock_and_no_cost_make_it_panic(calls in prop::collection::vec((any::<i64>(), any::<u64>()), 1..20)) {
        let mut watch = SpendWatch::default();
        for (at, cost) in calls {
            watch.observe(at, NanoUsd(cost));
            prop_assert!(watch.profile.len() <= 168 && watch.minutes.len() <= 10);
        }
    }
}
