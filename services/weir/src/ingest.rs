//! `weir ingest`: sends documents and waits until they are searchable.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use color_eyre::eyre::{bail, eyre};
use serde_json::json;
use weir_contracts::DocumentId;

use crate::collect::{self, Collected, Found, Refused, Source};
use crate::context::Context;
use crate::jobs::{CHECKPOINT_EVERY, Ingest, IngestSpec, Submission};
use crate::ledger::{NOT_SENT, Standing};
use crate::progress::{Ink, human};
use crate::send::{self, Ending, LargeFiles, Report};

/// Arguments of `weir ingest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, folders (with everything in them), patterns (quoted: 'docs/**/*.md'), or - for standard input. A
    /// document's id is its path relative to what was named. With --delete: ids of documents. With --job: one folder, or
    /// s3://bucket/prefix/.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// Id of the document, when there is one file or standard input.
    #[arg(long, conflicts_with = "job")]
    id: Option<DocumentId>,
    /// Ids are paths relative to this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "job")]
    base: Option<PathBuf>,
    /// Put before every id.
    #[arg(long, value_name = "TEXT", default_value = "")]
    id_prefix: String,
    /// Title for citations; found in the content when not given.
    #[arg(long)]
    title: Option<String>,
    /// Metadata of all documents, usable as a filter of questions; may be repeated.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// Media type of all documents, as a hint; guessed from the name when not given.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// A .jsonl file, and standard input, holds one document a line: {"id", "title", "text", "metadata"}.
    #[arg(long, conflicts_with = "job")]
    jsonl: bool,
    /// Also files and folders whose names begin with a dot.
    #[arg(long)]
    hidden: bool,
    /// Delete the documents with these ids; - reads ids from standard input, one a line.
    #[arg(long, conflicts_with_all = ["job", "base", "title", "metadata", "content_type", "jsonl", "hidden", "id"])]
    delete: bool,
    /// Send files that are too large for a record as file:// links. The ingest service must see the same files and
    /// allow their folder (see its configuration).
    #[arg(long)]
    claim_check: bool,
    /// Only send; don't wait for what becomes of the documents.
    #[arg(long)]
    no_wait: bool,
    /// Wait until every document is searchable or turned away. This is the default. With --job --detach: until all are
    /// sent.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Give up waiting when nothing has moved for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
    #[command(flatten)]
    submission: Submission,
    /// Documents between two checkpoints of a job, at most.
    #[arg(long, requires = "job", value_name = "N", default_value_t = CHECKPOINT_EVERY, help_heading = "As a job")]
    checkpoint_every: usize,
}

/// Parses `key=value`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example team=legal".into()),
    }
}

/// Pairs as a map; `flag` names where they come from.
///
/// # Errors
/// When a key is given twice with different values: one of them would be dropped silently.
pub fn unique(flag: &str, pairs: &[(String, String)]) -> color_eyre::Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        let other = map.insert(key.clone(), value.clone()).filter(|other| other != value);
        if let Some(other) = other {
            bail!("{flag} {key} is given twice, as {other} and as {value}: a document has one value for each key");
        }
    }
    Ok(map)
}

/// Runs the subcommand.
///
/// # Errors
/// When nothing could be sent. That single documents were turned away is said by the exit code.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    if args.submission.job {
        return submit(&args, context).await;
    }
    let Collected { documents, refused } = if args.delete { ids_to_delete(&args)? } else { collect_files(&args)? };
    if documents.is_empty() && refused.is_empty() {
        bail!("there are no files in {}", args.paths.join(", "));
    }
    let options = send::Options {
        tenant: context.tenant.clone(),
        delete: args.delete,
        large_files: if args.claim_check { LargeFiles::AsLinks } else { LargeFiles::Refuse },
        content_type: args.content_type.clone(),
        title: args.title.clone(),
        metadata: unique("--metadata", &args.metadata)?,
        wait: !args.no_wait,
        patience: Duration::from_secs(args.patience),
    };
    let report = send::send(context, documents, &options).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&report, &refused))?);
    } else {
        print(&report, &refused, &options);
    }
    Ok(exit_code(&report, &refused))
}

