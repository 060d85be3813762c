//! Accounts under questions, calls and clocks of every kind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// 1 January 2026.
const START: i64 = 1_767_225_600_000;

const fn cents(cents: u64) -> NanoUsd {
    NanoUsd(cents * 10_000_000)
}

fn limits(requests: u64, tokens: u64, concurrency: u64, usd: f64) -> Limits {
    Limits {
        requests_per_minute: Some(requests),
        tokens_per_minute: Some(tokens),
        concurrency: Some(concurrency),
        usd_per_hour: Some(usd),
    }
}

fn after(refused: Result<impl std::fmt::Debug, Refused>) -> i64 {
    match refused.unwrap_err().retry {
        Retry::After(wait) => i64::try_from(wait.as_millis()).unwrap(),
        retry => panic!("{retry:?}"),
    }
}

#[test]
fn without_limits_everything_is_granted_and_still_counted() {
    let (mut account, limits) = (Account::default(), Limits::default());
    for _ in 0..1_000 {
        account.admit(&limits, START).unwrap();
        let _ = account.reserve(&limits, 1_000, cents(1), START).unwrap();
    }
    let used = Used { requests: 1_000, tokens: 1_000_000, in_flight: 1_000, cost: cents(1_000) };
    assert_eq!(account.used(START), used);
}

#[test]
fn twice_the_limit_does_not_pass_around_the_turn_of_a_minute() {
    let (mut account, limits) = (Account::default(), limits(60, 0, 1_000, 0.0));
    let granted = |account: &mut Account, from: i64, to: i64| {
        (from..to).step_by(250).filter(|now| account.admit(&limits, *now).is_ok()).count()
    };
    assert_eq!(granted(&mut account, START + 45_000, START + MINUTE), 60, "in the last quarter of a minute");
    assert_eq!(granted(&mut account, START + MINUTE, START + MINUTE + 45_000), 0);
    assert_eq!(granted(&mut account, START + 2 * MINUTE, START + 3 * MINUTE), 60);
}

#[test]
fn a_question_that_ended_makes_room_for_another() {
    let (mut account, limits) = (Account::default(), limits(100, 0, 2, 0.0));
    account.admit(&limits, START).unwrap();
    account.admit(&limits, START).unwrap();
    let refused = account.admit(&limits, START).unwrap_err();
    assert_eq!((refused.limit, refused.retry), (LimitKind::Concurrency, Retry::WhenOneEnds));
    account.leave();
    account.admit(&limits, START).unwrap();
    assert_eq!(account.used(START).requests, 3, "a refused one is no request");
}

#[test]
fn settling_gives_back_what_was_not_used() {
    let (mut account, limits) = (Account::default(), limits(0, 1_000, 0, 0.10));
    let reservation = account.reserve(&limits, 900, cents(9), START).unwrap();
    assert!(account.reserve(&limits, 200, cents(2), START).is_err());
    account.settle(&reservation, 300, cents(3));
    let other = account.reserve(&limits, 700, cents(7), START).unwrap();
    account.refund(&other);
    assert_eq!(account.used(START), Used { tokens: 300, cost: cents(3), ..Used::default() });
}

#[test]
fn more_than_was_reserved_is_charged_and_holds_others_back() {
    let (mut account, limits) = (Account::default(), limits(0, 1_000, 0, 1.0));
    let reservation = account.reserve(&limits, 100, cents(1), START).unwrap();
    account.settle(&reservation, 5_000, cents(2));
    assert_eq!(account.used(START).tokens, 5_000);
    assert_eq!(after(account.reserve(&limits, 0, NanoUsd::ZERO, START + 30_000)), 31_000);
    let _ = account.reserve(&limits, 1_000, cents(1), START + 61_000).unwrap();
}

#[test]
fn a_reservation_that_has_left_the_window_is_settled_for_nothing() {
    let (mut account, limits) = (Account::default(), limits(0, 1_000, 0, 0.10));
    let old = account.reserve(&limits, 1_000, cents(4), START).unwrap();
    let _ = account.reserve(&limits, 600, cents(4), START + 2 * MINUTE).unwrap();
    account.settle(&old, 0, NanoUsd::ZERO);
    let used = Used { tokens: 600, cost: cents(4), ..Used::default() };
    assert_eq!(account.used(START + 2 * MINUTE), used, "the minute is over, the hour is not");
}

