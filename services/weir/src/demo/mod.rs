//! `weir demo`: documents in, five questions, cited answers out, on a stack of its own that ends with it.

mod documents;
mod docx;
mod html;
mod pdf;
mod questions;
mod session;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, bail, eyre};
use serde_json::json;
use weir_contracts::TenantId;

use self::questions::Expected;
use self::session::Session;
use crate::ask::{Answered, Asker, Asking, as_json, print_footing};
use crate::collect::{self, Found};
use crate::context::Context;
use crate::fleet::FleetState;
use crate::ledger::Standing;
use crate::progress::{Ink, human};
use crate::send::{self, Ending, LargeFiles, Report};
use crate::{lag, tail};

const QUESTIONS: usize = 5;
const DEADLINE: Duration = Duration::from_secs(30);
/// What the repository's own documentation is asked.
const ABOUT_WEIR: (&str, &str) = ("docs/architecture.md", "What is a lane, and why does a document stay in its lane?");

/// Arguments of `weir demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of your own documents to be sent too, instead of the collection in --corpora.
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// A question about your own documents; may be repeated. Its answer is shown, not checked.
    #[arg(long, value_name = "QUESTION")]
    ask: Vec<String>,
    /// Folder of collections (corpus.jsonl, queries.jsonl, qrels.tsv in a folder each).
    #[arg(long, value_name = "DIR", env = "WEIR_CORPORA", default_value = "../shared/data")]
    corpora: PathBuf,
    /// Documents of the collection to send.
    #[arg(long, default_value_t = 500)]
    limit: usize,
}

/// Runs the subcommand. Uses what runs in the data folder; starts a stack of its own, which ends with it, when nothing
/// does.
///
/// # Errors
/// When something does not come up. A wrong answer is said by the exit code.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let show = Show { ink: Ink::for_stdout(), quiet: context.json };
    if let Some(corpus) = args.corpus.as_deref().filter(|corpus| !corpus.is_dir()) {
        bail!("--corpus {}: there is no such folder", corpus.display());
    }
    if FleetState::running(&context.data).is_some() {
        show.step(&format!("Using what runs in {}", context.data.display()));
        return Box::pin(play(&args, context, &show, Instant::now())).await;
    }
    let started = Instant::now();
    show.step("Starting Kafka, schema registry, Qdrant and six services on free ports, in a folder of their own");
    let interrupted = interrupted()?;
    let session = tokio::select! {
        session = Session::start(context) => session?,
        () = interrupted => bail!("interrupted"),
    };
    show.say(&format!("ready after {}", human(started.elapsed())));
    let interrupted = self::interrupted()?;
    let result = tokio::select! {
        result = Box::pin(play(&args, session.context(), &show, started)) => result,
        () = interrupted => Err(eyre!("interrupted")),
    };
    show.step("Ending everything");
    let ending = Instant::now();
    let ended = session.end(result.is_err()).await;
    show.say(&format!("ended after {}", human(ending.elapsed())));
    let code = result?;
    ended.map(|()| code)
}

/// Ctrl-C, or the SIGTERM of whoever runs the demo.
fn interrupted() -> color_eyre::Result<impl Future<Output = ()>> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// What is said while it goes on; nothing with `--json`.
struct Show {
    ink: Ink,
    quiet: bool,
}

impl Show {
    fn step(&self, text: &str) {
        if !self.quiet {
            println!("\n{}", self.ink.bold(text));
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            println!("  {text}");
        }
    }
}

struct Material {
    documents: Vec<Found>,
    questions: Vec<Expected>,
    /// Holds the files the demo made.
    _folder: tempfile::TempDir,
}

