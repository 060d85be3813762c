//! How a batch lies on a device: the tokens of all sequences are the rows of one matrix. Attention takes sequences of
//! nearly equal length together, padded to the same length there and nowhere else.

use candle_core::{D, DType, Device, Result, Tensor};

/// Lengths that are equal when rounded up to a multiple of it are nearly equal: few kernels for many lengths, and products
/// in half precision are fastest at such lengths.
const STEP: usize = 16;

/// Added to what a token gives to a padded place: its share becomes zero, and half precision can say it.
const NEVER: f64 = -1e4;

/// Rows of a batch, and the groups in which they attend to each other.
pub(super) struct Layout {
    /// Token of each row.
    pub ids: Tensor,
    /// Its place in its sequence.
    pub places: Tensor,
    groups: Vec<Group>,
    /// Where each row is among the places of all groups, padded ones included; none if there are none.
    back: Option<Tensor>,
}

/// Sequences next to each other that attend at once.
pub(super) struct Group {
    pub count: usize,
    /// Places of each sequence.
    pub length: usize,
    /// The first row.
    from: usize,
    padding: Option<Padding>,
    /// One for a token, zero for a padded place: sequence, 1, place.
    tokens: Tensor,
}

struct Padding {
    /// Row of each place; a padded one has the first row of its sequence.
    rows: Tensor,
    /// Zero for a token, [`NEVER`] for a padded place: sequence, 1, 1, place.
    bias: Tensor,
}

/// The same before it is on the device.
struct Span {
    count: usize,
    length: usize,
    from: usize,
    padded: bool,
}

impl Layout {
    /// Lays out sequences of which none is empty; attention is computed in `precision`.
    pub fn new(sequences: &[&[u32]], device: &Device, precision: DType) -> Result<Self> {
        let mut numbers: Vec<u32> = sequences.concat();
        let all = numbers.len();
        numbers.extend(sequences.iter().flat_map(|sequence| (0u32..).zip(*sequence).map(|(place, _)| place)));
        let (mut gathered, mut back, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        let (mut spans, mut row, mut place) = (Vec::new(), 0u32, 0u32);
        for group in sequences.chunk_by(|a, b| a.len().div_ceil(STEP) == b.len().div_ceil(STEP)) {
            let longest = group.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
            let padded = group.iter().any(|sequence| sequence.len() != longest);
            let length = if padded { longest.next_multiple_of(STEP) } else { longest };
            spans.push(Span { count: group.len(), length, from: back.len(), padded });
            for sequence in group {
                let first = row;
                for at in 0..length {
                    let real = at < sequence.len();
                    if padded {
                        gathered.push(if real { row } else { first });
                    }
                    if real {
                        back.push(place);
                        row += 1;
                    }
                    tokens.push(if real { 1f32 } else { 0.0 });
                    place += 1;
                }
            }
        }
        // One copy to the device for all of them.
        numbers.extend(&gathered);
        let places = tokens.len();
        if places > all {
            numbers.extend(&back);
        }
        let numbers = Tensor::new(numbers, device)?;
        let tokens = Tensor::new(tokens, device)?;
        let bias = tokens.affine(-NEVER, NEVER)?.to_dtype(precision)?;
        let (mut gathered_from, mut tokens_from) = (2 * all, 0);
        let mut groups = Vec::with_capacity(spans.len());
        for Span { count, length, from, padded } in spans {
            let places = count * length;
            let padding = if padded {
                let rows = numbers.narrow(0, gathered_from, places)?;
                gathered_from += places;
                Some(Padding { rows, bias: bias.narrow(0, tokens_from, places)?.reshape((count, 1, 1, length))? })
            } else {
                None
            };
            let tokens = tokens.narrow(0, tokens_from, places)?.reshape((count, 1, length))?;
            tokens_from += places;
            groups.push(Group { count, length, from, padding, tokens });
        }
        let back = (places > all).then(|| numbers.narrow(0, gathered_from, all)).transpose()?;
        Ok(Self { ids: numbers.narrow(0, 0, all)?, places: numbers.narrow(0, all, all)?, groups, back })
    }

    /// Applies `compute` to the places of each group, and puts the results where the rows were.
    pub fn by_group(&self, rows: &Tensor, compute: impl Fn(Tensor, &Group) -> Result<Tensor>) -> Result<Tensor> {
        let places = self.groups.iter().map(|group| compute(group.places(rows)?, group)).collect::<Result<Vec<_>>>()?;
        let places = Tensor::cat(&places, 0)?;
        match &self.back {
            Some(back) => places.index_select(back, 0),
            None => Ok(places),
        }
    }

    /// A unit vector in single precision for each sequence: the direction of the mean of its rows.
    pub fn mean_unit(&self, rows: &Tensor) -> Result<Tensor> {
        let width = rows.dim(D::Minus1)?;
        // A product adds up in single precision and leaves padding out. Dividing by the number of rows would change the
        // length only.
        let sum = |group: &Group| {
            let places = group.places(rows)?.to_dtype(DType::F32)?;
            group.tokens.matmul(&places.reshape((group.count, group.length, width))?)?.squeeze(1)
        };
        let sums = Tensor::cat(&self.groups.iter().map(sum).collect::<Result<Vec<_>>>()?, 0)?;
        sums.broadcast_div(&sums.sqr()?.sum_keepdim(1)?.sqrt()?)
    }
}

impl Group {
    /// Its rows, with padding where it has some.
    fn places(&self, rows: &Tensor) -> Result<Tensor> {
        match &self.padding {
            Some(padding) => rows.index_select(&padding.rows, 0),
            None => rows.narrow(0, self.from, self.count * self.length),
        }
    }

