//! The detached supervisor: started by `weir stack up`, ended by `weir stack down`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::folder::{Folder, end_orphans, log_file};
use crate::process::{ProcessId, wait_until};
use crate::state::{Endpoints, Phase, StackState, folder};
use crate::unit::Unit;
use crate::{Stack, StackConfig, StackError, artifacts, classes, machine};

const TICK: Duration = Duration::from_millis(200);
/// A service that ended so often within [`RESTART_WINDOW`] stays down.
const MAX_RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(120);
/// A supervisor ends its services one after another; each has a limit of its own.
const DOWN_LIMIT: Duration = Duration::from_secs(60);

/// What `up` found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// Whether the stack ran before.
    pub already: bool,
    /// Where the services are.
    pub endpoints: Endpoints,
}

/// What `down` found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// Nothing ran.
    NothingRan,
    /// The stack was ended.
    Ended,
    /// Its supervisor was gone; so many processes it had left were ended.
    Orphans(usize),
}

/// Starts a stack in the background, unless it runs, and returns when it is ready.
///
/// `supervisor` is the command that calls [`supervise`] with the same data folder, and nothing else. Downloads happen
/// here, where somebody watches.
///
/// # Errors
/// When the machine or the folder is not as needed, or a service does not start: then everything is ended again.
pub async fn up(
    config: &StackConfig,
    mut supervisor: Command,
    mut progress: impl FnMut(&StackState),
) -> Result<Up, StackError> {
    if let Some(state) = live(&config.data) {
        check_same(config, &state)?;
        let (_, endpoints) = follow(&config.data, state.supervisor, None, &mut progress).await?;
        return Ok(Up { already: true, endpoints });
    }
    let wanted = config.clone();
    let fetched = tokio::task::spawn_blocking(move || fetch(&wanted)).await;
    fetched.map_err(|error| StackError::Supervisor(format!("fetching broke off: {error}")))??;

    let root = folder(&config.data);
    fs::create_dir_all(root.join("logs")).map_err(StackError::io(format!("create {}", root.display())))?;
    write_config(config)?;

    let log = log_file(&root, "supervisor");
    let log_start = fs::metadata(&log).map(|file| file.len()).unwrap_or(0);
    let out = File::options().create(true).append(true).open(&log);
    let out = out.map_err(StackError::io(format!("open {}", log.display())))?;
    let errors = out.try_clone().map_err(StackError::io(format!("open {}", log.display())))?;
    std::os::unix::process::CommandExt::process_group(&mut supervisor, 0);
    supervisor.stdin(Stdio::null()).stdout(out).stderr(errors);
    let child = supervisor.spawn().map_err(StackError::io("start the supervisor"))?;
    let id = ProcessId::of(i32::try_from(child.id()).unwrap_or(0));
    let launched = Launched { child, log, log_start };
    let (supervisor, endpoints) = follow(&config.data, id, Some(launched), &mut progress).await?;
    Ok(Up { already: supervisor != id, endpoints })
}

struct Launched {
    child: Child,
    log: PathBuf,
    log_start: u64,
}

/// Waits until the supervisor says that all is ready, or ends. Which one it was at last: somebody else's `up` may have
/// been faster.
async fn follow(
    data: &Path,
    mut supervisor: ProcessId,
    mut launched: Option<Launched>,
    progress: &mut impl FnMut(&StackState),
) -> Result<(ProcessId, Endpoints), StackError> {
    loop {
        if let Some(state) = StackState::read(data).filter(|state| state.supervisor == supervisor) {
            progress(&state);
            if state.ready {
                return Ok((supervisor, state.endpoints));
            }
        }
        let gone = match launched.as_mut() {
            Some(launched) => launched.child.try_wait().ok().flatten().is_some(),
            None => !supervisor.alive(),
        };
        if gone {
            match live(data).filter(|state| state.supervisor != supervisor) {
                Some(other) => (supervisor, launched) = (other.supervisor, None),
                None => return Err(StackError::Supervisor(last_words(launched.as_ref()))),
            }
        }
        tokio::time::sleep(TICK / 4).await;
    }
}

