//! What a stage is given.

use std::sync::Arc;

use weir_contracts::{Deadline, Lane, header};

use crate::state::{NoState, State, StateView};

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinates {
    /// Full name of the topic.
    pub topic: Arc<str>,
    /// Partition.
    pub lane: Lane,
    /// Offset.
    pub offset: i64,
}

impl std::fmt::Display for Coordinates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.topic, self.lane, self.offset)
    }
}

/// Headers of a record, in order; names may repeat, the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Vec<u8>)>);

impl Headers {
    /// The value of a header.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
    }

    /// The value of a header that is text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Replaces a header, or adds it.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.0.retain(|(key, _)| key != name);
        self.0.push((name.to_owned(), value.into()));
    }
}

/// A record as it was delivered.
#[derive(Debug, Clone)]
pub struct Delivery<R> {
    /// The decoded value.
    pub record: R,
    /// Where it was read.
    pub at: Coordinates,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Headers,
    /// When it was produced, milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl<R> Delivery<R> {
    /// The decoded value.
    pub fn record(&self) -> &R {
        &self.record
    }

    /// Offset of its first delivery. A record that came back through `<stage>.again` lies elsewhere now; what its
    /// headers say counts only there, since anybody may set headers in the topics before.
    #[must_use]
    pub fn first_offset(&self) -> i64 {
        let returned = self.at.topic.ends_with(".again");
        let first = self.headers.text(header::DLQ_OFFSET).filter(|_| returned);
        first.and_then(|offset| offset.parse().ok()).unwrap_or(self.at.offset)
    }

    /// When its result is of no use any more, if its headers say so.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.headers.text(header::DEADLINE)?.parse().ok().map(Deadline::at_millis)
    }
}

/// Records to be processed together; they may come from several lanes, each lane's in order.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a, R> {
    deliveries: &'a [Delivery<R>],
    state: State<'a>,
}

impl<'a, R> Batch<'a, R> {
    /// A batch of these deliveries, for a stage without state.
    #[must_use]
    pub fn new(deliveries: &'a [Delivery<R>]) -> Self {
        Self::with_state(deliveries, &NoState)
    }

    /// A batch of these deliveries, with the state of their lanes.
    #[must_use]
    pub fn with_state(deliveries: &'a [Delivery<R>], state: &'a dyn StateView) -> Self {
        Self { deliveries, state: State::new(state) }
    }

    /// The state of the lanes at hand.
    #[must_use]
    pub fn state(&self) -> State<'a> {
        self.state
    }

    /// The deliveries, in order.
    pub fn iter(&self) -> std::slice::Iter<'a, Delivery<R>> {
        self.deliveries.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }
}
