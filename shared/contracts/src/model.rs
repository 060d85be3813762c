//! Ids of embedding models, as records carry them: `name@revision/precision`.

/// Precisions whose vectors differ by rounding only: measured on all-MiniLM-L6-v2, the cosine of a text's vectors is at
/// least 0.9998 between any two of them, and rankings agree (see docs/performance.md). In `int8` rankings are as good, but not
/// where questions and documents are embedded in different precisions.
const FLOATS: [&str; 3] = ["f32", "bf16", "f16"];

/// Whether vectors of two models may be searched together: those of one model at one revision, both in floating point,
/// whatever its precision. Anything else is comparable to itself only.
#[must_use]
pub fn are_comparable(a: &str, b: &str) -> bool {
    a == b || floating(a).is_some_and(|model| floating(b) == Some(model))
}

/// Name and revision of a model that computes in floating point.
fn floating(id: &str) -> Option<&str> {
    let (model, precision) = id.rsplit_once('/')?;
    FLOATS.contains(&precision).then_some(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_point_of_the_same_model_is_comparable_and_nothing_else_is() {
        assert!(are_comparable("m@1/f32", "m@1/bf16"));
        assert!(are_comparable("m@1/bf16", "m@1/f16"));
        assert!(are_comparable("m@1/int8", "m@1/int8"));
        assert!(are_comparable("anything", "anything"));
        for other in ["m@1/int8", "m@2/f32", "n@1/f32", "m@1", "m@1/", "m@1/F32"] {
            assert!(!are_comparable("m@1/f32", other), "{other}");
        }
        assert!(!are_comparable("a", "b"));
    }
}
