//! Bytes to text, whatever the encoding.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::ebcdic;

/// Text in any encoding; none when the bytes are not plausible as text in one. `label` is the encoding that
/// somebody said it is: it is believed only if the bytes fit.
pub(crate) fn decode(bytes: &[u8], label: Option<&str>) -> Option<String> {
    if let Some(text) = marked(bytes) {
        return plausible(text);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains('\u{1b}')
    {
        return plausible(text.to_owned());
    }
    let label = label.map(str::trim).filter(|label| !label.is_empty());
    if let Some(text) = label.and_then(|label| labelled(bytes, label)).and_then(plausible) {
        return Some(text);
    }
    if let Some(text) = unmarked_utf16(bytes).and_then(plausible) {
        return Some(text);
    }
    if let Some(page) = ebcdic::looks_like(bytes) {
        return plausible(ebcdic::decode(bytes, page));
    }
    if let Some(text) = nearly_utf8(bytes) {
        return plausible(text);
    }
    // A NUL in anything else means binary, whatever a detector makes of the rest.
    if bytes.contains(&0) || controls_in(bytes) * 50 > bytes.len() {
        return None;
    }
    plausible(detected(bytes))
}

/// With a byte order mark.
fn marked(bytes: &[u8]) -> Option<String> {
    if let Some(rest) = bytes.strip_prefix(&[0xff, 0xfe, 0, 0]) {
        return utf32(rest, u32::from_le_bytes);
    }
    if let Some(rest) = bytes.strip_prefix(&[0, 0, 0xfe, 0xff]) {
        return utf32(rest, u32::from_be_bytes);
    }
    let (encoding, mark) = Encoding::for_bom(bytes)?;
    let (text, _) = encoding.decode_without_bom_handling(bytes.get(mark..)?);
    Some(text.into_owned())
}

fn utf32(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Option<String> {
    bytes
        .chunks_exact(4)
        .map(|four| <[u8; 4]>::try_from(four).ok().and_then(|four| char::from_u32(read(four))))
        .collect()
}

/// UTF-8 with a few bytes damaged, such as a file that was cut or joined in the middle of a character.
fn nearly_utf8(bytes: &[u8]) -> Option<String> {
    let (mut whole, mut damaged) = (0usize, 0usize);
    for chunk in bytes.utf8_chunks() {
        whole += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        damaged += usize::from(!chunk.invalid().is_empty());
    }
    (damaged > 0 && whole >= 20 * damaged).then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// In the encoding it is said to be in, if every byte fits.
fn labelled(bytes: &[u8], label: &str) -> Option<String> {
    if let Some(page) = ebcdic::CodePage::for_label(label) {
        return Some(ebcdic::decode(bytes, page));
    }
    let encoding = Encoding::for_label(label.as_bytes())?;
    // Whatever is valid UTF-8 was taken before; single-byte encodings fit any bytes, so binary must not get here.
    if encoding == UTF_8 || controls_in(bytes) * 50 > bytes.len() && !is_utf16(encoding) {
        return None;
    }
    let (text, failed) = encoding.decode_without_bom_handling(bytes);
    (!failed).then(|| text.into_owned())
}

fn is_utf16(encoding: &'static Encoding) -> bool {
    encoding == UTF_16LE || encoding == UTF_16BE
}

/// UTF-16 without a mark: texts with many characters below U+0100 have a zero in every other byte.
fn unmarked_utf16(bytes: &[u8]) -> Option<String> {
    if bytes.len() < 4 || !bytes.len().is_multiple_of(2) {
        return None;
    }
    let sample = bytes.get(..bytes.len().min(16 << 10)).unwrap_or(bytes);
    let zeros = |parity: usize| sample.iter().skip(parity).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd, pairs) = (zeros(0), zeros(1), sample.len() / 2);
    let encoding = if odd * 10 >= pairs * 3 && even * 50 <= pairs {
        UTF_16LE
    } else if even * 10 >= pairs * 3 && odd * 50 <= pairs {
        UTF_16BE
    } else {
        return None;
    };
    let (text, failed) = encoding.decode_without_bom_handling(bytes);
    (!failed).then(|| text.into_owned())
}

/// By what the bytes look like.
fn detected(bytes: &[u8]) -> String {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    let encoding = detector.guess(None, Utf8Detection::Allow);
    encoding.decode_without_bom_handling(bytes).0.into_owned()
}

/// Control characters that no text has.
fn controls_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| matches!(byte, 0..=8 | 0x0e..=0x1a | 0x1c..=0x1f | 0x7f)).count()
}

