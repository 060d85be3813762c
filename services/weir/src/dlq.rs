//! `weir dlq`: what was rejected, and why.

use std::process::ExitCode;

use color_eyre::eyre::{bail, eyre};
use serde_json::json;
use weir_runner::Registry;

use crate::context::Context;
use crate::dead_letters::{self, DeadLetter, Payload, show_bytes};
use crate::pipeline::{self, StageDef};
use crate::progress::{Ink, human, shorten, table};
use crate::tail;

/// Arguments of `weir dlq`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the dead letters, oldest first.
    List {
        /// Only those of this stage, for example extract.
        #[arg(long)]
        stage: Option<String>,
        /// Only those of the tenant given by --tenant.
        #[arg(long)]
        only_tenant: bool,
        /// At most so many, the newest.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one dead letter: its history, its headers, and what is in it.
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read, or no dead letter has the id.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = tail::registry(context)?;
    match args.command {
        Command::List { stage, only_tenant, limit } => {
            let stages = stages_named(stage.as_deref())?;
            let mut letters = dead_letters::read(context, &registry, stages.into_iter()).await?;
            if only_tenant {
                letters.retain(|letter| letter.summary().tenant.as_deref() == Some(context.tenant.as_str()));
            }
            list(&letters, limit, context)?;
        }
        Command::Show { id } => {
            let letters = dead_letters::read(context, &registry, pipeline::stages()).await?;
            show(one(&letters, &id)?, &registry, context).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn stages_named(name: Option<&str>) -> color_eyre::Result<Vec<&'static StageDef>> {
    let Some(name) = name else { return Ok(pipeline::stages().collect()) };
    let found: Vec<_> = pipeline::stages().filter(|stage| stage.name == name).collect();
    if found.is_empty() {
        let names: Vec<_> = pipeline::stages().map(|stage| stage.name).collect();
        bail!("there is no stage {name}; stages are {}", names.join(", "));
    }
    Ok(found)
}

fn list(letters: &[DeadLetter], limit: usize, context: &Context) -> color_eyre::Result<()> {
    let shown = letters.get(letters.len().saturating_sub(limit)..).unwrap_or_default();
    if context.json {
        let summaries: Vec<_> = shown.iter().map(DeadLetter::summary).collect();
        println!("{}", serde_json::to_string_pretty(&summaries)?);
        return Ok(());
    }
    if letters.is_empty() {
        println!("No dead letters.");
        return Ok(());
    }
    let mut rows = table(&["id", "stage", "class", "tenant", "age", "origin", "message"]);
    for letter in shown {
        let summary = letter.summary();
        let short_id: String = summary.id.chars().take(12).collect();
        rows.add_row([
            short_id,
            summary.stage.to_owned(),
            summary.class,
            summary.tenant.unwrap_or_default(),
            human(letter.age()),
            summary.origin,
            shorten(&summary.message, 100),
        ]);
    }
    println!("{rows}");
    if shown.len() < letters.len() {
        println!("{} more; see them with --limit.", letters.len() - shown.len());
    }
    println!("\n`weir dlq show ID` prints one with its headers and content.");
    Ok(())
}

fn one<'a>(letters: &'a [DeadLetter], id: &str) -> color_eyre::Result<&'a DeadLetter> {
    let mut found = letters.iter().filter(|letter| letter.id().starts_with(id));
    let letter =
        found.next().ok_or_else(|| eyre!("no dead letter has an id that begins with {id}; see `weir dlq list`"))?;
    match found.find(|other| other.id() != letter.id()) {
        Some(_) => Err(eyre!("several dead letters have ids that begin with {id}; give more of it")),
        None => Ok(letter),
    }
}

async fn show(letter: &DeadLetter, registry: &Registry, context: &Context) -> color_eyre::Result<()> {
    let payload = letter.payload(registry).await;
    if context.json {
        let headers: serde_json::Map<_, _> =
            letter.headers().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        let payload = match payload {
            Payload::Decoded { schema, value } => json!({ "schema": schema, "value": value }),
            Payload::Bytes { reason, bytes } => json!({ "undecoded": reason, "hex": hex::encode(bytes) }),
        };
        let shown = json!({ "summary": letter.summary(), "headers": headers, "payload": payload });
        println!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(());
    }
    let ink = Ink::for_stdout();
    let summary = letter.summary();
    println!("{} {}", ink.bold("dead letter"), summary.id);
    println!("{} {}: {}", ink.red(&summary.class), summary.stage, summary.message);
    println!("read from {}, {} ago", summary.origin, human(letter.age()));
    println!("\n{}", ink.bold("headers"));
    for (name, value) in letter.headers() {
        println!("  {} {value}", ink.dim(format!("{name}:")));
    }
    match payload {
        Payload::Decoded { schema, value } => {
            println!("\n{} ({schema})", ink.bold("record"));
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Payload::Bytes { reason, bytes } => {
            println!("\n{} ({} bytes that are no record: {reason})", ink.bold("content"), bytes.len());
            println!("{}", show_bytes(&bytes));
        }
    }
    Ok(())
}
