//! Scores answers: citation validity and groundedness.
fn main() {}
