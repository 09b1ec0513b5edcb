//! `longshore runner start`: scaling on, and the processes if there are none.

use longshore_client::{Client, Error};
use longshore_proto::v1;

use crate::args::Global;
use crate::args::runner::{Scaling, Start};
use crate::commands::{builder, client_at, request_id, troubles};
use crate::exit::Failure;
use crate::local::{self, Plan};
use crate::output::Out;
use crate::shapes::outcome::Started;
use crate::units::proto_duration;

pub(super) async fn run(global: &Global, args: Start) -> Result<(), Failure> {
    let client = builder(global)?.attempts(1).build()?;
    let answers = client.get_status(v1::GetStatusRequest {}).await;
    let mut out = Out::new(global.output);
    match answers {
        Ok(_) => out.object(&scaling_on(&client, &args.scaling, args.dry_run).await?),
        // A dry run starts nothing, so there is nobody to ask.
        Err(Error::Unreachable { refused: true, .. })
            if !args.dry_run && local::is_loopback(&global.scheduler) =>
        {
            let plan = Plan::new(global, &args.local, &args.scaling)?;
            if args.background {
                in_background(global, &plan, &args.scaling, &mut out).await
            } else {
                in_foreground(global, &plan, &args.scaling, &mut out).await
            }
        }
        Err(e) => Err(e.into()),
    }
}

async fn in_foreground(
    global: &Global,
    plan: &Plan,
    scaling: &Scaling,
    out: &mut Out,
) -> Result<(), Failure> {
    let signals = local::Signals::new(false)?;
    local::run(plan, signals, async |places| {
        let client = client_at(global, places)?;
        scaling_on(&client, scaling, false).await?;
        out.object(places)?;
        troubles::say(&client, out).await?;
        out.say("Ctrl-C stops it; jobs that run then go on in their containers.")
    })
    .await
}

async fn in_background(
    global: &Global,
    plan: &Plan,
    scaling: &Scaling,
    out: &mut Out,
) -> Result<(), Failure> {
    let places = local::start_in_background(plan).await?;
    let client = client_at(global, &places)?;
    if let Err(failure) = scaling_on(&client, scaling, false).await {
        // Half a start would be worse than none.
        local::stop(&plan.state).await?;
        return Err(failure);
    }
    out.object(&places)?;
    troubles::say(&client, out).await?;
    out.say("`longshore runner stop` turns scaling off, `longshore down` stops the processes.")
}

async fn scaling_on(
    client: &Client,
    scaling: &Scaling,
    validate_only: bool,
) -> Result<Started, Failure> {
    let request = v1::StartAutoscalerRequest {
        settings: Some(v1::AutoscalerSettings {
            owners: scaling.owners.clone(),
            poll_interval: scaling
                .interval
                .map(|s| proto_duration(std::time::Duration::from_secs(s))),
            max_runners: scaling.max_runners.unwrap_or(0),
            image: scaling.image.clone().unwrap_or_default(),
            since_days: scaling.since_days.unwrap_or(0),
        }),
        request_id: request_id(),
        validate_only,
    };
    let answer = client.start_autoscaler(request).await?;
    Ok(Started {
        running: !validate_only || answer.was_running,
        was_running: answer.was_running,
        dry_run: validate_only,
        settings: answer.settings.unwrap_or_default().into(),
    })
}
