//! Behaviour of the core, each test named after what it shows.

mod jobs;
mod lifecycle;
mod oracle;
mod random;
mod world;
