//! A sum over the last minute or hour that never counts too little, small enough to be kept in a record.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Slots of a window.
const SLOTS: i64 = 60;

/// A sum over a window of 60 slots of `SLOT_MS` milliseconds. It also holds the slot that has begun: an amount counts for
/// the whole window at least and for a slot more at most.
///
/// **Invariant:** slots are in a row, and none is older than the window at the time of the last [`Self::expire`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlidingSum<const SLOT_MS: i64> {
    /// Number of the first slot, counted from the Unix epoch.
    #[serde(default)]
    first: i64,
    /// What was charged in each, from the first on.
    #[serde(default)]
    slots: VecDeque<u64>,
}

impl<const SLOT_MS: i64> SlidingSum<SLOT_MS> {
    fn slot(at: i64) -> i64 {
        at.div_euclid(SLOT_MS)
    }

    /// When what was charged in a slot stops to count: its last instant is a whole window ago.
    fn ends(slot: i64) -> i64 {
        slot.saturating_add(SLOTS + 1).saturating_mul(SLOT_MS)
    }

    /// Forgets what does not count any more.
    pub(crate) fn expire(&mut self, now: i64) {
        while !self.slots.is_empty() && Self::ends(self.first) <= now {
            self.slots.pop_front();
            self.first = self.first.saturating_add(1);
        }
    }

    /// Adds to the slot that has begun. Needs [`Self::expire`] for the same time before it.
    pub(crate) fn charge(&mut self, now: i64, amount: u64) {
        let slot = Self::slot(now);
        if self.slots.is_empty() {
            self.first = slot;
        }
        // A record that claims to be from the future is believed: what is charged leaves with its first slot.
        let index = usize::try_from(slot.saturating_sub(self.first)).unwrap_or(0);
        if self.slots.len() <= index {
            self.slots.resize(index + 1, 0);
        }
        if let Some(charged) = self.slots.get_mut(index) {
            *charged = charged.saturating_add(amount);
        }
    }

    /// Makes another amount of one that was charged at this time; nothing where that has left the window.
    pub(crate) fn replace(&mut self, at: i64, charged: u64, used: u64) {
        let index = usize::try_from(Self::slot(at).saturating_sub(self.first)).ok();
        if let Some(slot) = index.and_then(|index| self.slots.get_mut(index)) {
            *slot = slot.saturating_sub(charged).saturating_add(used);
        }
    }

    /// Number of each slot that still counts, and what was charged in it.
    fn counting(&self, now: i64) -> impl Iterator<Item = (i64, u64)> {
        let number = |index| self.first.saturating_add(i64::try_from(index).unwrap_or(i64::MAX));
        let numbered = self.slots.iter().enumerate().map(move |(index, amount)| (number(index), *amount));
        numbered.filter(move |(slot, _)| Self::ends(*slot) > now)
    }

    /// The sum.
    pub(crate) fn sum(&self, now: i64) -> u64 {
        self.counting(now).fold(0, |sum, (_, amount)| sum.saturating_add(amount))
    }

    /// The earliest time, `now` or later, at which this much more keeps to the limit if nothing else happens; none if
    /// it never does.
    pub(crate) fn fits_at(&self, now: i64, amount: u64, limit: u64) -> Option<i64> {
        let room = limit.checked_sub(amount)?;
        let mut excess = self.sum(now).saturating_sub(room);
        if excess == 0 {
            return Some(now);
        }
        self.counting(now).find_map(|(slot, amount)| {
            excess = excess.saturating_sub(amount);
            (excess == 0).then(|| Self::ends(slot))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Minute = SlidingSum<1_000>;

    #[test]
    fn an_amount_counts_for_the_window_at_least_and_a_slot_more_at_most() {
        for at in [0, 1, 999, 1_000, 1_767_225_600_123] {
            let mut sum = Minute::default();
            sum.charge(at, 7);
            assert_eq!(sum.sum(at + 60_000), 7, "{at}");
            assert_eq!(sum.sum(at + 61_000), 0, "{at}");
            sum.expire(at + 60_000);
            assert_eq!(sum.slots.len(), 1);
            sum.expire(at + 61_000);
            assert!(sum.slots.is_empty());
        }
    }

    #[test]
    fn it_says_when_more_fits() {
        let mut sum = Minute::default();
        for (at, amount) in [(0, 5), (10_500, 3), (20_000, 2)] {
            sum.charge(at, amount);
        }
        for (amount, time) in [(0, 30_000), (1, 61_000), (5, 61_000), (6, 71_000), (8, 71_000), (9, 81_000)] {
            assert_eq!(sum.fits_at(30_000, amount, 10), Some(time), "{amount}");
        }
        assert_eq!(sum.fits_at(30_000, 11, 10), None);
    }

    #[test]
    fn what_has_left_the_window_can_not_be_replaced() {
        let mut sum = Minute::default();
        sum.charge(500, 5);
        sum.replace(700, 5, 9);
        assert_eq!(sum.sum(700), 9);
        sum.expire(61_000);
        sum.charge(61_000, 1);
        sum.replace(500, 9, 0);
        assert_eq!(sum.sum(61_000), 1);
    }

    #[test]
    fn no_time_is_too_early_or_too_late() {
        for (earlier, later) in [(i64::MIN, i64::MAX), (i64::MIN, 0), (0, i64::MAX), (i64::MAX, i64::MAX)] {
            let mut sum = Minute::default();
            for now in [earlier, later, earlier] {
                sum.expire(now);
                sum.charge(now, 1);
                sum.replace(now, 1, 2);
                assert!(sum.fits_at(now, 1, 1).is_none_or(|at| at >= now));
                assert!(sum.slots.len() <= 61);
            }
        }
    }
}
