//! Newer images under a tag, and old ones of ours out of the way.
//!
//! The registry is asked now and then, and at once when GitHub refused a runner program
//! as too old. What is newer is pulled by digest, so that the names of the host's owner
//! stay as they are; a job takes it once its runner program was found in it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use agent_core::runtime::RuntimeError;
use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveImageOptionsBuilder};
use tracing::{debug, info, warn};

use super::record::{Kept, Meant};
use super::reference::{can_move, repository, same};
use super::{Images, Key, PULL, all, inspect, pinned, pull_once};
use crate::engine::{bounded, gone_is_fine};
use crate::outage::now_ms;
use crate::runtime::Inner;

/// How often is seen whether something is due.
const LOOK: Duration = Duration::from_secs(60);
/// Between two looks because runners were refused.
const REFUSALS_APART: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Looks(Mutex<BTreeMap<Key, Look>>);

#[derive(Clone, Copy, Debug, Default)]
struct Look {
    last: Option<Instant>,
    refused: bool,
}

impl Looks {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when it is due, which begins a look; and whether a refusal is the reason.
    fn begin(&self, key: &Key, every: Option<Duration>, now: Instant) -> Option<bool> {
        let mut all = self.lock();
        let look = all.entry(key.clone()).or_default();
        let rested = |pause| {
            look.last
                .is_none_or(|last| now.saturating_duration_since(last) >= pause)
        };
        let refused = look.refused && rested(REFUSALS_APART);
        let due = refused || every.is_some_and(rested);
        if due {
            *look = Look {
                last: Some(now),
                refused: false,
            };
        }
        due.then_some(refused)
    }
}

impl Images {
    /// GitHub refused the runner program of this image as too old.
    pub(crate) fn refused(&self, id: &str) {
        let names: Vec<Meant> = self.record().all();
        let mut looks = self.looks.lock();
        for meant in names.into_iter().filter(|meant| meant.id == id) {
            looks
                .entry((meant.image, meant.platform))
                .or_default()
                .refused = true;
        }
        drop(looks);
        self.wake.notify_one();
    }

    /// Where somebody waits until something is due.
    async fn pause(&self, every: Option<Duration>) {
        let pause = every.map_or(LOOK, |every| every.min(LOOK));
        let _ = tokio::time::timeout(pause.max(Duration::from_secs(1)), self.wake.notified()).await;
    }
}

/// Looks as long as the runtime is there.
pub(crate) async fn keep(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let every = strong.config.image_refresh;
        if let Some(docker) = strong.docker() {
            if strong.config.pull {
                strong.refresh(&docker, every).await;
            }
            strong.prune(&docker).await;
        }
        // Not held while it waits: it would keep the runtime alive.
        let images = std::sync::Arc::clone(&strong.images);
        drop(strong);
        images.pause(every).await;
    }
}

impl Inner {
    async fn refresh(&self, docker: &Docker, every: Option<Duration>) {
        let names = self.images.record().all();
        self.images.looks.lock().retain(|(image, platform), _| {
            let known = |meant: &Meant| meant.image == *image && meant.platform == *platform;
            names.iter().any(known)
        });
        for meant in names.into_iter().filter(|meant| can_move(&meant.image)) {
            let key = (meant.image.clone(), meant.platform.clone());
            let Some(refused) = self.images.looks.begin(&key, every, Instant::now()) else {
                continue;
            };
            match self.newer(docker, &meant).await {
                Ok(true) => {}
                Ok(false) if refused => warn!(
                    image = meant.image,
                    "the runner program of this image is too old for GitHub, and its registry has no newer one"
                ),
                Ok(false) => {}
                Err(why) => warn!(image = meant.image, why, "cannot look for a newer image"),
            }
        }
    }

