//! The engine's event stream: who died, and whether the engine is there.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_core::runtime::{Notice, RuntimeError};
use bollard::Docker;
use bollard::models::EventMessageTypeEnum;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tracing::{info, warn};

use crate::engine::quick;
use crate::outage::now_ms;
use crate::runtime::{Inner, lock};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the engine may take to tell what it did.
const HISTORY: Duration = Duration::from_secs(5);

/// An engine that hangs ends no stream and tells nothing: it is asked this often.
const PULSE: Duration = Duration::from_secs(10);

/// Whether it answers, a while from now: to be there, and from what it knows of containers.
/// One that does is rid of what it made while nobody waited for it.
async fn pulse(inner: Weak<Inner>, docker: Docker) -> Result<(), RuntimeError> {
    tokio::time::sleep(PULSE).await;
    let Some(strong) = inner.upgrade() else {
        return Ok(());
    };
    quick("asking the engine whether it is there", docker.ping()).await?;
    strong.own_containers(&docker).await?;
    strong.try_to_settle(&docker).await;
    Ok(())
}

/// Follows events until the runtime is dropped.
pub(crate) async fn follow(inner: Weak<Inner>) {
    let mut pause = FIRST_PAUSE;
    let mut told_down = false;
    let mut first = true;
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let Some(docker) = strong.docker() else {
            return;
        };
        // Asked for from before the look below, so that no death falls between.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        match strong.resync(&docker).await {
            Ok(()) => {
                lock(&strong.outage).ends(now_ms());
                pause = FIRST_PAUSE;
                // The stream ends when the engine does; one that was quickly back was never
                // seen to be away, and is another one all the same.
                if told_down || !first {
                    told_down = false;
                    strong.try_to_settle(&docker).await;
                    strong.tell_of_engine(None).await;
                }
                first = false;
            }
            Err(error) => {
                if !told_down {
                    told_down = true;
                    lock(&strong.outage).begins(now_ms());
                    strong.tell_of_engine(Some(error)).await;
                }
                drop(strong);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        }
        drop(strong);
        // Images have other labels, so all containers are listened to; who is not known here
        // is nobody's. Podman filters by its own words, and tells Docker's.
        let events = [
            "die", "died", "delete", "remove", "untag", "tag", "pull", "load", "import",
        ];
        let filters = HashMap::from([
            ("type", ["container", "image"].map(str::to_owned).to_vec()),
            ("event", events.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptionsBuilder::new()
            .since(&since.to_string())
            .filters(&filters)
            .build();
        let mut events = std::pin::pin!(docker.events(Some(options)));
        let mut asked = Box::pin(pulse(inner.clone(), docker.clone()));
        loop {
            let event = tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => event,
                    _ => break,
                },
                answer = &mut asked => {
                    asked = Box::pin(pulse(inner.clone(), docker.clone()));
                    let Some(strong) = inner.upgrade() else {
                        return;
                    };
                    // It ended nothing by not answering: there was no outage that ended jobs.
                    let hangs = answer.is_err();
                    if hangs != std::mem::replace(&mut told_down, hangs) {
                        strong.tell_of_engine(answer.err()).await;
                    }
                    continue;
                }
            };
            let Some(strong) = inner.upgrade() else {
                return;
            };
            if event.typ == Some(EventMessageTypeEnum::IMAGE) {
                strong.images.doubt();
                strong.standby.images_changed();
                continue;
            }
            let died = matches!(event.action.as_deref(), Some("die" | "died"));
            if let Some(id) = event.actor.and_then(|actor| actor.id).filter(|_| died) {
                strong.died(&id).await;
            }
        }
        // An engine that is back before it could be missed has restarted all the same.
        match inner.upgrade() {
            Some(strong) => {
                lock(&strong.outage).begins(now_ms());
                // Their input went through the engine's process.
                strong.standby.lose_all();
            }
            None => return,
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

impl Inner {
    async fn try_to_settle(&self, docker: &Docker) {
        if let Err(error) = self.settle(docker).await {
            warn!(%error, "what the engine made unasked is still there");
        }
    }

    async fn tell_of_engine(&self, problem: Option<RuntimeError>) {
        match &problem {
            Some(error) => warn!(%error, "the engine does not answer"),
            None => {
                self.standby.engine_is_back();
                info!("the engine answers again");
            }
        }
        let problem = problem.map(|error| error.detail);
        self.tell(Notice::Engine { problem }).await;
    }
}

/// Whether the engine sent this container a signal since then. What it cannot say it did not do.
pub(crate) async fn was_signalled(docker: &Docker, container: &str, since_ms: u64) -> bool {
    let filters = HashMap::from([
        ("event", vec!["kill".to_owned()]),
        ("container", vec![container.to_owned()]),
    ]);
    // Its history is told up to a moment that has passed, or else the call would go on.
    let options = EventsOptionsBuilder::new()
        .since(&(since_ms / 1_000).to_string())
        .until(&(now_ms() / 1_000 + 1).to_string())
        .filters(&filters)
        .build();
    let mut events = std::pin::pin!(docker.events(Some(options)));
    let first = tokio::time::timeout(HISTORY, events.next()).await;
    matches!(first, Ok(Some(Ok(_))))
}
