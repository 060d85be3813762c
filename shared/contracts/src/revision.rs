//! Revisions of documents.

use std::fmt;

use serde::{Deserialize, Serialize};

const OFFSET_BITS: u32 = 40;
const MAX_OFFSET: i64 = (1 << OFFSET_BITS) - 1;
const MAX_EPOCH: u16 = (1 << 13) - 1;

/// A revision out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("placement epoch {epoch} and offset {offset} are outside 0..=8191 and 0..2^40")]
pub struct InvalidRevision {
    epoch: u16,
    offset: i64,
}

/// Which version of a document: (placement epoch, offset of the request in its lane's `requests`), as one number
/// below 2^53, so that Qdrant's floating-point ranges compare it exactly. Rises by itself, has gaps, needs no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(i64);

impl Revision {
    /// The revision of the request at `offset` under placement `epoch`.
    ///
    /// # Errors
    /// When the epoch is above 8191 or the offset is negative or at least 2^40.
    pub fn new(epoch: u16, offset: i64) -> Result<Self, InvalidRevision> {
        if epoch > MAX_EPOCH || !(0..=MAX_OFFSET).contains(&offset) {
            return Err(InvalidRevision { epoch, offset });
        }
        Ok(Self((i64::from(epoch) << OFFSET_BITS) | offset))
    }

    /// The revision as one number; orders as revisions do.
    #[must_use]
    pub fn ordinal(self) -> i64 {
        self.0
    }

    /// The revision with this number, as read back from a store.
    #[must_use]
    pub fn from_ordinal(ordinal: i64) -> Self {
        Self(ordinal)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> OFFSET_BITS, self.0 & MAX_OFFSET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_outranks_every_offset_of_an_earlier_one() -> Result<(), InvalidRevision> {
        assert!(Revision::new(1, 0)? > Revision::new(0, MAX_OFFSET)?);
        assert!(Revision::new(MAX_EPOCH, MAX_OFFSET)?.ordinal() < 1 << 53);
        assert_eq!(Revision::new(2, 17)?.to_string(), "2.17");
        assert!(Revision::new(0, -1).is_err());
        Ok(())
    }
}
