//! What deploy/ ships is tried out by the tests of this package; it has no code of its own.
