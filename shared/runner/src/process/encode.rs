//! What a stage says of a record, as the records that Kafka gets.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use weir_contracts::{SchemaDef, Topic, frame, header};
use weir_stage::{Change, Delivery, Failure, Outcome, Output, failure_class};

use super::{EncodedRecord, Processor, RawRecord, Verdict, Wait};
use crate::concurrent::Work;
use crate::dead_letter::cut;
use crate::retry::attempts;
use crate::trace_context::TraceParent;

/// What a record became, encoded.
pub(super) struct Encoded {
    pub(super) verdict: Verdict,
    pub(super) outputs: Vec<EncodedRecord>,
    /// Why it was rejected after all, against the stage's word.
    pub(super) overruled: Option<Failure>,
}

/// The last change that a record makes to its lane's state.
pub(super) struct Last<'a> {
    pub(super) change: Change<'a>,
    /// Whether others wait until it is made: then nothing may take long.
    pub(super) others_wait: bool,
}

impl<S: Work> Processor<S> {
    /// What is written for a record, whatever the stage says of it: where it can't be written, a dead letter.
    pub(super) async fn encode(
        &mut self,
        raw: &RawRecord,
        delivery: Option<&Delivery<S::Input>>,
        outcome: Outcome,
        start: SystemTime,
        last: &mut Last<'_>,
    ) -> Result<Encoded, Wait> {
        let (verdict, outputs) = match outcome {
            Outcome::Emit(outputs) => (Verdict::Emitted, outputs),
            Outcome::Skip { reason, outputs } => (Verdict::Skipped(reason), outputs),
            Outcome::Reject { failure, outputs } => (Verdict::Rejected(failure), outputs),
            Outcome::RetryLater { failure } if self.retry.allows(&failure, attempts(raw)) => {
                let record = self.retry.record(self.name, raw, &failure, start);
                return Ok(Encoded { verdict: Verdict::Retried(failure), outputs: vec![record], overruled: None });
            }
            Outcome::Postpone { failure, wait } if self.retry.is_possible() => {
                let record = self.retry.postponed(self.name, raw, &failure, wait, start);
                return Ok(Encoded { verdict: Verdict::Retried(failure), outputs: vec![record], overruled: None });
            }
            Outcome::Postpone { failure, .. } => {
                let message = format!("{} (there is no delay tier to wait in)", failure.message);
                (Verdict::Rejected(Failure::new(failure.class, message)), Vec::new())
            }
            Outcome::Finally(_) => {
                return Err(Wait::Fatal("a stage without state of its own makes a last change".into()));
            }
            Outcome::RetryLater { failure } => {
                let message = format!("{} (tried {} times)", failure.message, attempts(raw) + 1);
                (Verdict::Rejected(Failure::new(failure.class, message)), Vec::new())
            }
        };
        let trace = TraceParent::step(&raw.headers, self.name, &raw.at, start);
        let (verdict, mut outputs, overruled) = match self.encode_outputs(raw, outputs, trace, last.others_wait).await?
        {
            Ok(outputs) => (verdict, outputs, None),
            Err(too_large) => {
                // What was to be true with them is not.
                last.change.clear();
                (Verdict::Rejected(too_large.clone()), Vec::new(), Some(too_large))
            }
        };
        if let Verdict::Rejected(failure) = &verdict {
            tracing::warn!(
                stage = self.name,
                class = failure.class,
                topic = %raw.at.topic,
                lane = raw.at.lane.0,
                offset = raw.at.offset,
                trace_id = trace.map(|trace| tracing::field::display(trace.trace_id())),
                reason = failure.message,
                "record rejected"
            );
            if let Some(delivery) = delivery {
                outputs.extend(self.last_words(raw, delivery, failure, (trace, &mut *last)).await?);
            }
        }
        Ok(Encoded { verdict, outputs, overruled })
    }

    /// What the stage says of a record that becomes a dead letter. The dead letter itself does not depend on it.
    async fn last_words(
        &mut self,
        raw: &RawRecord,
        delivery: &Delivery<S::Input>,
        failure: &Failure,
        (trace, last): (Option<TraceParent>, &mut Last<'_>),
    ) -> Result<Vec<EncodedRecord>, Wait> {
        let failure = Failure::new(failure.class, cut(&failure.message));
        let stage = self.name;
        let unsaid = |reason: &dyn std::fmt::Display| {
            tracing::error!(stage, at = %raw.at, %reason, "those who wait for a dead letter are not told");
            Ok(Vec::new())
        };
        let words =
            match AssertUnwindSafe(self.stage.last_words(delivery, &failure, &mut last.change)).catch_unwind().await {
                Ok(words) => words?,
                Err(_) => return unsaid(&"the stage panicked"),
            };
        match self.encode_outputs(raw, words, trace, last.others_wait).await? {
            Ok(words) => Ok(words),
            Err(too_large) => unsaid(&too_large.message),
        }
    }

    /// All outputs of a record, or why Kafka would not take one of them.
    async fn encode_outputs(
        &mut self,
        raw: &RawRecord,
        outputs: Vec<Output>,
        trace: Option<TraceParent>,
        at_once: bool,
    ) -> Result<Result<Vec<EncodedRecord>, Failure>, Wait> {
        let mut encoded = Vec::with_capacity(outputs.len());
        for output in outputs {
            let record = self.encode_output(raw, output, trace, at_once).await?;
            let size = record.value.as_ref().map_or(0, Vec::len) + record.key.as_ref().map_or(0, Vec::len);
            // Room for the frame of the batch and the headers.
            if size + 1024 > self.config.max_record_bytes {
                let message = format!("an output for {} has {size} bytes, more than Kafka accepts", record.topic);
                return Ok(Err(Failure::new(failure_class::TOO_LARGE, message)));
            }
            encoded.push(record);
        }
        Ok(Ok(encoded))
    }

    pub(super) async fn schema_id(&mut self, topic: Topic, schema: &'static SchemaDef) -> Result<u32, Wait> {
        self.registry.id_of(topic, schema).await.map_err(|error| Wait::Unavailable {
            dependency: "schema-registry",
            reason: error.to_string(),
            retry_after: None,
        })
    }

    async fn encode_output(
        &mut self,
        raw: &RawRecord,
        output: Output,
        trace: Option<TraceParent>,
        at_once: bool,
    ) -> Result<EncodedRecord, Wait> {
        let value = match &output.record {
            None => None,
            Some(record) => {
                let mut value = Vec::new();
                if let Some(schema) = record.schema() {
                    let known = self.registry.known_id(output.topic, schema);
                    let id = match known {
                        Some(id) => id,
                        None if at_once => return Err(Wait::Unregistered(output.topic, schema)),
                        None => self.schema_id(output.topic, schema).await?,
                    };
                    frame(id, &mut value);
                }
                record.encode(&mut value).map_err(|error| Wait::Fatal(error.to_string()))?;
                Some(value)
            }
        };
        let mut headers = output.headers;
        for name in [header::TENANT, header::REVISION, header::DEADLINE] {
            if let (None, Some(value)) = (headers.get(name), raw.headers.get(name)) {
                headers.set(name, value);
            }
        }
        if let Some(trace) = trace {
            headers.set(header::TRACEPARENT, trace.header());
        }
        let names = &self.names;
        let topic = self.topics.entry(output.topic).or_insert_with(|| names.full(output.topic).into());
        Ok(EncodedRecord {
            topic: Arc::clone(topic),
            lane: output.lane.unwrap_or(raw.at.lane),
            key: output.key,
            value,
            headers,
        })
    }
}
