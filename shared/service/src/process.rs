//! What the kernel says of this process, sampled when somebody asks.

use std::fs;

use crate::metric;

/// Length of a tick in /proc/self/stat: USER_HZ is 100 on every Linux that Rust runs on.
const TICK_MILLISECONDS: u64 = 10;

/// Bytes in the kB of /proc/self/status.
const KB: f64 = 1024.0;

/// Sets the process metrics. What can't be read keeps its last value.
pub(crate) fn sample() {
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        if let Some(kilobytes) = status_number(&status, "VmRSS:") {
            metrics::gauge!(metric::RESIDENT).set(kilobytes * KB);
        }
        if let Some(kilobytes) = status_number(&status, "VmHWM:") {
            metrics::gauge!(metric::RESIDENT_PEAK).set(kilobytes * KB);
        }
        if let Some(threads) = status_number(&status, "Threads:") {
            metrics::gauge!(metric::THREADS).set(threads);
        }
    }
    if let Some(ticks) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_ticks) {
        metrics::counter!(metric::CPU).absolute(ticks.saturating_mul(TICK_MILLISECONDS));
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory being read.
        let open = u32::try_from(files.count().saturating_sub(1)).unwrap_or(u32::MAX);
        metrics::gauge!(metric::OPEN_FILES).set(open);
    }
}

fn status_number(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// utime + stime. The name of the process may contain anything, so fields count from behind its parenthesis.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_a_hostile_name() {
        let stat = "7 (a) b 9 (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(300));
    }
}
