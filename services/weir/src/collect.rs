//! Turns what the user names (files, folders, globs, standard input, JSON lines) into documents with ids.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use color_eyre::eyre::{WrapErr, bail, eyre};
use serde::Deserialize;
use walkdir::WalkDir;
use weir_contracts::DocumentId;

/// A document to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: DocumentId,
    /// Its bytes.
    pub source: Source,
    /// Its title, where the source says one.
    pub title: Option<String>,
    /// Metadata the source says.
    pub metadata: BTreeMap<String, String>,
}

/// Where the bytes of a document are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// Here.
    Bytes(Vec<u8>),
    /// Elsewhere, and too large to be brought here.
    Link {
        /// Where.
        url: String,
        /// How large, bytes.
        size: u64,
    },
}

/// A file that can't become a document.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refused {
    /// The file.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// How to look.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Id of the document from standard input, or of the only file.
    pub id: Option<DocumentId>,
    /// Ids are paths relative to this folder, instead of to what was named.
    pub base: Option<PathBuf>,
    /// Put before every id.
    pub prefix: String,
    /// Also files and folders whose names begin with a dot.
    pub hidden: bool,
    /// A `.jsonl` file, and standard input, holds one document a line: `{"id", "title", "text", "metadata"}`.
    pub jsonl: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Collected {
    /// The documents, in the order of their ids.
    pub documents: Vec<Found>,
    /// What can't be sent.
    pub refused: Vec<Refused>,
}

/// Finds the documents that `paths` name. Nothing is read yet but JSON lines and standard input.
///
/// # Errors
/// When a path does not exist, a pattern matches nothing, or two files would get the same id.
pub fn collect(paths: &[String], options: &Options) -> color_eyre::Result<Collected> {
    let mut finder = Finder { options, by_id: BTreeMap::new(), refused: Vec::new() };
    if options.id.is_some() && paths.len() != 1 {
        bail!("--id names one document; give exactly one file, or - for standard input");
    }
    for path in paths {
        finder.argument(path)?;
    }
    Ok(Collected { documents: finder.by_id.into_values().map(|(_, found)| found).collect(), refused: finder.refused })
}

struct Finder<'a> {
    options: &'a Options,
    by_id: BTreeMap<String, (String, Found)>,
    refused: Vec<Refused>,
}

