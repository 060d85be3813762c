//! The text of a document: paragraphs, tables and notes.

use super::numbering::Numbering;
use super::styles::Styles;
use super::xml::{Element, Node, walk};
use crate::formats::structure::{Structure, one_line};
use crate::formats::{Limits, Refusal};

/// Elements whose content is not part of the text: deletions, field codes, the fallback of something said already.
const SKIPPED: [&str; 9] = ["del", "moveFrom", "instrText", "delText", "Fallback", "sectPr", "rPr", "rt", "annotation"];

/// Which notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notes {
    Foot,
    End,
}

impl Notes {
    /// The part they are in.
    pub fn part(self) -> &'static str {
        match self {
            Self::Foot => "footnotes.xml",
            Self::End => "endnotes.xml",
        }
    }
}

/// A paragraph that is being read.
#[derive(Debug, Default)]
struct Paragraph {
    text: String,
    style: Option<String>,
    outline: Option<i64>,
    list: Option<i64>,
    list_level: Option<i64>,
}

/// A table that is being read.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Vec<String>>,
    cell: String,
}

/// Reads a body into a structure. Paragraphs lie in one another where there are text boxes, tables in cells.
pub(super) struct Body<'a> {
    styles: &'a Styles,
    numbering: Numbering,
    structure: Structure,
    title: Option<String>,
    paragraphs: Vec<Paragraph>,
    tables: Vec<Table>,
    /// Notes in the order in which the text refers to them; each kind is numbered on its own.
    notes: Vec<(Notes, String)>,
    /// Whether the block before is an item of a list in the text itself.
    after_item: bool,
    in_text: bool,
    in_properties: bool,
    skipping: usize,
}

impl<'a> Body<'a> {
    /// A body that has not been read.
    pub fn new(styles: &'a Styles, numbering: Numbering, structure: Structure) -> Self {
        Self {
            styles,
            numbering,
            structure,
            title: None,
            paragraphs: Vec::new(),
            tables: Vec::new(),
            notes: Vec::new(),
            after_item: false,
            in_text: false,
            in_properties: false,
            skipping: 0,
        }
    }

    /// What was read, and the title if a paragraph is styled as one.
    pub fn finish(self) -> (Structure, Option<String>) {
        (self.structure, self.title)
    }

    /// Reads the text.
    pub fn read(&mut self, part: &str, limits: &Limits) -> Result<(), Refusal> {
        walk(part, limits, |node| {
            self.node(&node);
            if self.structure.len() > limits.max_expanded_bytes {
                return Err(Refusal::Expands { what: super::WHAT.into(), limit: limits.max_expanded_bytes });
            }
            Ok(())
        })
    }

