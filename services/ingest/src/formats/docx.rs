//! DOCX: Word's Office Open XML.

mod body;
mod numbering;
mod package;
mod styles;
mod xml;

use super::structure::Structure;
use super::{Extracted, Limits, Refusal};
use body::Body;
use numbering::Numbering;
use package::Package;
use styles::Styles;

const WHAT: &str = "Word document";

/// Paragraphs, headings by their style, lists with their numbers, tables, and notes at the end.
pub(crate) fn extract(bytes: &[u8], limits: &Limits) -> Result<Extracted, Refusal> {
    let mut package = Package::open(bytes, *limits)?;
    let main = package.main_part()?;
    let document =
        package.part(&main)?.ok_or_else(|| Refusal::broken(WHAT, "the part that holds its text is missing"))?;
    let styles = match package.beside(&main, "styles.xml")? {
        Some(part) => Styles::read(&part, limits)?,
        None => Styles::default(),
    };
    let numbering = match package.beside(&main, "numbering.xml")? {
        Some(part) => Numbering::read(&part, limits)?,
        None => Numbering::default(),
    };
    let title = match package.part("docProps/core.xml")? {
        Some(part) => xml::text_of_first(&part, "title", limits)?,
        None => None,
    };
    let mut body = Body::new(&styles, numbering, Structure::default());
    body.read(&document, limits)?;
    for notes in [body::Notes::Foot, body::Notes::End] {
        if let Some(part) = package.beside(&main, notes.part())? {
            body.read_notes(&part, notes, limits)?;
        }
    }
    let (structure, titled) = body.finish();
    Ok(structure.finish(title.or(titled)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Cursor, Write as _};

    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::formats::tests::{kinds, limits};

    const STYLES: &str = r#"<w:styles xmlns:w="w"><w:style w:styleId="T1"><w:name w:val="heading 1"/></w:style>
        <w:style w:styleId="T2"><w:name w:val="My"/><w:basedOn w:val="T1"/></w:style></w:styles>"#;
    const NUMBERING: &str = r#"<w:numbering xmlns:w="w"><w:abstractNum w:abstractNumId="5">
        <w:lvl w:ilvl="0"><w:start w:val="3"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
        <w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl>
        </w:abstractNum><w:num w:numId="9"><w:abstractNumId w:val="5"/></w:num></w:numbering>"#;
    const NOTES: &str = r#"<w:footnotes xmlns:w="w"><w:footnote w:id="-1" w:type="separator"><w:p/></w:footnote>
        <w:footnote w:id="2"><w:p><w:r><w:footnoteRef/><w:t>A note.</w:t></w:r></w:p></w:footnote></w:footnotes>"#;

    fn docx(parts: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in parts {
            archive.start_file(*name, SimpleFileOptions::default()).unwrap();
            archive.write_all(content.as_bytes()).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn with_body(body: &str) -> Vec<u8> {
        let document = format!(r#"<w:document xmlns:w="w"><w:body>{body}</w:body></w:document>"#);
        docx(&[
            ("[Content_Types].xml", "<Types/>"),
            ("word/document.xml", &document),
            ("word/styles.xml", STYLES),
            ("word/numbering.xml", NUMBERING),
            ("word/footnotes.xml", NOTES),
        ])
    }

    #[test]
    fn structure_is_read_from_styles_numbers_and_tables() {
        let item = |level: u8, text: &str| {
            format!(
                r#"<w:p><w:pPr><w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="9"/></w:numPr></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"#
            )
        };
        let cell = |text: &str| format!("<w:tc><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc>");
        let body = [
            r#"<w:p><w:pPr><w:pStyle w:val="T2"/><w:tabs><w:tab w:pos="1"/></w:tabs></w:pPr><w:r><w:t>Rivers &amp; seas</w:t></w:r></w:p>"#,
            r#"<w:p><w:r><w:t xml:space="preserve">The Rhine </w:t></w:r><w:r><w:t>flo</w:t><w:softHyphen/><w:t>ws</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:r><w:footnoteReference w:id="2"/></w:r></w:p>"#,
            &item(0, "one"),
            &item(1, "deep"),
            &item(0, "two"),
            &format!("<w:tbl><w:tr>{}{}</w:tr><w:tr>{}{}</w:tr></w:tbl>", cell("a"), cell("b"), cell("c"), cell("d")),
        ]
        .concat();
        let document = extract(&with_body(&body), &limits()).unwrap();
        assert_eq!(
            kinds(&document),
            [
                ("heading", "Rivers & seas"),
                ("paragraph", "The Rhine flows[1]"),
                ("list", "3. one\n  3.a) deep\n4. two"),
                ("table", "a | b\nc | d"),
                ("paragraph", "[1] A note."),
            ]
        );
    }

    #[test]
    fn an_archive_that_unfolds_without_end_is_refused() {
        let bomb = with_body(&" ".repeat(32 << 20));
        assert!(bomb.len() < 100 << 10);
        assert_eq!(extract(&bomb, &limits()).unwrap_err().class(), "expands-too-much");
    }

    #[test]
    fn nesting_without_end_and_broken_xml_are_refused() {
        let deep = with_body(&"<w:sdt>".repeat(5000));
        assert_eq!(extract(&deep, &limits()).unwrap_err().class(), "nested-too-deep");
        let broken = with_body("<w:p><w:r></w:p>");
        assert_eq!(extract(&broken, &limits()).unwrap_err().class(), "broken");
        let cut = with_body("<w:p/>");
        assert_eq!(extract(cut.get(..cut.len() / 2).unwrap(), &limits()).unwrap_err().class(), "broken");
        let other = docx(&[("[Content_Types].xml", "<Types/>"), ("visio/document.xml", "<x/>")]);
        assert_eq!(extract(&other, &limits()).unwrap_err().class(), "broken");
    }
}
