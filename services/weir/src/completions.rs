//! `weir completions`: scripts for shells.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::context::Context;

/// Arguments of `weir completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell.
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// Never; the signature is that of every subcommand.
pub async fn run(args: Args, _: &Context) -> color_eyre::Result<ExitCode> {
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "weir", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
