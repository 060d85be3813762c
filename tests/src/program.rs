//! What the programs that tests hurt have in common.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs a program of tests: its log goes to standard output, and SIGTERM cancels the token that `run` is given.
pub async fn main<F>(run: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = Result<(), String>>,
{
    // Without TLS nothing needs a provider; the HTTP client wants to know one all the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).init();
    let ended = match cancelled_by_sigterm() {
        Ok(shutdown) => run(shutdown).await,
        Err(error) => Err(error.to_string()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            tracing::error!(reason);
            ExitCode::FAILURE
        }
    }
}

fn cancelled_by_sigterm() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        stop.cancel();
    });
    Ok(shutdown)
}
