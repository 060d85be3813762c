//! Real files of all kinds, and what must come out of each.
//!
//! The files are not part of the project: `WEIR_CORPORA` names the folder that holds them, by default
//! `../shared/data` beside the workspace. Without it the test says so and ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};

use unicode_normalization::UnicodeNormalization;
use weir_ingest::config::IngestConfig;
use weir_ingest::formats::{Extracted, Hint, Refusal};
use weir_ingest::pool::{Pool, WorkerCommand};

fn corpora() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    std::env::var_os("WEIR_CORPORA").map_or(beside, PathBuf::from)
}

/// As the corpus compares: NFKC, case folded, white space collapsed.
fn fold(text: &str) -> String {
    let folded: String = text.nfkc().collect::<String>().to_lowercase();
    folded.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A file's row in the manifest, against what came out.
fn judge(row: &[&str], result: &Result<Extracted, Refusal>) -> Result<(), String> {
    let [_, _, expected, phrases @ .., note, _, _] = row else { return Err("the manifest has another shape".into()) };
    let said = match result {
        Ok(document) => format!("text: {:?}", document.text.chars().take(300).collect::<String>()),
        Err(refusal) => format!("refused as {}: {refusal}", refusal.class()),
    };
    let contains = |phrase: &str| result.as_ref().is_ok_and(|document| fold(&document.text).contains(&fold(phrase)));
    let phrases_hold = phrases[..2].iter().all(|phrase| phrase.is_empty() || contains(phrase))
        && phrases[2..].iter().all(|phrase| phrase.is_empty() || !contains(phrase));
    // A parser that crashed or was stopped gave no reason of its own.
    let reasoned = |refusal: &Refusal| !["parser-crash", "timeout"].contains(&refusal.class());
    let good = match (*expected, result) {
        ("text", Ok(_)) => phrases_hold,
        ("empty", Err(refusal)) => refusal.class() == "empty",
        ("reject", Err(refusal)) if note.contains("password") => refusal.class() == "encrypted",
        ("reject" | "either", Err(refusal)) => reasoned(refusal),
        ("either", Ok(document)) => phrases_hold && !document.text.contains('\u{fffd}'),
        _ => false,
    };
    if good { Ok(()) } else { Err(format!("expected {expected} {phrases:?}, got {said}")) }
}

#[tokio::test]
async fn every_real_file_gives_what_it_holds_or_a_reason() {
    let folder = corpora().join("documents");
    let Ok(manifest) = std::fs::read_to_string(folder.join("manifest.tsv")) else {
        println!("skipped: no corpus in {}; name its folder in WEIR_CORPORA", folder.display());
        return;
    };
    let pool = Pool::new(2, WorkerCommand::new(env!("CARGO_BIN_EXE_weir-ingest"), ["--extract-worker"]));
    let limits = IngestConfig::default().limits();
    let (mut failures, mut files) = (Vec::new(), 0);
    for line in manifest.lines().skip(1) {
        let row: Vec<&str> = line.split('\t').collect();
        let bytes = std::fs::read(folder.join(row[0])).unwrap();
        // No hints: the bytes must speak for themselves.
        let result = pool.extract(&bytes, &Hint::default(), &limits).await.unwrap();
        files += 1;
        if let Err(failure) = judge(&row, &result) {
            failures.push(format!("{}: {failure}", row[0]));
        }
        if std::env::var_os("WEIR_SHOW_TEXT").is_some() {
            println!("== {}\n{result:#?}", row[0]);
        }
    }
    println!("{} of {files} files as the manifest says", files - failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(files > 0);
}
