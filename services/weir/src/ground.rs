//! What the services stand on: the stack, its topics, its schemas.

use std::path::Path;
use std::process::Command;

use color_eyre::eyre::WrapErr;
use weir_stack::schemas::{self, RegistryAccess, SchemaRegistry};
use weir_stack::topics::{self, Shape};
use weir_stack::{Cluster, Endpoints, Phase, Ports, StackConfig, StackState};

use crate::context::Context;
use crate::progress::Activity;

/// Makes sure that the servers nobody named run here, and says where they are. A stack that runs is taken as it is.
///
/// # Errors
/// When one does not come up.
pub async fn ensure_stack(context: &Context, free_ports: bool) -> color_eyre::Result<Endpoints> {
    let external = context.external;
    if external.kafka && external.registry && external.qdrant {
        return Ok(Endpoints::default());
    }
    let data = std::path::absolute(&context.data)?;
    let ready = StackState::read(&data).filter(|state| state.ready && state.supervisor.alive());
    if let Some(state) = ready {
        return Ok(state.endpoints);
    }
    let config = StackConfig {
        kafka: !external.kafka,
        registry: !external.registry,
        qdrant: !external.qdrant,
        ports: if free_ports { Ports::Free } else { Ports::default() },
        ..StackConfig::local(&data)
    };
    let activity = Activity::start("starting Kafka, schema registry and Qdrant", context.json);
    let up = weir_stack::up(&config, supervisor(&data)?, |state| {
        let waiting: Vec<_> = state.services.iter().filter(|service| service.phase != Phase::Ready).collect();
        let names: Vec<_> = waiting.iter().map(|service| service.name.as_str()).collect();
        activity.say(&format!("starting the stack: waiting for {}", names.join(", ")));
    })
    .await?;
    Ok(up.endpoints)
}

/// The command that supervises a stack in the background.
fn supervisor(data: &Path) -> color_eyre::Result<Command> {
    let own = std::env::current_exe().wrap_err("can't find out where this program lies")?;
    let mut command = Command::new(own);
    command.arg("--data").arg(data).args(["stack", "supervise"]);
    Ok(command)
}

/// Ends the stack in the data folder, if one runs.
///
/// # Errors
/// When a process does not end.
pub async fn end_stack(context: &Context) -> color_eyre::Result<()> {
    let data = std::path::absolute(&context.data)?;
    tokio::task::spawn_blocking(move || weir_stack::down(&data)).await??;
    Ok(())
}

/// Makes the topics of the cluster match what is declared, and registers their schemas. Refuses what would lose data.
///
/// # Errors
/// When a change is refused, or Kafka or the registry does not answer.
pub async fn ensure_topics_and_schemas(context: &Context) -> color_eyre::Result<()> {
    let specs = topics::declared()?;
    let names = context.kafka.topics();
    let subjects = schemas::subjects(&specs, &names)?;
    let shape = Shape { names, lanes: context.kafka.lanes, replication: None, allow_loss: false };
    let topics = async {
        let cluster = Cluster::connect(&context.kafka.brokers, &context.kafka.properties)?;
        topics::apply(&cluster, &specs, &shape).await?;
        color_eyre::Result::<()>::Ok(())
    };
    let registry = &context.registry;
    let access = RegistryAccess {
        url: registry.url.clone(),
        username: registry.username.clone(),
        password: registry.password.clone(),
    };
    let schemas = async {
        SchemaRegistry::new(access)?.push(&subjects).await?;
        Ok(())
    };
    tokio::try_join!(topics, schemas).map(drop)
}
