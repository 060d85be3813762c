//! Sentence-embedding models: where their files come from, their tokenizers, and the models themselves on candle.
//!
//! ```no_run
//! # async fn example() -> Result<(), weir_models::ModelError> {
//! use weir_models::{Embedder, ModelConfig};
//!
//! let config = ModelConfig::default();
//! let files = weir_models::prepare(&config).await?;
//! let embedder = Embedder::load(&config, &files)?;
//! let vectors = embedder.embed(&["A weir keeps the water level."])?; // blocks; unit length
//! assert_eq!(vectors[0].len(), embedder.dimension());
//! # Ok(())
//! # }
//! ```
//!
//! Services that only count tokens switch the feature `embedder` off and do not compile candle.

#[cfg(feature = "embedder")]
mod batching;
#[cfg(feature = "embedder")]
mod bert;
mod config;
#[cfg(feature = "embedder")]
mod embedder;
mod error;
mod files;
#[cfg(feature = "embedder")]
mod gpu;
#[cfg(feature = "embedder")]
mod hashing;
mod hub;
mod manifest;
pub mod metric;
#[cfg(feature = "embedder")]
mod peak;
#[cfg(feature = "embedder")]
mod pinning;
mod prepare;
#[cfg(feature = "embedder")]
mod processor;
#[cfg(feature = "embedder")]
mod queue;
mod tokenizer;
mod wheel;
#[cfg(feature = "embedder")]
mod workers;

pub use config::{DeviceChoice, ModelConfig, Precision, TEST_MODEL};
#[cfg(feature = "embedder")]
pub use embedder::Embedder;
pub use error::ModelError;
pub use files::ModelFiles;
pub use prepare::prepare;
pub use tokenizer::Tokenizer;
