//! The pure state machine of the Longshore scheduler.
