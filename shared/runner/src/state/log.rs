//! The writes of one lane whose records run side by side, in the order they were made.

use std::collections::{HashMap, VecDeque};

use tokio::sync::watch;
use weir_stage::StateValue;

use super::view::Write;

/// Writes that are not committed yet. They are numbered from 1; a transaction takes those up to a number.
#[derive(Debug)]
pub(crate) struct LaneLog {
    last: u64,
    /// Up to this number everything is committed.
    done: u64,
    waiting: VecDeque<(u64, Write)>,
    committed: watch::Sender<u64>,
}

impl Default for LaneLog {
    fn default() -> Self {
        Self { last: 0, done: 0, waiting: VecDeque::new(), committed: watch::Sender::new(0) }
    }
}

impl LaneLog {
    /// Adds writes that belong together, perhaps none; says which number they got.
    pub(crate) fn append(&mut self, writes: Vec<Write>) -> u64 {
        self.last += 1;
        self.waiting.extend(writes.into_iter().map(|write| (self.last, write)));
        self.last
    }

    /// Number of the last write.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Up to which number everything is committed.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// The writes after number `after` up to `to`, each key's last one only.
    pub(crate) fn between(&self, after: u64, to: u64) -> Vec<Write> {
        let in_question = || {
            self.waiting.iter().skip_while(|(n, _)| *n <= after).take_while(|(n, _)| *n <= to).map(|(_, write)| write)
        };
        let last: HashMap<&[u8], &Option<StateValue>> =
            in_question().map(|(key, value)| (key.as_slice(), value)).collect();
        let mut written = HashMap::with_capacity(last.len());
        in_question()
            .filter(|(key, _)| written.insert(key.as_slice(), ()).is_none())
            .filter_map(|(key, _)| last.get(key.as_slice()).map(|value| (key.clone(), (*value).clone())))
            .collect()
    }

    /// What was written up to this number is committed: it is forgotten, and who waits for it hears of it.
    pub(crate) fn commit(&mut self, to: u64) {
        while self.waiting.front().is_some_and(|(n, _)| *n <= to) {
            self.waiting.pop_front();
        }
        self.done = self.done.max(to);
        self.committed.send_replace(self.done);
    }

    /// Tells up to which number everything is committed; ends when the lane is given up.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: &str, value: &str) -> Write {
        (key.into(), Some(StateValue { bytes: value.into(), expires_at: None }))
    }

    #[test]
    fn a_transaction_takes_a_beginning_and_of_each_key_the_last_write_in_it() {
        let mut log = LaneLog::default();
        log.append(vec![write("a", "1"), write("b", "1")]);
        let second = log.append(vec![write("a", "2")]);
        log.append(vec![write("a", "3"), write("c", "3")]);
        assert_eq!(log.between(0, second), [write("a", "2"), write("b", "1")]);
        assert_eq!(log.between(second, log.last()), [write("a", "3"), write("c", "3")]);
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_commit_and_of_a_lane_that_is_given_up() {
        let mut log = LaneLog::default();
        let number = log.append(vec![write("a", "1")]);
        let mut watch = log.watch();
        log.commit(number);
        assert!(watch.wait_for(|to| *to >= number).await.is_ok());
        assert_eq!((log.done(), log.last()), (number, number));
        drop(log);
        assert!(watch.wait_for(|to| *to > number).await.is_err());
    }
}
