//! Chooses where to cut: the cheapest way through the text, all cuts considered together.

use std::ops::Range;

use weir_contracts::{Block, BlockKind};

use crate::atoms::{Atom, Cut, atoms};
use crate::outline::Outline;
use crate::tokens::{CountTokens, WordCounts};

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes in the text.
    pub range: Range<usize>,
    /// Its length.
    pub tokens: usize,
    /// Headings above all of it, outermost first.
    pub heading_path: Vec<String>,
}

/// Splits texts.
pub struct Splitter<T> {
    counts: WordCounts<T>,
    max: u32,
    overlap: u32,
}

/// What each piece costs by itself: fewer are better.
const PER_PIECE: f64 = 0.4;
/// What it costs to have a heading in the middle of a piece: small sections are put together, large ones are not.
const HEADING_INSIDE: f64 = 1.0;
/// What it costs to begin a piece without repeating what was before: so much that it only happens where there is no
/// room for that, before code or a table that fills a piece.
const NO_OVERLAP: f64 = 4.0;

/// What it costs to cut here.
fn price(cut: Cut) -> f64 {
    match cut {
        Cut::Heading => 0.0,
        Cut::Block => 0.05,
        Cut::Item => 0.15,
        Cut::Sentence => 0.2,
        Cut::Line => 0.4,
        Cut::Clause => 0.7,
        Cut::Word => 1.2,
        Cut::InWord => 3.0,
    }
}

/// A place where a piece may begin.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The first word after the cut.
    atom: usize,
    cut: Cut,
    /// Where the piece begins when it repeats the end of the one before.
    overlapped: usize,
    /// Headings before this place.
    headings: u32,
}

impl<T: CountTokens> Splitter<T> {
    /// Splits into pieces of at most `max` tokens that repeat at most `overlap` of the one before.
    pub fn new(tokens: T, max: usize, overlap: usize) -> Self {
        let small = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX / 4);
        Self { counts: WordCounts::new(tokens), max: small(max), overlap: small(overlap.min(max / 2)) }
    }

    /// The pieces of a text, in order. Together they cover all of it but white space.
    pub fn split(&mut self, text: &str, blocks: &[Block]) -> Vec<Piece> {
        let outline = Outline::of(text, blocks);
        let atoms = atoms(text, &outline, &mut self.counts);
        let lengths = Lengths::of(&atoms);
        let places = self.places(&atoms, &lengths, &outline);
        let mut pieces: Vec<Piece> = self
            .cheapest(&places, &lengths)
            .into_iter()
            .flat_map(|words| self.fitting(text, &atoms, words))
            .filter_map(|words| {
                let (first, last) = (atoms.get(words.start)?, atoms.get(words.end.checked_sub(1)?)?);
                Some(Piece {
                    range: with_indent(text, first.start)..last.end,
                    tokens: usize::try_from(lengths.between(words.clone())).unwrap_or(usize::MAX),
                    heading_path: outline.path(first.section..last.section + 1),
                })
            })
            .collect();
        pieces.dedup_by(|later, earlier| later.range == earlier.range);
        pieces
    }

    /// A piece, in two where it has more tokens than its words alone: the parts of a torn word are counted one by one,
    /// and together they may be more.
    fn fitting(&self, text: &str, atoms: &[Atom], words: Range<usize>) -> Vec<Range<usize>> {
        let inside = atoms.get(words.clone()).unwrap_or_default();
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else { return Vec::new() };
        let torn = inside.len() > 1 && inside.iter().any(|atom| atom.cut == Cut::InWord);
        let tokens = || self.counts.exactly(text.get(first.start..last.end).unwrap_or_default());
        if !torn || tokens() <= self.max {
            return vec![words];
        }
        let middle = words.start + inside.len() / 2;
        let mut both = self.fitting(text, atoms, words.start..middle);
        both.extend(self.fitting(text, atoms, middle..words.end));
        both
    }

    /// Where pieces may begin: everywhere between sentences and better, and elsewhere only where nothing better is
    /// near. Code and tables that fit are never cut.
    fn places(&self, atoms: &[Atom], lengths: &Lengths, outline: &Outline) -> Vec<Place> {
        let whole: Vec<bool> = self.whole_sections(atoms, outline);
        let allowed = |index: usize, atom: &Atom| {
            let begins =
                index.checked_sub(1).and_then(|before| atoms.get(before)).is_none_or(|b| b.section != atom.section);
            begins || !whole.get(atom.section).copied().unwrap_or(false)
        };
        let mut chosen = vec![0];
        let step = (self.max - self.overlap) / 2;
        let good = atoms.iter().enumerate().skip(1).filter(|(i, atom)| atom.cut >= Cut::Line && allowed(*i, atom));
        let ends = good.map(|(index, _)| index).chain(std::iter::once(atoms.len()));
        for end in ends {
            let start = chosen.last().copied().unwrap_or(0);
            fill(atoms, lengths, start..end, step, Cut::Clause, &allowed, &mut chosen);
            chosen.push(end);
        }
        let mut headings = 0;
        let mut seen = 0;
        chosen
            .into_iter()
            .map(|atom| {
                let passed = atoms.get(seen..atom).unwrap_or_default();
                headings += passed.iter().map(|atom| u32::from(atom.cut == Cut::Heading)).sum::<u32>();
                seen = atom;
                let cut = atoms.get(atom).map_or(Cut::Heading, |atom| atom.cut);
                Place { atom, cut, overlapped: self.overlap_before(atom, atoms, lengths), headings }
            })
            .collect()
    }

    /// For each block, whether it is code or a table that fits.
    fn whole_sections(&self, atoms: &[Atom], outline: &Outline) -> Vec<bool> {
        let mut tokens = vec![0u32; outline.sections.len()];
        for atom in atoms {
            if let Some(sum) = tokens.get_mut(atom.section) {
                *sum = sum.saturating_add(atom.tokens);
            }
        }
        let fits = |tokens: u32| tokens <= self.max;
        let is_whole = |kind| matches!(kind, BlockKind::Code | BlockKind::Table);
        outline.sections.iter().zip(tokens).map(|(section, tokens)| is_whole(section.kind) && fits(tokens)).collect()
    }

    /// The word from which a piece that begins at `atom` repeats what was before: the earliest sentence that is near
    /// enough, else the earliest word. Nothing is repeated over a heading.
    fn overlap_before(&self, atom: usize, atoms: &[Atom], lengths: &Lengths) -> usize {
        let is_heading = |index: usize| atoms.get(index).is_none_or(|atom| atom.cut == Cut::Heading);
        if self.overlap == 0 || is_heading(atom) {
            return atom;
        }
        let (mut word, mut sentence) = (atom, None);
        for index in (0..atom).rev() {
            if lengths.between(index..atom) > self.overlap {
                break;
            }
            word = index;
            let cut = atoms.get(index).map_or(Cut::Heading, |atom| atom.cut);
            if cut >= Cut::Line {
                sentence = Some(index);
            }
            if cut == Cut::Heading {
                break;
            }
        }
        sentence.unwrap_or(word)
    }

    /// The pieces, as words, whose costs add up to the least. Each place knows the cheapest way that ends there.
    fn cheapest(&self, places: &[Place], lengths: &Lengths) -> Vec<Range<usize>> {
        // Cost so far, the place before, the first word.
        let mut best: Vec<(f64, usize, usize)> = vec![(f64::INFINITY, 0, 0); places.len()];
        if let Some(first) = best.first_mut() {
            first.0 = 0.0;
        }
        for (end, end_place) in places.iter().enumerate().skip(1) {
            let mut cheapest = (f64::INFINITY, 0, 0);
            for (begin, place) in places.iter().enumerate().take(end).rev() {
                let bare = lengths.between(place.atom..end_place.atom);
                // One single place apart always counts, so that there is a way through whatever the lengths are.
                if bare > self.max && begin + 1 < end {
                    break;
                }
                let so_far = best.get(begin).map_or(f64::INFINITY, |best| best.0);
                let overlapped = lengths.between(place.overlapped..end_place.atom);
                let (first, tokens, extra) = if overlapped <= self.max {
                    (place.overlapped, overlapped, 0.0)
                } else {
                    (place.atom, bare, NO_OVERLAP)
                };
                let first_is_heading = u32::from(place.cut == Cut::Heading);
                let inside = end_place.headings.saturating_sub(place.headings + first_is_heading);
                let room = 1.0 - f64::from(tokens) / f64::from(self.max.max(1));
                let cost = so_far
                    + PER_PIECE
                    + room * room
                    + extra
                    + price(end_place.cut)
                    + HEADING_INSIDE * f64::from(inside);
                if cost < cheapest.0 {
                    cheapest = (cost, begin, first);
                }
            }
            if let Some(slot) = best.get_mut(end) {
                *slot = cheapest;
            }
        }
        let mut pieces = Vec::new();
        let mut end = places.len().saturating_sub(1);
        while end > 0 {
            let Some((_, begin, first)) = best.get(end).copied() else { break };
            let last = places.get(end).map_or(0, |place| place.atom);
            pieces.push(first..last);
            end = begin;
        }
        pieces.reverse();
        pieces
    }
}

