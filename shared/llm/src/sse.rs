//! Server-sent events, as far as chat completions use them: the `data` of each event.

/// Longest event that is accepted, bytes.
const MAX_EVENT: usize = 1 << 20;

/// An event grew beyond [`MAX_EVENT`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Collects bytes as they arrive and gives back whole events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Events {
    /// The events that `bytes` completes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut events = Vec::new();
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            self.line(&line, &mut events);
        }
        if self.buffer.len().saturating_add(self.data.len()) > MAX_EVENT { Err(TooLong) } else { Ok(events) }
    }

    fn line(&mut self, line: &[u8], events: &mut Vec<String>) {
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push(String::from_utf8_lossy(&std::mem::take(&mut self.data)).into_owned());
            }
            return;
        }
        // Comments, event names, ids and retry times say nothing here.
        if let Some(value) = line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let stream = ": comment\r\n\r\ndata: {\"a\":\"é\"}\n\nevent: x\ndata:one\ndata: two\r\n\r\ndata: [DONE]\n\n";
        let expected = ["{\"a\":\"é\"}", "one\ntwo", "[DONE]"];
        for size in 1..stream.len() {
            let mut events = Events::default();
            let got: Vec<String> =
                stream.as_bytes().chunks(size).flat_map(|piece| events.push(piece).unwrap()).collect();
            assert_eq!(got, expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; MAX_EVENT];
        assert!(events.push(&piece).is_ok());
        assert_eq!(events.push(b"x"), Err(TooLong));
    }
}
