//! Weir on a GPU beside sentence-transformers in half precision on the same one, where there is one.

use std::time::Instant;

use color_eyre::eyre::Result;
use serde_json::{Map, Value, json};
use weir_models::{DeviceChoice, Embedder, ModelConfig, ModelFiles};

use super::count;
use super::peers::Peers;
use super::texts::Set;
use crate::median;

/// Weir's embedder on a GPU.
pub struct Gpu {
    embedder: Embedder,
    /// Enough texts to keep it busy for a while.
    pub set: Set,
}

impl Gpu {
    /// None without a GPU, or if this build does not support it.
    pub fn load(
        config: &ModelConfig,
        files: &ModelFiles,
        set: impl FnOnce(&Embedder) -> Result<Set>,
    ) -> Result<Option<Self>> {
        match Embedder::load(&ModelConfig { device: DeviceChoice::Cuda, ..config.clone() }, files) {
            Ok(embedder) => Ok(Some(Self { set: set(&embedder)?, embedder })),
            Err(error) => {
                println!("  without a GPU: {error}");
                Ok(None)
            }
        }
    }

    /// Tokens a second of each, medians of turns; Weir's vectors against torch's in f32 on mixed lengths.
    pub fn measure(&self, mut peers: Option<&mut Peers>, mixed: &Set, rounds: usize, threads: usize) -> Result<Value> {
        let texts: Vec<&str> = self.set.texts.iter().map(String::as_str).collect();
        let weir = || -> Result<f64> {
            let started = Instant::now();
            self.embedder.embed(&texts)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let rate = |seconds: &mut [f64]| count(self.set.tokens()) / median(seconds);
        let mut figures = Map::new();
        figures.insert("model".into(), json!(self.embedder.model_id()));
        figures.insert("texts".into(), json!(texts.len()));
        figures.insert("mean_tokens".into(), json!(count(self.set.tokens()) / count(texts.len())));
        weir()?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let peer = peers.as_ref().and_then(|peers| peers.on_gpu.clone());
        if let (Some(peers), Some(peer)) = (&mut peers, &peer) {
            let (batch, _) = peers.tune(peer, &self.set, threads)?;
            figures.insert("peer_batches_of".into(), json!(batch));
        }
        for _ in 0..rounds {
            ours.push(weir()?);
            if let (Some(peers), Some(peer)) = (&mut peers, &peer) {
                theirs.push(peers.seconds(peer, &self.set, threads)?);
            }
        }
        let ours = rate(&mut ours);
        let mut rates = Map::from_iter([("weir".to_owned(), json!(ours))]);
        println!("  on the GPU, tokens/s: weir {ours:.0}");
        if let (Some(peers), Some(peer)) = (peers, peer) {
            let theirs = rate(&mut theirs);
            println!("  on the GPU, tokens/s: {} {theirs:.0}", peer.name);
            rates.insert(peer.name, json!(theirs));
            figures.insert("ratio_to_peer".into(), json!(ours / theirs));
            let mixed_texts: Vec<&str> = mixed.texts.iter().map(String::as_str).collect();
            figures.insert("accuracy".into(), peers.accuracy_of(&self.embedder.embed(&mixed_texts)?, mixed)?);
        }
        figures.insert("tokens_per_second".into(), Value::Object(rates));
        Ok(Value::Object(figures))
    }
}
