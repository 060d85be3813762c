//! Where sentences begin and end.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// Words that end in a full stop without ending a sentence, lower case, without the stop, sorted.
const ABBREVIATIONS: [&str; 41] = [
    "al", "approx", "apr", "aug", "ca", "capt", "cf", "co", "col", "corp", "dec", "dept", "dr", "esp", "est", "feb",
    "gen", "gov", "inc", "jan", "jr", "jul", "jun", "lt", "ltd", "mar", "mr", "mrs", "ms", "mt", "nov", "oct", "prof",
    "rev", "sen", "sep", "sept", "sgt", "sr", "st", "vs",
];

/// The same, where a number follows.
const BEFORE_NUMBERS: [&str; 9] = ["ed", "eds", "eq", "fig", "figs", "no", "pp", "ref", "vol"];

/// Byte ranges of the sentences of a text, in order, without the white space around them. Blank lines, headings, list
/// items and table rows end a sentence; a line break within a paragraph does not.
#[must_use]
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    blocks(text).into_iter().flat_map(|block| in_block(text, block)).collect()
}

/// Paragraphs, list items, headings and rows.
fn blocks(text: &str) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let range = start..start + line.len();
        start = range.end;
        let content = line.trim();
        if content.is_empty() {
            open = false;
            continue;
        }
        match blocks.last_mut() {
            Some(block) if open && !begins_block(content) => block.end = range.end,
            _ => blocks.push(range),
        }
        open = !content.starts_with('#');
    }
    blocks
}

fn begins_block(line: &str) -> bool {
    let bullet = ["- ", "* ", "+ ", "• ", "#", "|", "> ", "```"].iter().any(|mark| line.starts_with(mark));
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let numbered = (1..=3).contains(&digits)
        && line.get(digits..).is_some_and(|rest| rest.starts_with(". ") || rest.starts_with(") "));
    bullet || numbered
}

fn in_block(text: &str, block: Range<usize>) -> Vec<Range<usize>> {
    let base = block.start;
    // The Unicode rules end a sentence at every line break; here lines of a paragraph run on. Both are one byte.
    let joined = text.get(block).unwrap_or_default().replace(['\n', '\r'], " ");
    let mut found: Vec<Range<usize>> = Vec::new();
    for (offset, piece) in joined.split_sentence_bound_indices() {
        let trimmed = piece.trim();
        if trimmed.is_empty() {
            continue;
        }
        let start = base + offset + (piece.len() - piece.trim_start().len());
        let end = start + trimmed.len();
        match found.last_mut() {
            Some(last) if goes_on(text.get(last.clone()).unwrap_or_default(), trimmed) => last.end = end,
            _ => found.push(start..end),
        }
    }
    found
}

/// Whether what follows belongs to the same sentence after all.
fn goes_on(before: &str, after: &str) -> bool {
    let Some(stem) = before.strip_suffix('.') else {
        return false;
    };
    if after.starts_with(|c: char| c.is_lowercase()) {
        return true;
    }
    let last = stem.rsplit([' ', '\n', '(', '"', '“']).next().unwrap_or_default();
    let initials = last.split('.').all(|part| part.chars().count() == 1 && part.chars().all(char::is_alphabetic));
    let word = last.to_lowercase();
    let number_follows = after.starts_with(|c: char| c.is_ascii_digit());
    initials
        || ABBREVIATIONS.binary_search(&word.as_str()).is_ok()
        || (number_follows && BEFORE_NUMBERS.contains(&word.as_str()))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> Vec<&str> {
        sentences(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn abbreviations_and_numbers_do_not_end_a_sentence() {
        assert!(ABBREVIATIONS.is_sorted());
        assert_eq!(
            split("Dr. Ann B. Smith saw 3.5 mg, i.e. the U.S. Army's dose. It worked! Did it? \"Yes.\""),
            ["Dr. Ann B. Smith saw 3.5 mg, i.e. the U.S. Army's dose.", "It worked!", "Did it?", "\"Yes.\""]
        );
        assert_eq!(
            split("See No. 5 there. He said no. Then he left."),
            ["See No. 5 there.", "He said no.", "Then he left."]
        );
    }

    #[test]
    fn lines_of_a_paragraph_run_on_and_items_do_not() {
        let text = "# Mills\nThe mill\nwas built\nin 1912. It\nburnt.\n\n- one item\n- another\n  going on\n1. first\n| a | b |\n";
        assert_eq!(
            split(text),
            [
                "# Mills",
                "The mill\nwas built\nin 1912.",
                "It\nburnt.",
                "- one item",
                "- another\n  going on",
                "1. first",
                "| a | b |"
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_but_white_space_is_lost(text in "[a-zA-Zé0-9 .!?\\n#|-]{0,200}") {
            let mut rest = text.clone();
            for range in sentences(&text).into_iter().rev() {
                rest.replace_range(range, "");
            }
            prop_assert!(rest.trim().is_empty(), "{rest:?}");
        }
    }
}
