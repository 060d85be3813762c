//! Cuts texts into batches of similar length under a token budget, keeps the device busy while the next batch is made, and
//! makes the budget smaller when the device can't take it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use crate::{ModelError, metric};

/// What computes batches, each when the ones launched before are done.
pub(crate) trait Backend: Send + Sync {
    /// A batch that is being computed.
    type Launched;

    /// Begins with sequences of tokens, and does not wait until they are computed.
    fn launch(&self, sequences: &[&[u32]]) -> Result<Self::Launched, BackendError>;

    /// A vector of unit length for each sequence of the batch, in order, when they are computed.
    fn fetch(&self, launched: Self::Launched) -> Result<Vec<Vec<f32>>, BackendError>;
}

/// Why a batch was not computed.
#[derive(Debug)]
pub(crate) enum BackendError {
    /// It does not fit into the memory of the device; a smaller one may.
    OutOfMemory,
    /// Anything else.
    Failed(String),
}

/// Texts of which the tokens are made when their turn comes.
pub(crate) trait Texts {
    /// About how many tokens each text has.
    fn lengths(&self) -> Vec<usize>;

    /// Tokens of the texts at these places.
    fn tokens(&self, places: &[usize]) -> Result<Vec<Vec<u32>>, ModelError>;
}

/// A backend that is given batches it can take.
pub(crate) struct Batcher<B> {
    backend: B,
    /// Tokens in a batch, at most; a single longer sequence is a batch of its own.
    budget: AtomicUsize,
}

/// A text's place among the texts, and its tokens.
type Sequence = (usize, Vec<u32>);

/// A batch on the device.
struct Flight<B: Backend> {
    batch: Vec<Sequence>,
    launched: B::Launched,
    /// No other batch of this call is there at the same time.
    alone: bool,
}

impl<B: Backend> Batcher<B> {
    pub fn new(backend: B, budget: usize) -> Self {
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!(metric::EMBED_TOKEN_BUDGET).set(budget as f64);
        Self { backend, budget: AtomicUsize::new(budget) }
    }

    /// A vector for each text, in order, and how many tokens they have together.
    ///
    /// While the device computes a batch, the tokens of the next one are made, and it is launched before the vectors of the
    /// first are fetched: the device always has something to do.
    pub fn run(&self, texts: &impl Texts) -> Result<(Vec<Vec<f32>>, usize), ModelError> {
        let mut call = Call::new(texts);
        let mut flying = None;
        loop {
            let budget = self.budget.load(Ordering::Relaxed);
            let next = if call.ahead || flying.is_none() { call.waiting.batch(budget)? } else { None };
            if next.is_none() && flying.is_none() {
                return Ok((call.vectors, call.tokens));
            }
            let launched = next.map(|batch| self.launch(batch, &mut call)).transpose()?.flatten();
            if let Some(flight) = std::mem::replace(&mut flying, launched) {
                self.land(flight, &mut call)?;
            }
        }
    }

    /// Launches a batch; none if the device has no room for it now.
    fn launch(&self, batch: Vec<Sequence>, call: &mut Call<'_, impl Texts>) -> Result<Option<Flight<B>>, ModelError> {
        let alone = !call.ahead;
        let sequences: Vec<&[u32]> = batch.iter().map(|(_, sequence)| sequence.as_slice()).collect();
        match self.backend.launch(&sequences) {
            Ok(launched) => Ok(Some(Flight { batch, launched, alone })),
            Err(error) => {
                call.ahead &= self.smaller(error, &batch, alone)?;
                call.waiting.put_back(batch);
                Ok(None)
            }
        }
    }

    /// Fetches the vectors of a batch, or puts it back if there was no room for it after all.
    fn land(&self, flight: Flight<B>, call: &mut Call<'_, impl Texts>) -> Result<(), ModelError> {
        let Flight { batch, launched, alone } = flight;
        match self.backend.fetch(launched) {
            Ok(vectors) => call.done(batch, vectors),
            Err(error) => {
                call.ahead &= self.smaller(error, &batch, alone)?;
                call.waiting.put_back(batch);
            }
        }
        Ok(())
    }

