//! BERT on the processor, in single precision, with kernels of our own.

use candle_core::Result;
use pulp::Arch;

use super::aligned::Aligned;
use super::attention::{Attention, Scratch};
use super::kernels::{self, Norm};
use super::product::{Edge, Packed};
use super::steps::{Step, Steps};
use super::weights::{Shape, Weights};

/// Rows whose inner layer is computed at a time, so that it stays in the second cache: a multiple of all tiles' heights.
const INNER_ROWS: usize = 48;
/// Rows whose queries, keys and values are computed at a time, at least (unless there are no more): whole sequences.
const ATTENDED_ROWS: usize = 96;

/// A BERT model that gives the mean of its last layer, scaled to unit length.
pub(crate) struct Encoder {
    /// What the processor has: the one place where it is chosen.
    arch: Arch,
    shape: Shape,
    words: Vec<f32>,
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    qkv: Packed,
    attended: Packed,
    attended_norm: Norm,
    inner: Packed,
    outer: Packed,
    outer_norm: Norm,
}

/// Memory of one thread, kept from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    lengths: Vec<usize>,
    rows: Aligned,
    qkv: Aligned,
    attended: Aligned,
    inner: Aligned,
    scratch: Scratch,
    /// Where the time went.
    pub steps: Steps,
}

/// A token that the model does not have.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer gave token {token} at place {place}; the model has {tokens} tokens and {places} places")]
pub(crate) struct UnknownToken {
    token: u32,
    place: usize,
    tokens: usize,
    places: usize,
}

impl Encoder {
    pub(super) fn assemble(arch: Arch, shape: Shape, weights: &Weights) -> Result<Self> {
        let layers = (0..shape.num_hidden_layers)
            .map(|layer| Layer::assemble(arch, &shape, weights, &format!("encoder.layer.{layer}")))
            .collect::<Result<_>>()?;
        Ok(Self {
            arch,
            words: weights.numbers("embeddings.word_embeddings.weight")?,
            positions: weights.positions()?.flatten_all()?.to_vec1()?,
            norm: norm(&shape, weights, "embeddings.LayerNorm")?,
            layers,
            shape,
        })
    }

    /// Components of its vectors.
    pub fn dimension(&self) -> usize {
        self.shape.hidden_size
    }

    /// A vector for each sequence of tokens, in order. `between` is called after every part of a layer, that is after
    /// some milliseconds: what can't wait for the end may be done there.
    ///
    /// # Errors
    /// When a token or the place of one is not in the model.
    pub fn embed(
        &self,
        sequences: &[Vec<u32>],
        at: &mut Workspace,
        between: &mut dyn FnMut(),
    ) -> std::result::Result<Vec<Vec<f32>>, UnknownToken> {
        let width = self.shape.hidden_size;
        let Workspace { lengths, rows, qkv, attended, inner, scratch, steps } = at;
        steps.begin();
        lengths.clear();
        lengths.extend(sequences.iter().map(Vec::len));
        let rows = rows.first(lengths.iter().sum::<usize>() * width);
        self.look_up(sequences, rows)?;
        steps.end(Step::Other);
        self.norm.apply(self.arch, rows);
        steps.end(Step::Norms);
        for layer in &self.layers {
            let mut rest = &mut *rows;
            for group in groups(lengths) {
                let count: usize = group.iter().sum();
                let (rows, after) = rest.split_at_mut(count * width);
                rest = after;
                let (qkv, attended) = (qkv.first(count * layer.qkv.width()), attended.first(count * width));
                layer.qkv.apply(rows, Edge::Write, qkv);
                steps.end(Step::Products);
                let (heads, head_width) = (self.shape.num_attention_heads, self.shape.head_width());
                Attention { qkv, lengths: group, heads, head_width, scratch, out: attended }.run(self.arch);
                steps.end(Step::Attention);
                layer.attended.apply(attended, Edge::Add, rows);
                steps.end(Step::Products);
                layer.attended_norm.apply(self.arch, rows);
                steps.end(Step::Norms);
                between();
                steps.begin();
            }
            for rows in rows.chunks_mut(INNER_ROWS * width) {
                let inner = inner.first(rows.len() / width * layer.inner.width());
                layer.inner.apply(rows, Edge::Gelu, inner);
                layer.outer.apply(inner, Edge::Add, rows);
                steps.end(Step::Products);
                layer.outer_norm.apply(self.arch, rows);
                steps.end(Step::Norms);
                between();
                steps.begin();
            }
        }
        let mut rest = &*rows;
        let mean = |length: &usize| {
            let (rows, after) = rest.split_at(length * width);
            rest = after;
            kernels::mean_unit(rows, width)
        };
        let vectors = lengths.iter().map(mean).collect();
        steps.end(Step::Other);
        Ok(vectors)
    }

