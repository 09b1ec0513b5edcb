//! The container engine behind the Longshore agent.
