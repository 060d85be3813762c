//! The services under test as processes: started, hurt, and started again when they end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use color_eyre::eyre::{WrapErr, bail, eyre};
use rustix::process::Signal;
use weir_stack::Supervised;

use crate::stop::Stop;

/// The services of documents, in the order in which records flow.
pub const SERVICES: [&str; 5] = ["ingest", "chunk", "embed", "index", "retry"];
/// The instance of a service that always runs.
pub const FIRST: &str = "0";
const TURN: Duration = Duration::from_millis(50);
/// A process that ends at once is not started again at once.
const LEAST_LIFE: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Member {
    program: PathBuf,
    environment: Vec<(String, String)>,
    log: PathBuf,
    /// Whether it is to run.
    wanted: bool,
    /// A failpoint that its process was started with.
    armed: Option<String>,
    running: Option<Supervised>,
    started: Instant,
    starts: u32,
}

#[derive(Debug, Default)]
struct Inner {
    members: BTreeMap<(String, String), Member>,
    /// Ends that nobody brought about.
    surprises: Vec<String>,
}

/// The services of one run; clones are the same. They end with the last clone, and with this process however it ends.
#[derive(Debug, Clone)]
pub struct Fleet {
    folder: PathBuf,
    common: Vec<(String, String)>,
    inner: Arc<Mutex<Inner>>,
}

/// A program of this build.
///
/// # Errors
/// When it does not lie beside this one.
pub fn program(name: &str) -> color_eyre::Result<PathBuf> {
    let own = std::env::current_exe().wrap_err("can't find out where this program lies")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    found.ok_or_else(|| eyre!("{name} is not built: run `make build`"))
}

impl Fleet {
    /// Services with this environment; their logs and state lie in `folder`. None runs yet.
    #[must_use]
    pub fn new(folder: &Path, common: Vec<(String, String)>) -> Self {
        Self { folder: folder.to_owned(), common, inner: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an instance of a service, and from now on again whenever it ends.
    ///
    /// # Errors
    /// When its program is missing or does not start.
    pub fn start(&self, service: &str, instance: &str, more: &[(String, String)]) -> color_eyre::Result<()> {
        self.start_with(service, instance, more, None)
    }

    /// The same with a failpoint, the first time.
    ///
    /// # Errors
    /// As [`Fleet::start`].
    pub fn start_armed(
        &self,
        service: &str,
        instance: &str,
        more: &[(String, String)],
        failpoint: &str,
    ) -> color_eyre::Result<()> {
        self.start_with(service, instance, more, Some(failpoint.to_owned()))
    }

    fn start_with(
        &self,
        service: &str,
        instance: &str,
        more: &[(String, String)],
        armed: Option<String>,
    ) -> color_eyre::Result<()> {
        let mut environment = self.common.clone();
        environment.push(("WEIR_RUNNER__INSTANCE".into(), instance.into()));
        environment.extend(more.iter().cloned());
        let mut member = Member {
            program: program(&format!("weir-{service}"))?,
            environment,
            log: self.log(service, instance),
            wanted: true,
            armed,
            running: None,
            started: Instant::now(),
            starts: 0,
        };
        member.launch()?;
        self.inner().members.insert((service.to_owned(), instance.to_owned()), member);
        Ok(())
    }

    /// Log of an instance.
    #[must_use]
    pub fn log(&self, service: &str, instance: &str) -> PathBuf {
        self.folder.join(format!("{service}-{instance}.log"))
    }

    /// Starts again whatever ended and is wanted, in a thread of its own, until `stop`.
    #[must_use]
    pub fn supervise(&self, stop: &Stop) -> JoinHandle<()> {
        let (fleet, stop) = (self.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.is_set() {
                fleet.turn();
                std::thread::sleep(TURN);
            }
        })
    }

    fn turn(&self) {
        let mut inner = self.inner();
        let Inner { members, surprises } = &mut *inner;
        for ((service, instance), member) in members.iter_mut().filter(|(_, member)| member.wanted) {
            let ended = member.running.as_mut().is_some_and(|running| running.ended().is_some());
            if !ended || member.started.elapsed() < LEAST_LIFE {
                continue;
            }
            if member.armed.take().is_none() {
                let log = std::fs::read_to_string(&member.log).unwrap_or_default();
                let words = log.lines().last().unwrap_or_default().chars().take(300).collect::<String>();
                surprises.push(format!("{service}-{instance} after {:.0?}: {words}", member.started.elapsed()));
            }
            if let Err(error) = member.launch() {
                surprises.push(format!("{service}-{instance} can't be started again: {error:#}"));
            }
        }
    }

    fn with<T>(
        &self,
        service: &str,
        instance: &str,
        act: impl FnOnce(&mut Member) -> color_eyre::Result<T>,
    ) -> color_eyre::Result<T> {
        let key = (service.to_owned(), instance.to_owned());
        match self.inner().members.get_mut(&key) {
            Some(member) => act(member),
            None => bail!("{service}-{instance} was never started"),
        }
    }

    /// Kills an instance; it stays down.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, service: &str, instance: &str) -> color_eyre::Result<()> {
        self.with(service, instance, |member| {
            member.wanted = false;
            drop(member.running.take());
            Ok(())
        })
    }

