//! Turns chunks into vectors.
fn main() {}
