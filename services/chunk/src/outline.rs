//! The structure of a text: its blocks without gaps, and the headings above each.

use std::ops::Range;

use weir_contracts::{Block, BlockKind};

/// A heading in a path is cut at this many characters.
const MAX_HEADING: usize = 200;

/// A block of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    /// What it is.
    pub kind: BlockKind,
    /// Level of a heading, 1 to 6.
    pub level: i32,
    /// Its bytes.
    pub range: Range<usize>,
    /// Number of the nearest heading above it, or of itself if it is one.
    pub heading: Option<usize>,
}

/// A heading and the one it stands under.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heading {
    text: String,
    parent: Option<usize>,
    level: i32,
}

/// The blocks of a text, in order, covering everything but white space.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    /// The blocks.
    pub sections: Vec<Section>,
    headings: Vec<Heading>,
}

impl Outline {
    /// The outline of a text whose blocks are known as far as `blocks` says. What they leave out, and blocks that do
    /// not fit the text, become paragraphs.
    pub fn of(text: &str, blocks: &[Block]) -> Self {
        let mut outline = Self::default();
        let mut at = 0;
        for block in blocks {
            let (Ok(start), Ok(end)) = (usize::try_from(block.start), usize::try_from(block.end)) else { continue };
            if start < at || end <= start || text.get(start..end).is_none() {
                continue;
            }
            outline.paragraphs(text, at..start);
            outline.push(text, block.kind, block.level, start..end);
            at = end;
        }
        outline.paragraphs(text, at..text.len());
        outline
    }

    /// The headings above all of these blocks, outermost first.
    pub fn path(&self, sections: Range<usize>) -> Vec<String> {
        let mut paths = self.sections.get(sections).unwrap_or_default().iter().map(|section| self.above(section));
        let mut common = paths.next().unwrap_or_default();
        for path in paths {
            let same = common.iter().zip(&path).take_while(|(a, b)| a == b).count();
            common.truncate(same);
        }
        common
            .into_iter()
            .filter_map(|heading| self.headings.get(heading))
            .map(|heading| heading.text.clone())
            .collect()
    }

    /// Numbers of the headings above a block, outermost first.
    fn above(&self, section: &Section) -> Vec<usize> {
        let mut path: Vec<usize> =
            std::iter::successors(section.heading, |heading| self.headings.get(*heading)?.parent).collect();
        path.reverse();
        path
    }

    /// Text without structure: what stands between empty lines is a paragraph.
    fn paragraphs(&mut self, text: &str, range: Range<usize>) {
        let mut open: Option<Range<usize>> = None;
        let mut at = range.start;
        for line in text.get(range).unwrap_or_default().split_inclusive('\n') {
            let end = at + line.trim_end().len();
            if line.trim().is_empty() {
                if let Some(open) = open.take() {
                    self.push(text, BlockKind::Paragraph, 0, open);
                }
            } else {
                open = Some(open.map_or(at, |open| open.start)..end);
            }
            at += line.len();
        }
        if let Some(open) = open {
            self.push(text, BlockKind::Paragraph, 0, open);
        }
    }

    fn push(&mut self, text: &str, kind: BlockKind, level: i32, range: Range<usize>) {
        let mut heading = self.sections.last().and_then(|section| section.heading);
        let is_heading = kind == BlockKind::Heading;
        let level = if is_heading { level.clamp(1, 6) } else { 0 };
        if is_heading {
            while let Some(above) = heading.and_then(|heading| self.headings.get(heading))
                && above.level >= level
            {
                heading = above.parent;
            }
            let words: Vec<&str> = text.get(range.clone()).unwrap_or_default().split_whitespace().collect();
            let text = words.join(" ").chars().take(MAX_HEADING).collect();
            self.headings.push(Heading { text, parent: heading, level });
            heading = Some(self.headings.len() - 1);
        }
        self.sections.push(Section { kind, level, range, heading });
    }
}
