//! A question on its way to an answer.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use weir_contracts::{Deadline, Question, header};
use weir_stage::Delivery;

use crate::stream::Origin;

/// A question on its way.
pub(crate) struct Ask<'a> {
    pub(crate) delivery: &'a Delivery<Question>,
    pub(crate) question: &'a Question,
    /// Version of the prompt it is to be answered with, by its full name.
    pub(crate) version: Cow<'a, str>,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) began: Instant,
    /// Since it was asked.
    pub(crate) queued: Duration,
}

impl Ask<'_> {
    /// What the journal of the question is kept under: the place of its first delivery, which it keeps when it comes back
    /// through a delay tier or out of the dead letters.
    pub(crate) fn journal_key(&self) -> String {
        format!("journal/{:020}", self.delivery.first_offset())
    }

    /// Whether somebody wants it done from the beginning, though its journal knows how far it was.
    pub(crate) fn is_to_restart(&self) -> bool {
        self.delivery.headers.get(header::RESTART).is_some()
    }

    /// The question without what surrounds it.
    pub(crate) fn text(&self) -> &str {
        self.question.question.trim()
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin {
            request_id: self.question.request_id.clone(),
            tenant: self.question.tenant.clone(),
            lane: self.delivery.at.lane,
            traceparent: self.delivery.headers.get(header::TRACEPARENT).map(<[u8]>::to_vec),
        }
    }
}
