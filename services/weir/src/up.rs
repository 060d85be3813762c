//! `weir up`: the stack, its topics and schemas, the model, and all services.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, bail, eyre};
use serde_json::json;
use toml::{Table, Value};
use weir_models::ModelConfig;
use weir_stack::{Endpoints, Phase, ProcessId};
use weir_vectors::QdrantConfig;

use crate::context::Context;
use crate::fleet::{self, FleetState, Plan, Ports};
use crate::progress::{Activity, Ink};
use crate::{down, schemas, stack, supervise, topics};

/// For all services to say that they are ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// An instance that ended so often while all are awaited will not come up.
const MOST_RESTARTS: u32 = 3;
const LOG_LINES: usize = 12;

/// Variables that flags of the same meaning win over; the services would read them.
const WITH_FLAGS: [&str; 7] = [
    "WEIR_KAFKA__BROKERS",
    "WEIR_KAFKA__PREFIX",
    "WEIR_REGISTRY__URL",
    "WEIR_REGISTRY__USERNAME",
    "WEIR_REGISTRY__PASSWORD",
    "WEIR_QDRANT__URL",
    "WEIR_QDRANT__API_KEY",
];

/// What the variables of `-X` begin with.
const KAFKA_PROPERTIES: &str = "WEIR_KAFKA__PROPERTIES";

/// Arguments of `weir up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Instances of a service, for example --instances embed=2; may be repeated. When everything is up already, the
    /// services are brought to these numbers.
    #[arg(long, value_name = "SERVICE=N", value_parser = service_count)]
    instances: Vec<(String, u16)>,
    /// Use any free ports instead of those of the documentation.
    #[arg(long)]
    free_ports: bool,
    /// Stay, and end everything with Ctrl-C.
    #[arg(long)]
    foreground: bool,
}

fn service_count(text: &str) -> Result<(String, u16), String> {
    let (name, count) = text.split_once('=').ok_or("write SERVICE=N, for example embed=2")?;
    let count = count.parse().map_err(|_| format!("{count} is not a number of instances"))?;
    Ok((name.to_owned(), count))
}

/// Runs the subcommand.
///
/// # Errors
/// When something does not come up; what does run stays, so that it can be looked at.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let counts: BTreeMap<String, u16> = args.instances.iter().cloned().collect();
    let ports = if args.free_ports { Ports::Free } else { Ports::Fixed };
    let data = std::path::absolute(&context.data)?;
    std::fs::create_dir_all(fleet::folder(&data)).wrap_err_with(|| format!("can't write to {}", data.display()))?;

    let endpoints = stack::ensure(context, args.free_ports).await?;
    let context = context.on_stack(&data, &endpoints)?;
    prepare(&context).await?;
    let plan = plan(&context, &counts, ports)?;
    if args.foreground {
        return foreground(&context, plan, &endpoints).await;
    }
    match FleetState::running(&data) {
        Some(_) => plan.write(&data)?,
        None => {
            plan.check_ports(&[])?;
            plan.write(&data)?;
            detach(&data)?;
        }
    }
    let names: Vec<_> = plan.instances.iter().map(|instance| instance.name.clone()).collect();
    let state = wait_until_ready(&context, &names).await?;
    print_summary(&context, &state, &endpoints)?;
    Ok(ExitCode::SUCCESS)
}

/// Topics, schemas and model: what the services need beside the servers.
///
/// # Errors
/// When one of them can't be had.
pub async fn prepare(context: &Context) -> color_eyre::Result<()> {
    let cluster = async { tokio::try_join!(topics::ensure(context), schemas::ensure(context)).map(drop) };
    let model: ModelConfig = context.section("model")?;
    let model = async { Ok(weir_models::prepare(&model).await.map(drop)?) };
    tokio::try_join!(cluster, model).map(drop)
}

