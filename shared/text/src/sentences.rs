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
    let ends = if joined.is_ascii() { ends_in_ascii(joined.as_bytes()) } else { ends(&joined) };
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut next = 0;
    for end in ends {
        let offset = std::mem::replace(&mut next, end);
        let piece = joined.get(offset..end).unwrap_or_default();
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

/// Where sentences end by the rules of Unicode (UAX #29), the last one's end among them.
fn ends(text: &str) -> Vec<usize> {
    text.split_sentence_bound_indices().map(|(start, piece)| start + piece.len()).collect()
}

/// The same for a text of ASCII without line breaks, in one pass over its bytes.
fn ends_in_ascii(text: &[u8]) -> Vec<usize> {
    let is = |at: usize, class: fn(u8) -> bool| text.get(at).copied().is_some_and(class);
    let past = |from: usize, class: fn(u8) -> bool| (from..text.len()).find(|at| !is(*at, class)).unwrap_or(text.len());
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some(stop) = text.get(at..).and_then(|rest| rest.iter().position(|byte| is_terminator(*byte))) {
        let stop = at + stop;
        at = past(past(stop + 1, is_closing), is_blank);
        if at >= text.len() {
            break;
        }
        let full_stop = is(stop, |byte| byte == b'.');
        let attached = at == stop + 1;
        let in_number = attached && is(at, |byte| byte.is_ascii_digit());
        let before = stop.checked_sub(1).is_some_and(|before| is(before, |byte| byte.is_ascii_alphabetic()));
        let in_name = attached && before && is(at, |byte| byte.is_ascii_uppercase());
        // What is neither a letter nor ends a sentence tells nothing.
        let telling = past(at, |byte| !byte.is_ascii_alphabetic() && !is_terminator(byte));
        let lowercase = is(telling, |byte| byte.is_ascii_lowercase());
        if !(full_stop && (in_number || in_name || lowercase)
            || is(at, |byte| is_continuing(byte) || is_terminator(byte)))
        {
            ends.push(at);
        }
    }
    if !text.is_empty() {
        ends.push(text.len());
    }
    ends
}

fn is_terminator(byte: u8) -> bool {
    matches!(byte, b'.' | b'!' | b'?')
}

fn is_closing(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'' | b'(' | b')' | b'[' | b']' | b'{' | b'}')
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

fn is_continuing(byte: u8) -> bool {
    matches!(byte, b',' | b'-' | b':' | b';')
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
#[allow(clippy::indexing_slicing, clippy::unwrap_used)]
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

    #[test]
    fn any_two_characters_of_ascii_behind_a_full_stop_or_a_question_mark_are_as_unicode_has_them() {
        let characters = || (0u8..128).filter(|byte| !matches!(byte, b'\n' | b'\r'));
        for (stop, first, second) in
            ".?".bytes().flat_map(|stop| characters().flat_map(move |a| characters().map(move |b| (stop, a, b))))
        {
            for text in [[b'a', stop, first, second, b'A'], [first, stop, second, b'1', b'a']] {
                let text = String::from_utf8(text.to_vec()).unwrap();
                assert_eq!(ends_in_ascii(text.as_bytes()), ends(&text), "{text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn sentences_of_ascii_are_those_of_unicode(text in "[aB1 .,!?;:\"')(\\[\t\\x00/-]{0,40}") {
            prop_assert_eq!(ends_in_ascii(text.as_bytes()), ends(&text));
        }

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
