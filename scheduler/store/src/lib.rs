//! What the scheduler writes to disk.
