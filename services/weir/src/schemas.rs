//! `weir schemas`: this program's schemas beside those in the registry.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use weir_stack::schemas::{self, Checked, RegistryAccess, SchemaRegistry, Subject, Verdict};
use weir_stack::topics;

use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::Ink;

const EXAMPLES: &str = "\
Examples:
  weir schemas check       exit code 1 when a schema can't read what the registered one wrote
  weir schemas push        register, with BACKWARD compatibility set for each subject";

/// Arguments of `weir schemas`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Action {
    /// Register what is not registered yet; nothing when one schema does not fit.
    Push,
    /// Check that each schema can follow the one that is registered.
    Check,
}

/// Runs the subcommand.
///
/// # Errors
/// When the registry does not answer, or a schema to push does not fit.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = registry(context)?;
    let subjects = subjects(context)?;
    let checked = match args.action {
        Action::Push => registry.push(&subjects).await?,
        Action::Check => registry.check(&subjects).await?,
    };
    print(context, args.action, &checked);
    let fits = checked.iter().all(|one| !matches!(one.verdict, Verdict::Incompatible { .. }));
    Ok(if fits { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Registers Weir's schemas.
///
/// # Errors
/// As [`run`].
pub async fn ensure(context: &Context) -> color_eyre::Result<()> {
    registry(context)?.push(&subjects(context)?).await?;
    Ok(())
}

/// How each schema stands to what is registered; for `weir doctor`.
///
/// # Errors
/// When the registry does not answer.
pub async fn verdicts(context: &Context) -> color_eyre::Result<Vec<Checked>> {
    Ok(registry(context)?.check(&subjects(context)?).await?)
}

fn registry(context: &Context) -> color_eyre::Result<SchemaRegistry> {
    let config = context.registry.clone();
    Ok(SchemaRegistry::new(RegistryAccess { url: config.url, username: config.username, password: config.password })?)
}

fn subjects(context: &Context) -> color_eyre::Result<Vec<Subject>> {
    Ok(schemas::subjects(&topics::declared()?, &context.kafka.topics())?)
}

fn print(context: &Context, action: Action, checked: &[Checked]) {
    if context.json {
        println!("{}", json!({ "subjects": checked }));
        return;
    }
    let ink = Ink::for_stdout();
    let pushed = matches!(action, Action::Push);
    for one in checked {
        let subject = &one.subject;
        match &one.verdict {
            Verdict::Registered { id } => println!("{}", ink.dim(format!("  {subject}: registered, id {id}"))),
            Verdict::New if pushed => println!("{}", ink.green(format!("+ {subject}: registered"))),
            Verdict::New => println!("{}", ink.green(format!("+ {subject}: not registered yet"))),
            Verdict::Compatible if pushed => println!("{}", ink.yellow(format!("~ {subject}: new version registered"))),
            Verdict::Compatible => {
                println!("{}", ink.yellow(format!("~ {subject}: can follow the registered version")))
            }
            Verdict::Incompatible { reason } => println!("{}", ink.red(format!("! {subject}: does not fit: {reason}"))),
        }
    }
}
