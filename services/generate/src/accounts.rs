//! What questions use of the limits of their tenant and feature, in the state of the tenant's home lane.

use std::time::Duration;

use weir_llm::{Account, Call, Limits, NanoUsd, Refused, Reservation, Retry, admit_all, reserve_all};
use weir_stage::{Change, StageError};

use crate::journal::{OpenCall, load, stored};
use crate::tenants::Charged;

/// How long a question waits for others that are under way, before it looks again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A limit that is in the way.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    refused: Refused,
    whose: String,
}

impl Refusal {
    /// When to come again, if time helps.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self.refused.retry {
            Retry::After(wait) => Some(wait),
            Retry::WhenOneEnds => Some(LOOK_AGAIN),
            Retry::Never => None,
        }
    }

    pub(crate) fn limit(&self) -> &'static str {
        self.refused.limit.name()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "for {}, {}", self.whose, self.refused)
    }
}

fn account(change: &Change<'_>, key: &str) -> Result<Account, StageError> {
    Ok(load(change, key)?.unwrap_or_default())
}

/// Counts a question in all its accounts, or in none.
pub(crate) fn admit(change: &mut Change<'_>, charged: &[Charged], now: i64) -> Result<Result<(), Refusal>, StageError> {
    together(change, charged, |accounts| admit_all(accounts, now))
}

pub(crate) fn reserve(
    change: &mut Change<'_>,
    charged: &[Charged],
    tokens: u64,
    cost: NanoUsd,
    now: i64,
) -> Result<Result<Option<Reservation>, Refusal>, StageError> {
    if charged.is_empty() {
        return Ok(Ok(None));
    }
    let reserved = together(change, charged, |accounts| reserve_all(accounts, tokens, cost, now))?;
    Ok(reserved.map(Some))
}

fn together<T>(
    change: &mut Change<'_>,
    charged: &[Charged],
    with: impl FnOnce(&mut [(&mut Account, &Limits)]) -> Result<T, Refused>,
) -> Result<Result<T, Refusal>, StageError> {
    let mut accounts = Vec::with_capacity(charged.len());
    for of in charged {
        accounts.push(account(change, &of.key)?);
    }
    let mut pairs: Vec<_> = accounts.iter_mut().zip(charged.iter().map(|of| &of.limits)).collect();
    let result = match with(&mut pairs) {
        Ok(result) => result,
        Err(refused) => {
            let whose = charged.get(refused.account).map(|of| of.whose.clone()).unwrap_or_default();
            return Ok(Err(Refusal { refused, whose }));
        }
    };
    for (of, account) in charged.iter().zip(&accounts) {
        change.put(&of.key, stored(account)?);
    }
    Ok(Ok(result))
}

/// A question is not under way any more.
pub(crate) fn leave(change: &mut Change<'_>, accounts: &[String]) -> Result<(), StageError> {
    for key in accounts {
        let mut account = account(change, key)?;
        account.leave();
        change.put(key, stored(&account)?);
    }
    Ok(())
}

/// A call that has ended, or none when it never left, and what it was charged before.
pub(crate) type Unsettled = (OpenCall, Option<Call>);

/// Puts what calls used in place of what was reserved for them. Where the provider does not say what it used, and it may have
/// used something, the reservation stands.
pub(crate) fn settle_all(change: &mut Change<'_>, unsettled: &[Unsettled]) -> Result<(), StageError> {
    for (open, call) in unsettled {
        let usage = call.as_ref().map(|call| call.usage).unwrap_or_default();
        let tokens = usage.input.saturating_add(usage.output);
        if !usage.estimated || tokens == 0 {
            settle(change, open, tokens, usage.charge(&open.price))?;
        }
    }
    Ok(())
}

pub(crate) fn settle(change: &mut Change<'_>, open: &OpenCall, tokens: u64, cost: NanoUsd) -> Result<(), StageError> {
    let Some(reservation) = &open.reservation else { return Ok(()) };
    for key in &open.accounts {
        let mut account = account(change, key)?;
        account.settle(reservation, tokens, cost);
        change.put(key, stored(&account)?);
    }
    Ok(())
}
