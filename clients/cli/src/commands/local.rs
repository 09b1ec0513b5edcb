//! `longshore up` and `longshore down`.

use std::io::Write;

use crate::args::Global;
use crate::args::local::{Down, Up};
use crate::commands::{client_at, troubles};
use crate::exit::Failure;
use crate::local::{self, Plan, Signals};
use crate::output::Out;
use crate::shapes::outcome::Done;

pub(super) async fn up(global: &Global, args: Up) -> Result<(), Failure> {
    let plan = Plan::new(global, &args.local, &args.scaling)?;
    let signals = Signals::new(args.detached)?;
    if args.detached {
        return detached(&plan, signals).await;
    }
    let mut out = Out::new(global.output);
    local::run(&plan, signals, async |places| {
        out.object(places)?;
        troubles::say(&client_at(global, places)?, &mut out).await?;
        out.say("Ctrl-C stops it; jobs that run then go on in their containers.")
    })
    .await
}

/// The child of `runner start --background`: one JSON line on stdout says that
/// it runs or why it does not.
async fn detached(plan: &Plan, signals: Signals) -> Result<(), Failure> {
    let result = local::run(plan, signals, async |places| {
        let line = serde_json::to_string(places).map_err(std::io::Error::from)?;
        writeln!(std::io::stdout(), "{line}")?;
        Ok(())
    })
    .await;
    if let Err(failure) = &result {
        local::report_failure(failure);
    }
    result
}

pub(super) async fn down(global: &Global, args: Down) -> Result<(), Failure> {
    let state = local::state_dir(args.state_dir.as_deref())?;
    let pid = local::stop(&state).await?;
    Out::new(global.output).object(&Done {
        kind: "process",
        name: pid.to_string(),
        done: "stopped; jobs that run go on in their containers",
    })
}
