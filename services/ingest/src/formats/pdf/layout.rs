//! From placed characters to lines, from lines to paragraphs and headings.

use pdf_extract::{MediaBox, OutputDev, OutputError, Transform};

use crate::formats::structure::{Structure, one_line};

/// Characters of one line, in the order in which they were drawn.
#[derive(Debug, Clone, Default, PartialEq)]
struct Line {
    text: String,
    /// Size of the type.
    size: f64,
    /// Direction of writing.
    direction: (f64, f64),
    /// Height of the base line, upwards, across the direction of writing.
    base: f64,
    /// First and last point along the direction of writing.
    start: f64,
    end: f64,
    /// Where the last character began, to see when one is drawn twice to look bold.
    last: (f64, String),
}

/// The lines of a page.
#[derive(Debug, Clone, Default)]
pub(super) struct Page {
    lines: Vec<Line>,
}

impl Page {
    /// A page of which only the text is known.
    pub fn of_text(text: &str) -> Self {
        let lines = text.lines().map(one_line).filter(|line| !line.is_empty());
        Self { lines: lines.map(|text| Line { text, size: 10.0, ..Line::default() }).collect() }
    }

    /// Bytes of text on it.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|line| line.text.len()).sum()
    }
}

/// Collects the characters of a page as they are drawn.
#[derive(Debug, Default)]
pub(super) struct Typesetter {
    page: Page,
    line: Line,
}

impl Typesetter {
    /// What was drawn.
    pub fn page(mut self) -> Page {
        self.end_of_line();
        self.page
    }

    fn end_of_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.text.trim().is_empty() {
            self.page.lines.push(line);
        }
    }
}

impl OutputDev for Typesetter {
    fn begin_page(&mut self, _: u32, _: &MediaBox, _: Option<(f64, f64, f64, f64)>) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn output_character(
        &mut self,
        place: &Transform,
        width: f64,
        _spacing: f64,
        font_size: f64,
        text: &str,
    ) -> Result<(), OutputError> {
        let norm = place.m11.hypot(place.m12);
        let (u, v) = if norm > 0.0 { (place.m11 / norm, place.m12 / norm) } else { (1.0, 0.0) };
        let size = (font_size * place.m21.hypot(place.m22)).abs();
        let (start, base) = (place.m31 * u + place.m32 * v, place.m32 * u - place.m31 * v);
        let end = start + width * font_size.abs() * norm;
        if ![start, base, end, size].iter().all(|number| number.is_finite()) || text.is_empty() {
            return Ok(());
        }
        let line = &mut self.line;
        let turned = (line.direction.0 - u).abs() + (line.direction.1 - v).abs() > 0.1;
        let off = (base - line.base).abs() > 0.5 * size.max(line.size);
        let back = start < line.end - 1.5 * size.max(line.size);
        if !line.text.is_empty() && !turned && (start - line.last.0).abs() < 0.2 * size && !off && line.last.1 == text {
            return Ok(());
        }
        if line.text.is_empty() || turned || off || back {
            self.end_of_line();
            self.line = Line { size, direction: (u, v), base, start, ..Line::default() };
        } else if start - line.end > 0.15 * size && !line.text.ends_with(' ') && !text.starts_with(' ') {
            line.text.push(' ');
        }
        self.line.text.push_str(text);
        self.line.size = self.line.size.max(size);
        self.line.end = end;
        self.line.last = (start, text.to_owned());
        Ok(())
    }

