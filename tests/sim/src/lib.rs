//! Deterministic simulation of a whole fleet.
