//! Behaviour of the core, each test named after what it shows.

mod jobs;
mod lifecycle;
mod nodes;
mod oracle;
mod random;
mod settings;
mod world;
