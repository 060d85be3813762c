//! A model on the processor: from texts to vectors on one thread.

use std::time::Instant;

use crate::bert::{Encoder, Step, Steps, Team, Workspace};
use crate::workers::{Compute, Computed};
use crate::{ModelError, Tokenizer, metric};

/// A tokenizer and the model that takes its tokens.
pub(crate) struct Processor {
    pub tokenizer: Tokenizer,
    pub encoder: Encoder,
}

impl Compute for Processor {
    type Memory = Workspace;
    type Team = (Team, usize);

    fn compute(&self, texts: &[String], memory: &mut Workspace, between: &mut dyn FnMut()) -> Computed {
        let (sequences, tokens) = self.tokenize(texts)?;
        count(tokens);
        let vectors = self.encoder.embed(&sequences, memory, between);
        Ok((vectors.map_err(|error| ModelError::Compute(error.to_string()))?, tokens))
    }

    fn team(&self, texts: &[&str], threads: usize) -> Result<Option<(Team, usize)>, ModelError> {
        let (sequences, tokens) = self.tokenize(texts)?;
        let team = self.encoder.team(&sequences, threads);
        Ok(team.map_err(|error| ModelError::Compute(error.to_string()))?.map(|team| (team, tokens)))
    }

    fn join(&self, (team, tokens): &(Team, usize), memory: &mut Workspace) -> Option<Computed> {
        let vectors = self.encoder.join(team, memory)?;
        count(*tokens);
        Some(Ok((vectors, *tokens)))
    }
}

/// Counts tokens that were computed at once.
fn count(tokens: usize) {
    #[allow(clippy::cast_precision_loss)]
    metrics::histogram!(metric::EMBED_BATCH_TOKENS).record(tokens as f64);
}

impl Processor {
    /// The tokens of each text, and how many these are in all.
    fn tokenize(&self, texts: &[impl AsRef<str>]) -> Result<(Vec<Vec<u32>>, usize), ModelError> {
        let sequences = texts.iter().map(|text| self.tokenizer.encode(text.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let tokens = sequences.iter().map(Vec::len).sum();
        Ok((sequences, tokens))
    }

    /// Seconds of each part of the work on these texts, on this thread alone; the second time counts.
    pub fn profile(&self, texts: &[&str]) -> Result<Vec<(&'static str, f64)>, ModelError> {
        let mut at = Workspace::default();
        let mut profile = Vec::new();
        for _ in 0..2 {
            at.steps = Steps::default();
            let started = Instant::now();
            let mut tokenized = 0.0;
            let mut rows = 0;
            for texts in texts.chunks(4) {
                let begun = Instant::now();
                let (sequences, tokens) = self.tokenize(texts)?;
                tokenized += begun.elapsed().as_secs_f64();
                rows += tokens;
                let embedded = self.encoder.embed(&sequences, &mut at, &mut || ());
                embedded.map_err(|error| ModelError::Compute(error.to_string()))?;
            }
            let all = started.elapsed().as_secs_f64();
            let gelu = self.encoder.gelu_seconds(rows);
            let [products, attention, norms] =
                [Step::Products, Step::Attention, Step::Norms].map(|step| at.steps.seconds(step));
            profile = vec![
                ("tokenization", tokenized),
                ("products", products - gelu),
                ("gelu", gelu),
                ("attention", attention),
                ("norms", norms),
                ("other", all - tokenized - products - attention - norms),
            ];
        }
        Ok(profile)
    }
}
