//! Cuts sequences into batches of similar length under a token budget, and makes the budget smaller when the device
//! can't take it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::warn;

use crate::{ModelError, metric};

/// What computes a batch.
pub(crate) trait Backend: Send + Sync {
    /// A vector of unit length for each sequence of tokens, in order.
    fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, BackendError>;
}

/// Why a batch was not computed.
#[derive(Debug)]
pub(crate) enum BackendError {
    /// It does not fit into the memory of the device; a smaller one may.
    OutOfMemory,
    /// Anything else.
    Failed(String),
}

/// A backend that is given batches it can take.
pub(crate) struct Batcher<B> {
    backend: B,
    /// Tokens in a batch, at most; a single longer sequence is a batch of its own.
    budget: AtomicUsize,
}

impl<B: Backend> Batcher<B> {
    pub fn new(backend: B, budget: usize) -> Self {
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!(metric::EMBED_TOKEN_BUDGET).set(budget as f64);
        Self { backend, budget: AtomicUsize::new(budget) }
    }

    /// A vector for each sequence, in order.
    pub fn run(&self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        // The longest first: what does not fit shows at once, and the short ones fill the gaps at the end.
        let mut waiting: Vec<(usize, &[u32])> = sequences.iter().map(Vec::as_slice).enumerate().collect();
        waiting.sort_by_key(|(_, sequence)| std::cmp::Reverse(sequence.len()));
        let mut vectors = vec![Vec::new(); sequences.len()];
        let mut waiting = waiting.as_slice();
        while !waiting.is_empty() {
            let (batch, rest) = waiting.split_at(self.fitting(waiting));
            let tokens: usize = batch.iter().map(|(_, sequence)| sequence.len()).sum();
            let batch_sequences: Vec<&[u32]> = batch.iter().map(|(_, sequence)| *sequence).collect();
            match self.backend.forward(&batch_sequences) {
                Ok(computed) => {
                    #[allow(clippy::cast_precision_loss)]
                    metrics::histogram!(metric::EMBED_BATCH_TOKENS).record(tokens as f64);
                    for ((place, _), vector) in batch.iter().zip(computed) {
                        if let Some(slot) = vectors.get_mut(*place) {
                            *slot = vector;
                        }
                    }
                    waiting = rest;
                }
                Err(BackendError::OutOfMemory) => self.halve(batch.len(), tokens)?,
                Err(BackendError::Failed(reason)) => return Err(ModelError::Compute(reason)),
            }
        }
        Ok(vectors)
    }

    /// How many of the waiting sequences make a batch: at least one.
    fn fitting(&self, waiting: &[(usize, &[u32])]) -> usize {
        let budget = self.budget.load(Ordering::Relaxed);
        let mut tokens = 0;
        let fits = |(_, sequence): &&(usize, &[u32])| {
            tokens += sequence.len();
            tokens <= budget
        };
        waiting.iter().take_while(fits).count().max(1)
    }

    /// Remembers that a batch of so many sequences and tokens was too much.
    fn halve(&self, sequences: usize, tokens: usize) -> Result<(), ModelError> {
        metrics::counter!(metric::EMBED_OUT_OF_MEMORY).increment(1);
        if sequences <= 1 {
            return Err(ModelError::OutOfMemory { tokens });
        }
        let budget = self.budget.fetch_min(tokens / 2, Ordering::Relaxed).min(tokens / 2);
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!(metric::EMBED_TOKEN_BUDGET).set(budget as f64);
        warn!(tokens, budget, "the device ran out of memory; batches are smaller from now on");
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// A device with room for so many tokens; it remembers the sizes of the batches it was asked for.
    struct Small {
        room: usize,
        asked: Mutex<Vec<usize>>,
    }

    impl Small {
        fn with_room(room: usize) -> Self {
            Self { room, asked: Mutex::default() }
        }
    }

    impl Backend for Small {
        fn forward(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, BackendError> {
            let tokens = sequences.iter().map(|sequence| sequence.len()).sum();
            self.asked.lock().unwrap().push(tokens);
            if tokens > self.room {
                return Err(BackendError::OutOfMemory);
            }
            Ok(sequences.iter().map(|sequence| vec![sequence.iter().sum::<u32>() as f32]).collect())
        }
    }

    fn sequences(lengths: &[usize]) -> Vec<Vec<u32>> {
        lengths.iter().enumerate().map(|(i, length)| vec![u32::try_from(i).unwrap() + 1; *length]).collect()
    }

    fn expected(lengths: &[usize]) -> Vec<Vec<f32>> {
        lengths.iter().enumerate().map(|(i, length)| vec![((i + 1) * length) as f32]).collect()
    }

    #[test]
    fn vectors_come_back_in_the_order_of_the_texts() {
        let lengths = [3, 9, 1, 7, 7, 2, 30];
        let batcher = Batcher::new(Small::with_room(1000), 10);
        assert_eq!(batcher.run(&sequences(&lengths)).unwrap(), expected(&lengths));
        let asked = batcher.backend.asked.lock().unwrap();
        assert_eq!(*asked, [30, 9, 7, 10, 3], "a batch is over the budget, or smaller than it might be");
    }

    #[test]
    fn running_out_of_memory_halves_the_batch_and_goes_on() {
        let lengths = [10; 64];
        let batcher = Batcher::new(Small::with_room(150), 1000);
        assert_eq!(batcher.run(&sequences(&lengths)).unwrap(), expected(&lengths));
        assert_eq!(batcher.backend.asked.lock().unwrap().get(..4), Some([640, 320, 160, 80].as_slice()));
    }

    #[test]
    fn the_smaller_batch_is_remembered() {
        let lengths = [10; 64];
        let batcher = Batcher::new(Small::with_room(150), 1000);
        batcher.run(&sequences(&lengths)).unwrap();
        batcher.backend.asked.lock().unwrap().clear();
        batcher.run(&sequences(&lengths)).unwrap();
        assert!(batcher.backend.asked.lock().unwrap().iter().all(|tokens| *tokens <= 150));
    }

    #[test]
    fn a_single_text_that_does_not_fit_is_an_error_with_its_length() {
        let batcher = Batcher::new(Small::with_room(5), 1000);
        let error = batcher.run(&sequences(&[8, 1])).unwrap_err();
        assert!(matches!(error, ModelError::OutOfMemory { tokens: 8 }), "{error}");
    }

    proptest! {
        #[test]
        fn every_text_gets_its_vector_whatever_the_lengths_and_the_room(
            lengths in prop::collection::vec(1usize..60, 0..80),
            budget in 1usize..400,
            room in 60usize..400,
        ) {
            let batcher = Batcher::new(Small::with_room(room), budget);
            prop_assert_eq!(batcher.run(&sequences(&lengths)).unwrap(), expected(&lengths));
        }
    }
}
