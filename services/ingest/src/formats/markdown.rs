//! Markdown, without its markup.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::structure::Structure;
use super::{Extracted, Limits, Refusal};

/// The text with headings, lists, code and tables as blocks. Addresses of links are left out, their words stay.
pub(crate) fn extract(text: &str, limits: &Limits) -> Result<Extracted, Refusal> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_GFM
        | Options::ENABLE_DEFINITION_LIST;
    let mut reader = Reader::default();
    let mut depth = 0usize;
    for event in Parser::new_ext(text.trim_start_matches('\u{feff}'), options) {
        match &event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limits.max_nesting {
            return Err(Refusal::TooDeep { what: "Markdown document".into(), limit: limits.max_nesting });
        }
        reader.event(event);
    }
    reader.flush();
    Ok(reader.structure.finish(reader.title))
}

#[derive(Debug, Default)]
struct Reader {
    structure: Structure,
    title: Option<String>,
    /// The words of the element that is being read.
    words: String,
    /// The outermost list, and for each list in it the number of its next item.
    list: String,
    numbers: Vec<Option<u64>>,
    table: String,
    cells: Vec<String>,
    in_code: bool,
    in_metadata: bool,
}

impl Reader {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) | Event::Code(text) | Event::InlineMath(text) | Event::DisplayMath(text) => {
                self.words.push_str(&text);
            }
            Event::Html(html) => self.words.push_str(&without_tags(&html)),
            Event::InlineHtml(html) if html.to_ascii_lowercase().starts_with("<br") => self.words.push('\n'),
            Event::InlineHtml(_) => {}
            Event::FootnoteReference(label) => {
                self.words.push_str(" [");
                self.words.push_str(&label);
                self.words.push(']');
            }
            Event::SoftBreak => self.words.push(' '),
            Event::HardBreak => self.words.push('\n'),
            Event::Rule => self.flush(),
            Event::TaskListMarker(done) => self.words.push_str(if done { "[x] " } else { "[ ] " }),
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::List(first) => {
                self.end_item_words();
                if self.numbers.is_empty() {
                    self.flush();
                }
                self.numbers.push(*first);
            }
            Tag::Item => {
                self.end_item_words();
                self.begin_item();
            }
            Tag::FootnoteDefinition(label) => {
                self.flush();
                self.words = format!("[{label}] ");
            }
            Tag::Paragraph | Tag::CodeBlock(_) | Tag::HtmlBlock | Tag::Heading { .. } | Tag::Table(_) => {
                if !self.words.starts_with('[') {
                    self.flush();
                }
                self.in_code = matches!(tag, Tag::CodeBlock(_));
            }
            Tag::DefinitionListTitle | Tag::DefinitionListDefinition => self.flush(),
            Tag::MetadataBlock(_) => self.in_metadata = true,
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) if self.numbers.is_empty() => {
                let words = std::mem::take(&mut self.words);
                self.structure.heading(number(level), &words);
            }
            TagEnd::CodeBlock => {
                self.in_code = false;
                let code = std::mem::take(&mut self.words);
                if self.numbers.is_empty() {
                    self.structure.code(&code);
                } else {
                    code.lines().for_each(|line| self.list_line(line));
                }
            }
            TagEnd::TableCell => self.cells.push(std::mem::take(&mut self.words).trim().replace('\n', " ")),
            TagEnd::TableRow | TagEnd::TableHead => {
                self.table.push_str(&std::mem::take(&mut self.cells).join(" | "));
                self.table.push('\n');
            }
            TagEnd::Table => {
                let table = std::mem::take(&mut self.table);
                if self.numbers.is_empty() {
                    self.structure.table(&table);
                } else {
                    table.lines().for_each(|line| self.list_line(line));
                }
            }
            TagEnd::Item => self.end_item_words(),
            TagEnd::List(_) => {
                self.end_item_words();
                self.numbers.pop();
                if self.numbers.is_empty() {
                    self.structure.list(&std::mem::take(&mut self.list));
                }
            }
            TagEnd::MetadataBlock(_) => self.metadata(),
            TagEnd::Paragraph
            | TagEnd::HtmlBlock
            | TagEnd::Heading(_)
            | TagEnd::FootnoteDefinition
            | TagEnd::DefinitionListTitle
            | TagEnd::DefinitionListDefinition => self.flush(),
            _ => {}
        }
    }

    /// Ends what is being read: a line of the list inside one, a paragraph elsewhere.
    fn flush(&mut self) {
        if self.numbers.is_empty() {
            let words = std::mem::take(&mut self.words);
            self.structure.paragraph(&words);
        } else {
            self.end_item_words();
        }
    }

    fn begin_item(&mut self) {
        let indent = "  ".repeat(self.numbers.len().saturating_sub(1).min(20));
        let mark = match self.numbers.last_mut() {
            Some(Some(number)) => {
                let mark = format!("{number}. ");
                *number += 1;
                mark
            }
            _ => "- ".to_owned(),
        };
        if !self.list.is_empty() {
            self.list.push('\n');
        }
        self.list.push_str(&indent);
        self.list.push_str(&mark);
    }

    /// The first words of an item follow its mark, later ones begin a line.
    fn end_item_words(&mut self) {
        if self.numbers.is_empty() || self.words.trim().is_empty() {
            return;
        }
        let words = std::mem::take(&mut self.words);
        for line in words.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if self.list.ends_with("- ") || self.list.ends_with(". ") {
                self.list.push_str(line);
            } else {
                self.list_line(line);
            }
        }
    }

    fn list_line(&mut self, line: &str) {
        self.list.push('\n');
        self.list.push_str(&"  ".repeat(self.numbers.len().min(20)));
        self.list.push_str(line);
    }

    /// Front matter: the title is taken from it, the rest stays readable.
    fn metadata(&mut self) {
        self.in_metadata = false;
        let metadata = std::mem::take(&mut self.words);
        let mut rest = String::new();
        for line in metadata.lines() {
            match line.strip_prefix("title:") {
                Some(title) => self.title = Some(title.trim().trim_matches(['"', '\'']).to_owned()),
                None => {
                    rest.push_str(line);
                    rest.push('\n');
                }
            }
        }
        self.structure.paragraph(&rest);
    }
}

