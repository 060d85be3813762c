//! Dead letters given back by `weir dlq replay`, which is killed at it once.

use std::path::Path;
use std::time::{Duration, Instant};

use color_eyre::eyre::bail;
use weir_stack::Supervised;

use crate::fleet::program;
use crate::stop::Stop;
use crate::world::Run;

/// What the object store was to blame for.
const CLASSES: [&str; 2] = ["uri-failing", "uri-not-found"];
/// Attempts at a replay: brokers may be away.
const ATTEMPTS: usize = 12;
const LIMIT: Duration = Duration::from_secs(90);
const FIRST_LIFE: Duration = Duration::from_millis(1_500);
const POLL: Duration = Duration::from_millis(50);

/// Replays what failed because of the store. Slowly and killed at it first, where there is a fault to be made of it.
///
/// # Errors
/// When it does not succeed however often it is tried, or somebody asks to end.
pub async fn replay(run: &Run, folder: &Path, kill_it: bool, stop: &Stop) -> color_eyre::Result<()> {
    let weir = program("weir")?;
    let log = folder.join("replay.log");
    for class in CLASSES {
        let mut arguments = run.cli();
        arguments.extend(["dlq", "replay", "--stage", "extract", "--class", class].map(str::to_owned));
        if kill_it {
            let slow = ["--batch", "2", "--rate", "10"].map(str::to_owned);
            let slow: Vec<String> = arguments.iter().cloned().chain(slow).collect();
            let running = Supervised::start(&weir, &slow, &[], &log)?;
            stop.sleep(FIRST_LIFE).await?;
            drop(running);
        }
        let mut attempts = 0;
        while !once(&weir, &arguments, &log, stop).await? {
            attempts += 1;
            if attempts >= ATTEMPTS {
                bail!("weir dlq replay does not succeed, see {}", log.display());
            }
            stop.sleep(Duration::from_secs(2)).await?;
        }
    }
    Ok(())
}

async fn once(weir: &Path, arguments: &[String], log: &Path, stop: &Stop) -> color_eyre::Result<bool> {
    let mut running = Supervised::start(weir, arguments, &[], log)?;
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let Some(status) = running.ended() {
            return Ok(status.success());
        }
        stop.sleep(POLL).await?;
    }
    Ok(false)
}
