//! PDF: characters with places, put back together to lines and paragraphs.

mod layout;

use std::panic::{AssertUnwindSafe, catch_unwind};

use lopdf::{Document, Error, Object, ObjectId};

use super::structure::{Structure, one_line};
use super::{Extracted, Limits, Refusal};
use layout::{Page, Typesetter};

const WHAT: &str = "PDF document";

/// The text of all pages.
pub(crate) fn extract(bytes: &[u8], limits: &Limits) -> Result<Extracted, Refusal> {
    let document = open(bytes)?;
    let pages = document.get_pages();
    if pages.len() > limits.max_pages {
        return Err(Refusal::TooManyPages { pages: pages.len(), limit: limits.max_pages });
    }
    if pages.is_empty() {
        return Err(Refusal::broken(WHAT, "it has no pages, or the list of its pages can't be read"));
    }
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    let mut bytes_of_text = 0usize;
    for (number, id) in &pages {
        match page(&document, *number, *id) {
            Some(page) => {
                bytes_of_text += page.bytes();
                read.push(page);
            }
            None => unread.push(*number),
        }
        if bytes_of_text > limits.max_expanded_bytes {
            return Err(Refusal::Expands { what: WHAT.into(), limit: limits.max_expanded_bytes });
        }
    }
    if read.is_empty() {
        return Err(Refusal::broken(WHAT, "none of its pages can be read"));
    }
    let mut structure = Structure::default();
    layout::compose(&read, &mut structure);
    let mut extracted = structure.finish(title(&document));
    if is_garbled(&extracted.text) {
        return Err(Refusal::broken(
            WHAT,
            "its fonts do not say which letters their shapes stand for; run text recognition (OCR) over it first",
        ));
    }
    extracted.warning = (!unread.is_empty()).then(|| {
        let numbers: Vec<String> = unread.iter().take(20).map(u32::to_string).collect();
        format!("{} of {} pages are damaged and were left out: {}", unread.len(), pages.len(), numbers.join(", "))
    });
    Ok(extracted)
}

/// Opens the file, with the empty password if it has one: files that only forbid printing or copying have that.
fn open(bytes: &[u8]) -> Result<Document, Refusal> {
    let locked = || Refusal::Encrypted { what: WHAT.into() };
    let mut document = Document::load_mem(bytes).map_err(|error| match error {
        Error::InvalidPassword | Error::Decryption(_) | Error::UnsupportedSecurityHandler(_) => locked(),
        error => Refusal::broken(WHAT, error),
    })?;
    if document.is_encrypted() {
        document.decrypt("").map_err(|_| locked())?;
    }
    smooth(&mut document);
    Ok(document)
}

/// Takes away what pdf-extract stumbles over: pictures, which it would read as if they were pages, and pages of
/// unknown size.
fn smooth(document: &mut Document) {
    for object in document.objects.values_mut() {
        if let Object::Stream(stream) = object
            && stream.dict.get(b"Subtype").and_then(Object::as_name).is_ok_and(|name| name == b"Image")
        {
            stream.dict.remove(b"Filter");
            stream.dict.remove(b"DecodeParms");
            stream.set_content(Vec::new());
        }
    }
    let root = document.catalog().and_then(|catalog| catalog.get(b"Pages")).and_then(Object::as_reference);
    if let Ok(root) = root
        && let Ok(tree) = document.get_dictionary_mut(root)
        && !tree.has(b"MediaBox")
    {
        let letter: Vec<Object> = [0, 0, 612, 792].map(Object::Integer).into();
        tree.set("MediaBox", letter);
    }
}

/// A page's characters; pdf-extract panics on damage that other readers tolerate, so there is a second, simpler way.
fn page(document: &Document, number: u32, id: ObjectId) -> Option<Page> {
    let placed = catch_unwind(AssertUnwindSafe(|| {
        let mut typesetter = Typesetter::default();
        pdf_extract::output_doc_page(document, &mut typesetter, number).map(|()| typesetter.page())
    }));
    if let Ok(Ok(page)) = placed {
        return Some(page);
    }
    if document.get_object(id).is_err() {
        return None;
    }
    let text = catch_unwind(AssertUnwindSafe(|| document.extract_text(&[number])));
    match text {
        Ok(Ok(text)) if !text.trim().is_empty() => Some(Page::of_text(&text)),
        _ => None,
    }
}

