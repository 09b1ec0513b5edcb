//! The Longshore node agent.
