//! From the bytes of a document to its text and structure.
//!
//! Pure: no IO, no clock. What a file says it is counts for nothing; what its bytes look like decides.

mod csv;
mod docx;
mod ebcdic;
mod encoding;
mod html;
mod json;
mod limits;
mod markdown;
mod pdf;
mod plain;
mod refusal;
mod sniff;
mod structure;

use serde::{Deserialize, Serialize};
use weir_contracts::Block;

pub use limits::Limits;
pub use refusal::Refusal;
pub use sniff::{Format, Hint};

/// Name and version of the extraction; part of the content hash, so raise it whenever the same bytes would give
/// another text.
pub const EXTRACTOR: &str = concat!("weir-ingest/", env!("CARGO_PKG_VERSION"), "+1");

/// What a document says, and how it is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Extracted {
    /// What it was found to be.
    pub format: Format,
    /// Its own title, if it has one.
    pub title: Option<String>,
    /// Its text: NFC, lines ending in `\n`, no control characters but `\n` and `\t`.
    pub text: String,
    /// Structure of the text, in order, not overlapping.
    pub blocks: Vec<Block>,
    /// What could not be read although the rest could, in words for a person.
    pub warning: Option<String>,
}

/// What a look at the bytes decided, before they are parsed.
#[derive(Debug)]
pub struct Looked<'a> {
    bytes: &'a [u8],
    sniffed: sniff::Sniffed,
}

impl Looked<'_> {
    /// Whether the rest is cheap and can't hang or crash: then it needs no process of its own.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        match self.sniffed.format() {
            Format::Plain | Format::Csv => true,
            Format::Markdown | Format::Json | Format::JsonLines => self.bytes.len() <= SMALL,
            Format::Html | Format::Pdf | Format::Docx => false,
        }
    }
}

/// Bytes of Markdown or JSON that are parsed in the service's own process, at most.
const SMALL: usize = 64 << 10;

/// Looks what the bytes are.
///
/// # Errors
/// When they are nothing that can be read, or break a limit that shows without parsing.
pub fn look<'a>(bytes: &'a [u8], hint: &Hint, limits: &Limits) -> Result<Looked<'a>, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::Empty { why: "it has no bytes at all".into() });
    }
    if bytes.len() > limits.max_bytes {
        return Err(Refusal::TooLarge { what: "the document".into(), bytes: bytes.len(), limit: limits.max_bytes });
    }
    Ok(Looked { bytes, sniffed: sniff::sniff(bytes, hint)? })
}

/// Extracts what was looked at.
///
/// # Errors
/// When it can't be read, breaks a limit, or holds no text.
pub fn extract(looked: Looked<'_>, limits: &Limits) -> Result<Extracted, Refusal> {
    let format = looked.sniffed.format();
    let mut extracted = match looked.sniffed {
        sniff::Sniffed::Pdf => pdf::extract(looked.bytes, limits),
        sniff::Sniffed::Docx => docx::extract(looked.bytes, limits),
        sniff::Sniffed::Text { text, format, delimiter } => match format {
            Format::Html => html::extract(&text, limits),
            Format::Markdown => Ok(markdown::extract(&text, limits)?),
            Format::Json => json::extract_value(&text, limits),
            Format::JsonLines => json::extract_lines(&text, limits),
            Format::Csv => csv::extract(&text, delimiter),
            Format::Plain | Format::Pdf | Format::Docx => Ok(plain::extract(&text)),
        },
    }?;
    extracted.format = format;
    if extracted.text.trim().is_empty() {
        return Err(Refusal::Empty { why: empty_because(format).into() });
    }
    if extracted.title.is_none() {
        extracted.title = first_heading(&extracted);
    }
    Ok(extracted)
}

fn empty_because(format: Format) -> &'static str {
    match format {
        Format::Pdf => "its pages have no text layer; if it is a scan, run text recognition (OCR) over it first",
        Format::Html => "the page holds no text; if a script fills it in, send what the script shows",
        _ => "it holds nothing but white space or markup",
    }
}

/// The first heading, if the document begins with it or has just one on its highest level.
fn first_heading(extracted: &Extracted) -> Option<String> {
    let headings = || extracted.blocks.iter().filter(|block| block.level > 0);
    let highest = headings().map(|block| block.level).min()?;
    let first = headings().find(|block| block.level == highest)?;
    let begins = extracted.blocks.first().is_some_and(|block| block == first);
    let only = headings().filter(|block| block.level == highest).count() == 1;
    if !begins && !only {
        return None;
    }
    let range = usize::try_from(first.start).ok()?..usize::try_from(first.end).ok()?;
    structure::title(extracted.text.get(range)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn limits() -> Limits {
        Limits {
            max_bytes: 4 << 20,
            max_expanded_bytes: 64 << 20,
            max_expansion_ratio: 100,
            max_nesting: 200,
            max_pages: 50,
            max_seconds: 10,
            max_memory: 1 << 30,
        }
    }

    /// Kind and text of each block.
    pub(crate) fn kinds(document: &Extracted) -> Vec<(&'static str, &str)> {
        let kind = |block: &Block| match block.kind {
            weir_contracts::BlockKind::Heading => "heading",
            weir_contracts::BlockKind::Paragraph => "paragraph",
            weir_contracts::BlockKind::List => "list",
            weir_contracts::BlockKind::Code => "code",
            weir_contracts::BlockKind::Table => "table",
        };
        document.blocks.iter().map(|b| (kind(b), &document.text[b.start as usize..b.end as usize])).collect()
    }

    #[test]
    fn nothing_and_too_much_are_refused_with_a_reason() {
        let refuse = |bytes: &[u8], limits: &Limits| {
            look(bytes, &Hint::default(), limits).and_then(|looked| extract(looked, limits)).unwrap_err()
        };
        assert_eq!(refuse(b"", &limits()).class(), "empty");
        assert_eq!(refuse(b" \n\t ", &limits()).class(), "empty");
        let small = Limits { max_bytes: 3, ..limits() };
        assert_eq!(refuse(b"four", &small).class(), "too-large");
    }
}
