//! Direction of dependencies, as a test.
