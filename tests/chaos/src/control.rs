//! Negative controls: a mechanism is switched off in a small scenario that needs it, and the checks must notice.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use color_eyre::eyre::bail;
use tokio::task::spawn_blocking;

use crate::chaos::{leave, look, report};
use crate::check::{LOST, ONCE, ORDER, OUTCOMES};
use crate::drain::drain;
use crate::feed::{Feed, Sent};
use crate::fleet::{FIRST, SERVICES};
use crate::replay::replay;
use crate::report::Report;
use crate::stop::{Interrupted, Stop};
use crate::workload::{Request, There, Wish};
use crate::world::{Run, World};

const DOCUMENTS: usize = 60;
const ROUNDS: usize = 5;
/// How long a scenario may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a failpoint may take to be reached.
const REACH: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

/// A mechanism and the scenario that needs it.
#[derive(Debug, Clone, Copy)]
struct Control {
    name: &'static str,
    /// What switches it off.
    off: (&'static str, &'static str),
    /// The promise that is broken without it.
    breaks: &'static str,
    /// Service, and the failpoint in it that the mechanism is needed for; without one, the first
    /// requests for some documents fail and are replayed in the end, when later ones were decided.
    trouble: Option<(&'static str, &'static str)>,
}

const WITHOUT: &str = "WEIR_TEST_WITHOUT";

const CONTROLS: [Control; 5] = [
    // Outputs are stored, and the process dies before it has committed its positions.
    Control {
        name: "transactions",
        off: ("WEIR_TEST_AT_LEAST_ONCE", "1"),
        breaks: ONCE,
        trouble: Some(("chunk", "chunk/before-commit:3")),
    },
    Control { name: "revision-fencing", off: (WITHOUT, "revision-fencing"), breaks: ORDER, trouble: None },
    // The commit was never asked for, and is taken for done.
    Control {
        name: "asking-after-doubt",
        off: (WITHOUT, "asking-after-doubt"),
        breaks: LOST,
        trouble: Some(("chunk", "chunk/lost-commit-request:3")),
    },
    // The commit was done, and is taken for not done.
    Control {
        name: "trusting-an-applied-commit",
        off: (WITHOUT, "trusting-an-applied-commit"),
        breaks: ONCE,
        trouble: Some(("embed", "embed/lost-commit-answer:3")),
    },
    // The state says that requests are decided, and the process dies before that is so in Kafka.
    Control {
        name: "write-after-commit",
        off: (WITHOUT, "write-after-commit"),
        breaks: OUTCOMES,
        trouble: Some(("ingest", "extract/after-send-offsets:3")),
    },
];

/// Runs the scenario of a control, or of all of them, with the mechanism and without. Whether all went as they must:
/// without a violation, and with those of the promise that rests on the mechanism.
///
/// # Errors
/// When there is no such control, a scenario can't be run, or somebody asks to end.
pub async fn run(name: &str, stop: &Stop) -> color_eyre::Result<bool> {
    let chosen: Vec<Control> = CONTROLS.into_iter().filter(|control| name == "all" || control.name == name).collect();
    if chosen.is_empty() {
        let names = CONTROLS.map(|control| control.name);
        bail!("there is no control {name}; controls are {} and all", names.join(", "));
    }
    let mut world = tokio::select! {
        world = World::start(1) => world?,
        () = stop.asked() => return Err(Interrupted.into()),
    };
    let mut good = true;
    for control in chosen {
        good &= told(&control, true, &scenario(&world, &control, true, stop).await?);
        good &= told(&control, false, &scenario(&world, &control, false, stop).await?);
    }
    if !good {
        leave(&world.keep());
    }
    Ok(good)
}

/// Says how a scenario ended. Whether that is as it must be.
fn told(control: &Control, on: bool, report: &Report) -> bool {
    let noticed = || report.violations.iter().filter(|violation| violation.promise == control.breaks);
    let (with, good) = if on { ("with", report.is_green()) } else { ("without", noticed().next().is_some()) };
    let verdict = if good { "as it must be" } else { "NOT as it must be" };
    println!("{with} {}: {} violations, {verdict}", control.name, report.violations.len());
    let shown: Vec<_> =
        if good && !on { noticed().take(3).collect() } else { report.violations.iter().take(50).collect() };
    for violation in shown {
        println!("    {}: {}", violation.promise, violation.what);
    }
    good
}

