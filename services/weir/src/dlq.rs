//! `weir dlq`: what was rejected, and what becomes of it.

mod act;
mod choose;
mod edit;
mod editable;
mod files;
mod look;

use std::process::ExitCode;

pub use choose::age;

use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  weir dlq stats                                        how many there are, by stage and class of failure
  weir dlq list --stage extract --class too-large       those that failed like this
  weir dlq show 4a6f21c09b3d                            one of them, whole
  weir dlq replay --stage index --newer-than 2h --dry-run
                                                        exactly what would happen
  weir dlq replay --stage index --newer-than 2h --rate 50
                                                        give them back to the stage, 50 a second
  weir dlq replay 4a6f21c09b3d --edit                   repair one in $EDITOR, then give it back
  weir dlq export --class undecodable --output bad.jsonl
  weir dlq import bad.jsonl                             put them back, repaired

Each dead letter is replayed once, though the command is killed or two people run it at once: the same again goes on
where it ended. What comes back three times is parked, and waits for somebody to look (`replay --parked`).";

/// Arguments of `weir dlq`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the dead letters, oldest first.
    List(look::List),
    /// Show one dead letter: its history, its headers, and what is in it.
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Count the dead letters by stage and class of failure.
    Stats(look::Stats),
    /// Give dead letters back to their stage, which tries them as if they were new.
    Replay(act::Replay),
    /// Remove dead letters for good.
    Discard(act::Discard),
    /// Keep dead letters, but pass them over when many are replayed.
    Park(act::Park),
    /// Write dead letters as lines of JSON, with their bytes in base64, to be repaired elsewhere.
    Export(files::Export),
    /// Put exported dead letters back among the others, where they replace what is outstanding under their ids.
    Import(files::Import),
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read or does not take what is written, or what was named does not exist.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    match args.command {
        Command::List(list) => look::list(&list, context).await,
        Command::Show { id } => look::show(&id, context).await,
        Command::Stats(stats) => look::stats(&stats, context).await,
        Command::Replay(replay) => act::replay(replay, context).await,
        Command::Discard(discard) => act::discard(discard, context).await,
        Command::Park(park) => act::park(park, context).await,
        Command::Export(export) => files::export(&export, context).await,
        Command::Import(import) => files::import(&import, context).await,
    }
}
