//! Results that are too long for a conversation.

/// A text of at most `max` bytes: the whole, or its beginning, cut between two characters, and a line that says how many
/// bytes are missing. Where not even that line fits, only the beginning.
#[must_use]
pub fn truncate(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    // As long as the marker can be: nothing more can be missing than everything.
    let room = marker(text.len()).len();
    let Some(kept) = max.checked_sub(room) else {
        return text.get(..text.floor_char_boundary(max)).unwrap_or_default().to_owned();
    };
    let kept = text.get(..text.floor_char_boundary(kept)).unwrap_or_default();
    format!("{kept}{}", marker(text.len() - kept.len()))
}

fn marker(missing: usize) -> String {
    format!("\n[{missing} more bytes were cut off here]")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_fits_stays_and_what_does_not_says_how_much_is_missing() {
        assert_eq!(truncate("short", 5), "short");
        let cut = truncate(&"x".repeat(1_000), 100);
        let kept = cut.bytes().filter(|byte| *byte == b'x').count();
        assert_eq!(cut, format!("{}\n[{} more bytes were cut off here]", "x".repeat(kept), 1_000 - kept));
        assert!((60..=100).contains(&kept) && cut.len() <= 100);
    }

    proptest! {
        #[test]
        fn it_is_never_longer_and_begins_like_the_text(text in "\\PC{0,300}", max in 0usize..400) {
            let cut = truncate(&text, max);
            prop_assert!(cut.len() <= max);
            let kept = cut.rsplit_once("\n[").map_or(cut.as_str(), |(kept, _)| kept);
            prop_assert!(text.starts_with(kept) || cut == text);
        }
    }
}
