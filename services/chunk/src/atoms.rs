//! What a text is cut into at the finest: words, and where each ranks as a place to begin a chunk.

use std::ops::Range;

use weir_contracts::BlockKind;
use weir_text::sentences;

use crate::outline::{Outline, Section};
use crate::tokens::{CountTokens, WordCounts};

/// How good a place is to cut, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// In the middle of a very long word, such as text in a script without blanks.
    InWord,
    /// Between words.
    Word,
    /// After a comma, a semicolon or the like.
    Clause,
    /// Between lines.
    Line,
    /// Between sentences.
    Sentence,
    /// Between items of a list, rows of a table, groups of lines of code.
    Item,
    /// Between blocks.
    Block,
    /// Before a heading.
    Heading,
}

/// A word, or a part of a very long one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Atom {
    /// First byte.
    pub start: usize,
    /// Byte after the last one.
    pub end: usize,
    /// Length.
    pub tokens: u32,
    /// How good a place its beginning is to cut.
    pub cut: Cut,
    /// Number of its block.
    pub section: usize,
}

/// Words of more tokens are taken apart.
const LONG_WORD: u32 = 16;

/// So are words of more bytes: a tokenizer may give up on them and call them one unknown word.
const LONG_WORD_BYTES: usize = 100;

/// All words of a text, in order.
pub(crate) fn atoms<T: CountTokens>(text: &str, outline: &Outline, counts: &mut WordCounts<T>) -> Vec<Atom> {
    let mut atoms = Vec::with_capacity(text.len() / 6 + 1);
    let mut after_heading = false;
    for (number, section) in outline.sections.iter().enumerate() {
        let first = match section.kind {
            // Headings that follow one another, and what a heading is of, stay together.
            _ if after_heading => Cut::Word,
            BlockKind::Heading => Cut::Heading,
            _ => Cut::Block,
        };
        after_heading = section.kind == BlockKind::Heading;
        let mut reader = Reader { text, section: number, counts: &mut *counts, atoms: &mut atoms };
        reader.read(section, first);
    }
    atoms
}

struct Reader<'a, T> {
    text: &'a str,
    section: usize,
    counts: &'a mut WordCounts<T>,
    atoms: &'a mut Vec<Atom>,
}

impl<T: CountTokens> Reader<'_, T> {
    fn read(&mut self, section: &Section, first: Cut) {
        match section.kind {
            BlockKind::Paragraph => self.prose(section.range.clone(), first),
            BlockKind::Heading => self.words(section.range.clone(), first),
            BlockKind::List | BlockKind::Table | BlockKind::Code => self.lines(section, first),
        }
    }

    /// Sentence by sentence.
    fn prose(&mut self, range: Range<usize>, first: Cut) {
        let base = range.start;
        let text = self.text.get(range).unwrap_or_default();
        let mut cut = first;
        for sentence in sentences(text) {
            self.words(base + sentence.start..base + sentence.end, cut);
            cut = Cut::Sentence;
        }
    }

    /// Line by line; what begins a line without being indented begins an item.
    fn lines(&mut self, section: &Section, first: Cut) {
        let mut at = section.range.start;
        let mut cut = first;
        let text = self.text.get(section.range.clone()).unwrap_or_default();
        let mut after_empty = false;
        for line in text.split_inclusive('\n') {
            let range = at..at + line.len();
            at = range.end;
            if line.trim().is_empty() {
                after_empty = true;
                continue;
            }
            let indented = line.starts_with([' ', '\t']);
            let is_item = match section.kind {
                BlockKind::Code => after_empty && !indented,
                _ => !indented,
            };
            if range.start > section.range.start {
                cut = if is_item { Cut::Item } else { Cut::Line };
            }
            after_empty = false;
            if section.kind == BlockKind::Code {
                self.words(range, cut);
            } else {
                self.prose(range, cut);
            }
        }
    }

    /// Word by word.
    fn words(&mut self, range: Range<usize>, first: Cut) {
        let base = range.start;
        let text = self.text.get(range).unwrap_or_default();
        let mut cut = first;
        let mut at = 0;
        while let Some(rest) = text.get(at..) {
            let blanks = rest.len() - rest.trim_start().len();
            let Some(rest) = rest.get(blanks..).filter(|rest| !rest.is_empty()) else { return };
            let word = rest.split(char::is_whitespace).next().unwrap_or(rest);
            if cut < Cut::Line && text.get(at..at + blanks).is_some_and(|blanks| blanks.contains('\n')) {
                cut = Cut::Line;
            }
            let start = at + blanks;
            at = start + word.len();
            self.word(word, base + start, cut);
            cut = if word.ends_with([',', ';', ':', '–', '—', '、', '，', '；']) {
                Cut::Clause
            } else {
                Cut::Word
            };
        }
    }

    fn word(&mut self, word: &str, start: usize, cut: Cut) {
        let tokens = self.counts.count(word);
        let section = self.section;
        if tokens <= LONG_WORD && word.len() <= LONG_WORD_BYTES {
            self.atoms.push(Atom { start, end: start + word.len(), tokens, cut, section });
            return;
        }
        // Text without blanks: pieces of about as many characters as make a few tokens.
        let characters = word.chars().count();
        let piece = (characters * 4 / usize::try_from(tokens).unwrap_or(1).max(1)).clamp(1, 64);
        let mut cut = cut;
        let mut at = 0;
        while let Some(rest) = word.get(at..).filter(|rest| !rest.is_empty()) {
            let end = rest.char_indices().nth(piece).map_or(rest.len(), |(end, _)| end);
            // A sentence ends here too.
            let stop = rest.get(..end).unwrap_or_default().char_indices().find(|(_, c)| "。！？".contains(*c));
            let end = stop.map_or(end, |(at, c)| at + c.len_utf8());
            let part = rest.get(..end).unwrap_or(rest);
            let tokens = self.counts.count(part);
            self.atoms.push(Atom { start: start + at, end: start + at + part.len(), tokens, cut, section });
            cut = if stop.is_some() { Cut::Sentence } else { Cut::InWord };
            at += part.len();
        }
    }
}
