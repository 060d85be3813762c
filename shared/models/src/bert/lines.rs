//! Lines of the cache, as products of numbers that are shorter than single precision read them.

/// Words of a line.
pub(super) const WORDS: usize = 16;

/// A line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; WORDS]);

/// Lines, kept from one use to the next. They never get fewer.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// All of them.
    pub fn all(&self) -> &[Line] {
        &self.0
    }

    /// The first so many; what they hold is whatever was written there last.
    pub fn first(&mut self, count: usize) -> &mut [Line] {
        if self.0.len() < count {
            self.0.resize(count, Line::default());
        }
        self.0.get_mut(..count).unwrap_or(&mut [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_on_a_line() {
        let mut lines = Lines::default();
        for count in [3, 100, 7] {
            assert_eq!(lines.first(count).len(), count);
            assert_eq!(lines.first(count).as_ptr().align_offset(64), 0);
        }
    }
}
