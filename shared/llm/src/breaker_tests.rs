//! A breaker under calls and times of every kind.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A breaker and its own time.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(config: BreakerConfig) -> Self {
        let now = Instant::now();
        Self { breaker: Breaker::new("p", "m", config, now), now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn acquire(&self) -> Result<Permit, Refused> {
        self.breaker.acquire(self.now)
    }

    fn call(&self, outcome: Outcome) {
        self.acquire().unwrap().report(outcome, Duration::ZERO, self.now);
    }

    fn calls(&self, outcome: Outcome, count: u32) {
        for _ in 0..count {
            self.call(outcome);
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.breaker.0.lock().state, State::Open { .. })
    }

    /// Opens it and lets it come to its first probe.
    fn half_open(&mut self) {
        self.calls(Outcome::Failure, 10);
        assert!(self.is_open());
        self.pass(30 * SECOND);
    }
}

#[test]
fn ten_failures_in_a_row_open_it() {
    let bench = Bench::new(BreakerConfig { min_calls: 100, burst_min_calls: 100, ..BreakerConfig::default() });
    bench.calls(Outcome::Failure, 9);
    bench.call(Outcome::Success);
    bench.calls(Outcome::Failure, 9);
    assert!(!bench.is_open());
    bench.call(Outcome::Failure);
    assert!(bench.is_open());
    assert_eq!(bench.acquire().unwrap_err().retry_after, 30 * SECOND);
}

#[test]
fn half_of_at_least_twenty_calls_open_it() {
    let mut bench = Bench::new(BreakerConfig::default());
    for call in 1..20 {
        bench.call(if call % 2 == 0 { Outcome::Success } else { Outcome::Failure });
        bench.pass(2 * SECOND);
    }
    assert!(!bench.is_open(), "nineteen calls, ten of them failed");
    bench.call(Outcome::Success);
    assert!(bench.is_open());
}

#[test]
fn failures_of_long_ago_do_not_count() {
    let bench = Bench::new(BreakerConfig::default());
    bench.calls(Outcome::Failure, 9);
    bench.call(Outcome::Success);
    // Nine of ten within the short window would have opened it.
    assert!(bench.is_open());
    let mut bench = Bench::new(BreakerConfig { burst_min_calls: 100, ..BreakerConfig::default() });
    bench.calls(Outcome::Failure, 9);
    bench.pass(61 * SECOND);
    bench.calls(Outcome::Success, 20);
    assert!(!bench.is_open());
}

/// How long an outage that follows a healthy minute lasts until the breaker opens, at ten calls a second of which every
/// nth still succeeds.
fn until_open(config: BreakerConfig, lucky: u32) -> Duration {
    let mut bench = Bench::new(config);
    for _ in 0..600 {
        bench.call(Outcome::Success);
        bench.pass(SECOND / 10);
    }
    let outage = bench.now;
    for call in 1.. {
        bench.call(if call % lucky == 0 { Outcome::Success } else { Outcome::Failure });
        if bench.is_open() {
            break;
        }
        bench.pass(SECOND / 10);
    }
    bench.now.duration_since(outage)
}

#[test]
fn a_sudden_outage_after_a_healthy_minute_opens_it_within_seconds() {
    let config = BreakerConfig::default();
    assert!(until_open(config, u32::MAX) < SECOND);
    assert!(until_open(config, 5) < 4 * SECOND, "of the short window more than half");
    let without_short_window = BreakerConfig { burst_min_calls: u32::MAX, ..config };
    assert!(until_open(without_short_window, 5) > 20 * SECOND, "it is the short window that notices");
}

#[test]
fn it_closes_when_all_probes_succeed_and_not_before() {
    let mut bench = Bench::new(BreakerConfig::default());
    bench.half_open();
    let probes: Vec<Permit> = (0..3).map(|_| bench.acquire().unwrap()).collect();
    assert_eq!(bench.acquire().unwrap_err().retry_after, Duration::ZERO);
    let mut closed = Vec::new();
    for probe in probes {
        probe.report(Outcome::Success, Duration::ZERO, bench.now);
        closed.push(bench.breaker.is_closed());
    }
    assert_eq!(closed, [false, false, true]);
    bench.calls(Outcome::Failure, 9);
    assert!(bench.breaker.is_closed(), "it starts anew");
}

#[test]
fn one_failed_probe_opens_it_again() {
    let mut bench = Bench::new(BreakerConfig::default());
    bench.half_open();
    let (first, second) = (bench.acquire().unwrap(), bench.acquire().unwrap());
    first.report(Outcome::Failure, Duration::ZERO, bench.now);
    assert!(bench.is_open());
    second.report(Outcome::Success, Duration::ZERO, bench.now);
    assert!(bench.is_open(), "what was under way does not close it");
    assert_eq!(bench.acquire().unwrap_err().retry_after, 30 * SECOND);
}

