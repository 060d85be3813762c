//! `weir dlq replay`, `discard` and `park`; what import does with its plans, too.

use std::io::{BufRead, IsTerminal, Write};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use color_eyre::eyre::{WrapErr, bail};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weir_contracts::{again_topic, dead_letter_topic};
use weir_runner::{Action, DeadLetters, Decision, Filter, Pace, Plan, Report, Step};

use super::choose::Choice;
use super::edit;
use crate::context::Context;
use crate::dead_letters::Summary;
use crate::exit::FOUND;
use crate::jobs::{self, ReplaySpec, Submission};
use crate::progress::{Progress, shorten, table};
use crate::tail;

/// Arguments of `weir dlq replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir dlq replay 4a6f21c09b3d
  weir dlq replay --stage embed --class timeout --older-than 15m --rate 20
  weir dlq replay --stage extract --text 'password' --dry-run
  weir dlq replay --parked --stage extract --document reports/q1.pdf
  weir dlq replay --all --job --key after-the-outage
  weir dlq replay --stage answer --class unanswered --restart
  EDITOR=nano weir dlq replay 4a6f21c09b3d --edit")]
pub struct Replay {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    how: How,
    /// Parked ones too, however often they came back.
    #[arg(long)]
    parked: bool,
    /// What was replayed this often and came back is parked instead.
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    max_replays: u32,
    /// From the beginning. Without it a question goes on at the step that failed, and no call of a model that ended is made,
    /// or paid for, again.
    #[arg(long)]
    restart: bool,
    /// Open the record of one dead letter in $EDITOR, as JSON, and replay what was made of it. It must fit its schema.
    #[arg(long, conflicts_with_all = ["all", "parked", "max_replays", "restart", "job"])]
    edit: bool,
    #[command(flatten)]
    submission: Submission,
}

/// Arguments of `weir dlq discard`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir dlq discard 4a6f21c09b3d
  weir dlq discard --stage extract --class unsupported --older-than 30d --dry-run
  weir dlq discard --stage extract --class unsupported --older-than 30d --yes")]
pub struct Discard {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    how: How,
    /// Only those that are parked.
    #[arg(long)]
    parked: bool,
    /// Don't ask, however many there are.
    #[arg(short, long)]
    yes: bool,
}

/// Arguments of `weir dlq park`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir dlq park 4a6f21c09b3d --reason 'waits for the customer'
  weir dlq park --stage extract --class encrypted --reason 'no passwords yet'")]
pub struct Park {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    how: How,
    /// Why, for whoever looks next.
    #[arg(long, default_value = "by hand")]
    reason: String,
}

/// Flags of everything that changes dead letters.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Every dead letter, when nothing else is said.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub carrying: Carrying,
}

/// Flags of how a plan is carried out.
#[derive(Debug, Clone, clap::Args)]
pub struct Carrying {
    /// Show exactly what would happen, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// At most so many dead letters a second.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// At most so many dead letters in a transaction.
    #[arg(long, value_name = "N", default_value_t = Pace::default().batch, hide = true)]
    batch: usize,
}

/// Replays.
///
/// # Errors
/// When nothing was chosen, or it can't be done.
pub async fn replay(args: Replay, context: &Context) -> color_eyre::Result<ExitCode> {
    let Replay { choice, how, parked, max_replays, restart, edit, submission } = args;
    if edit {
        let plan = edit::edited(&choice, context).await?;
        return carry_out(vec![plan], &how.carrying, "replayed", context).await;
    }
    choice.demand(how.all, context)?;
    let action = Action::Replay { max_replays, parked, restart };
    if submission.job && !how.carrying.dry_run {
        // Ids that name none, or several, are refused before anything is submitted.
        plan(&choice, choice.filter(context), &action, context).await?;
        let (stages, filter, rate) = (choice.stages()?, choice.filter(context), how.carrying.rate);
        let tenant = filter.tenant.clone();
        let spec = ReplaySpec { stages, filter, max_replays, parked, restart, rate };
        return submission.submit(jobs::Replay::NAME, tenant, &spec, false, context).await;
    }
    let plans = plan(&choice, choice.filter(context), &action, context).await?;
    carry_out(plans, &how.carrying, "replayed", context).await
}

/// Discards.
///
/// # Errors
/// When nothing was chosen, nobody can be asked, or it can't be done.
pub async fn discard(args: Discard, context: &Context) -> color_eyre::Result<ExitCode> {
    let Discard { choice, how, parked, yes } = args;
    choice.demand(how.all || parked, context)?;
    let filter = Filter { parked: parked.then_some(true), ..choice.filter(context) };
    let plans = plan(&choice, filter, &Action::Discard, context).await?;
    let count: usize = plans.iter().map(Plan::work).sum();
    if !how.carrying.dry_run && !yes && count > 1 && !confirmed(count)? {
        println!("Nothing was discarded.");
        return Ok(ExitCode::from(FOUND));
    }
    carry_out(plans, &how.carrying, "discarded", context).await
}

