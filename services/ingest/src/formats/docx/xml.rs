//! XML as a stream of elements and text, names without their prefixes, depth limited.

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use super::WHAT;
use crate::formats::{Limits, Refusal};

/// What comes next.
pub(super) enum Node<'a> {
    /// An element begins.
    Open(Element<'a>),
    /// An element ends.
    Close(&'a str),
    /// Text, entities resolved.
    Text(&'a str),
}

/// An element with its attributes.
pub(super) struct Element<'a>(&'a BytesStart<'a>);

impl Element<'_> {
    /// Its name.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(self.0.local_name().as_ref()).into_owned()
    }

    /// Whether that is its name.
    pub fn is(&self, name: &str) -> bool {
        self.0.local_name().as_ref() == name.as_bytes()
    }

    /// An attribute's value, whatever its prefix.
    pub fn attribute(&self, name: &str) -> Option<String> {
        self.0
            .attributes()
            .with_checks(false)
            .flatten()
            .find(|attribute| attribute.key.local_name().as_ref() == name.as_bytes())
            .map(|attribute| String::from_utf8_lossy(&attribute.value).into_owned())
    }

    /// The attribute `val`, as a number.
    pub fn number(&self) -> Option<i64> {
        self.attribute("val")?.trim().parse().ok()
    }
}

/// Goes through a part from its beginning to its end.
pub(super) fn walk(
    text: &str,
    limits: &Limits,
    mut visit: impl FnMut(Node<'_>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    reader.config_mut().allow_dangling_amp = true;
    let mut depth = 0usize;
    loop {
        let event = reader
            .read_event()
            .map_err(|error| Refusal::broken(WHAT, format_args!("its XML is not valid: {error}")))?;
        match event {
            Event::Start(start) => {
                depth += 1;
                if depth > limits.max_nesting {
                    return Err(Refusal::TooDeep { what: WHAT.into(), limit: limits.max_nesting });
                }
                visit(Node::Open(Element(&start)))?;
            }
            Event::End(end) => {
                depth = depth.saturating_sub(1);
                visit(Node::Close(&String::from_utf8_lossy(end.local_name().as_ref())))?;
            }
            Event::Text(text) => visit(Node::Text(&text.decode().unwrap_or_default()))?,
            Event::CData(text) => visit(Node::Text(&text.decode().unwrap_or_default()))?,
            Event::GeneralRef(reference) => {
                let named = match reference.decode().unwrap_or_default().as_ref() {
                    "amp" => Some('&'),
                    "lt" => Some('<'),
                    "gt" => Some('>'),
                    "quot" => Some('"'),
                    "apos" => Some('\''),
                    _ => None,
                };
                if let Some(c) = named.or_else(|| reference.resolve_char_ref().ok().flatten()) {
                    visit(Node::Text(c.encode_utf8(&mut [0; 4])))?;
                }
            }
            Event::Eof if depth > 0 => return Err(Refusal::broken(WHAT, "its XML ends in the middle")),
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

/// The text of the first element of that name.
pub(super) fn text_of_first(text: &str, name: &str, limits: &Limits) -> Result<Option<String>, Refusal> {
    let (mut found, mut inside, mut done) = (String::new(), false, false);
    walk(text, limits, |node| {
        match node {
            Node::Open(element) if element.is(name) => inside = !done,
            Node::Close(closed) if closed == name => {
                done |= inside;
                inside = false;
            }
            Node::Text(text) if inside => found.push_str(text),
            _ => {}
        }
        Ok(())
    })?;
    Ok((!found.trim().is_empty()).then_some(found))
}
