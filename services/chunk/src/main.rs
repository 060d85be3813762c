//! Splits documents into chunks that fit the embedding model.
fn main() {}
