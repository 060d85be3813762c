//! Citation markers: `[3]`, or several at once: `[1, 3]`.

use std::ops::Range;

/// A marker as it stands in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Where, in bytes, brackets included.
    pub at: Range<usize>,
    /// What it cites; at least one.
    pub numbers: Vec<i32>,
}

/// The markers of a text, in order.
#[must_use]
pub fn markers(text: &str) -> Vec<Marker> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some((start, inner, end)) = bracketed(text, from) {
        match numbers(inner) {
            Some(numbers) => {
                found.push(Marker { at: start..end, numbers });
                from = end;
            }
            // The bracket that was opened last may be a marker: [see [1]].
            None => from = start + 1,
        }
    }
    found
}

/// The next `[…]` at or after `from`: start, what is between, end.
fn bracketed(text: &str, from: usize) -> Option<(usize, &str, usize)> {
    let start = from + text.get(from..)?.find('[')?;
    let length = text.get(start..)?.find(']')?;
    Some((start, text.get(start + 1..start + length)?, start + length + 1))
}

fn numbers(inner: &str) -> Option<Vec<i32>> {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    inner.split(',').map(str::trim).map(|part| if digits(part) { part.parse().ok() } else { None }).collect()
}

/// The text with spaces in place of its markers: every other byte stays where it was.
#[must_use]
pub fn without_markers(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut from = 0;
    for Marker { at, .. } in markers(text) {
        clean.push_str(text.get(from..at.start).unwrap_or_default());
        clean.extend(std::iter::repeat_n(' ', at.len()));
        from = at.end;
    }
    clean.push_str(text.get(from..).unwrap_or_default());
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers_in(text: &str) -> Vec<Vec<i32>> {
        markers(text).into_iter().map(|marker| marker.numbers).collect()
    }

    #[test]
    fn only_numbers_in_brackets_are_markers() {
        assert_eq!(numbers_in("One [1], two[2][3]. Both [1, 3]."), [vec![1], vec![2], vec![3], vec![1, 3]]);
        assert_eq!(numbers_in("[a] [] [1a] [-1] [1.5] [note [4]] [9"), [vec![4]]);
        assert!(numbers_in("[99999999999]").is_empty());
    }

    #[test]
    fn taking_markers_out_moves_nothing() {
        let text = "é [1] b[2,3]";
        assert_eq!(without_markers(text), "é     b     ");
        assert_eq!(without_markers(text).len(), text.len());
    }
}