/// Adds places of lower and lower rank until none is more than `step` tokens from the next.
fn fill(
    atoms: &[Atom],
    lengths: &Lengths,
    range: Range<usize>,
    step: u32,
    cut: Cut,
    allowed: &impl Fn(usize, &Atom) -> bool,
    chosen: &mut Vec<usize>,
) {
    if lengths.between(range.clone()) <= step {
        return;
    }
    let finer = match cut {
        Cut::Clause => Some(Cut::Word),
        Cut::Word => Some(Cut::InWord),
        _ => None,
    };
    let mut start = range.start;
    let within = atoms.iter().enumerate().take(range.end).skip(range.start + 1);
    let mut found: Vec<usize> =
        within.filter(|(index, atom)| atom.cut >= cut && allowed(*index, atom)).map(|(index, _)| index).collect();
    found.push(range.end);
    for end in found {
        if let Some(finer) = finer {
            fill(atoms, lengths, start..end, step, finer, allowed, chosen);
        }
        if end < range.end {
            chosen.push(end);
        }
        start = end;
    }
}

/// The beginning of a piece, with the blanks that indent its first line.
fn with_indent(text: &str, start: usize) -> usize {
    let before = text.get(..start).unwrap_or_default();
    let line = before.trim_end_matches([' ', '\t']);
    if line.is_empty() || line.ends_with('\n') { line.len() } else { start }
}

/// Lengths of runs of words, from sums.
struct Lengths(Vec<u32>);

impl Lengths {
    fn of(atoms: &[Atom]) -> Self {
        let mut sum = 0u32;
        let sums = atoms.iter().map(|atom| {
            sum = sum.saturating_add(atom.tokens);
            sum
        });
        Self(std::iter::once(0).chain(sums).collect())
    }

    fn between(&self, words: Range<usize>) -> u32 {
        let at = |index: usize| self.0.get(index).or(self.0.last()).copied().unwrap_or(0);
        at(words.end).saturating_sub(at(words.start))
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
pub(crate) mod tests;