    /// Asks an instance to end and waits; kills it when that takes longer than `limit`. It stays down. Whether it ended
    /// by itself, and in order.
    ///
    /// # Errors
    /// When there is none.
    pub async fn terminate(&self, service: &str, instance: &str, limit: Duration) -> color_eyre::Result<bool> {
        let taken = self.with(service, instance, |member| {
            member.wanted = false;
            Ok(member.running.take())
        })?;
        let Some(mut running) = taken else { return Ok(false) };
        running.terminate();
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = running.ended() {
                return Ok(status.success());
            }
            tokio::time::sleep(TURN).await;
        }
        Ok(false)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn signal(&self, service: &str, instance: &str, signal: Signal) -> color_eyre::Result<()> {
        self.with(service, instance, |member| {
            if let Some(running) = &member.running {
                running.id().signal(signal);
            }
            Ok(())
        })
    }

    /// Starts an instance that was brought down, with a failpoint or without.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&self, service: &str, instance: &str, failpoint: Option<String>) -> color_eyre::Result<()> {
        self.with(service, instance, |member| {
            member.armed = failpoint;
            member.wanted = true;
            member.launch()
        })
    }

    /// How often an instance was started.
    #[must_use]
    pub fn starts(&self, service: &str, instance: &str) -> u32 {
        self.with(service, instance, |member| Ok(member.starts)).unwrap_or_default()
    }

    /// How often the log of an instance says this.
    #[must_use]
    pub fn mentions(&self, service: &str, instance: &str, words: &str) -> usize {
        std::fs::read_to_string(self.log(service, instance)).map_or(0, |log| log.matches(words).count())
    }

    /// Waits until every service has joined its groups.
    ///
    /// # Errors
    /// When one does not within `limit`, or somebody asks to end.
    pub async fn joined(&self, limit: Duration, stop: &Stop) -> color_eyre::Result<()> {
        let begun = Instant::now();
        for service in SERVICES {
            while self.mentions(service, FIRST, "lanes assigned") == 0 {
                stop.sleep(TURN).await?;
                if begun.elapsed() > limit {
                    bail!("{service} does not join its groups: {:?}", self.surprises());
                }
            }
        }
        Ok(())
    }

    /// Ends that nobody brought about: who ended, when and with what last words.
    #[must_use]
    pub fn surprises(&self) -> Vec<String> {
        self.inner().surprises.clone()
    }

    /// Ends all of them, in order, and waits.
    pub async fn end(&self, limit: Duration) {
        let names: Vec<_> = self.inner().members.keys().cloned().collect();
        let ends = names.iter().map(|(service, instance)| self.terminate(service, instance, limit));
        for end in ends {
            // Only one that was never started can't be ended.
            let _ = end.await;
        }
    }
}

impl Member {
    fn launch(&mut self) -> color_eyre::Result<()> {
        drop(self.running.take());
        let mut environment = self.environment.clone();
        environment.extend(self.armed.iter().map(|wanted| ("WEIR_TEST_FAILPOINT".to_owned(), wanted.clone())));
        let started = Supervised::start(&self.program, &[], &environment, &self.log);
        self.running = Some(started.wrap_err_with(|| self.program.display().to_string())?);
        self.started = Instant::now();
        self.starts += 1;
        Ok(())
    }
}
