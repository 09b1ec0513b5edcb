//! What GitHub publishes and what the simulator does, through the production crate.

mod budget;
mod calls;
mod published;
mod receiver;
mod recovery;
mod scopes;
mod simulator;
mod variants;
mod world;