    /// Seconds of the GELUs of so many rows in all layers: what a product with them takes longer.
    pub fn gelu_seconds(&self, rows: usize) -> f64 {
        let Some(layer) = self.layers.first() else { return 0.0 };
        let x = Aligned::zeroed(INNER_ROWS * self.shape.hidden_size);
        let mut out = Aligned::zeroed(INNER_ROWS * layer.inner.width());
        let mut fastest = |edge| {
            let mut seconds = f64::MAX;
            for _ in 0..50 {
                let started = std::time::Instant::now();
                layer.inner.apply(x.all(), edge, out.first(INNER_ROWS * layer.inner.width()));
                seconds = seconds.min(started.elapsed().as_secs_f64());
            }
            seconds
        };
        let longer = fastest(Edge::Gelu) - fastest(Edge::Write);
        #[allow(clippy::cast_precision_loss)]
        let blocks = (rows * self.layers.len()) as f64 / INNER_ROWS as f64;
        longer.max(0.0) * blocks
    }

    /// Fills the rows with the embeddings of words and positions.
    fn look_up(&self, sequences: &[Vec<u32>], rows: &mut [f32]) -> std::result::Result<(), UnknownToken> {
        let width = self.shape.hidden_size;
        let tokens = sequences.iter().flat_map(|sequence| sequence.iter().enumerate());
        for (row, (place, token)) in rows.chunks_exact_mut(width).zip(tokens) {
            let of = |place: usize| place.saturating_mul(width)..place.saturating_add(1).saturating_mul(width);
            let word = usize::try_from(*token).ok().and_then(|token| self.words.get(of(token)));
            let position = self.positions.get(of(place));
            let (Some(word), Some(position)) = (word, position) else {
                let (tokens, places) = (self.words.len() / width, self.positions.len() / width);
                return Err(UnknownToken { token: *token, place, tokens, places });
            };
            for ((slot, word), position) in row.iter_mut().zip(word).zip(position) {
                *slot = word + position;
            }
        }
        Ok(())
    }
}

impl Layer {
    fn assemble(arch: Arch, shape: &Shape, weights: &Weights, at: &str) -> Result<Self> {
        let packed = |name: &str| -> Result<Packed> {
            let numbers = |what: &str| weights.numbers(&format!("{at}.{name}.{what}"));
            Ok(Packed::new(arch, &numbers("weight")?, &numbers("bias")?))
        };
        // Queries come divided by the root of their width.
        #[allow(clippy::cast_precision_loss)]
        let scale = (shape.head_width() as f32).sqrt().recip();
        let queries_divided = |what: &str| -> Result<Vec<f32>> {
            let mut numbers: Vec<f32> = weights.of_attention(at, what)?.flatten_all()?.to_vec1()?;
            let queries = numbers.len() / 3;
            numbers.iter_mut().take(queries).for_each(|x| *x *= scale);
            Ok(numbers)
        };
        Ok(Self {
            qkv: Packed::new(arch, &queries_divided("weight")?, &queries_divided("bias")?),
            attended: packed("attention.output.dense")?,
            attended_norm: norm(shape, weights, &format!("{at}.attention.output.LayerNorm"))?,
            inner: packed("intermediate.dense")?,
            outer: packed("output.dense")?,
            outer_norm: norm(shape, weights, &format!("{at}.output.LayerNorm"))?,
        })
    }
}

fn norm(shape: &Shape, weights: &Weights, at: &str) -> Result<Norm> {
    #[allow(clippy::cast_possible_truncation, reason = "computed in f32 like the rest")]
    let epsilon = shape.layer_norm_eps as f32;
    let numbers = |what: &str| weights.numbers(&format!("{at}.{what}"));
    Ok(Norm { scale: numbers("weight")?, shift: numbers("bias")?, epsilon })
}

/// Sequences one after another, as few in a group as have `ATTENDED_ROWS` rows.
fn groups(mut lengths: &[usize]) -> impl Iterator<Item = &[usize]> {
    std::iter::from_fn(move || {
        let mut rows = 0;
        let wanted = |length: &&usize| {
            let more = rows < ATTENDED_ROWS;
            rows += **length;
            more
        };
        let (group, rest) = lengths.split_at(lengths.iter().take_while(wanted).count());
        lengths = rest;
        (!group.is_empty()).then_some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_sequence_once_and_in_order_and_are_not_small() {
        let lengths = [200, 90, 5, 1, 16, 16, 80, 3];
        let found: Vec<&[usize]> = groups(&lengths).collect();
        let expected: [&[usize]; 4] = [&[200], &[90, 5, 1], &[16, 16, 80], &[3]];
        assert_eq!(found, expected);
        assert_eq!(groups(&[]).count(), 0);
    }
}