impl Finder<'_> {
    fn argument(&mut self, argument: &str) -> color_eyre::Result<()> {
        if argument == "-" {
            return self.standard_input();
        }
        let path = Path::new(argument);
        if path.is_dir() {
            if self.options.id.is_some() {
                bail!("--id names one document, but {argument} is a folder");
            }
            return self.folder(path);
        }
        if path.exists() {
            let base = path.parent().unwrap_or(Path::new("")).to_owned();
            return self.file(path, &base);
        }
        if argument.contains(['*', '?', '[']) {
            return self.pattern(argument);
        }
        Err(eyre!("{argument}: no such file or folder"))
    }

    fn standard_input(&mut self) -> color_eyre::Result<()> {
        if self.options.jsonl {
            let text = std::io::read_to_string(std::io::stdin().lock()).wrap_err("can't read standard input")?;
            return self.json_lines("standard input", &text);
        }
        let Some(id) = self.options.id.clone() else {
            bail!("standard input has no name: say which document it is with --id ID");
        };
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).wrap_err("can't read standard input")?;
        self.add("standard input", Found { id, source: Source::Bytes(bytes), title: None, metadata: BTreeMap::new() })
    }

    fn folder(&mut self, folder: &Path) -> color_eyre::Result<()> {
        let hidden = self.options.hidden;
        let walk = WalkDir::new(folder).sort_by_file_name().into_iter();
        let visible = |entry: &walkdir::DirEntry| hidden || entry.depth() == 0 || !is_hidden(entry.file_name());
        for entry in walk.filter_entry(visible) {
            match entry {
                Ok(entry) if entry.file_type().is_file() => self.file(entry.path(), folder)?,
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().unwrap_or(folder).display().to_string();
                    self.refused.push(Refused { path, reason: error.to_string() });
                }
            }
        }
        Ok(())
    }

    fn pattern(&mut self, pattern: &str) -> color_eyre::Result<()> {
        let paths = glob::glob(pattern).wrap_err_with(|| format!("{pattern} is not a valid pattern"))?;
        let base = literal_base(pattern);
        let mut matched = 0;
        for path in paths {
            match path {
                Ok(path) if path.is_file() => {
                    matched += 1;
                    self.file(&path, &base)?;
                }
                Ok(_) => {}
                Err(error) => {
                    self.refused.push(Refused { path: error.path().display().to_string(), reason: error.to_string() });
                }
            }
        }
        if matched == 0 {
            bail!("{pattern} matches no file");
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, base: &Path) -> color_eyre::Result<()> {
        if self.options.jsonl && path.extension() == Some(OsStr::new("jsonl")) {
            let text = std::fs::read_to_string(path).wrap_err_with(|| format!("can't read {}", path.display()))?;
            return self.json_lines(&path.display().to_string(), &text);
        }
        let id = match &self.options.id {
            Some(id) => Ok(id.clone()),
            None => self.id_of(path, base),
        };
        match id {
            Ok(id) => {
                let source = Source::File(path.to_owned());
                self.add(&path.display().to_string(), Found { id, source, title: None, metadata: BTreeMap::new() })
            }
            Err(reason) => {
                self.refused.push(Refused { path: path.display().to_string(), reason });
                Ok(())
            }
        }
    }

    /// By the path relative to the folder that was named.
    fn id_of(&self, path: &Path, base: &Path) -> Result<DocumentId, String> {
        let base = self.options.base.as_deref().unwrap_or(base);
        let relative = path.strip_prefix(base).map_err(|_| format!("is not under the base {}", base.display()))?;
        document_id(relative, &self.options.prefix)
    }

    fn json_lines(&mut self, name: &str, text: &str) -> color_eyre::Result<()> {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = format!("{name}:{}", number + 1);
            match json_document(line, &self.options.prefix) {
                Ok(found) => self.add(&place, found)?,
                Err(reason) => self.refused.push(Refused { path: place, reason }),
            }
        }
        Ok(())
    }

    fn add(&mut self, place: &str, found: Found) -> color_eyre::Result<()> {
        match self.by_id.entry(found.id.as_str().to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert((place.to_owned(), found));
                Ok(())
            }
            Entry::Occupied(entry) if entry.get().1.source == found.source => Ok(()),
            Entry::Occupied(entry) => Err(eyre!(
                "{} and {place} would both be the document {}: name the folder they share, or give --base DIR so that \
                 ids are paths relative to it",
                entry.get().0,
                entry.key(),
            )),
        }
    }
}

/// The id of a file, by its path below what was named, with slashes on every system.
///
/// # Errors
/// When the path is no id.
pub fn document_id(relative: &Path, prefix: &str) -> Result<DocumentId, String> {
    let mut parts = vec![];
    for component in relative.components() {
        if let Component::Normal(part) = component {
            parts.push(part.to_str().ok_or("its name is not UTF-8; rename it or give it an --id")?);
        }
    }
    DocumentId::parse(format!("{prefix}{}", parts.join("/"))).map_err(|error| error.to_string())
}

