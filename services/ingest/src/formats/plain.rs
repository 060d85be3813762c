//! Text without markup.

use weir_contracts::{Block, BlockKind};

use super::Extracted;
use super::structure::{Structure, clean, position, title};

/// The text as it is; paragraphs are what stands between empty lines.
pub(crate) fn extract(text: &str) -> Extracted {
    let text = clean(text);
    let text = text.trim_matches('\n').trim_end().to_owned();
    let blocks = paragraphs(&text);
    let title = first_line(&text);
    Structure::of(text, blocks).finish(title)
}

fn paragraphs(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<(usize, usize)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let end = at + line.trim_end().len();
        if line.trim().is_empty() {
            blocks.extend(open.take().map(paragraph));
        } else {
            open = Some((open.map_or(at, |(start, _)| start), end));
        }
        at += line.len();
    }
    blocks.extend(open.map(paragraph));
    blocks
}

fn paragraph((start, end): (usize, usize)) -> Block {
    Block { kind: BlockKind::Paragraph, level: 0, start: position(start), end: position(end) }
}

/// The first line, if it stands alone, is short and is no sentence: people put titles there.
fn first_line(text: &str) -> Option<String> {
    let (first, rest) = text.split_once('\n')?;
    let alone = rest.lines().next().is_some_and(|second| second.trim().is_empty());
    let first = first.trim();
    let short = first.chars().count() <= 100 && first.chars().any(char::is_alphabetic);
    (alone && short && !first.ends_with(['.', ',', ';', ':', '?', '!'])).then(|| title(first)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_a_title_are_found() {
        let document = extract("The river\r\n\r\nIt flows.\r\nAlways.\r\n  \r\n\r\nIt ends.\r\n");
        assert_eq!(document.text, "The river\n\nIt flows.\nAlways.\n  \n\nIt ends.");
        assert_eq!(document.title.as_deref(), Some("The river"));
        let ranges: Vec<(i64, i64)> = document.blocks.iter().map(|b| (b.start, b.end)).collect();
        assert_eq!(ranges, [(0, 9), (11, 28), (33, 41)]);
    }
}
