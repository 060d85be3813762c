//! `weir stack`: Kafka, the schema registry and Qdrant on this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Subcommand;
use color_eyre::eyre::{WrapErr, bail};
use serde_json::json;
use weir_stack::{Down, Endpoints, Phase, Ports, StackConfig, StackState};

use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::{Activity, table};

const EXAMPLES: &str = "\
Examples:
  weir stack up                        start it; harmless when it runs
  weir stack up --brokers 3            three brokers: replication 3, min.insync.replicas 2
  weir stack up --kafka broker:9092    registry and Qdrant here, Kafka elsewhere
  weir stack logs kafka-1 -f
  weir stack down";

/// Arguments of `weir stack`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start it in the background and wait until it is ready. Harmless when it runs.
    Up(UpArgs),
    /// End it; the data stays.
    Down,
    /// Show what runs, where, and since when it does not.
    Status,
    /// Show the services' logs.
    Logs(LogsArgs),
    /// Be the supervisor; `up` starts it.
    #[command(hide = true)]
    Supervise,
}

/// How to start the stack.
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    /// Brokers; 3 survive the loss of one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub brokers: u16,
    /// Port of the first broker; each takes two.
    #[arg(long, default_value_t = weir_stack::KAFKA_PORT)]
    pub kafka_port: u16,
    /// Port of the schema registry.
    #[arg(long, default_value_t = weir_stack::REGISTRY_PORT)]
    pub registry_port: u16,
    /// Port of Qdrant's gRPC.
    #[arg(long, default_value_t = weir_stack::QDRANT_PORT)]
    pub qdrant_port: u16,
    /// Use any free ports; other commands find them by the data folder.
    #[arg(long, conflicts_with_all = ["kafka_port", "registry_port", "qdrant_port"])]
    pub free_ports: bool,
}

impl UpArgs {
    /// The usual ones.
    #[must_use]
    pub fn usual(free_ports: bool) -> Self {
        Self {
            brokers: 1,
            kafka_port: weir_stack::KAFKA_PORT,
            registry_port: weir_stack::REGISTRY_PORT,
            qdrant_port: weir_stack::QDRANT_PORT,
            free_ports,
        }
    }

    /// What is to run: all that the user did not name elsewhere.
    fn config(&self, context: &Context, data: &Path) -> StackConfig {
        let ports = Ports::Fixed { kafka: self.kafka_port, registry: self.registry_port, qdrant: self.qdrant_port };
        StackConfig {
            kafka: !context.external.kafka,
            registry: !context.external.registry,
            qdrant: !context.external.qdrant,
            brokers: self.brokers,
            ports: if self.free_ports { Ports::Free } else { ports },
            ..StackConfig::local(data)
        }
    }
}

#[derive(Debug, clap::Args)]
struct LogsArgs {
    /// kafka-1, registry, qdrant or supervisor; all when none is named.
    service: Option<String>,
    /// Go on as more is written.
    #[arg(short, long)]
    follow: bool,
    /// Lines to begin with.
    #[arg(short = 'n', long, default_value_t = 50)]
    lines: usize,
}

/// Runs the subcommand.
///
/// # Errors
/// When the machine or the data folder is not as needed, or a service does not start or end.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    match args.action {
        Action::Up(up) => {
            let (already, endpoints) = start(&up, context).await?;
            print_up(context, already, &endpoints);
            Ok(ExitCode::SUCCESS)
        }
        Action::Down => {
            let down = end(context).await?;
            print_down(context, down);
            Ok(ExitCode::SUCCESS)
        }
        Action::Status => status(context),
        Action::Logs(logs) => show_logs(&logs, context).await,
        Action::Supervise => {
            weir_stack::supervise(&context.data).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Makes sure that the servers nobody named run here, and says where they are.
///
/// # Errors
/// As [`run`].
pub async fn ensure(context: &Context, free_ports: bool) -> color_eyre::Result<Endpoints> {
    // A stack that runs is the right one, however it was started.
    if let Some(endpoints) = weir_stack::running(&context.data)
        && StackState::read(&context.data).is_some_and(|state| state.ready)
    {
        return Ok(endpoints);
    }
    start(&UpArgs::usual(free_ports), context).await.map(|(_, endpoints)| endpoints)
}

/// Ends the stack in the data folder, if one runs.
///
/// # Errors
/// When something does not end even by force.
pub async fn end(context: &Context) -> color_eyre::Result<Down> {
    let activity = Activity::start("ending Kafka, registry and Qdrant", context.json);
    let data = context.data.clone();
    let down = tokio::task::spawn_blocking(move || weir_stack::down(&data)).await??;
    drop(activity);
    Ok(down)
}

async fn start(args: &UpArgs, context: &Context) -> color_eyre::Result<(bool, Endpoints)> {
    let data = std::path::absolute(&context.data)?;
    let config = args.config(context, &data);
    if !(config.kafka || config.registry || config.qdrant) {
        return Ok((true, Endpoints::default()));
    }
    let mut supervisor = Command::new(std::env::current_exe().wrap_err("can't find this program's file")?);
    // What the user named travels in the configuration, so the supervisor needs nothing but the folder.
    supervisor.args(["stack", "supervise", "--data"]).arg(&data);
    let activity = Activity::start("starting", context.json);
    let up = weir_stack::up(&config, supervisor, |state| activity.say(&describe(state))).await;
    drop(activity);
    let up = up?;
    Ok((up.already, up.endpoints))
}

fn describe(state: &StackState) -> String {
    if state.services.is_empty() {
        return "preparing".into();
    }
    let parts: Vec<_> =
        state.services.iter().map(|service| format!("{} {}", service.name, phase(service.phase))).collect();
    parts.join(", ")
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waits",
        Phase::Starting => "starting",
        Phase::Ready => "ready",
        Phase::Restarting => "restarting",
        Phase::Failed => "failed",
        Phase::Stopped => "stopped",
    }
}

