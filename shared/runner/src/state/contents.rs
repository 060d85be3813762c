//! Reads what a stage remembers, from outside: its changelog as the table that it is, without a store on disk.

use std::collections::BTreeMap;

use weir_contracts::{Lane, Raw};
use weir_stage::StateValue;

use super::changelog_topic;
use super::codec::decode;
use crate::{KafkaConfig, ReadError, Registry, Start, TopicReader};

/// What a stage remembers by now under the keys that are `wanted`, with the values whose time is over. Every lane has its
/// own: the same key in two lanes is two things. What is not committed is not seen.
///
/// # Errors
/// When the stage has no state topic or Kafka does not answer.
pub async fn read_state(
    kafka: &KafkaConfig,
    registry: Registry,
    stage: &str,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<BTreeMap<(Lane, Vec<u8>), StateValue>, ReadError> {
    let topic = kafka.topics().full_name(&changelog_topic(stage));
    let mut reader: TopicReader<Raw> = TopicReader::open_named(kafka, registry, topic, Start::Beginning).await?;
    Ok(values(reader.read_lanes(wanted).await?))
}

/// As a store takes them: bytes that are no value are none.
fn values(stored: BTreeMap<(Lane, Vec<u8>), Raw>) -> BTreeMap<(Lane, Vec<u8>), StateValue> {
    stored.into_iter().filter_map(|(place, Raw(bytes))| Some((place, decode(&bytes)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use super::*;

    #[test]
    fn a_key_means_its_own_value_in_each_lane_and_what_is_no_value_is_left_out() {
        let value = |bytes: &[u8], expires_at| StateValue { bytes: bytes.to_vec(), expires_at };
        let place = |lane, key: &str| (Lane(lane), key.as_bytes().to_vec());
        let stored = BTreeMap::from([
            (place(0, "journal/7"), Raw(encode(&value(b"zero", None)))),
            (place(1, "journal/7"), Raw(encode(&value(b"one", Some(9))))),
            (place(1, "journal/8"), Raw(vec![7, 1, 2])),
        ]);
        let expected = BTreeMap::from([
            (place(0, "journal/7"), value(b"zero", None)),
            (place(1, "journal/7"), value(b"one", Some(9))),
        ]);
        assert_eq!(values(stored), expected);
    }
}
