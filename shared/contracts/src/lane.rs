//! Lanes, and the hash that places tenants and documents in them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Partition p, the same p in every topic behind the routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lane(pub i32);

impl Lane {
    /// The lane of a key among `lanes` lanes: murmur2, as Kafka's Java client partitions.
    #[must_use]
    pub fn of(key: &[u8], lanes: i32) -> Self {
        let positive = i64::from(murmur2(key) & 0x7fff_ffff);
        Self(i32::try_from(positive % i64::from(lanes.max(1))).unwrap_or(0))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Key in topic `lanes` of a stage's lane.
#[must_use]
pub fn lane_key(stage: &str, lane: Lane) -> String {
    format!("{stage}/{lane}")
}

/// The stage and the lane that a key in topic `lanes` names.
#[must_use]
pub fn lane_of_key(key: &[u8]) -> Option<(&str, Lane)> {
    let (stage, lane) = std::str::from_utf8(key).ok()?.rsplit_once('/')?;
    Some((stage, Lane(lane.parse().ok()?)))
}

/// MurmurHash2 with Kafka's seed, 32 bits (org.apache.kafka.common.utils.Utils.murmur2).
#[must_use]
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = word.iter().rev().fold(0u32, |k, byte| (k << 8) | u32::from(*byte));
        k = k.wrapping_mul(M);
        k ^= k >> R;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0u32, |k, byte| (k << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_the_stage_and_the_lane_it_was_made_of() {
        assert_eq!(lane_of_key(lane_key("retry.1s", Lane(11)).as_bytes()), Some(("retry.1s", Lane(11))));
        for other in ["extract", "extract/", "extract/x"] {
            assert_eq!(lane_of_key(other.as_bytes()), None, "{other}");
        }
    }

    /// Values from the unit test of Kafka's own Utils.murmur2.
    #[test]
    fn hashes_as_kafka_does() {
        for (text, expected) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), u32::from_ne_bytes(expected.to_ne_bytes()), "{text}");
        }
    }
}
