//! What bytes are, by looking at them.

use serde::{Deserialize, Serialize};

use super::{Refusal, csv, encoding, json};

/// What a document was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Text without markup.
    Plain,
    /// Markdown.
    Markdown,
    /// HTML or XHTML.
    Html,
    /// PDF.
    Pdf,
    /// Word, Office Open XML.
    Docx,
    /// One JSON value.
    Json,
    /// One JSON value a line.
    JsonLines,
    /// Comma-, semicolon- or tab-separated values.
    Csv,
}

impl Format {
    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain",
            Self::Markdown => "text/markdown",
            Self::Html => "text/html",
            Self::Pdf => "application/pdf",
            Self::Docx => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            Self::Json => "application/json",
            Self::JsonLines => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }

    /// A short name, as a label of metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Markdown => "markdown",
            Self::Html => "html",
            Self::Pdf => "pdf",
            Self::Docx => "docx",
            Self::Json => "json",
            Self::JsonLines => "json-lines",
            Self::Csv => "csv",
        }
    }
}

/// What the request says of its content. It only decides between readings that the bytes allow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Media type, perhaps with a charset.
    pub content_type: Option<String>,
    /// Name of the document; only its ending is looked at.
    pub name: String,
}

impl Hint {
    fn charset(&self) -> Option<&str> {
        let (_, parameters) = self.content_type.as_deref()?.split_once(';')?;
        let charset = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("charset").then_some(value)
        })?;
        Some(charset.trim().trim_matches('"'))
    }

    fn says(&self, media_types: &[&str], endings: &[&str]) -> bool {
        let media_type = self.content_type.as_deref().unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let ending = self.name.rsplit_once('.').map_or("", |(_, ending)| ending);
        media_types.iter().any(|known| media_type.eq_ignore_ascii_case(known))
            || endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
    }

    fn says_markdown(&self) -> bool {
        self.says(&["text/markdown", "text/x-markdown"], &["md", "markdown", "mkd", "mdown"])
    }

    fn says_plain(&self) -> bool {
        self.says(&[], &["txt", "text", "log"])
    }

    fn says_html(&self) -> bool {
        self.says(&["text/html", "application/xhtml+xml"], &["html", "htm", "xhtml"])
    }

    fn says_json(&self) -> bool {
        self.says(
            &["application/json", "application/x-ndjson", "application/jsonl", "application/json-lines"],
            &["json", "jsonl", "ndjson"],
        )
    }

    fn says_csv(&self) -> bool {
        self.says(&["text/csv", "text/tab-separated-values"], &["csv", "tsv", "tab"])
    }
}

/// What was seen; text is decoded already.
#[derive(Debug)]
pub(crate) enum Sniffed {
    Pdf,
    Docx,
    Text { text: String, format: Format, delimiter: u8 },
}

impl Sniffed {
    pub fn format(&self) -> Format {
        match self {
            Self::Pdf => Format::Pdf,
            Self::Docx => Format::Docx,
            Self::Text { format, .. } => *format,
        }
    }
}

/// Looks what the bytes are.
pub(crate) fn sniff(bytes: &[u8], hint: &Hint) -> Result<Sniffed, Refusal> {
    if let Some(container) = container(bytes)? {
        return Ok(container);
    }
    // HTML says its encoding itself.
    let declared = || html_charset(bytes);
    let Some(text) = encoding::decode(bytes, hint.charset().or_else(declared)) else {
        return Err(binary(bytes));
    };
    let (format, delimiter) = text_format(&text, hint);
    Ok(Sniffed::Text { text, format, delimiter })
}

/// Formats that are not text, by the bytes they begin with.
fn container(bytes: &[u8]) -> Result<Option<Sniffed>, Refusal> {
    let unsupported = |what: &str, cure: &str| Refusal::Unsupported { what: what.into(), cure: cure.into() };
    let start = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes).trim_ascii_start();
    if start.starts_with(b"%PDF-") || pdf_after_junk(bytes) {
        return Ok(Some(Sniffed::Pdf));
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return zip(bytes).map(Some);
    }
    if bytes.starts_with(&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1]) {
        // An Office file with a password is wrapped in the container of the old formats.
        let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
        return Err(if contains(bytes, &name) {
            Refusal::Encrypted { what: "Office document".into() }
        } else {
            unsupported("an Office file of the format before 2007", "save it as DOCX or PDF and send that")
        });
    }
    if start.starts_with(b"{\\rtf") {
        return Err(unsupported("a Rich Text Format file", "save it as DOCX or PDF and send that"));
    }
    if start.starts_with(b"%!PS") {
        return Err(unsupported("a PostScript file", "turn it into PDF and send that"));
    }
    Ok(None)
}

