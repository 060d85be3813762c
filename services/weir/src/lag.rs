//! `weir lag`: how far each stage is behind, in records and seconds, by lane.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use color_eyre::eyre::WrapErr;
use serde::Serialize;
use weir_runner::{KafkaConfig, LaneLag, group_lag};

use crate::context::Context;
use crate::pipeline;
use crate::progress::{Ink, human, table};
use crate::tail::settled;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of `weir lag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show it again and again until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
    /// A row for every lane, also for those that are not behind.
    #[arg(long)]
    lanes: bool,
}

/// How far a stage is behind.
#[derive(Debug, Clone, Serialize)]
pub struct StageLag {
    /// Its name.
    pub stage: &'static str,
    /// Its consumer group.
    pub group: String,
    /// What it reads.
    pub topic: String,
    /// Records not processed yet, over all lanes.
    pub records: i64,
    /// Age of the oldest record not processed yet, seconds.
    pub seconds: f64,
    /// Each lane.
    pub lanes: Vec<LaneLag>,
}

impl StageLag {
    /// Lanes with records that wait.
    fn behind(&self) -> impl Iterator<Item = &LaneLag> {
        self.lanes.iter().filter(|lane| waits(lane))
    }

    /// Whether records wait, not only markers of transactions.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind().next().is_some()
    }
}

/// Between a position and the end of the log there may be only the marker of a transaction, which no consumer gets
/// to see: then there is no oldest record.
fn waits(lane: &LaneLag) -> bool {
    lane.records > 0 && lane.seconds > 0.0
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka does not answer.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let stages = measure(&context.kafka).await?;
        if context.json {
            let text =
                if args.watch { serde_json::to_string(&stages)? } else { serde_json::to_string_pretty(&stages)? };
            println!("{text}");
        } else {
            if args.watch && std::io::stdout().is_terminal() {
                // Clear the screen and go home.
                print!("\x1b[2J\x1b[H");
            }
            print(&stages, args.lanes);
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            _ = &mut interrupt => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(Duration::from_secs(args.interval)) => {}
        }
    }
}

/// Lag of every stage, in the order in which records flow.
///
/// # Errors
/// When Kafka does not answer.
pub async fn measure(kafka: &KafkaConfig) -> color_eyre::Result<Vec<StageLag>> {
    let stages = pipeline::stages().map(|stage| async move {
        let (kafka, group) = (kafka.clone(), kafka.topics().full_name(stage.name));
        let topic = kafka.topics().full(stage.input);
        let lanes = settled(|| {
            let (kafka, group) = (kafka.clone(), group.clone());
            let measured = tokio::task::spawn_blocking(move || group_lag(&kafka, &group, stage.input, TIMEOUT));
            async { color_eyre::Result::<_>::Ok(measured.await.wrap_err("the measurement was interrupted")??) }
        })
        .await?;
        color_eyre::Result::<_>::Ok(StageLag {
            stage: stage.name,
            group,
            topic,
            records: lanes.iter().map(|lane| lane.records).sum(),
            seconds: lanes.iter().map(|lane| lane.seconds).fold(0.0, f64::max),
            lanes,
        })
    });
    futures::future::try_join_all(stages).await
}

/// Prints a row for each stage, or for each lane.
pub fn print(stages: &[StageLag], every_lane: bool) {
    let ink = Ink::for_stdout();
    if every_lane {
        let mut rows = table(&["stage", "lane", "records", "oldest", "committed", "log"]);
        for stage in stages {
            for lane in &stage.lanes {
                rows.add_row([
                    stage.stage.to_owned(),
                    lane.lane.to_string(),
                    lane.records.to_string(),
                    age(lane.seconds),
                    lane.committed.map_or_else(|| "never".into(), |offset| offset.to_string()),
                    format!("{}..{}", lane.low_watermark, lane.high_watermark),
                ]);
            }
        }
        println!("{rows}");
        return;
    }
    let mut rows = table(&["stage", "reads", "records", "oldest", "lanes behind"]);
    for stage in stages {
        let mut lanes: Vec<_> =
            stage.behind().map(|lane| format!("{}: {} ({})", lane.lane, lane.records, age(lane.seconds))).collect();
        let markers = stage.lanes.iter().filter(|lane| lane.records > 0 && !waits(lane)).count();
        if markers > 0 {
            lanes.push(format!("{markers} with transaction markers only"));
        }
        rows.add_row([
            stage.stage.to_owned(),
            stage.topic.clone(),
            stage.behind().map(|lane| lane.records).sum::<i64>().to_string(),
            age(stage.seconds),
            lanes.join(", "),
        ]);
    }
    println!("{rows}");
    if !stages.iter().any(StageLag::is_behind) {
        println!("{}", ink.green("Nothing waits."));
    }
}

fn age(seconds: f64) -> String {
    if seconds > 0.0 { human(Duration::from_secs_f64(seconds.min(1e9))) } else { "-".into() }
}
