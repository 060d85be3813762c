//! `weir eval`: how good retrieval and answers are on a labelled set, through the running pipeline.

mod asking;
mod dataset;
mod metrics;
mod ranking;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use color_eyre::eyre::{WrapErr, bail, eyre};
use weir_contracts::{DocumentId, TenantId};
use weir_vectors::Mode;

use crate::collect::{Found, Source};
use crate::context::Context;
use crate::eval::dataset::Dataset;
use crate::eval::metrics::{Measures, mean, measure};
use crate::eval::ranking::Searcher;
use crate::eval::report::{Exact, Report, Run};
use crate::progress::human;
use crate::send::{self, Ending, LargeFiles};

/// How far dense retrieval may be from an exact search, in nDCG@10.
const EXACT_TOLERANCE: f64 = 0.005;

/// Arguments of `weir eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Index a labelled set and measure dense, sparse and hybrid retrieval.
    Run(RunArgs),
}

/// Arguments of `weir eval run`.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Folder with corpus.jsonl {"id","title","text"}, queries.jsonl {"id","text"} and qrels.tsv (query, document,
    /// grade); answers.jsonl {"id","answers"} for --ask.
    dataset: PathBuf,
    /// Don't index: the set was indexed by an earlier run.
    #[arg(long)]
    skip_ingest: bool,
    /// Index so many documents only; those that are relevant to a query stay.
    #[arg(long, value_name = "N")]
    limit_docs: Option<usize>,
    /// Run so many queries only, spread over the set.
    #[arg(long, value_name = "N")]
    limit_queries: Option<usize>,
    /// Also search exactly over the stored vectors, and fail when dense retrieval is further from it than 0.005.
    #[arg(long)]
    exact: bool,
    /// Also put so many questions to the pipeline, one after the other, and look for the answers.
    #[arg(long, value_name = "N")]
    ask: Option<usize>,
    /// Write the figures as JSON.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Give up indexing when nothing has moved for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// When the set can't be read, or the pipeline does not do its part.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    match args.command {
        Command::Run(args) => run_set(args, context).await,
    }
}

async fn run_set(args: RunArgs, context: &Context) -> color_eyre::Result<ExitCode> {
    let mut set = Dataset::read(&args.dataset)?;
    set.limit(args.limit_docs, args.limit_queries);
    let name = name_of(&args.dataset)?;
    let tenant = tenant(context, &name, args.limit_docs)?;
    if !args.skip_ingest {
        ingest(context, &set, &tenant, Duration::from_secs(args.patience)).await?;
    }
    let searcher = Searcher::prepare(context, &tenant, &set.queries).await?;
    let mut report = Report {
        dataset: name,
        tenant: tenant.as_str().to_owned(),
        documents: set.corpus.len(),
        queries: set.queries.len(),
        model: searcher.model.clone(),
        runs: BTreeMap::new(),
        exact: None,
        asked: None,
    };
    for mode in [Mode::Dense, Mode::Sparse, Mode::Hybrid] {
        let searched = searcher.search(&set.queries, mode, context.json).await?;
        let of_query = |query: &dataset::Query| {
            measure(
                searched.rankings.get(&query.id).map(Vec::as_slice).unwrap_or_default(),
                set.judgments.get(&query.id)?,
            )
        };
        let measures: Vec<Measures> = set.queries.iter().filter_map(of_query).collect();
        report.runs.insert(mode.name(), Run::new(mean(&measures), &searched, &set));
    }
    if args.exact {
        report.exact = Some(exact(&searcher, &set, &report).await?);
    }
    if let Some(most) = args.ask {
        let mut asked = Dataset { corpus: Vec::new(), queries: set.queries.clone(), ..set };
        asked.limit(None, Some(most));
        report.asked = Some(asking::ask(context, &tenant, &asked, &asked.queries).await?);
    }
    let json = serde_json::to_string_pretty(&report)?;
    if let Some(path) = &args.output {
        std::fs::write(path, format!("{json}\n")).wrap_err_with(|| format!("cannot write {}", path.display()))?;
    }
    if context.json {
        println!("{json}");
    } else {
        report.print();
    }
    let off = report.exact.as_ref().is_some_and(|exact| exact.difference.abs() > EXACT_TOLERANCE);
    Ok(if off { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The folder's name, as far as a tenant's name allows.
fn name_of(folder: &std::path::Path) -> color_eyre::Result<String> {
    let folder = folder.canonicalize()?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    if name.is_empty() { Err(eyre!("{} has no name", folder.display())) } else { Ok(name) }
}

/// The tenant of the set: the one that was named, else its own. A part of a set is not the set.
fn tenant(context: &Context, name: &str, limit: Option<usize>) -> color_eyre::Result<TenantId> {
    if context.tenant.as_str() != "default" {
        return Ok(context.tenant.clone());
    }
    let part = limit.map(|limit| format!("-{limit}")).unwrap_or_default();
    Ok(TenantId::parse(format!("eval-{name}{part}"))?)
}

async fn ingest(context: &Context, set: &Dataset, tenant: &TenantId, patience: Duration) -> color_eyre::Result<()> {
    let found = |entry: &dataset::Entry| -> color_eyre::Result<Found> {
        let title = Some(entry.title.trim().to_owned()).filter(|title| !title.is_empty());
        let source = Source::Bytes(entry.content().into_bytes());
        Ok(Found { id: DocumentId::parse(entry.id.clone())?, source, title, metadata: BTreeMap::new() })
    };
    let documents = set.corpus.iter().map(found).collect::<color_eyre::Result<Vec<_>>>()?;
    let options = send::Options {
        tenant: tenant.clone(),
        delete: false,
        large_files: LargeFiles::Refuse,
        content_type: Some("text/plain; charset=utf-8".into()),
        title: None,
        metadata: BTreeMap::new(),
        wait: true,
        patience,
    };
    let report = send::send(context, documents, &options).await?;
    let counts = report.ledger.counts();
    match report.ending {
        Ending::Interrupted => bail!("interrupted"),
        Ending::Stalled => bail!(
            "nothing moved for {}: {} of {} documents are searchable; `weir lag` shows where the rest waits",
            human(patience),
            counts.documents - counts.pending - counts.failed,
            counts.documents
        ),
        Ending::Settled if counts.failed > 0 => {
            bail!("{} of {} documents were turned away; `weir dlq list` says why", counts.failed, counts.documents)
        }
        Ending::Settled => {}
    }
    if !context.json {
        eprintln!(
            "{} documents searchable after {} ({} new, {} unchanged)",
            counts.documents,
            human(report.elapsed),
            counts.indexed,
            counts.unchanged
        );
    }
    Ok(())
}

async fn exact(searcher: &Searcher, set: &Dataset, report: &Report) -> color_eyre::Result<Exact> {
    let stored = searcher.stored().await?;
    let rankings = searcher.exact(&stored, &set.queries);
    let of_query = |query: &dataset::Query| measure(rankings.get(&query.id)?, set.judgments.get(&query.id)?);
    let measures = mean(&set.queries.iter().filter_map(of_query).collect::<Vec<_>>());
    let dense = report.runs.get(Mode::Dense.name()).map_or(0.0, |run| run.measures.ndcg_10);
    Ok(Exact { chunks: stored.len(), measures, difference: dense - measures.ndcg_10 })
}