/// PDF files may begin with something else, such as the header of a mail. Text that only speaks of PDF stays text.
fn pdf_after_junk(bytes: &[u8]) -> bool {
    let head = bytes.get(..bytes.len().min(1024)).unwrap_or(bytes);
    contains(head, b"%PDF-") && (contains(bytes, b"startxref") || contains(bytes, b"endobj"))
}

/// What an archive is, by the names of what is in it: they stand in it as they are.
fn zip(bytes: &[u8]) -> Result<Sniffed, Refusal> {
    let unsupported = |what: &str, cure: &str| Err(Refusal::Unsupported { what: what.into(), cure: cure.into() });
    let cure = "save it as PDF and send that";
    let has = |name: &[u8]| contains(bytes, name);
    if has(b"word/document") || has(b"[Content_Types].xml") && has(b"word/") {
        return Ok(Sniffed::Docx);
    }
    if has(b"[Content_Types].xml") && has(b"xl/") {
        return unsupported("an Excel workbook", "save its sheets as CSV and send those");
    }
    if has(b"[Content_Types].xml") && has(b"ppt/") {
        return unsupported("a PowerPoint presentation", cure);
    }
    if has(b"mimetypeapplication/vnd.oasis.opendocument") {
        return unsupported("an OpenDocument file", "save it as DOCX or PDF and send that");
    }
    if has(b"mimetypeapplication/epub+zip") {
        return unsupported("an EPUB book", cure);
    }
    if has(b"[Content_Types].xml") {
        // Whatever it is, the parser will say what is missing.
        return Ok(Sniffed::Docx);
    }
    unsupported("a ZIP archive", "send the files in it one by one")
}

fn binary(bytes: &[u8]) -> Refusal {
    let Some(kind) = infer::get(bytes) else {
        return Refusal::Binary { what: "binary data".into() };
    };
    let what = match kind.matcher_type() {
        infer::MatcherType::Image => "an image",
        infer::MatcherType::Audio => "audio",
        infer::MatcherType::Video => "video",
        infer::MatcherType::App => "a program",
        infer::MatcherType::Archive => "an archive",
        infer::MatcherType::Font => "a font",
        _ => "binary data",
    };
    Refusal::Binary { what: format!("{what} ({})", kind.mime_type()) }
}

/// What decoded text is. A delimiter comes with CSV.
fn text_format(text: &str, hint: &Hint) -> (Format, u8) {
    let head = text.trim_start_matches('\u{feff}').trim_start();
    if is_html_page(head) || (!hint.says_markdown() && !hint.says_plain() && is_html_fragment(head, hint)) {
        return (Format::Html, 0);
    }
    if !hint.says_markdown() {
        if json::looks_like_lines(head) {
            return (Format::JsonLines, 0);
        }
        if json::looks_like_value(head, hint.says_json()) {
            // Many lines that each begin a value, one of them broken: say so of the line.
            return (if json::one_value_a_line(head) { Format::JsonLines } else { Format::Json }, 0);
        }
        if let Some(delimiter) = csv::delimiter(text, hint.says_csv()) {
            return (Format::Csv, delimiter);
        }
    }
    if hint.says_markdown() || (!hint.says_plain() && looks_like_markdown(text)) {
        return (Format::Markdown, 0);
    }
    (Format::Plain, 0)
}

/// Begins as only whole pages do.
fn is_html_page(head: &str) -> bool {
    let mut rest = head;
    loop {
        rest = rest.trim_start();
        let end = if rest.starts_with("<!--") {
            rest.find("-->").map(|at| at + 3)
        } else if rest.starts_with("<?xml") {
            rest.find("?>").map(|at| at + 2)
        } else {
            break;
        };
        match end.and_then(|end| rest.get(end..)) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| begins_with_tag(rest, tag))
}

/// Begins with a tag that HTML has (the list of the WHATWG's MIME sniffing standard, and some).
fn is_html_fragment(head: &str, hint: &Hint) -> bool {
    const TAGS: [&str; 20] = [
        "<script", "<iframe", "<h1", "<h2", "<h3", "<div", "<font", "<table", "<a", "<style", "<title", "<b", "<br",
        "<p", "<ul", "<ol", "<section", "<article", "<main", "<meta",
    ];
    let begins = TAGS.iter().any(|tag| begins_with_tag(head, tag));
    begins || (hint.says_html() && head.contains("</"))
}

fn begins_with_tag(text: &str, tag: &str) -> bool {
    let Some(start) = text.get(..tag.len()) else { return false };
    let next = text.as_bytes().get(tag.len());
    start.eq_ignore_ascii_case(tag) && next.is_none_or(|next| next.is_ascii_whitespace() || b"/>".contains(next))
}