#[test]
fn what_asks_for_more_than_the_limit_is_told_so() {
    let mut account = Account::default();
    let never = |refused: Refused| (refused.limit, refused.retry);
    let refused = account.reserve(&limits(1, 100, 1, 0.10), 101, cents(11), START).unwrap_err();
    assert!(matches!(never(refused), (LimitKind::Tokens | LimitKind::Cost, Retry::Never)));
    let refused = account.reserve(&limits(1, 1_000, 1, 0.10), 101, cents(11), START).unwrap_err();
    assert_eq!(never(refused), (LimitKind::Cost, Retry::Never));
    let refused = account.reserve(&limits(1, 1_000, 1, -1.0), 101, NanoUsd(1), START).unwrap_err();
    assert_eq!(never(refused), (LimitKind::Cost, Retry::Never));
    let refused = account.admit(&limits(1, 1, 0, 0.0), START).unwrap_err();
    assert_eq!(never(refused), (LimitKind::Concurrency, Retry::Never));
    let refused = account.admit(&limits(0, 1, 1, 0.0), START).unwrap_err();
    assert_eq!(never(refused), (LimitKind::Requests, Retry::Never));
}

#[test]
fn the_limit_that_lasts_longest_is_the_one_that_is_named() {
    let (mut account, limits) = (Account::default(), limits(1, 1_000, 1, 0.10));
    let _ = account.reserve(&limits, 900, cents(9), START).unwrap();
    let refused = account.reserve(&limits, 900, cents(9), START).unwrap_err();
    assert_eq!((refused.limit, refused.retry), (LimitKind::Cost, Retry::After(Duration::from_secs(61 * 60))));
    account.admit(&limits, START).unwrap();
    assert_eq!(account.admit(&limits, START).unwrap_err().limit, LimitKind::Concurrency);
    account.leave();
    assert_eq!(account.admit(&limits, START).unwrap_err().limit, LimitKind::Requests);
}