/// The plan of the services, with their configuration written to the data folder.
///
/// # Errors
/// When a program is missing or the folder can't be written.
pub fn plan(context: &Context, counts: &BTreeMap<String, u16>, ports: Ports) -> color_eyre::Result<Plan> {
    std::fs::create_dir_all(fleet::folder(&context.data))?;
    std::fs::create_dir_all(fleet::logs(&context.data))?;
    let config = write_config(context)?;
    let running = FleetState::running(&context.data).and_then(|_| Plan::read(&context.data).ok());
    let Some(running) = running else { return Plan::new(&context.data, config, counts, ports) };
    // Instances that run keep their ports; services that are not named keep their number.
    let mut merged: BTreeMap<String, u16> = BTreeMap::new();
    for instance in &running.instances {
        *merged.entry(instance.service.clone()).or_default() += 1;
    }
    merged.extend(counts.clone());
    let mut plan = Plan::new(&context.data, config, &merged, ports)?;
    for instance in &mut plan.instances {
        if let Some(kept) = running.instances.iter().find(|kept| kept.name == instance.name) {
            *instance = kept.clone();
        }
    }
    Ok(plan)
}

/// One file for all services; it may hold passwords, so only its owner reads it.
fn write_config(context: &Context) -> color_eyre::Result<PathBuf> {
    let path = fleet::folder(&context.data).join("config.toml");
    let sections = with_state_folder(context.sections().clone(), &context.data);
    let text = toml::to_string_pretty(&sections).wrap_err("the configuration can't be written as TOML")?;
    let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .wrap_err_with(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

/// State is kept with the rest of the data, unless the user says where.
fn with_state_folder(mut sections: Table, data: &Path) -> Table {
    let runner = sections.entry("runner").or_insert_with(|| Value::Table(Table::new()));
    if let Some(runner) = runner.as_table_mut() {
        let folder = fleet::lane_state(data).display().to_string();
        runner.entry("state_dir").or_insert(Value::String(folder));
    }
    sections
}

/// Starts the supervisor of the services as a process that outlives this one.
fn detach(data: &Path) -> color_eyre::Result<()> {
    down::end_leftovers(data);
    let log = fleet::logs(data).join("supervisor.log");
    let out = File::options().create(true).append(true).open(&log)?;
    let errors = out.try_clone()?;
    let own = std::env::current_exe().wrap_err("can't find out where this program lies")?;
    let mut command = Command::new(own);
    command.arg("--data").arg(data).arg("supervise-services").stdin(Stdio::null()).stdout(out).stderr(errors);
    // Flags come before these, and the configuration file has what won.
    for name in WITH_FLAGS {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(KAFKA_PROPERTIES)) {
        command.env_remove(name);
    }
    // Ctrl-C in this terminal is not meant for it.
    command.process_group(0);
    let child = command.spawn().wrap_err("can't start the supervisor of the services")?;
    // An old state must not be taken for the new supervisor's.
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let started = Instant::now();
    while FleetState::running(data).is_none_or(|state| state.supervisor.pid != pid) {
        if !ProcessId::of(pid).alive() || started.elapsed() > Duration::from_secs(10) {
            bail!("the supervisor of the services did not start:\n{}", fleet::last_lines(&log, LOG_LINES));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits until the instances of these names, and no others, are ready.
///
/// # Errors
/// When one ends again and again, or it takes too long: with the last lines of its log.
pub async fn wait_until_ready(context: &Context, names: &[String]) -> color_eyre::Result<FleetState> {
    let activity = Activity::start("starting the services", context.json);
    let started = Instant::now();
    loop {
        let state = FleetState::running(&context.data).ok_or_else(|| {
            eyre!("the supervisor of the services is gone; its log is in {}", fleet::logs(&context.data).display())
        })?;
        let there: Vec<_> = state.instances.iter().map(|instance| &instance.name).collect();
        let complete = there.len() == names.len() && names.iter().all(|name| there.contains(&name));
        if complete && state.ready() {
            return Ok(state);
        }
        let late: Vec<_> = state.instances.iter().filter(|instance| instance.phase != Phase::Ready).collect();
        let waiting: Vec<_> = late.iter().map(|instance| instance.name.as_str()).collect();
        activity.say(&format!("starting the services: waiting for {}", waiting.join(", ")));
        let failing = late.iter().find(|instance| instance.restarts >= MOST_RESTARTS);
        let slowest = late.first().filter(|_| started.elapsed() > PATIENCE);
        if let Some(instance) = failing.or(slowest) {
            let exit = instance.last_exit.as_deref().map(|exit| format!(" (ended with {exit})")).unwrap_or_default();
            bail!(
                "{} does not get ready{exit}; the last lines of {}:\n{}",
                instance.name,
                instance.log.display(),
                fleet::last_lines(&instance.log, LOG_LINES)
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn foreground(context: &Context, plan: Plan, endpoints: &Endpoints) -> color_eyre::Result<ExitCode> {
    if FleetState::running(&context.data).is_some() {
        bail!("the services run already; `weir down` ends them");
    }
    down::end_leftovers(&context.data);
    plan.check_ports(&[])?;
    plan.write(&context.data)?;
    let names: Vec<_> = plan.instances.iter().map(|instance| instance.name.clone()).collect();
    let watch = async {
        // The state appears with the supervisor's first turn.
        tokio::time::sleep(Duration::from_secs(1)).await;
        match wait_until_ready(context, &names).await {
            Ok(state) => print_summary(context, &state, endpoints)?,
            Err(error) => return Err(error),
        }
        println!("\nCtrl-C ends everything.");
        std::future::pending::<color_eyre::Result<()>>().await
    };
    let outcome = tokio::select! {
        ended = supervise::supervise(&context.data, std::future::pending()) => ended,
        failed = watch => failed,
    };
    // When the watch failed, the supervisor was dropped and its children with it.
    stack::end(context).await?;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// What makes `weir` a command, where a shell would not find this program under that name.
fn alias() -> Option<String> {
    let own = std::env::current_exe().ok()?;
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("weir")).find(|program| program.is_file());
    let same = found.and_then(|found| found.canonicalize().ok()) == own.canonicalize().ok();
    (!same).then(|| format!("alias weir='{}'", own.display()))
}

fn print_summary(context: &Context, state: &FleetState, endpoints: &Endpoints) -> color_eyre::Result<()> {
    if context.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "stack": endpoints, "services": state }))?);
        return Ok(());
    }
    let ink = Ink::for_stdout();
    let qdrant: QdrantConfig = context.section("qdrant")?;
    println!("{}", ink.bold("Weir is up."));
    println!("  Kafka            {}", context.kafka.brokers);
    println!("  schema registry  {}", context.registry.url);
    println!("  Qdrant (gRPC)    {}", qdrant.url);
    for instance in &state.instances {
        println!("  {:<16} {} {}", instance.name, instance.url, ink.dim("/metrics /healthz /readyz"));
    }
    println!("  logs             {}", fleet::logs(&context.data).display());
    let usual = std::path::absolute(".weir").is_ok_and(|usual| usual == context.data);
    let data = if usual { String::new() } else { format!(" --data {}", context.data.display()) };
    println!("\n{}", ink.bold("Next"));
    let next = [
        ("ingest docs", "send a folder of documents"),
        ("ask \"What is a lane?\"", "ask about them"),
        ("status", "how everything is"),
        ("lag --watch", "where records wait"),
        ("dlq list", "what was rejected"),
        ("down", "end everything"),
    ];
    let next = next.map(|(command, what)| (format!("weir{data} {command}"), what));
    if let Some(alias) = alias() {
        println!("  {alias}");
    }
    let width = next.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    for (command, what) in next {
        println!("  {command:<width$}  {}", ink.dim(what));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn state_lies_in_the_data_folder_unless_the_user_says_where() {
        let data = Path::new("/data/weir");
        let folder = |text: &str| {
            let sections = with_state_folder(text.parse().unwrap(), data);
            (sections["runner"]["state_dir"].as_str().unwrap().to_owned(), sections)
        };
        assert_eq!(folder("").0, "/data/weir/lane-state");
        let (state, sections) = folder("[runner]\nlinger_ms = 5");
        assert_eq!((state.as_str(), sections["runner"]["linger_ms"].as_integer()), ("/data/weir/lane-state", Some(5)));
        assert_eq!(folder("[runner]\nstate_dir = \"/fast\"").0, "/fast");
    }
}
