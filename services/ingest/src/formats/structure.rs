//! Builds the text of a document block by block, and keeps it clean.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};
use weir_contracts::{Block, BlockKind};

use super::{Extracted, Format};

/// A text under construction. Blocks are separated by an empty line.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    text: String,
    blocks: Vec<Block>,
}

impl Structure {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// A heading of level 1 to 6; one line.
    pub fn heading(&mut self, level: i32, text: &str) {
        self.push(BlockKind::Heading, level.clamp(1, 6), &one_line(text));
    }

    /// A paragraph; its line breaks are kept.
    pub fn paragraph(&mut self, text: &str) {
        self.push(BlockKind::Paragraph, 0, &tidy_lines(text));
    }

    /// A list, one item a line or more.
    pub fn list(&mut self, text: &str) {
        self.push(BlockKind::List, 0, text.trim_matches('\n'));
    }

    /// Code: white space is kept.
    pub fn code(&mut self, text: &str) {
        self.push(BlockKind::Code, 0, text.trim_matches('\n'));
    }

    /// A table, one row a line.
    pub fn table(&mut self, text: &str) {
        self.push(BlockKind::Table, 0, text.trim_matches('\n'));
    }

    fn push(&mut self, kind: BlockKind, level: i32, text: &str) {
        let text = text.trim_end();
        if text.trim().is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text.push_str("\n\n");
        }
        let start = self.text.len();
        self.text.push_str(&clean(text));
        let (start, end) = (position(start), position(self.text.len()));
        self.blocks.push(Block { kind, level, start, end });
    }

    /// The text of the block before, to append to it.
    pub fn last_is_list(&self) -> bool {
        self.blocks.last().is_some_and(|block| block.kind == BlockKind::List)
    }

    /// Adds lines to the list that was pushed last.
    pub fn extend_list(&mut self, text: &str) {
        match self.blocks.last_mut() {
            Some(block) if block.kind == BlockKind::List => {
                self.text.push('\n');
                self.text.push_str(&clean(text.trim_matches('\n').trim_end()));
                block.end = position(self.text.len());
            }
            _ => self.list(text),
        }
    }

    /// The finished document; the format is set by the caller of the extraction.
    pub fn finish(self, title: Option<String>) -> Extracted {
        Extracted {
            format: Format::Plain,
            title: title.as_deref().and_then(self::title),
            text: self.text,
            blocks: self.blocks,
            warning: None,
        }
    }

    /// A document whose text and blocks were made elsewhere.
    pub fn of(text: String, blocks: Vec<Block>) -> Self {
        Self { text, blocks }
    }
}

/// A position in a text, as blocks carry it.
pub(crate) fn position(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

/// A title: one line, at most 300 characters; none if it is blank.
pub(crate) fn title(text: &str) -> Option<String> {
    let line = one_line(&clean(text));
    let cut = line.char_indices().nth(300).map_or(line.len(), |(at, _)| at);
    line.get(..cut).map(str::trim).filter(|title| !title.is_empty()).map(str::to_owned)
}

/// White space collapsed to single blanks.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// White space collapsed within each line, empty lines dropped.
pub(crate) fn tidy_lines(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    for line in text.lines().map(one_line).filter(|line| !line.is_empty()) {
        if !tidy.is_empty() {
            tidy.push('\n');
        }
        tidy.push_str(&line);
    }
    tidy
}

/// NFC, line ends as `\n`, no control characters, no characters that only steer display.
pub(crate) fn clean(text: &str) -> String {
    if text.bytes().all(|byte| byte == b'\n' || byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return text.to_owned();
    }
    let mut kept = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                // `\r\n` is one line end, a lone `\r` (old Macs, EBCDIC) as well.
                if chars.peek() != Some(&'\n') {
                    kept.push('\n');
                }
            }
            '\n' | '\t' => kept.push(c),
            '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{b}' | '\u{c}' => kept.push('\n'),
            '\u{a0}' | '\u{202f}' | '\u{2007}' => kept.push(' '),
            // Soft hyphens, byte order marks, zero-width blanks, bidirectional marks.
            '\u{ad}' | '\u{feff}' | '\u{200b}' | '\u{2060}' | '\u{200e}' | '\u{200f}' => {}
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            // Ligatures that only exist for print.
            '\u{fb00}' => kept.push_str("ff"),
            '\u{fb01}' => kept.push_str("fi"),
            '\u{fb02}' => kept.push_str("fl"),
            '\u{fb03}' => kept.push_str("ffi"),
            '\u{fb04}' => kept.push_str("ffl"),
            '\u{fb05}' | '\u{fb06}' => kept.push_str("st"),
            '\u{1b}' => skip_escape(&mut chars),
            c if c.is_control() => {}
            c => kept.push(c),
        }
    }
    match is_nfc_quick(kept.chars()) {
        IsNormalized::Yes => kept,
        _ => kept.nfc().collect(),
    }
}

/// Skips the rest of a terminal's colour or cursor command (`ESC [ ... letter`).
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    if chars.peek() != Some(&'[') {
        return;
    }
    chars.next();
    while let Some(c) = chars.peek().copied() {
        match c {
            '0'..='?' => chars.next(),
            '@'..='~' => {
                chars.next();
                return;
            }
            _ => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cleaned_without_losing_words() {
        assert_eq!(clean("a\r\nb\rc\u{0}d\u{ad}e\u{feff} \u{fb01}n"), "a\nb\ncde fin");
        assert_eq!(clean("e\u{301}"), "é");
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m"), "red");
    }

    #[test]
    fn blocks_know_their_bytes() {
        let mut structure = Structure::default();
        structure.heading(1, "  Größe \n der Welt ");
        structure.paragraph("one\n\n two ");
        structure.paragraph(" \n");
        let document = structure.finish(None);
        let texts: Vec<&str> = document
            .blocks
            .iter()
            .filter_map(|b| document.text.get(usize::try_from(b.start).ok()?..usize::try_from(b.end).ok()?))
            .collect();
        assert_eq!(texts, ["Größe der Welt", "one\ntwo"]);
        assert_eq!(document.text, "Größe der Welt\n\none\ntwo");
    }
}
