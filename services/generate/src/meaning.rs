//! Texts as vectors, away from the threads that wait for the network.

use std::sync::Arc;

use weir_models::{Embedder, ModelConfig, ModelError, prepare};

use crate::queries::{Queries, Vector};

/// A text could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum MeaningError {
    /// The model says so.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The thread that computed it ended.
    #[error("the embedding thread ended: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// It failed for all that were computed together.
    #[error(transparent)]
    Together(#[from] Arc<MeaningError>),
    /// Nobody computes any more: the service ends.
    #[error("no texts are embedded any more")]
    Ended,
}

/// The embedding model. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Meaning {
    embedder: Arc<Embedder>,
    queries: Arc<Queries>,
}

impl Meaning {
    /// Has the model's files there and loads it.
    ///
    /// # Errors
    /// When the model can't be had or loaded.
    pub async fn load(config: &ModelConfig) -> Result<Self, MeaningError> {
        let files = prepare(config).await?;
        let config = config.clone();
        let load = tokio::task::spawn_blocking(move || {
            let embedder = Embedder::load(&config, &files)?;
            // The first call starts threads and touches the weights; no question should wait for that.
            embedder.embed(&["warm up"])?;
            Ok::<_, ModelError>(embedder)
        });
        let embedder = Arc::new(load.await??);
        let queries = {
            let embedder = Arc::clone(&embedder);
            Queries::new(Arc::new(move |texts: &[&str]| Ok(embedder.embed(texts)?)))
        };
        Ok(Self { embedder, queries: Arc::new(queries) })
    }

    /// Id of the model.
    #[must_use]
    pub fn model_id(&self) -> &str {
        self.embedder.model_id()
    }

    /// The vector, of unit length, of a question: embedded together with others that come at the same time, or remembered.
    ///
    /// # Errors
    /// When the model fails.
    pub(crate) async fn of_question(&self, text: &str) -> Result<Vector, MeaningError> {
        Ok(self.queries.of(text).await?)
    }

    /// A vector of unit length for each text.
    ///
    /// # Errors
    /// When the model fails.
    pub async fn of(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, MeaningError> {
        let embedder = Arc::clone(&self.embedder);
        let vectors = tokio::task::spawn_blocking(move || {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            embedder.embed(&texts)
        });
        Ok(vectors.await??)
    }
}

/// Cosine of two vectors of unit length.
#[must_use]
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}
