//! BERT on the processor, with kernels of our own.

use candle_core::Result;
use pulp::Arch;

use super::aligned::Aligned;
use super::kernels::{self, Norm};
use super::layer::{Kernels, Layer, Room, Sequences, arch_name};
use super::steps::{Step, Steps};
use super::together::Together;
use super::weights::{Shape, Weights};
use super::{bf16, int8};
use crate::{Precision, peak};

/// What a model is computed with: the one place where it is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernel {
    /// Single precision, with the vectors that the processor has.
    F32(Arch),
    /// Products in bf16.
    Bf16(bf16::Kernel),
    /// Products of whole numbers of eight bits.
    Int8(int8::Kernel),
}

impl Kernel {
    /// The fastest of this processor for a precision; none for one that no processor has.
    pub fn of(precision: Precision) -> Option<Self> {
        let bf16 = bf16::Kernel::fastest();
        match precision {
            Precision::Auto if bf16.is_native() => Some(Self::Bf16(bf16)),
            Precision::Auto | Precision::F32 => Some(Self::F32(Arch::new())),
            Precision::Bf16 => Some(Self::Bf16(bf16)),
            Precision::Int8 => Some(Self::Int8(int8::Kernel::fastest())),
            Precision::F16 => None,
        }
    }

    pub fn precision(self) -> Precision {
        match self {
            Self::F32(_) => Precision::F32,
            Self::Bf16(_) => Precision::Bf16,
            Self::Int8(_) => Precision::Int8,
        }
    }

    /// As logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32(arch) => arch_name(arch),
            Self::Bf16(kernel) => kernel.name(),
            Self::Int8(kernel) => kernel.name(),
        }
    }

    /// Operations a second that so many threads reach at best: products and sums in registers.
    pub fn peak_flops(self, threads: usize) -> f64 {
        match self {
            Self::F32(arch) => peak::of(threads, || peak::single(arch)),
            Self::Bf16(kernel) => peak::of(threads, || kernel.peak_flops()),
            Self::Int8(kernel) => peak::of(threads, || kernel.peak_operations()),
        }
    }
}

/// A BERT model that gives the mean of its last layer, scaled to unit length.
pub(crate) struct Encoder {
    kernel: Kernel,
    /// For what is not in the layers.
    arch: Arch,
    shape: Shape,
    words: Vec<f32>,
    positions: Vec<f32>,
    norm: Norm,
    layers: Layers,
}

enum Layers {
    F32(Vec<Layer<Arch>>),
    Bf16(Vec<Layer<bf16::Kernel>>),
    Int8(Vec<Layer<int8::Kernel>>),
}

/// Sequences that several threads compute together.
pub(crate) struct Team(TeamOf);

enum TeamOf {
    F32(Together<Arch>),
    Bf16(Together<bf16::Kernel>),
    Int8(Together<int8::Kernel>),
}

/// Memory of one thread, kept from one call to the next.
#[derive(Default)]
pub(crate) struct Workspace {
    lengths: Vec<usize>,
    rows: Aligned,
    f32: Room<Arch>,
    bf16: Room<bf16::Kernel>,
    int8: Room<int8::Kernel>,
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
    pub(super) fn assemble(kernel: Kernel, shape: Shape, weights: &Weights) -> Result<Self> {
        let (arch, layers) = match kernel {
            Kernel::F32(arch) => (arch, Layers::F32(Layer::all(arch, &shape, weights)?)),
            Kernel::Bf16(kernel) => (kernel.arch(), Layers::Bf16(Layer::all(kernel, &shape, weights)?)),
            Kernel::Int8(kernel) => (kernel.arch(), Layers::Int8(Layer::all(kernel, &shape, weights)?)),
        };
        Ok(Self {
            kernel,
            arch,
            words: weights.numbers("embeddings.word_embeddings.weight")?,
            positions: weights.positions()?.flatten_all()?.to_vec1()?,
            norm: Norm::of(&shape, weights, "embeddings.LayerNorm")?,
            layers,
            shape,
        })
    }

    /// What it is computed with.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Components of its vectors.
    pub fn dimension(&self) -> usize {
        self.shape.hidden_size
    }

