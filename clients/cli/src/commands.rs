//! What each command does.

mod audit;
mod job;
mod local;
mod node;
mod pages;
mod pool;
mod runner;
mod share;
mod token;
mod troubles;

use std::path::PathBuf;

use longshore_client::{Builder, Client};

use crate::args::{Cli, Command, Global};
use crate::exit::Failure;
use crate::shapes::outcome::Places;

pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Up(args) => local::up(global, *args).await,
        Command::Down(args) => local::down(global, args).await,
        Command::Runner(args) => runner::run(global, args).await,
        Command::Node(args) => node::run(global, args).await,
        Command::Job(args) => job::run(global, args).await,
        Command::Explain(args) => job::explain(global, args).await,
        Command::Pool(args) => pool::run(global, args).await,
        Command::Share(args) => share::run(global, args).await,
        Command::Token(args) => token::run(global, args).await,
        Command::Audit(args) => audit::run(global, args).await,
        Command::Whoami => token::who_am_i(global).await,
    }
}

fn client(global: &Global) -> Result<Client, Failure> {
    Ok(builder(global)?.build()?)
}

fn builder(global: &Global) -> Result<Builder, Failure> {
    let mut builder = Builder::new(&global.scheduler)
        .program(concat!("longshore-cli/", env!("CARGO_PKG_VERSION")))
        .timeout(global.timeout)
        .connect_timeout(global.timeout);
    if let Some(token) = crate::token::find(global)? {
        builder = builder.token(token);
    }
    if let Some(file) = &global.ca_file {
        let pem = std::fs::read_to_string(file).map_err(|e| {
            Failure::usage(
                format!("read the authority {}: {e}", file.display()),
                "name the scheduler's ca.pem with --ca-file",
            )
        })?;
        builder = builder.ca(pem);
    }
    Ok(builder)
}

/// A client of the fleet that this process started.
fn client_at(global: &Global, places: &Places) -> Result<Client, Failure> {
    let token_file = places.token_file.as_ref().map(PathBuf::from);
    client(&Global {
        scheduler: format!("http://{}", places.api),
        token_file: token_file.or_else(|| global.token_file.clone()),
        ..global.clone()
    })
}

/// Names this invocation, so that a repeated delivery of it changes nothing twice.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// An answer without its subject is a fault of the scheduler.
fn required<T>(part: Option<T>, what: &str) -> Result<T, Failure> {
    part.ok_or_else(|| {
        Failure::failed(
            format!("the scheduler answered without the {what}"),
            "check that scheduler and CLI have the same version",
        )
    })
}