/// Headings, or two other signs, that people do not write by accident.
fn looks_like_markdown(text: &str) -> bool {
    let head = text.get(..floor_char_boundary(text, 32 << 10)).unwrap_or(text);
    let (mut headings, mut fences, mut links, mut items, mut rules) = (0, 0, 0, 0, 0);
    for line in head.lines() {
        let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
        if (1..=6).contains(&hashes) && line.as_bytes().get(hashes) == Some(&b' ') {
            headings += 1;
        }
        fences += usize::from(line.starts_with("```"));
        links += usize::from(line.contains("](") && line.contains('['));
        items += usize::from(line.starts_with("- ") || line.starts_with("* "));
        rules += usize::from(line.starts_with("|") && line.contains("---"));
    }
    // A script or a configuration has lines that begin with `# ` as well, but not the rest.
    let signs = usize::from(fences >= 2) + usize::from(links >= 1) + usize::from(items >= 2) + usize::from(rules >= 1);
    let prose = !text.starts_with("#!");
    prose && (headings >= 1 && signs >= 1 || signs >= 2 || headings >= 2 && begins_with_heading(head))
}

fn begins_with_heading(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or_default();
    let second = lines.next().unwrap_or_default();
    first.starts_with("# ") && !second.starts_with('#') && second.contains(' ')
}

/// What a page says its encoding is, within its first kilobyte.
fn html_charset(bytes: &[u8]) -> Option<&str> {
    let head = bytes.get(..bytes.len().min(2048)).unwrap_or(bytes);
    let ascii = head.utf8_chunks().map(|chunk| chunk.valid());
    for part in ascii {
        let lower = part.to_ascii_lowercase();
        let Some(at) = lower.find("charset=").filter(|_| lower.contains("<meta")) else { continue };
        let value = part.get(at + 8..)?.trim_start_matches(['"', '\'', ' ']);
        let end = value.find(|c: char| !(c.is_ascii_alphanumeric() || "-_:.".contains(c))).unwrap_or(value.len());
        return value.get(..end);
    }
    None
}

/// The largest boundary of characters not after `at`.
pub(crate) fn floor_char_boundary(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// Whether `needle` is in `bytes`.
pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else { return true };
    let mut left = bytes;
    while let Some(at) = left.iter().position(|byte| byte == first) {
        let Some(after) = left.get(at + 1..) else { return false };
        if after.starts_with(rest) {
            return true;
        }
        left = after;
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn format(bytes: &[u8], content_type: &str, name: &str) -> Result<Format, Refusal> {
        let content_type = (!content_type.is_empty()).then(|| content_type.to_owned());
        sniff(bytes, &Hint { content_type, name: name.into() }).map(|sniffed| sniffed.format())
    }

    #[test]
    fn content_decides_and_not_what_it_is_called() {
        let cases: &[(&[u8], &str, &str, Format)] = &[
            (b"%PDF-1.7\n1 0 obj", "text/plain", "a.txt", Format::Pdf),
            (b"Just a note about %PDF-1.4 files.", "application/pdf", "a.pdf", Format::Plain),
            (b"<!DOCTYPE html><html><body>Hi</body></html>", "application/pdf", "a.md", Format::Html),
            (b"<p>Hello <b>you</b></p>", "", "", Format::Html),
            (b"<p align=center>A logo</p>\n\n# Project\n\ntext", "", "README.md", Format::Markdown),
            (b"# Title\n\nSome text\n\n## More\n\n- a\n- b\n", "", "", Format::Markdown),
            (b"#!/bin/sh\n# comment one\n# comment two\nls\n", "", "", Format::Plain),
            (b"{\"a\":1}\n{\"a\":2}\n", "text/plain", "", Format::JsonLines),
            (b"{\"a\":\n 1}", "", "", Format::Json),
            (b"name,age\nAnn,3\nBob,4\n", "", "", Format::Csv),
            (b"Dear Ann, dear Bob,\nI am, as ever, yours.\nBye\n", "", "", Format::Plain),
            (b"BMW and other cars", "", "", Format::Plain),
        ];
        for (bytes, content_type, name, expected) in cases {
            assert_eq!(format(bytes, content_type, name).unwrap(), *expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let class = |bytes: &[u8]| format(bytes, "text/plain", "a.txt").unwrap_err();
        let png = [b"\x89PNG\r\n\x1a\n".as_slice(), &[0; 40]].concat();
        assert!(class(&png).to_string().contains("an image (image/png)"), "{}", class(&png));
        assert_eq!(class(b"{\\rtf1 hello}").class(), "unsupported-format");
        assert_eq!(class(b"PK\x03\x04nothing here").class(), "unsupported-format");
        let office = [&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1], [0; 600].as_slice()].concat();
        assert_eq!(class(&office).class(), "unsupported-format");
    }
}
