//! Versioned prompts: `prompts/<template>/<version>.toml`.

mod version;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use weir_llm::Message;

use crate::Passage;
use version::{Material, Version, attribute, contained};

pub use version::PromptSettings;

/// What a model is told that answers from passages. Its versions are known by their names alone.
pub(crate) const ANSWER: &str = "answer";
/// What a model is told that may call tools.
pub(crate) const AGENT: &str = "agent";
/// What a model is told when nothing can be looked up.
pub(crate) const UNAIDED: &str = "unaided";

/// The versions that are built in, by template.
const BUILT_IN: [(&str, &[(&str, &str)]); 3] = [
    (
        ANSWER,
        &[
            // The oldest first.
            ("v1", include_str!("../../../prompts/answer/v1.toml")),
        ],
    ),
    (AGENT, &[("v1", include_str!("../../../prompts/agent/v1.toml"))]),
    (UNAIDED, &[("v1", include_str!("../../../prompts/unaided/v1.toml"))]),
];

/// A version as records, logs and settings name it: `v1` of the template that answers, `agent/v1` of another one.
pub(crate) fn full_name(template: &str, version: &str) -> String {
    if template == ANSWER { version.to_owned() } else { format!("{template}/{version}") }
}

/// The template of a version, by its full name, and its name there.
pub(crate) fn parts(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((ANSWER, name))
}

/// A prompt can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A file or the folder can't be read.
    #[error("cannot read {path}: {source}; correct generate.prompts_dir")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file does not hold a version of a prompt.
    #[error("{file}: {reason}")]
    File {
        /// Which.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A block is not a template, or can't be rendered.
    #[error("prompt {version} ({file}), {block}: {reason}")]
    Template {
        /// Which version.
        version: String,
        /// Where it is written.
        file: String,
        /// `system` or `user`.
        block: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// What a version says must hold for it does not.
    #[error("prompt {version} ({file}) fails its test {test:?}: {reason}")]
    Test {
        /// Which version.
        version: String,
        /// Where it is written.
        file: String,
        /// Name of the test.
        test: String,
        /// What was expected, and what there is instead.
        reason: String,
    },
    /// There is no such version.
    #[error("there is no prompt version {version:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        version: String,
        /// What there is.
        known: String,
    },
}

/// The versions of all templates, by their full names.
///
/// **Invariant:** each of them can be rendered and passed its own tests.
#[derive(Debug)]
pub struct Prompts {
    versions: BTreeMap<String, Version>,
}

impl Prompts {
    /// The built-in versions and those of a folder, which come first; each is tried out and tested.
    ///
    /// # Errors
    /// When the folder can't be read, a file is not a version of a prompt, or one fails its tests.
    pub fn load(folder: Option<&Path>) -> Result<Self, PromptError> {
        let mut versions = BTreeMap::new();
        for (template, built_in) in BUILT_IN {
            let mut sources: BTreeMap<String, Source> =
                built_in.iter().map(|(version, text)| Source::built_in(template, version, text)).collect();
            // Whoever has a folder has it for answers; of the others there may be none.
            if let Some(folder) = folder.map(|folder| folder.join(template))
                && (template == ANSWER || folder.is_dir())
            {
                sources.extend(read_folder(&folder)?);
            }
            for (name, source) in sources {
                let name = full_name(template, &name);
                let version = Version::parse(&name, &source.file, &source.text)?;
                version.test()?;
                versions.insert(name, version);
            }
        }
        Ok(Self { versions })
    }

    /// Whether there is such a version.
    ///
    /// # Errors
    /// When there is none.
    pub fn check(&self, version: &str) -> Result<(), PromptError> {
        self.version(version).map(|_| ())
    }

    /// What changes when the version's templates or settings do; empty where there is no such version.
    #[must_use]
    pub fn fingerprint(&self, version: &str) -> String {
        self.versions.get(version).map(Version::fingerprint).unwrap_or_default()
    }

    /// What the version sets itself; nothing where there is no such version.
    #[must_use]
    pub fn settings(&self, version: &str) -> PromptSettings {
        self.versions.get(version).map(Version::settings).unwrap_or_default()
    }

    /// The messages for a question and its passages, which are numbered from 1.
    ///
    /// # Errors
    /// When there is no such version or a template fails.
    pub fn messages(&self, version: &str, question: &str, passages: &[Passage]) -> Result<Vec<Message>, PromptError> {
        let rendered = self.version(version)?.render(question, passages.iter().map(material))?;
        Ok(vec![Message::system(rendered.system), Message::user(rendered.user)])
    }

    fn version(&self, name: &str) -> Result<&Version, PromptError> {
        self.versions.get(name).ok_or_else(|| PromptError::Unknown {
            // Whoever asked chose it: it may be of any length.
            version: name.chars().take(80).collect(),
            known: self.versions.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

fn material(passage: &Passage) -> Material<'_> {
    let hit = &passage.hit;
    Material { title: hit.title.as_deref(), headings: &hit.heading_path, text: &hit.text }
}

/// A passage as a tool gives it to a model: in the tags of the templates, with the document's id.
pub(crate) fn numbered(number: usize, passage: &Passage) -> String {
    let hit = &passage.hit;
    let title = hit.title.as_deref().map(|title| format!(" title=\"{}\"", attribute(title))).unwrap_or_default();
    let document = attribute(hit.document.as_str());
    format!("<passage n=\"{number}\" document=\"{document}\"{title}>\n{}\n</passage>\n", contained(&hit.text))
}

/// A file, as it was read.
struct Source {
    file: String,
    text: String,
}

impl Source {
    fn built_in(template: &str, version: &str, text: &str) -> (String, Self) {
        let file = format!("built-in prompts/{template}/{version}.toml");
        (version.to_owned(), Self { file, text: text.to_owned() })
    }
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, Source>, PromptError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| PromptError::Read { path, source }
    };
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(fail(folder))? {
        let path = entry.map_err(fail(folder))?.path();
        let file = path.display().to_string();
        let version = path.file_stem().and_then(|stem| stem.to_str());
        match (path.extension().and_then(|extension| extension.to_str()), version) {
            (Some("toml"), Some(version)) => {
                let text = std::fs::read_to_string(&path).map_err(fail(&path))?;
                found.insert(version.to_owned(), Source { file, text });
            }
            // Left alone, it would give way to a built-in version of the same name without a word.
            (Some("j2"), Some(version)) => {
                let reason = format!("templates are no longer read; make it {version}.toml, see prompts/README.md");
                return Err(PromptError::File { file, reason });
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
