//! Which passages an answer cites.

use weir_contracts::Citation;
use weir_text::markers;

use crate::Passage;

/// The passages that the text cites, by marker; `passages` are marker 1, 2 and so on. Markers that point at no passage
/// are ignored here; they stay in the text, which must be what was streamed, and lower its citation validity.
pub(crate) fn cited(text: &str, passages: &[Passage]) -> Vec<Citation> {
    let mut numbers: Vec<i32> = markers(text).into_iter().flat_map(|marker| marker.numbers).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let passage = |number: i32| passages.get(usize::try_from(number).ok()?.checked_sub(1)?);
    numbers.into_iter().filter_map(|number| Some(citation(number, passage(number)?))).collect()
}

/// A citation of this passage.
pub(crate) fn citation(marker: i32, passage: &Passage) -> Citation {
    let hit = &passage.hit;
    Citation {
        marker,
        document: hit.document.clone(),
        title: hit.title.clone(),
        revision: hit.revision,
        ordinal: hit.ordinal,
        start: hit.start,
        end: hit.end,
        passage: hit.text.clone(),
        score: hit.score,
    }
}
