//! `weir status`: what became of a document, or how everything is.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use weir_contracts::{DocumentId, DocumentState, DocumentStatus, OutcomeKind, RequestOutcome, Topic};
use weir_runner::Registry;
use weir_stack::{Phase, StackState};

use crate::context::Context;
use crate::fleet::{FleetState, InstanceState};
use crate::progress::{Ink, age_of, human, shorten, table};
use crate::tail;

/// Arguments of `weir status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id of a document; without one: the services, and the documents by tenant and state.
    document: Option<DocumentId>,
}

/// Runs the subcommand. The exit code says whether the document is known, or everything is ready.
///
/// # Errors
/// When Kafka can't be read.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    match args.document {
        Some(document) => of_document(&document, context).await,
        None => of_everything(context).await,
    }
}

async fn of_document(document: &DocumentId, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = tail::registry(context)?;
    let (states, outcomes) = tokio::try_join!(
        tail::read_all::<DocumentStatus>(context, &registry, Topic::DOCUMENT_STATUS),
        tail::read_all::<RequestOutcome>(context, &registry, Topic::REQUEST_OUTCOMES),
    )?;
    let state = states
        .into_iter()
        .map(|delivery| delivery.record)
        .filter(|status| status.tenant == context.tenant && status.document == *document)
        .max_by_key(|status| status.revision);
    let last_request = outcomes
        .into_iter()
        .map(|delivery| delivery.record)
        .filter(|outcome| outcome.tenant == context.tenant && outcome.document == *document)
        .max_by_key(|outcome| outcome.at);
    let known = state.is_some() || last_request.is_some();
    if context.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "status": state, "last_request": last_request }))?);
    } else {
        print_document(document, state.as_ref(), last_request.as_ref(), context);
    }
    Ok(if known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_document(
    document: &DocumentId,
    state: Option<&DocumentStatus>,
    last_request: Option<&RequestOutcome>,
    context: &Context,
) {
    let ink = Ink::for_stdout();
    let tenant = &context.tenant;
    let mut rows = table(&["document", "tenant", "state", "revision", "chunks", "when", "reason"]);
    match state {
        Some(status) => {
            rows.add_row([
                document.to_string(),
                tenant.to_string(),
                state_name(status.state).to_owned(),
                status.revision.to_string(),
                status.chunks.to_string(),
                format!("{} ago", human(age_of(status.at))),
                status.reason.clone().unwrap_or_default(),
            ]);
            println!("{rows}");
        }
        None => println!("{} is not searchable for tenant {tenant}.", ink.bold(document)),
    }
    match last_request {
        Some(outcome) => {
            let reason = outcome.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let text = format!(
                "Last request {} was {} {} ago{reason}",
                outcome.request_id,
                outcome_name(outcome.outcome),
                human(age_of(outcome.at))
            );
            println!("{text}");
            let newer = outcome.revision.is_some_and(|made| state.is_none_or(|state| state.revision < made));
            if outcome.outcome == OutcomeKind::Accepted && newer {
                println!("{}", ink.yellow("It is still on its way; `weir lag` shows where."));
            }
        }
        None if state.is_none() => {
            println!("No request for it was decided yet. Ids are as `weir ingest` made them; is the tenant right?");
        }
        None => {}
    }
}

/// Documents of a tenant in each state.
#[derive(Debug, Default, Serialize)]
struct Counts {
    indexed: u64,
    deleted: u64,
    failed: u64,
    chunks: i64,
}

async fn of_everything(context: &Context) -> color_eyre::Result<ExitCode> {
    let stack = StackState::read(&context.data).filter(|state| state.supervisor.alive());
    let fleet = FleetState::running(&context.data);
    let documents = count_documents(context).await;
    let ready = stack.as_ref().is_none_or(|stack| stack.ready) && fleet.as_ref().is_some_and(FleetState::ready);
    if context.json {
        let (documents, problem) = match &documents {
            Ok(documents) => (Some(documents), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let all = json!({
            "ready": ready, "stack": stack, "services": fleet, "documents": documents, "problem": problem,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print_processes(stack.as_ref(), fleet.as_ref()).await;
        match &documents {
            Ok(documents) => print_counts(documents),
            Err(error) => println!("\nDocuments can't be counted: {error:#}"),
        }
    }
    Ok(if ready && documents.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn count_documents(context: &Context) -> color_eyre::Result<BTreeMap<String, Counts>> {
    let registry: Registry = tail::registry(context)?;
    let mut latest = BTreeMap::new();
    for delivery in tail::read_all::<DocumentStatus>(context, &registry, Topic::DOCUMENT_STATUS).await? {
        let status = delivery.record;
        let key = (status.tenant.clone(), status.document.clone());
        let newer = latest.get(&key).is_none_or(|known: &DocumentStatus| known.revision <= status.revision);
        if newer {
            latest.insert(key, status);
        }
    }
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    for ((tenant, _), status) in latest {
        let of_tenant = counts.entry(tenant.to_string()).or_default();
        match status.state {
            DocumentState::Indexed => of_tenant.indexed += 1,
            DocumentState::Deleted => of_tenant.deleted += 1,
            DocumentState::Failed => of_tenant.failed += 1,
        }
        of_tenant.chunks += i64::from(status.chunks);
    }
    Ok(counts)
}

async fn print_processes(stack: Option<&StackState>, fleet: Option<&FleetState>) {
    if stack.is_none() && fleet.is_none() {
        println!("Nothing runs here; `weir up` starts everything.");
        return;
    }
    let mut rows = table(&["what", "state", "where", "restarts", "note"]);
    for service in stack.iter().flat_map(|stack| &stack.services) {
        let row = [
            service.name.clone(),
            phase(service.phase),
            service.address.clone(),
            service.restarts.to_string(),
            String::new(),
        ];
        rows.add_row(row);
    }
    for instance in fleet.iter().flat_map(|fleet| &fleet.instances) {
        let row = [
            instance.name.clone(),
            instance_phase(instance.phase),
            instance.url.clone(),
            instance.restarts.to_string(),
            shorten(&note(instance).await, 100),
        ];
        rows.add_row(row);
    }
    println!("{rows}");
    if fleet.is_none() {
        println!("The services don't run; `weir up` starts them.");
    }
}

/// What a service says when it is not ready, or how it ended last.
async fn note(instance: &InstanceState) -> String {
    if instance.phase == Phase::Ready {
        return instance.last_exit.as_ref().map(|exit| format!("ended before: {exit}")).unwrap_or_default();
    }
    let asked = async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy().build().ok()?;
        client.get(format!("{}/readyz", instance.url)).send().await.ok()?.text().await.ok()
    };
    match asked.await {
        Some(text) => text,
        None => format!("{}; log: {}", instance.last_exit.as_deref().unwrap_or("no answer"), instance.log.display()),
    }
}

fn print_counts(documents: &BTreeMap<String, Counts>) {
    if documents.is_empty() {
        println!("\nNo documents yet; `weir ingest PATH` sends some.");
        return;
    }
    let mut rows = table(&["tenant", "indexed", "failed", "deleted", "chunks"]);
    for (tenant, counts) in documents {
        rows.add_row([
            tenant.clone(),
            counts.indexed.to_string(),
            counts.failed.to_string(),
            counts.deleted.to_string(),
            counts.chunks.to_string(),
        ]);
    }
    println!("\n{rows}");
}

/// Also a service that was ready and lost what it needs is only "starting" to its supervisor.
fn instance_phase(of: Phase) -> String {
    match of {
        Phase::Starting => Ink::for_stdout().yellow("not ready"),
        other => phase(other),
    }
}

fn phase(phase: Phase) -> String {
    let ink = Ink::for_stdout();
    match phase {
        Phase::Waiting => ink.dim("waiting"),
        Phase::Starting => ink.yellow("starting"),
        Phase::Ready => ink.green("ready"),
        Phase::Restarting => ink.red("restarting"),
        Phase::Failed => ink.red("failed"),
        Phase::Stopped => ink.dim("stopped"),
    }
}

fn state_name(state: DocumentState) -> &'static str {
    match state {
        DocumentState::Indexed => "indexed",
        DocumentState::Deleted => "deleted",
        DocumentState::Failed => "failed",
    }
}

fn outcome_name(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Accepted => "accepted",
        OutcomeKind::Duplicate => "a duplicate",
        OutcomeKind::Superseded => "superseded",
        OutcomeKind::Conflict => "in conflict",
        OutcomeKind::Rejected => "rejected",
    }
}