    /// A vector for each sequence of tokens, in order. `between` is called after every part of a layer, that is after
    /// some milliseconds at most: what can't wait for the end may be done there.
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
        let Workspace { lengths, rows, f32, bf16, int8, steps } = at;
        steps.begin();
        lengths.clear();
        lengths.extend(sequences.iter().map(Vec::len));
        let rows = rows.first(lengths.iter().sum::<usize>() * width);
        self.look_up(sequences, rows)?;
        steps.end(Step::Other);
        self.norm.apply(self.arch, rows);
        steps.end(Step::Norms);
        match &self.layers {
            Layers::F32(layers) => compute(layers, lengths, rows, f32, steps, between),
            Layers::Bf16(layers) => compute(layers, lengths, rows, bf16, steps, between),
            Layers::Int8(layers) => compute(layers, lengths, rows, int8, steps, between),
        }
        let vectors = means(lengths, rows, width);
        steps.end(Step::Other);
        Ok(vectors)
    }

    /// Sequences for so many threads to compute together; none where there is too little of them.
    ///
    /// # Errors
    /// As [`Encoder::embed`].
    pub fn team(&self, sequences: &[Vec<u32>], threads: usize) -> std::result::Result<Option<Team>, UnknownToken> {
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let width = self.shape.hidden_size;
        let mut rows = vec![0.0; lengths.iter().sum::<usize>() * width];
        self.look_up(sequences, &mut rows)?;
        self.norm.apply(self.arch, &mut rows);
        let team = match &self.layers {
            Layers::F32(layers) => Together::new(layers, lengths, &rows, threads).map(TeamOf::F32),
            Layers::Bf16(layers) => Together::new(layers, lengths, &rows, threads).map(TeamOf::Bf16),
            Layers::Int8(layers) => Together::new(layers, lengths, &rows, threads).map(TeamOf::Int8),
        };
        Ok(team.map(Team))
    }

    /// Takes part in the work on them until all of it is done. A vector for each of them, in order, for the thread that did
    /// the last of it.
    pub fn join(&self, team: &Team, at: &mut Workspace) -> Option<Vec<Vec<f32>>> {
        let Workspace { f32, bf16, int8, steps, .. } = at;
        let width = self.shape.hidden_size;
        let (lengths, rows) = match (&team.0, &self.layers) {
            (TeamOf::F32(team), Layers::F32(layers)) => team.join(layers, f32, steps)?,
            (TeamOf::Bf16(team), Layers::Bf16(layers)) => team.join(layers, bf16, steps)?,
            (TeamOf::Int8(team), Layers::Int8(layers)) => team.join(layers, int8, steps)?,
            _ => return None,
        };
        Some(means(lengths, &rows, width))
    }

    /// Seconds of the GELUs of so many rows in all layers: what a product with them takes longer.
    pub fn gelu_seconds(&self, rows: usize) -> f64 {
        match &self.layers {
            Layers::F32(layers) => gelu_seconds(layers, rows),
            Layers::Bf16(layers) => gelu_seconds(layers, rows),
            Layers::Int8(layers) => gelu_seconds(layers, rows),
        }
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

/// The vectors of sequences of these lengths.
fn means(lengths: &[usize], mut rows: &[f32], width: usize) -> Vec<Vec<f32>> {
    let mean = |length: &usize| {
        let (own, after) = rows.split_at(length * width);
        rows = after;
        kernels::mean_unit(own, width)
    };
    lengths.iter().map(mean).collect()
}

/// What all layers make of the rows of sequences of these lengths.
fn compute<K: Kernels>(
    layers: &[Layer<K>],
    lengths: &[usize],
    rows: &mut [f32],
    at: &mut Room<K>,
    steps: &mut Steps,
    between: &mut dyn FnMut(),
) {
    for layer in layers {
        let mut rest = &mut *rows;
        for group in groups(lengths, layer.kernels.attended_rows()) {
            let (rows, after) = rest.split_at_mut(group.iter().sum::<usize>() * layer.width());
            rest = after;
            K::project(layer, rows, &mut at.qkv, &mut at.memory, steps);
            between();
            steps.begin();
            let of = Sequences { qkv: &at.qkv, lengths: group, first: 0 };
            K::attend(layer, of, rows, &mut at.memory, steps);
            between();
            steps.begin();
        }
        let at_a_time = layer.inner_rows(rows.len() / layer.width());
        for rows in rows.chunks_mut(at_a_time * layer.width()) {
            K::widen(layer, rows, &mut at.memory, steps, between);
            between();
            steps.begin();
        }
    }
}

fn gelu_seconds<K: Kernels>(layers: &[Layer<K>], rows: usize) -> f64 {
    let Some(layer) = layers.first() else { return 0.0 };
    let count = layer.kernels.inner_rows();
    let (x, mut at) = (Aligned::zeroed(count * layer.width()), K::Memory::default());
    let mut fastest = |gelu| {
        let mut seconds = f64::MAX;
        for _ in 0..50 {
            let started = std::time::Instant::now();
            K::inner(layer, x.all().get(..count * layer.width()).unwrap_or(&[]), gelu, &mut at);
            seconds = seconds.min(started.elapsed().as_secs_f64());
        }
        seconds
    };
    let longer = fastest(true) - fastest(false);
    #[allow(clippy::cast_precision_loss)]
    let blocks = (rows * layers.len()) as f64 / count as f64;
    longer.max(0.0) * blocks
}

/// Sequences one after another, as few in a group as have so many rows.
fn groups(mut lengths: &[usize], least: usize) -> impl Iterator<Item = &[usize]> {
    std::iter::from_fn(move || {
        let mut rows = 0;
        let wanted = |length: &&usize| {
            let more = rows < least;
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
        let found: Vec<&[usize]> = groups(&lengths, 96).collect();
        let expected: [&[usize]; 4] = [&[200], &[90, 5, 1], &[16, 16, 80], &[3]];
        assert_eq!(found, expected);
        assert_eq!(groups(&[], 96).count(), 0);
    }
}
