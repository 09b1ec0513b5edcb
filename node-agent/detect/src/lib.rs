//! What a host can do, with the evidence.
