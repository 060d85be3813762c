//! `weir ask`: asks a question and shows the answer while it is written, with what it rests on.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use color_eyre::eyre::{bail, eyre};
use serde_json::json;
use uuid::Uuid;
use weir_contracts::{
    Answer, AnswerStatus, AnswerToken, Citation, Question, RequestId, Shown, TenantId, TokenStream, Topic, header,
};
use weir_runner::{Publisher, Registry};
use weir_stage::Output;

use crate::context::Context;
use crate::ingest::{key_value, unique};
use crate::progress::{Activity, Ink, human, now_millis, shorten};
use crate::send::new_traceparent;
use crate::tail::{self, Tail};

/// Beyond the deadline, for an answer that says it has passed.
const AFTER_DEADLINE: Duration = Duration::from_secs(5);
const PASSAGE_SHOWN: usize = 240;

/// Arguments of `weir ask`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The question, in plain words.
    #[arg(required = true, value_name = "QUESTION")]
    question: Vec<String>,
    /// Only documents with this metadata; may be repeated, then all must hold.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    filter: Vec<(String, String)>,
    /// Seconds after which an answer is of no use any more; it is then not worked on.
    #[arg(long, visible_alias = "timeout", value_name = "SECONDS", default_value_t = 60.0)]
    deadline: f64,
    /// Lets the model call tools: search again, read documents, calculate. Takes longer and costs more.
    #[arg(long)]
    agent: bool,
    /// Passages to retrieve.
    #[arg(short = 'k', long, value_parser = clap::value_parser!(i32).range(1..=200))]
    top_k: Option<i32>,
    /// Version of the prompt template to use.
    #[arg(long, value_name = "VERSION")]
    prompt: Option<String>,
    /// Don't show the answer while it is written, only when it is finished.
    #[arg(long)]
    no_stream: bool,
}

/// A question.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Who asks.
    pub tenant: TenantId,
    /// What.
    pub question: String,
    /// Only documents with this metadata.
    pub filter: BTreeMap<String, String>,
    /// How long an answer is of use.
    pub deadline: Duration,
    /// Passages to retrieve.
    pub top_k: Option<i32>,
    /// Whether the model may call tools.
    pub agent: bool,
    /// Version of the prompt template.
    pub prompt_version: Option<String>,
}

/// An answer and what the asker saw of it.
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// From sending the question to the first piece of text.
    pub first_text: Duration,
    /// From sending the question to the finished answer.
    pub total: Duration,
    /// Id of the trace that leads from the question to the answer.
    pub trace_id: String,
}

/// Asks questions; stays connected between them.
pub struct Asker {
    publisher: Publisher,
    answers: Tail<Answer>,
    tokens: Tail<AnswerToken>,
}

impl Asker {
    /// Connects. From here on no answer is missed.
    ///
    /// # Errors
    /// When Kafka can't be reached or the topics don't exist.
    pub async fn connect(context: &Context, registry: &Registry) -> color_eyre::Result<Self> {
        let (answers, tokens) = tokio::try_join!(
            Tail::from_now(context, registry, Topic::ANSWERS),
            Tail::from_now(context, registry, Topic::ANSWER_TOKENS),
        )?;
        Ok(Self { publisher: Publisher::new(&context.kafka, registry.clone())?, answers, tokens })
    }

    /// Asks, and calls `show` with the text while it arrives.
    ///
    /// # Errors
    /// When the question can't be sent, or no answer came in time.
    pub async fn ask(&mut self, asking: &Asking, mut show: impl FnMut(Shown)) -> color_eyre::Result<Answered> {
        let request = RequestId::from_uuid(Uuid::now_v7());
        let traceparent = new_traceparent();
        let trace_id = traceparent.split('-').nth(1).unwrap_or_default().to_owned();
        let started = Instant::now();
        self.publisher.publish(message(asking, &request, traceparent)).await?;

        let mut stream = TokenStream::default();
        let mut first_text = None;
        let mut tell = |shown: Vec<Shown>| {
            if !shown.is_empty() {
                first_text.get_or_insert_with(|| started.elapsed());
            }
            shown.into_iter().for_each(&mut show);
        };
        let limit = asking.deadline.saturating_add(AFTER_DEADLINE);
        let mut patience = std::pin::pin!(tokio::time::sleep(limit));
        let answer = loop {
            tokio::select! {
                token = self.tokens.next() => {
                    let token = token?.record;
                    if token.request_id == request && token.tenant == asking.tenant {
                        tell(stream.push(&token));
                    }
                }
                answer = self.answers.next() => {
                    let answer = answer?.record;
                    if answer.request_id == request && answer.tenant == asking.tenant {
                        break answer;
                    }
                }
                () = &mut patience => bail!(
                    "no answer within {} (request {request}); `weir status` shows whether generate runs, `weir lag` \
                     where the question waits",
                    human(limit)
                ),
            }
        };
        tell(stream.finish(&answer));
        let total = started.elapsed();
        Ok(Answered { answer, first_text: first_text.unwrap_or(total), total, trace_id })
    }
}

