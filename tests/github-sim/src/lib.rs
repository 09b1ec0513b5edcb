//! A simulated GitHub for Longshore's tests and demo.
