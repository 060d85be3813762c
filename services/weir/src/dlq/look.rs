//! `weir dlq list`, `show` and `stats`: what there is.

use std::collections::BTreeMap;
use std::process::ExitCode;

use color_eyre::eyre::eyre;
use serde::Serialize;
use serde_json::json;
use weir_runner::{DeadLetter, DeadLetters, Filter, Registry};

use super::choose::Choice;
use crate::context::Context;
use crate::dead_letters::{self, Payload, Summary, headers, payload, show_bytes};
use crate::progress::{Ink, age_of, human, shorten, table};
use crate::tail;

/// Arguments of `weir dlq list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    choice: Choice,
    /// Only those that are parked.
    #[arg(long)]
    parked: bool,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// Arguments of `weir dlq stats`.
#[derive(Debug, clap::Args)]
pub struct Stats {
    #[command(flatten)]
    choice: Choice,
}

/// How many dead letters failed alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Count {
    stage: String,
    class: String,
    count: usize,
    parked: usize,
    bytes: usize,
    /// When the oldest was rejected, milliseconds since the Unix epoch.
    oldest: i64,
    /// When the newest was rejected, milliseconds since the Unix epoch.
    newest: i64,
}

/// Lists.
///
/// # Errors
/// When Kafka can't be read.
pub async fn list(list: &List, context: &Context) -> color_eyre::Result<ExitCode> {
    let filter = Filter { parked: list.parked.then_some(true), ..list.choice.filter(context) };
    let letters = dead_letters::list(context, &list.choice.stages()?, &filter).await?;
    let shown = letters.get(letters.len().saturating_sub(list.limit)..).unwrap_or_default();
    if context.json {
        let summaries: Vec<_> = shown.iter().map(Summary::of).collect();
        println!("{}", serde_json::to_string_pretty(&summaries)?);
        return Ok(ExitCode::SUCCESS);
    }
    if letters.is_empty() {
        println!("No dead letters.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["id", "stage", "class", "tenant", "age", "replays", "origin", "message"]);
    for letter in shown {
        let summary = Summary::of(letter);
        let parked = if summary.parked.is_some() { " parked" } else { "" };
        rows.add_row([
            summary.short_id(),
            summary.stage.clone(),
            summary.class.clone(),
            summary.tenant.clone().unwrap_or_default(),
            human(age_of(summary.at)),
            format!("{}{parked}", summary.replays),
            summary.origin.clone(),
            shorten(&summary.message, 100),
        ]);
    }
    println!("{rows}");
    if shown.len() < letters.len() {
        println!("{} more; see them with --limit.", letters.len() - shown.len());
    }
    println!("\n`weir dlq show ID` prints one with its headers and content; `weir dlq replay ID` gives it back.");
    Ok(ExitCode::SUCCESS)
}

/// Counts.
///
/// # Errors
/// When Kafka can't be read.
pub async fn stats(stats: &Stats, context: &Context) -> color_eyre::Result<ExitCode> {
    let letters = dead_letters::list(context, &stats.choice.stages()?, &stats.choice.filter(context)).await?;
    let counts = count(letters.iter().map(Summary::of));
    if context.json {
        println!("{}", serde_json::to_string_pretty(&counts)?);
        return Ok(ExitCode::SUCCESS);
    }
    if counts.is_empty() {
        println!("No dead letters.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["stage", "class", "count", "parked", "bytes", "oldest", "newest"]);
    for count in &counts {
        rows.add_row([
            count.stage.clone(),
            count.class.clone(),
            count.count.to_string(),
            count.parked.to_string(),
            count.bytes.to_string(),
            human(age_of(count.oldest)),
            human(age_of(count.newest)),
        ]);
    }
    println!("{rows}");
    println!("\n{} in all.", letters.len());
    Ok(ExitCode::SUCCESS)
}

/// The most first.
fn count(letters: impl Iterator<Item = Summary>) -> Vec<Count> {
    let mut counts: BTreeMap<(String, String), Count> = BTreeMap::new();
    for letter in letters {
        let count = counts.entry((letter.stage.clone(), letter.class.clone())).or_insert_with(|| Count {
            stage: letter.stage,
            class: letter.class,
            oldest: letter.at,
            newest: letter.at,
            ..Count::default()
        });
        count.count += 1;
        count.parked += usize::from(letter.parked.is_some());
        count.bytes += letter.bytes;
        count.oldest = count.oldest.min(letter.at);
        count.newest = count.newest.max(letter.at);
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.count));
    counts
}

/// The one dead letter whose id begins like this, with its record.
///
/// # Errors
/// When there is none, or several, or Kafka can't be read.
pub async fn one(choice: &Choice, context: &Context) -> color_eyre::Result<DeadLetter> {
    let letters = dead_letters::list(context, &choice.stages()?, &choice.filter(context)).await?;
    choice.each_id_names_one(letters.iter())?;
    let exact = letters.iter().find(|letter| choice.ids.contains(&letter.id()));
    let letter = exact.or(letters.first()).ok_or_else(|| eyre!("no dead letter is meant; see `weir dlq list`"))?;
    let stage = DeadLetters::of(&context.kafka, &letter.stage);
    let mut read = stage.read(vec![letter.clone()]);
    let whole = read.recv().await.transpose()?;
    whole.ok_or_else(|| eyre!("dead letter {} is not outstanding any more", letter.id()))
}

/// Shows one.
///
/// # Errors
/// As [`one`].
pub async fn show(id: &str, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = tail::registry(context)?;
    let letter = one(&Choice::one(id), context).await?;
    if context.json {
        return show_json(&letter, &registry).await;
    }
    let ink = Ink::for_stdout();
    let summary = Summary::of(&letter);
    println!("{} {}", ink.bold("dead letter"), summary.id);
    println!("{} {}: {}", ink.red(&summary.class), summary.stage, summary.message);
    println!("read from {}, {} ago", summary.origin, human(age_of(summary.at)));
    if let Some(parked) = &summary.parked {
        println!("{} {} ago: {}", ink.yellow("parked"), human(age_of(parked.at)), parked.reason);
    }
    println!("\n{}", ink.bold("headers"));
    for (name, value) in headers(&letter) {
        println!("  {} {value}", ink.dim(format!("{name}:")));
    }
    match payload(&letter, &registry).await {
        Payload::Decoded { schema, value } => {
            println!("\n{} ({schema})", ink.bold("record"));
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Payload::Bytes { reason, bytes } => {
            println!("\n{} ({} bytes that are no record: {reason})", ink.bold("content"), bytes.len());
            println!("{}", show_bytes(&bytes));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_json(letter: &DeadLetter, registry: &Registry) -> color_eyre::Result<ExitCode> {
    let headers: serde_json::Map<_, _> = headers(letter).map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let payload = match payload(letter, registry).await {
        Payload::Decoded { schema, value } => json!({ "schema": schema, "value": value }),
        Payload::Bytes { reason, bytes } => json!({ "undecoded": reason, "hex": hex::encode(bytes) }),
    };
    let shown = json!({ "summary": Summary::of(letter), "headers": headers, "payload": payload });
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_failures_are_counted_together_the_most_first() {
        let summary = |stage: &str, class: &str, at: i64, parked: bool| Summary {
            id: at.to_string(),
            stage: stage.into(),
            class: class.into(),
            message: String::new(),
            tenant: None,
            document: None,
            origin: String::new(),
            at,
            replays: 0,
            parked: parked.then(|| weir_runner::Parked { reason: "by hand".into(), at }),
            bytes: 10,
        };
        let letters = [
            summary("chunk", "panic", 5, false),
            summary("extract", "too-large", 9, true),
            summary("extract", "too-large", 3, false),
        ];
        let counts = count(letters.into_iter());
        assert_eq!(counts.len(), 2);
        let most = counts.first().cloned().unwrap_or_default();
        assert_eq!((most.class.as_str(), most.count, most.parked, most.bytes), ("too-large", 2, 1, 20));
        assert_eq!((most.oldest, most.newest), (3, 9));
    }
}