/// The text, unless it has more replacement or control characters than a text has by accident (2 %).
fn plausible(text: String) -> Option<String> {
    let (mut odd, mut total) = (0usize, 0usize);
    for c in text.chars() {
        total += 1;
        let is_odd = match c {
            '\n' | '\r' | '\t' | '\u{b}' | '\u{c}' | '\u{1b}' | '\u{85}' => false,
            '\u{fffd}' | '\u{fffe}' | '\u{ffff}' => true,
            c => c.is_control() || ('\u{e000}'..='\u{f8ff}').contains(&c),
        };
        odd += usize::from(is_odd);
    }
    (odd * 50 <= total).then_some(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    const RUSSIAN: &str = "Однажды ранним утром мы вышли к реке и долго смотрели, как туман поднимается над водой.";

    #[test]
    fn unicode_in_every_form_is_read() {
        let text = "Größe, 大きさ, размер: 5 € – done";
        let utf16: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = utf16.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = utf16.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let with_mark = |mark: &[u8], bytes: &[u8]| [mark, bytes].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            with_mark(&[0xef, 0xbb, 0xbf], text.as_bytes()),
            with_mark(&[0xff, 0xfe], &little),
            with_mark(&[0xfe, 0xff], &big),
            with_mark(&[0, 0, 0xfe, 0xff], &text.chars().flat_map(|c| (c as u32).to_be_bytes()).collect::<Vec<_>>()),
            little,
            big,
        ] {
            assert_eq!(decode(&bytes, None).as_deref(), Some(text));
        }
    }

    #[test]
    fn old_encodings_are_recognised() {
        for encoding in [encoding_rs::IBM866, encoding_rs::WINDOWS_1251, encoding_rs::KOI8_R] {
            let (bytes, _, _) = encoding.encode(RUSSIAN);
            assert_eq!(decode(&bytes, None).as_deref(), Some(RUSSIAN), "{}", encoding.name());
        }
        let french = "Le café était fermé: « à demain », dit-elle, déçue, et elle s'en alla vers la forêt.";
        let (bytes, _, _) = encoding_rs::WINDOWS_1252.encode(french);
        assert_eq!(decode(&bytes, None).as_deref(), Some(french));
        let japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。";
        for encoding in [encoding_rs::SHIFT_JIS, encoding_rs::EUC_JP, encoding_rs::ISO_2022_JP] {
            let (bytes, _, _) = encoding.encode(japanese);
            assert_eq!(decode(&bytes, None).as_deref(), Some(japanese), "{}", encoding.name());
        }
    }

    #[test]
    fn a_label_decides_what_bytes_alone_do_not() {
        let (bytes, _, _) = encoding_rs::ISO_8859_2.encode("Źródło");
        assert_eq!(decode(&bytes, Some("iso-8859-2")).as_deref(), Some("Źródło"));
        // A label that does not fit is not believed.
        assert_eq!(decode("Größe".as_bytes(), Some("utf-16le")).as_deref(), Some("Größe"));
    }

    #[test]
    fn one_damaged_byte_does_not_spoil_a_text() {
        let mut bytes = RUSSIAN.as_bytes().to_vec();
        bytes.truncate(bytes.len() - 2);
        let text = decode(&bytes, None).unwrap();
        assert!(text.starts_with("Однажды ранним утром"), "{text}");
    }

    #[test]
    fn noise_is_not_text() {
        let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        assert_eq!(decode(&noise, None), None);
        assert_eq!(decode(&noise, Some("latin1")), None);
        assert_eq!(decode(b"abc\0def\0\0\0\x01\x02", None), None);
    }
}