/// Sends as a job: requests go out, and `weir status` says what becomes of the documents.
async fn submit(args: &Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let [source] = args.paths.as_slice() else { bail!("as a job one folder or s3://bucket/prefix/ is sent") };
    let spec = IngestSpec {
        source: IngestSpec::source(source)?,
        id_prefix: args.id_prefix.clone(),
        hidden: args.hidden,
        claim_check: args.claim_check,
        content_type: args.content_type.clone(),
        title: args.title.clone(),
        metadata: unique("--metadata", &args.metadata)?,
        checkpoint_every: args.checkpoint_every,
    };
    let tenant = Some(context.tenant.clone());
    args.submission.submit(Ingest::NAME, tenant, &spec, args.wait, context).await
}

fn collect_files(args: &Args) -> color_eyre::Result<Collected> {
    let options = collect::Options {
        id: args.id.clone(),
        base: args.base.clone(),
        prefix: args.id_prefix.clone(),
        hidden: args.hidden,
        jsonl: args.jsonl,
    };
    collect::collect(&args.paths, &options)
}

fn ids_to_delete(args: &Args) -> color_eyre::Result<Collected> {
    let mut ids: BTreeMap<String, Found> = BTreeMap::new();
    let mut add = |text: &str| -> color_eyre::Result<()> {
        let id = DocumentId::parse(format!("{}{text}", args.id_prefix))
            .map_err(|error| eyre!("can't delete {text:?}: {error}"))?;
        let found = Found { id, source: Source::Bytes(Vec::new()), title: None, metadata: BTreeMap::new() };
        ids.insert(found.id.as_str().to_owned(), found);
        Ok(())
    };
    for path in &args.paths {
        if path == "-" {
            for line in std::io::stdin().lines() {
                let line = line?;
                if !line.trim().is_empty() {
                    add(line.trim())?;
                }
            }
        } else {
            add(path)?;
        }
    }
    Ok(Collected { documents: ids.into_values().collect(), refused: Vec::new() })
}

fn exit_code(report: &Report, refused: &[Refused]) -> ExitCode {
    match report.ending {
        Ending::Interrupted => ExitCode::from(130),
        Ending::Settled if report.ledger.counts().failed == 0 && refused.is_empty() => ExitCode::SUCCESS,
        Ending::Settled | Ending::Stalled => ExitCode::FAILURE,
    }
}

fn as_json(report: &Report, refused: &[Refused]) -> serde_json::Value {
    let standings = report.ledger.standings();
    let open = |standing: &Standing| !standing.is_final();
    json!({
        "counts": report.ledger.counts(),
        "ending": report.ending,
        "seconds": report.elapsed.as_secs_f64(),
        "failed": standings.iter().filter_map(|(document, standing)| match standing {
            Standing::Failed { step, reason } => Some(json!({ "document": document, "step": step, "reason": reason })),
            _ => None,
        }).collect::<Vec<_>>(),
        "pending": standings.iter().filter(|(_, standing)| open(standing)).map(|(document, _)| document).collect::<Vec<_>>(),
        "refused": refused,
    })
}

fn print(report: &Report, refused: &[Refused], options: &send::Options) {
    let ink = Ink::for_stdout();
    let counts = report.ledger.counts();
    for (document, standing) in report.ledger.standings() {
        if let Standing::Failed { step, reason } = standing {
            println!("{} {document}: {reason}", ink.red(step));
        }
    }
    for file in refused {
        println!("{} {}: {}", ink.red(NOT_SENT), file.path, file.reason);
    }
    if matches!(report.ending, Ending::Interrupted) {
        println!("{}", ink.yellow("Interrupted. What was sent stays in the pipeline and goes on."));
    }
    let mut parts = vec![format!("{} of {} sent", counts.sent, counts.documents + refused.len())];
    for (count, what) in [
        (counts.indexed, "indexed"),
        (counts.deleted, "deleted"),
        (counts.unchanged, "unchanged"),
        (counts.superseded, "superseded by a newer request"),
        (counts.failed + refused.len(), "turned away"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if options.wait && counts.pending > 0 {
        parts.push(format!("{} still on their way", counts.pending));
    }
    println!("{} in {}", ink.bold(parts.join(", ")), human(report.elapsed));
    if counts.indexed > 0 {
        let rate = precise(counts.indexed) / report.elapsed.as_secs_f64().max(0.001);
        println!("{}", ink.dim(format!("{} chunks, {rate:.1} documents/s", counts.chunks)));
    }
    if matches!(report.ending, Ending::Stalled) {
        println!(
            "Nothing moved for {}. `weir lag` shows where records wait, `weir status` which services run, and \
             `weir dlq list` what was rejected.",
            human(options.patience)
        );
    }
}

fn precise(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}