fn number(level: HeadingLevel) -> i32 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 => 3,
        HeadingLevel::H4 => 4,
        HeadingLevel::H5 => 5,
        HeadingLevel::H6 => 6,
    }
}

/// The words of a piece of HTML inside Markdown: good enough for a logo or a `<details>`.
fn without_tags(html: &str) -> String {
    let mut words = String::new();
    let mut rest = html;
    while let Some(open) = rest.find('<') {
        words.push_str(rest.get(..open).unwrap_or_default());
        let tag = rest.get(open..).unwrap_or_default();
        let end =
            if tag.starts_with("<!--") { tag.find("-->").map(|at| at + 3) } else { tag.find('>').map(|at| at + 1) };
        match end.and_then(|end| tag.get(end..)) {
            Some(after) => rest = after,
            None => return words,
        }
    }
    words.push_str(rest);
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::formats::tests::{kinds, limits};

    #[test]
    fn markup_goes_and_structure_stays() {
        let text = "---\ntitle: \"The Rhine\"\n---\n# River *one*\n\nIt [flows](http://x.y) **north**\nto the `sea`.\n\n\
                    - alps\n- lake\n  1. upper\n  2. lower\n\n```rust\nfn main() {\n    flow();\n}\n```\n\n\
                    | a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n<!-- hidden -->\n<div>shown</div>\n";
        let document = extract(text, &limits()).unwrap();
        assert_eq!(document.title.as_deref(), Some("The Rhine"));
        assert_eq!(
            kinds(&document),
            [
                ("heading", "River one"),
                ("paragraph", "It flows north to the sea."),
                ("list", "- alps\n- lake\n  1. upper\n  2. lower"),
                ("code", "fn main() {\n    flow();\n}"),
                ("table", "a | b\n1 | 2"),
                ("paragraph", "quoted"),
                ("paragraph", "shown"),
            ]
        );
    }

    #[test]
    fn loose_lists_and_footnotes_keep_their_words() {
        let document = extract("1. one\n\n   more\n\n2. two\n\nSee[^n].\n\n[^n]: The note.\n", &limits()).unwrap();
        assert_eq!(
            kinds(&document),
            [("list", "1. one\n  more\n2. two"), ("paragraph", "See [n]."), ("paragraph", "[n] The note.")]
        );
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let text = format!("{} deep", ">".repeat(50_000));
        assert_eq!(extract(&text, &limits()).unwrap_err().class(), "nested-too-deep");
    }
}
