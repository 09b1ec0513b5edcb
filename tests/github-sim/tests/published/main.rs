//! The simulator against what GitHub publishes: OpenAPI, webhook schemas, examples.

mod examples;
mod schema;
mod tour;
mod webhooks;
