//! Which questions the demo asks of documents it did not make, and which document must be cited.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use color_eyre::eyre::WrapErr;
use serde::Deserialize;

use crate::collect::{Found, Source, json_document};

/// A question and the document its answer must cite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The question.
    pub question: String,
    /// The document's id.
    pub document: String,
}

/// A collection of documents with questions that are known to be answered by some of them, as the BEIR collections
/// are: `corpus.jsonl`, `queries.jsonl`, `qrels.tsv`.
pub struct Collection {
    /// Name of its folder.
    pub name: String,
    /// The first documents of it.
    pub documents: Vec<Found>,
    /// A question one of them answers.
    pub question: Option<Expected>,
}

/// The first `limit` documents of a collection in the folder `corpora`: of scifact if it is there, else of the first.
///
/// # Errors
/// When its files can't be read.
pub fn collection(corpora: &Path, limit: usize) -> color_eyre::Result<Option<Collection>> {
    let Some(folder) = choose(corpora) else { return Ok(None) };
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!("{name}/");
    let corpus = read(&folder.join("corpus.jsonl"))?;
    let mut documents = Vec::new();
    for line in corpus.lines().filter(|line| !line.trim().is_empty()).take(limit) {
        documents.extend(json_document(line, &prefix));
    }
    let question = question(&folder, &prefix, &documents)?;
    Ok(Some(Collection { name, documents, question }))
}

fn choose(corpora: &Path) -> Option<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(corpora)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("corpus.jsonl").is_file())
        .collect();
    folders.sort_by_key(|path| (!path.ends_with("scifact"), path.clone()));
    folders.into_iter().next()
}

#[derive(Deserialize)]
struct Query {
    #[serde(alias = "_id")]
    id: String,
    text: String,
}

/// The question whose document is the least likely to be mistaken: the one that shares the most words with the
/// document that is known to answer it. None when the collection has no labels.
fn question(folder: &Path, prefix: &str, documents: &[Found]) -> color_eyre::Result<Option<Expected>> {
    let (queries, labels) = (folder.join("queries.jsonl"), folder.join("qrels.tsv"));
    if !queries.is_file() || !labels.is_file() {
        return Ok(None);
    }
    let words: HashMap<&str, BTreeSet<String>> =
        documents.iter().map(|found| (found.id.as_str(), words(found))).collect();
    let queries: HashMap<String, String> = read(&queries)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Query>(line).ok())
        .map(|query| (query.id, query.text))
        .collect();
    let mut best: Option<(usize, Expected)> = None;
    for line in read(&labels)?.lines() {
        let mut fields = line.split('\t');
        let (Some(query), Some(document), Some(grade)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let document = format!("{prefix}{document}");
        let (Some(text), Some(words)) = (queries.get(query), words.get(document.as_str())) else { continue };
        let asked = words_of(text);
        let shared = asked.intersection(words).count();
        let whole = shared == asked.len() && grade.trim() != "0";
        if whole && best.as_ref().is_none_or(|(most, _)| shared > *most) {
            best = Some((shared, Expected { question: text.clone(), document }));
        }
    }
    Ok(best.map(|(_, expected)| expected))
}

fn words(found: &Found) -> BTreeSet<String> {
    let text = match &found.source {
        Source::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Source::File(_) | Source::Link { .. } => String::new(),
    };
    words_of(&format!("{} {text}", found.title.as_deref().unwrap_or_default()))
}

fn words_of(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

fn read(path: &Path) -> color_eyre::Result<String> {
    std::fs::read_to_string(path).wrap_err_with(|| format!("can't read {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_question_is_one_that_a_sent_document_answers() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("zoo");
        std::fs::create_dir(&folder).unwrap();
        let corpus = ["otters hold hands while they sleep", "crows remember faces for years", "late document"];
        let corpus = corpus.iter().enumerate().map(|(n, text)| format!("{{\"id\":\"{n}\",\"text\":\"{text}\"}}\n"));
        std::fs::write(folder.join("corpus.jsonl"), corpus.collect::<String>()).unwrap();
        let queries = "{\"id\":\"a\",\"text\":\"Crows remember faces\"}\n{\"id\":\"b\",\"text\":\"late document\"}\n";
        std::fs::write(folder.join("queries.jsonl"), queries).unwrap();
        std::fs::write(folder.join("qrels.tsv"), "a\t1\t1\nb\t2\t1\na\t0\t0\n").unwrap();
        let collection = collection(dir.path(), 2).unwrap().unwrap();
        assert_eq!(collection.documents.len(), 2);
        let expected = Expected { question: "Crows remember faces".into(), document: "zoo/1".into() };
        assert_eq!(collection.question, Some(expected), "a document beyond the limit is not sent");
    }
}
