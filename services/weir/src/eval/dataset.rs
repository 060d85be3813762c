//! A labelled set: corpus.jsonl, queries.jsonl, qrels.tsv and, where there are answers, answers.jsonl.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use color_eyre::eyre::{WrapErr, bail, eyre};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::eval::metrics::Judgments;

/// A document.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// Its id.
    #[serde(alias = "_id")]
    pub id: String,
    /// Its title, perhaps empty.
    #[serde(default)]
    pub title: String,
    /// Its text.
    pub text: String,
}

impl Entry {
    /// What is indexed: title and text.
    #[must_use]
    pub fn content(&self) -> String {
        let title = self.title.trim();
        if title.is_empty() { self.text.clone() } else { format!("{title}\n\n{}", self.text) }
    }
}

/// A query.
#[derive(Debug, Clone, Deserialize)]
pub struct Query {
    /// Its id.
    #[serde(alias = "_id")]
    pub id: String,
    /// What is asked.
    pub text: String,
}

#[derive(Debug, Deserialize)]
struct Gold {
    #[serde(alias = "_id")]
    id: String,
    answers: Vec<String>,
}

/// A labelled set.
#[derive(Debug)]
pub struct Dataset {
    /// The documents.
    pub corpus: Vec<Entry>,
    /// The queries that have judgments.
    pub queries: Vec<Query>,
    /// Judgments by query.
    pub judgments: HashMap<String, Judgments>,
    /// Spans that answer a query, by query; empty when the set has none.
    pub answers: HashMap<String, Vec<String>>,
}

impl Dataset {
    /// Reads a folder.
    ///
    /// # Errors
    /// When a file is missing or a line is not what it should be.
    pub fn read(folder: &Path) -> color_eyre::Result<Self> {
        if !folder.is_dir() {
            bail!("{} is not a folder with corpus.jsonl, queries.jsonl and qrels.tsv", folder.display());
        }
        let judgments = judgments(&folder.join("qrels.tsv"))?;
        let mut queries: Vec<Query> = json_lines(&folder.join("queries.jsonl"))?;
        queries.retain(|query| judgments.get(&query.id).is_some_and(|of| of.values().any(|grade| *grade > 0)));
        let gold = folder.join("answers.jsonl");
        let gold: Vec<Gold> = if gold.is_file() { json_lines(&gold)? } else { Vec::new() };
        let answers = gold.into_iter().map(|gold| (gold.id, gold.answers)).collect();
        let set = Self { corpus: json_lines(&folder.join("corpus.jsonl"))?, queries, judgments, answers };
        if set.corpus.is_empty() || set.queries.is_empty() {
            bail!("{} has no documents or no judged queries", folder.display());
        }
        Ok(set)
    }

    /// Keeps at most `documents`, but all that are relevant to a query, and at most `queries` spread over the set.
    pub fn limit(&mut self, documents: Option<usize>, queries: Option<usize>) {
        if let Some(most) = queries.filter(|most| *most < self.queries.len()) {
            let all = self.queries.len();
            let mut at = 0;
            self.queries.retain(|_| {
                at += 1;
                // Every all/most-th.
                (at * most) / all > ((at - 1) * most) / all
            });
        }
        if let Some(most) = documents.filter(|most| *most < self.corpus.len()) {
            let asked = self.queries.iter().filter_map(|query| self.judgments.get(&query.id));
            let relevant = asked.flat_map(|of| of.iter().filter(|(_, grade)| **grade > 0).map(|(id, _)| id.as_str()));
            let relevant: HashSet<&str> = relevant.collect();
            let mut room = most.saturating_sub(relevant.len());
            self.corpus.retain(|entry| {
                relevant.contains(entry.id.as_str()) || {
                    let fits = room > 0;
                    room = room.saturating_sub(1);
                    fits
                }
            });
        }
    }
}

fn json_lines<T: DeserializeOwned>(path: &Path) -> color_eyre::Result<Vec<T>> {
    let text = std::fs::read_to_string(path).wrap_err_with(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| serde_json::from_str(line).wrap_err_with(|| format!("line {} of {}", at + 1, path.display())))
        .collect()
}

/// `query document grade` or, as TREC has it, `query 0 document grade`; a heading is passed over.
fn judgments(path: &Path) -> color_eyre::Result<HashMap<String, Judgments>> {
    let text = std::fs::read_to_string(path).wrap_err_with(|| format!("cannot read {}", path.display()))?;
    let mut found: HashMap<String, Judgments> = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (query, document, grade) = match columns.as_slice() {
            [] => continue,
            [query, document, grade] | [query, _, document, grade] => (*query, *document, *grade),
            _ => bail!("line {} of {} does not have 3 columns: query, document, grade", at + 1, path.display()),
        };
        match grade.parse() {
            Ok(grade) => {
                found.entry(query.to_owned()).or_default().insert(document.to_owned(), grade);
            }
            Err(_) if at == 0 => {}
            Err(_) => return Err(eyre!("line {} of {}: the grade {grade:?} is no number", at + 1, path.display())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_of_judgments_and_both_names_of_ids_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "corpus.jsonl",
            "{\"_id\":\"a\",\"text\":\"x\"}\n{\"id\":\"b\",\"title\":\"T\",\"text\":\"y\"}\n\n{\"id\":\"c\",\"text\":\"z\"}\n",
        );
        write("queries.jsonl", "{\"_id\":\"q\",\"text\":\"?\"}\n{\"id\":\"unjudged\",\"text\":\"?\"}\n");
        write("qrels.tsv", "query-id\tcorpus-id\tscore\nq\tb\t1\nq 0 a 0\n");
        let mut set = Dataset::read(dir.path()).unwrap();
        assert_eq!(set.queries.len(), 1);
        assert_eq!(set.judgments["q"], Judgments::from([("a".into(), 0), ("b".into(), 1)]));
        assert_eq!(set.corpus.iter().map(Entry::content).collect::<Vec<_>>(), ["x", "T\n\ny", "z"]);
        set.limit(Some(1), None);
        assert_eq!(
            set.corpus.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
            ["b"],
            "the relevant one stays"
        );
        write("qrels.tsv", "q b 1\nq a x\n");
        let error = Dataset::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