    /// What follows from a batch that failed. Where it was too much, batches are smaller from now on; if it was a single
    /// text, it is tried again alone. Says whether other batches may still be on the device at the same time.
    fn smaller(&self, error: BackendError, batch: &[Sequence], alone: bool) -> Result<bool, ModelError> {
        let tokens = count(batch);
        match error {
            BackendError::Failed(reason) => return Err(ModelError::Compute(reason)),
            BackendError::OutOfMemory => metrics::counter!(metric::EMBED_OUT_OF_MEMORY).increment(1),
        }
        if batch.len() <= 1 {
            return if alone { Err(ModelError::OutOfMemory { tokens }) } else { Ok(false) };
        }
        let budget = self.budget.fetch_min(tokens / 2, Ordering::Relaxed).min(tokens / 2);
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!(metric::EMBED_TOKEN_BUDGET).set(budget as f64);
        warn!(tokens, budget, "the device ran out of memory; batches are smaller from now on");
        Ok(true)
    }
}

fn count(batch: &[Sequence]) -> usize {
    batch.iter().map(|(_, sequence)| sequence.len()).sum()
}

/// What one call has, and still waits for.
struct Call<'a, T> {
    waiting: Waiting<'a, T>,
    vectors: Vec<Vec<f32>>,
    /// Tokens of all vectors that are there.
    tokens: usize,
    /// Whether a batch is launched while another one is on the device.
    ahead: bool,
}

impl<'a, T: Texts> Call<'a, T> {
    fn new(texts: &'a T) -> Self {
        let waiting = Waiting::new(texts);
        let vectors = vec![Vec::new(); waiting.untouched.len()];
        Self { waiting, vectors, tokens: 0, ahead: true }
    }

    fn done(&mut self, batch: Vec<Sequence>, vectors: Vec<Vec<f32>>) {
        let tokens = count(&batch);
        self.tokens += tokens;
        #[allow(clippy::cast_precision_loss)]
        metrics::histogram!(metric::EMBED_BATCH_TOKENS).record(tokens as f64);
        for ((place, _), vector) in batch.into_iter().zip(vectors) {
            if let Some(slot) = self.vectors.get_mut(place) {
                *slot = vector;
            }
        }
    }
}

/// The texts that are not computed yet. The longest are first: what does not fit shows at once, and the short ones fill the
/// gaps at the end.
struct Waiting<'a, T> {
    texts: &'a T,
    /// Place and likely length of those whose tokens are not made yet, the longest last.
    untouched: Vec<(usize, usize)>,
    /// The others, the longest last.
    ready: Vec<Sequence>,
}

impl<'a, T: Texts> Waiting<'a, T> {
    fn new(texts: &'a T) -> Self {
        let mut untouched: Vec<(usize, usize)> = texts.lengths().into_iter().enumerate().collect();
        untouched.sort_by_key(|(place, length)| (*length, std::cmp::Reverse(*place)));
        Self { texts, untouched, ready: Vec::new() }
    }

    /// The next batch of so many tokens at most (a longer text is one of its own), or none when nothing waits.
    fn batch(&mut self, budget: usize) -> Result<Option<Vec<Sequence>>, ModelError> {
        let mut tokens = count(&self.ready);
        while tokens < budget && !self.untouched.is_empty() {
            let places = self.untouch(budget - tokens);
            let made = self.texts.tokens(&places)?;
            tokens += made.iter().map(Vec::len).sum::<usize>();
            self.put_back(places.into_iter().zip(made).collect());
        }
        let mut tokens = 0;
        let fits = |(_, sequence): &&Sequence| {
            tokens += sequence.len();
            tokens <= budget
        };
        let fitting = self.ready.iter().rev().take_while(fits).count().max(1);
        let mut batch = self.ready.split_off(self.ready.len().saturating_sub(fitting));
        batch.reverse();
        Ok(Some(batch).filter(|batch| !batch.is_empty()))
    }

    /// Places of the longest texts that likely have so many tokens: at least one.
    fn untouch(&mut self, tokens: usize) -> Vec<usize> {
        let mut likely = 0;
        let lacking = |(_, length): &&(usize, usize)| {
            let before = likely;
            likely += length;
            before < tokens
        };
        let taken = self.untouched.iter().rev().take_while(lacking).count();
        self.untouched.drain(self.untouched.len() - taken..).rev().map(|(place, _)| place).collect()
    }

