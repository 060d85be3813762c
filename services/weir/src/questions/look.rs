//! `weir questions list` and `show`: reads what there is, and prints it.

use std::process::ExitCode;

use serde::Serialize;
use weir_contracts::{RequestId, TenantId};
use weir_runner::{Registry, read_state};

use super::memory::{Memory, Standing, Step, Waiting, is_shown};
use super::outcome::{Answered, Dead, answers, dead_letters};
use super::tell;
use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::{Ink, now_millis, table};
use crate::tail;

/// The stage whose state the journals are.
const STAGE: &str = "answer";

/// Arguments of `weir questions list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only those that are not over: without those that failed.
    #[arg(long)]
    open: bool,
    /// At most so many, the oldest.
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// Arguments of `weir questions show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Id of the request, as the producer gave it. Ids are unique per tenant: --tenant says which.
    request: RequestId,
}

/// What became of a question.
#[derive(Debug, Serialize)]
struct Findings {
    request_id: RequestId,
    found: bool,
    journals: Vec<Standing>,
    waiting: Vec<Waiting>,
    answers: Vec<Answered>,
    dead_letters: Vec<Dead>,
}

/// Lists.
///
/// # Errors
/// When Kafka can't be read.
pub async fn list(list: &List, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = tail::registry(context)?;
    let now = now_millis();
    let mut standings = memory(context, &registry, now).await?.only(|_, tenant| is_meant(tenant, context)).standings;
    standings.retain(|of| !list.open || of.step != Step::Failed);
    let shown = standings.get(..list.limit.min(standings.len())).unwrap_or_default();
    if context.json {
        println!("{}", serde_json::to_string_pretty(shown)?);
        return Ok(ExitCode::SUCCESS);
    }
    if shown.is_empty() {
        println!("No question is under way.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["request", "tenant", "step", "age", "attempts", "waiters", "owners", "last sign of life"]);
    for of in shown {
        rows.add_row([
            of.request_id.to_string(),
            of.tenant.to_string(),
            tell::step_name(of.step).to_owned(),
            tell::age(now, of.since()),
            of.attempts().to_string(),
            of.waiters().to_string(),
            of.owners.to_string(),
            of.alive_at.map(|at| format!("{} ago", tell::age(now, at))).unwrap_or_default(),
        ]);
    }
    println!("{rows}");
    if shown.len() < standings.len() {
        println!("{} more; see them with --limit.", standings.len() - shown.len());
    }
    println!("\n`weir questions show REQUEST` tells all of one.");
    Ok(ExitCode::SUCCESS)
}

/// Shows one.
///
/// # Errors
/// When Kafka can't be read.
pub async fn show(show: &Show, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = tail::registry(context)?;
    let now = now_millis();
    let findings = find(&show.request, context, &registry, now).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print(&findings, now);
    }
    Ok(if findings.found { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

async fn find(request: &RequestId, context: &Context, registry: &Registry, now: i64) -> color_eyre::Result<Findings> {
    // The state first: an answer that is given meanwhile is seen then, not missed in both.
    let memory = memory(context, registry, now).await?;
    let memory = memory.only(|id, tenant| id == request && is_meant(tenant, context));
    let (mut answers, mut dead_letters) =
        tokio::try_join!(answers(context, registry, request), dead_letters(context, registry, request))?;
    answers.retain(|answer| is_meant(&answer.tenant, context));
    dead_letters.retain(|dead| is_meant(&dead.tenant, context));
    let Memory { standings: journals, waiting } = memory;
    let found = !journals.is_empty() || !waiting.is_empty() || !answers.is_empty() || !dead_letters.is_empty();
    Ok(Findings { request_id: request.clone(), found, journals, waiting, answers, dead_letters })
}

async fn memory(context: &Context, registry: &Registry, now: i64) -> color_eyre::Result<Memory> {
    let state = tail::settled(|| read_state(&context.kafka, registry.clone(), STAGE, is_shown)).await?;
    Ok(Memory::of(&state, now))
}

fn is_meant(tenant: &TenantId, context: &Context) -> bool {
    context.only_tenant.as_ref().is_none_or(|only| only == tenant)
}

fn print(findings: &Findings, now: i64) {
    let ink = Ink::for_stdout();
    let Findings { request_id, found, journals, waiting, answers, dead_letters } = findings;
    if !found {
        println!("{}", tell::unknown(request_id));
        return;
    }
    println!("{} {request_id}", ink.bold("question"));
    let told = journals.iter().map(|of| (&of.tenant, Some(of.lane), tell::standing(of, now)));
    let told = told.chain(waiting.iter().map(|of| (&of.tenant, Some(of.lane), tell::waiting(of, now))));
    let told = told.chain(answers.iter().map(|of| (&of.tenant, None, tell::answered(of, now))));
    let told = told.chain(dead_letters.iter().map(|of| (&of.tenant, None, tell::dead(of, now))));
    for (tenant, lane, lines) in told {
        let lane = lane.map(|lane| format!(", lane {lane}")).unwrap_or_default();
        println!("{}", ink.dim(format!("tenant {tenant}{lane}")));
        for line in lines {
            println!("  {line}");
        }
    }
}
