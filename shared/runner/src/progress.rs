//! How far a lane of a topic is done when its records complete out of order: the position up to which everything is
//! done, and what is done beyond it. Both are committed together, the latter in the commit's metadata, so that after a
//! crash nothing that is done is done again and nobody waited for the slowest record.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

/// Most characters that what lies beyond a position may take in the metadata of its commit. Kafka accepts 4,096 by default
/// (`offset.metadata.max.bytes`), with the serial.
pub(crate) const MAX_BEYOND: usize = 3_600;

/// Bytes for what is done behind the last open record, at most.
const AFTER_LAST: usize = 10;

/// Offsets `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: i64,
    to: i64,
}

/// What is known of the records of one lane of a topic, by offset. Offsets that hold no record (transaction markers,
/// aborted or compacted records) count as done as soon as reading has passed them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything before was read.
    read: i64,
    /// Records that were read and are not done, with the time they were written.
    open: BTreeMap<i64, i64>,
    /// Behind the last record that is done.
    top: i64,
    /// The last record on which work has begun.
    begun: i64,
    /// What was done beyond the position before this lane was taken on and has not been passed by reading, in order.
    done_before: Vec<Span>,
}

impl Progress {
    /// Reading begins at `position`; `beyond` is what its commit said of the records behind it.
    ///
    /// # Errors
    /// When `beyond` was not written by [`Progress::beyond`].
    pub(crate) fn resume(position: i64, beyond: &str) -> Result<Self, Unreadable> {
        let mut done_before = Vec::new();
        let mut at = position;
        let bytes = BASE64.decode(beyond).map_err(|_| Unreadable)?;
        let mut lengths = Lengths(&bytes);
        // Lengths of spans that are open and done, in turns, beginning with an open one.
        while let Some(open) = lengths.next()? {
            let done = lengths.next()?.ok_or(Unreadable)?;
            let from = at.checked_add(open).ok_or(Unreadable)?;
            at = from.checked_add(done).ok_or(Unreadable)?;
            done_before.push(Span { from, to: at });
        }
        Ok(Self { read: position, open: BTreeMap::new(), top: at, begun: position - 1, done_before })
    }

    /// A record was read. False: it was done before, and is to be dropped.
    #[must_use]
    pub(crate) fn read(&mut self, offset: i64, written: i64) -> bool {
        self.read = offset + 1;
        let passed = self.done_before.iter().take_while(|span| span.to <= offset).count();
        self.done_before.drain(..passed);
        let done = self.done_before.first().is_some_and(|span| span.from <= offset);
        if !done {
            self.open.insert(offset, written);
        }
        !done
    }

    /// A record is done: the next commit says so.
    pub(crate) fn done(&mut self, offset: i64) {
        self.open.remove(&offset);
        self.top = self.top.max(offset + 1);
    }

    /// Everything before is done.
    pub(crate) fn position(&self) -> i64 {
        let read = match self.done_before.first() {
            Some(span) if span.from <= self.read => span.to.max(self.read),
            _ => self.read,
        };
        self.open.keys().next().copied().unwrap_or(read)
    }

    /// When the oldest record that is not done was written.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.open.values().next().copied()
    }

    /// What is done beyond the position, as [`Progress::resume`] reads it; empty when nothing is.
    pub(crate) fn beyond(&self) -> String {
        let mut bytes = Vec::new();
        let mut at = self.position();
        for span in self.spans_beyond() {
            put(&mut bytes, span.from - at);
            put(&mut bytes, span.to - span.from);
            at = span.to;
        }
        BASE64.encode(bytes)
    }

    /// Whether work on a record that was read may begin: what is done beyond the position must fit into the metadata of a
    /// commit, in whatever order the records end that have begun.
    pub(crate) fn may_begin(&self, offset: i64) -> bool {
        // As an open one it has its place there already.
        if offset < self.top || offset <= self.begun {
            return true;
        }
        let at = self.position();
        let bytes = |records: usize, each: usize| (records * (each + 1) + AFTER_LAST).div_ceil(3) * 4;
        let before: usize = self.done_before.iter().map(|span| 2 * length(span.to - at)).sum();
        if bytes(self.open.len(), length(offset - at)) + 4 * before.div_ceil(3) <= MAX_BEYOND {
            return true;
        }
        let open = self.open.range(..=offset).map(|(offset, _)| *offset);
        let (_, exact) = open.fold((at, before), |(at, sum), offset| (offset, sum + length(offset - at) + 1));
        (exact + AFTER_LAST).div_ceil(3) * 4 <= MAX_BEYOND
    }

    /// Work on a record has begun.
    pub(crate) fn begin(&mut self, offset: i64) {
        self.begun = self.begun.max(offset);
    }

    /// Spans beyond the position that are done, none touching another.
    fn spans_beyond(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut add = |from: i64, to: i64| match spans.last_mut() {
            _ if from >= to => {}
            Some(last) if last.to >= from => last.to = last.to.max(to),
            _ => spans.push(Span { from, to }),
        };
        let read = self.read.min(self.top);
        let mut from = self.position();
        for offset in self.open.range(..read).map(|(offset, _)| *offset) {
            add(from, offset);
            from = offset + 1;
        }
        add(from, read);
        for span in &self.done_before {
            add(span.from.max(from), span.to);
        }
        spans
    }
}

/// Metadata that no runner wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the metadata of a committed position can't be read")]
pub(crate) struct Unreadable;

