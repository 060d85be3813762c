//! How a value lies in the changelog and on disk.

use weir_stage::StateValue;

const LASTING: u8 = 0;
const EXPIRING: u8 = 1;

/// A byte for the kind, the time of expiry where there is one (big-endian), the value.
pub(crate) fn encode(value: &StateValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.bytes.len() + 9);
    match value.expires_at {
        None => out.push(LASTING),
        Some(at) => {
            out.push(EXPIRING);
            out.extend_from_slice(&at.to_be_bytes());
        }
    }
    out.extend_from_slice(&value.bytes);
    out
}

/// The value; none when the bytes are not one.
pub(crate) fn decode(bytes: &[u8]) -> Option<StateValue> {
    let (kind, rest) = bytes.split_first()?;
    match *kind {
        LASTING => Some(StateValue { bytes: rest.to_vec(), expires_at: None }),
        EXPIRING => {
            let (at, value) = rest.split_first_chunk::<8>()?;
            Some(StateValue { bytes: value.to_vec(), expires_at: Some(i64::from_be_bytes(*at)) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else() {
        for expires_at in [None, Some(0), Some(i64::MAX), Some(-1)] {
            for bytes in [vec![], vec![1, 2, 3]] {
                let value = StateValue { bytes, expires_at };
                assert_eq!(decode(&encode(&value)), Some(value));
            }
        }
        for nothing in [&[][..], &[7, 1], &[EXPIRING, 1, 2]] {
            assert_eq!(decode(nothing), None);
        }
    }
}
