//! Ids of embedding models, as records carry them: `name@revision/precision`.

/// Precisions whose vectors differ by rounding only: measured on all-MiniLM-L6-v2, the cosine of a text's vectors is at
/// least 0.9998 between any two of them, and rankings agree (see docs/performance.md).
const FLOATS: [&str; 3] = ["f32", "bf16", "f16"];
/// Whole numbers of eight bits.
const INT8: &str = "int8";
/// Models whose rankings were measured to be as good in whole numbers of eight bits, also where questions and documents are
/// embedded in different precisions (see docs/performance.md): what that costs depends on the model.
const GOOD_IN_INT8: [&str; 1] = ["all-MiniLM-L6-v2@c9745ed1"];

/// Whether vectors of two models may be searched together: those of one model at one revision in floating point, whatever
/// its precision, and in whole numbers too where the model is one that [`is_good_in_int8`]. Anything else is comparable to
/// itself only.
#[must_use]
pub fn are_comparable(a: &str, b: &str) -> bool {
    a == b || miscible(a).is_some_and(|model| miscible(b) == Some(model))
}

/// Whether rankings of a model (`name@revision`) are as good in whole numbers of eight bits as in single precision.
#[must_use]
pub fn is_good_in_int8(model: &str) -> bool {
    GOOD_IN_INT8.contains(&model)
}

/// Name and revision of a model in a precision that may be mixed with others.
fn miscible(id: &str) -> Option<&str> {
    let (model, precision) = id.rsplit_once('/')?;
    (FLOATS.contains(&precision) || precision == INT8 && is_good_in_int8(model)).then_some(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_model_is_comparable_in_floating_point_and_in_whole_numbers_where_that_was_measured() {
        assert!(are_comparable("m@1/f32", "m@1/bf16"));
        assert!(are_comparable("m@1/bf16", "m@1/f16"));
        assert!(are_comparable("m@1/int8", "m@1/int8"));
        assert!(are_comparable("anything", "anything"));
        for other in ["m@1/int8", "m@2/f32", "n@1/f32", "m@1", "m@1/", "m@1/F32"] {
            assert!(!are_comparable("m@1/f32", other), "{other}");
        }
        assert!(!are_comparable("a", "b"));
        for other in ["f32", "bf16", "f16"] {
            assert!(are_comparable("all-MiniLM-L6-v2@c9745ed1/int8", &format!("all-MiniLM-L6-v2@c9745ed1/{other}")));
            assert!(!are_comparable("all-MiniLM-L6-v2@c9745ed2/int8", &format!("all-MiniLM-L6-v2@c9745ed2/{other}")));
        }
    }
}
