//! Watches what running jobs take of the disk, and ends one that takes too much.
//!
//! A work folder with a hard size only has to be asked how much is left. Others, the
//! files that a profile with a writable root changes in its image, volumes that an image
//! declares, and both of the containers beside a job are measured; a walk is followed by a
//! pause of twenty times its length. While the disk itself is nearly full, the job that
//! takes the most of it is ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use tracing::{debug, warn};

use crate::broker::desk;
use crate::engine::EngineFacts;
use crate::measure;
use crate::quota::NOTHING_LEFT;
use crate::recover::inspect;
use crate::runtime::{Handle, Inner, lock};
use crate::space::space_of;

const TICK: Duration = Duration::from_secs(1);
/// Pause after a walk, in lengths of that walk: five hundredths of one processor.
const PAUSES: u32 = 20;
/// Between SIGINT and SIGKILL for a job that takes too much: it goes on writing.
const GRACE: Duration = Duration::from_secs(10);
/// A disk with less than this part of min_free_disk ends the largest job.
const EMERGENCY: u64 = 4;
/// Smaller ones are never to blame for a full disk.
const SMALL: u64 = 64 << 20;

/// What is remembered of one sandbox between two looks.
struct Watched {
    /// Where it writes without a size, besides its work folder.
    places: Vec<PathBuf>,
    /// The same of each container beside it.
    beside: BTreeMap<String, Vec<PathBuf>>,
    next: Instant,
    takes: u64,
}

/// Runs as long as the runtime lives.
pub(crate) async fn watch(inner: Weak<Inner>) {
    let mut known: BTreeMap<String, Watched> = BTreeMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let Ok((docker, facts)) = inner.connected() else {
            continue;
        };
        inner.press_standbys(&facts);
        let refill = inner.clone();
        let _ = tokio::task::spawn_blocking(move || refill.volumes.quota.refill()).await;
        let sandboxes = inner.live();
        known.retain(|id, _| sandboxes.iter().any(|(_, handle)| handle.container == *id));
        for (runner, handle) in &sandboxes {
            if !known.contains_key(&handle.container) {
                let places = match inspect(&docker, &handle.container).await {
                    Ok(Some(container)) => unsized_places(&container, &handle.work_volume),
                    _ => continue,
                };
                let new = Watched {
                    places,
                    beside: BTreeMap::new(),
                    next: Instant::now(),
                    takes: 0,
                };
                known.insert(handle.container.clone(), new);
            }
            if let Some(watched) = known.get_mut(&handle.container) {
                inner
                    .look_at_disk(&docker, &facts, (runner, handle), watched)
                    .await;
            }
        }
        inner.relieve(&facts, &sandboxes, &known).await;
    }
}

impl Inner {
    async fn look_at_disk(
        self: &Arc<Self>,
        docker: &Docker,
        facts: &EngineFacts,
        (runner, handle): (&str, &Arc<Handle>),
        watched: &mut Watched,
    ) {
        let folder = volume_folder(facts, &handle.work_volume);
        let hard = self.volumes.quota.holds(&handle.work_volume);
        let mut of_folder = 0;
        if hard && let Some(space) = space_of(&folder) {
            // Unmounted, its folder is the host's own disk, which is larger.
            let mounted = self
                .volumes
                .quota
                .limit()
                .is_some_and(|limit| space.total <= limit);
            if mounted {
                of_folder = space.total.saturating_sub(space.free);
                if space.free < NOTHING_LEFT {
                    self.note_full(handle);
                }
            }
        }
        if Instant::now() < watched.next {
            return;
        }
        if handle.containers {
            self.find_beside(docker, handle, watched).await;
        }
        let to_walk: Vec<PathBuf> = (!hard)
            .then_some(folder)
            .into_iter()
            .chain(watched.places.iter().cloned())
            .chain(watched.beside.values().flatten().cloned())
            .collect();
        if to_walk.is_empty() {
            watched.takes = of_folder;
            return;
        }
        let began = Instant::now();
        let measured = tokio::task::spawn_blocking(move || {
            let mut sum = measure::Measured::default();
            for path in to_walk {
                match measure::folder(&path) {
                    Ok(one) => {
                        sum.bytes += one.bytes;
                        sum.entries += one.entries;
                        sum.cut |= one.cut;
                    }
                    Err(error) => debug!(path = %path.display(), %error, "cannot be measured"),
                }
            }
            sum
        })
        .await
        .unwrap_or_default();
        watched.next = Instant::now() + began.elapsed() * PAUSES;
        watched.takes = of_folder + measured.bytes;
        let Some(limit) = self.volumes.quota.limit() else {
            return;
        };
        if measured.bytes <= limit && !measured.cut {
            return;
        }
        let detail = match measured.cut {
            true => format!(
                "the job's files are too many or too deeply nested to be measured ({} and more); they count as more than job_disk of this node",
                measured.entries
            ),
            false => format!(
                "the job's files take {} MiB of disk, more than job_disk of this node ({} MiB)",
                measured.bytes >> 20,
                limit >> 20
            ),
        };
        self.end_for_disk(runner, handle, detail).await;
    }

