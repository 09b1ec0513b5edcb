//! Volumes: an image's runner program, shared and read-only; one work folder per job.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_core::names::{Instance, label};
use agent_core::runtime::RuntimeError;
use agent_core::sandbox::{RUNNER_ROOT, RUNNER_UID, VolumeMount};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, ResourcesUlimits, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use tracing::{debug, info, warn};

use crate::engine::{bounded, gone_is_fine, refused, remove_container};
use crate::loops::Loop;
use crate::mounts::EngineMounts;
use crate::quota::{MOUNT_OPTIONS, Quota};
use crate::tools;
use crate::translate::volume_mount;

/// Ranges for containers begin above the host's own users.
const FIRST_MAPPED: u32 = 65_536;
/// The kernel counts a user's processes over the whole host, those of jobs too: a lower
/// limit than theirs and a job full of processes keeps us from starting ours.
const PROCESSES: i64 = 32_768;

/// Names of the two program volumes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) bin: String,
    pub(crate) externals: String,
}

pub(crate) struct Volumes {
    instance: Instance,
    node: String,
    /// Lists the program volumes that were filled to the end.
    record: PathBuf,
    filled: Mutex<BTreeSet<String>>,
    filling: tokio::sync::Mutex<()>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) mounts: EngineMounts,
}

