//! `weir lanes`: lanes that stand still until somebody resumes them.

use std::process::ExitCode;

use color_eyre::eyre::bail;
use serde::Serialize;
use serde_json::json;
use weir_contracts::{Lane, LaneStop, StopReason, Topic, lane_key};
use weir_runner::{Publisher, Registry, Start, TopicReader};
use weir_stage::Output;

use crate::context::Context;
use crate::progress::{Ink, age_of, human, shorten, table};
use crate::tail::{registry, settled};

const EXAMPLES: &str = "\
Examples:
  weir lanes list                            which lanes are stopped, since when, and why
  weir lanes resume extract --lane 7         let one go on
  weir lanes resume extract --all --dry-run  what would be resumed

A lane stops when its stage rejects nearly everything (runner.flood_*), so that the topic is not emptied into the dead
letters. It stays stopped over restarts, with its records where they are. When the cause is fixed it goes on with the
next record, without a restart; what was rejected before waits in the dead letters (`weir dlq replay`).";

/// Arguments of `weir lanes`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the lanes that are stopped.
    List,
    /// Let lanes go on with the record they stopped at.
    Resume(Resume),
}

/// Arguments of `weir lanes resume`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir lanes resume extract --lane 7
  weir lanes resume embed --lane 0 --lane 3
  weir lanes resume index --all")]
struct Resume {
    /// Stage, for example extract.
    stage: String,
    /// Lane to resume; may be repeated.
    #[arg(long = "lane", value_name = "N", required_unless_present = "all")]
    lanes: Vec<i32>,
    /// Every lane of the stage that is stopped.
    #[arg(long, conflicts_with = "lanes")]
    all: bool,
    /// Show what would be resumed, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What is said of a stopped lane.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    stop: &'a LaneStop,
    next: String,
}

