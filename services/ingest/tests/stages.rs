//! What the two stages say of requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use weir_contracts::{
    Action, Document, DocumentId, DocumentRequest, Lane, OutcomeKind, Record, RequestId, RequestOutcome, Revision,
    TenantId, Topic, header,
};
use weir_ingest::pool::WorkerCommand;
use weir_ingest::{Config, Extract, Route, worker};
use weir_stage::{Batch, Coordinates, Delivery, Headers, MemoryState, Outcome, Output, Stage, StageError};

fn request() -> DocumentRequest {
    DocumentRequest {
        request_id: RequestId::parse("r-1").unwrap(),
        tenant: TenantId::parse("acme").unwrap(),
        document: DocumentId::parse("notes/mill.txt").unwrap(),
        action: Action::Upsert,
        content: Some(b"The mill turns.".to_vec()),
        content_uri: None,
        content_type: None,
        title: None,
        metadata: BTreeMap::from([("kind".into(), "note".into())]),
        idempotency_key: None,
        created_at: 1_000,
    }
}

fn delivery(record: DocumentRequest) -> Delivery<DocumentRequest> {
    let at = Coordinates { topic: "weir.requests".into(), lane: Lane(3), offset: 17 };
    Delivery { record, at, key: None, headers: Headers::default(), timestamp: 2_000 }
}

fn config() -> Config {
    Config::default()
}

fn stage(config: &Config) -> Extract {
    Extract::with_workers(config, WorkerCommand::new(env!("CARGO_BIN_EXE_weir-ingest"), [worker::ARGUMENT]))
}

async fn extract_all(config: &Config, deliveries: &[Delivery<DocumentRequest>]) -> Result<Vec<Outcome>, StageError> {
    let mut stage = stage(config);
    let mut outcomes = stage.process(Batch::with_state(deliveries, &MemoryState::default())).await?;
    for (outcome, delivery) in outcomes.iter_mut().zip(deliveries) {
        // As the runner does with whatever becomes a dead letter.
        if let Outcome::Reject { failure, outputs } = outcome {
            outputs.extend(stage.last_words(delivery, failure).await?);
        }
    }
    Ok(outcomes)
}

async fn extract_one(config: &Config, delivery: Delivery<DocumentRequest>) -> Result<Outcome, StageError> {
    Ok(extract_all(config, &[delivery]).await?.remove(0))
}

fn decoded<R: Record>(output: &Output) -> R {
    let mut bytes = Vec::new();
    output.record.as_ref().unwrap().encode(&mut bytes).unwrap();
    R::decode(None, &bytes).unwrap()
}

fn accepted(outcome: &Outcome) -> (Document, RequestOutcome) {
    let Outcome::Emit(outputs) = outcome else { panic!("{outcome:?}") };
    assert_eq!((outputs[0].topic, outputs[1].topic), (Topic::DOCUMENTS, Topic::REQUEST_OUTCOMES));
    assert_eq!(outputs[0].key.as_deref(), Some(b"acme/notes/mill.txt".as_slice()));
    assert_eq!(outputs[1].key.as_deref(), Some(b"r-1".as_slice()));
    assert!(outputs.iter().all(|output| output.lane.is_none()), "everything stays in its lane");
    (decoded(&outputs[0]), decoded(&outputs[1]))
}

/// Class, and what the sender is told.
fn rejected(outcome: &Outcome) -> (&'static str, String) {
    let Outcome::Reject { failure, outputs } = outcome else { panic!("{outcome:?}") };
    let told: RequestOutcome = decoded(&outputs[0]);
    assert_eq!((told.outcome, told.revision, told.at), (OutcomeKind::Rejected, None, 2_000));
    assert_eq!(told.reason.as_deref(), Some(failure.message.as_str()));
    (failure.class, failure.message.clone())
}

#[tokio::test]
async fn the_router_trusts_neither_key_nor_partition() {
    let mut lanes = Vec::new();
    for (key, lane) in [(None, 0), (Some(b"anything".to_vec()), 7), (Some(b"acme/notes/mill.txt".to_vec()), 11)] {
        let mut delivery = delivery(request());
        delivery.key = key;
        delivery.at.lane = Lane(lane);
        let outcomes = Route::new(12).process(Batch::new(&[delivery])).await.unwrap();
        let output = &outcomes[0].outputs()[0];
        assert_eq!((output.topic, output.key.as_deref()), (Topic::REQUESTS, Some(b"acme/notes/mill.txt".as_slice())));
        assert_eq!(output.headers.text(header::TENANT), Some("acme"));
        assert_eq!(decoded::<DocumentRequest>(output), request());
        lanes.push(output.lane);
    }
    assert!(lanes.iter().all(|lane| *lane == Some(Lane::of(b"acme/notes/mill.txt", 12))));
}

