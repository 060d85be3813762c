//! Notices when a lane rejects so much that the cause is not the records.

use std::collections::VecDeque;

use crate::RunnerConfig;

/// Counts one lane's outcomes.
#[derive(Debug, Default)]
pub(crate) struct FloodGauge {
    consecutive: u32,
    window: VecDeque<bool>,
    rejected: u32,
}

impl FloodGauge {
    /// Counts `records` outcomes none of which is a rejection.
    pub(crate) fn count_good(&mut self, records: usize, limits: &RunnerConfig) {
        self.consecutive = 0;
        let room = (limits.flood_window.max(1) as usize).saturating_sub(self.window.len());
        // While nothing was rejected, the window is the same wherever it stands.
        let moved = if self.rejected == 0 { records.min(room) } else { records };
        for _ in 0..moved {
            self.count(false, limits);
        }
    }

    /// Counts an outcome; says what was counted when the lane must stop.
    pub(crate) fn count(&mut self, rejected: bool, limits: &RunnerConfig) -> Option<String> {
        self.consecutive = if rejected { self.consecutive.saturating_add(1) } else { 0 };
        self.window.push_back(rejected);
        self.rejected += u32::from(rejected);
        let size = limits.flood_window.max(1);
        if self.window.len() > size as usize && self.window.pop_front() == Some(true) {
            self.rejected -= 1;
        }
        if limits.flood_consecutive > 0 && self.consecutive >= limits.flood_consecutive {
            return Some(format!("{} records were rejected one after another", self.consecutive));
        }
        let full = self.window.len() >= size as usize;
        if full && f64::from(self.rejected) > limits.flood_ratio * f64::from(size) {
            return Some(format!("{} of the last {size} records were rejected", self.rejected));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> RunnerConfig {
        RunnerConfig { flood_consecutive: 5, flood_ratio: 0.5, flood_window: 10, ..RunnerConfig::default() }
    }

    #[test]
    fn a_run_of_rejections_stops_the_lane() {
        let mut gauge = FloodGauge::default();
        for _ in 0..4 {
            assert_eq!(gauge.count(true, &limits()), None);
        }
        assert!(gauge.count(true, &limits()).is_some());
    }

    #[test]
    fn scattered_rejections_stop_it_only_above_the_share() {
        let mut gauge = FloodGauge::default();
        for n in 0..100 {
            assert_eq!(gauge.count(n % 2 == 0, &limits()), None, "half is not more than half");
        }
        let mut gauge = FloodGauge::default();
        let stopped = (0..100).any(|n| gauge.count(n % 3 != 0, &limits()).is_some());
        assert!(stopped, "two thirds is");
    }
}