fn last_words(launched: Option<&Launched>) -> String {
    let said = launched.and_then(|launched| {
        let text = fs::read_to_string(&launched.log).ok()?;
        let start = usize::try_from(launched.log_start).ok()?;
        let text = text.get(start..)?.trim();
        // The program's last words begin a line; what they quote of a service's log does not.
        let error = text.strip_prefix("error: ").or_else(|| Some(text.split_once("\nerror: ")?.1));
        Some(error.unwrap_or(text).to_owned()).filter(|error| !error.is_empty())
    });
    said.unwrap_or_else(|| "the supervisor ended without a word: `weir stack logs supervisor` may say more".into())
}

fn live(data: &Path) -> Option<StackState> {
    StackState::read(data).filter(|state| state.supervisor.alive())
}

/// Refuses to call a stack that runs the one that was asked for when it is another.
fn check_same(config: &StackConfig, state: &StackState) -> Result<(), StackError> {
    let Some(running) = read_config(&config.data).ok() else { return Ok(()) };
    if &running == config {
        return Ok(());
    }
    let shape = |config: &StackConfig| {
        let parts = [(config.kafka, "Kafka"), (config.registry, "registry"), (config.qdrant, "Qdrant")];
        let names: Vec<_> = parts.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        format!("{} with {} broker(s), {:?}", names.join(", "), config.brokers, config.ports)
    };
    Err(StackError::Config(format!(
        "a stack with other settings runs in {} (process {}): {}; asked for: {}. End it first: weir stack down",
        config.data.display(),
        state.supervisor.pid,
        shape(&running),
        shape(config)
    )))
}

fn fetch(config: &StackConfig) -> Result<(), StackError> {
    if !(config.kafka || config.registry) {
        return Ok(());
    }
    let java = machine::java()?;
    if config.kafka {
        artifacts::kafka()?;
    }
    if config.registry {
        artifacts::registry()?;
    }
    classes::prepared(config, &java);
    Ok(())
}

fn config_file(data: &Path) -> PathBuf {
    folder(data).join("config.json")
}

/// Replaces the file in one step: the supervisor of another `up` may be reading it.
fn write_config(config: &StackConfig) -> Result<(), StackError> {
    let path = config_file(&config.data);
    let draft = path.with_extension(format!("json.{}", std::process::id()));
    let text = serde_json::to_vec_pretty(config).unwrap_or_default();
    let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
    written.map_err(StackError::io(format!("write {}", path.display())))
}

