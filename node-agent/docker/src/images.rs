//! Images: present, pulled, or unavailable with a pause before the next try.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_core::model::{Condition, ErrorReason};
use agent_core::runtime::RuntimeError;
use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder};
use futures_util::StreamExt;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::engine::{bounded, failed, status};
use crate::outage::now_ms;

mod public;
mod record;
mod reference;
pub(crate) mod refresh;

use record::{Meant, Record};
use reference::architecture;

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

/// A name and a platform: one name means another image on each.
type Key = (String, String);

/// An image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Here {
    id: String,
    architecture: String,
    /// `repository@sha256:...` by which registries gave it.
    digests: Vec<String>,
    tags: Vec<String>,
}

impl Here {
    /// Nothing said is no contradiction.
    fn is_for(&self, platform: &str) -> bool {
        self.architecture.is_empty() || self.architecture == architecture(platform)
    }
}

#[derive(Default)]
pub(crate) struct Images {
    known: Mutex<BTreeMap<Key, Known>>,
    /// Grows with each doubt: what the engine was asked before is not remembered after.
    doubts: AtomicU64,
    record: Mutex<Record>,
    /// One pull per image at a time; who comes second finds it present.
    pulls: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    looks: refresh::Looks,
    /// What jobs may name because anybody may have it.
    public: Mutex<BTreeMap<Key, public::Public>>,
    /// Somebody waits for a look at the registry.
    wake: Notify,
}

impl Images {
    /// What names mean is remembered in this folder.
    pub(crate) fn open(state_dir: &Path) -> Self {
        Self {
            record: Mutex::new(Record::open(state_dir)),
            ..Self::default()
        }
    }

    /// The id of an image for this platform that is on the node now.
    pub(crate) async fn ensure(
        &self,
        docker: &Docker,
        reference: &str,
        platform: &str,
        pull: bool,
    ) -> Result<String, RuntimeError> {
        let key = (reference.to_owned(), platform.to_owned());
        if let Some(id) = self.fresh(&key) {
            return Ok(id);
        }
        let gate = self.gate(reference);
        let _one = gate.lock().await;
        if let Some(id) = self.fresh(&key) {
            return Ok(id);
        }
        let asked = self.doubts();
        let local = inspect(docker, reference).await?;
        let local_id = local.as_ref().map(|local| local.id.clone());
        if let Some(id) = self.meant(docker, &key, local_id.as_deref()).await? {
            self.settle(&key, &id, local_id, None);
            self.unless_doubted(&key, asked);
            return Ok(id);
        }
        if let Some(local) = local.as_ref().filter(|local| local.is_for(platform)) {
            self.settle(&key, &local.id, local_id, None);
            self.unless_doubted(&key, asked);
            return Ok(local.id.clone());
        }
        if let Some(Known::Broken { why, until, .. }) = self.get(&key)
            && Instant::now() < until
        {
            let wait = until.saturating_duration_since(Instant::now()).as_secs();
            return Err(unavailable(format!("{why}; tried again in {wait} s")));
        }
        if !pull {
            return Err(unavailable(match local {
                None => format!("image {reference} is not on this node and pulling is off"),
                Some(other) => format!(
                    "image {reference} on this node is for {} and not for {platform}, and pulling is off",
                    other.architecture
                ),
            }));
        }
        match fetch(docker, reference, platform, local.is_some()).await {
            Ok((id, brought)) => {
                let asked = self.doubts();
                let local = inspect(docker, reference).await?.map(|local| local.id);
                self.settle(&key, &id, local, brought.as_deref());
                self.unless_doubted(&key, asked);
                Ok(id)
            }
            Err(why) => {
                self.trip(&key, &why);
                Err(unavailable(why))
            }
        }
    }

