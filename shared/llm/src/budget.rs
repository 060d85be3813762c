//! What a tenant, or anything else that has limits, may ask and spend. An [`Account`] is kept by its owner in a durable
//! record; all here is arithmetic on it, at times that the caller gives.
//!
//! Limits hold for every minute (hour) that ever passes, not for those of the clock: sums slide. A bucket of tokens that
//! refills would do in less space, but lets through up to twice the limit in its first minute.
//!
//! A call is charged at its upper bound before it leaves ([`Account::reserve`]), and at what it really used when that is
//! known ([`Account::settle`]): after a crash, what nobody settled stays charged until it leaves the window.
//!
//! Times are milliseconds since the Unix epoch. An account's time never runs backwards: under an owner whose clock is
//! behind the last one's it stands still until that clock has caught up, so that nothing is free again early. In return an
//! owner whose clock is ahead makes waits longer by as much.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sliding::SlidingSum;
use crate::{NanoUsd, Usd};

/// Limits of an account. None of one kind: unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Questions begun in any minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens, input and output, of the calls that left in any minute.
    pub tokens_per_minute: Option<u64>,
    /// Questions at once.
    pub concurrency: Option<u64>,
    /// US dollars for the calls that left in any hour; a negative amount is none at all.
    pub usd_per_hour: Option<f64>,
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitKind {
    /// [`Limits::requests_per_minute`].
    Requests,
    /// [`Limits::tokens_per_minute`].
    Tokens,
    /// [`Limits::concurrency`].
    Concurrency,
    /// [`Limits::usd_per_hour`].
    Cost,
}

impl LimitKind {
    /// Its name in metrics and messages: `requests`, `tokens`, `concurrency` or `cost`. It will not change.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
            Self::Cost => "cost",
        }
    }
}

/// When the same would be granted. What is later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    /// After this time, if nothing else happens until then, and not before.
    After(Duration),
    /// When a question that is under way ends; nobody knows when.
    WhenOneEnds,
    /// Never: it asks for more than the limit.
    Never,
}

/// A limit does not allow it. Says so, with the limit's value, in a sentence for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which limit; the one that lasts longest if there are several.
    pub limit: LimitKind,
    /// Its value: requests or tokens a minute, questions at once, billionths of a US dollar an hour.
    pub allowed: u64,
    /// Whose limit: place of the account among those that had to agree, 0 for a single one.
    pub account: usize,
    /// When to ask again.
    pub retry: Retry,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = self.allowed;
        let limit = match self.limit {
            LimitKind::Requests => format!("{allowed} requests a minute"),
            LimitKind::Tokens => format!("{allowed} tokens a minute"),
            LimitKind::Concurrency => format!("{allowed} questions at once"),
            LimitKind::Cost => format!("{} an hour", NanoUsd(allowed)),
        };
        match self.retry {
            Retry::After(wait) => {
                let seconds = wait.as_millis().div_ceil(1_000);
                write!(f, "the limit of {limit} does not allow this now; try again in {seconds} s")
            }
            Retry::WhenOneEnds => write!(f, "the limit of {limit} is reached; try again when one of them has ended"),
            Retry::Never => write!(f, "this asks for more than the limit of {limit} ever allows"),
        }
    }
}

impl std::error::Error for Refused {}

/// What a call was charged before it left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct Reservation {
    /// When, in the account's time.
    pub at: i64,
    /// Tokens, input and output.
    pub tokens: u64,
    /// Money.
    pub cost: NanoUsd,
}

/// What counts against the limits at some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Questions begun within the last minute.
    pub requests: u64,
    /// Tokens charged within the last minute.
    pub tokens: u64,
    /// Questions under way.
    pub in_flight: u64,
    /// Money charged within the last hour.
    pub cost: NanoUsd,
}

/// The account of a tenant, a feature or whatever else has limits; below 4 KB as JSON whatever happened to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    requests: SlidingSum<1_000>,
    tokens: SlidingSum<1_000>,
    cost: SlidingSum<60_000>,
    in_flight: u64,
    /// The latest time it was told: the account's time.
    latest: i64,
}

impl Account {
    /// Begins a question: counts it as one request and as under way, until [`Self::leave`].
    ///
    /// # Errors
    /// When a limit of requests or concurrency does not allow it; nothing is counted then.
    pub fn admit(&mut self, limits: &Limits, now: i64) -> Result<(), Refused> {
        admit_all(&mut [(self, limits)], now)
    }

    /// A question that was admitted has ended, in whatever way.
    pub fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Charges a call with its upper bounds, before it leaves.
    ///
    /// # Errors
    /// When a limit of tokens or cost does not allow it; nothing is charged then.
    pub fn reserve(&mut self, limits: &Limits, tokens: u64, cost: NanoUsd, now: i64) -> Result<Reservation, Refused> {
        reserve_all(&mut [(self, limits)], tokens, cost, now)
    }

    /// Puts what a call really used in place of what was reserved for it, as if it had been known then. More than was
    /// reserved is charged too, even beyond the limit; no other call gets through until the account is below it again.
    ///
    /// To be called once for each reservation: an account does not know which of them it has settled.
    pub fn settle(&mut self, reservation: &Reservation, tokens: u64, cost: NanoUsd) {
        self.tokens.replace(reservation.at, reservation.tokens, tokens);
        self.cost.replace(reservation.at, reservation.cost.0, cost.0);
    }

