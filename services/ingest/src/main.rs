//! Routes document requests into lanes and extracts their text.
fn main() {}
