//! What a splitter promises.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_wrap, clippy::panic)]

use proptest::prelude::*;

use super::*;

/// One token for each four letters of a word, as word pieces are about.
pub(crate) struct Quarters;

impl CountTokens for Quarters {
    fn count(&self, text: &str) -> usize {
        text.split_whitespace().map(|word| word.chars().count().div_ceil(4)).sum()
    }

    fn limit(&self) -> usize {
        254
    }
}

fn block(kind: BlockKind, level: i32, range: Range<usize>) -> Block {
    Block { kind, level, start: range.start as i64, end: range.end as i64 }
}

/// A text from blocks.
fn text_of(parts: &[(BlockKind, i32, &str)]) -> (String, Vec<Block>) {
    let (mut text, mut blocks) = (String::new(), Vec::new());
    for (kind, level, part) in parts {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        let start = text.len();
        text.push_str(part);
        blocks.push(block(*kind, *level, start..text.len()));
    }
    (text, blocks)
}

fn split<'a>(text: &'a str, blocks: &[Block], max: usize, overlap: usize) -> Vec<(&'a str, Piece)> {
    let pieces = Splitter::new(Quarters, max, overlap).split(text, blocks);
    pieces.into_iter().map(|piece| (&text[piece.range.clone()], piece)).collect()
}

const SENTENCE: &str = "The mill turns day and night. ";

#[test]
fn what_fits_stays_whole() {
    let (text, blocks) = text_of(&[
        (BlockKind::Heading, 1, "Mills"),
        (BlockKind::Paragraph, 0, "They turn."),
        (BlockKind::Paragraph, 0, "And they stop."),
    ]);
    let pieces = split(&text, &blocks, 64, 8);
    assert_eq!(pieces.len(), 1);
    assert_eq!(pieces[0].0, text);
    assert_eq!(pieces[0].1.heading_path, ["Mills"]);
    assert!(split("", &[], 64, 8).is_empty());
    assert!(split(" \n\n ", &[], 64, 8).is_empty());
}

#[test]
fn large_sections_stand_alone_and_know_their_headings() {
    let long = SENTENCE.repeat(6);
    let (text, blocks) = text_of(&[
        (BlockKind::Heading, 1, "River"),
        (BlockKind::Heading, 2, "Upper"),
        (BlockKind::Paragraph, 0, long.trim()),
        (BlockKind::Heading, 2, "Lower"),
        (BlockKind::Paragraph, 0, long.trim()),
    ]);
    let pieces = split(&text, &blocks, 64, 16);
    assert_eq!(pieces.len(), 2, "{pieces:#?}");
    assert!(pieces[0].0.starts_with("River\n\nUpper\n\nThe mill"));
    assert!(pieces[1].0.starts_with("Lower\n\n"), "nothing is repeated over a heading");
    assert_eq!(pieces[0].1.heading_path, ["River"]);
    assert_eq!(pieces[1].1.heading_path, ["River", "Lower"]);
}

#[test]
fn small_sections_are_put_together() {
    let parts: Vec<(BlockKind, i32, String)> = (0..8)
        .flat_map(|n| [(BlockKind::Heading, 2, format!("Part {n}")), (BlockKind::Paragraph, 0, "Short text.".into())])
        .collect();
    let parts: Vec<(BlockKind, i32, &str)> =
        parts.iter().map(|(kind, level, text)| (*kind, *level, text.as_str())).collect();
    let (text, blocks) = text_of(&parts);
    let pieces = split(&text, &blocks, 64, 16);
    assert!(pieces.len() <= 2, "{pieces:#?}");
    assert!(pieces.iter().all(|(text, _)| text.starts_with("Part")));
}

#[test]
fn a_long_paragraph_is_cut_between_sentences_with_overlap() {
    let text = SENTENCE.repeat(40);
    let pieces = split(text.trim(), &[], 64, 20);
    assert!(pieces.len() > 5);
    for pair in pieces.windows(2) {
        assert!(pair[0].0.ends_with("night."), "{pair:?}");
        assert!(pair[1].0.starts_with("The mill"), "{pair:?}");
        assert!(pair[1].1.range.start < pair[0].1.range.end, "{pair:?}");
        assert!(pair[1].1.range.end > pair[0].1.range.end, "{pair:?}");
    }
    let lengths: Vec<usize> = pieces.iter().map(|(_, piece)| piece.tokens).collect();
    assert!(lengths.iter().all(|tokens| (40..=64).contains(tokens)), "balanced: {lengths:?}");
}

#[test]
fn code_and_tables_that_fit_are_not_cut() {
    let code = "fn main() {\n    flow();\n}\n".repeat(5);
    let table = "a | b | c\n".repeat(10);
    let long = SENTENCE.repeat(5);
    let (text, blocks) = text_of(&[
        (BlockKind::Paragraph, 0, long.trim()),
        (BlockKind::Code, 0, code.trim()),
        (BlockKind::Paragraph, 0, long.trim()),
        (BlockKind::Table, 0, table.trim()),
    ]);
    let pieces = split(&text, &blocks, 64, 16);
    for whole in [code.trim(), table.trim()] {
        assert!(pieces.iter().any(|(text, _)| text.contains(whole)), "{pieces:#?}");
    }
    let (text, blocks) = text_of(&[(BlockKind::Code, 0, &code.repeat(8))]);
    for (piece, _) in split(&text, &blocks, 64, 0) {
        assert!(piece.starts_with("fn") || piece.starts_with("    flow") || piece.starts_with('}'), "{piece:?}");
    }
}