    /// Settles a call that cost nothing, for example because it never left.
    pub fn refund(&mut self, reservation: &Reservation) {
        self.settle(reservation, 0, NanoUsd::ZERO);
    }

    /// What counts against the limits.
    #[must_use]
    pub fn used(&self, now: i64) -> Used {
        let now = now.max(self.latest);
        Used {
            requests: self.requests.sum(now),
            tokens: self.tokens.sum(now),
            in_flight: self.in_flight,
            cost: NanoUsd(self.cost.sum(now)),
        }
    }

    fn advance(&mut self, now: i64) {
        self.latest = now;
        self.requests.expire(now);
        self.tokens.expire(now);
        self.cost.expire(now);
    }

    /// The limits that do not allow one more question.
    fn against_one_more<'a>(&'a self, limits: &'a Limits) -> impl Iterator<Item = Hindrance> + 'a {
        let requests = limits.requests_per_minute.and_then(|limit| {
            Hindrance::until(self.latest, self.requests.fits_at(self.latest, 1, limit), LimitKind::Requests, limit)
        });
        let concurrency = limits.concurrency.filter(|limit| self.in_flight >= *limit).map(|limit| Hindrance {
            limit: LimitKind::Concurrency,
            allowed: limit,
            ends: if limit == 0 { Ends::Never } else { Ends::WithAnother },
        });
        requests.into_iter().chain(concurrency)
    }

    /// The limits that do not allow a call of this size.
    fn against_call(&self, limits: &Limits, tokens: u64, cost: NanoUsd) -> impl Iterator<Item = Hindrance> + use<> {
        let tokens = limits.tokens_per_minute.and_then(|limit| {
            Hindrance::until(self.latest, self.tokens.fits_at(self.latest, tokens, limit), LimitKind::Tokens, limit)
        });
        let cost = limits.usd_per_hour.and_then(|usd| {
            let limit = NanoUsd::nearest(Usd(usd)).0;
            Hindrance::until(self.latest, self.cost.fits_at(self.latest, cost.0, limit), LimitKind::Cost, limit)
        });
        tokens.into_iter().chain(cost)
    }
}

/// A limit in the way.
#[derive(Debug, Clone, Copy)]
struct Hindrance {
    limit: LimitKind,
    allowed: u64,
    ends: Ends,
}

/// When a limit stops to be in the way. What is later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    At(i64),
    WithAnother,
    Never,
}

impl Hindrance {
    /// None where it fits at once.
    fn until(now: i64, fits_at: Option<i64>, limit: LimitKind, allowed: u64) -> Option<Self> {
        let ends = fits_at.map_or(Ends::Never, Ends::At);
        (ends != Ends::At(now)).then_some(Self { limit, allowed, ends })
    }
}

/// Begins a question that several accounts, each with its own limits, have to agree to: all of them count it, or none.
///
/// # Errors
/// When a limit of one of them does not allow it.
pub fn admit_all(accounts: &mut [(&mut Account, &Limits)], now: i64) -> Result<(), Refused> {
    let at = advance_all(accounts, now);
    agree(accounts, now, |account, limits| account.against_one_more(limits).collect())?;
    for (account, _) in accounts {
        account.requests.charge(at, 1);
        account.in_flight = account.in_flight.saturating_add(1);
    }
    Ok(())
}

/// Charges a call that several accounts, each with its own limits, have to agree to: all of them are charged, or none.
/// Each of them is to be settled with the reservation.
///
/// # Errors
/// When a limit of one of them does not allow it.
pub fn reserve_all(
    accounts: &mut [(&mut Account, &Limits)],
    tokens: u64,
    cost: NanoUsd,
    now: i64,
) -> Result<Reservation, Refused> {
    let at = advance_all(accounts, now);
    agree(accounts, now, |account, limits| account.against_call(limits, tokens, cost).collect())?;
    for (account, _) in accounts {
        account.tokens.charge(at, tokens);
        account.cost.charge(at, cost.0);
    }
    Ok(Reservation { at, tokens, cost })
}

/// Brings all accounts to one time: the latest that any of them or the caller knows.
fn advance_all(accounts: &mut [(&mut Account, &Limits)], now: i64) -> i64 {
    let at = accounts.iter().map(|(account, _)| account.latest).fold(now, i64::max);
    accounts.iter_mut().for_each(|(account, _)| account.advance(at));
    at
}

fn agree(
    accounts: &[(&mut Account, &Limits)],
    now: i64,
    hindrances: impl Fn(&Account, &Limits) -> Vec<Hindrance>,
) -> Result<(), Refused> {
    let all = accounts.iter().enumerate().flat_map(|(place, (account, limits))| {
        hindrances(account, limits).into_iter().map(move |hindrance| (place, hindrance))
    });
    let Some((account, Hindrance { limit, allowed, ends })) = all.max_by_key(|(_, hindrance)| hindrance.ends) else {
        return Ok(());
    };
    let retry = match ends {
        // By the caller's clock, which can be behind the account's time.
        Ends::At(at) => Retry::After(Duration::from_millis(at.abs_diff(now))),
        Ends::WithAnother => Retry::WhenOneEnds,
        Ends::Never => Retry::Never,
    };
    Err(Refused { limit, allowed, account, retry })
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