    fn begin_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

/// Puts the lines of all pages together.
pub(super) fn compose(pages: &[Page], structure: &mut Structure) {
    let body = body_size(pages);
    let repeated = Repeated::of(pages);
    let mut paragraph = Paragraph::default();
    for page in pages {
        let step = line_step(page);
        for (index, line) in page.lines.iter().enumerate() {
            if repeated.is_furniture(page, index) {
                continue;
            }
            let previous = index.checked_sub(1).and_then(|before| page.lines.get(before));
            if previous.is_some_and(|previous| breaks(previous, line, step))
                || paragraph.is_heading != is_heading(line, body)
            {
                paragraph.end(structure, body);
            }
            paragraph.add(line, is_heading(line, body), page);
        }
    }
    paragraph.end(structure, body);
}

/// Size of the type most characters are set in.
fn body_size(pages: &[Page]) -> f64 {
    let mut sizes: Vec<(f64, usize)> =
        pages.iter().flat_map(|page| &page.lines).map(|line| (line.size, line.text.chars().count())).collect();
    sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = sizes.iter().map(|(_, count)| count).sum::<usize>() / 2;
    let mut seen = 0;
    sizes
        .iter()
        .find(|(_, count)| {
            seen += count;
            seen > half
        })
        .map_or(10.0, |(size, _)| *size)
}

/// The distance from one line of a paragraph to the next on this page: the median of plausible ones.
fn line_step(page: &Page) -> f64 {
    let pairs = page.lines.windows(2).filter_map(|pair| match pair {
        [above, below] => Some((above.base - below.base, below.size)),
        _ => None,
    });
    let mut steps: Vec<f64> =
        pairs.filter(|(step, size)| *step > 0.8 * size && *step < 2.5 * size).map(|(step, _)| step).collect();
    steps.sort_by(f64::total_cmp);
    steps.get(steps.len() / 2).copied().unwrap_or(0.0)
}

fn breaks(above: &Line, below: &Line, step: f64) -> bool {
    let distance = above.base - below.base;
    if (above.size - below.size).abs() > 0.15 * above.size.max(below.size) {
        return true;
    }
    if distance < -0.5 * above.size {
        // Up again: the next column, or something out of order. A sentence may go on there.
        return ends_sentence(&above.text);
    }
    step > 0.0 && distance > 1.4 * step
}

fn ends_sentence(text: &str) -> bool {
    text.trim_end().ends_with(['.', '!', '?', ':', '”', '"', '。', '！', '？', '।', '؟'])
}

fn is_heading(line: &Line, body: f64) -> bool {
    line.size >= 1.15 * body && line.text.chars().count() <= 150 && line.text.chars().any(char::is_alphanumeric)
}

/// Lines that belong together.
#[derive(Debug, Default)]
struct Paragraph {
    text: String,
    size: f64,
    is_heading: bool,
    last_end: f64,
}

impl Paragraph {
    fn add(&mut self, line: &Line, is_heading: bool, page: &Page) {
        let words = one_line(&line.text);
        if self.text.is_empty() {
            self.text = words;
        } else if let Some(stem) = hyphenated(&self.text, &words) {
            self.text.truncate(stem);
            self.text.push_str(&words);
        } else {
            // A line that stops early, or one that begins with a bullet, was meant to be a line.
            let width = page.lines.iter().map(|line| line.end).fold(f64::MIN, f64::max) - line.start;
            let short = self.last_end - line.start < 0.55 * width && width > 0.0;
            self.text.push(if !is_heading && (short || begins_item(&words)) { '\n' } else { ' ' });
            self.text.push_str(&words);
        }
        self.size = self.size.max(line.size);
        self.is_heading = is_heading;
        self.last_end = line.end;
    }

    fn end(&mut self, structure: &mut Structure, body: f64) {
        let paragraph = std::mem::take(self);
        if !paragraph.is_heading || paragraph.text.chars().count() > 200 {
            structure.paragraph(&paragraph.text);
        } else if paragraph.size >= 1.7 * body {
            structure.heading(1, &paragraph.text);
        } else if paragraph.size >= 1.35 * body {
            structure.heading(2, &paragraph.text);
        } else {
            structure.heading(3, &paragraph.text);
        }
    }
}

/// Where to cut when a word goes on in the next line.
fn hyphenated(text: &str, next: &str) -> Option<usize> {
    let stem = text.strip_suffix(['-', '\u{2010}', '\u{ad}'])?;
    let in_word = stem.chars().next_back()?.is_lowercase() && next.chars().next()?.is_lowercase();
    in_word.then_some(stem.len())
}

fn begins_item(text: &str) -> bool {
    text.starts_with(['•', '▪', '◦', '‣', '–', '·', '●', '■', '\u{f0b7}'])
        || text.split_once(' ').is_some_and(|(mark, _)| {
            let inner = mark.trim_start_matches('(').trim_end_matches([')', '.']);
            inner.len() < mark.len() && (1..=3).contains(&inner.len()) && inner.chars().all(|c| c.is_ascii_digit())
        })
}

/// Running heads and feet: the same first or last line on most pages, numbers apart. The first stays.
struct Repeated(Vec<String>);

impl Repeated {
    fn of(pages: &[Page]) -> Self {
        if pages.len() < 4 {
            return Self(Vec::new());
        }
        let mut edges: Vec<String> = pages
            .iter()
            .flat_map(|page| {
                let mut edges: Vec<String> =
                    [page.lines.first(), page.lines.last()].into_iter().flatten().map(|line| key(&line.text)).collect();
                edges.dedup();
                edges
            })
            .collect();
        edges.sort();
        let mut repeated: Vec<String> =
            edges.chunk_by(|a, b| a == b).filter(|same| same.len() * 2 > pages.len()).flatten().cloned().collect();
        repeated.dedup();
        Self(repeated)
    }

    fn is_furniture(&self, page: &Page, index: usize) -> bool {
        let edge = index == 0 || index + 1 == page.lines.len();
        edge && page.lines.get(index).is_some_and(|line| self.0.contains(&key(&line.text)))
    }
}

fn key(text: &str) -> String {
    text.chars().filter(|c| !c.is_numeric() && !c.is_whitespace()).collect()
}
