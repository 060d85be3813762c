//! Do the citations of an answer point at passages?

use weir_contracts::Answer;

/// Share of the citations in the text that point at one of the answer's passages, 0 to 1; none without citations.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn citation_validity(answer: &Answer) -> Option<f64> {
    let cited: Vec<i32> = weir_text::markers(&answer.text).into_iter().flat_map(|marker| marker.numbers).collect();
    let points = |number: &&i32| {
        let passage = answer.citations.iter().find(|citation| citation.marker == **number);
        passage.is_some_and(|citation| !citation.passage.trim().is_empty() && citation.start < citation.end)
    };
    let valid = cited.iter().filter(points).count();
    (!cited.is_empty()).then(|| valid as f64 / cited.len() as f64)
}
