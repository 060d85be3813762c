//! The test model: no weights, no arithmetic to speak of, the same vectors everywhere.

/// Components of its vectors.
pub(crate) const DIMENSION: usize = 32;
/// Words that count, as for the real model.
const MAX_WORDS: usize = 256;

/// A text as the sum of its words, each a direction and a sign drawn from its hash; unit length. Texts that share
/// words are near each other, which is enough to test what is around a model.
pub(crate) fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0f32; DIMENSION];
    for word in text.split_ascii_whitespace().take(MAX_WORDS) {
        let hash = fnv1a(word.as_bytes());
        let place = usize::try_from(hash % DIMENSION as u64).unwrap_or(0);
        if let Some(component) = vector.get_mut(place) {
            *component += if hash >> 63 == 0 { 1.0 } else { -1.0 };
        }
    }
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    } else if let Some(first) = vector.first_mut() {
        *first = 1.0;
    }
    vector
}

/// FNV-1a, 64 bits, of the bytes in lower case.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_unit_length_and_near_texts_are_near() {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (a, b, c) = (embed("the quick brown fox"), embed("The quick red fox"), embed("stock markets fell"));
        assert!((dot(&a, &a) - 1.0).abs() < 1e-6);
        assert!(dot(&a, &b) > dot(&a, &c));
        assert!((dot(&embed(""), &embed(" ")) - 1.0).abs() < 1e-6);
    }
}