    /// Reads notes and appends those that the text refers to, in that order.
    pub fn read_notes(&mut self, part: &str, kind: Notes, limits: &Limits) -> Result<(), Refusal> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut open: Option<String> = None;
        let mut reader = Body::new(self.styles, Numbering::default(), Structure::default());
        walk(part, limits, |node| {
            match &node {
                Node::Open(element) if element.is("footnote") || element.is("endnote") => {
                    open = element
                        .attribute("id")
                        .filter(|_| element.attribute("type").is_none_or(|kind| kind == "normal"));
                }
                Node::Close("footnote" | "endnote") => {
                    let note = std::mem::take(&mut reader.structure).finish(None);
                    found.extend(open.take().map(|id| (id, one_line(&note.text))));
                }
                _ if open.is_some() => reader.node(&node),
                _ => {}
            }
            Ok(())
        })?;
        let referred: Vec<String> = self.notes.iter().filter(|(of, _)| *of == kind).map(|(_, id)| id.clone()).collect();
        for (index, id) in referred.iter().enumerate() {
            if let Some((_, text)) = found.iter().find(|(known, text)| known == id && !text.is_empty()) {
                self.structure.paragraph(&format!("{} {text}", mark(kind, index + 1)));
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Node<'_>) {
        match node {
            Node::Open(element) if self.skipping > 0 || SKIPPED.iter().any(|name| element.is(name)) => {
                self.skipping += 1
            }
            Node::Close(_) if self.skipping > 0 => self.skipping -= 1,
            _ if self.skipping > 0 => {}
            Node::Open(element) => self.open(element),
            Node::Close(name) => self.close(name),
            Node::Text(text) if self.in_text => self.push(text),
            Node::Text(_) => {}
        }
    }

    fn open(&mut self, element: &Element<'_>) {
        let name = element.name();
        if self.in_properties {
            self.property(&name, element);
            return;
        }
        match name.as_str() {
            "p" => self.paragraphs.push(Paragraph::default()),
            "pPr" => self.in_properties = true,
            "t" => self.in_text = true,
            "tab" => self.push("\t"),
            "br" | "cr" => self.push("\n"),
            "noBreakHyphen" => self.push("-"),
            "sym" => {
                let code = element.attribute("char").and_then(|code| u32::from_str_radix(code.trim(), 16).ok());
                if let Some(c) = code.and_then(symbol) {
                    self.push(c.encode_utf8(&mut [0; 4]));
                }
            }
            "footnoteReference" => self.reference(Notes::Foot, element),
            "endnoteReference" => self.reference(Notes::End, element),
            "tbl" => self.tables.push(Table::default()),
            "tr" => {
                if let Some(table) = self.tables.last_mut() {
                    table.rows.push(Vec::new());
                }
            }
            _ => {}
        }
    }

    fn property(&mut self, name: &str, element: &Element<'_>) {
        let Some(paragraph) = self.paragraphs.last_mut() else { return };
        match name {
            "pStyle" => paragraph.style = element.attribute("val"),
            "outlineLvl" => paragraph.outline = element.number(),
            "numId" => paragraph.list = element.number(),
            "ilvl" => paragraph.list_level = element.number(),
            _ => {}
        }
    }

    fn close(&mut self, name: &str) {
        match name {
            "pPr" => self.in_properties = false,
            "t" => self.in_text = false,
            "p" if !self.in_properties => {
                if let Some(paragraph) = self.paragraphs.pop() {
                    self.emit(paragraph);
                }
            }
            "tc" => {
                if let Some(table) = self.tables.last_mut() {
                    let cell = one_line(&std::mem::take(&mut table.cell));
                    if let Some(row) = table.rows.last_mut() {
                        row.push(cell);
                    }
                }
            }
            "tbl" => {
                if let Some(table) = self.tables.pop() {
                    self.emit_table(&table);
                }
            }
            _ => {}
        }
    }

    fn push(&mut self, text: &str) {
        if let Some(paragraph) = self.paragraphs.last_mut() {
            paragraph.text.push_str(text);
        }
    }

    fn reference(&mut self, kind: Notes, element: &Element<'_>) {
        let Some(id) = element.attribute("id") else { return };
        self.notes.push((kind, id));
        let number = self.notes.iter().filter(|(of, _)| *of == kind).count();
        self.push(&mark(kind, number));
    }

    fn emit(&mut self, paragraph: Paragraph) {
        let style = paragraph.style.as_deref().unwrap_or_default();
        let own = match paragraph.list {
            // The list 0 takes a paragraph out of the list of its style.
            Some(0) => None,
            Some(list) => Some((list, paragraph.list_level.unwrap_or(0))),
            None => self.styles.numbering(style),
        };
        let text = paragraph.text.trim();
        if text.is_empty() {
            return;
        }
        let item = own.and_then(|(list, level)| Some((self.numbering.next(list, level)?, level)));
        if let Some(table) = self.tables.last_mut() {
            table.cell.push_str(&item.map_or(String::new(), |(mark, _)| format!("{mark} ")));
            table.cell.push_str(text);
            table.cell.push(' ');
            return;
        }
        let outlined = paragraph.outline.filter(|level| (0..9).contains(level));
        let outlined = outlined.and_then(|level| i32::try_from(level + 1).ok());
        let is_title = self.styles.is_title(style);
        if is_title && self.title.is_none() {
            self.title = Some(text.to_owned());
        }
        let heading = outlined.or_else(|| self.styles.heading_level(style)).or(is_title.then_some(1));
        let was_item = std::mem::take(&mut self.after_item);
        match (heading, item) {
            (Some(level), Some((mark, _))) if mark != "-" => self.structure.heading(level, &format!("{mark} {text}")),
            (Some(level), _) => self.structure.heading(level, text),
            (None, Some((mark, level))) => {
                let indent = "  ".repeat(usize::try_from(level).unwrap_or(0).min(9));
                let line = format!("{indent}{} {}", if mark.is_empty() { "-" } else { &mark }, one_line(text));
                if was_item && self.structure.last_is_list() {
                    self.structure.extend_list(&line);
                } else {
                    self.structure.list(&line);
                }
                self.after_item = true;
            }
            (None, None) => self.structure.paragraph(text),
        }
    }

    /// A table of one cell is a frame around text; one in a cell becomes a part of that cell.
    fn emit_table(&mut self, table: &Table) {
        let rows: Vec<String> = table
            .rows
            .iter()
            .filter(|row| row.iter().any(|cell| !cell.is_empty()))
            .map(|row| row.join(" | "))
            .collect();
        if let Some(outer) = self.tables.last_mut() {
            outer.cell.push_str(&rows.join("; "));
            outer.cell.push(' ');
            return;
        }
        self.after_item = false;
        let single = table.rows.len() == 1 && table.rows.first().is_some_and(|row| row.len() == 1);
        if single {
            self.structure.paragraph(&rows.join("\n"));
        } else {
            self.structure.table(&rows.join("\n"));
        }
    }
}

fn mark(kind: Notes, number: usize) -> String {
    match kind {
        Notes::Foot => format!("[{number}]"),
        Notes::End => format!("[note {number}]"),
    }
}

/// A character of a symbol font: the bullet is one, the rest says nothing without the font.
fn symbol(code: u32) -> Option<char> {
    match code {
        0xf0b7 | 0xf0a7 | 0xf0d8 => Some('•'),
        0xe000..=0xf8ff => None,
        code => char::from_u32(code),
    }
}
