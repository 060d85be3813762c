//! What the services stand on: the stack, its topics, its schemas. One place that calls the modules that own them.

use color_eyre::eyre::bail;
use weir_stack::Endpoints;

use crate::context::Context;

/// Makes sure that the servers nobody named run here.
pub async fn ensure_stack(_: &Context, _: bool) -> color_eyre::Result<Endpoints> {
    bail!("not there yet")
}

/// Ends the stack in the data folder, if one runs.
pub async fn end_stack(_: &Context) -> color_eyre::Result<()> {
    bail!("not there yet")
}

/// Makes the topics match their declarations.
pub async fn ensure_topics(_: &Context) -> color_eyre::Result<()> {
    bail!("not there yet")
}

/// Registers the schemas.
pub async fn ensure_schemas(_: &Context) -> color_eyre::Result<()> {
    bail!("not there yet")
}