    fn put_back(&mut self, batch: Vec<Sequence>) {
        self.ready.extend(batch);
        self.ready.sort_by_key(|(place, sequence)| (sequence.len(), std::cmp::Reverse(*place)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// A device with room for so many tokens, and what it was asked for.
    #[derive(Default)]
    struct Small {
        /// Tokens of one batch.
        room: usize,
        /// Tokens of all batches on it.
        room_for_all: Option<usize>,
        /// Whether a lack of room shows only when vectors are fetched.
        late: bool,
        /// The batch that can't be computed.
        failing: Option<usize>,
        asked: Mutex<Asked>,
    }

    #[derive(Default)]
    struct Asked {
        /// Tokens of each batch.
        batches: Vec<usize>,
        /// `+` for a launch, `-` for a fetch.
        calls: String,
        /// Tokens on the device.
        flying: usize,
    }

    struct Computing<'a> {
        asked: &'a Mutex<Asked>,
        tokens: usize,
        vectors: Result<Vec<Vec<f32>>, BackendError>,
    }

    impl Drop for Computing<'_> {
        fn drop(&mut self) {
            self.asked.lock().unwrap().flying -= self.tokens;
        }
    }

    impl<'a> Backend for &'a Small {
        type Launched = Computing<'a>;

        fn launch(&self, sequences: &[&[u32]]) -> Result<Computing<'a>, BackendError> {
            let tokens = sequences.iter().map(|sequence| sequence.len()).sum();
            let mut asked = self.asked.lock().unwrap();
            asked.batches.push(tokens);
            asked.calls.push('+');
            if self.failing == Some(asked.batches.len()) {
                return Err(BackendError::Failed("no more".into()));
            }
            let full = tokens > self.room || self.room_for_all.is_some_and(|room| asked.flying + tokens > room);
            if full && !self.late {
                return Err(BackendError::OutOfMemory);
            }
            asked.flying += tokens;
            let vectors = sequences.iter().map(|sequence| vec![sequence.iter().sum::<u32>() as f32]).collect();
            let vectors = if full { Err(BackendError::OutOfMemory) } else { Ok(vectors) };
            Ok(Computing { asked: &self.asked, tokens, vectors })
        }

        fn fetch(&self, mut launched: Computing<'a>) -> Result<Vec<Vec<f32>>, BackendError> {
            self.asked.lock().unwrap().calls.push('-');
            std::mem::replace(&mut launched.vectors, Ok(Vec::new()))
        }
    }

