//! Ctrl-C, heard everywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

const STEP: Duration = Duration::from_millis(50);

/// Somebody wants this to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted: everything that was started is being ended")
    }
}

impl std::error::Error for Interrupted {}

/// Whether it was asked to end; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// When signals can't be heard.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let heard = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            heard.set();
        });
        Ok(stop)
    }

    /// Asks everybody to end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The same as an error.
    ///
    /// # Errors
    /// When somebody asked.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_set() { Err(Interrupted) } else { Ok(()) }
    }

    /// Sleeps, unless somebody asks to end meanwhile.
    ///
    /// # Errors
    /// When somebody asked.
    pub async fn sleep(&self, time: Duration) -> Result<(), Interrupted> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.check()?;
            tokio::time::sleep(STEP.min(until.saturating_duration_since(Instant::now()))).await;
        }
        self.check()
    }

    /// Waits until somebody asks.
    pub async fn asked(&self) {
        while !self.is_set() {
            tokio::time::sleep(STEP).await;
        }
    }
}
