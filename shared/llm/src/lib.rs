//! OpenAI-compatible providers: one client, one classification of what can go wrong, and a chain of providers that
//! are tried in order.
//!
//! TLS needs a process-wide provider of cryptography: `main` installs `rustls`' ring provider before the first
//! [`Chain`] is made.

mod chain;
mod client;
mod config;
mod error;
pub mod metric;
mod pricing;
mod sse;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;

pub use chain::{Call, Chain, ChainError, Exhausted, Partial, Reply, Run};
pub use client::{ChatRequest, Completion, Deltas, Discard, Finish};
pub use config::{InvalidConfig, LlmConfig, PriceConfig, ProviderConfig, TimeoutConfig};
pub use error::{CallError, Step};
pub use pricing::{TokenUsage, Usd, estimate_tokens};
pub use wire::{Message, Role};
