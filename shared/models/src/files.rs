//! The files of a model, found and verified.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::manifest::{CONFIG, File, Manifest, TOKENIZER, WEIGHTS};
use crate::{ModelError, Precision, TEST_MODEL};

/// A model that is there: made by [`crate::prepare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    name: String,
    revision: String,
    max_tokens: usize,
    dir: Option<PathBuf>,
}

impl ModelFiles {
    /// The model without files.
    pub(crate) fn test() -> Self {
        Self { name: TEST_MODEL.into(), revision: "1".into(), max_tokens: 256, dir: None }
    }

    /// A known model in `dir`.
    pub(crate) fn known(manifest: &Manifest, dir: PathBuf) -> Self {
        Self {
            name: manifest.name.into(),
            revision: manifest.short_revision().into(),
            max_tokens: manifest.max_tokens,
            dir: Some(dir),
        }
    }

    /// A model in a folder of the user's: the known one if its weights are, else a revision of its own, made of its
    /// weights, so that vectors of different models never carry the same name.
    pub(crate) fn in_folder(name: &str, known: Option<&Manifest>, dir: &Path) -> Result<Self, ModelError> {
        for file in [CONFIG, TOKENIZER, WEIGHTS] {
            if !dir.join(file).is_file() {
                return Err(ModelError::Missing { dir: dir.to_owned(), file: file.to_owned() });
            }
        }
        let digest = sha256(&dir.join(WEIGHTS))?;
        if let Some(manifest) = known
            && manifest.files.iter().any(|file| file.name == WEIGHTS && file.sha256 == digest)
        {
            return Ok(Self::known(manifest, dir.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            revision: digest.get(..8).unwrap_or(&digest).to_owned(),
            max_tokens: sequence_limit(dir)?,
            dir: Some(dir.to_owned()),
        })
    }

    /// Name of the model.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which revision of it, shortened.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Tokens of one text that count at most, special tokens included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The folder; none for the test model, which has no files.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Id of the model in records, with the precision of its arithmetic: `name@revision/precision`.
    #[must_use]
    pub fn model_id(&self, precision: Precision) -> String {
        format!("{}@{}/{}", self.name, self.revision, precision.name())
    }
}

/// What the folder of a model that Weir does not know says about the longest text, or 256.
fn sequence_limit(dir: &Path) -> Result<usize, ModelError> {
    #[derive(serde::Deserialize)]
    struct SentenceConfig {
        max_seq_length: Option<usize>,
    }
    let path = dir.join("sentence_bert_config.json");
    if !path.is_file() {
        return Ok(256);
    }
    let text = fs::read_to_string(&path).map_err(ModelError::io("read", &path))?;
    let config: SentenceConfig = serde_json::from_str(&text).map_err(|error| ModelError::invalid(&path, error))?;
    Ok(config.max_seq_length.unwrap_or(256))
}

/// Whether all files of a known model lie in `dir` with the right lengths. Their checksums were verified before they
/// were moved there, in one step.
pub(crate) fn complete(manifest: &Manifest, dir: &Path) -> bool {
    manifest.files.iter().all(|file| fs::metadata(dir.join(file.name)).is_ok_and(|found| found.len() == file.bytes))
}

/// Verifies a file against its checksum.
pub(crate) fn verify(file: &File, path: &Path) -> Result<(), ModelError> {
    let found = sha256(path)?;
    if found == file.sha256 {
        Ok(())
    } else {
        Err(ModelError::invalid(path, format_args!("its SHA-256 is {found}, not {}", file.sha256)))
    }
}

/// SHA-256 of a file, hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String, ModelError> {
    let mut file = fs::File::open(path).map_err(ModelError::io("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(ModelError::io("read", path))?;
        match buffer.get(..read) {
            Some([]) | None => return Ok(hex::encode(hash.finalize())),
            Some(bytes) => hash.update(bytes),
        }
    }
}
