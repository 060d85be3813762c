//! Pieces of an answer to `answer-tokens` while it is written.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::counter;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use weir_contracts::{AnswerToken, Lane, RequestId, TenantId, Topic, header};
use weir_llm::Deltas;
use weir_runner::Publisher;
use weir_stage::Output;

use crate::metric;

/// How long a finished answer waits for its last pieces to be taken. Its record has the whole text anyway.
const LAST_PIECES: Duration = Duration::from_secs(2);

/// Takes pieces of answers.
pub trait TokenSink: Send + Sync + 'static {
    /// Publishes a piece in the lane of its question. Pieces of an answer come one after the other.
    fn publish<'a>(
        &'a self,
        token: AnswerToken,
        lane: Lane,
        traceparent: Option<&'a [u8]>,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// Pieces of answers to Kafka: outside the transaction, so that readers see them at once.
pub struct KafkaTokens {
    publisher: Publisher,
}

impl KafkaTokens {
    /// Publishes through this producer.
    #[must_use]
    pub fn new(publisher: Publisher) -> Self {
        Self { publisher }
    }
}

impl TokenSink for KafkaTokens {
    fn publish<'a>(
        &'a self,
        token: AnswerToken,
        lane: Lane,
        traceparent: Option<&'a [u8]>,
    ) -> BoxFuture<'a, Result<(), String>> {
        let (request_id, tenant) = (token.request_id.clone(), token.tenant.clone());
        let output = Output::new(Topic::ANSWER_TOKENS, request_id.as_str(), token)
            .in_lane(lane)
            .with_header(header::TENANT, tenant.as_str());
        let output = match traceparent {
            Some(traceparent) => output.with_header(header::TRACEPARENT, traceparent),
            None => output,
        };
        Box::pin(async move { self.publisher.publish(output).await.map_err(|error| error.to_string()) })
    }
}

/// Where the pieces of one answer belong.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) request_id: RequestId,
    pub(crate) tenant: TenantId,
    pub(crate) lane: Lane,
    pub(crate) traceparent: Option<Vec<u8>>,
}

/// The stream of one answer. Never holds up the one who writes: what comes faster than Kafka takes it is joined.
pub(crate) struct Streamer {
    pieces: UnboundedSender<(i32, String)>,
    pump: JoinHandle<bool>,
}

impl Streamer {
    pub(crate) fn start(sink: Arc<dyn TokenSink>, origin: Origin) -> Self {
        let (pieces, arriving) = unbounded_channel();
        Self { pieces, pump: tokio::spawn(pump(sink, origin, arriving)) }
    }

    /// Whether every piece was taken.
    pub(crate) async fn finish(self) -> bool {
        drop(self.pieces);
        matches!(tokio::time::timeout(LAST_PIECES, self.pump).await, Ok(Ok(true)))
    }
}

impl Deltas for Streamer {
    fn delta(&mut self, attempt: i32, text: &str) {
        // The other end is gone when Kafka refused a piece; the answer goes on.
        let _ = self.pieces.send((attempt, text.to_owned()));
    }
}

async fn pump(sink: Arc<dyn TokenSink>, origin: Origin, mut arriving: UnboundedReceiver<(i32, String)>) -> bool {
    let (mut current, mut sequence) = (0, 0);
    let mut next = arriving.recv().await;
    while let Some((attempt, mut delta)) = next.take() {
        // What has arrived in the meantime travels together.
        while let Ok((other, text)) = arriving.try_recv() {
            if other != attempt {
                next = Some((other, text));
                break;
            }
            delta.push_str(&text);
        }
        if attempt != current {
            (current, sequence) = (attempt, 0);
        }
        let (request_id, tenant) = (origin.request_id.clone(), origin.tenant.clone());
        let token = AnswerToken { request_id, tenant, attempt, sequence, delta };
        if let Err(error) = sink.publish(token, origin.lane, origin.traceparent.as_deref()).await {
            tracing::warn!(tenant = %origin.tenant, request = %origin.request_id, error, "answer is not streamed on");
            counter!(metric::STREAM_FAILURES).increment(1);
            return false;
        }
        sequence += 1;
        if next.is_none() {
            next = arriving.recv().await;
        }
    }
    true
}