    /// True when the name means a newer image from now on.
    async fn newer(&self, docker: &Docker, meant: &Meant) -> Result<bool, String> {
        let gate = self.images.gate(&meant.image);
        let _one = gate.lock().await;
        let told = |error: RuntimeError| error.detail;
        let Some(here) = inspect(docker, &meant.id).await.map_err(told)? else {
            return Ok(false);
        };
        // An image that no registry gave under this name is the owner's own work; what a
        // registry has under the same name may be anything.
        let from_there = |digest: &&String| repository(digest) == repository(&meant.image);
        if !here.digests.iter().any(|digest| from_there(&digest)) {
            debug!(
                image = meant.image,
                "was not pulled, so it is not refreshed"
            );
            return Ok(false);
        }
        let name = pinned(docker, &meant.image).await?;
        let digest = name.rsplit('@').next().unwrap_or_default();
        if here
            .digests
            .iter()
            .filter(from_there)
            .any(|known| known.ends_with(digest))
        {
            return Ok(false);
        }
        info!(
            image = meant.image,
            digest, "a newer image is at its registry"
        );
        let before = all(docker).await?;
        tokio::time::timeout(PULL, pull_once(docker, &name, &meant.platform))
            .await
            .map_err(|_| format!("no end of the pull within {} s", PULL.as_secs()))??;
        let new = inspect(docker, &name).await.map_err(told)?;
        let new = new.ok_or_else(|| format!("image {name} is missing after its pull"))?;
        if !new.is_for(&meant.platform) {
            return Err(format!("{name} is for {}", new.architecture));
        }
        let local = inspect(docker, &meant.image).await.map_err(told)?;
        let key = (meant.image.clone(), meant.platform.clone());
        let brought = (!before.contains(&new.id)).then_some(name.as_str());
        let usable = self.volumes.program(docker, &new.id, &meant.platform).await;
        if let Err(error) = usable {
            // It is remembered as ours, so that it goes again.
            let back = local.as_ref().map(|local| local.id.clone());
            self.images.settle(&key, &new.id, back.clone(), brought);
            self.images.settle(&key, &meant.id, back, None);
            return Err(format!("{name} is not used: {}", error.detail));
        }
        self.images
            .settle(&key, &new.id, local.map(|local| local.id), brought);
        self.standby.images_changed();
        Ok(true)
    }

    /// Removes what no name has meant for a while and no container is made from.
    async fn prune(&self, docker: &Docker) {
        let keep_ms = u64::try_from(self.config.image_keep.as_millis()).unwrap_or(u64::MAX);
        let left = self.images.record().left(now_ms(), keep_ms);
        if left.is_empty() {
            return;
        }
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let containers =
            match bounded("listing containers", docker.list_containers(Some(options))).await {
                Ok(containers) => containers,
                Err(error) => return debug!(%error, "old images wait"),
            };
        for (id, kept) in left {
            if containers
                .iter()
                .any(|one| one.image_id.as_deref() == Some(&id))
            {
                continue;
            }
            match self.drop_image(docker, &id, &kept).await {
                Ok(gone) => {
                    if gone {
                        info!(image = id, "an old runner image of ours is gone");
                    }
                    self.images.record().forget(&id);
                }
                Err(error) => debug!(%error, image = id, "an old image stays for now"),
            }
        }
    }

    /// True when the image itself went; an owner's only loses what we made from it.
    async fn drop_image(
        &self,
        docker: &Docker,
        id: &str,
        kept: &Kept,
    ) -> Result<bool, RuntimeError> {
        self.volumes.drop_program(docker, id).await?;
        let Some(here) = inspect(docker, id).await? else {
            return Ok(false);
        };
        // Somebody else gave it a name since: then it is wanted.
        let ours = |tag: &String| kept.names.iter().any(|name| same(name, tag));
        if !kept.ours
            || !here
                .tags
                .iter()
                .filter(|tag| *tag != "<none>:<none>")
                .all(ours)
        {
            return Ok(false);
        }
        let options = RemoveImageOptionsBuilder::new().force(false).build();
        bounded(&format!("removing image {id}"), async {
            let removed = docker.remove_image(id, Some(options), None).await;
            gone_is_fine(removed.map(drop))
        })
        .await
        .map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_looked_into_at_once_but_not_again_and_again() {
        let looks = Looks::default();
        let key = ("r/i:1".to_owned(), "linux/amd64".to_owned());
        let (begin, hour) = (Instant::now(), Duration::from_secs(3_600));
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(looks.begin(&key, None, at(0)), None, "never");
        assert_eq!(looks.begin(&key, Some(hour), at(0)), Some(false));
        assert_eq!(looks.begin(&key, Some(hour), at(3_599)), None);
        looks.lock().entry(key.clone()).or_default().refused = true;
        assert_eq!(looks.begin(&key, Some(hour), at(59)), None);
        assert_eq!(looks.begin(&key, None, at(60)), Some(true));
        assert_eq!(
            looks.begin(&key, None, at(200)),
            None,
            "once for each refusal"
        );
        assert_eq!(looks.begin(&key, Some(hour), at(60 + 3_600)), Some(false));
    }
}
