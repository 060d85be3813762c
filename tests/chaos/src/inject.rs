//! Carries faults out, one after another, and brings back what they took down.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;

use crate::fault::{Blow, Fault, Target};
use crate::fleet::FIRST;
use crate::kafka::STAGES;
use crate::stop::Stop;
use crate::watch::Watch;
use crate::world::{Run, World};

/// How long the injector waits until everything goes on after a fault.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long a service may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(20);
/// How long a server may take to end when it is asked to.
const SERVER_GRACE: Duration = Duration::from_secs(30);
/// How long a failpoint may take to be reached.
const REACH: Duration = Duration::from_secs(25);
/// How long the last requests may keep the stages busy.
const LAST_WORK: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
/// What the runner says of a commit that a failpoint put in doubt.
const LOST: &str = "a test lost";
/// The other instance, while the first is frozen.
const HEIR: &str = "1";

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// Number, from 0.
    pub number: usize,
    /// Seconds since the first request.
    pub at: f64,
    /// What was hurt.
    pub target: String,
    /// In what way, for counting.
    pub kind: &'static str,
    /// In words.
    pub what: String,
    /// Seconds until what was hurt was back.
    pub lasted: f64,
    /// Whether it counts among the recoveries: it was not mixed up with another fault.
    pub alone: bool,
    /// Whether it came about; a failpoint may not be reached when there is nothing to do.
    pub took_place: bool,
}

/// Hurts one run.
pub struct Injector<'a> {
    /// The servers.
    pub world: &'a World,
    /// The run.
    pub run: &'a Run,
    /// Tells when it goes on.
    pub watch: &'a Watch,
    /// When requests end: after that, nothing tells whether a stage goes on.
    pub until: Instant,
    /// Ends it early.
    pub stop: &'a Stop,
}