/// A document as one line of JSON; `_id` as in the BEIR collections is as good as `id`.
#[derive(Deserialize)]
struct JsonDocument {
    #[serde(alias = "_id")]
    id: String,
    #[serde(default)]
    title: Option<String>,
    text: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// The document a line of JSON holds.
///
/// # Errors
/// When it is not one, in words for the user.
pub fn json_document(line: &str, prefix: &str) -> Result<Found, String> {
    let document: JsonDocument =
        serde_json::from_str(line).map_err(|error| format!("not a document {{id, title, text, metadata}}: {error}"))?;
    let id = DocumentId::parse(format!("{prefix}{}", document.id)).map_err(|error| error.to_string())?;
    let title = document.title.filter(|title| !title.is_empty());
    Ok(Found { id, source: Source::Bytes(document.text.into_bytes()), title, metadata: document.metadata })
}

/// The folder of a pattern above its first wildcard.
fn literal_base(pattern: &str) -> PathBuf {
    let literal = pattern.split(['*', '?', '[']).next().unwrap_or_default();
    let folder = literal.rfind('/').map_or("", |slash| literal.get(..=slash).unwrap_or_default());
    PathBuf::from(folder)
}

/// Whether a name begins with a dot.
#[must_use]
pub fn is_hidden(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with('.')
}

/// The media type a file's name suggests; a hint, the content is looked at.
#[must_use]
pub fn content_type_of(name: &str) -> Option<&'static str> {
    let extension = name.rsplit_once('.')?.1.to_ascii_lowercase();
    Some(match extension.as_str() {
        "md" | "markdown" => "text/markdown",
        "html" | "htm" | "xhtml" => "text/html",
        "pdf" => "application/pdf",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "csv" => "text/csv",
        "jsonl" | "ndjson" => "application/x-ndjson",
        "json" => "application/json",
        "txt" | "text" => "text/plain",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a.md", "deep/b.txt", "deep/er/c.html", ".git/config", "deep/.hidden"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        dir
    }

    fn ids(collected: &Collected) -> Vec<&str> {
        collected.documents.iter().map(|found| found.id.as_str()).collect()
    }

    #[test]
    fn ids_in_a_folder_are_paths_relative_to_it() {
        let dir = tree();
        let root = dir.path().to_str().unwrap().to_owned();
        let found = collect(std::slice::from_ref(&root), &Options::default()).unwrap();
        assert_eq!(ids(&found), ["a.md", "deep/b.txt", "deep/er/c.html"]);
        let with_hidden = Options { hidden: true, ..Options::default() };
        assert_eq!(collect(&[root], &with_hidden).unwrap().documents.len(), 5);
    }

    #[test]
    fn ids_of_a_pattern_are_relative_to_what_stands_before_its_wildcards() {
        let dir = tree();
        let pattern = format!("{}/deep/**/*.*", dir.path().display());
        let found = collect(&[pattern], &Options::default()).unwrap();
        assert_eq!(ids(&found), [".hidden", "b.txt", "er/c.html"]);
        assert!(collect(&[format!("{}/*.pdf", dir.path().display())], &Options::default()).is_err());
    }

    #[test]
    fn two_files_with_one_id_are_refused_with_the_cure() {
        let dir = tree();
        std::fs::write(dir.path().join("deep/a.md"), "y").unwrap();
        let root = dir.path().display();
        let paths = [format!("{root}/a.md"), format!("{root}/deep/a.md")];
        let error = collect(&paths, &Options::default()).unwrap_err().to_string();
        assert!(error.contains("--base"), "{error}");
        let based = Options { base: Some(dir.path().to_owned()), ..Options::default() };
        assert_eq!(ids(&collect(&paths, &based).unwrap()), ["a.md", "deep/a.md"]);
    }

    #[test]
    fn naming_the_same_file_twice_sends_it_once() {
        let dir = tree();
        let file = format!("{}/a.md", dir.path().display());
        assert_eq!(collect(&[file.clone(), file], &Options::default()).unwrap().documents.len(), 1);
    }

    #[test]
    fn each_line_of_json_lines_is_a_document_and_a_bad_line_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus.jsonl");
        std::fs::write(&path, "{\"_id\":\"1\",\"title\":\"T\",\"text\":\"one\"}\n\n{\"id\":\"2\"}\n").unwrap();
        let options = Options { jsonl: true, prefix: "scifact/".into(), ..Options::default() };
        let found = collect(&[path.display().to_string()], &options).unwrap();
        assert_eq!(ids(&found), ["scifact/1"]);
        assert_eq!(found.documents[0].title.as_deref(), Some("T"));
        assert!(found.refused[0].path.ends_with("corpus.jsonl:3"), "{:?}", found.refused);
    }

    #[test]
    fn standard_input_needs_an_id() {
        assert!(collect(&["-".into()], &Options::default()).unwrap_err().to_string().contains("--id"));
    }
}
