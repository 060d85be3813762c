//! Do the cited passages say what the answer says?
//!
//! Lexical, so that it needs no model and never agrees with the one it judges. Every sentence of the answer is held
//! against the passages it cites:
//!
//! - *coverage*: the share of its content words that occur there, weighted: numbers and names, which an invented answer
//!   gets wrong, count more than short common words;
//! - *locality*: the same share within the one sentence of the evidence that fits best and its neighbour, since words
//!   strewn over a long passage prove little;
//! - *order*: the share of neighbouring content words that stand close to each other in the evidence too.
//!
//! A number that the evidence does not have, and a statement that the best sentence makes with the opposite sign
//! (negated or not), cut the score. The answer's score is the mean of its sentences, weighted by their content.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use weir_contracts::{Answer, Citation};
use weir_text::{Marker, Term, has_negation, markers, sentences, terms, without_markers};

/// Parts of a sentence's score. Locality weighs most: it is what tells a passage about something else in the same
/// words from the source.
const COVERAGE: f64 = 0.35;
const LOCALITY: f64 = 0.4;
const ORDER: f64 = 0.25;

/// Neighbours in the answer may stand this many content words apart in the evidence.
const NEAR: usize = 3;

/// What is left of a sentence's score when all its numbers are missing in the evidence.
const WITHOUT_NUMBERS: f64 = 0.4;

/// What is left of it when the evidence says the opposite.
const OPPOSITE_SIGN: f64 = 0.5;

/// Opposite signs are only meaningful when the sentences are about the same.
const SAME_MATTER: f64 = 0.5;

/// How much of the answer the passages it cites support, 0 to 1; none when the answer has nothing to support. Sentences
/// without a marker of their own are held against what the next sentence with one cites, else the one before; an answer
/// that cites nothing is supported by nothing.
#[must_use]
pub fn groundedness(answer: &Answer) -> Option<f64> {
    let clean = without_markers(&answer.text);
    let parts = sentences(&clean);
    let cited = cited(&parts, &markers(&answer.text));
    let mut cache = HashMap::new();
    let mut sum = 0.0;
    let mut weights = 0.0;
    for (at, range) in parts.iter().enumerate() {
        let sentence = clean.get(range.clone()).unwrap_or_default();
        let content = terms(sentence);
        let weight: f64 = content.iter().map(weight).sum();
        if weight == 0.0 {
            continue;
        }
        let numbers = nearest(at, &cited);
        let evidence = cache.entry(numbers).or_insert_with_key(|numbers| {
            Evidence::of(answer.citations.iter().filter(|c| numbers.contains(&c.marker)))
        });
        sum += weight * evidence.supports(sentence, &content);
        weights += weight;
    }
    (weights > 0.0).then(|| sum / weights)
}

/// What each sentence cites by its own markers.
fn cited(parts: &[Range<usize>], marks: &[Marker]) -> Vec<Vec<i32>> {
    let mut cited = vec![Vec::new(); parts.len()];
    for mark in marks {
        // A marker belongs to the last sentence that begins before it: it may stand after the full stop.
        let owner = parts.partition_point(|part| part.start <= mark.at.start).saturating_sub(1);
        if let Some(numbers) = cited.get_mut(owner) {
            numbers.extend_from_slice(&mark.numbers);
        }
    }
    for numbers in &mut cited {
        numbers.sort_unstable();
        numbers.dedup();
    }
    cited
}

/// What the sentence cites, else the next one that cites, else the one before.
fn nearest(at: usize, cited: &[Vec<i32>]) -> &[i32] {
    let order = (at..cited.len()).chain((0..at).rev());
    order.filter_map(|at| cited.get(at)).find(|numbers| !numbers.is_empty()).map(Vec::as_slice).unwrap_or_default()
}

/// What a term counts. Long words are rare words, roughly; there is no collection here to count in.
fn weight(term: &Term) -> f64 {
    let base = match term.length {
        0..=3 => 0.7,
        4..=6 => 1.0,
        _ => 1.25,
    };
    if term.number {
        2.0
    } else if term.name {
        base * 1.4
    } else {
        base
    }
}

/// The cited passages, taken apart.
struct Evidence {
    all: HashSet<String>,
    /// Stems by sentence, and whether the sentence is negated.
    sentences: Vec<(HashSet<String>, bool)>,
    /// Positions of each stem, counted in content words over all passages.
    positions: HashMap<String, Vec<usize>>,
}