impl Injector<'_> {
    /// Carries out faults until requests end; `begun` is when the first request was sent. Calls `tell` before each.
    ///
    /// # Errors
    /// When something can't be brought back, or somebody asks to end.
    pub async fn hurt(
        &self,
        faults: impl Iterator<Item = Fault>,
        begun: Instant,
        mut tell: impl FnMut(&str),
    ) -> color_eyre::Result<Vec<Done>> {
        let mut done = Vec::new();
        let mut mixed = false;
        for (number, fault) in faults.enumerate() {
            self.stop.sleep(fault.pause).await?;
            if Instant::now() >= self.until {
                break;
            }
            tell(&fault.to_string());
            let (at, hit) = (begun.elapsed().as_secs_f64(), Instant::now());
            let took_place = self.carry_out(number, &fault).await?;
            done.push(Done {
                number,
                at,
                target: fault.target.to_string(),
                kind: fault.blow.kind(),
                what: fault.to_string(),
                lasted: hit.elapsed().as_secs_f64(),
                alone: !mixed && !fault.overlaps,
                took_place,
            });
            mixed = fault.overlaps;
            if !fault.overlaps {
                self.until_it_goes_on(number, &fault.target).await?;
            }
        }
        Ok(done)
    }

    /// Stages that a fault stops, and that have something to do all the time.
    fn stages(target: &Target) -> Vec<&'static str> {
        let is_hurt = |service: &str| match target {
            Target::Service(name) => service == *name,
            Target::Qdrant => service == "index",
            Target::Broker(_) | Target::Registry => service != "retry",
        };
        STAGES.iter().filter(|stage| is_hurt(stage.service)).map(|stage| stage.name).collect()
    }

    async fn until_it_goes_on(&self, number: usize, target: &Target) -> color_eyre::Result<()> {
        // The tiers may have nothing to do.
        let stages: Vec<_> = Self::stages(target).into_iter().filter(|stage| !stage.starts_with("retry.")).collect();
        let begun = Instant::now();
        while self.watch.is_awaited(number, &stages) && begun.elapsed() < PATIENCE && self.has_work() {
            self.stop.sleep(POLL).await?;
        }
        Ok(())
    }

    /// Whether requests come, or came a moment ago.
    fn has_work(&self) -> bool {
        Instant::now() < self.until + LAST_WORK
    }

    async fn carry_out(&self, number: usize, fault: &Fault) -> color_eyre::Result<bool> {
        match fault.target {
            Target::Service(service) => self.hurt_service(number, service, fault).await,
            _ => self.hurt_server(number, fault).await,
        }
    }

    async fn before(&self, target: &Target) -> std::collections::BTreeMap<&'static str, i64> {
        self.watch.committed_now(&Self::stages(target), Duration::from_secs(3)).await
    }

    async fn hurt_service(&self, number: usize, service: &'static str, fault: &Fault) -> color_eyre::Result<bool> {
        let fleet = &self.run.fleet;
        match fault.blow {
            Blow::Kill => {
                fleet.kill(service, FIRST)?;
                let before = self.before(&fault.target).await;
                self.stop.sleep(fault.down.min(Duration::from_secs(2))).await?;
                fleet.start_again(service, FIRST, None)?;
                self.watch.measure(number, &before);
            }
            Blow::Terminate => {
                let in_order = fleet.terminate(service, FIRST, GRACE).await?;
                let before = self.before(&fault.target).await;
                fleet.start_again(service, FIRST, None)?;
                self.watch.measure(number, &before);
                return Ok(in_order);
            }
            Blow::Freeze { heir } => {
                fleet.signal(service, FIRST, Signal::STOP)?;
                let before = self.before(&fault.target).await;
                if heir {
                    fleet.start(service, HEIR, &[])?;
                    self.watch.measure(number, &before);
                }
                self.stop.sleep(fault.down).await?;
                fleet.signal(service, FIRST, Signal::CONT)?;
                if heir {
                    // Both are there for a while: the zombie finds out.
                    self.until_it_goes_on(number, &fault.target).await?;
                    fleet.terminate(service, HEIR, GRACE).await?;
                } else {
                    self.watch.measure(number, &before);
                }
            }
            Blow::Die { .. } | Blow::Lose { .. } => return self.arm(number, service, fault).await,
        }
        Ok(true)
    }

    /// Starts a service with a failpoint, and waits until that was reached.
    async fn arm(&self, number: usize, service: &'static str, fault: &Fault) -> color_eyre::Result<bool> {
        let fleet = &self.run.fleet;
        let lost = || fleet.mentions(service, FIRST, LOST);
        let lost_before = lost();
        fleet.terminate(service, FIRST, GRACE).await?;
        fleet.start_again(service, FIRST, fault.blow.failpoint())?;
        let starts = fleet.starts(service, FIRST);
        let reached = || match fault.blow {
            Blow::Lose { .. } => lost() > lost_before,
            _ => fleet.starts(service, FIRST) > starts,
        };
        let begun = Instant::now();
        while !reached() && begun.elapsed() < REACH && self.has_work() {
            self.stop.sleep(POLL).await?;
        }
        let took_place = reached();
        let before = self.before(&fault.target).await;
        if !took_place {
            fleet.terminate(service, FIRST, GRACE).await?;
            fleet.start_again(service, FIRST, None)?;
        }
        self.watch.measure(number, &before);
        Ok(took_place)
    }

    async fn hurt_server(&self, number: usize, fault: &Fault) -> color_eyre::Result<bool> {
        let Some(process) = self.world.process(&fault.target.to_string()) else { return Ok(false) };
        let signal = match fault.blow {
            Blow::Terminate => Signal::TERM,
            Blow::Freeze { .. } => Signal::STOP,
            Blow::Kill | Blow::Die { .. } | Blow::Lose { .. } => Signal::KILL,
        };
        process.signal(signal);
        let begun = Instant::now();
        while signal != Signal::STOP && process.alive() && begun.elapsed() < SERVER_GRACE {
            self.stop.sleep(POLL).await?;
        }
        let before = self.before(&fault.target).await;
        self.stop.sleep(fault.down).await?;
        if signal == Signal::STOP {
            process.signal(Signal::CONT);
        } else {
            if process.alive() {
                process.signal(Signal::KILL);
            }
            match fault.target {
                Target::Broker(index) => self.world.stack.restart_broker(usize::from(index)).await?,
                Target::Registry => self.world.stack.start_registry().await?,
                Target::Qdrant | Target::Service(_) => self.world.stack.start_qdrant().await?,
            }
        }
        self.watch.measure(number, &before);
        Ok(true)
    }
}
