//! The engine's own event stream, recorded to a file while the demo runs and read back by the checker.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use bollard::{Docker, query_parameters::EventsOptions};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

/// One event, as far as the checker looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `container`, `network`, `volume`, `image`.
    pub kind: String,
    /// `create`, `start`, `rename`, `die`, `destroy`, ...
    pub action: String,
    /// Id of the thing.
    pub id: String,
    /// Names, labels, exit codes.
    pub attributes: BTreeMap<String, String>,
    /// Unix time in nanoseconds.
    pub at_ns: i64,
}

/// Records events from `since` (Unix seconds) until the stream ends or the caller drops the future.
pub async fn record(engine: &Docker, since: i64, file: &Path) -> Result<()> {
    let mut out = tokio::fs::File::create(file)
        .await
        .with_context(|| format!("write {}", file.display()))?;
    let options = EventsOptions {
        since: Some(since.to_string()),
        ..Default::default()
    };
    let mut stream = engine.events(Some(options));
    while let Some(message) = stream.next().await {
        let message = message.context("engine event stream")?;
        let actor = message.actor.unwrap_or_default();
        let event = Event {
            kind: message.typ.map(|t| t.to_string()).unwrap_or_default(),
            action: message.action.unwrap_or_default(),
            id: actor.id.unwrap_or_default(),
            attributes: actor.attributes.unwrap_or_default().into_iter().collect(),
            at_ns: message.time_nano.unwrap_or_default(),
        };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        out.write_all(&line).await?;
        out.flush().await?;
    }
    anyhow::bail!("the engine closed its event stream")
}

/// Reads a recording.
pub fn read(file: &Path) -> Result<Vec<Event>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).context("a line of the recording is no event"))
        .collect()
}

/// The life of one container, put together from its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    /// Every name it had, in order, without the engine's leading slash.
    pub names: Vec<String>,
    /// Times it was started.
    pub started: u32,
    /// Its process ended.
    pub died: bool,
    /// It was removed.
    pub destroyed: bool,
    /// Commands run in it from outside.
    pub execs: u32,
    /// Labels and other attributes when it was made.
    pub about: String,
}

/// Containers by id.
pub fn lives(events: &[Event]) -> BTreeMap<String, Life> {
    let mut lives: BTreeMap<String, Life> = BTreeMap::new();
    for event in events.iter().filter(|e| e.kind == "container") {
        let life = lives.entry(event.id.clone()).or_default();
        if let Some(name) = event.attributes.get("name") {
            let name = name.trim_start_matches('/').to_owned();
            if life.names.last() != Some(&name) {
                life.names.push(name);
            }
        }
        match event.action.as_str() {
            "create" => {
                life.about = event
                    .attributes
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect::<Vec<_>>()
                    .join(" ");
            }
            "start" => life.started += 1,
            "die" => life.died = true,
            "destroy" => life.destroyed = true,
            action if action.starts_with("exec_start") => life.execs += 1,
            _ => {}
        }
    }
    lives
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str, name: &str) -> Event {
        Event {
            kind: "container".into(),
            action: action.into(),
            id: "c1".into(),
            attributes: BTreeMap::from([("name".to_owned(), name.to_owned())]),
            at_ns: 0,
        }
    }

    #[test]
    fn a_life_is_put_together_from_its_events() {
        let lives = lives(&[
            event("create", "slot-1"),
            event("start", "slot-1"),
            event("rename", "/ls-f-1"),
            event("exec_start: ps", "ls-f-1"),
            event("die", "ls-f-1"),
            event("destroy", "ls-f-1"),
        ]);
        let life = &lives["c1"];
        assert_eq!(life.names, ["slot-1", "ls-f-1"]);
        assert!(life.died && life.destroyed);
        assert_eq!((life.started, life.execs), (1, 1));
    }
}
