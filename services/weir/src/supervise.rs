//! The process that runs the services: starts what the plan says, starts again what fails, ends with all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, bail};
use tokio::signal::unix::{SignalKind, signal};
use weir_stack::{Phase, ProcessId, Supervised};

use crate::context::Context;
use crate::fleet::{self, FleetState, Instance, InstanceState, Plan};

/// Arguments of `weir supervise-services`, which `weir up` starts.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the subcommand.
///
/// # Errors
/// As [`supervise`].
pub async fn run(_: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    supervise(&context.data, std::future::pending()).await?;
    Ok(ExitCode::SUCCESS)
}

const TURN: Duration = Duration::from_millis(200);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);
/// Who ran so long is not failing at its start: its backoff begins anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// More than the runner's own grace for work that runs.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// A log that is longer is put aside when its instance starts.
const LONGEST_LOG: u64 = 32 << 20;
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the plan in folder `data` until SIGTERM or SIGINT, or until `stop` is done. Follows changes of the plan.
///
/// # Errors
/// When the plan can't be read or the state not written.
pub async fn supervise(data: &Path, stop: impl Future<Output = ()>) -> color_eyre::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A terminal that goes away is no reason to end.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut stop = std::pin::pin!(stop);
    let _lock = lock(data)?;
    let mut fleet = Fleet::new(data, Plan::read(data)?)?;
    let mut turn = tokio::time::interval(TURN);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut stop => break,
            _ = hangup.recv() => {}
            _ = turn.tick() => fleet.turn().await?,
        }
    }
    fleet.stop().await
}

/// One supervisor in a folder: the lock is the kernel's and goes with the process.
fn lock(data: &Path) -> color_eyre::Result<File> {
    let path = fleet::folder(data).join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.wrap_err_with(|| format!("can't open {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("another supervisor runs the services of {}", data.display());
    }
    Ok(file)
}

struct Fleet {
    data: PathBuf,
    plan: Plan,
    members: BTreeMap<String, Member>,
    probe: reqwest::Client,
    written: Option<FleetState>,
}

struct Member {
    instance: Instance,
    process: Option<Supervised>,
    phase: Phase,
    started: Instant,
    again_at: Instant,
    backoff: Duration,
    restarts: u32,
    last_exit: Option<String>,
}

impl Fleet {
    fn new(data: &Path, plan: Plan) -> color_eyre::Result<Self> {
        let probe = reqwest::Client::builder().timeout(PROBE_TIMEOUT).no_proxy().build()?;
        let mut fleet =
            Self { data: data.to_owned(), plan: plan.clone(), members: BTreeMap::new(), probe, written: None };
        for instance in plan.instances {
            fleet.members.insert(instance.name.clone(), Member::new(instance));
        }
        Ok(fleet)
    }

    async fn turn(&mut self) -> color_eyre::Result<()> {
        self.follow_plan().await;
        for member in self.members.values_mut() {
            member.turn(&self.plan.config);
        }
        let probes = self.members.values_mut().map(|member| member.probe(&self.probe));
        futures::future::join_all(probes).await;
        self.write()
    }

    /// Starts instances that were added to the plan, ends those that were taken out.
    async fn follow_plan(&mut self) {
        let Ok(plan) = Plan::read(&self.data) else { return };
        if plan == self.plan {
            return;
        }
        let wanted: BTreeMap<_, _> = plan.instances.iter().map(|instance| (instance.name.clone(), instance)).collect();
        let gone: Vec<_> = self.members.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        let leaving: Vec<_> = gone.iter().filter_map(|name| self.members.remove(name)?.process).collect();
        stop_all(leaving).await;
        for (name, instance) in wanted {
            self.members.entry(name).or_insert_with(|| Member::new(instance.clone()));
        }
        self.plan = plan;
    }

    async fn stop(mut self) -> color_eyre::Result<()> {
        let mut running = Vec::new();
        for member in self.members.values_mut() {
            member.phase = Phase::Stopped;
            running.extend(member.process.take());
        }
        stop_all(running).await;
        self.write()
    }

    fn write(&mut self) -> color_eyre::Result<()> {
        let in_order = self.plan.instances.iter().filter_map(|instance| self.members.get(&instance.name));
        let instances = in_order.map(Member::state).collect();
        let state = FleetState { supervisor: ProcessId::own(), instances };
        if self.written.as_ref() != Some(&state) {
            state.write(&self.data).wrap_err("can't write the state of the services")?;
            self.written = Some(state);
        }
        Ok(())
    }
}

/// All are asked at once, so that the slowest decides how long it takes, not the sum.
async fn stop_all(processes: Vec<Supervised>) {
    let stops = processes.into_iter().map(|process| tokio::task::spawn_blocking(move || process.stop(STOP_GRACE)));
    futures::future::join_all(stops).await;
}

impl Member {
    fn new(instance: Instance) -> Self {
        let now = Instant::now();
        Self {
            instance,
            process: None,
            phase: Phase::Waiting,
            started: now,
            again_at: now,
            backoff: FIRST_BACKOFF,
            restarts: 0,
            last_exit: None,
        }
    }

    /// Starts it when it is time, notices when it ended.
    fn turn(&mut self, config: &Path) {
        if let Some(status) = self.process.as_mut().and_then(Supervised::ended) {
            self.process = None;
            self.last_exit = Some(status.to_string());
            if status.success() {
                // It was asked to end by someone who knows.
                self.phase = Phase::Stopped;
                return;
            }
            if self.started.elapsed() >= HEALTHY_AFTER {
                self.backoff = FIRST_BACKOFF;
            }
            tracing::warn!(instance = self.instance.name, %status, backoff = ?self.backoff, "service ended");
            self.phase = Phase::Restarting;
            self.again_at = Instant::now() + self.backoff;
            self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
            self.restarts += 1;
        }
        let due = matches!(self.phase, Phase::Waiting | Phase::Restarting) && Instant::now() >= self.again_at;
        if due {
            self.start(config);
        }
    }

    fn start(&mut self, config: &Path) {
        self.started = Instant::now();
        put_aside(&self.instance.log);
        let args = ["--config".to_owned(), config.display().to_string()];
        let environment = [
            ("WEIR_HTTP__LISTEN".to_owned(), format!("127.0.0.1:{}", self.instance.port)),
            ("WEIR_RUNNER__INSTANCE".to_owned(), self.instance.name.clone()),
        ];
        match Supervised::start(&self.instance.program, &args, &environment, &self.instance.log) {
            Ok(process) => {
                self.process = Some(process);
                self.phase = Phase::Starting;
            }
            Err(error) => {
                tracing::error!(instance = self.instance.name, %error, "service can't be started");
                self.last_exit = Some(format!("can't be started: {error}"));
                self.phase = Phase::Restarting;
                self.again_at = Instant::now() + self.backoff;
                self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
                self.restarts += 1;
            }
        }
    }

    async fn probe(&mut self, client: &reqwest::Client) {
        if self.process.is_none() {
            return;
        }
        let answer = client.get(format!("{}/readyz", self.url())).send().await;
        let ready = answer.is_ok_and(|answer| answer.status().is_success());
        self.phase = if ready { Phase::Ready } else { Phase::Starting };
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.instance.port)
    }

    fn state(&self) -> InstanceState {
        InstanceState {
            name: self.instance.name.clone(),
            service: self.instance.service.clone(),
            phase: self.phase,
            process: self.process.as_ref().map(Supervised::id),
            url: self.url(),
            log: self.instance.log.clone(),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
        }
    }
}