#[tokio::test]
async fn the_same_delivery_gives_the_same_document() {
    let outcome = extract_one(&config(), delivery(request())).await.unwrap();
    let (document, told) = accepted(&outcome);
    assert_eq!(document.revision, Revision::new(0, 17).unwrap());
    assert_eq!((document.text.as_str(), document.content_type.as_str()), ("The mill turns.", "text/plain"));
    assert_eq!((document.requested_at, told.at), (1_000, 2_000));
    assert_eq!((told.outcome, told.revision, told.reason), (OutcomeKind::Accepted, Some(document.revision), None));
    let again = extract_one(&config(), delivery(request())).await.unwrap();
    assert_eq!(accepted(&again).0, document);
    let mut other = request();
    other.metadata.insert("kind".into(), "letter".into());
    let other = extract_one(&config(), delivery(other)).await.unwrap();
    assert_ne!(accepted(&other).0.content_hash, document.content_hash);
}

#[tokio::test]
async fn a_record_that_returns_keeps_its_revision_and_others_cannot_choose_one() {
    let mut forged = delivery(request());
    forged.headers.set(header::REVISION, "999999");
    let outcome = extract_one(&config(), forged).await.unwrap();
    assert_eq!(accepted(&outcome).0.revision, Revision::new(0, 17).unwrap());
    let mut returning = delivery(request());
    returning.at.topic = "weir.extract.again".into();
    returning.headers.set(header::REVISION, "5");
    let outcome = extract_one(&config(), returning).await.unwrap();
    assert_eq!(accepted(&outcome).0.revision, Revision::from_ordinal(5));
}

#[tokio::test]
async fn a_deletion_is_a_document_without_text() {
    let delete = DocumentRequest { action: Action::Delete, content: None, ..request() };
    let outcome = extract_one(&config(), delivery(delete)).await.unwrap();
    let (document, told) = accepted(&outcome);
    assert!(document.deleted && document.text.is_empty());
    assert_eq!(told.outcome, OutcomeKind::Accepted);
}

#[tokio::test]
async fn one_bad_document_does_not_stop_the_others() {
    let page = |text: &str| DocumentRequest {
        content: Some(format!("<html><body><p>{text}</p></body></html>").into_bytes()),
        ..request()
    };
    let image = DocumentRequest { content: Some(b"\x89PNG\r\n\x1a\n\0\0\0\0".to_vec()), ..request() };
    let mut deliveries = [delivery(page("one")), delivery(image), delivery(page("two"))];
    deliveries[1].at.offset = 18;
    deliveries[2].at.offset = 19;
    let outcomes = extract_all(&config(), &deliveries).await.unwrap();
    assert_eq!(accepted(&outcomes[0]).0.text, "one");
    let (class, reason) = rejected(&outcomes[1]);
    assert_eq!(class, "binary");
    assert!(reason.contains("image/png"), "{reason}");
    assert_eq!(accepted(&outcomes[2]).0.text, "two");
}

#[tokio::test]
async fn what_cannot_become_a_document_is_rejected_with_a_reason() {
    let mut small = config();
    small.runner.max_record_bytes = 16 << 10;
    let long = DocumentRequest { content: Some("The mill turns. ".repeat(2_000).into_bytes()), ..request() };
    let (class, reason) = rejected(&extract_one(&small, delivery(long)).await.unwrap());
    assert_eq!(class, "too-large");
    assert!(reason.contains("31.2 KiB"), "{reason}");
    let neither = DocumentRequest { content: None, ..request() };
    assert_eq!(rejected(&extract_one(&config(), delivery(neither)).await.unwrap()).0, "invalid");
    let both = DocumentRequest { content_uri: Some("file:///a".into()), ..request() };
    assert_eq!(rejected(&extract_one(&config(), delivery(both)).await.unwrap()).0, "invalid");
    let empty = DocumentRequest { content: Some(b" \n".to_vec()), ..request() };
    assert_eq!(rejected(&extract_one(&config(), delivery(empty)).await.unwrap()).0, "empty");
}

fn claim(uri: impl Into<String>) -> Delivery<DocumentRequest> {
    delivery(DocumentRequest { content: None, content_uri: Some(uri.into()), ..request() })
}

