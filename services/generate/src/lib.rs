//! Questions become cited answers.
//!
//! - [`RouteQuestions`] puts a question into its tenant's home lane.
//! - [`Answering`] retrieves passages, has a model write an answer from them, and cites. Without a model the answer is made
//!   of sentences of the documents, and says so.

mod accounts;
mod agent;
mod answering;
mod ask;
mod cache;
mod case;
mod cite;
mod clock;
pub mod config;
mod draft;
mod extract;
mod gist;
pub mod journal;
mod meaning;
pub mod metric;
mod modelled;
mod prompt;
mod queries;
mod recall;
mod relevance;
mod rerank;
mod retrieve;
mod route;
mod similar;
mod slot;
mod stream;
mod tenants;
mod watch;

pub use agent::{AgentError, AgentSection, Agents};
pub use answering::{Answering, Parts};
pub use clock::Clock;
pub use extract::{Extract, candidates, choose};
pub use meaning::{Meaning, MeaningError};
pub use prompt::{PromptError, PromptSettings, Prompts};
pub use relevance::any_relevant;
pub use rerank::{HttpReranker, InvalidRerank, Rerank, RerankApi, RerankConfig, RerankError};
pub use retrieve::{Passage, Retrieve, RetrieveError, Store, Wanted};
pub use route::RouteQuestions;
pub use stream::{KafkaTokens, TokenSink};
pub use tenants::Tenants;