impl Volumes {
    pub(crate) fn new(
        instance: Instance,
        node: String,
        state_dir: &Path,
        job_disk: u64,
        socket: &Path,
    ) -> Self {
        let record = state_dir.join("program-volumes.json");
        let filled = std::fs::read(&record)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            instance,
            node,
            record,
            filled: Mutex::new(filled),
            filling: Default::default(),
            quota: Arc::new(Quota::new(state_dir, job_disk)),
            mounts: EngineMounts::new(socket),
        }
    }

    fn is_filled(&self, program: &Program) -> bool {
        let filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        filled.contains(&program.bin) && filled.contains(&program.externals)
    }

    fn record(&self, change: impl FnOnce(&mut BTreeSet<String>)) {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut filled);
        let Ok(text) = serde_json::to_vec(&*filled) else {
            return;
        };
        let temporary = self.record.with_extension("new");
        let written = std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &self.record));
        if let Err(error) = written {
            // Then the volumes are filled again after a restart, which is slow but right.
            warn!(path = %self.record.display(), %error, "cannot record the program volumes");
        }
    }

    /// The volumes with `bin/` and `externals/` of an image, filled on first use.
    pub(crate) async fn program(
        &self,
        docker: &Docker,
        image_id: &str,
        platform: &str,
    ) -> Result<Program, RuntimeError> {
        let program = self.program_of(image_id);
        if self.is_filled(&program) {
            return Ok(program);
        }
        let _one = self.filling.lock().await;
        if self.is_filled(&program) {
            return Ok(program);
        }
        for volume in [&program.bin, &program.externals] {
            // A half-filled one would look like a whole one.
            self.delete(docker, volume).await?;
            let request = VolumeCreateRequest {
                name: Some(volume.clone()),
                labels: Some(self.labels("program")),
                ..VolumeCreateRequest::default()
            };
            bounded(
                &format!("making volume {volume}"),
                docker.create_volume(request),
            )
            .await?;
        }
        let mounts =
            [(&program.bin, "bin"), (&program.externals, "externals")].map(|(volume, folder)| {
                VolumeMount {
                    volume: volume.clone(),
                    target: format!("{RUNNER_ROOT}/{folder}"),
                    read_only: false,
                    copy_up: true,
                }
            });
        let test = format!("test -x {RUNNER_ROOT}/bin/Runner.Listener");
        let code = self
            .run_once(docker, "filler", image_id, platform, &test, &mounts, false)
            .await?;
        match code {
            0 => {}
            1 => {
                return Err(refused(format!(
                    "image {image_id} has no runnable {RUNNER_ROOT}/bin/Runner.Listener; use an image in the layout of GitHub's runner image"
                )));
            }
            _ => {
                return Err(refused(format!(
                    "/bin/sh of image {image_id} ended with code {code} before it could look for {RUNNER_ROOT}/bin/Runner.Listener; run it by hand to see why"
                )));
            }
        }
        info!(
            image = image_id,
            "the runner program of this image is ready"
        );
        self.record(|filled| {
            filled.insert(program.bin.clone());
            filled.insert(program.externals.clone());
        });
        Ok(program)
    }

    /// The volume with the files of `agent_core::tools`, filled on first use. The image
    /// only lends its name: nothing of it runs.
    pub(crate) async fn tools(
        &self,
        docker: &Docker,
        image_id: &str,
        platform: &str,
    ) -> Result<String, RuntimeError> {
        let volume = self.tools_volume();
        let is_filled = || {
            let filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
            filled.contains(&volume)
        };
        if is_filled() {
            return Ok(volume);
        }
        let _one = self.filling.lock().await;
        if is_filled() {
            return Ok(volume);
        }
        self.delete(docker, &volume).await?;
        let request = VolumeCreateRequest {
            name: Some(volume.clone()),
            labels: Some(self.labels("tools")),
            ..VolumeCreateRequest::default()
        };
        bounded(
            &format!("making volume {volume}"),
            docker.create_volume(request),
        )
        .await?;
        tools::fill(docker, &volume, self.labels("filler"), image_id, platform).await?;
        self.record(|filled| {
            filled.insert(volume.clone());
        });
        Ok(volume)
    }

    fn tools_volume(&self) -> String {
        self.instance
            .program_volume("tools", &agent_core::tools::version())
    }

    /// The tools volume turned out to be gone.
    pub(crate) fn forget_tools(&self) {
        self.record(|filled| {
            filled.remove(&self.tools_volume());
        });
    }

    /// A program volume turned out to be gone.
    pub(crate) fn forget(&self, program: &Program) {
        self.record(|filled| {
            filled.remove(&program.bin);
            filled.remove(&program.externals);
        });
    }

    /// The image is not used any more: neither are its program volumes.
    pub(crate) async fn drop_program(
        &self,
        docker: &Docker,
        image_id: &str,
    ) -> Result<(), RuntimeError> {
        let program = self.program_of(image_id);
        // Nobody fills them meanwhile.
        let _one = self.filling.lock().await;
        self.forget(&program);
        self.delete(docker, &program.bin).await?;
        self.delete(docker, &program.externals).await
    }

    fn program_of(&self, image_id: &str) -> Program {
        Program {
            bin: self.instance.program_volume("bin", image_id),
            externals: self.instance.program_volume("ext", image_id),
        }
    }

    /// Makes a work folder that belongs to the runner's user. Made here and not
    /// with the container: not every engine labels what it makes by the way. A device
    /// is to be held until a container with the volume has started.
    pub(crate) async fn make_work(
        &self,
        docker: &Docker,
        volume: &str,
        image_id: &str,
        platform: &str,
    ) -> Result<Option<Loop>, RuntimeError> {
        let (quota, name) = (self.quota.clone(), volume.to_owned());
        let device = tokio::task::spawn_blocking(move || quota.attach_for(&name))
            .await
            .unwrap_or_default();
        let by_agent = self.quota.is_by_agent();
        let request = VolumeCreateRequest {
            name: Some(volume.to_owned()),
            labels: Some(self.labels("work")),
            driver_opts: device
                .as_ref()
                .filter(|_| !by_agent)
                .map(Quota::volume_options),
            ..VolumeCreateRequest::default()
        };
        let made = bounded(
            &format!("making volume {volume}"),
            docker.create_volume(request),
        )
        .await;
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                self.quota.forget(volume);
                return Err(error);
            }
        };
        if let Some(device) = device {
            let mounted = match by_agent {
                false => Ok(()),
                true => {
                    let at = Path::new(&made.mountpoint);
                    self.mounts.mount(&device.path, at, MOUNT_OPTIONS).await
                }
            };
            match mounted {
                // Its root was given to the runner's user when it was made.
                Ok(()) => return Ok(Some(device)),
                Err(why) => {
                    self.quota.give_up(why);
                    self.quota.forget(volume);
                }
            }
        }
        let owned = self
            .own(
                docker,
                volume,
                Path::new(&made.mountpoint),
                image_id,
                platform,
            )
            .await;
        if owned.is_err()
            && let Err(error) = self.delete(docker, volume).await
        {
            warn!(%error, "left a volume behind; it is swept at the next start");
        }
        owned.map(|()| None)
    }

    /// Gives a fresh work folder to the runner's user.
    async fn own(
        &self,
        docker: &Docker,
        volume: &str,
        mountpoint: &Path,
        image_id: &str,
        platform: &str,
    ) -> Result<(), RuntimeError> {
        let direct = own_directly(mountpoint).unwrap_or(false);
        if direct {
            return Ok(());
        }
        // The engine's folders are out of sight: a container that may only change owners does it.
        let mount = VolumeMount {
            volume: volume.to_owned(),
            target: "/work".into(),
            read_only: false,
            copy_up: false,
        };
        let command = format!("chown {RUNNER_UID}:{RUNNER_UID} /work && chmod 0755 /work");
        match self
            .run_once(docker, "init", image_id, platform, &command, &[mount], true)
            .await?
        {
            0 => Ok(()),
            code => Err(refused(format!(
                "the work folder {volume} could not be given to the runner's user (code {code})"
            ))),
        }
    }

    /// Runs one shell line of ours in an image, without network, and removes it.
    #[allow(clippy::too_many_arguments)]
    async fn run_once(
        &self,
        docker: &Docker,
        role: &str,
        image_id: &str,
        platform: &str,
        command: &str,
        mounts: &[VolumeMount],
        may_chown: bool,
    ) -> Result<i64, RuntimeError> {
        let labels = self.labels(role);
        let body = ContainerCreateBody {
            image: Some(image_id.to_owned()),
            user: Some(if may_chown {
                "0:0".into()
            } else {
                format!("{RUNNER_UID}:{RUNNER_UID}")
            }),
            entrypoint: Some(vec!["/bin/sh".into(), "-c".into()]),
            cmd: Some(vec![command.to_owned()]),
            working_dir: Some("/".into()),
            labels: Some(labels.clone()),
            host_config: Some(HostConfig {
                cap_drop: Some(vec!["ALL".into()]),
                cap_add: Some(if may_chown {
                    vec!["CHOWN".into(), "FOWNER".into()]
                } else {
                    vec![]
                }),
                security_opt: Some(vec!["no-new-privileges:true".into()]),
                readonly_rootfs: Some(true),
                network_mode: Some("none".into()),
                pids_limit: Some(64),
                // Podman's own defaults may be above what it is allowed to set.
                ulimits: Some(vec![limit("nofile", 1_024), limit("nproc", PROCESSES)]),
                memory: Some(128 << 20),
                memory_swap: Some(128 << 20),
                mounts: Some(
                    mounts
                        .iter()
                        .map(|mount| volume_mount(mount, &labels))
                        .collect(),
                ),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new()
            .platform(platform)
            .build();
        let created = bounded(
            &format!("making a {role} container"),
            docker.create_container(Some(options), body),
        )
        .await?;
        let code = async {
            bounded(
                &format!("starting a {role} container"),
                docker.start_container(&created.id, None),
            )
            .await?;
            let options = WaitContainerOptionsBuilder::new()
                .condition("not-running")
                .build();
            let wait = async {
                let mut answers = std::pin::pin!(docker.wait_container(&created.id, Some(options)));
                match answers.next().await {
                    Some(Err(bollard::errors::Error::DockerContainerWaitError {
                        code, ..
                    })) => Ok(code),
                    Some(answer) => answer.map(|answer| answer.status_code),
                    None => Ok(-1),
                }
            };
            bounded(&format!("waiting for a {role} container"), wait).await
        }
        .await;
        let removed = remove_container(docker, &created.id).await;
        let code = code?;
        removed?;
        Ok(code)
    }

    /// Undoes the agent's own mount of a work folder that nobody uses any more.
    pub(crate) async fn unmount(&self, docker: &Docker, volume: &str) {
        if !self.quota.is_by_agent() || !self.quota.holds(volume) {
            return;
        }
        let what = format!("looking at volume {volume}");
        let at = match bounded(&what, docker.inspect_volume(volume)).await {
            Ok(found) => found.mountpoint,
            Err(error) => {
                debug!(%error, "there is nothing to unmount");
                return;
            }
        };
        if let Err(error) = self.mounts.unmount(Path::new(&at)).await {
            warn!(volume, error, "a work folder stays mounted");
        }
    }

    pub(crate) async fn delete(&self, docker: &Docker, volume: &str) -> Result<(), RuntimeError> {
        self.unmount(docker, volume).await;
        let options = RemoveVolumeOptionsBuilder::new().force(true).build();
        bounded(&format!("removing volume {volume}"), async {
            gone_is_fine(docker.remove_volume(volume, Some(options)).await)
        })
        .await?;
        self.quota.forget(volume);
        Ok(())
    }

    /// Removes this agent's volumes but the ones in `keep` and whole program volumes.
    pub(crate) async fn sweep(
        &self,
        docker: &Docker,
        keep: &BTreeSet<String>,
        programs_too: bool,
    ) -> Result<(), RuntimeError> {
        let filters = HashMap::from([(
            "label",
            vec![format!("{}={}", label::INSTANCE, self.instance.as_str())],
        )]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let list = bounded("listing volumes", docker.list_volumes(Some(options))).await?;
        let mut present = BTreeSet::new();
        // Of another version of this agent: nothing mounts it any more, or it stays.
        let others_tools = self.instance.program_volume("tools", "");
        for volume in list.volumes.unwrap_or_default() {
            let outdated =
                volume.name.starts_with(&others_tools) && volume.name != self.tools_volume();
            let whole = !programs_too
                && !outdated
                && self
                    .filled
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(&volume.name);
            if whole || keep.contains(&volume.name) {
                present.insert(volume.name);
            } else if let Err(error) = self.delete(docker, &volume.name).await {
                warn!(%error, "left a volume behind");
            }
        }
        self.record(|filled| filled.retain(|name| present.contains(name)));
        self.quota.sweep(keep);
        Ok(())
    }

    fn labels(&self, role: &str) -> HashMap<String, String> {
        [
            (label::INSTANCE, self.instance.as_str()),
            (label::NODE, self.node.as_str()),
            (label::ROLE, role),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

/// Gives a fresh volume's folder to the runner's user as the host numbers it; false
/// where that number is not known.
fn own_directly(mountpoint: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // It belongs to what is root in containers. An engine that maps users (`userns-remap`)
    // maps a range of them; a rootless one maps root to one user and the rest elsewhere.
    let root = std::fs::metadata(mountpoint)?.uid();
    if root != 0 && root < FIRST_MAPPED {
        return Ok(false);
    }
    let owner = Some(root + RUNNER_UID);
    std::os::unix::fs::chown(mountpoint, owner, owner)?;
    std::fs::set_permissions(mountpoint, std::fs::Permissions::from_mode(0o755))?;
    Ok(true)
}

fn limit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(most),
        hard: Some(most),
    }
}
