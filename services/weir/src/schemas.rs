//! `weir schemas`.

use std::process::ExitCode;

use crate::context::Context;

/// Arguments of `weir schemas`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the subcommand.
///
/// # Errors
/// When it can't be done.
pub async fn run(_: Args, _: &Context) -> color_eyre::Result<ExitCode> {
    color_eyre::eyre::bail!("`weir schemas` is not built yet")
}
