//! The pure lifecycle and sandbox rules of the Longshore node agent.