    /// Containers come and go beside a job; each is looked at once.
    async fn find_beside(&self, docker: &Docker, handle: &Handle, watched: &mut Watched) {
        let instance = self.config.instance.as_str();
        let Ok(there) = desk::siblings(docker, instance, &handle.container).await else {
            return;
        };
        watched.beside.retain(|id, _| there.contains(id));
        for id in there {
            if watched.beside.contains_key(&id) {
                continue;
            }
            if let Ok(Some(container)) = inspect(docker, &id).await {
                let places = unsized_places(&container, &handle.work_volume);
                watched.beside.insert(id, places);
            }
        }
    }

    /// The work folder of a hard size is full: the job is told so by its own writes.
    pub(crate) fn note_full(&self, handle: &Handle) {
        let limit = self.volumes.quota.limit().unwrap_or_default();
        lock(&handle.disk_full).get_or_insert_with(|| {
            format!(
                "the job filled its work folder: {} MiB, job_disk of this node",
                limit >> 20
            )
        });
    }

    async fn end_for_disk(self: &Arc<Self>, runner: &str, handle: &Handle, detail: String) {
        {
            let mut full = lock(&handle.disk_full);
            if full.is_some() {
                return;
            }
            warn!(runner, detail, "ended for its disk use");
            *full = Some(detail);
        }
        if let Err(error) = self.end(runner, GRACE).await {
            warn!(runner, %error, "could not be interrupted");
        }
    }

    /// Ends the job that takes the most while hardly anything is left for anybody.
    async fn relieve(
        self: &Arc<Self>,
        facts: &EngineFacts,
        sandboxes: &[(String, Arc<Handle>)],
        known: &BTreeMap<String, Watched>,
    ) {
        let floor = self.config.min_free_disk / EMERGENCY;
        let disks = [Path::new(&facts.root_dir), &self.config.state_dir];
        let nearly_full = disks
            .into_iter()
            .find_map(|path| Some((path, space_of(path).filter(|space| space.free < floor)?)));
        let Some((path, space)) = nearly_full else {
            return;
        };
        // One at a time: its end frees what the next would be ended for.
        let ending = |handle: &Handle| lock(&handle.disk_full).is_some();
        if sandboxes.iter().any(|(_, handle)| ending(handle)) {
            return;
        }
        let takes = |handle: &Handle| known.get(&handle.container).map_or(0, |w| w.takes);
        let largest = sandboxes
            .iter()
            .max_by_key(|(_, handle)| takes(handle))
            .filter(|(_, handle)| takes(handle) >= SMALL);
        if let Some((runner, handle)) = largest {
            let detail = format!(
                "{} has only {} MiB left, less than a quarter of min_free_disk, and this job took the most: {} MiB",
                path.display(),
                space.free >> 20,
                takes(handle) >> 20
            );
            self.end_for_disk(runner, handle, detail).await;
        }
    }

    /// Why the disk was the cause of this end, read once it has ended.
    pub(crate) async fn disk_full(&self, docker: &Docker, handle: &Handle) -> Option<String> {
        // What is left is written with the end of the mount.
        self.volumes.unmount(docker, &handle.work_volume).await;
        let left = self.volumes.quota.left(&handle.work_volume);
        if left.is_some_and(|left| left < NOTHING_LEFT) {
            self.note_full(handle);
        }
        lock(&handle.disk_full).clone()
    }
}

/// Where the engine keeps a volume's files.
fn volume_folder(facts: &EngineFacts, volume: &str) -> PathBuf {
    Path::new(&facts.root_dir)
        .join("volumes")
        .join(volume)
        .join("_data")
}

/// Where a container writes to the host's disk, besides its work folder: what it changes in
/// its image, unless the root is read-only, and volumes that the image declares.
fn unsized_places(container: &ContainerInspectResponse, work_volume: &str) -> Vec<PathBuf> {
    let root_is_closed = container
        .host_config
        .as_ref()
        .is_some_and(|host| host.readonly_rootfs == Some(true));
    let layer = container
        .graph_driver
        .as_ref()
        .filter(|_| !root_is_closed)
        .and_then(|driver| driver.data.get("UpperDir"));
    let volumes = container
        .mounts
        .iter()
        .flatten()
        .filter(|mount| mount.rw == Some(true) && mount.name.as_deref() != Some(work_volume))
        .filter_map(|mount| mount.source.as_ref());
    layer
        .into_iter()
        .chain(volumes)
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_without_a_size_is_watched_and_nothing_that_is_shared() {
        let told = |closed: bool| {
            let told = serde_json::json!({
                "HostConfig": {"ReadonlyRootfs": closed},
                "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/engine/layer", "LowerDir": "/engine/image"}},
                "Mounts": [
                    {"Type": "volume", "Name": "work", "Source": "/engine/work", "RW": true},
                    {"Type": "volume", "Name": "bin", "Source": "/engine/bin", "RW": false},
                    {"Type": "volume", "Name": "0a1b", "Source": "/engine/declared", "RW": true},
                    {"Type": "tmpfs", "Source": "", "RW": true},
                ],
            });
            unsized_places(&serde_json::from_value(told).unwrap(), "work")
        };
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(told(false), paths(&["/engine/layer", "/engine/declared"]));
        assert_eq!(told(true), paths(&["/engine/declared"]));
    }
}
