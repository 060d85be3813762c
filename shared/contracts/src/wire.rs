//! Confluent's framing: a zero byte, the schema's id in four big-endian bytes, the Avro body.

/// Bytes that are not framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer than five bytes.
    #[error("{0} bytes are too few for a framed record, which has at least 5")]
    TooShort(usize),
    /// The first byte is not zero.
    #[error("the first byte is {0:#04x}; a record framed by a schema registry starts with 0x00")]
    Magic(u8),
}

/// Puts the frame of schema `id` before what `body` appends.
pub fn frame(id: u32, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&id.to_be_bytes());
}

/// Splits a framed record into the id of its writer's schema and its body.
///
/// # Errors
/// When the bytes are not framed.
pub fn unframe(bytes: &[u8]) -> Result<(u32, &[u8]), FrameError> {
    match bytes {
        [0, a, b, c, d, body @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        [0, ..] | [] => Err(FrameError::TooShort(bytes.len())),
        [magic, ..] => Err(FrameError::Magic(*magic)),
    }
}
