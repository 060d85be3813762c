//! One trace from request to answer: W3C trace context in the headers of Kafka records.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use opentelemetry::global;
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue};
use weir_contracts::header;
use weir_stage::{Coordinates, Headers};

static EXPORTED: AtomicBool = AtomicBool::new(false);

/// Says that the global tracer is set up and its spans are exported, before any stage starts.
pub fn traces_are_exported() {
    EXPORTED.store(true, Ordering::Relaxed);
}

/// Ids of a `traceparent` header (W3C Trace Context, version 00).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceParent {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl TraceParent {
    /// The context a record carries.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        let mut parts = headers.text(header::TRACEPARENT)?.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let parent = Self {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
            flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        };
        (parent.trace != TraceId::INVALID && parent.span != SpanId::INVALID).then_some(parent)
    }

    /// A new trace.
    pub(crate) fn root() -> Self {
        Self {
            trace: TraceId::from_bytes(rand::random::<u128>().to_be_bytes()),
            span: SpanId::from_bytes(rand::random::<u64>().to_be_bytes()),
            flags: TraceFlags::SAMPLED,
        }
    }

    /// Id of the trace, for logs.
    pub(crate) fn trace_id(self) -> TraceId {
        self.trace
    }

    /// Records the work on one record, from `start` to now, as a span of the trace the record belongs to, and gives
    /// the context its outputs carry. Where spans are exported, a record that belongs to no trace begins one; the
    /// sampler decides whether it is kept.
    pub(crate) fn step(headers: &Headers, stage: &'static str, at: &Coordinates, start: SystemTime) -> Option<Self> {
        let parent = Self::of(headers);
        if EXPORTED.load(Ordering::Relaxed) {
            return Some(Self::span(parent, stage, at, start));
        }
        parent.map(|parent| Self { span: SpanId::from_bytes(rand::random::<u64>().to_be_bytes()), ..parent })
    }

    fn span(parent: Option<Self>, stage: &'static str, at: &Coordinates, start: SystemTime) -> Self {
        let context = parent.map_or_else(Context::new, |Self { trace, span, flags }| {
            Context::new().with_remote_span_context(SpanContext::new(trace, span, flags, true, TraceState::default()))
        });
        let tracer = global::tracer("weir");
        let mut span = tracer
            .span_builder(stage)
            .with_kind(SpanKind::Consumer)
            .with_start_time(start)
            .with_attributes([
                KeyValue::new("messaging.source.name", at.topic.to_string()),
                KeyValue::new("messaging.kafka.partition", i64::from(at.lane.0)),
                KeyValue::new("messaging.kafka.offset", at.offset),
            ])
            .start_with_context(&tracer, &context);
        span.end();
        let own = span.span_context();
        Self { trace: own.trace_id(), span: own.span_id(), flags: own.trace_flags() }
    }

    /// The header's text.
    pub(crate) fn header(self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, self.flags.to_u8())
    }
}

#[cfg(test)]
mod tests {
    use weir_contracts::Lane;

    use super::*;

    fn step(headers: &Headers) -> Option<TraceParent> {
        let at = Coordinates { topic: "weir.documents".into(), lane: Lane(3), offset: 7 };
        TraceParent::step(headers, "chunk", &at, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_trace_keeps_its_id_and_changes_its_span() {
        let mut headers = Headers::default();
        assert_eq!(step(&headers), None);
        headers.set(header::TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let child = step(&headers).map(TraceParent::header).unwrap_or_default();
        assert!(child.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{child}");
        assert!(!child.contains("00f067aa0ba902b7"));
    }

    #[test]
    fn nonsense_is_no_trace() {
        for text in [
            "",
            "00-x",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            let mut headers = Headers::default();
            headers.set(header::TRACEPARENT, text);
            assert_eq!(TraceParent::of(&headers), None, "{text}");
        }
    }
}
