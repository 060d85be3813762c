//! OpenAI-compatible providers: one client, one classification of what can go wrong, and a chain of providers that
//! are tried in order, each behind a breaker, a gate that keeps to its rate limits, and a budget of retries. Beside it
//! what a service needs to keep its tenants to their limits, an [`Account`] for each, and to notice what is out of the
//! ordinary: [`SpendWatch`] and [`PromptWatch`].
//!
//! TLS needs a process-wide provider of cryptography: `main` installs `rustls`' ring provider before the first
//! [`Chain`] is made.

mod agent;
mod anomaly;
mod asking;
mod breaker;
mod budget;
mod call;
mod chain;
mod client;
mod config;
mod error;
mod estimate;
mod gate;
mod hedging;
mod ledger;
mod link;
pub mod metric;
mod money;
mod pricing;
mod question;
mod race;
#[cfg(test)]
mod recorder;
mod retry;
mod retry_budget;
mod sliding;
mod sse;
#[cfg(feature = "testing")]
pub mod testing;
mod timeouts;
mod tool_call;
pub mod tools;
mod window;
mod wire;

pub use agent::{AgentConfig, Bounds, InvalidAgent, Stop, ToolStep};
pub use anomaly::{PromptAlarm, PromptWatch, SpendAlarm, SpendWatch, Verdict};
pub use breaker::BreakerConfig;
pub use budget::{Account, LimitKind, Limits, Refused, Reservation, Retry, Used, admit_all, reserve_all};
pub use call::Call;
pub use chain::{Chain, ChainError, Exhausted, Partial, Reply, Run, Unanswered};
pub use client::{ChatRequest, Completion, Deltas, Discard, Finish};
pub use config::{InvalidConfig, LlmConfig, PriceConfig, ProviderConfig};
pub use error::{CallError, Recovery, Step};
pub use estimate::EstimateConfig;
pub use hedging::HedgingConfig;
pub use ledger::{Ledger, Planned, Unaccounted, Withheld};
pub use money::NanoUsd;
pub use pricing::{TokenUsage, Usd, estimate_tokens};
pub use retry::RetryConfig;
pub use retry_budget::RetryBudgetConfig;
pub use timeouts::TimeoutConfig;
pub use tool_call::{MAX_ARGUMENTS_BYTES, MAX_TOOL_CALLS, ToolCall, ToolSpec};
pub use wire::{Message, Role};
