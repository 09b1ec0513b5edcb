//! What each command does.

mod job;
mod local;
mod node;
mod pages;
mod pool;
mod runner;
mod share;
mod troubles;

use longshore_client::{Builder, Client};

use crate::args::{Cli, Command, Global};
use crate::exit::Failure;

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
    }
}

fn client(global: &Global) -> Result<Client, Failure> {
    Ok(builder(global).build()?)
}

fn builder(global: &Global) -> Builder {
    Builder::new(&global.scheduler)
        .timeout(global.timeout)
        .connect_timeout(global.timeout)
}

/// A client of the fleet that this process started.
fn client_at(global: &Global, api: &str) -> Result<Client, Failure> {
    Ok(builder(&Global {
        scheduler: format!("http://{api}"),
        ..global.clone()
    })
    .build()?)
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
