//! Whether a broker's log of cluster metadata is whole.
//!
//! Kafka cuts a log at the first batch that is damaged, says so in one line, and starts: with a damaged metadata log that
//! is an empty cluster in place of the old one, while the topics' own data lies beside it. Here that is noticed first.

use std::fs;
use std::path::Path;

/// Bytes of a batch before what its length counts: base offset and length.
const PREFIX: usize = 12;
/// Position of the checksum in what the length counts, and of what it covers.
const CHECKSUM: usize = 5;
const COVERED: usize = 9;
/// Position of the format's version.
const MAGIC: usize = 4;

/// Says what is damaged in the metadata log of the broker whose folder is `data`; nothing when it is whole, or ends in
/// a batch that was being written when the machine stopped.
pub(crate) fn damage(data: &Path) -> Option<String> {
    let folder = data.join("__cluster_metadata-0");
    let segments = fs::read_dir(&folder).ok()?.flatten().map(|entry| entry.path());
    for segment in segments.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let Ok(bytes) = fs::read(&segment) else {
            return Some(format!("{} can't be read", segment.display()));
        };
        if let Some(position) = first_damage(&bytes) {
            return Some(format!("{} is damaged at byte {position}", segment.display()));
        }
    }
    None
}

/// Position of the first whole batch that is not what was written (record batch v2 of Kafka's protocol).
fn first_damage(bytes: &[u8]) -> Option<usize> {
    let mut position = 0;
    while let Some(rest) = bytes.get(position..).filter(|rest| rest.len() >= PREFIX) {
        let length: [u8; 4] = rest.get(8..PREFIX)?.try_into().ok()?;
        // A negative length is damage; one beyond the end may be a batch that was being written.
        let Ok(length) = usize::try_from(i32::from_be_bytes(length)) else { return Some(position) };
        let Some(batch) = rest.get(PREFIX..PREFIX + length) else {
            let implausible = length > MAX_BATCH;
            return implausible.then_some(position);
        };
        if !whole(batch) {
            return Some(position);
        }
        position += PREFIX + length;
    }
    None
}

/// Larger than any batch of metadata (`internal.metadata.max.batch.size.in.bytes` is 8 MiB).
const MAX_BATCH: usize = 64 << 20;

fn whole(batch: &[u8]) -> bool {
    let checksum = batch.get(CHECKSUM..COVERED).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    batch.get(MAGIC) == Some(&2) && checksum == batch.get(COVERED..).map(crc32c::crc32c)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn batch(payload: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 0, 0, 0, 2];
        body.extend(crc32c::crc32c(payload).to_be_bytes());
        body.extend(payload);
        let mut batch = 7i64.to_be_bytes().to_vec();
        batch.extend((body.len() as u32).to_be_bytes());
        batch.extend(body);
        batch
    }

    #[test]
    fn damage_is_told_from_a_batch_that_was_being_written() {
        let log = [batch(b"first"), batch(b"second")].concat();
        assert_eq!(first_damage(&log), None);
        assert_eq!(first_damage(&log[..log.len() - 3]), None);
        let mut flipped = log.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(first_damage(&flipped), Some(batch(b"first").len()));
        assert_eq!(first_damage(&[0x5a; 200]), Some(0));
        assert_eq!(first_damage(&[0; 200]), Some(0));
    }
}
