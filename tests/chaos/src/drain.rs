//! Waits until nothing moves any more.

use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::kafka::{Kafka, Place};
use crate::stop::Stop;

const PAUSE: Duration = Duration::from_millis(1_000);

/// Waits until no stage is behind and nothing has moved between two looks, for at most `limit`. Whether it came to that;
/// if not, what the checks find says why.
///
/// # Errors
/// When Kafka does not answer, or somebody asks to end.
pub async fn drain(kafka: &Kafka, limit: Duration, stop: &Stop, mut tell: impl FnMut(i64)) -> color_eyre::Result<bool> {
    let begun = Instant::now();
    let mut before: Option<Vec<Place>> = None;
    while begun.elapsed() < limit {
        stop.check()?;
        let asked = kafka.clone();
        let now = spawn_blocking(move || asked.places()).await??;
        tell(now.iter().map(Place::lag).sum());
        if now.iter().all(|place| place.lag() == 0) && before.as_ref() == Some(&now) {
            return Ok(true);
        }
        before = Some(now);
        stop.sleep(PAUSE).await?;
    }
    Ok(false)
}
