//! `weir topics`: the cluster's topics beside their declarations.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use weir_stack::Cluster;
use weir_stack::topics::{self, Change, Shape, Step, TopicSpec};

use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::Ink;

const EXAMPLES: &str = "\
Examples:
  weir topics diff                          exit code 1 when something differs
  weir topics apply                         create what is missing, adjust settings
  weir topics apply --dir my-topics         your own services' topics
  weir topics apply --allow-loss            also shorten retention or change the cleanup policy";

/// Arguments of `weir topics`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show how the cluster differs from the declarations.
    Diff(Options),
    /// Make the cluster match: create what is missing, adjust settings. Refuses what would lose data.
    Apply(Options),
}

#[derive(Debug, Default, clap::Args)]
struct Options {
    /// Folder with declarations; Weir's own topics when none is named.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Replicas of new topics; 3, or as many as there are brokers, when none is named.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    replication: Option<i32>,
    /// Also do what lets Kafka remove records it keeps now: shorter retention, another cleanup policy.
    #[arg(long)]
    allow_loss: bool,
}

impl Options {
    fn specs(&self) -> color_eyre::Result<Vec<TopicSpec>> {
        Ok(match &self.dir {
            Some(dir) => topics::read_folder(dir)?,
            None => topics::declared()?,
        })
    }

    fn shape(&self, context: &Context) -> Shape {
        Shape {
            names: context.kafka.topics(),
            lanes: context.kafka.lanes,
            replication: self.replication,
            allow_loss: self.allow_loss,
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When the cluster does not answer, or applying would lose data.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let cluster = Cluster::connect(&context.kafka.brokers, &context.kafka.properties)?;
    match args.action {
        Action::Diff(options) => {
            let state = cluster.state(&context.kafka.prefix).await?;
            let steps = topics::diff(&options.specs()?, &options.shape(context), &state);
            print(context, &steps, "The cluster matches.");
            Ok(if differs(&steps) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
        }
        Action::Apply(options) => {
            let steps = topics::apply(&cluster, &options.specs()?, &options.shape(context)).await?;
            print(context, &steps, "The cluster matched already.");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Makes the cluster have Weir's topics.
///
/// # Errors
/// As [`run`].
pub async fn ensure(context: &Context) -> color_eyre::Result<()> {
    let options = Options::default();
    let cluster = Cluster::connect(&context.kafka.brokers, &context.kafka.properties)?;
    topics::apply(&cluster, &options.specs()?, &options.shape(context)).await?;
    Ok(())
}

/// What differs from the declarations; for `weir doctor`.
///
/// # Errors
/// When the cluster does not answer.
pub async fn differences(context: &Context, cluster: &Cluster) -> color_eyre::Result<Vec<Step>> {
    let options = Options::default();
    let state = cluster.state(&context.kafka.prefix).await?;
    Ok(topics::diff(&options.specs()?, &options.shape(context), &state))
}

fn differs(steps: &[Step]) -> bool {
    steps.iter().any(|step| !matches!(step.change, Change::Note { .. }))
}

fn print(context: &Context, steps: &[Step], nothing: &str) {
    if context.json {
        println!("{}", json!({ "differs": differs(steps), "steps": steps }));
        return;
    }
    let ink = Ink::for_stdout();
    for step in steps {
        println!(
            "{}",
            match step.change {
                Change::Create { .. } => ink.green(step),
                Change::Set { .. } | Change::Grow { .. } => ink.yellow(step),
                Change::Refused { .. } => ink.red(step),
                Change::Note { .. } => ink.dim(step),
            }
        );
    }
    if !differs(steps) {
        println!("{nothing}");
    }
}
