//! The figures of a run, as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::eval::asking::{Asked, plain};
use crate::eval::dataset::Dataset;
use crate::eval::metrics::{Measures, float, quantile};
use crate::eval::ranking::Searched;
use crate::progress::{Ink, table};

/// The figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the set.
    pub dataset: String,
    /// Tenant whose documents it is.
    pub tenant: String,
    /// Documents.
    pub documents: usize,
    /// Queries with judgments.
    pub queries: usize,
    /// Embedding model.
    pub model: String,
    /// Figures by mode.
    pub runs: BTreeMap<&'static str, Run>,
    /// Dense retrieval beside an exact search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<Exact>,
    /// Questions through the whole pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
}

/// Figures of one mode.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Means over the queries.
    #[serde(flatten)]
    pub measures: Measures,
    /// Share of the queries whose answer lies in the first 1, 5 and 10 chunks, where the set has answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_in_first: Option<[f64; 3]>,
    /// Milliseconds of a search, half are below.
    pub p50_ms: f64,
    /// 99 of 100 are below.
    pub p99_ms: f64,
}

/// An exact search over the stored vectors.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Exact {
    /// Chunks that were compared.
    pub chunks: usize,
    /// Its figures.
    pub measures: Measures,
    /// nDCG@10 of dense retrieval minus that of the exact search.
    pub difference: f64,
}

impl Run {
    /// The figures of a search.
    #[must_use]
    pub fn new(measures: Measures, searched: &Searched, set: &Dataset) -> Self {
        let share = |first: usize| {
            let holds = |(query, spans): &(&String, &Vec<String>)| {
                let passages = searched.passages.get(*query).map(Vec::as_slice).unwrap_or_default();
                passages.iter().take(first).any(|text| spans.iter().any(|span| plain(text).contains(&plain(span))))
            };
            let asked: Vec<_> =
                set.answers.iter().filter(|(query, _)| searched.rankings.contains_key(*query)).collect();
            float(asked.iter().filter(|(query, spans)| holds(&(query, spans))).count()) / float(asked.len()).max(1.0)
        };
        Self {
            measures,
            answer_in_first: (!set.answers.is_empty()).then(|| [share(1), share(5), share(10)]),
            p50_ms: quantile(&searched.millis, 0.5),
            p99_ms: quantile(&searched.millis, 0.99),
        }
    }
}

impl Report {
    /// Shows the figures.
    pub fn print(&self) {
        let ink = Ink::for_stdout();
        println!(
            "{}: {} documents of tenant {}, {} queries, {}",
            ink.bold(&self.dataset),
            self.documents,
            self.tenant,
            self.queries,
            self.model
        );
        let mut rows =
            table(&["", "nDCG@10", "recall@10", "recall@100", "MRR@10", "answer in 1 / 5 / 10", "p50", "p99"]);
        let figures =
            |m: &Measures| [m.ndcg_10, m.recall_10, m.recall_100, m.mrr_10].map(|value| format!("{value:.4}"));
        for (mode, run) in &self.runs {
            let answers = run
                .answer_in_first
                .map_or("-".to_owned(), |[one, five, ten]| format!("{one:.3} / {five:.3} / {ten:.3}"));
            let mut row = vec![(*mode).to_owned()];
            row.extend(figures(&run.measures));
            row.extend([answers, format!("{:.1} ms", run.p50_ms), format!("{:.1} ms", run.p99_ms)]);
            rows.add_row(row);
        }
        if let Some(exact) = &self.exact {
            let mut row = vec!["exact".to_owned()];
            row.extend(figures(&exact.measures));
            rows.add_row(row);
        }
        println!("{rows}");
        if let Some(exact) = &self.exact {
            println!(
                "dense differs from exact search over {} chunks by {:+.4} nDCG@10",
                exact.chunks, exact.difference
            );
        }
        if let Some(asked) = &self.asked {
            println!(
                "{} questions asked: {:.3} contain the answer, {:.3} cite a relevant document; groundedness {:.3}, citation \
                 validity {:.3} over {} scored; p50 {:.0} ms, p99 {:.0} ms; {:?}",
                asked.questions,
                asked.contains_answer,
                asked.cites_relevant,
                asked.groundedness,
                asked.citation_validity,
                asked.scored,
                asked.p50_ms,
                asked.p99_ms,
                asked.by_status
            );
        }
    }
}
