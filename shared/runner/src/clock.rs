//! The time of day, as records and headers carry it.

use std::time::{Duration, SystemTime};

use weir_contracts::unix_millis;

/// Milliseconds since the Unix epoch, now.
pub(crate) fn now_millis() -> i64 {
    unix_millis(SystemTime::now())
}

/// Seconds from one point in time to another, both in milliseconds since the Unix epoch; 0 where clocks disagree about
/// their order.
pub(crate) fn seconds_between(from: i64, to: i64) -> f64 {
    Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or_default()).as_secs_f64()
}
