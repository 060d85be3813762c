//! Signals: the first asks, the second insists.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status of a process that was told twice, as shells report SIGINT.
const INSISTED: i32 = 130;

/// Cancels `shutdown` on the first SIGTERM or SIGINT; ends the process at once on the second.
pub(crate) fn on_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if shutdown.is_cancelled() {
                tracing::warn!(signal = name, "second signal: ends at once, unfinished work is done again later");
                std::process::exit(INSISTED);
            }
            tracing::info!(signal = name, "shuts down; a second signal ends at once");
            shutdown.cancel();
        }
    });
    Ok(())
}