async fn play(args: &Args, context: &Context, show: &Show, started: Instant) -> color_eyre::Result<ExitCode> {
    let tenant = TenantId::parse("demo")?;
    let material = gather(args, show)?;
    let report = send_all(context, &tenant, material.documents, show).await?;

    show.step(&format!("Asking {} questions", material.questions.len()));
    let mut asker = Asker::connect(context, &tail::registry(context)?).await?;
    let mut answers = Vec::new();
    for (number, expected) in material.questions.iter().enumerate() {
        let answered = asker.ask(&asking(&tenant, &expected.question), |_| {}).await?;
        let cited = answered.answer.citations.iter().any(|citation| citation.document.as_str() == expected.document);
        show.answer(number + 1, expected, &answered, cited);
        answers.push((expected, answered, cited));
    }
    for question in &args.ask {
        let answered = asker.ask(&asking(&tenant, question), |_| {}).await?;
        show.own_answer(question, &answered);
    }

    show.step("Lag");
    let lag = lag::measure(&context.kafka).await?;
    if !show.quiet {
        lag::print(&lag, false);
    }

    let locked = rejection(&report);
    show.step("A document that was rejected");
    match &locked {
        Some(reason) => show.say(&format!("{}: {reason}", documents::LOCKED)),
        None => show.say(&format!("{} {} was not rejected", show.ink.red("wrong:"), documents::LOCKED)),
    }

    let right = answers.iter().filter(|(_, _, cited)| *cited).count();
    let passed = right == QUESTIONS && locked.is_some();
    if show.quiet {
        let summary = json!({
            "passed": passed,
            "counts": report.ledger.counts(),
            "rejected": locked,
            "answers": answers.iter().map(|(expected, answered, cited)| json!({
                "question": expected.question, "expected": expected.document, "cited": cited, "got": as_json(answered),
            })).collect::<Vec<_>>(),
            "lag": lag,
            "seconds": started.elapsed().as_secs_f64(),
        });
        println!("{}", serde_json::to_string_pretty(&summary)?);
    }
    show.step("Result");
    let verdict = format!("{right} of {QUESTIONS} answers cite the document they should");
    let verdict = if passed { show.ink.green(verdict) } else { show.ink.red(verdict) };
    show.say(&format!("{verdict}, {} after the start", human(started.elapsed())));
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The documents to send and the questions to ask: the repository's own, made ones, and real ones where they are.
fn gather(args: &Args, show: &Show) -> color_eyre::Result<Material> {
    show.step("Gathering documents");
    let folder = tempfile::Builder::new().prefix("weir-demo-documents-").tempdir()?;
    documents::write(folder.path())?;
    let mut found = from_folder(folder.path(), "")?;
    show.say(&format!("{} made here: PDF, DOCX, HTML, Windows text, and a PDF nobody can open", found.len()));
    let [handbook, returns, observatory, tariff, winding] = documents::questions();
    let mut questions = vec![handbook, returns, observatory];

    if let Some(docs) = own_docs() {
        let documents = from_folder(&docs, "docs/")?;
        show.say(&format!("{} of Weir's own documentation, {}", documents.len(), docs.display()));
        let (document, question) = ABOUT_WEIR;
        if documents.iter().any(|found| found.id.as_str() == document) {
            questions.push(Expected { question: question.into(), document: document.into() });
        }
        found.extend(documents);
    }
    if let Some(corpus) = &args.corpus {
        let documents = from_folder(corpus, "corpus/")?;
        show.say(&format!("{} of your own, {}", documents.len(), corpus.display()));
        found.extend(documents);
    } else if let Some(collection) = questions::collection(&args.corpora, args.limit)? {
        show.say(&format!("{} real ones, the first of the collection {}", collection.documents.len(), collection.name));
        found.extend(collection.documents);
        questions.extend(collection.question);
    }
    // Where Weir's own documentation or a collection is missing.
    questions.extend([tariff, winding]);
    questions.truncate(QUESTIONS);
    Ok(Material { documents: found, questions, _folder: folder })
}

fn from_folder(folder: &Path, prefix: &str) -> color_eyre::Result<Vec<Found>> {
    let path = folder.to_str().ok_or_else(|| eyre!("{} is not UTF-8", folder.display()))?.to_owned();
    let options = collect::Options { prefix: prefix.into(), ..collect::Options::default() };
    let collected = collect::collect(&[path], &options).wrap_err("can't gather documents")?;
    Ok(collected.documents)
}

/// `docs/` of the repository this is run in.
fn own_docs() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let root = here.ancestors().find(|folder| folder.join("schemas").is_dir() && folder.join("docs").is_dir())?;
    Some(root.join("docs"))
}

async fn send_all(
    context: &Context,
    tenant: &TenantId,
    documents: Vec<Found>,
    show: &Show,
) -> color_eyre::Result<Report> {
    show.step(&format!("Sending {} documents and waiting until they can be found", documents.len()));
    let options = send::Options {
        tenant: tenant.clone(),
        delete: false,
        large_files: LargeFiles::Refuse,
        content_type: None,
        title: None,
        metadata: [("source".to_owned(), "demo".to_owned())].into(),
        wait: true,
        patience: Duration::from_secs(60),
    };
    let report = send::send(context, documents, &options).await?;
    let counts = report.ledger.counts();
    let mut parts = vec![format!("{} indexed ({} chunks)", counts.indexed, counts.chunks)];
    for (count, what) in [(counts.unchanged, "unchanged"), (counts.failed, "rejected"), (counts.pending, "pending")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    show.say(&format!("{} in {}", parts.join(", "), human(report.elapsed)));
    for (document, standing) in report.ledger.standings() {
        if let Standing::Failed { step, reason } = standing {
            show.say(&format!("{} {document}: {reason}", show.ink.yellow(step)));
        }
    }
    match report.ending {
        Ending::Settled => Ok(report),
        Ending::Interrupted => Err(eyre!("interrupted")),
        Ending::Stalled => {
            let lag = lag::measure(&context.kafka).await?;
            let waits: Vec<_> = lag
                .iter()
                .filter(|stage| stage.is_behind())
                .map(|stage| format!("{} ({} records)", stage.stage, stage.records))
                .collect();
            Err(eyre!(
                "{} documents were not decided within a minute; records wait before {}",
                counts.pending,
                waits.join(", ")
            ))
        }
    }
}

fn asking(tenant: &TenantId, question: &str) -> Asking {
    Asking {
        tenant: tenant.clone(),
        question: question.to_owned(),
        filter: [].into(),
        deadline: DEADLINE,
        top_k: None,
        agent: false,
        prompt_version: None,
    }
}

/// Why the document that can't be read was rejected.
fn rejection(report: &Report) -> Option<String> {
    report.ledger.standings().into_iter().find_map(|(document, standing)| match standing {
        Standing::Failed { reason, .. } if document.as_str() == documents::LOCKED => Some(reason.clone()),
        _ => None,
    })
}

impl Show {
    fn answer(&self, number: usize, expected: &Expected, answered: &Answered, cited: bool) {
        if self.quiet {
            return;
        }
        println!("\n{} {}", self.ink.bold(format!("{number}.")), self.ink.bold(&expected.question));
        println!("{}", answered.answer.text);
        print_footing(answered);
        if cited {
            println!("{}", self.ink.green(format!("cites {}, as it should", expected.document)));
        } else {
            println!("{}", self.ink.red(format!("does not cite {}, as it should", expected.document)));
        }
    }

    fn own_answer(&self, question: &str, answered: &Answered) {
        if self.quiet {
            return;
        }
        println!("\n{}", self.ink.bold(question));
        println!("{}", answered.answer.text);
        print_footing(answered);
    }
}