#[tokio::test]
async fn claims_in_a_folder_are_fetched_if_they_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let (inbox, secret) = (folder.path().join("inbox"), folder.path().join("inbox-secret"));
    std::fs::create_dir_all(&inbox).unwrap();
    std::fs::create_dir_all(&secret).unwrap();
    std::fs::write(inbox.join("mill 1.txt"), "The mill turns.").unwrap();
    std::fs::write(inbox.join("large.txt"), "x".repeat(2_000)).unwrap();
    std::fs::write(secret.join("key.txt"), "secret").unwrap();
    std::os::unix::fs::symlink(secret.join("key.txt"), inbox.join("link.txt")).unwrap();
    let uri = |path: &str| format!("file://{}/{path}", folder.path().display());

    let closed = rejected(&extract_one(&config(), claim(uri("inbox/mill 1.txt"))).await.unwrap());
    assert_eq!(closed.0, "uri-not-allowed");
    assert!(closed.1.contains("ingest.allow_urls"), "{}", closed.1);

    let mut open = config();
    open.ingest.allow_urls = vec![uri("inbox")];
    open.ingest.max_bytes = 1_000;
    let (document, _) = accepted(&extract_one(&open, claim(uri("inbox/mill 1.txt"))).await.unwrap());
    assert_eq!(document.text, "The mill turns.");
    let inline = extract_one(&open, delivery(request())).await.unwrap();
    assert_eq!(document.content_hash, accepted(&inline).0.content_hash, "the same bytes, wherever they lie");

    for (path, class) in [
        ("inbox/none.txt", "uri-not-found"),
        ("inbox/large.txt", "too-large"),
        ("inbox/link.txt", "uri-not-allowed"),
        ("inbox-secret/key.txt", "uri-not-allowed"),
        ("inbox/../inbox-secret/key.txt", "uri-not-allowed"),
        ("inbox/%2e%2e/inbox-secret/key.txt", "uri-not-allowed"),
    ] {
        let (found, reason) = rejected(&extract_one(&open, claim(uri(path))).await.unwrap());
        assert_eq!(found, class, "{path}: {reason}");
    }
    // A folder that is not there is a store that is down, not a document that does not exist.
    open.ingest.allow_urls = vec![uri("unmounted")];
    let error = extract_one(&open, claim(uri("unmounted/a.txt"))).await.unwrap_err();
    assert!(matches!(error, StageError::Unavailable { dependency: "object-store", .. }), "{error}");
}

/// A store that speaks as much of S3 as a download needs.
async fn store(State(objects): State<Arc<BTreeMap<String, Vec<u8>>>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    if path.ends_with("/down.txt") {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if path.ends_with("/busy.txt") {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    }
    if path.ends_with("/odd.txt") {
        return (StatusCode::BAD_REQUEST, "Server returned non-2xx status code: 503").into_response();
    }
    if path.ends_with("/short.txt") {
        let parts = futures::stream::iter([Ok(vec![b'x'; 10]), Err(std::io::Error::other("gone"))]);
        let headers = [("content-length", "100"), ("last-modified", "Tue, 01 Jul 2025 10:00:00 GMT")];
        return (headers, Body::from_stream(parts)).into_response();
    }
    if path.ends_with("/denied.txt") || !request.headers().contains_key("authorization") {
        return StatusCode::FORBIDDEN.into_response();
    }
    match objects.get(&path) {
        Some(bytes) => {
            let headers = [("etag", "\"1\""), ("last-modified", "Tue, 01 Jul 2025 10:00:00 GMT")];
            (headers, bytes.clone()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test]
async fn claims_in_s3_are_fetched_and_a_store_that_fails_is_not_the_documents_fault() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let objects = BTreeMap::from([
        ("bucket/in/mill.txt".to_owned(), b"The mill turns.".to_vec()),
        ("bucket/in/large.txt".to_owned(), vec![b'x'; 2_000]),
    ]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(store).with_state(Arc::new(objects));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let mut config = config();
    config.ingest.allow_urls = vec!["s3://bucket/in/".into()];
    config.ingest.max_bytes = 1_000;
    config.ingest.s3 = [
        ("aws_endpoint", format!("http://{address}")),
        ("aws_allow_http", "true".into()),
        ("aws_region", "here".into()),
        ("aws_access_key_id", "id".into()),
        ("aws_secret_access_key", "secret".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();

    let (document, _) = accepted(&extract_one(&config, claim("s3://bucket/in/mill.txt")).await.unwrap());
    assert_eq!(document.text, "The mill turns.");
    for (uri, class) in [
        ("s3://bucket/in/none.txt", "uri-not-found"),
        ("s3://bucket/in/large.txt", "too-large"),
        ("s3://bucket/in/denied.txt", "uri-denied"),
        ("s3://bucket/in/odd.txt", "uri-refused"),
        ("s3://bucket/out/mill.txt", "uri-not-allowed"),
        ("s3://other/in/mill.txt", "uri-not-allowed"),
    ] {
        let (found, reason) = rejected(&extract_one(&config, claim(uri)).await.unwrap());
        assert_eq!(found, class, "{uri}: {reason}");
    }
    // It answers, so others need not wait.
    for uri in ["s3://bucket/in/down.txt", "s3://bucket/in/busy.txt", "s3://bucket/in/short.txt"] {
        let outcome = extract_one(&config, claim(uri)).await.unwrap();
        let Outcome::RetryLater { failure } = &outcome else { panic!("{uri}: {outcome:?}") };
        assert_eq!(failure.class, "uri-failing", "{failure:?}");
    }
    // Nobody listens: all would fail, so all wait.
    server.abort();
    let error = extract_one(&config, claim("s3://bucket/in/mill.txt")).await.unwrap_err();
    assert!(matches!(error, StageError::Unavailable { dependency: "object-store", .. }), "{error}");
}
