//! Writes vectors to Qdrant and moves each document's head.
fn main() {}
