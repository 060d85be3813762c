//! Products in whole numbers of eight bits: what they take is quantised right before.

use pulp::Arch;

use super::Kernel;
use super::product::Packed;
use super::quantised::Quantised;
use crate::bert::aligned::Aligned;
use crate::bert::product::Edge;
use crate::bert::unrounded::Products;

impl Products for Kernel {
    type Packed = Packed;
    type Left<'a> = &'a Quantised;
    type Taken = Quantised;

    const ROUNDED: bool = true;
    const STEP: usize = 8;

    fn arch(self) -> Arch {
        Kernel::arch(self)
    }

    fn packed(self, weights: &[f32], bias: &[f32]) -> Packed {
        Packed::new(self, weights, bias)
    }

    fn width(packed: &Packed) -> usize {
        packed.width()
    }

    fn left<'a>(self, rows: &'a [f32], width: usize, memory: &'a mut Quantised) -> &'a Quantised {
        memory.take(self.arch(), rows, width);
        memory
    }

    fn apply(packed: &Packed, left: &Quantised, edge: Edge, out: &mut [f32], sums: &mut Aligned) {
        packed.apply(left, edge, out, sums);
    }
}