#[test]
fn a_cancelled_probe_gives_its_permit_back_and_so_does_one_that_says_nothing() {
    let mut bench = Bench::new(BreakerConfig { probes: 1, ..BreakerConfig::default() });
    bench.half_open();
    drop(bench.acquire().unwrap());
    bench.call(Outcome::Ignored);
    let probe = bench.acquire().unwrap();
    assert!(bench.acquire().is_err());
    probe.report(Outcome::Success, Duration::ZERO, bench.now);
    assert!(bench.breaker.is_closed());
}

#[test]
fn calls_in_flight_when_it_opened_neither_close_nor_probe_it() {
    let mut bench = Bench::new(BreakerConfig::default());
    let early: Vec<Permit> = (0..6).map(|_| bench.acquire().unwrap()).collect();
    bench.half_open();
    let probe = bench.acquire().unwrap();
    for (at, permit) in early.into_iter().enumerate() {
        let outcome = if at % 2 == 0 { Outcome::Success } else { Outcome::Failure };
        permit.report(outcome, Duration::ZERO, bench.now);
    }
    assert!(!bench.is_open() && !bench.breaker.is_closed(), "still half-open");
    drop(probe);
}

#[test]
fn what_says_nothing_of_the_model_counts_neither_way() {
    let bench = Bench::new(BreakerConfig { burst_min_calls: 100, ..BreakerConfig::default() });
    bench.calls(Outcome::Failure, 9);
    bench.calls(Outcome::Ignored, 100);
    assert!(!bench.is_open());
    bench.call(Outcome::Failure);
    assert!(bench.is_open(), "and did not break the row");
}

#[test]
fn slow_calls_count_as_failures_only_when_it_is_said_so() {
    for (slow_call_ms, opens) in [(None, false), (Some(1_000), true)] {
        let bench = Bench::new(BreakerConfig { slow_call_ms, ..BreakerConfig::default() });
        for _ in 0..10 {
            bench.acquire().unwrap().report(Outcome::Success, SECOND, bench.now);
        }
        assert_eq!(bench.is_open(), opens);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Acquire,
    Report(usize, u8),
    Cancel(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0u64..20_000).prop_map(Event::Pass),
        5 => Just(Event::Acquire),
        4 => (any::<usize>(), 0u8..5).prop_map(|(which, outcome)| Event::Report(which, outcome)),
        1 => any::<usize>().prop_map(Event::Cancel),
    ]
}

proptest! {
    #[test]
    fn open_it_lets_nothing_through_and_half_open_no_more_than_its_probes(
        events in proptest::collection::vec(event(), 1..400),
    ) {
        let config = BreakerConfig::default();
        let mut bench = Bench::new(config);
        let mut permits: Vec<Permit> = Vec::new();
        // What is told apart from the breaker's own bookkeeping: when it opened, and who may probe it.
        let mut opened: Option<Instant> = None;
        for event in events {
            let generation = bench.breaker.0.lock().generation;
            match event {
                Event::Pass(ms) => bench.pass(Duration::from_millis(ms)),
                Event::Acquire => {
                    let permit = bench.acquire();
                    if let Some(opened) = opened {
                        let passed = bench.now.duration_since(opened);
                        prop_assert!(permit.is_err() || passed >= Duration::from_millis(config.open_ms));
                    } else {
                        prop_assert!(permit.is_ok(), "closed, or it would be known");
                    }
                    permits.extend(permit);
                }
                Event::Report(which, outcome) if !permits.is_empty() => {
                    let permit = permits.swap_remove(which % permits.len());
                    let outcome = match outcome {
                        0 => Outcome::Success,
                        1 => Outcome::Ignored,
                        _ => Outcome::Failure,
                    };
                    permit.report(outcome, Duration::ZERO, bench.now);
                }
                Event::Cancel(which) if !permits.is_empty() => drop(permits.swap_remove(which % permits.len())),
                Event::Report(..) | Event::Cancel(_) => {}
            }
            let inner = bench.breaker.0.lock();
            match inner.state {
                State::Closed => opened = None,
                State::Open { .. } if inner.generation != generation => opened = Some(bench.now),
                State::Open { .. } => {}
                State::HalfOpen { in_flight, succeeded } => {
                    let held = permits.iter().filter(|permit| permit.generation == inner.generation).count();
                    prop_assert_eq!(usize::try_from(in_flight).unwrap(), held);
                    prop_assert!(in_flight + succeeded <= config.probes);
                }
            }
        }
    }
}
