//! The Longshore scheduler.
