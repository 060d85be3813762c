//! Who answers for the calls of a question: what must be true before one leaves, and what is noted after it.

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::call::Call;
use crate::client::Completion;
use crate::config::PriceConfig;
use crate::pricing::TokenUsage;

/// A call that is about to leave.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Name of the provider.
    pub provider: String,
    /// Model.
    pub model: String,
    /// Which attempt of the question it is.
    pub attempt: i32,
    /// By what it will be paid.
    pub price: PriceConfig,
    /// Tokens it uses at most.
    pub bound: TokenUsage,
    /// Whether the provider answers a repeat with the same idempotency key without charging it again.
    pub honours_idempotency: bool,
}

/// Why a call may not leave, for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld(pub String);

/// Stands before every call of a question and after it.
pub trait Ledger: Send {
    /// Asked right before a call leaves; it does once this is done. With hedging, another call of the question may be
    /// under way meanwhile. What is asked here is never dropped half way, unless the question is.
    ///
    /// # Errors
    /// When it may not leave: then the question is put to nobody else either, and a call that is under way goes on.
    fn before<'a>(&'a mut self, call: &'a Planned) -> BoxFuture<'a, Result<(), Withheld>>;

    /// The call did not leave after all: its provider's breaker opened meanwhile, or another call has begun to answer.
    fn withdrawn(&mut self, call: &Planned);

    /// What came of it, and what it said when it succeeded. A call that another one has overtaken is `cancelled`, and its
    /// usage estimated.
    fn after(&mut self, call: &Call, said: Option<&Completion>);
}

/// Lets every call go and notes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unaccounted;

impl Ledger for Unaccounted {
    fn before<'a>(&'a mut self, _: &'a Planned) -> BoxFuture<'a, Result<(), Withheld>> {
        async { Ok(()) }.boxed()
    }

    fn withdrawn(&mut self, _: &Planned) {}

    fn after(&mut self, _: &Call, _: Option<&Completion>) {}
}
