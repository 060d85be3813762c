//! Answers questions with citations.
fn main() {}