fn print_up(context: &Context, already: bool, endpoints: &Endpoints) {
    if context.json {
        println!("{}", json!({ "already_running": already, "endpoints": endpoints }));
        return;
    }
    let rows = [("Kafka", &endpoints.kafka), ("registry", &endpoints.registry), ("Qdrant", &endpoints.qdrant)];
    if rows.iter().all(|(_, address)| address.is_none()) {
        println!("Nothing to start: Kafka, registry and Qdrant were all named.");
        return;
    }
    println!("{}", if already { "The stack runs already." } else { "The stack is ready." });
    for (name, address) in rows {
        println!("  {name:<10} {}", address.as_deref().unwrap_or("elsewhere"));
    }
    println!("\nNext: weir topics apply, weir schemas push; or weir up for the services, too.");
}

fn print_down(context: &Context, down: Down) {
    if context.json {
        let (ended, orphans) = match down {
            Down::NothingRan => (false, 0),
            Down::Ended => (true, 0),
            Down::Orphans(count) => (true, count),
        };
        println!("{}", json!({ "ended": ended, "orphans": orphans }));
        return;
    }
    match down {
        Down::NothingRan => println!("No stack ran in {}.", context.data.display()),
        Down::Ended => println!("The stack is down; its data stays in {}.", context.data.display()),
        Down::Orphans(count) => println!("The supervisor was gone; ended {count} processes it had left."),
    }
}

/// 0 when everything is ready, 1 otherwise.
fn status(context: &Context) -> color_eyre::Result<ExitCode> {
    let state = StackState::read(&context.data).filter(|state| state.supervisor.alive());
    let ready = state
        .as_ref()
        .is_some_and(|state| state.ready && state.services.iter().all(|service| service.phase == Phase::Ready));
    if context.json {
        println!("{}", json!({ "running": state.is_some(), "ready": ready, "state": state }));
    } else if let Some(state) = &state {
        let mut rows = table(&["service", "state", "process", "restarts", "address", "log"]);
        for service in &state.services {
            rows.add_row([
                service.name.clone(),
                phase(service.phase).to_owned(),
                service.process.map_or_else(|| "-".into(), |process| process.pid.to_string()),
                service.restarts.to_string(),
                service.address.clone(),
                service.log.display().to_string(),
            ]);
        }
        println!("{rows}");
        if let Some(error) = &state.error {
            println!("\n{error}");
        }
    } else {
        println!("No stack runs in {}. Start one: weir stack up", context.data.display());
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

async fn show_logs(args: &LogsArgs, context: &Context) -> color_eyre::Result<ExitCode> {
    let mut logs = weir_stack::logs(&context.data);
    if logs.is_empty() {
        bail!("there are no logs in {}: no stack has run there", context.data.display());
    }
    if let Some(wanted) = &args.service {
        let known: Vec<_> = logs.iter().map(|(name, _)| name.clone()).collect();
        logs.retain(|(name, _)| name == wanted);
        if logs.is_empty() {
            bail!("there is no log of {wanted}; there are: {}", known.join(", "));
        }
    }
    let named = logs.len() > 1;
    let mut positions: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for (name, path) in &logs {
        let text = std::fs::read(path).wrap_err_with(|| format!("can't read {}", path.display()))?;
        positions.insert(path.clone(), u64::try_from(text.len()).unwrap_or(u64::MAX));
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(args.lines)) {
            print_line(named.then_some(name), line)?;
        }
    }
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        for (name, path) in &logs {
            let position = positions.entry(path.clone()).or_default();
            *position = print_from(path, *position, named.then_some(name))?;
        }
    }
}

/// Prints the whole lines after `position` and returns where they end.
fn print_from(path: &Path, position: u64, name: Option<&String>) -> color_eyre::Result<u64> {
    // A log that was put aside is away for a moment; a shorter one is a new one.
    let Ok(file) = File::open(path) else { return Ok(0) };
    let length = file.metadata()?.len();
    let mut position = if length < position { 0 } else { position };
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(position))?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(position);
        }
        position += u64::try_from(read).unwrap_or_default();
        print_line(name, String::from_utf8_lossy(&line).trim_end())?;
    }
}

fn print_line(name: Option<&String>, line: &str) -> color_eyre::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = match name {
        Some(name) => writeln!(out, "{name:>10} | {line}"),
        None => writeln!(out, "{line}"),
    };
    match written {
        // `weir stack logs | head`
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}