/// The title in the file's properties, unless a program put its own name or the file's there.
fn title(document: &Document) -> Option<String> {
    let info = document.trailer.get(b"Info").ok()?;
    let info = match info {
        Object::Reference(id) => document.get_dictionary(*id).ok()?,
        info => info.as_dict().ok()?,
    };
    let title = info.get_deref(b"Title", document).ok()?;
    let title = one_line(&lopdf::decode_text_string(title).ok()?);
    let title = title.strip_prefix("Microsoft Word - ").unwrap_or(&title);
    let lower = title.to_lowercase();
    let endings = [".doc", ".docx", ".pdf", ".tex", ".dvi", ".indd", ".qxd", ".ppt", ".xls", ".rtf", ".txt", ".odt"];
    let useless = lower.starts_with("untitled") || endings.iter().any(|ending| lower.ends_with(ending));
    (!useless && title.chars().any(char::is_alphabetic)).then(|| title.to_owned())
}

/// Whether the characters are mostly ones that fonts use for their own purposes.
fn is_garbled(text: &str) -> bool {
    let (mut odd, mut all) = (0usize, 0usize);
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        all += 1;
        odd += usize::from(c == '\u{fffd}' || ('\u{e000}'..='\u{f8ff}').contains(&c));
    }
    odd * 10 > all * 3
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lopdf::dictionary;

    use super::*;
    use crate::formats::tests::{kinds, limits};

    /// A small PDF with these operations on its pages.
    fn pdf(pages: &[&str]) -> Vec<u8> {
        let mut document = Document::with_version("1.5");
        let tree = document.new_object_id();
        let font = document.add_object(dictionary! {
            "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica", "Encoding" => "WinAnsiEncoding",
        });
        let resources = document.add_object(dictionary! {
            "Font" => dictionary! { "F1" => font },
        });
        let kids: Vec<Object> = pages
            .iter()
            .map(|operations| {
                let stream = lopdf::Stream::new(dictionary! {}, operations.as_bytes().to_vec());
                let content = document.add_object(stream);
                let page = dictionary! { "Type" => "Page", "Parent" => tree, "Contents" => content };
                document.add_object(page).into()
            })
            .collect();
        let count = i64::try_from(kids.len()).unwrap();
        let pages = dictionary! {
            "Type" => "Pages", "Kids" => kids, "Count" => count, "Resources" => resources,
            "MediaBox" => vec![0.into(), 0.into(), 595.into(), 842.into()],
        };
        document.objects.insert(tree, Object::Dictionary(pages));
        let catalog = document.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
        document.trailer.set("Root", catalog);
        let mut bytes = Vec::new();
        document.save_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn lines_become_paragraphs_and_large_type_headings() {
        let operations = "BT /F1 20 Tf 72 700 Td (Rivers) Tj ET \
            BT /F1 10 Tf 72 660 Td (The Rhine flows north through many towns and it car-) Tj \
            0 -12 Td (ries ships. It is long and wide and has been so for) Tj 0 -12 Td (ages.) Tj \
            0 -40 Td (The Danube flows east.) Tj ET";
        let document = extract(&pdf(&[operations]), &limits()).unwrap();
        assert_eq!(
            kinds(&document),
            [
                ("heading", "Rivers"),
                (
                    "paragraph",
                    "The Rhine flows north through many towns and it carries ships. It is long and wide and has been \
                     so for ages."
                ),
                ("paragraph", "The Danube flows east."),
            ]
        );
    }

    #[test]
    fn a_damaged_page_costs_that_page_only() {
        let good = "BT /F1 10 Tf 72 700 Td (Whole page.) Tj ET";
        let bad = "BT /Missing 10 Tf (Lost.) Tj 1 2 cm";
        let document = extract(&pdf(&[good, bad]), &limits()).unwrap();
        assert_eq!(document.text, "Whole page.");
        assert!(document.warning.unwrap().starts_with("1 of 2 pages"));
    }

    #[test]
    fn pages_without_text_too_many_pages_and_garbage_are_told_apart() {
        let empty = extract(&pdf(&["0 0 m 10 10 l S"]), &limits()).unwrap();
        assert_eq!(empty.text, "");
        let few = Limits { max_pages: 1, ..limits() };
        assert_eq!(extract(&pdf(&["", ""]), &few).unwrap_err().class(), "too-many-pages");
        assert_eq!(extract(b"%PDF-1.4 and then nothing of the kind", &limits()).unwrap_err().class(), "broken");
    }
}
