//! `/metrics`, `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use color_eyre::eyre::{self, eyre};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use weir_contracts::Lane;
use weir_runner::PauseReason;

use crate::run::Stages;
use crate::{connections, process};

/// How often histograms are folded when nobody scrapes them.
const UPKEEP: Duration = Duration::from_secs(5);

/// What the server shows.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) service: &'static str,
    pub(crate) stages: Stages,
    pub(crate) recorder: PrometheusHandle,
}

/// Binds `address` and serves until the process ends; returns what was bound.
pub(crate) async fn serve(server: Server, address: &str) -> eyre::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| refused(address, &error))?;
    let bound = listener.local_addr()?;
    let recorder = server.recorder.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            recorder.run_upkeep();
        }
    });
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .with_state(Arc::new(server));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the health server ended");
        }
    });
    Ok(bound)
}

fn refused(address: &str, error: &std::io::Error) -> eyre::Report {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => eyre!(
            "http.listen: {address} is taken by another process, perhaps by another instance of this service; \
             set http.listen to a free port, or to port 0 for any"
        ),
        std::io::ErrorKind::PermissionDenied => {
            eyre!("http.listen: not allowed to listen on {address}; ports below 1024 need root")
        }
        _ => eyre!("http.listen: cannot listen on {address}: {error}"),
    }
}

async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    process::sample();
    connections::sample();
    server.recorder.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.recorder.render())
}

#[derive(Serialize)]
struct Alive {
    service: &'static str,
    version: &'static str,
}

async fn alive(State(server): State<Arc<Server>>) -> Json<Alive> {
    Json(Alive { service: server.service, version: env!("CARGO_PKG_VERSION") })
}

/// What `/readyz` says.
#[derive(Debug, Serialize)]
struct Readiness {
    /// Every stage has joined its consumer group.
    ready: bool,
    stages: Vec<StageReadiness>,
}

#[derive(Debug, Serialize)]
struct StageReadiness {
    stage: &'static str,
    joined: bool,
    /// Lanes that this instance owns.
    lanes: Vec<Lane>,
    /// Those of them that do not flow, and why.
    paused: Vec<Paused>,
}

#[derive(Debug, Serialize)]
struct Paused {
    lane: Lane,
    reason: &'static str,
    detail: String,
}

async fn ready(State(server): State<Arc<Server>>) -> impl IntoResponse {
    let stages: Vec<StageReadiness> = server
        .stages
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .map(|(stage, status)| readiness(stage, status.ready(), &status.lanes()))
        .collect();
    // A service that has not started its stages yet (a model is loading) is not ready.
    let ready = !stages.is_empty() && stages.iter().all(|stage| stage.joined);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, stages }))
}

fn readiness(stage: &'static str, joined: bool, lanes: &BTreeMap<Lane, Option<PauseReason>>) -> StageReadiness {
    let paused = lanes
        .iter()
        .filter_map(|(lane, reason)| {
            let reason = reason.as_ref()?;
            Some(Paused { lane: *lane, reason: reason.label(), detail: detail(reason) })
        })
        .collect();
    StageReadiness { stage, joined, lanes: lanes.keys().copied().collect(), paused }
}

fn detail(reason: &PauseReason) -> String {
    match reason {
        PauseReason::Unavailable { dependency, reason } => format!("{dependency} is unavailable: {reason}"),
        PauseReason::Gap { from, to } => {
            format!("offsets {from} to {} are gone from the log; see docs/operations.md", to.saturating_sub(1))
        }
        PauseReason::Flood { reason } => reason.clone(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_lane_is_listed_with_its_reason() {
        let lanes = BTreeMap::from([
            (Lane(0), None),
            (Lane(3), Some(PauseReason::Unavailable { dependency: "qdrant", reason: "connection refused".into() })),
            (Lane(5), Some(PauseReason::Gap { from: 10, to: 20 })),
        ]);
        let json = serde_json::to_value(readiness("index", true, &lanes)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "stage": "index", "joined": true, "lanes": [0, 3, 5],
                "paused": [
                    {"lane": 3, "reason": "unavailable", "detail": "qdrant is unavailable: connection refused"},
                    {"lane": 5, "reason": "gap",
                     "detail": "offsets 10 to 19 are gone from the log; see docs/operations.md"},
                ],
            })
        );
    }
}
