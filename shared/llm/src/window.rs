//! Counts over the last seconds, in a ring of buckets of one second each: the memory it takes does not depend on what
//! is counted.

use tokio::time::Instant;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Everything.
    pub(crate) all: u32,
    /// What was marked among it.
    pub(crate) marked: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    second: u64,
    counts: Counts,
}

/// The last seconds.
#[derive(Debug)]
pub(crate) struct Window {
    began: Instant,
    buckets: Box<[Bucket]>,
}

impl Window {
    /// A window of this many seconds, at least one.
    pub(crate) fn new(began: Instant, seconds: u32) -> Self {
        let length = usize::try_from(seconds.max(1)).unwrap_or(1);
        Self { began, buckets: vec![Bucket::default(); length].into() }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    /// Counts one.
    pub(crate) fn add(&mut self, now: Instant, marked: bool) {
        let second = self.second(now);
        let length = u64::try_from(self.buckets.len()).unwrap_or(u64::MAX);
        let at = usize::try_from(second % length).unwrap_or(0);
        if let Some(bucket) = self.buckets.get_mut(at) {
            if bucket.second != second {
                *bucket = Bucket { second, counts: Counts::default() };
            }
            bucket.counts.all = bucket.counts.all.saturating_add(1);
            bucket.counts.marked = bucket.counts.marked.saturating_add(u32::from(marked));
        }
    }

    /// What the last `seconds` hold, the current one included.
    pub(crate) fn last(&self, now: Instant, seconds: u32) -> Counts {
        let current = self.second(now);
        let recent =
            |bucket: &&Bucket| bucket.second <= current && bucket.second.saturating_add(u64::from(seconds)) > current;
        self.buckets.iter().filter(recent).fold(Counts::default(), |sum, bucket| Counts {
            all: sum.all.saturating_add(bucket.counts.all),
            marked: sum.marked.saturating_add(bucket.counts.marked),
        })
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.buckets.fill(Bucket::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        let mut window = Window::new(began, 5);
        for second in 0..20 {
            window.add(at(second), second % 2 == 0);
        }
        assert_eq!(window.last(at(19), 5), Counts { all: 5, marked: 2 });
        assert_eq!(window.last(at(19), 2), Counts { all: 2, marked: 1 });
        assert_eq!(window.last(at(22), 5), Counts { all: 2, marked: 1 });
        assert_eq!(window.last(at(90), 5), Counts::default());
        window.add(at(90), false);
        window.clear();
        assert_eq!(window.last(at(90), 5), Counts::default());
    }
}