fn read_config(data: &Path) -> Result<StackConfig, StackError> {
    let path = config_file(data);
    let text = fs::read_to_string(&path).map_err(StackError::io(format!("read {}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| StackError::CorruptData { path, reason: error.to_string() })
}

/// Ends the stack that runs in folder `data`. Blocks, for a minute at most.
///
/// # Errors
/// When something does not end even by force.
pub fn down(data: &Path) -> Result<Down, StackError> {
    let Some(state) = StackState::read(data) else { return Ok(Down::NothingRan) };
    let supervisor = state.supervisor;
    let outcome = if supervisor.alive() {
        supervisor.signal(Signal::TERM);
        if !wait_until(DOWN_LIMIT, || !supervisor.alive()) {
            supervisor.signal(Signal::KILL);
            if !wait_until(Duration::from_secs(5), || !supervisor.alive()) {
                let stuck = format!("the supervisor (process {}) does not end, not even by SIGKILL", supervisor.pid);
                return Err(StackError::Supervisor(stuck));
            }
        }
        end_orphans(data);
        Down::Ended
    } else {
        match end_orphans(data) {
            0 => Down::NothingRan,
            count => Down::Orphans(count),
        }
    };
    StackState::remove(data);
    Ok(outcome)
}

/// Runs the stack that [`up`] configured in folder `data`, until SIGTERM or SIGINT.
///
/// # Errors
/// When the stack can't be started.
pub async fn supervise(data: &Path) -> Result<(), StackError> {
    // Fails for a process that leads a group, which then has left its terminal already.
    let _ = rustix::process::setsid();
    let signals = |kind| signal(kind).map_err(StackError::io("listen to signals"));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    // A terminal that goes away is no reason to end.
    let mut hangup = signals(SignalKind::hangup())?;
    let config = read_config(data)?;
    let own_folder = Folder::open(data)?;
    // From now on others follow this supervisor, or end it, also while it prepares.
    StackState::starting().write(data).map_err(StackError::io("write the state of the stack"))?;
    let prepared = tokio::task::spawn_blocking(move || Stack::prepare_in(config, own_folder)).await;
    let prepared = prepared.map_err(|error| StackError::Supervisor(format!("preparing the stack broke off: {error}")));
    let stack = match prepared.flatten() {
        Ok(stack) => Arc::new(stack),
        Err(error) => {
            StackState::remove(data);
            return Err(error);
        }
    };
    stack.publish(false, None)?;

    let mut keeper = Keeper::new(Arc::clone(&stack));
    let launching = {
        let stack = Arc::clone(&stack);
        async move { stack.launch().await }
    };
    tokio::pin!(launching);
    let mut tick = tokio::time::interval(TICK);
    let result = loop {
        tokio::select! {
            result = &mut launching, if !keeper.ready => match result {
                Ok(()) => keeper.ready = true,
                Err(error) => break Err(error),
            },
            _ = tick.tick() => keeper.tick()?,
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => {}
        }
    };
    stack.wind_down().await;
    StackState::remove(data);
    result
}

/// Watches the services, starts those again that end by themselves, and keeps the state file true.
struct Keeper {
    stack: Arc<Stack>,
    ready: bool,
    published: Option<(bool, Vec<crate::ServiceState>)>,
    restarts: BTreeMap<String, Vec<Instant>>,
    error: Option<String>,
}

impl Keeper {
    fn new(stack: Arc<Stack>) -> Self {
        Self { stack, ready: false, published: None, restarts: BTreeMap::new(), error: None }
    }

    fn tick(&mut self) -> Result<(), StackError> {
        if self.ready {
            let dead: Vec<Unit> = self.stack.units().filter(|unit| unit.died()).cloned().collect();
            for unit in dead {
                self.revive(unit);
            }
        }
        let now = (self.ready, self.stack.services());
        if self.published.as_ref() != Some(&now) {
            self.stack.publish(self.ready, self.error.clone())?;
            self.published = Some(now);
        }
        Ok(())
    }

    fn revive(&mut self, unit: Unit) {
        let name = unit.plan().name.clone();
        let times = self.restarts.entry(name.clone()).or_default();
        times.retain(|time| time.elapsed() < RESTART_WINDOW);
        if times.len() >= MAX_RESTARTS {
            let seconds = RESTART_WINDOW.as_secs();
            let error = format!("{name} ended {MAX_RESTARTS} times within {seconds} s and is not started again");
            tracing::error!(service = name, log = %unit.plan().log.display(), "ended too often: giving up");
            self.error = Some(error);
            unit.mark(Phase::Failed);
            return;
        }
        let pause = TICK * 2u32.saturating_pow(u32::try_from(times.len()).unwrap_or(u32::MAX));
        times.push(Instant::now());
        tracing::warn!(service = name, pause_ms = pause.as_millis(), "ended by itself: starting again");
        unit.mark(Phase::Restarting);
        unit.bury();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if unit.state().phase != Phase::Restarting {
                return;
            }
            if let Err(error) = unit.start().await {
                tracing::error!(service = unit.plan().name, %error, "did not start again");
                // With a process that ended the next turn tries again; without one there is nothing to watch.
                if unit.process().is_none() {
                    unit.mark(Phase::Failed);
                }
            }
        });
    }
}