    /// What the name was found to mean before, unless somebody gave it to another image, or
    /// took it from the one that had it, since.
    async fn meant(
        &self,
        docker: &Docker,
        key: &Key,
        local: Option<&str>,
    ) -> Result<Option<String>, RuntimeError> {
        let Some(meant) = self.record().get(&key.0, &key.1).cloned() else {
            return Ok(None);
        };
        if local != meant.local.as_deref() {
            return Ok(None);
        }
        let here = inspect(docker, &meant.id).await?;
        Ok(here.filter(|here| here.is_for(&key.1)).map(|here| here.id))
    }

    fn settle(&self, key: &Key, id: &str, local: Option<String>, brought: Option<&str>) {
        let meant = Meant {
            image: key.0.clone(),
            platform: key.1.clone(),
            id: id.to_owned(),
            local,
            used_ms: now_ms(),
        };
        self.record().settle(meant, brought);
        self.remember(
            key,
            Known::Present {
                id: id.to_owned(),
                at: Instant::now(),
            },
        );
    }

    fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::SeqCst)
    }

    /// Forgets what the engine said when there were so many doubts, if there is one more: the
    /// image may have changed after the engine looked.
    fn unless_doubted(&self, key: &Key, asked: u64) {
        let mut known = self.lock();
        if self.doubts() != asked {
            known.remove(key);
        }
    }

    /// The engine said that it does not have it after all.
    pub(crate) fn forget(&self, reference: &str) {
        self.lock().retain(|(name, _), _| name != reference);
    }

    /// Some image changed: what was found is looked for again.
    pub(crate) fn doubt(&self) {
        let mut known = self.lock();
        self.doubts.fetch_add(1, Ordering::SeqCst);
        known.retain(|_, known| matches!(known, Known::Broken { .. }));
    }

    /// Images that cannot be had at the moment.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        self.lock()
            .iter()
            .filter_map(|((image, _), known)| match known {
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

    fn trip(&self, key: &Key, why: &str) {
        let pause = match self.get(key) {
            Some(Known::Broken { pause, .. }) => (pause * 2).min(LONGEST_BREAK),
            _ => BREAK,
        };
        warn!(
            image = key.0,
            platform = key.1,
            why,
            pause_s = pause.as_secs(),
            "image unavailable"
        );
        let until = Instant::now() + pause;
        self.remember(
            key,
            Known::Broken {
                why: why.to_owned(),
                until,
                pause,
            },
        );
    }

    fn fresh(&self, key: &Key) -> Option<String> {
        match self.get(key) {
            Some(Known::Present { id, at }) if at.elapsed() < KNOWN_FOR => Some(id),
            _ => None,
        }
    }

    fn get(&self, key: &Key) -> Option<Known> {
        self.lock().get(key).cloned()
    }

    fn remember(&self, key: &Key, known: Known) {
        let mut map = self.lock();
        if map.len() >= MAX_REMEMBERED && !map.contains_key(key) {
            map.pop_first();
        }
        map.insert(key.clone(), known);
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self, reference: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        // Gates nobody holds are dropped, so that the map stays small.
        pulls.retain(|name, gate| name == reference || Arc::strong_count(gate) > 1);
        pulls.entry(reference.to_owned()).or_default().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(detail: String) -> RuntimeError {
    RuntimeError {
        reason: ErrorReason::ImageUnavailable,
        detail,
    }
}

async fn inspect(docker: &Docker, reference: &str) -> Result<Option<Here>, RuntimeError> {
    let what = format!("inspecting image {reference}");
    match tokio::time::timeout(crate::engine::CALL, docker.inspect_image(reference)).await {
        Ok(Ok(image)) => Ok(image.id.map(|id| Here {
            id,
            architecture: image.architecture.unwrap_or_default(),
            digests: image.repo_digests.unwrap_or_default(),
            tags: image.repo_tags.unwrap_or_default(),
        })),
        Ok(Err(error)) if status(&error) == Some(404) => Ok(None),
        Ok(Err(error)) => Err(failed(&what, &error)),
        Err(_) => bounded(&what, std::future::pending()).await,
    }
}

/// Ids of all images on the node.
async fn all(docker: &Docker) -> Result<BTreeSet<String>, String> {
    let options = ListImagesOptionsBuilder::new().all(true).build();
    let list = bounded("listing images", docker.list_images(Some(options))).await;
    let list = list.map_err(|error| error.detail)?;
    Ok(list.into_iter().map(|image| image.id).collect())
}

/// Pulls what the name means at its registry. The id, and the name that it was pulled by
/// if it was not on the node before. Where an image for another architecture has that
/// name here, the name stays with it.
async fn fetch(
    docker: &Docker,
    reference: &str,
    platform: &str,
    name_is_taken: bool,
) -> Result<(String, Option<String>), String> {
    let name = match name_is_taken {
        false => reference.to_owned(),
        true => pinned(docker, reference).await?,
    };
    let before = all(docker).await?;
    pull_with_backoff(docker, &name, platform).await?;
    let here = inspect(docker, &name).await.map_err(|error| error.detail)?;
    let here = here.ok_or_else(|| format!("image {name} is missing after its pull"))?;
    if !here.is_for(platform) {
        return Err(format!(
            "image {reference} is for {} and not for {platform} at its registry",
            here.architecture
        ));
    }
    let brought = (!before.contains(&here.id)).then_some(name);
    Ok((here.id, brought))
}

/// The name of exactly what a tag means at its registry now.
async fn pinned(docker: &Docker, reference: &str) -> Result<String, String> {
    if !reference::can_move(reference) {
        return Ok(reference.to_owned());
    }
    let what = format!("asking the registry of {reference}");
    let asked = bounded(&what, docker.inspect_registry_image(reference, None)).await;
    let digest = asked.map_err(|error| error.detail)?.descriptor.digest;
    let digest = digest.ok_or_else(|| format!("{what}: it told no digest"))?;
    Ok(format!("{}@{digest}", untagged(reference)))
}

/// The name without its tag, but with its registry.
fn untagged(reference: &str) -> &str {
    let folders = reference.rfind('/').map_or(0, |at| at + 1);
    match reference[folders..].find(':') {
        Some(at) => &reference[..folders + at],
        None => reference,
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

    fn key(name: &str) -> Key {
        (name.to_owned(), "linux/amd64".to_owned())
    }

    #[test]
    fn a_broken_image_pauses_longer_each_time_and_is_told() {
        let images = Images::default();
        for expected in [30, 60, 120, 240, 480, 600, 600] {
            images.trip(&key("x"), "no route");
            let Some(Known::Broken { pause, .. }) = images.get(&key("x")) else {
                panic!("not broken")
            };
            assert_eq!(pause.as_secs(), expected);
        }
        assert_eq!(images.conditions()[0].image, "x");
        images.remember(
            &key("x"),
            Known::Present {
                id: "i".into(),
                at: Instant::now(),
            },
        );
        assert!(images.conditions().is_empty());
    }

    #[test]
    fn what_the_engine_said_before_an_image_changed_is_not_remembered_after_it() {
        let images = Images::default();
        let key = ("x".to_owned(), "linux/amd64".to_owned());
        let asked = images.doubts();
        images.settle(&key, "sha256:old", None, None);
        images.unless_doubted(&key, asked);
        assert_eq!(images.fresh(&key).as_deref(), Some("sha256:old"));
        // Its tag moves while the engine is being asked.
        images.doubt();
        images.settle(&key, "sha256:old", None, None);
        images.unless_doubted(&key, asked);
        assert_eq!(images.fresh(&key), None);
        images.settle(&key, "sha256:new", None, None);
        images.unless_doubted(&key, images.doubts());
        assert_eq!(images.fresh(&key).as_deref(), Some("sha256:new"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let images = Images::default();
        for n in 0..1_000 {
            images.trip(&key(&format!("i{n}")), "x");
        }
        assert_eq!(images.lock().len(), MAX_REMEMBERED);
    }
}
