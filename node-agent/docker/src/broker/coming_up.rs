//! Waits for a job's containers to come up, and for what they say when they do not.

use std::collections::HashMap;
use std::time::Duration;

use agent_core::runtime::RuntimeError;
use bollard::models::{Health, HealthStatusEnum};
use bollard::query_parameters::{EventsOptionsBuilder, LogsOptionsBuilder};
use futures_util::StreamExt;

use super::desk::Desk;
use crate::engine::{failed, refused};
use crate::outage::now_ms;
use crate::recover::inspect;

/// How long services may take to say that they are ready.
const READY: Duration = Duration::from_secs(300);
/// Of what its health check said, for the job's log.
const CHECK_WORDS: usize = 1_024;
/// Lines of a service that did not come up, for the job's log.
const LAST_WORDS: &str = "20";

impl Desk {
    /// Waits until it runs, and is healthy where it can tell. The engine says when that
    /// changes.
    pub(super) async fn up(&self, what: &str, id: &str) -> Result<(), RuntimeError> {
        let came = tokio::time::timeout(READY, self.follow_until_up(what, id)).await;
        came.unwrap_or_else(|_| {
            let within = READY.as_secs();
            Err(refused(format!("{what} was not healthy within {within} s")))
        })
    }

    async fn follow_until_up(&self, what: &str, id: &str) -> Result<(), RuntimeError> {
        let filters = HashMap::from([
            ("container", vec![id.to_owned()]),
            (
                "event",
                ["health_status", "die"].map(str::to_owned).to_vec(),
            ),
        ]);
        // From before the first look, so that no change falls between.
        let options = EventsOptionsBuilder::new()
            .since(&(now_ms() / 1_000).to_string())
            .filters(&filters)
            .build();
        let mut changes = std::pin::pin!(self.docker.events(Some(options)));
        loop {
            let told = inspect(&self.docker, id).await?.unwrap_or_default();
            let state = told.state.clone().unwrap_or_default();
            if state.running != Some(true) {
                let words = self.last_words(id).await;
                let code = state.exit_code.unwrap_or(-1);
                return Err(refused(format!(
                    "{what} ended with code {code} (containers of a job run as uid 1001 without capabilities)\n{words}"
                )));
            }
            let health = state.health.unwrap_or_default();
            match health.status {
                None
                | Some(
                    HealthStatusEnum::EMPTY | HealthStatusEnum::NONE | HealthStatusEnum::HEALTHY,
                ) => return Ok(()),
                Some(HealthStatusEnum::UNHEALTHY) => {
                    let words = self.last_words(id).await;
                    let check = last_check(health);
                    return Err(refused(format!("{what} is unhealthy{check}\n{words}")));
                }
                Some(HealthStatusEnum::STARTING) => {}
            }
            match changes.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    return Err(failed(&format!("waiting for {what}"), &error));
                }
                None => {
                    let why = format!("waiting for {what}: the engine stopped telling");
                    return Err(refused(why));
                }
            }
        }
    }

    async fn last_words(&self, id: &str) -> String {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail(LAST_WORDS)
            .build();
        let read = async {
            let mut output = std::pin::pin!(self.docker.logs(id, Some(options)));
            let mut text = Vec::new();
            while let Some(Ok(piece)) = output.next().await {
                text.extend_from_slice(&piece.into_bytes());
                text.truncate(16 << 10);
            }
            text
        };
        let text = tokio::time::timeout(Duration::from_secs(5), read).await;
        String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
    }
}

/// What the last health check came to, when the engine kept it.
fn last_check(health: Health) -> String {
    let Some(last) = health.log.and_then(|mut log| log.pop()) else {
        return String::new();
    };
    let code = last.exit_code.unwrap_or(-1);
    let said = last.output.unwrap_or_default();
    let said: String = said.trim().chars().take(CHECK_WORDS).collect();
    match said.is_empty() {
        true => format!(": its last health check ended with code {code}"),
        false => format!(": its last health check ended with code {code} and said: {said}"),
    }
}