/// Parks.
///
/// # Errors
/// When nothing was chosen, or it can't be done.
pub async fn park(args: Park, context: &Context) -> color_eyre::Result<ExitCode> {
    let Park { choice, how, reason } = args;
    choice.demand(how.all, context)?;
    let plans = plan(&choice, choice.filter(context), &Action::Park { reason }, context).await?;
    carry_out(plans, &how.carrying, "parked", context).await
}

async fn plan(choice: &Choice, filter: Filter, action: &Action, context: &Context) -> color_eyre::Result<Vec<Plan>> {
    let stages = choice.stages()?;
    let filter = &filter;
    let plans = stages.iter().map(|stage| async move {
        let all = DeadLetters::of(&context.kafka, stage);
        tail::settled(|| all.plan(filter.clone(), action)).await
    });
    let plans = futures::future::try_join_all(plans).await?;
    choice.each_id_names_one(plans.iter().flat_map(Plan::steps).map(|step| &step.letter))?;
    Ok(plans)
}

fn confirmed(count: usize) -> color_eyre::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "{count} dead letters would be discarded for good, and there is nobody to ask: look with --dry-run, then \
             add --yes"
        );
    }
    eprint!("Discard {count} dead letters for good? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Carries out plans, or says what they are.
///
/// # Errors
/// When it can't be done.
pub async fn carry_out(
    plans: Vec<Plan>,
    carrying: &Carrying,
    what: &str,
    context: &Context,
) -> color_eyre::Result<ExitCode> {
    if carrying.dry_run {
        return foretell(&plans, context);
    }
    let pace = Pace { batch: carrying.batch, rate: carrying.rate };
    let cancel = CancellationToken::new();
    let interrupted = cancel.clone();
    let watch = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let bar = Arc::new(Mutex::new(Progress::new(plans.iter().map(Plan::work).sum(), what, context.json)));
    let mut total = Report::default();
    let mut failed = None;
    for plan in plans {
        if cancel.is_cancelled() {
            total.cancelled = true;
            break;
        }
        let (shown, before, stage) = (Arc::clone(&bar), total, plan.stage().to_owned());
        let progress = move |report: Report| {
            let sum = before + report;
            let mut bar = shown.lock().unwrap_or_else(PoisonError::into_inner);
            bar.set(sum.done() + sum.gone, stage.clone());
        };
        match plan.carry_out(pace, progress, cancel.clone()).await {
            Ok(report) => total += report,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    watch.abort();
    if let Some(bar) = Arc::into_inner(bar) {
        bar.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    }
    if let Some(error) = failed {
        return Err(error).wrap_err_with(|| format!("not everything was {what} (other stages: {total})"));
    }
    tell(total, context)
}

fn tell(total: Report, context: &Context) -> color_eyre::Result<ExitCode> {
    if context.json {
        println!("{}", json!({ "dry_run": false, "report": total }));
    } else if total == Report::default() {
        println!("No dead letters are meant.");
    } else {
        println!("{total}");
    }
    if !total.cancelled {
        return Ok(ExitCode::SUCCESS);
    }
    if !context.json {
        println!("Stopped; the same again goes on from here.");
    }
    Ok(ExitCode::from(FOUND))
}

/// What would happen.
fn foretell(plans: &[Plan], context: &Context) -> color_eyre::Result<ExitCode> {
    let steps = || plans.iter().flat_map(Plan::steps);
    if context.json {
        let steps: Result<Vec<_>, _> = steps().map(step_json).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "dry_run": true, "steps": steps? }))?);
        return Ok(ExitCode::SUCCESS);
    }
    if steps().next().is_none() {
        println!("No dead letters are meant.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["id", "stage", "class", "tenant", "would be", "message"]);
    for step in steps() {
        let summary = Summary::of(&step.letter);
        rows.add_row([
            summary.short_id(),
            summary.stage.clone(),
            summary.class.clone(),
            summary.tenant.clone().unwrap_or_default(),
            fate(step, context),
            shorten(&summary.message, 60),
        ]);
    }
    println!("{rows}");
    let work: usize = plans.iter().map(Plan::work).sum();
    println!("\nNothing was done: a dry run. Something would be done with {work} of {}.", steps().count());
    Ok(ExitCode::SUCCESS)
}

fn fate(step: &Step, context: &Context) -> String {
    let stage = &step.letter.stage;
    let full = |name: String| context.kafka.topics().full_name(&name);
    match &step.decision {
        Decision::Replay { lane, restart } => {
            let anew = if *restart { ", from the beginning" } else { "" };
            format!("replayed into {}, lane {lane}{anew}", full(again_topic(stage)))
        }
        Decision::Discard => format!("removed from {}", full(dead_letter_topic(stage))),
        Decision::Park { reason } => format!("parked: {reason}"),
        Decision::Replace => "replaced by what is imported".to_owned(),
        Decision::Restore => "imported".to_owned(),
        Decision::Leave { reason } => format!("left: {reason}"),
    }
}

fn step_json(step: &Step) -> serde_json::Result<Value> {
    let mut shown = serde_json::to_value(Summary::of(&step.letter))?;
    let decision = serde_json::to_value(&step.decision)?;
    if let (Value::Object(shown), Value::Object(decision)) = (&mut shown, decision) {
        shown.extend(decision);
    }
    Ok(shown)
}
