//! What a rejected record becomes: its original bytes, with its history in headers.

use std::sync::Arc;

use weir_contracts::{dead_letter_id, header};
use weir_stage::{Coordinates, Failure, Headers};

use crate::clock::now_millis;
use crate::process::{EncodedRecord, RawRecord};

/// Longest message kept in a header, bytes.
const MAX_MESSAGE: usize = 4096;

/// The dead letter of `raw`. Headers of an earlier failure are kept: the id and the origin are those of the first.
pub(crate) fn dead_letter(
    stage: &str,
    group: &str,
    topic: &Arc<str>,
    raw: &RawRecord,
    failure: &Failure,
) -> EncodedRecord {
    let mut headers = raw.headers.clone();
    let (first_topic, first_lane, first_offset) = set_origin(&mut headers, &raw.at);
    let id = match headers.text(header::DEAD_LETTER) {
        Some(id) if returned(&raw.at) => id.to_owned(),
        _ => dead_letter_id(stage, &first_topic, first_lane, first_offset),
    };
    let deliveries = headers.text(header::DLQ_DELIVERY_COUNT).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    headers.set(header::DEAD_LETTER, id.as_bytes());
    headers.set(header::DEAD_LETTER_AT, now_millis().to_string());
    headers.set(header::DLQ_GROUP, group);
    headers.set(header::DLQ_DELIVERY_COUNT, deliveries.saturating_add(1).to_string());
    headers.set(header::DLQ_MESSAGE, cut(&failure.message));
    headers.set(header::ERROR_CLASS, failure.class);
    if let Some(key) = &raw.key {
        headers.set(header::DEAD_LETTER_KEY, key.as_slice());
    }
    EncodedRecord {
        topic: Arc::clone(topic),
        lane: raw.at.lane,
        key: Some(id.into_bytes()),
        value: raw.value.clone(),
        headers,
    }
}

/// Notes where a record lay first, unless it has come back and brings that along. (topic, partition, offset).
pub(crate) fn set_origin(headers: &mut Headers, at: &Coordinates) -> (String, i32, i64) {
    if returned(at) {
        let known = |headers: &Headers| {
            let topic = headers.text(header::DLQ_TOPIC)?.to_owned();
            let lane = headers.text(header::DLQ_PARTITION)?.parse().ok()?;
            Some((topic, lane, headers.text(header::DLQ_OFFSET)?.parse().ok()?))
        };
        if let Some(origin) = known(headers) {
            return origin;
        }
    }
    headers.set(header::DLQ_TOPIC, at.topic.as_bytes());
    headers.set(header::DLQ_PARTITION, at.lane.to_string());
    headers.set(header::DLQ_OFFSET, at.offset.to_string());
    (at.topic.to_string(), at.lane.0, at.offset)
}

/// Whether a record has been here before. Elsewhere, what its headers say of its past counts for nothing.
pub(crate) fn returned(at: &Coordinates) -> bool {
    at.topic.ends_with(".again")
}

pub(crate) fn cut(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}
