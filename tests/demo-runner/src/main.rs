//! Stand-in for GitHub's runner program.
fn main() {}
