//! What can be seen from outside when all is done: records, positions, points.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use color_eyre::eyre::WrapErr;

use crate::avro::{Fields, Schemas};
use crate::kafka::{Kafka, Place, Stored};
use crate::points::Points;

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Topic, without prefix.
    pub topic: String,
    /// Lane.
    pub lane: i32,
    /// Offset.
    pub offset: i64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.lane, self.offset)
    }
}

/// A record with its fields.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where.
    pub at: At,
    /// What.
    pub fields: Fields,
}

/// A dead letter that is outstanding.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Where its last record lies.
    pub at: At,
    /// Id of its request, when it has one.
    pub request: Option<String>,
    /// Class and message.
    pub why: String,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Records by topic, lane by lane, in order.
    pub records: BTreeMap<&'static str, Vec<Seen>>,
    /// Outstanding dead letters by stage.
    pub letters: BTreeMap<String, Vec<Letter>>,
    /// How often each request was given back to the extractor by a replay.
    pub replays: HashMap<String, usize>,
    /// Records that returned to the extractor from a delay tier.
    pub returned: usize,
    /// Positions of every stage.
    pub places: Vec<Place>,
    /// Partitions with an open transaction, and how much lies behind its beginning.
    pub open: Vec<(String, i32, i64)>,
    /// Points of the collection.
    pub points: Points,
    /// Records that no schema fits.
    pub unreadable: Vec<String>,
}

/// Topics whose records are read with their fields.
const READ: [&str; 6] = ["requests", "documents", "chunks", "embeddings", "request-outcomes", "document-status"];
const ATTEMPT: &str = "weir-attempt";
const REPLAYS: &str = "weir-replays";

impl Evidence {
    /// Reads everything in Kafka, without the points.
    ///
    /// # Errors
    /// When Kafka can't be read.
    pub fn collect(kafka: &Kafka) -> color_eyre::Result<Self> {
        let schemas = Schemas::parse()?;
        let mut evidence = Self::default();
        for topic in READ {
            let stored = kafka.read(topic).wrap_err_with(|| format!("reading {topic}"))?;
            let seen = stored.iter().filter_map(|record| evidence.see(&schemas, topic, record)).collect();
            evidence.records.insert(topic, seen);
        }
        for topic in kafka.topics()?.into_keys() {
            let Some(stage) = topic.strip_prefix("dlq.") else { continue };
            let letters = outstanding(&schemas, &topic, kafka.read(&topic)?);
            if !letters.is_empty() {
                evidence.letters.insert(stage.to_owned(), letters);
            }
        }
        for record in kafka.read("extract.again")? {
            let Some(fields) = record.value.as_ref().and_then(|value| schemas.read("requests", value).ok()) else {
                continue;
            };
            // A replay begins anew; what it meets then counts as tries of that one.
            if record.headers.contains_key(REPLAYS) && !record.headers.contains_key(ATTEMPT) {
                *evidence.replays.entry(fields.text("request_id").to_owned()).or_default() += 1;
            } else {
                evidence.returned += 1;
            }
        }
        evidence.places = kafka.places()?;
        evidence.open = kafka.open_transactions()?;
        Ok(evidence)
    }

    fn see(&mut self, schemas: &Schemas, topic: &'static str, record: &Stored) -> Option<Seen> {
        let at = At { topic: topic.to_owned(), lane: record.lane, offset: record.offset };
        // A tombstone says nothing that was not said before.
        let value = record.value.as_ref()?;
        match schemas.read(topic, value) {
            Ok(fields) => Some(Seen { at, fields }),
            Err(error) => {
                self.unreadable.push(format!("{at}: {error:#}"));
                None
            }
        }
    }

    /// Records of a topic.
    pub fn of(&self, topic: &str) -> impl Iterator<Item = &Seen> {
        self.records.get(topic).into_iter().flatten()
    }
}

/// The last record of each key, unless that is a tombstone.
fn outstanding(schemas: &Schemas, topic: &str, records: Vec<Stored>) -> Vec<Letter> {
    let mut table: BTreeMap<Vec<u8>, Stored> = BTreeMap::new();
    for record in records {
        match record.value {
            None => table.remove(&record.key),
            Some(_) => table.insert(record.key.clone(), record),
        };
    }
    let header = |record: &Stored, name: &str| record.headers.get(name).cloned().unwrap_or_default();
    let letter = |record: Stored| Letter {
        request: record
            .value
            .as_ref()
            .and_then(|value| schemas.read("requests", value).ok())
            .map(|fields| fields.text("request_id").to_owned()),
        why: format!("{}: {}", header(&record, "weir-error-class"), header(&record, "__dlq.errors.message")),
        at: At { topic: topic.to_owned(), lane: record.lane, offset: record.offset },
    };
    table.into_values().map(letter).collect()
}
