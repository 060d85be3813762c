//! `weir tenants set` and `delete`: changes the table.

use std::collections::BTreeMap;
use std::process::ExitCode;

use color_eyre::eyre::bail;
use serde_json::json;
use weir_contracts::{Tenant, TenantId, Topic};
use weir_runner::{Publisher, Registry};
use weir_stage::Output;

use super::change::Set;
use super::look;
use crate::context::Context;

/// Arguments of `weir tenants delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir tenants delete acme --yes

A tenant without a record has no limits. To keep it from asking: weir tenants set acme --disable.")]
pub struct Delete {
    /// Name of the tenant.
    name: TenantId,
    /// That it is meant.
    #[arg(short, long)]
    yes: bool,
}

/// Creates or changes a record.
///
/// # Errors
/// When what is asked for makes no sense, or Kafka does not take it.
pub async fn set(
    set: &Set,
    tenants: &BTreeMap<String, Tenant>,
    registry: Registry,
    context: &Context,
) -> color_eyre::Result<ExitCode> {
    let known = tenants.get(set.name.as_str());
    let tenant = set.apply(known)?;
    let changed = known != Some(&tenant);
    if changed {
        // The topic has one partition, so wherever a record lies, the next one of its key follows it.
        let publisher = Publisher::new(&context.kafka, registry)?;
        publisher.publish(Output::new(Topic::TENANTS, set.name.as_str(), tenant.clone())).await?;
    }
    if context.json {
        let said = json!({ "changed": changed, "created": known.is_none(), "tenant": tenant });
        println!("{}", serde_json::to_string_pretty(&said)?);
        return Ok(ExitCode::SUCCESS);
    }
    look::print(&tenant);
    match changed {
        true => println!("It holds within seconds."),
        false => println!("It was so before: nothing was written."),
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes a record.
///
/// # Errors
/// When there is none, it is not confirmed, or Kafka does not take it.
pub async fn delete(
    delete: &Delete,
    tenants: &BTreeMap<String, Tenant>,
    registry: Registry,
    context: &Context,
) -> color_eyre::Result<ExitCode> {
    let name = &delete.name;
    if !tenants.contains_key(name.as_str()) {
        bail!("tenant {name} has no record, and so no limits; see weir tenants list");
    }
    if !delete.yes {
        bail!("a tenant without a record has no limits: if {name} is to have none, add --yes");
    }
    let publisher = Publisher::new(&context.kafka, registry)?;
    publisher.publish(Output::tombstone(Topic::TENANTS, name.as_str())).await?;
    if context.json {
        println!("{}", json!({ "deleted": name }));
    } else {
        println!("The record of {name} is gone: within seconds it has no limits, as any tenant without a record.");
    }
    Ok(ExitCode::SUCCESS)
}