#[test]
fn a_refusal_says_which_limit_it_is_and_when_to_come_back() {
    let refused = |limit, allowed, retry| Refused { limit, allowed, account: 0, retry }.to_string();
    let wait = Retry::After(Duration::from_millis(11_001));
    for (text, expected) in [
        (
            refused(LimitKind::Requests, 60, wait),
            "the limit of 60 requests a minute does not allow this now; try again in 12 s",
        ),
        (
            refused(LimitKind::Cost, 250_000_000, wait),
            "the limit of 0.25 USD an hour does not allow this now; try again in 12 s",
        ),
        (
            refused(LimitKind::Concurrency, 4, Retry::WhenOneEnds),
            "the limit of 4 questions at once is reached; try again when one of them has ended",
        ),
        (
            refused(LimitKind::Tokens, 4_000, Retry::Never),
            "this asks for more than the limit of 4000 tokens a minute ever allows",
        ),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn the_name_of_a_limit_is_what_it_is_in_records() {
    for kind in [LimitKind::Requests, LimitKind::Tokens, LimitKind::Concurrency, LimitKind::Cost] {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

#[test]
fn an_owner_whose_clock_is_behind_frees_nothing_early() {
    let (mut account, limits) = (Account::default(), limits(1, 1_000, 10, 1.0));
    account.admit(&limits, START).unwrap();
    for behind in [1, 30_000, 61_000, HOUR, START, i64::MAX] {
        let now = START.saturating_sub(behind);
        assert_eq!(account.clone().admit(&limits, now).unwrap_err().limit, LimitKind::Requests);
    }
    assert_eq!(after(account.admit(&limits, START - 30_000)), 91_000);
    // Charged by a clock that is behind, it counts from the time the account had already reached.
    let mut other = Account::default();
    assert!(other.reserve(&limits, 2_000, NanoUsd::ZERO, START).is_err());
    let _ = other.reserve(&limits, 1_000, NanoUsd::ZERO, START - 40_000).unwrap();
    assert!(other.reserve(&limits, 1, NanoUsd::ZERO, START + 60_000).is_err());
    assert!(other.reserve(&limits, 1, NanoUsd::ZERO, START + 61_000).is_ok());
}

#[test]
fn all_accounts_are_charged_or_none() {
    let (mut tenant, mut feature) = (Account::default(), Account::default());
    let (wide, narrow) = (limits(10, 1_000, 10, 1.0), limits(1, 100, 10, 1.0));
    let mut both = [(&mut tenant, &wide), (&mut feature, &narrow)];
    admit_all(&mut both, START).unwrap();
    let refused = admit_all(&mut both, START).unwrap_err();
    assert_eq!((refused.account, refused.limit, refused.allowed), (1, LimitKind::Requests, 1));
    let reservation = reserve_all(&mut both, 80, cents(1), START).unwrap();
    assert!(reserve_all(&mut both, 80, cents(1), START).is_err());
    let used = Used { requests: 1, tokens: 80, in_flight: 1, cost: cents(1) };
    assert_eq!((tenant.used(START), feature.used(START)), (used, used));
    for account in [&mut tenant, &mut feature] {
        account.refund(&reservation);
        assert_eq!(account.used(START).tokens, 0);
    }
}

#[test]
fn accounts_of_different_times_agree_on_the_latest() {
    let (mut ahead, mut behind) = (Account::default(), Account::default());
    let limits = limits(10, 100, 10, 1.0);
    ahead.admit(&limits, START + 5_000).unwrap();
    let reservation =
        reserve_all(&mut [(&mut behind, &limits), (&mut ahead, &limits)], 100, NanoUsd::ZERO, START).unwrap();
    assert_eq!(reservation.at, START + 5_000);
    behind.refund(&reservation);
    ahead.refund(&reservation);
    assert_eq!((behind.used(START).tokens, ahead.used(START).tokens), (0, 0));
}

#[test]
fn a_record_of_an_older_version_is_an_account() {
    assert_eq!(serde_json::from_str::<Account>("{}").unwrap(), Account::default());
    assert_eq!(serde_json::from_str::<Limits>("{}").unwrap(), Limits::default());
    assert_eq!(serde_json::from_str::<Reservation>("{}").unwrap(), Reservation::default());
}

#[test]
fn the_fullest_account_there_can_be_is_below_4_kb() {
    let (mut account, limits) = (Account::default(), Limits::default());
    for minute in 0..=60 {
        let _ = account.reserve(&limits, u64::MAX, NanoUsd(u64::MAX), START * 1_000 + minute * MINUTE).unwrap();
    }
    for second in 0..=60 {
        let now = START * 1_000 + HOUR + second * 1_000 - 1_000;
        let _ = account.reserve(&limits, u64::MAX, NanoUsd::ZERO, now).unwrap();
        account.requests.charge(now, u64::MAX);
    }
    account.in_flight = u64::MAX;
    let json = serde_json::to_string(&account).unwrap();
    assert!(json.len() < 4_096, "{} bytes", json.len());
    assert!(json.len() > 3_900, "{} bytes: not the fullest", json.len());
}

/// What can happen to an account, and after how long.
#[derive(Debug, Clone)]
enum Event {
    Admit,
    Leave,
    Reserve { tokens: u64, cost: u64 },
    Settle { which: prop::sample::Index, tokens: f64, cost: f64 },
}

fn event() -> impl Strategy<Value = Event> {
    let share = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    prop_oneof![
        3 => Just(Event::Admit),
        2 => Just(Event::Leave),
        4 => (0..60u64, 0..60u64).prop_map(|(tokens, cost)| Event::Reserve { tokens, cost }),
        3 => (any::<prop::sample::Index>(), share(), share())
            .prop_map(|(which, tokens, cost)| Event::Settle { which, tokens, cost }),
    ]
}

/// Mostly forward, in steps from one call after the other to a pause of hours; backward at times.
fn step() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => 0..3_000i64,
        3 => 0..40_000i64,
        2 => 0..20 * MINUTE,
        1 => 0..3 * HOUR,
        2 => -90_000..0i64,
        1 => -3 * HOUR..0,
    ]
}

fn history(length: usize) -> impl Strategy<Value = Vec<(i64, Event)>> {
    prop::collection::vec((step(), event()), 0..length)
}

fn some_limits() -> impl Strategy<Value = Limits> {
    let some = |range: std::ops::Range<u64>| prop::option::weighted(0.9, range);
    (some(0..8), some(0..150), some(0..5), some(0..150)).prop_map(|(requests, tokens, concurrency, nanos)| Limits {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        concurrency,
        usd_per_hour: nanos.map(|nanos| NanoUsd(nanos).usd().0),
    })
}

/// An account, and beside it everything that was granted, one by one.
#[derive(Debug)]
struct Ledger {
    account: Account,
    limits: Limits,
    now: i64,
    /// The latest time so far: the account's, which begins with the epoch.
    time: i64,
    admitted: Vec<i64>,
    in_flight: u64,
    open: Vec<(usize, Reservation)>,
    /// When, tokens, cost.
    calls: Vec<(i64, u64, u64)>,
}

impl Ledger {
    fn new(limits: Limits) -> Self {
        let (admitted, open, calls) = (Vec::new(), Vec::new(), Vec::new());
        Self { account: Account::default(), limits, now: START, time: 0, admitted, in_flight: 0, open, calls }
    }

    /// What was refused, if something was.
    fn apply(&mut self, step: i64, event: &Event) -> Option<Refused> {
        self.now += step;
        match event {
            Event::Admit => {
                self.time = self.time.max(self.now);
                self.account.admit(&self.limits, self.now).map_or_else(Some, |()| {
                    self.admitted.push(self.time);
                    self.in_flight += 1;
                    None
                })
            }
            Event::Leave => {
                self.account.leave();
                self.in_flight = self.in_flight.saturating_sub(1);
                None
            }
            Event::Reserve { tokens, cost } => {
                self.time = self.time.max(self.now);
                match self.account.reserve(&self.limits, *tokens, NanoUsd(*cost), self.now) {
                    Err(refused) => Some(refused),
                    Ok(reservation) => {
                        self.open.push((self.calls.len(), reservation));
                        self.calls.push((self.time, *tokens, *cost));
                        None
                    }
                }
            }
            Event::Settle { which, tokens, cost } => {
                if !self.open.is_empty() {
                    let (call, reservation) = self.open.swap_remove(which.index(self.open.len()));
                    let share = |all: u64, share: f64| (all as f64 * share) as u64;
                    let (tokens, cost) = (share(reservation.tokens, *tokens), share(reservation.cost.0, *cost));
                    self.account.settle(&reservation, tokens, NanoUsd(cost));
                    self.calls[call].1 = tokens;
                    self.calls[call].2 = cost;
                }
                None
            }
        }
    }

    /// The most that was granted in any window that ends with something granted.
    fn most(events: &[(i64, u64)], window: i64) -> u64 {
        let sum = |end: i64| events.iter().filter(|(at, _)| *at <= end && end - *at < window).map(|(_, n)| n).sum();
        events.iter().map(|(end, _)| sum(*end)).max().unwrap_or(0)
    }

    fn check(&self) {
        let within = |used: u64, limit: Option<u64>| limit.is_none_or(|limit| used <= limit);
        let requests: Vec<_> = self.admitted.iter().map(|at| (*at, 1)).collect();
        let tokens: Vec<_> = self.calls.iter().map(|(at, tokens, _)| (*at, *tokens)).collect();
        let cost: Vec<_> = self.calls.iter().map(|(at, _, cost)| (*at, *cost)).collect();
        assert!(within(Self::most(&requests, MINUTE), self.limits.requests_per_minute), "{self:?}");
        assert!(within(Self::most(&tokens, MINUTE), self.limits.tokens_per_minute), "{self:?}");
        let usd = self.limits.usd_per_hour.map(|usd| NanoUsd::nearest(Usd(usd)).0);
        assert!(within(Self::most(&cost, HOUR), usd), "{self:?}");
        assert!(within(self.in_flight, self.limits.concurrency), "{self:?}");
        assert_eq!(self.account.in_flight, self.in_flight);
    }
}

proptest! {
    #[test]
    fn no_window_ever_holds_more_than_the_limit(limits in some_limits(), history in history(120)) {
        let mut ledger = Ledger::new(limits);
        for (step, event) in &history {
            ledger.apply(*step, event);
            ledger.check();
        }
    }

    #[test]
    fn the_time_to_retry_is_honest(limits in some_limits(), history in history(60), early in 0.0..1.0f64) {
        let mut ledger = Ledger::new(limits);
        for (step, event) in &history {
            let Some(refused) = ledger.apply(*step, event) else { continue };
            let granted = |account: &Account, now: i64| {
                let mut account = account.clone();
                match event {
                    Event::Reserve { tokens, cost } => account.reserve(&limits, *tokens, NanoUsd(*cost), now).is_ok(),
                    _ => account.admit(&limits, now).is_ok(),
                }
            };
            match refused.retry {
                Retry::After(wait) => {
                    let wait = i64::try_from(wait.as_millis()).unwrap();
                    let sooner = (wait as f64 * early) as i64;
                    prop_assert!(!granted(&ledger.account, ledger.now + wait - 1));
                    prop_assert!(!granted(&ledger.account, ledger.now + sooner.min(wait - 1)));
                    prop_assert!(granted(&ledger.account, ledger.now + wait));
                }
                Retry::WhenOneEnds => {
                    let mut account = ledger.account.clone();
                    prop_assert!(!granted(&account, ledger.time + 2 * HOUR));
                    account.leave();
                    prop_assert!(granted(&account, ledger.time + 2 * HOUR));
                }
                Retry::Never => prop_assert!(!granted(&Account::default(), ledger.now)),
            }
        }
    }

    #[test]
    fn nothing_leaks(limits in some_limits(), history in history(80)) {
        let mut ledger = Ledger::new(limits);
        for (step, event) in &history {
            ledger.apply(*step, event);
        }
        for (_, reservation) in &ledger.open {
            ledger.account.refund(reservation);
        }
        (0..ledger.in_flight).for_each(|_| ledger.account.leave());
        let later = ledger.time + HOUR + MINUTE;
        prop_assert_eq!(ledger.account.used(later), Used::default());
        ledger.account.advance(later);
        for account in [&mut ledger.account, &mut Account::default()] {
            let granted = (0..1_000).take_while(|_| account.admit(&limits, later).is_ok()).count();
            let most = limits.requests_per_minute.into_iter().chain(limits.concurrency).min().unwrap_or(1_000);
            prop_assert_eq!(granted as u64, most);
            let whole = |limit: Option<u64>| limit.unwrap_or(1_000);
            let usd = limits.usd_per_hour.map(|usd| NanoUsd::nearest(Usd(usd)).0);
            let all = account.reserve(&limits, whole(limits.tokens_per_minute), NanoUsd(whole(usd)), later);
            prop_assert!(all.is_ok());
        }
    }

    #[test]
    fn what_is_unused_is_free_at_once(limits in some_limits(), history in history(80)) {
        let mut ledger = Ledger::new(limits);
        for (step, event) in &history {
            ledger.apply(*step, event);
        }
        let tokens: u64 = ledger.open.iter().map(|(_, reservation)| reservation.tokens).sum();
        let before = ledger.account.used(ledger.time);
        for (_, reservation) in &ledger.open {
            ledger.account.refund(reservation);
        }
        let after = ledger.account.used(ledger.time);
        prop_assert!(before.tokens - after.tokens <= tokens);
        let settled = |since: i64| ledger.calls.iter().enumerate()
            .filter(|(call, (at, ..))| *at > since && ledger.open.iter().all(|(open, _)| open != call))
            .fold((0, 0), |(tokens, cost), (_, (_, more, dearer))| (tokens + more, cost + dearer));
        prop_assert!((settled(ledger.time - MINUTE).0..=settled(ledger.time - MINUTE - 1_000).0).contains(&after.tokens));
        prop_assert!((settled(ledger.time - HOUR).1..=settled(ledger.time - HOUR - MINUTE).1).contains(&after.cost.0));
    }

    #[test]
    fn a_record_gives_back_the_same_small_account(limits in some_limits(), history in history(300)) {
        let mut ledger = Ledger::new(limits);
        for (step, event) in &history {
            ledger.apply(*step, event);
        }
        let json = serde_json::to_string(&ledger.account).unwrap();
        prop_assert!(json.len() < 4_096, "{} bytes", json.len());
        prop_assert_eq!(&serde_json::from_str::<Account>(&json).unwrap(), &ledger.account);
    }

    #[test]
    fn no_clock_makes_it_panic(times in prop::collection::vec(any::<i64>(), 1..20), amount in any::<u64>()) {
        let (mut account, limits) = (Account::default(), limits(3, amount, 3, 0.5));
        for now in times {
            let _ = account.admit(&limits, now);
            if let Ok(reservation) = account.reserve(&limits, amount / 2, NanoUsd(amount), now) {
                account.settle(&reservation, amount, NanoUsd(u64::MAX));
            }
            let _ = account.used(now);
        }
    }
}
