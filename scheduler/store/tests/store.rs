//! What every store must do, what SQLite must do besides, and the stored format.

#[path = "store/conformance.rs"]
mod conformance;
#[path = "store/format.rs"]
mod format;
#[path = "store/rows.rs"]
mod rows;
#[path = "store/samples.rs"]
mod samples;
#[path = "store/sqlite.rs"]
mod sqlite;
