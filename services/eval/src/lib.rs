//! Scores answers without a model: do the citations point at something, and do the cited passages say what the answer
//! says?

pub mod config;
mod groundedness;
pub mod metric;
mod score;
mod validity;

pub use groundedness::groundedness;
pub use score::{Clock, EVALUATOR, Score};
pub use validity::citation_validity;
