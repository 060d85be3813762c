//! What a rejected record becomes: its original bytes, with its history in headers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use weir_contracts::{dead_letter_id, header};
use weir_stage::Failure;

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
    let id = match headers.text(header::DEAD_LETTER) {
        Some(id) => id.to_owned(),
        None => {
            headers.set(header::DLQ_TOPIC, raw.at.topic.as_bytes());
            headers.set(header::DLQ_PARTITION, raw.at.lane.to_string());
            headers.set(header::DLQ_OFFSET, raw.at.offset.to_string());
            dead_letter_id(stage, &raw.at.topic, raw.at.lane.0, raw.at.offset)
        }
    };
    let deliveries = headers.text(header::DLQ_DELIVERY_COUNT).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    headers.set(header::DEAD_LETTER, id.as_bytes());
    headers.set(header::DEAD_LETTER_AT, now.to_string());
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

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}