impl Evidence {
    fn of<'a>(citations: impl Iterator<Item = &'a Citation>) -> Self {
        let mut evidence = Self { all: HashSet::new(), sentences: Vec::new(), positions: HashMap::new() };
        let mut position = 0;
        for citation in citations {
            // The title says what the passage leaves out ("he", "the city").
            let title = citation.title.as_deref().unwrap_or_default();
            evidence.all.extend(terms(title).into_iter().map(|term| term.stem));
            for range in sentences(&citation.passage) {
                let sentence = citation.passage.get(range).unwrap_or_default();
                let mut stems = HashSet::new();
                for term in terms(sentence) {
                    evidence.positions.entry(term.stem.clone()).or_default().push(position);
                    stems.insert(term.stem);
                    position += 1;
                }
                evidence.all.extend(stems.iter().cloned());
                evidence.sentences.push((stems, has_negation(sentence)));
            }
            // Passages are not neighbours.
            position += NEAR + 1;
        }
        evidence
    }

    /// How much of the sentence the evidence supports, 0 to 1.
    fn supports(&self, sentence: &str, content: &[Term]) -> f64 {
        let coverage = share(content, |term| self.all.contains(&term.stem));
        let best = self.best_sentence(content);
        let locality = best.map_or(0.0, |(_, local)| local);
        let order = self.order(content);
        let mut score = match order {
            Some(order) => COVERAGE * coverage + LOCALITY * locality + ORDER * order,
            None => (COVERAGE * coverage + LOCALITY * locality) / (COVERAGE + LOCALITY),
        };
        let numbers: Vec<&Term> = content.iter().filter(|term| term.number).collect();
        if !numbers.is_empty() {
            let found = share(numbers.iter().copied(), |term| self.all.contains(&term.stem));
            score *= WITHOUT_NUMBERS + (1.0 - WITHOUT_NUMBERS) * found;
        }
        match best.and_then(|(at, local)| self.sentences.get(at).map(|(_, negated)| (*negated, local))) {
            Some((negated, local)) if local >= SAME_MATTER && negated != has_negation(sentence) => {
                score * OPPOSITE_SIGN
            }
            _ => score,
        }
    }

    /// The sentence that has most of the content by itself, and the share it has together with its better neighbour.
    fn best_sentence(&self, content: &[Term]) -> Option<(usize, f64)> {
        let own = |(stems, _): &(HashSet<String>, bool)| share(content, |term| stems.contains(&term.stem));
        let (best, _) = self
            .sentences
            .iter()
            .map(own)
            .enumerate()
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .filter(|(_, share)| *share > 0.0)?;
        let (stems, _) = self.sentences.get(best)?;
        let neighbours = [best.checked_sub(1), Some(best + 1)].into_iter().flatten();
        let together = neighbours
            .filter_map(|at| self.sentences.get(at))
            .map(|(other, _)| share(content, |term| stems.contains(&term.stem) || other.contains(&term.stem)))
            .fold(share(content, |term| stems.contains(&term.stem)), f64::max);
        Some((best, together))
    }

    /// Share of neighbouring content words that are near each other in the evidence; none with fewer than two.
    #[allow(clippy::cast_precision_loss)]
    fn order(&self, content: &[Term]) -> Option<f64> {
        let pairs: Vec<(&Term, &Term)> = content.iter().zip(content.iter().skip(1)).collect();
        let near = |(a, b): &&(&Term, &Term)| match (self.positions.get(&a.stem), self.positions.get(&b.stem)) {
            (Some(first), Some(second)) => first.iter().any(|x| second.iter().any(|y| x.abs_diff(*y) <= NEAR)),
            _ => false,
        };
        let found = pairs.iter().filter(near).count();
        (!pairs.is_empty()).then(|| found as f64 / pairs.len() as f64)
    }
}

/// Weighted share of the terms for which this holds.
fn share<'a>(terms: impl IntoIterator<Item = &'a Term>, holds: impl Fn(&Term) -> bool) -> f64 {
    let (mut found, mut all) = (0.0, 0.0);
    for term in terms {
        let weight = weight(term);
        all += weight;
        if holds(term) {
            found += weight;
        }
    }
    if all > 0.0 { found / all } else { 0.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::score::tests::{answer, citation};

    const MILL: &str = "The mill at Ulm was built in 1912. Its wheel is made of oak. It never burnt down.";
    const SHIP: &str = "A ship was launched in Kiel. It carried coal to Bergen for twenty years.";

    fn scored(text: &str) -> f64 {
        groundedness(&answer(text, &[citation(1, MILL), citation(2, SHIP)])).unwrap()
    }

    #[test]
    fn what_the_passage_says_is_grounded_and_what_another_says_is_not() {
        assert!(scored("The mill at Ulm was built in 1912 [1].") > 0.95);
        assert!(scored("The mill at Ulm was built in 1912 [2].") < 0.2);
        assert!(scored("In 1912 the mill was built [1]. Its wheel is oak [1].") > 0.9);
    }

    #[test]
    fn a_wrong_number_costs_more_than_a_wrong_word() {
        let right = scored("The mill at Ulm was built in 1912 [1].");
        let word = scored("The mill at Ulm was finished in 1912 [1].");
        let number = scored("The mill at Ulm was built in 1812 [1].");
        assert!(right > word && word > number && number < 0.5, "{right} {word} {number}");
    }

    #[test]
    fn the_opposite_is_not_supported() {
        assert!(scored("Its wheel is not made of oak [1].") < 0.6);
        assert!(scored("It burnt down [1].") < 0.6);
        assert!(scored("It never burnt down [1].") > 0.95);
    }

    #[test]
    fn sentences_without_a_marker_belong_to_the_next_one_that_has() {
        assert!(scored("The mill was built in 1912. Its wheel is made of oak [1].") > 0.9);
        assert!(scored("The mill was built in 1912. It carried coal to Bergen [2].") < 0.7);
    }

    #[test]
    fn an_answer_that_cites_nothing_is_supported_by_nothing() {
        assert!(scored("The mill was built in 1912.") < f64::EPSILON);
        assert_eq!(groundedness(&answer("It is so. [1]", &[citation(1, MILL)])), None);
        assert_eq!(groundedness(&answer("", &[])), None);
    }
}