fn message(asking: &Asking, request: &RequestId, traceparent: String) -> Output {
    let now = now_millis();
    let deadline = now.saturating_add(i64::try_from(asking.deadline.as_millis()).unwrap_or(i64::MAX));
    let question = Question {
        request_id: request.clone(),
        tenant: asking.tenant.clone(),
        question: asking.question.clone(),
        deadline: Some(deadline),
        idempotency_key: None,
        feature: Some("cli".into()),
        filter: asking.filter.clone(),
        prompt_version: asking.prompt_version.clone(),
        top_k: asking.top_k,
        agent: asking.agent,
        created_at: now,
    };
    Output::new(Topic::QUESTIONS, asking.tenant.as_str(), question)
        .with_header(header::TENANT, asking.tenant.as_str())
        .with_header(header::DEADLINE, deadline.to_string())
        .with_header(header::TRACEPARENT, traceparent)
}

/// Runs the subcommand.
///
/// # Errors
/// When no answer came.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let question = args.question.join(" ");
    if question.trim().is_empty() {
        bail!("the question is empty");
    }
    let deadline = Duration::try_from_secs_f64(args.deadline)
        .map_err(|_| eyre!("--deadline {}: give seconds, for example 30", args.deadline))?;
    let asking = Asking {
        tenant: context.tenant.clone(),
        question,
        filter: unique("--filter", &args.filter)?,
        deadline,
        top_k: args.top_k,
        agent: args.agent,
        prompt_version: args.prompt,
    };
    let streams = !args.no_stream && !context.json && std::io::stdout().is_terminal();
    let mut activity = Some(Activity::start("thinking", context.json || !std::io::stderr().is_terminal()));
    let mut asker = Asker::connect(context, &tail::registry(context)?).await?;
    let answered = asker
        .ask(&asking, |shown| {
            if streams {
                drop(activity.take());
                show(&shown);
            }
        })
        .await;
    drop(activity);
    let answered = answered?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&answered))?);
    } else {
        if streams {
            println!();
        } else if !answered.answer.text.is_empty() {
            println!("{}", answered.answer.text);
        }
        print_footing(&answered);
    }
    Ok(match answered.answer.status {
        AnswerStatus::Complete | AnswerStatus::Extractive | AnswerStatus::NoContext => ExitCode::SUCCESS,
        AnswerStatus::Expired
        | AnswerStatus::Incomplete
        | AnswerStatus::Failed
        | AnswerStatus::Rejected
        | AnswerStatus::Conflict => ExitCode::FAILURE,
    })
}

fn show(shown: &Shown) {
    let ink = Ink::for_stdout();
    match shown {
        Shown::Text(text) => print!("{text}"),
        Shown::StartOver => println!("\n{}\n", ink.dim("(the answer starts over)")),
    }
    // A closed pipe ends the program at the next println; nothing to do about it here.
    let _ = std::io::stdout().flush();
}

/// The answer for scripts.
#[must_use]
pub fn as_json(answered: &Answered) -> serde_json::Value {
    json!({
        "answer": answered.answer,
        "trace_id": answered.trace_id,
        "client": {
            "first_text_ms": millis(answered.first_text),
            "total_ms": millis(answered.total),
        },
    })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// What the answer rests on: citations, where it comes from, how long it took.
pub fn print_footing(answered: &Answered) {
    let ink = Ink::for_stdout();
    let answer = &answered.answer;
    if let Some(note) = note(answer) {
        println!("{}", ink.yellow(note));
    }
    if !answer.citations.is_empty() {
        println!("\n{}", ink.bold("Sources"));
    }
    for citation in &answer.citations {
        print_citation(citation, ink);
    }
    println!("\n{}", ink.dim(origin(answered)));
}

fn print_citation(citation: &Citation, ink: Ink) {
    let title = citation.title.as_deref().filter(|title| *title != citation.document.as_str());
    let title = title.map(|title| format!(" \"{}\"", shorten(title, 100))).unwrap_or_default();
    let place = format!("bytes {}..{}, revision {}", citation.start, citation.end, citation.revision);
    println!("[{}] {}{title} {}", citation.marker, ink.bold(&citation.document), ink.dim(place));
    println!("    {}", shorten(&citation.passage, PASSAGE_SHOWN));
}

fn note(answer: &Answer) -> Option<String> {
    let reason = answer.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    Some(match answer.status {
        AnswerStatus::Complete => return None,
        AnswerStatus::Extractive => format!("These are sentences of the documents; no model wrote the answer{reason}"),
        AnswerStatus::NoContext => format!("Nothing relevant was found in the documents{reason}"),
        AnswerStatus::Expired => format!("There is no answer in time{reason}"),
        AnswerStatus::Incomplete => format!("The answer broke off{reason}"),
        AnswerStatus::Failed => format!("The question could not be answered{reason}"),
        AnswerStatus::Rejected => format!("The question was turned away{reason}"),
        AnswerStatus::Conflict => format!("The idempotency key belongs to another question{reason}"),
    })
}

fn origin(answered: &Answered) -> String {
    let answer = &answered.answer;
    let mut parts = vec![answer.provenance.name().to_owned()];
    if !answer.model.is_empty() {
        parts.push(format!("{} by {}", answer.model, answer.provider));
        let about = if answer.usage_estimated { "about " } else { "" };
        parts.push(format!("{about}{} + {} tokens", answer.input_tokens, answer.output_tokens));
        parts.push(format!("${:.4}", answer.cost_usd));
    }
    parts.extend(answer.timings.iter().map(|(step, millis)| format!("{step} {millis} ms")));
    parts.push(format!("seen here after {}", human(answered.total)));
    parts.push(format!("trace {}", answered.trace_id));
    parts.join(" · ")
}
