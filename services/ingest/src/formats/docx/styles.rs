//! Styles: which of them are headings, which carry numbers.

use std::collections::HashMap;

use super::xml::{Node, walk};
use crate::formats::{Limits, Refusal};

/// A style's part in the structure of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Style {
    name: String,
    based_on: Option<String>,
    outline: Option<i64>,
    number: Option<i64>,
    number_level: Option<i64>,
}

/// All styles by id.
#[derive(Debug, Default)]
pub(super) struct Styles(HashMap<String, Style>);

impl Styles {
    /// Reads the part `styles.xml`.
    pub fn read(part: &str, limits: &Limits) -> Result<Self, Refusal> {
        let mut styles = HashMap::new();
        let mut current: Option<(String, Style)> = None;
        walk(part, limits, |node| {
            match node {
                Node::Open(element) if element.is("style") => {
                    current = element.attribute("styleId").map(|id| (id, Style::default()));
                }
                Node::Open(element) => {
                    let Some((_, style)) = &mut current else { return Ok(()) };
                    match element.name().as_str() {
                        "name" => style.name = element.attribute("val").unwrap_or_default().to_lowercase(),
                        "basedOn" => style.based_on = element.attribute("val"),
                        "outlineLvl" => style.outline = element.number(),
                        "numId" => style.number = element.number(),
                        "ilvl" => style.number_level = element.number(),
                        _ => {}
                    }
                }
                Node::Close("style") => styles.extend(current.take()),
                _ => {}
            }
            Ok(())
        })?;
        Ok(Self(styles))
    }

    /// The style and those it is based on, nearest first.
    fn chain<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Style> {
        std::iter::successors(self.0.get(id), |style| self.0.get(style.based_on.as_deref()?)).take(16)
    }

    /// Level of the heading that paragraphs of this style are, 1 to 6.
    pub fn heading_level(&self, id: &str) -> Option<i32> {
        self.chain(id).find_map(|style| {
            let named = style.name.strip_prefix("heading ").and_then(|level| level.trim().parse::<i32>().ok());
            let outlined = style.outline.filter(|level| (0..9).contains(level));
            let outlined = outlined.and_then(|level| i32::try_from(level + 1).ok());
            named.or(outlined).map(|level| level.clamp(1, 6))
        })
    }

    /// Whether it is the style of the document's title.
    pub fn is_title(&self, id: &str) -> bool {
        self.0.get(id).is_some_and(|style| style.name == "title")
    }

    /// Number and level of the list that paragraphs of this style are items of.
    pub fn numbering(&self, id: &str) -> Option<(i64, i64)> {
        let number = self.chain(id).find_map(|style| style.number)?;
        Some((number, self.chain(id).find_map(|style| style.number_level).unwrap_or(0)))
    }
}
