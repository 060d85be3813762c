//! `weir down`: ends the services, then the stack.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use color_eyre::eyre::eyre;
use serde_json::json;
use weir_stack::{Down, ProcessId};

use crate::context::Context;
use crate::fleet::FleetState;
use crate::progress::Activity;
use crate::stack;

/// The supervisor gives the services 20 s; then they are killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `weir down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End the services only; Kafka, registry and Qdrant stay.
    #[arg(long)]
    keep_stack: bool,
}

/// Runs the subcommand. Harmless when nothing runs. The data stays.
///
/// # Errors
/// When a process does not end.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let activity = Activity::start("ending the services", context.json);
    let services = end_services(&context.data).await?;
    drop(activity);
    let stack = if args.keep_stack { Down::NothingRan } else { stack::end(context).await? };
    let ended_stack = stack != Down::NothingRan;
    if context.json {
        println!("{}", json!({ "services_ended": services, "stack_ended": ended_stack }));
    } else {
        let data = context.data.display();
        match (services, ended_stack) {
            (false, false) => println!("Nothing ran in {data}."),
            (true, false) if args.keep_stack => println!("The services are down; the stack goes on."),
            _ => println!("Everything is down; the data stays in {data}."),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the supervisor of the services and with it the services; says whether one ran.
///
/// # Errors
/// When it does not end.
pub async fn end_services(data: &Path) -> color_eyre::Result<bool> {
    let Some(state) = FleetState::running(data) else {
        let data = data.to_owned();
        tokio::task::spawn_blocking(move || end_leftovers(&data)).await?;
        return Ok(false);
    };
    let supervisor = state.supervisor;
    supervisor.signal(rustix::process::Signal::TERM);
    let started = Instant::now();
    while supervisor.alive() {
        if started.elapsed() > PATIENCE {
            // Its children go with it: the kernel kills them.
            supervisor.signal(rustix::process::Signal::KILL);
            tokio::time::sleep(Duration::from_millis(500)).await;
            if supervisor.alive() {
                return Err(eyre!("process {}, the supervisor of the services, does not end", supervisor.pid));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let data = data.to_owned();
    tokio::task::spawn_blocking(move || end_leftovers(&data)).await?;
    Ok(true)
}

/// Ends services whose supervisor is gone. There are none unless the kernel could not see to it.
pub fn end_leftovers(data: &Path) {
    let Some(state) = FleetState::read(data).filter(|state| !state.supervisor.alive()) else { return };
    let left: Vec<ProcessId> =
        state.instances.iter().filter_map(|instance| instance.process).filter(|process| process.alive()).collect();
    for process in left {
        tracing::warn!(pid = process.pid, "ending a service that a killed supervisor left");
        process.end(Duration::from_secs(10));
    }
}