async fn scenario(world: &World, control: &Control, on: bool, stop: &Stop) -> color_eyre::Result<Report> {
    let run = world.prepare(&format!("{}-{}", if on { "with" } else { "without" }, control.name)).await?;
    let (variable, value) = control.off;
    let off: Vec<(String, String)> = if on { Vec::new() } else { vec![(variable.to_owned(), value.to_owned())] };
    let small = ("WEIR_RUNNER__MAX_BATCH_RECORDS".to_owned(), "20".to_owned());
    let often = ("WEIR_RUNNER__COMMIT_INTERVAL_MS".to_owned(), "0".to_owned());
    let settings: Vec<(String, String)> = off.into_iter().chain([small, often]).collect();
    let workload = Arc::new(workload(control.trouble.is_none()));
    let ended = Stop::default();
    // The scenario's own result counts; the supervisor must be gone either way.
    let supervisor = run.fleet.supervise(&ended);
    let result = play(&run, world.folder(), control, &settings, &workload, stop).await;
    let looked = match result {
        Ok(()) => look(world, &run, &workload).await,
        Err(error) => Err(error),
    };
    ended.set();
    // It has nothing to say.
    let _ = supervisor.join();
    run.fleet.end(GRACE).await;
    let (verdict, evidence) = looked?;
    Ok(report(0, &workload, verdict, &evidence))
}

/// Feeds the workload, and lets a service meet its failpoint while there is enough to do.
async fn play(
    run: &Run,
    folder: &Path,
    control: &Control,
    settings: &[(String, String)],
    workload: &Arc<Vec<Request>>,
    stop: &Stop,
) -> color_eyre::Result<()> {
    let (feed, sent, all, asked) = (Feed::open(run)?, Sent::default(), Arc::clone(workload), stop.clone());
    spawn_blocking(move || feed.send(&all, Duration::ZERO, &sent, &asked)).await??;
    let troubled = control.trouble.map(|(service, _)| service);
    for service in SERVICES.iter().filter(|service| Some(**service) != troubled) {
        run.fleet.start(service, FIRST, settings)?;
    }
    if let Some((service, failpoint)) = control.trouble {
        run.fleet.start_armed(service, FIRST, settings, failpoint)?;
        let lost = failpoint.contains("/lost-");
        let begun = Instant::now();
        let met = || match lost {
            true => run.fleet.mentions(service, FIRST, "a test lost") > 0,
            false => run.fleet.starts(service, FIRST) > 1,
        };
        while !met() {
            stop.sleep(POLL).await?;
            if begun.elapsed() > REACH {
                bail!("{service} does not reach {failpoint}: see {}", run.fleet.log(service, FIRST).display());
            }
        }
    }
    drain(&run.kafka, PATIENCE, stop, |_| ()).await?;
    if control.trouble.is_none() {
        // What failed returns when everything behind it is decided.
        run.store.heal();
        replay(run, folder, false, stop).await?;
        drain(&run.kafka, PATIENCE, stop, |_| ()).await?;
    }
    Ok(())
}

/// Updates of some documents, one round after another. With `late`, the first request of some waits for its store.
fn workload(late: bool) -> Vec<Request> {
    let request = |round: usize, document: usize| {
        let text = format!("Gate {round} of weir {document} opens at noon.");
        let wish = if late && round == 0 && document.is_multiple_of(10) {
            Wish::Claim { name: format!("late-{document}.txt"), text, there: There::FailingUntilHealed }
        } else {
            Wish::Text(text)
        };
        Request {
            id: format!("r-{round}-{document}"),
            tenant: "acme",
            document: format!("doc-{document}"),
            wish,
            key: None,
            metadata: None,
        }
    };
    (0..ROUNDS).flat_map(|round| (0..DOCUMENTS).map(move |document| request(round, document))).collect()
}
