//! Longshore's .proto files and their Rust bindings.
