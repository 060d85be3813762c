//! Numbers of list items and headings. A file keeps only which list an item is in; the numbers are counted.

use std::collections::HashMap;

use super::xml::{Node, walk};
use crate::formats::{Limits, Refusal};

/// One level of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    start: i64,
    format: String,
    /// `%1.%2)`: each number stands for the count of that level.
    text: String,
}

impl Default for Level {
    fn default() -> Self {
        Self { start: 1, format: "decimal".into(), text: String::new() }
    }
}

/// A use of a list definition.
#[derive(Debug, Clone, Default)]
struct List {
    definition: i64,
    restarts: HashMap<i64, i64>,
    seen: bool,
}

/// All lists, and how far each has been counted.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    definitions: HashMap<i64, HashMap<i64, Level>>,
    lists: HashMap<i64, List>,
    counts: HashMap<(i64, i64), i64>,
}

impl Numbering {
    /// Reads the part `numbering.xml`.
    pub fn read(part: &str, limits: &Limits) -> Result<Self, Refusal> {
        let mut numbering = Self::default();
        let (mut definition, mut list, mut level) = (None, None, 0);
        walk(part, limits, |node| {
            let Node::Open(element) = node else {
                match node {
                    Node::Close("abstractNum") => definition = None,
                    Node::Close("num") => list = None,
                    _ => {}
                }
                return Ok(());
            };
            let id = |name| element.attribute(name).and_then(|id| id.trim().parse::<i64>().ok());
            match (element.name().as_str(), definition, list) {
                ("abstractNum", ..) => definition = id("abstractNumId"),
                ("num", ..) => list = id("numId"),
                ("lvl", ..) | ("lvlOverride", ..) => level = id("ilvl").unwrap_or(0),
                ("abstractNumId", _, Some(list)) => {
                    numbering.lists.entry(list).or_default().definition = element.number().unwrap_or(0);
                }
                ("startOverride", _, Some(list)) => {
                    let start = element.number().unwrap_or(1);
                    numbering.lists.entry(list).or_default().restarts.insert(level, start);
                }
                (name, Some(definition), _) => {
                    let levels = numbering.definitions.entry(definition).or_default();
                    let level = levels.entry(level).or_default();
                    match name {
                        "start" => level.start = element.number().unwrap_or(1),
                        "numFmt" => level.format = element.attribute("val").unwrap_or_default(),
                        "lvlText" => level.text = element.attribute("val").unwrap_or_default(),
                        _ => {}
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(numbering)
    }

    /// Counts an item and returns its mark, for example `3.` or `-`; none if the list does not exist.
    pub fn next(&mut self, list: i64, level: i64) -> Option<String> {
        let use_of = self.lists.get_mut(&list)?;
        let definition = use_of.definition;
        if !use_of.seen {
            use_of.seen = true;
            for (level, start) in &use_of.restarts {
                self.counts.insert((definition, *level), start - 1);
            }
        }
        let levels = self.definitions.get(&definition)?;
        let own = levels.get(&level).cloned().unwrap_or_default();
        let count = self.counts.get(&(definition, level)).map_or(own.start, |count| count.saturating_add(1));
        self.counts.insert((definition, level), count);
        self.counts.retain(|(of, deeper), _| *of != definition || *deeper <= level);
        if own.format == "bullet" {
            return Some("-".into());
        }
        let mut mark = String::new();
        let mut rest = own.text.as_str();
        while let Some((before, after)) = rest.split_once('%') {
            mark.push_str(before);
            let Some(digit) = after.chars().next().and_then(|c| c.to_digit(10)) else {
                mark.push('%');
                rest = after;
                continue;
            };
            let at = i64::from(digit) - 1;
            let format = levels.get(&at).map_or("decimal", |level| level.format.as_str());
            let start = levels.get(&at).map_or(1, |level| level.start);
            mark.push_str(&written(self.counts.get(&(definition, at)).copied().unwrap_or(start), format));
            rest = after.get(1..).unwrap_or_default();
        }
        mark.push_str(rest);
        Some(mark.trim().to_owned())
    }
}

/// A number as the list writes it.
fn written(number: i64, format: &str) -> String {
    match format {
        "none" => String::new(),
        "decimalZero" => format!("{number:02}"),
        "lowerLetter" => letters(number).to_lowercase(),
        "upperLetter" => letters(number),
        "lowerRoman" => roman(number).to_lowercase(),
        "upperRoman" => roman(number),
        _ => number.to_string(),
    }
}

/// A, B, ... Z, AA, BB, as Word counts.
fn letters(number: i64) -> String {
    let Ok(index) = usize::try_from(number - 1) else { return number.to_string() };
    let letter = char::from(b'A' + u8::try_from(index % 26).unwrap_or(0));
    std::iter::repeat_n(letter, (index / 26 + 1).min(10)).collect()
}

fn roman(number: i64) -> String {
    const SIGNS: [(i64, &str); 13] = [
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ];
    if !(1..4000).contains(&number) {
        return number.to_string();
    }
    let mut left = number;
    let mut roman = String::new();
    for (value, sign) in SIGNS {
        while left >= value {
            roman.push_str(sign);
            left -= value;
        }
    }
    roman
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_word_writes_them() {
        assert_eq!(written(28, "lowerLetter"), "bb");
        assert_eq!(written(1994, "upperRoman"), "MCMXCIV");
        assert_eq!(written(7, "decimalZero"), "07");
    }
}
