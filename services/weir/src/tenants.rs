//! `weir tenants`: what each tenant may use.

mod change;
mod look;
mod value;
mod write;

use std::collections::BTreeMap;
use std::process::ExitCode;

use weir_contracts::{Tenant, TenantId, Topic};
use weir_runner::{Registry, Start};

use crate::context::Context;
use crate::tail;

const EXAMPLES: &str = "\
Examples:
  weir tenants list                                                who has limits
  weir tenants show acme
  weir tenants set acme --requests-per-minute 600 --usd-per-hour 5
  weir tenants set acme --feature chat --concurrency 8             beside those of the tenant
  weir tenants set acme --over-limit queue                         wait instead of being turned away
  weir tenants set acme --price gpt-4o-mini=0.15/0.60/0.075        dollars a million tokens: in, out, cached in
  weir tenants set acme --disable                                  turn its questions away
  weir tenants delete acme --yes

A tenant without a record has no limits. Limits hold in every window of their length, however it lies.";

/// Arguments of `weir tenants`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the tenants that have a record.
    List,
    /// Show the record of a tenant.
    Show {
        /// Its name.
        name: TenantId,
    },
    /// Create or change the record of a tenant. What is not named stays as it is.
    Set(change::Set),
    /// Remove the record of a tenant: it has no limits then.
    Delete(write::Delete),
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read or does not take what is written, there is no such record, or a value makes no sense.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = tail::registry(context)?;
    let tenants = read(context, &registry).await?;
    match args.command {
        Command::List => look::list(&tenants, context),
        Command::Show { name } => look::show(&name, &tenants, context),
        Command::Set(set) => write::set(&set, &tenants, registry, context).await,
        Command::Delete(delete) => write::delete(&delete, &tenants, registry, context).await,
    }
}

/// The table, by the tenants' names.
async fn read(context: &Context, registry: &Registry) -> color_eyre::Result<BTreeMap<String, Tenant>> {
    let mut reader = tail::open::<Tenant>(context, registry, Topic::TENANTS, Start::Beginning).await?;
    let table = reader.read_table().await?;
    Ok(table.into_iter().map(|(key, tenant)| (String::from_utf8_lossy(&key).into_owned(), tenant)).collect())
}
