//! Removes what heads leave behind, after a grace, and sweeps now and then.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use weir_vectors::{Stale, VectorStore};

use crate::config::IndexConfig;

/// Removals that are put into one call of the store.
const TOGETHER: usize = 500;

/// Takes notes of what is stale. What is lost with the process, a sweep or the document's next revision removes.
#[derive(Debug, Clone)]
pub struct Janitor {
    notes: UnboundedSender<(Instant, Vec<Stale>)>,
    grace: Duration,
}

impl Janitor {
    /// Starts the work in the background; it ends with `shutdown`.
    #[must_use]
    pub fn start(store: VectorStore, config: &IndexConfig, shutdown: CancellationToken) -> Self {
        let (notes, inbox) = unbounded_channel();
        let grace = store.config().delete_grace();
        let work = shutdown.clone();
        tokio::spawn({
            let store = store.clone();
            async move { work.run_until_cancelled(remove(store, inbox)).await }
        });
        if config.sweep_interval_s > 0 {
            let config = config.clone();
            tokio::spawn(async move { shutdown.run_until_cancelled(sweep(store, config)).await });
        }
        Self { notes, grace }
    }

    /// Removes these after the grace.
    pub fn remove_later(&self, stale: Vec<Stale>) {
        if !stale.is_empty() {
            // Nobody listens during shutdown only.
            let _ = self.notes.send((Instant::now() + self.grace, stale));
        }
    }
}

async fn remove(store: VectorStore, mut inbox: UnboundedReceiver<(Instant, Vec<Stale>)>) {
    let mut next = inbox.recv().await;
    while let Some((due, mut stale)) = next.take() {
        sleep_until(due).await;
        // What has become due meanwhile goes along.
        while stale.len() < TOGETHER && next.is_none() {
            match inbox.try_recv() {
                Ok((due, more)) if due <= Instant::now() => stale.extend(more),
                Ok(later) => next = Some(later),
                Err(_) => break,
            }
        }
        if let Err(error) = store.delete_stale(&stale).await {
            tracing::debug!(documents = stale.len(), %error, "stale chunks stay until the next sweep");
        }
        if next.is_none() {
            next = inbox.recv().await;
        }
    }
}

async fn sweep(store: VectorStore, config: IndexConfig) {
    let every = Duration::from_secs(config.sweep_interval_s);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match store.sweep(config.sweep_page, Duration::from_millis(config.sweep_pause_ms)).await {
            Ok(swept) => tracing::info!(seen = swept.seen, removed = swept.removed, "swept"),
            Err(error) => tracing::warn!(%error, "the sweep was cut short; the next one begins anew"),
        }
    }
}
