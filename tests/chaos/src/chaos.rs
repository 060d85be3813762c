//! One run: start, feed, hurt, drain, look.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use color_eyre::eyre::eyre;
use tokio::task::spawn_blocking;

use crate::check::{Verdict, judge, judge_points};
use crate::drain::drain;
use crate::evidence::Evidence;
use crate::fault::Faults;
use crate::feed::{Feed, Sent};
use crate::inject::{Done, Injector};
use crate::options::Settings;
use crate::points::Points;
use crate::replay::replay;
use crate::report::Report;
use crate::stop::Stop;
use crate::watch::Watch;
use crate::workload::{Request, requests};
use crate::world::{LANES, Run, World};

/// Brokers of a run: one may be away.
const BROKERS: u16 = 3;
/// Part of the window after which the object store is healed and its dead letters are replayed.
const HEALED_AFTER: f64 = 0.55;
/// How long a service may take to end in the end.
const GRACE: Duration = Duration::from_secs(15);
/// How long services may take to join their groups.
const JOINING: Duration = Duration::from_secs(90);
/// How long the sweeper has to remove what heads left behind.
const SWEEPING: Duration = Duration::from_secs(60);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Ends the threads of a run when it ends, however it does.
struct Threads {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What is shown while it runs.
#[derive(Clone)]
struct Ticker {
    begun: Instant,
    last: Arc<Mutex<Instant>>,
    doing: Arc<Mutex<String>>,
}

impl Ticker {
    fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, last: Arc::new(Mutex::new(now)), doing: Arc::default() }
    }

    fn say(&self, what: &str) {
        let clear = if std::io::stdout().is_terminal() { "\r\x1b[K" } else { "" };
        println!("{clear}{:6.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// A fault or a phase: what the progress line ends with.
    fn doing(&self, what: &str) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = what.to_owned();
        if !std::io::stdout().is_terminal() {
            self.say(what);
        }
    }

    /// On a terminal one line that changes; elsewhere a line now and then.
    fn progress(&self, what: &str) {
        let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let elapsed = self.begun.elapsed().as_secs_f64();
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K{elapsed:6.1} s  {what}  {doing}");
            // A terminal that is gone need not be told.
            let _ = std::io::stdout().flush();
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() > TELL_EVERY {
            *last = Instant::now();
            println!("{elapsed:6.1} s  {what}");
        }
    }
}

/// A whole run of chaos.
///
/// # Errors
/// When the stack does not start, nothing can be said about the result, or somebody asks to end.
pub async fn run(settings: Settings, stop: &Stop) -> color_eyre::Result<(Report, World)> {
    let ticker = Ticker::new();
    ticker.say("starting three brokers, the registry, Qdrant and the services");
    let world = tokio::select! {
        world = World::start(BROKERS) => world?,
        () = stop.asked() => return Err(crate::stop::Interrupted.into()),
    };
    let run = world.prepare(&format!("chaos-{}", settings.seed)).await?;
    run.start_all(&[])?;
    let ended = Stop::default();
    let mut threads = Threads { stop: ended.clone(), threads: vec![run.fleet.supervise(&ended)] };
    let (watch, watching) = Watch::begin(&run.kafka, LANES, &ended)?;
    threads.threads.extend(watching);
    run.fleet.joined(JOINING, stop).await?;
    let workload = Arc::new(requests(settings.seed, settings.requests));
    ticker.say(&format!("{} requests over {:.0} s", workload.len(), settings.window.as_secs_f64()));
    let faults = storm(&settings, &world, &run, &watch, &workload, &ticker, stop).await?;
    ticker.say("no more faults: draining");
    finish(&settings, &world, &run, &ticker, stop).await?;
    let recoveries = watch.recoveries();
    let (verdict, evidence) = look(&world, &run, &workload).await?;
    let surprises = run.fleet.surprises();
    drop(threads);
    run.fleet.end(GRACE).await;
    let mut report = report(settings.seed, &workload, verdict, &evidence);
    report.figures.insert("store failures met", decimal(run.store.failed()));
    report.figures.insert("seconds in all", ticker.begun.elapsed().as_secs_f64());
    Ok((Report { faults, recoveries, surprises, ..report }, world))
}

