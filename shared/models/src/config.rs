//! Settings.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Name of the deterministic model without weights, for tests.
pub const TEST_MODEL: &str = "test";

/// Where the model is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The first NVIDIA GPU if this build supports it and there is one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU; an error if there is none.
    Cuda,
}

/// How exactly the model is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The fastest whose rankings are as good as those of `F32`, and whose vectors may be mixed: `Bf16` where the processor
    /// multiplies it, `F16` on a GPU, else `F32`.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Products of numbers rounded to bf16, added up in single precision; on a processor only.
    Bf16,
    /// Half precision; on a GPU only.
    F16,
    /// Products of whole numbers of eight bits, everything else in single precision; on a processor only.
    Int8,
}

impl Precision {
    /// As ids of models have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// Which embedding model to use and how. Section `[model]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `all-MiniLM-L6-v2`, `test` (a deterministic hash of words, for tests), or any name together with `dir`.
    pub name: String,
    /// Folder with config.json, tokenizer.json and model.safetensors. Nothing is downloaded when it is set.
    pub dir: Option<PathBuf>,
    /// Folder where downloaded models are kept.
    pub cache: PathBuf,
    /// Never download: the model is in `dir` or in `cache`, or it is an error.
    pub offline: bool,
    /// Address of the model hub.
    pub hub: String,
    /// Threads that compute; 0: as many as the service may use.
    pub threads: usize,
    /// `auto`, `cpu` or `cuda`.
    pub device: DeviceChoice,
    /// `auto`, `f32`, `bf16` (processor only), `f16` (GPU only) or `int8` (processor only; up to twice as fast as `f32`; `auto` never
    /// takes it). It is part of the model's id in records; vectors of these may be mixed in one collection, those in `int8` not.
    pub precision: Precision,
    /// Tokens computed at once, at most (one text may exceed it). More is faster up to a point and takes more
    /// memory. On a GPU that runs out of memory it is halved until it fits.
    pub max_batch_tokens: usize,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: crate::manifest::MINILM.name.into(),
            dir: None,
            cache: default_cache(),
            offline: false,
            hub: "https://huggingface.co".into(),
            threads: 0,
            device: DeviceChoice::Auto,
            precision: Precision::Auto,
            max_batch_tokens: 16_384,
        }
    }
}

impl ModelConfig {
    /// The deterministic model without weights.
    #[must_use]
    pub fn test() -> Self {
        Self { name: TEST_MODEL.into(), ..Self::default() }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// The first field whose value can't work, and why.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.name.trim().is_empty() {
            return Err(("name", "must name a model, for example all-MiniLM-L6-v2"));
        }
        if self.max_batch_tokens == 0 {
            return Err(("max_batch_tokens", "must be at least 1; some thousands are efficient"));
        }
        if !self.hub.starts_with("http://") && !self.hub.starts_with("https://") {
            return Err(("hub", "must be a URL that begins with http:// or https://"));
        }
        Ok(())
    }

    /// Threads that compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            threads => threads,
        }
    }
}

/// `$XDG_CACHE_HOME/weir/models`, by default `~/.cache/weir/models`.
fn default_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("weir")
        .join("models")
}