    /// Scores (sequence, head, token, place) in which nothing is taken from padding.
    pub fn without_padding(&self, scores: Tensor) -> Result<Tensor> {
        match &self.padding {
            Some(padding) => scores.broadcast_add(&padding.bias),
            None => Ok(scores),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn layout(lengths: &[usize]) -> Layout {
        let sequences: Vec<Vec<u32>> = lengths.iter().map(|length| vec![7; *length]).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        Layout::new(&sequences, &Device::Cpu, DType::F32).unwrap()
    }

    #[test]
    fn nearly_equal_lengths_are_one_group_padded_to_a_multiple() {
        let groups = |lengths: &[usize]| -> Vec<(usize, usize, bool)> {
            let layout = layout(lengths);
            layout.groups.iter().map(|group| (group.count, group.length, group.padding.is_some())).collect()
        };
        assert_eq!(groups(&[40, 33, 32, 32, 20, 3]), [(2, 48, true), (3, 32, true), (1, 3, false)]);
        assert_eq!(groups(&[9, 9, 9]), [(3, 9, false)], "equal lengths need no padding");
        assert_eq!(groups(&[]), []);
    }

    #[test]
    fn rows_come_back_where_they_were_and_padding_counts_in_no_mean() {
        for lengths in [&[20, 18, 17, 16, 16, 3, 1, 1][..], &[5, 5], &[1, 30, 2, 29]] {
            let layout = layout(lengths);
            let all: usize = lengths.iter().sum();
            let rows = Tensor::arange(1f32, all as f32 + 1.0, &Device::Cpu).unwrap().reshape((all, 1)).unwrap();
            // Two components: the row, and one.
            let rows = Tensor::cat(&[&rows, &rows.ones_like().unwrap()], 1).unwrap();
            let back = layout.by_group(&rows, |places, _| Ok(places)).unwrap();
            assert_eq!(back.to_vec2::<f32>().unwrap(), rows.to_vec2::<f32>().unwrap());
            let mut first = 1;
            for (unit, length) in layout.mean_unit(&rows).unwrap().to_vec2::<f32>().unwrap().iter().zip(lengths) {
                let mean = (2 * first + length - 1) as f32 / 2.0;
                assert!((unit[0] / unit[1] - mean).abs() < 1e-3 * mean, "{unit:?} is not the direction of {mean}");
                first += length;
            }
        }
    }
}