    /// Texts of these lengths; the tokens of each are its number.
    struct Numbered<'a> {
        lengths: &'a [usize],
        /// How wrong a guess of a length is.
        wrong: fn(usize) -> usize,
        /// How many were made at once.
        made: Mutex<Vec<usize>>,
    }

    impl<'a> Numbered<'a> {
        fn new(lengths: &'a [usize]) -> Self {
            Self { lengths, wrong: |length| length, made: Mutex::default() }
        }
    }

    impl Texts for Numbered<'_> {
        fn lengths(&self) -> Vec<usize> {
            self.lengths.iter().map(|length| (self.wrong)(*length)).collect()
        }

        fn tokens(&self, places: &[usize]) -> Result<Vec<Vec<u32>>, ModelError> {
            self.made.lock().unwrap().push(places.len());
            let tokens = |place: &usize| Some(vec![u32::try_from(*place).unwrap() + 1; *self.lengths.get(*place)?]);
            Ok(places.iter().map(|place| tokens(place).unwrap()).collect())
        }
    }

    fn expected(lengths: &[usize]) -> (Vec<Vec<f32>>, usize) {
        (lengths.iter().enumerate().map(|(i, length)| vec![((i + 1) * length) as f32]).collect(), lengths.iter().sum())
    }

    fn run(device: &Small, budget: usize, lengths: &[usize]) -> Result<(Vec<Vec<f32>>, usize), ModelError> {
        Batcher::new(device, budget).run(&Numbered::new(lengths))
    }

    fn asked(device: &Small) -> Vec<usize> {
        std::mem::take(&mut device.asked.lock().unwrap().batches)
    }

    #[test]
    fn vectors_come_back_in_the_order_of_the_texts() {
        let lengths = [3, 9, 1, 7, 7, 2, 30];
        let device = Small { room: 1000, ..Small::default() };
        assert_eq!(run(&device, 10, &lengths).unwrap(), expected(&lengths));
        assert_eq!(asked(&device), [30, 9, 7, 10, 3], "a batch is over the budget, or smaller than it might be");
    }

    #[test]
    fn a_batch_is_launched_before_the_vectors_of_the_one_before_are_fetched() {
        let device = Small { room: 1000, ..Small::default() };
        run(&device, 10, &[10; 4]).unwrap();
        assert_eq!(device.asked.lock().unwrap().calls, "++-+-+--");
    }

    #[test]
    fn tokens_are_made_a_batch_at_a_time() {
        let device = Small { room: 1000, ..Small::default() };
        let texts = Numbered::new(&[10; 40]);
        Batcher::new(&device, 100).run(&texts).unwrap();
        assert_eq!(*texts.made.lock().unwrap(), [10, 10, 10, 10]);
    }

    #[test]
    fn running_out_of_memory_halves_the_batch_and_goes_on() {
        let lengths = [10; 64];
        // What shows late has the next one behind it, which is as large.
        for (late, batches) in [(false, [640, 320, 160, 80]), (true, [640, 320, 320, 160])] {
            let device = Small { room: 150, late, ..Small::default() };
            assert_eq!(run(&device, 1000, &lengths).unwrap(), expected(&lengths));
            assert_eq!(asked(&device).get(..4), Some(batches.as_slice()), "late: {late}");
        }
    }

    #[test]
    fn the_smaller_batch_is_remembered() {
        let lengths = [10; 64];
        let device = Small { room: 150, ..Small::default() };
        let batcher = Batcher::new(&device, 1000);
        batcher.run(&Numbered::new(&lengths)).unwrap();
        asked(&device);
        batcher.run(&Numbered::new(&lengths)).unwrap();
        assert!(asked(&device).iter().all(|tokens| *tokens <= 150));
    }

    #[test]
    fn texts_that_do_not_fit_together_are_computed_one_after_another() {
        for late in [false, true] {
            let device = Small { room: 100, room_for_all: Some(100), late, ..Small::default() };
            assert_eq!(run(&device, 1, &[100; 5]).unwrap(), expected(&[100; 5]), "late: {late}");
        }
    }

    #[test]
    fn a_single_text_that_does_not_fit_is_an_error_with_its_length() {
        for late in [false, true] {
            let device = Small { room: 5, late, ..Small::default() };
            let error = run(&device, 1000, &[8, 1]).unwrap_err();
            assert!(matches!(error, ModelError::OutOfMemory { tokens: 8 }), "{error}");
        }
    }

    #[test]
    fn what_fails_for_another_reason_is_an_error_and_nothing_stays_on_the_device() {
        let device = Small { room: 100, failing: Some(3), ..Small::default() };
        let error = run(&device, 10, &[10; 9]).unwrap_err();
        assert!(matches!(error, ModelError::Compute(_)), "{error}");
        assert_eq!(asked(&device).len(), 3);
        assert_eq!(device.asked.lock().unwrap().flying, 0);
    }

    proptest! {
        #[test]
        fn every_text_gets_its_vector_whatever_the_lengths_and_the_room(
            lengths in prop::collection::vec(1usize..60, 0..80),
            budget in 1usize..400,
            room in 60usize..400,
            all in prop::option::of(60usize..400),
            late: bool,
            wrong: bool,
        ) {
            let device = Small { room, room_for_all: all, late, ..Small::default() };
            let wrong = if wrong { |length: usize| 1 + length * 7 % 13 } else { |length| length };
            let texts = Numbered { wrong, ..Numbered::new(&lengths) };
            prop_assert_eq!(Batcher::new(&device, budget).run(&texts).unwrap(), expected(&lengths));
            prop_assert_eq!(device.asked.lock().unwrap().flying, 0);
        }

        #[test]
        fn threads_share_the_device_and_the_budget(
            calls in prop::collection::vec(prop::collection::vec(1usize..60, 0..40), 2..5),
            room in 60usize..400,
            late: bool,
        ) {
            let device = Small { room, late, ..Small::default() };
            let batcher = Batcher::new(&device, 1000);
            let results: Vec<_> = std::thread::scope(|scope| {
                let batcher = &batcher;
                let run = |lengths| scope.spawn(move || batcher.run(&Numbered::new(lengths)).unwrap());
                let threads: Vec<_> = calls.iter().map(|lengths| run(lengths)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for (lengths, result) in calls.iter().zip(results) {
                prop_assert_eq!(result, expected(lengths));
            }
        }
    }
}
