//! Measures of a ranking against relevance judgments, as trec_eval computes them.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

/// Judgments of one query: grade by document; 0 and below mean not relevant.
pub type Judgments = HashMap<String, i64>;

/// Measures of a ranking, or their means over queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Measures {
    /// Normalised discounted cumulative gain of the first 10.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: f64,
    /// Share of the relevant documents among the first 10.
    #[serde(rename = "recall@10")]
    pub recall_10: f64,
    /// Share of the relevant documents among the first 100.
    #[serde(rename = "recall@100")]
    pub recall_100: f64,
    /// 1 / rank of the first relevant document among the first 10, else 0.
    #[serde(rename = "mrr@10")]
    pub mrr_10: f64,
}

/// Measures of one ranking; none when nothing is relevant to the query.
#[must_use]
pub fn measure(ranking: &[String], judgments: &Judgments) -> Option<Measures> {
    let relevant = judgments.values().filter(|grade| **grade > 0).count();
    (relevant > 0).then(|| Measures {
        ndcg_10: ndcg(ranking, judgments, 10),
        recall_10: recall(ranking, judgments, 10),
        recall_100: recall(ranking, judgments, 100),
        mrr_10: mrr(ranking, judgments, 10),
    })
}

/// The means.
#[must_use]
pub fn mean(measures: &[Measures]) -> Measures {
    let of = |part: fn(&Measures) -> f64| match measures.len() {
        0 => 0.0,
        count => measures.iter().map(part).sum::<f64>() / float(count),
    };
    Measures {
        ndcg_10: of(|m| m.ndcg_10),
        recall_10: of(|m| m.recall_10),
        recall_100: of(|m| m.recall_100),
        mrr_10: of(|m| m.mrr_10),
    }
}

/// Gain is the grade, discount log2(1 + rank) (Järvelin and Kekäläinen 2002, as in trec_eval's ndcg_cut).
fn ndcg(ranking: &[String], judgments: &Judgments, cut: usize) -> f64 {
    let discounted = |grades: &mut dyn Iterator<Item = i64>| -> f64 {
        let gain = |(rank, grade): (u32, i64)| {
            f64::from(i32::try_from(grade.max(0)).unwrap_or(i32::MAX)) / f64::from(rank + 1).log2()
        };
        (1..).zip(grades.take(cut)).map(gain).sum()
    };
    let mut ideal: Vec<i64> = judgments.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best = discounted(&mut ideal.into_iter());
    let got = discounted(&mut ranking.iter().map(|document| grade(document, judgments)));
    if best > 0.0 { got / best } else { 0.0 }
}

fn recall(ranking: &[String], judgments: &Judgments, cut: usize) -> f64 {
    let relevant = judgments.values().filter(|grade| **grade > 0).count();
    let found = ranking.iter().take(cut).filter(|document| grade(document, judgments) > 0).count();
    if relevant > 0 { float(found) / float(relevant) } else { 0.0 }
}

fn mrr(ranking: &[String], judgments: &Judgments, cut: usize) -> f64 {
    let first = ranking.iter().take(cut).position(|document| grade(document, judgments) > 0);
    first.map_or(0.0, |rank| 1.0 / float(rank + 1))
}

fn grade(document: &str, judgments: &Judgments) -> i64 {
    judgments.get(document).copied().unwrap_or(0)
}

/// A count as a number to compute with.
#[must_use]
pub fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// Documents by their best chunk, best first, at most `limit`.
#[must_use]
pub fn by_best_chunk<'a>(chunks: impl IntoIterator<Item = (&'a str, f64)>, limit: usize) -> Vec<String> {
    let mut best: BTreeMap<&str, f64> = BTreeMap::new();
    for (document, score) in chunks {
        best.entry(document).and_modify(|known| *known = known.max(score)).or_insert(score);
    }
    let mut ranking: Vec<(&str, f64)> = best.into_iter().collect();
    // Stable over the documents' order, so that ties do not depend on anything but their ids.
    ranking.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranking.into_iter().take(limit).map(|(document, _)| document.to_owned()).collect()
}

/// The value below which this share of the sorted values lies (nearest rank); 0 of none.
#[must_use]
// A rank is at least 1 and at most the number of values.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * float(sorted.len())).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ranking(documents: &str) -> Vec<String> {
        documents.split(' ').map(str::to_owned).collect()
    }

    fn judged(grades: &[(&str, i64)]) -> Judgments {
        grades.iter().map(|(document, grade)| ((*document).to_owned(), *grade)).collect()
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }

    #[test]
    fn values_agree_with_those_computed_by_hand() {
        // Relevant at ranks 2 and 4 of three relevant ones.
        let judgments = judged(&[("b", 1), ("d", 1), ("z", 1), ("a", 0)]);
        let measures = measure(&ranking("a b c d e"), &judgments).unwrap();
        // (1/log2 3 + 1/log2 5) / (1 + 1/log2 3 + 1/log2 4) = (0.63093 + 0.43068) / 2.13093
        near(measures.ndcg_10, 0.49819);
        near(measures.recall_10, 2.0 / 3.0);
        near(measures.mrr_10, 0.5);
    }

    #[test]
    fn grades_weigh() {
        // (1/1 + 3/log2 3 + 2/log2 4) / (3 + 2/log2 3 + 1/log2 4) = 3.89279 / 4.76186
        let judgments = judged(&[("a", 1), ("b", 3), ("c", 2)]);
        near(measure(&ranking("a b c"), &judgments).unwrap().ndcg_10, 0.81749);
        near(measure(&ranking("b c a"), &judgments).unwrap().ndcg_10, 1.0);
    }

    #[test]
    fn what_comes_after_the_cut_does_not_count() {
        let many: Vec<String> = (0..100).map(|n| format!("d{n}")).collect();
        let at = |rank: usize| measure(&many, &judged(&[(&format!("d{}", rank - 1), 1)])).unwrap();
        near(at(10).ndcg_10, 1.0 / 11_f64.log2());
        near(at(10).mrr_10, 0.1);
        assert_eq!(at(11), Measures { recall_100: 1.0, ..Measures::default() });
        assert_eq!(measure(&many, &judged(&[("d1", 0)])), None);
    }

    #[test]
    fn a_document_is_as_good_as_its_best_chunk() {
        let chunks = [("a", 0.2), ("b", 0.5), ("a", 0.9), ("c", 0.5), ("d", 0.1)];
        assert_eq!(by_best_chunk(chunks, 3), ["a", "b", "c"]);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.5) - 2.0).abs() < f64::EPSILON);
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.99) - 4.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 0.5).abs() < f64::EPSILON);
    }
}
