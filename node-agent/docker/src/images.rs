//! Images: present, pulled, or unavailable with a pause before the next try.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_core::model::{Condition, ErrorReason};
use agent_core::runtime::RuntimeError;
use bollard::Docker;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tracing::{info, warn};

use crate::engine::{bounded, failed, status};

const KNOWN_FOR: Duration = Duration::from_secs(60);
const PULL: Duration = Duration::from_secs(900);
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Pause of the breaker after the first failure; doubles up to the longest.
const BREAK: Duration = Duration::from_secs(30);
const LONGEST_BREAK: Duration = Duration::from_secs(600);
const MAX_REMEMBERED: usize = 256;

/// What is known of one image reference.
#[derive(Clone, Debug)]
enum Known {
    Present {
        id: String,
        at: Instant,
    },
    Broken {
        why: String,
        until: Instant,
        pause: Duration,
    },
}

#[derive(Default)]
pub(crate) struct Images {
    known: Mutex<BTreeMap<String, Known>>,
    /// One pull per image at a time; who comes second finds it present.
    pulls: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// The id of an image that is on the node now.
    pub(crate) async fn ensure(
        &self,
        docker: &Docker,
        reference: &str,
        platform: &str,
        pull: bool,
    ) -> Result<String, RuntimeError> {
        if let Some(id) = self.fresh(reference) {
            return Ok(id);
        }
        let gate = self.gate(reference);
        let _one = gate.lock().await;
        if let Some(id) = self.fresh(reference) {
            return Ok(id);
        }
        if let Some(id) = inspect(docker, reference).await? {
            self.remember(
                reference,
                Known::Present {
                    id: id.clone(),
                    at: Instant::now(),
                },
            );
            return Ok(id);
        }
        if let Some(Known::Broken { why, until, .. }) = self.get(reference)
            && Instant::now() < until
        {
            let wait = until.saturating_duration_since(Instant::now()).as_secs();
            return Err(unavailable(format!("{why}; tried again in {wait} s")));
        }
        if !pull {
            return Err(unavailable(format!(
                "image {reference} is not on this node and pulling is off"
            )));
        }
        match pull_with_backoff(docker, reference, platform).await {
            Ok(()) => {}
            Err(why) => {
                self.trip(reference, &why);
                return Err(unavailable(why));
            }
        }
        let id = inspect(docker, reference)
            .await?
            .ok_or_else(|| unavailable(format!("image {reference} is missing after its pull")))?;
        self.remember(
            reference,
            Known::Present {
                id: id.clone(),
                at: Instant::now(),
            },
        );
        Ok(id)
    }

    /// The engine said that it does not have it after all.
    pub(crate) fn forget(&self, reference: &str) {
        self.lock().remove(reference);
    }

    /// Some image changed: what was found is looked for again.
    pub(crate) fn doubt(&self) {
        self.lock()
            .retain(|_, known| matches!(known, Known::Broken { .. }));
    }

    /// Images that cannot be had at the moment.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        self.lock()
            .iter()
            .filter_map(|(image, known)| match known {
                Known::Broken { why, .. } => Some(Condition {
                    kind: "image_unavailable",
                    detail: why.clone(),
                    next_step: "check the image's name and that this node reaches its registry; or load the image on the node".into(),
                    image: image.clone(),
                }),
                Known::Present { .. } => None,
            })
            .collect()
    }

    fn trip(&self, reference: &str, why: &str) {
        let pause = match self.get(reference) {
            Some(Known::Broken { pause, .. }) => (pause * 2).min(LONGEST_BREAK),
            _ => BREAK,
        };
        warn!(
            image = reference,
            why,
            pause_s = pause.as_secs(),
            "image unavailable"
        );
        let until = Instant::now() + pause;
        self.remember(
            reference,
            Known::Broken {
                why: why.to_owned(),
                until,
                pause,
            },
        );
    }

    fn fresh(&self, reference: &str) -> Option<String> {
        match self.get(reference) {
            Some(Known::Present { id, at }) if at.elapsed() < KNOWN_FOR => Some(id),
            _ => None,
        }
    }

    fn get(&self, reference: &str) -> Option<Known> {
        self.lock().get(reference).cloned()
    }

    fn remember(&self, reference: &str, known: Known) {
        let mut map = self.lock();
        if map.len() >= MAX_REMEMBERED && !map.contains_key(reference) {
            map.pop_first();
        }
        map.insert(reference.to_owned(), known);
    }

    fn gate(&self, reference: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        // Gates nobody holds are dropped, so that the map stays small.
        pulls.retain(|name, gate| name == reference || Arc::strong_count(gate) > 1);
        pulls.entry(reference.to_owned()).or_default().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(detail: String) -> RuntimeError {
    RuntimeError {
        reason: ErrorReason::ImageUnavailable,
        detail,
    }
}

async fn inspect(docker: &Docker, reference: &str) -> Result<Option<String>, RuntimeError> {
    let what = format!("inspecting image {reference}");
    match tokio::time::timeout(crate::engine::CALL, docker.inspect_image(reference)).await {
        Ok(Ok(image)) => Ok(image.id),
        Ok(Err(error)) if status(&error) == Some(404) => Ok(None),
        Ok(Err(error)) => Err(failed(&what, &error)),
        Err(_) => bounded(&what, std::future::pending()).await,
    }
}

async fn pull_with_backoff(docker: &Docker, reference: &str, platform: &str) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    let mut last = String::new();
    for attempt in 1..=ATTEMPTS {
        info!(image = reference, attempt, "pulling");
        match tokio::time::timeout(PULL, pull_once(docker, reference, platform)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => last = why,
            Err(_) => last = format!("no end within {} s", PULL.as_secs()),
        }
        if attempt < ATTEMPTS {
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
    }
    Err(format!("image {reference} could not be pulled: {last}"))
}

async fn pull_once(docker: &Docker, reference: &str, platform: &str) -> Result<(), String> {
    let options = CreateImageOptionsBuilder::new()
        .from_image(reference)
        .platform(platform)
        .build();
    let mut steps = std::pin::pin!(docker.create_image(Some(options), None, None));
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| error.to_string())?;
        if let Some(problem) = step.error_detail.and_then(|detail| detail.message) {
            return Err(problem);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_image_pauses_longer_each_time_and_is_told() {
        let images = Images::default();
        for expected in [30, 60, 120, 240, 480, 600, 600] {
            images.trip("x", "no route");
            let Some(Known::Broken { pause, .. }) = images.get("x") else {
                panic!("not broken")
            };
            assert_eq!(pause.as_secs(), expected);
        }
        assert_eq!(images.conditions()[0].image, "x");
        images.remember(
            "x",
            Known::Present {
                id: "i".into(),
                at: Instant::now(),
            },
        );
        assert!(images.conditions().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let images = Images::default();
        for n in 0..1_000 {
            images.trip(&format!("i{n}"), "x");
        }
        assert_eq!(images.lock().len(), MAX_REMEMBERED);
    }
}