/// Non-negative numbers, seven bits a byte, the last byte of each without the eighth.
struct Lengths<'a>(&'a [u8]);

impl Lengths<'_> {
    fn next(&mut self) -> Result<Option<i64>, Unreadable> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut value = 0i64;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Unreadable)?;
            self.0 = rest;
            value |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Err(Unreadable)
    }
}

fn put(bytes: &mut Vec<u8>, value: i64) {
    let mut left = value.unsigned_abs();
    loop {
        let [low, ..] = left.to_le_bytes();
        left >>= 7;
        bytes.push(low & 0x7f | if left > 0 { 0x80 } else { 0 });
        if left == 0 {
            return;
        }
    }
}

/// Bytes that [`put`] takes for a value.
fn length(value: i64) -> usize {
    let bits = 64 - value.unsigned_abs().leading_zeros() as usize;
    bits.max(1).div_ceil(7)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn read_all(progress: &mut Progress, offsets: impl IntoIterator<Item = i64>) -> Vec<i64> {
        offsets.into_iter().filter(|offset| progress.read(*offset, 0)).collect()
    }

    #[test]
    fn a_slow_record_holds_the_position_and_what_is_done_behind_it_is_kept() {
        let mut progress = Progress::resume(10, "").unwrap();
        assert_eq!(read_all(&mut progress, 10..15), [10, 11, 12, 13, 14]);
        for offset in [11, 12, 14] {
            progress.done(offset);
        }
        assert_eq!(progress.position(), 10);
        let mut after = Progress::resume(10, &progress.beyond()).unwrap();
        assert_eq!(read_all(&mut after, 10..17), [10, 13, 15, 16], "what was done is not done again");
        for offset in [10, 13, 15, 16] {
            after.done(offset);
        }
        assert_eq!((after.position(), after.beyond().as_str()), (17, ""));
    }

    #[test]
    fn what_was_done_stays_done_over_a_second_crash_before_it_was_read_again() {
        let mut progress = Progress::resume(0, "").unwrap();
        read_all(&mut progress, 0..100);
        (50..100).for_each(|offset| progress.done(offset));
        let mut second = Progress::resume(0, &progress.beyond()).unwrap();
        read_all(&mut second, 0..10);
        second.done(0);
        let mut third = Progress::resume(second.position(), &second.beyond()).unwrap();
        assert_eq!(read_all(&mut third, 1..100), (1..50).collect::<Vec<_>>());
    }

    #[test]
    fn offsets_without_records_are_passed() {
        let mut progress = Progress::resume(0, "").unwrap();
        read_all(&mut progress, [3, 7, 9]);
        assert_eq!(progress.position(), 3);
        progress.done(3);
        assert_eq!(progress.position(), 7, "5 holds a marker");
        progress.done(7);
        progress.done(9);
        assert_eq!((progress.position(), progress.beyond().as_str()), (10, ""));
    }

    #[test]
    fn metadata_of_others_is_refused() {
        for other in ["?", "gA", "AQ"] {
            assert_eq!(Progress::resume(0, other), Err(Unreadable), "{other}");
        }
    }

    proptest! {
        /// Records complete in any order, over any number of crashes, with holes in the log: each is given out until it is
        /// done and committed, and never after.
        #[test]
        fn nothing_is_lost_and_nothing_is_done_twice(
            holes in prop::collection::btree_set(0i64..200, 0..60),
            steps in prop::collection::vec((0usize..40, 0usize..30, any::<u64>()), 1..40),
        ) {
            let log: Vec<i64> = (0..200).filter(|offset| !holes.contains(offset)).collect();
            let mut committed = BTreeSet::new();
            let mut at = (0, String::new());
            for (to_read, to_finish, choice) in steps {
                let mut progress = Progress::resume(at.0, &at.1).unwrap();
                let visible = log.iter().copied().filter(|offset| *offset >= at.0).take(to_read);
                let mut running = read_all(&mut progress, visible);
                prop_assert!(running.iter().all(|offset| !committed.contains(offset)), "given out again");
                for n in 0..to_finish.min(running.len()) {
                    let chosen = usize::try_from(choice.rotate_left(u32::try_from(n).unwrap()) % 1_000).unwrap() % running.len();
                    let offset = running.swap_remove(chosen);
                    progress.done(offset);
                    committed.insert(offset);
                }
                at = (progress.position(), progress.beyond());
                let before: BTreeSet<i64> = log.iter().copied().filter(|offset| *offset < at.0).collect();
                prop_assert!(before.is_subset(&committed), "the position passed what is not done");
            }
        }

        /// Whatever order they end in, what fits by the guard's word fits.
        #[test]
        fn what_may_begin_always_fits(done in prop::collection::vec(any::<bool>(), 1..6_000), apart in 1i64..400) {
            let mut progress = Progress::resume(0, "").unwrap();
            let mut begun = Vec::new();
            for n in 0..i64::try_from(done.len()).unwrap() {
                let offset = n * apart;
                prop_assert!(progress.read(offset, 0));
                if !progress.may_begin(offset) {
                    break;
                }
                progress.begin(offset);
                begun.push(offset);
            }
            for (offset, done) in begun.iter().zip(done) {
                if done {
                    progress.done(*offset);
                }
            }
            prop_assert!(progress.beyond().len() <= MAX_BEYOND);
        }
    }
}
