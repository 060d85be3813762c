//! Numbers that begin on a line of the cache: a vector that lies across two lines costs two loads.

/// Bytes of a line.
const LINE: usize = 64;

/// Numbers that begin on a line of the cache. It grows when asked to, and never shrinks.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    room: Vec<f32>,
    from: usize,
}

impl Aligned {
    pub fn zeroed(count: usize) -> Self {
        let mut numbers = Self::default();
        numbers.first(count);
        numbers
    }

    /// The first so many numbers; what they hold is whatever was written there last.
    pub fn first(&mut self, count: usize) -> &mut [f32] {
        if self.room.len() < self.from + count {
            self.room = vec![0.0; count + LINE / size_of::<f32>()];
            // At most a line less one number; more only where the place can't be known, which costs speed alone.
            self.from = self.room.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        }
        self.room.get_mut(self.from..self.from + count).unwrap_or(&mut [])
    }

    /// All of them.
    pub fn all(&self) -> &[f32] {
        self.room.get(self.from..).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_on_a_line_and_keep_their_place() {
        let mut numbers = Aligned::zeroed(1000);
        for count in [1000, 7, 0, 999, 5000] {
            let first = numbers.first(count);
            assert_eq!(first.len(), count);
            assert_eq!(first.as_ptr().align_offset(LINE), 0);
        }
        let at = numbers.first(1).as_ptr();
        assert_eq!(numbers.first(5000).as_ptr(), at, "it grew without need");
        assert!(numbers.all().len() >= 5000);
    }
}
