//! Sentences, content words and citation markers: what answering and scoring must see alike. No IO.

mod markers;
mod sentences;
mod terms;

pub use markers::{Marker, markers, without_markers};
pub use sentences::sentences;
pub use terms::{Term, has_negation, terms};
