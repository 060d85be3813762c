//! `/control`: the provider is told what to do, and asked what it has done, over HTTP.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::behaviour::{Behaviour, InvalidBehaviour};
use super::books::Books;
use super::state::Shared;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/control/books", get(books))
        .route("/control/behaviour", post(behaviour))
        .route("/control/script", post(script))
        .route("/control/down", post(down))
        .route("/control/reset", post(reset))
}

/// A body that is not what was expected.
struct BadRequest {
    code: &'static str,
    message: String,
}

impl IntoResponse for BadRequest {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.code, "message": self.message } }).to_string();
        (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<InvalidBehaviour> for BadRequest {
    fn from(error: InvalidBehaviour) -> Self {
        Self { code: "invalid_behaviour", message: error.to_string() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Down {
    down: bool,
}

async fn books(State(shared): State<Shared>) -> Json<Books> {
    Json(shared.lock().books())
}

async fn behaviour(State(shared): State<Shared>, body: Bytes) -> Result<StatusCode, BadRequest> {
    let behaviour: Behaviour = serde_json::from_slice(&body).map_err(InvalidBehaviour::from)?;
    shared.lock().then = behaviour;
    Ok(StatusCode::NO_CONTENT)
}

async fn script(State(shared): State<Shared>, body: Bytes) -> Result<StatusCode, BadRequest> {
    let behaviours = Behaviour::list(&body)?;
    shared.lock().script.extend(behaviours);
    Ok(StatusCode::NO_CONTENT)
}

async fn down(State(shared): State<Shared>, body: Bytes) -> Result<StatusCode, BadRequest> {
    let Down { down } = serde_json::from_slice(&body).map_err(|error| BadRequest {
        code: "invalid_request",
        message: format!(r#"{error}; expected {{"down": true}} or {{"down": false}}"#),
    })?;
    shared.lock().down = down;
    Ok(StatusCode::NO_CONTENT)
}

async fn reset(State(shared): State<Shared>) -> StatusCode {
    shared.lock().forget();
    StatusCode::NO_CONTENT
}
