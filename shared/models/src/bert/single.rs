//! Products in single precision: they take rows as they are.

use pulp::Arch;

use super::aligned::Aligned;
use super::product::{Edge, Packed};
use super::unrounded::Products;

impl Products for Arch {
    type Packed = Packed;
    type Left<'a> = &'a [f32];
    type Taken = ();

    const ROUNDED: bool = false;
    const STEP: usize = 6;

    fn arch(self) -> Arch {
        self
    }

    fn packed(self, weights: &[f32], bias: &[f32]) -> Packed {
        Packed::new(self, weights, bias)
    }

    fn width(packed: &Packed) -> usize {
        packed.width()
    }

    fn left<'a>(self, rows: &'a [f32], _: usize, (): &'a mut ()) -> &'a [f32] {
        rows
    }

    fn apply(packed: &Packed, rows: &[f32], edge: Edge, out: &mut [f32], _: &mut Aligned) {
        packed.apply(rows, edge, out);
    }
}
