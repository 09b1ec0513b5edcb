//! The Longshore command line.
fn main() {}
