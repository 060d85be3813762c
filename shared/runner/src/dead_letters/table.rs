//! Reads a dead-letter topic as the table it is: the last record of each key counts, and a tombstone removes.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Message};
use weir_contracts::{Lane, dead_letter_topic};

use super::letter::{DeadLetter, Place};
use crate::reader::copy_headers;
use crate::{KafkaConfig, table};

/// Bytes of rejected records that are held at once, at most (one may exceed it).
const MEMORY: usize = 64 << 20;

/// What of the table is of interest; memory is used for nothing else.
pub(crate) struct Wanted<'a> {
    /// Dead letters to keep.
    pub(crate) keep: &'a dyn Fn(&DeadLetter) -> bool,
    /// Those among them whose bytes are needed as well, as far as memory goes: some come without.
    pub(crate) hold: &'a dyn Fn(&DeadLetter) -> bool,
}

/// The dead letters of a stage that are outstanding when this is called. Blocks. Whoever has fenced another operator
/// before sees all that one has done.
pub(crate) fn read(
    kafka: &KafkaConfig,
    stage: &Arc<str>,
    wanted: &Wanted<'_>,
) -> Result<BTreeMap<Place, DeadLetter>, String> {
    let topic = kafka.topics().full_name(&dead_letter_topic(stage));
    let mut reading = Reading { stage, wanted, held: 0, letters: BTreeMap::new() };
    table::read(kafka, &topic, |message| reading.take(message))?;
    Ok(reading.letters)
}

struct Reading<'a> {
    stage: &'a Arc<str>,
    wanted: &'a Wanted<'a>,
    held: usize,
    letters: BTreeMap<Place, DeadLetter>,
}

impl Reading<'_> {
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some(key) = message.key() else { return };
        let place = (Lane(message.partition()), key.to_vec());
        if let Some(before) = self.letters.remove(&place) {
            self.held -= before.value.map_or(0, |value| value.len());
        }
        let Some(value) = message.payload() else { return };
        let mut letter = DeadLetter {
            stage: Arc::clone(self.stage),
            lane: place.0,
            offset: message.offset(),
            headers: copy_headers(message),
            size: value.len(),
            written_at: message.timestamp().to_millis().unwrap_or_default(),
            key: key.to_vec(),
            value: None,
        };
        if !(self.wanted.keep)(&letter) {
            return;
        }
        if self.held < MEMORY && (self.wanted.hold)(&letter) {
            self.held += value.len();
            letter.value = Some(value.to_vec());
        }
        self.letters.insert(place, letter);
    }
}
