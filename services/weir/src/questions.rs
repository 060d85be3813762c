//! `weir questions`: where a question is on its way to an answer.

mod look;
mod memory;
mod outcome;
mod tell;

use std::process::ExitCode;

use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  weir questions list                      questions without an answer, oldest first
  weir questions list --tenant acme --open
  weir questions show order-4711          what became of one: its step, its calls, its answer

Both read what `generate` remembers and what it has answered; they change nothing, and print neither questions nor
passages nor answers. A question that nobody has taken up yet waits in its lane: `weir lag --lanes`.";

/// Arguments of `weir questions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the questions that have no answer yet, oldest first, and those that failed; of one tenant with --tenant.
    List(look::List),
    /// Show what became of one question; the exit status says whether it is known.
    Show(look::Show),
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    match args.command {
        Command::List(list) => look::list(&list, context).await,
        Command::Show(show) => look::show(&show, context).await,
    }
}
