//! A small server that speaks the part of Qdrant's gRPC that Weir uses, over Qdrant's own engine.
fn main() {}