/// Requests and faults at the same time.
async fn storm(
    settings: &Settings,
    world: &World,
    run: &Run,
    watch: &Watch,
    workload: &Arc<Vec<Request>>,
    ticker: &Ticker,
    stop: &Stop,
) -> color_eyre::Result<Vec<Done>> {
    let (sent, feed) = (Sent::default(), Feed::open(run)?);
    let feeding = {
        let (workload, sent, stop, window) = (Arc::clone(workload), sent.clone(), stop.clone(), settings.window);
        spawn_blocking(move || feed.send(&workload, window, &sent, &stop))
    };
    let begun = Instant::now();
    let until = begun + settings.window;
    let injector = Injector { world, run, watch, until, stop };
    let hurting = injector.hurt(Faults::new(settings.seed, settings.bounds), begun, |what| ticker.doing(what));
    let healing = async {
        stop.sleep(settings.window.mul_f64(HEALED_AFTER)).await?;
        run.store.heal();
        ticker.doing("the object store is healed; replaying its dead letters");
        replay(run, world.folder(), true, stop).await
    };
    let telling = async {
        loop {
            let done =
                ["extract", "chunk", "embed", "index"].map(|stage| format!("{stage} {}", watch.committed(stage)));
            ticker.progress(&format!("sent {} of {}  {}", sent.count(), workload.len(), done.join("  ")));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let all = async { tokio::try_join!(hurting, healing) };
    let (done, ()) = tokio::select! {
        // Nothing of it goes on when one of them fails.
        done = all => done.inspect_err(|_| stop.set())?,
        () = telling => (Vec::new(), ()),
    };
    feeding.await.map_err(|error| eyre!("the feed ended: {error}"))??;
    Ok(done)
}

/// Lets everything come to its end: what was sent, and what is replayed after that.
async fn finish(settings: &Settings, world: &World, run: &Run, ticker: &Ticker, stop: &Stop) -> color_eyre::Result<()> {
    let tell = |lag: i64| ticker.progress(&format!("{lag} records and markers are left"));
    drain(&run.kafka, settings.draining, stop, tell).await?;
    replay(run, world.folder(), false, stop).await?;
    let done = drain(&run.kafka, settings.draining, stop, tell).await?;
    ticker.say(if done { "everything is done: looking at it" } else { "it does not come to an end: looking at it" });
    Ok(())
}

/// Looks at everything with the reader of its own.
///
/// # Errors
/// When Kafka or Qdrant can't be read.
pub async fn look(world: &World, run: &Run, workload: &Arc<Vec<Request>>) -> color_eyre::Result<(Verdict, Evidence)> {
    let (kafka, sent) = (run.kafka.clone(), Arc::clone(workload));
    let judged = spawn_blocking(move || -> color_eyre::Result<_> {
        let evidence = Evidence::collect(&kafka)?;
        Ok((judge(&sent, &evidence), evidence))
    });
    let (mut verdict, mut evidence) = judged.await??;
    // Where something is wrong already, points may never be as they must.
    let limit = if verdict.violations.is_empty() { SWEEPING } else { SWEEPING / 10 };
    evidence.points = Points::settle(&world.stack.qdrant_url(), &run.collection, &verdict.model.shown, limit).await?;
    judge_points(&evidence, &mut verdict);
    verdict.violations.sort();
    Ok((verdict, evidence))
}

/// What can be said without faults.
#[must_use]
pub fn report(seed: u64, workload: &[Request], verdict: Verdict, evidence: &Evidence) -> Report {
    let count = |n: usize| decimal(u64::try_from(n).unwrap_or(u64::MAX));
    let figures = [
        ("points", count(evidence.points.count())),
        ("records returned from delay tiers", count(evidence.returned)),
        ("dead letters replayed", count(evidence.replays.values().sum())),
    ];
    Report {
        seed,
        requests: workload.len(),
        ends: verdict.ends,
        violations: verdict.violations,
        figures: figures.into(),
        ..Report::default()
    }
}

fn decimal(n: u64) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}

/// Where a run that went wrong can be looked at.
pub fn leave(folder: &Path) {
    eprintln!("logs and data are kept in {}", folder.display());
}