#[test]
fn text_without_blanks_is_cut_all_the_same() {
    let text = "水車は昼も夜も回り続けている。".repeat(60);
    let pieces = split(&text, &[], 64, 16);
    assert!(pieces.len() > 3);
    assert!(pieces.iter().all(|(text, piece)| piece.tokens <= 64 && text.ends_with('。')), "{pieces:#?}");
    let line = "x".repeat(20_000);
    assert!(split(&line, &[], 64, 16).len() > 50);
}

#[test]
fn a_word_the_tokenizer_gives_up_on_does_not_make_an_endless_piece() {
    struct GivesUp;
    impl CountTokens for GivesUp {
        fn count(&self, text: &str) -> usize {
            text.split_whitespace().map(|word| if word.len() > 100 { 1 } else { word.len().div_ceil(4) }).sum()
        }

        fn limit(&self) -> usize {
            254
        }
    }
    let line = "QUJDRA".repeat(10_000);
    let pieces = Splitter::new(GivesUp, 254, 40).split(&line, &[]);
    assert!(pieces.iter().all(|piece| piece.range.len() < 2_000), "{pieces:?}");
}

#[test]
fn torn_words_do_not_make_a_piece_longer_than_the_model_takes() {
    /// As word pieces are: the end of a word is in fewer of them than its beginning.
    struct Pieces;
    impl CountTokens for Pieces {
        fn count(&self, text: &str) -> usize {
            text.split_whitespace().map(|word| if word.len() <= 8 { 2 } else { word.len() / 2 }).sum()
        }

        fn limit(&self) -> usize {
            254
        }
    }
    let text = format!("{} ", "QUJDRA".repeat(15)).repeat(40);
    let pieces = Splitter::new(Pieces, 64, 16).split(&text, &[]);
    let mut at = 0;
    for piece in &pieces {
        assert!(Pieces.count(&text[piece.range.clone()]) <= 64, "{piece:?}");
        assert!(text[at.min(piece.range.start)..piece.range.start].trim().is_empty(), "nothing is lost: {piece:?}");
        at = at.max(piece.range.end);
    }
    assert_eq!(at, text.trim_end().len());
}

fn kinds() -> impl Strategy<Value = BlockKind> {
    prop_oneof![
        Just(BlockKind::Heading),
        Just(BlockKind::Paragraph),
        Just(BlockKind::List),
        Just(BlockKind::Code),
        Just(BlockKind::Table),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_is_too_long(
        parts in prop::collection::vec((kinds(), 1..7i32, "([a-zé水]{1,30}[ \n.,]{1,3}){1,60}"), 0..8),
        max in 32usize..200,
        overlap in 0usize..40,
    ) {
        let parts: Vec<(BlockKind, i32, &str)> = parts.iter().map(|(k, l, t)| (*k, *l, t.as_str())).collect();
        let (text, blocks) = text_of(&parts);
        let overlap = overlap.min(max / 2);
        let mut at = 0;
        let mut rebuilt = String::new();
        for (piece_text, piece) in split(&text, &blocks, max, overlap) {
            prop_assert!(piece.tokens <= max, "{} tokens of {}", piece.tokens, max);
            prop_assert!(!piece_text.trim().is_empty());
            prop_assert!(piece.range.end > at, "each piece goes further");
            if piece.range.start > at {
                prop_assert!(text[at..piece.range.start].trim().is_empty(), "only white space is left out");
                rebuilt.push_str(&text[at..piece.range.start]);
            }
            rebuilt.push_str(&text[piece.range.start.max(at)..piece.range.end]);
            at = piece.range.end;
        }
        prop_assert!(text[at..].trim().is_empty());
        rebuilt.push_str(&text[at..]);
        prop_assert_eq!(rebuilt, text);
    }

    #[test]
    fn any_text_and_any_blocks_are_survived(
        text in any::<String>(),
        blocks in prop::collection::vec((kinds(), -3..9i32, -5..200i64, -5..200i64), 0..10),
    ) {
        let blocks: Vec<Block> =
            blocks.into_iter().map(|(kind, level, start, end)| Block { kind, level, start, end }).collect();
        let pieces = split(&text, &blocks, 32, 8);
        let kept: usize = text.split_whitespace().map(str::len).sum();
        let mut at = 0;
        let mut seen = 0;
        for (_, piece) in &pieces {
            seen += text[piece.range.start.max(at)..piece.range.end].split_whitespace().map(str::len).sum::<usize>();
            at = piece.range.end;
        }
        prop_assert_eq!(seen, kept);
    }
}
