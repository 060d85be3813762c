//! `weir stack`.

use std::process::ExitCode;

use crate::context::Context;

/// Arguments of `weir stack`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the subcommand.
///
/// # Errors
/// When it can't be done.
pub async fn run(_: Args, _: &Context) -> color_eyre::Result<ExitCode> {
    color_eyre::eyre::bail!("`weir stack` is not built yet")
}