impl<'a> Summary<'a> {
    fn of(stop: &'a LaneStop) -> Self {
        let LaneStop { stage, lane, class, .. } = stop;
        let class = class.as_ref().map(|class| format!(" --class {class}")).unwrap_or_default();
        let next = format!(
            "look: weir dlq list --stage {stage}{class}; fix the cause; then: weir lanes resume {stage} --lane {lane}"
        );
        Self { stop, next }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read or does not take what is written, or nothing is stopped that was named.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = registry(context)?;
    let stops = stopped(context, &registry).await?;
    match args.command {
        Command::List => list(&stops, context),
        Command::Resume(args) => resume(&args, &stops, registry, context).await,
    }
}

async fn stopped(context: &Context, registry: &Registry) -> color_eyre::Result<Vec<LaneStop>> {
    let table = settled(|| async {
        let opened = TopicReader::open(&context.kafka, registry.clone(), Topic::LANES, Start::Beginning).await;
        opened?.read_table().await
    });
    let mut stops: Vec<LaneStop> = table.await?.into_values().collect();
    stops.sort_by(|a, b| (&a.stage, a.lane).cmp(&(&b.stage, b.lane)));
    Ok(stops)
}

fn list(stops: &[LaneStop], context: &Context) -> color_eyre::Result<ExitCode> {
    let summaries: Vec<_> = stops.iter().map(Summary::of).collect();
    if context.json {
        println!("{}", serde_json::to_string_pretty(&summaries)?);
        return Ok(ExitCode::SUCCESS);
    }
    if stops.is_empty() {
        println!("{}", Ink::for_stdout().green("No lane is stopped."));
        return Ok(ExitCode::SUCCESS);
    }
    print(stops);
    println!();
    for Summary { stop, next } in summaries {
        println!("{} lane {}: {next}", stop.stage, stop.lane);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(stops: &[LaneStop]) {
    let mut rows = table(&["stage", "lane", "since", "why", "last failure", "stands at"]);
    for stop in stops {
        rows.add_row([
            stop.stage.clone(),
            stop.lane.to_string(),
            format!("{} ago", human(age_of(stop.since))),
            format!("{}: {}", reason(stop.reason), shorten(&stop.message, 60)),
            stop.class.clone().unwrap_or_default(),
            stop.offset.to_string(),
        ]);
    }
    println!("{rows}");
}

fn reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Flood => "flood of rejections",
    }
}

async fn resume(
    args: &Resume,
    stops: &[LaneStop],
    registry: Registry,
    context: &Context,
) -> color_eyre::Result<ExitCode> {
    let chosen = choose(args, stops)?;
    if !args.dry_run {
        let publisher = Publisher::new(&context.kafka, registry)?;
        for stop in &chosen {
            let key = lane_key(&stop.stage, stop.lane);
            publisher.publish(Output::tombstone(Topic::LANES, key)).await?;
        }
    }
    if context.json {
        let lanes: Vec<_> = chosen.iter().map(|stop| stop.lane).collect();
        println!("{}", json!({ "dry_run": args.dry_run, "stage": args.stage, "lanes": lanes }));
        return Ok(ExitCode::SUCCESS);
    }
    let lanes: Vec<_> = chosen.iter().map(|stop| stop.lane.to_string()).collect();
    let lanes = lanes.join(", ");
    match args.dry_run {
        true => println!("Would resume {}, lane {lanes}. Nothing was done: a dry run.", args.stage),
        false => println!("Resumed {}, lane {lanes}: it goes on where it stopped (`weir lag --lanes`).", args.stage),
    }
    Ok(ExitCode::SUCCESS)
}

/// The stops that are meant.
fn choose<'a>(args: &Resume, stops: &'a [LaneStop]) -> color_eyre::Result<Vec<&'a LaneStop>> {
    let of_stage: Vec<_> = stops.iter().filter(|stop| stop.stage == args.stage).collect();
    let stopped = |stops: &mut dyn Iterator<Item = &LaneStop>| -> String {
        let names: Vec<_> = stops.map(|stop| format!("{}/{}", stop.stage, stop.lane)).collect();
        if names.is_empty() {
            "no lane of any stage is stopped".into()
        } else {
            format!("stopped: {}", names.join(", "))
        }
    };
    if of_stage.is_empty() {
        bail!("no lane of {} is stopped ({})", args.stage, stopped(&mut stops.iter()));
    }
    if args.all {
        return Ok(of_stage);
    }
    let mut chosen: Vec<&LaneStop> = Vec::with_capacity(args.lanes.len());
    for lane in &args.lanes {
        let Some(stop) = of_stage.iter().find(|stop| stop.lane == Lane(*lane)) else {
            bail!("lane {lane} of {} is not stopped ({})", args.stage, stopped(&mut of_stage.iter().copied()));
        };
        if !chosen.contains(stop) {
            chosen.push(stop);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stop(stage: &str, lane: i32) -> LaneStop {
        LaneStop {
            stage: stage.into(),
            lane: Lane(lane),
            reason: StopReason::Flood,
            message: "100 records were rejected one after another".into(),
            class: Some("unsupported".into()),
            offset: 7,
            since: 1,
        }
    }

    fn resume(lanes: &[i32], all: bool) -> Resume {
        Resume { stage: "extract".into(), lanes: lanes.into(), all, dry_run: true }
    }

    #[test]
    fn what_is_not_stopped_is_not_resumed_and_what_is_stopped_is_named() {
        let stops = [stop("extract", 1), stop("extract", 4), stop("index", 4)];
        let lanes =
            |args: &Resume| -> Vec<i32> { choose(args, &stops).unwrap().into_iter().map(|stop| stop.lane.0).collect() };
        assert_eq!(lanes(&resume(&[], true)), [1, 4]);
        assert_eq!(lanes(&resume(&[4, 4], false)), [4]);
        let error = choose(&resume(&[2], false), &stops).unwrap_err().to_string();
        assert!(error.contains("extract/1, extract/4") && !error.contains("index"), "{error}");
        let error = choose(&resume(&[2], false), &stops[2..]).unwrap_err().to_string();
        assert!(error.contains("no lane of extract") && error.contains("index/4"), "{error}");
        assert!(choose(&resume(&[], true), &[]).unwrap_err().to_string().contains("no lane of any stage"));
    }

    #[test]
    fn what_to_do_next_is_a_command() {
        let next = Summary::of(&stop("extract", 7)).next;
        assert!(next.contains("weir dlq list --stage extract --class unsupported"), "{next}");
        assert!(next.ends_with("weir lanes resume extract --lane 7"), "{next}");
    }
}
