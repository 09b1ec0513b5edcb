//! What GitHub publishes and what the simulator does, through the production crate.

mod calls;
mod published;
mod simulator;
mod variants;
mod world;
