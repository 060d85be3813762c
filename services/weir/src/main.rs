//! The command line of Weir.
fn main() {}