/// One older log is kept. Failing to put it aside is no reason not to start.
fn put_aside(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|meta| meta.len() > LONGEST_LOG) {
        let _ = std::fs::rename(log, log.with_extension("log.1"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
    use std::os::unix::fs::PermissionsExt;

    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A plan of one instance that is this shell script.
    fn plan(data: &Path, name: &str, script: &str) -> Instance {
        let program = data.join(format!("{name}.sh"));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let log = fleet::logs(data).join(format!("{name}.log"));
        Instance { name: name.into(), service: name.into(), program, port: 1, log }
    }

    fn write(data: &Path, instances: Vec<Instance>) {
        // As the program does first; the probes' client needs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        std::fs::create_dir_all(fleet::folder(data)).unwrap();
        std::fs::create_dir_all(fleet::logs(data)).unwrap();
        Plan { config: data.join("config.toml"), instances }.write(data).unwrap();
    }

    async fn until(data: &Path, what: &str, condition: impl Fn(&[InstanceState]) -> bool) -> Vec<InstanceState> {
        let started = Instant::now();
        loop {
            let instances = FleetState::read(data).map(|state| state.instances).unwrap_or_default();
            if condition(&instances) {
                return instances;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "not in time: {what}: {instances:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    async fn who_fails_is_started_again_and_who_ends_well_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_owned();
        write(&data, vec![plan(&data, "fails", "exit 3"), plan(&data, "ends", "exit 0")]);
        let stop = CancellationToken::new();
        let (folder, stopped) = (data.clone(), stop.clone());
        let task = tokio::spawn(async move { supervise(&folder, stopped.cancelled_owned()).await });
        let instances = until(&data, "two restarts", |all| all.iter().any(|one| one.restarts >= 2)).await;
        let ended = instances.iter().find(|one| one.name == "ends").unwrap();
        assert_eq!((ended.phase, ended.restarts), (Phase::Stopped, 0));
        let failed = instances.iter().find(|one| one.name == "fails").unwrap();
        assert!(failed.last_exit.as_ref().unwrap().contains('3'), "{failed:?}");
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_changed_plan_is_followed_and_at_the_end_nothing_runs() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_owned();
        let (first, second) = (plan(&data, "first", "exec sleep 600"), plan(&data, "second", "exec sleep 600"));
        write(&data, vec![first.clone()]);
        let stop = CancellationToken::new();
        let (folder, stopped) = (data.clone(), stop.clone());
        let task = tokio::spawn(async move { supervise(&folder, stopped.cancelled_owned()).await });
        let running = |all: &[InstanceState], name: &str| {
            all.iter().find(|one| one.name == name).and_then(|one| one.process).filter(|process| process.alive())
        };
        let before = until(&data, "the first runs", |all| running(all, "first").is_some()).await;
        write(&data, vec![second]);
        let after = until(&data, "the second runs", |all| running(all, "second").is_some()).await;
        assert!(running(&before, "first").is_none(), "what is not planned any more has ended");
        let second = running(&after, "second").unwrap();
        assert!(supervise(&data, std::future::pending()).await.is_err(), "one supervisor a folder");
        stop.cancel();
        task.await.unwrap().unwrap();
        assert!(!second.alive());
    }
}
