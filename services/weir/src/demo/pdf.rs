//! A small writer of PDF 1.4: pages of text in Helvetica. Not for typesetting.

use std::fmt::Write as _;

/// Characters on a line, at 11 points of Helvetica on A4 with margins of 20 mm.
const LINE: usize = 84;
const LINES_ON_A_PAGE: usize = 46;
const OBJECTS_BEFORE_PAGES: usize = 4;

/// A document with this title and these paragraphs; one that begins with `# ` is a heading.
#[must_use]
pub fn document(title: &str, paragraphs: &[&str]) -> Vec<u8> {
    let pages = pages(title, paragraphs);
    let kids: Vec<_> = (0..pages.len()).map(|page| format!("{} 0 R", OBJECTS_BEFORE_PAGES + 1 + 2 * page)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Kids [{}] /Count {} >>", kids.join(" "), pages.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
        format!("<< /Title ({}) /Producer (weir demo) >>", escape(title)),
    ];
    for (number, content) in pages.into_iter().enumerate() {
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> \
             /Contents {} 0 R >>",
            OBJECTS_BEFORE_PAGES + 2 + 2 * number
        ));
        objects.push(format!("<< /Length {} >>\nstream\n{content}endstream", content.len()));
    }
    file(&objects, "/Info 4 0 R")
}

/// A document that says it is encrypted with a password nobody has: what it contains can't be read.
#[must_use]
pub fn locked(title: &str) -> Vec<u8> {
    let unreadable = "8f3ab2c4d5e60718293a4b5c6d7e8f90".repeat(2);
    let content = format!("{unreadable}\n");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [5 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
        format!("<< /Title ({}) >>", escape(title)),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> \
         /Contents 6 0 R >>"
            .to_owned(),
        format!("<< /Length {} >>\nstream\n{content}endstream", content.len()),
        // The standard security handler, 128 bits: 32 bytes each of what would check the owner's and user's passwords.
        format!("<< /Filter /Standard /V 2 /R 3 /Length 128 /P -3904 /O <{unreadable}> /U <{unreadable}> >>"),
    ];
    let id = "0123456789abcdef0123456789abcdef";
    file(&objects, &format!("/Encrypt 7 0 R /ID [<{id}> <{id}>]"))
}

/// Header, objects, table of their offsets, trailer.
fn file(objects: &[String], trailer: &str) -> Vec<u8> {
    let mut out = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n".to_vec();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (number, object) in objects.iter().enumerate() {
        // Writing to a String can't fail.
        let _ = writeln!(table, "{:010} 00000 n ", out.len());
        out.extend_from_slice(format!("{} 0 obj\n{object}\nendobj\n", number + 1).as_bytes());
    }
    let start = out.len();
    out.extend_from_slice(table.as_bytes());
    let end = format!("trailer\n<< /Size {} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    out.extend_from_slice(end.as_bytes());
    out
}

/// What is drawn on each page.
fn pages(title: &str, paragraphs: &[&str]) -> Vec<String> {
    let mut lines = vec![(16, title.to_owned()), (11, String::new())];
    for paragraph in paragraphs {
        let (size, text) = paragraph.strip_prefix("# ").map_or((11, *paragraph), |heading| (14, heading));
        lines.extend(wrap(text).into_iter().map(|line| (size, line)));
        lines.push((11, String::new()));
    }
    lines.chunks(LINES_ON_A_PAGE).map(page).collect()
}

fn page(lines: &[(u32, String)]) -> String {
    let mut content = String::from("BT\n16 TL\n57 785 Td\n");
    for (size, line) in lines {
        // Writing to a String can't fail.
        let _ = writeln!(content, "/F1 {size} Tf ({}) Tj T*", escape(line));
    }
    content.push_str("ET\n");
    content
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= LINE => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// ASCII only; what is outside becomes a question mark, parentheses and backslashes are escaped.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '(' | ')' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii() && !c.is_control() => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every offset of the table points at the object it names.
    fn check_table(pdf: &[u8]) {
        // One character a byte, so that offsets agree.
        let text: String = pdf.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect();
        let start: usize = text.rsplit("startxref\n").next().unwrap().lines().next().unwrap().parse().unwrap();
        let mut lines = text.split_at(start).1.lines().skip(1);
        let count: usize = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        for (number, line) in lines.take(count).enumerate().skip(1) {
            let offset: usize = line.split(' ').next().unwrap().parse().unwrap();
            assert!(text.split_at(offset).1.starts_with(&format!("{number} 0 obj\n")), "object {number}");
        }
    }

    #[test]
    fn the_table_of_objects_is_right() {
        check_table(&document("A title (with parentheses)", &["# One", &"word ".repeat(3_000)]));
        check_table(&locked("Secret"));
    }

    #[test]
    fn long_text_takes_several_pages() {
        let pdf = document("T", &[&"word ".repeat(3_000)]);
        let text = String::from_utf8_lossy(&pdf).into_owned();
        assert!(text.matches("/Type /Page ").count() > 3);
    }
}
