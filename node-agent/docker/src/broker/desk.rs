//! Carries out what a job's container hook asks, with the engine.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agent_core::containers::{
    self, Command, Health, Job, Listed, MAX_SIBLINGS, Service, Sibling, waiting,
};
use agent_core::names::label;
use agent_core::runtime::RuntimeError;
use bollard::Docker;
use bollard::models::{ContainerInspectResponse, HealthConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, UploadToContainerOptionsBuilder,
};
use serde_json::{Value, json};
use tracing::warn;

use super::steps::kill_group;
use super::{Done, Reply, unheard};
use crate::engine::{bounded, refused, remove_container};
use crate::images::Images;
use crate::recover::{container_label, inspect};
use crate::runtime::lock;
use crate::translate::container_body;
use crate::usage;

/// What the container of `container:` is in its job.
const JOB_CONTAINER: &str = "the job container";
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What requests of one job are carried out with.
pub(crate) struct Desk {
    pub(crate) docker: Docker,
    pub(crate) images: Arc<Images>,
    pub(crate) pull: bool,
    /// Id of the image that the job itself is in.
    pub(crate) own_image: String,
    /// Images of this node that jobs may name although not everybody can pull them.
    pub(crate) listed: Listed,
    pub(crate) job: Job,
    pub(crate) instance: String,
    /// Labels of every sibling.
    pub(crate) labels: Vec<(String, String)>,
    /// The file with names that the job and its siblings share.
    pub(crate) hosts: PathBuf,
    /// The job container of `container:`.
    pub(crate) container: Mutex<Option<String>>,
    /// Held from a count of the siblings until there is one more.
    pub(crate) making: tokio::sync::Mutex<()>,
}

/// What has to end when its request is given up.
pub(crate) enum Ongoing {
    Container(String),
    Exec(String),
}

/// Containers beside a job, by the label that names it.
pub(crate) async fn siblings(
    docker: &Docker,
    instance: &str,
    container: &str,
) -> Result<Vec<String>, RuntimeError> {
    let labels = vec![
        format!("{}={instance}", label::INSTANCE),
        format!("{}={container}", label::OF),
    ];
    let filters = HashMap::from([("label", labels)]);
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    let list = bounded(
        "listing a job's containers",
        docker.list_containers(Some(options)),
    )
    .await?;
    Ok(list
        .into_iter()
        .filter_map(|container| container.id)
        .collect())
}

impl Desk {
    pub(super) async fn carry_out(
        &self,
        command: Command,
        reply: &Reply,
        ongoing: &Mutex<Option<Ongoing>>,
    ) -> Result<Done, RuntimeError> {
        match command {
            Command::Prepare {
                container,
                services,
            } => {
                let prepared = self.prepare(container, services, reply).await;
                if prepared.is_err() {
                    self.clean_up().await?;
                }
                Ok(Done {
                    code: 0,
                    answer: Some(prepared?),
                })
            }
            Command::Script(step) => {
                let container = self.job_container().await?;
                let code = self.script(&container, &step, reply, ongoing).await?;
                Ok(Done {
                    code,
                    answer: Some(json!({})),
                })
            }
            Command::Container(step) => Ok(Done {
                code: self.step(&step, reply, ongoing).await?,
                answer: Some(json!({})),
            }),
            Command::Cleanup => {
                self.clean_up().await?;
                Ok(Done {
                    code: 0,
                    answer: Some(json!({})),
                })
            }
        }
    }

    /// Ends what a hook that is gone had begun.
    pub(super) async fn abandon(&self, left: Ongoing) {
        match left {
            Ongoing::Container(id) => {
                if let Err(error) = remove_container(&self.docker, &id).await {
                    warn!(%error, "a step's container stays until its job ends");
                }
            }
            Ongoing::Exec(id) => {
                let told = bounded("looking at a step", self.docker.inspect_exec(&id)).await;
                if let Ok(told) = told
                    && told.running == Some(true)
                    && let Some(pid) = told.pid.and_then(|pid| i32::try_from(pid).ok())
                    && pid > 1
                {
                    kill_group(pid);
                }
            }
        }
    }

    async fn clean_up(&self) -> Result<(), RuntimeError> {
        lock(&self.container).take();
        for id in siblings(&self.docker, &self.instance, &self.job.container).await? {
            remove_container(&self.docker, &id).await?;
        }
        Ok(())
    }

    async fn prepare(
        &self,
        container: Option<Sibling>,
        services: Vec<Service>,
        reply: &Reply,
    ) -> Result<Value, RuntimeError> {
        self.bound()?;
        let network = self.job.container.chars().take(12).collect::<String>();
        let mut state = json!({ "network": network });
        let mut context = json!({});
        let mut names = Vec::new();
        let mut made = BTreeMap::new();
        for service in &services {
            let id = self.make(&service.sibling, &service.name).await?;
            let said = format!(
                "service {}: {} started",
                service.name, service.sibling.image
            );
            reply.tell(&said).await.map_err(unheard)?;
            names.push(service.name.as_str());
            let ports: BTreeMap<String, String> = service
                .ports
                .iter()
                .map(|port| (port.to_string(), port.to_string()))
                .collect();
            state["services"][&service.name] = json!(id);
            context["services"][&service.name] =
                json!({ "id": id, "network": network, "ports": ports });
            made.insert(service.name.clone(), id);
        }
        self.name(&names)?;
        let mut alpine = false;
        if let Some(sibling) = container {
            let image = sibling.image.clone();
            let id = self.make(&waiting(sibling), JOB_CONTAINER).await?;
            reply
                .tell(&format!("job container: {image} started"))
                .await
                .map_err(unheard)?;
            state["container"] = json!(id);
            context["container"] = json!({ "id": id, "network": network });
            self.up("the job container", &id).await?;
            alpine = self.is_alpine(&id).await;
            *lock(&self.container) = Some(id);
        }
        for (name, id) in &made {
            self.up(&format!("service {name}"), id).await?;
        }
        Ok(json!({ "state": state, "context": context, "isAlpine": alpine }))
    }

    /// The container of `container:`; looked for when an earlier process of this agent made it.
    async fn job_container(&self) -> Result<String, RuntimeError> {
        if let Some(known) = lock(&self.container).clone() {
            return Ok(known);
        }
        for id in siblings(&self.docker, &self.instance, &self.job.container).await? {
            let told = inspect(&self.docker, &id).await?.unwrap_or_default();
            if container_label(&told, label::PART) == JOB_CONTAINER {
                *lock(&self.container) = Some(id.clone());
                return Ok(id);
            }
        }
        Err(refused(
            "this job has no container: to run the step in".into(),
        ))
    }

    /// Holds the job and its siblings together to what the job was given.
    pub(super) fn bound(&self) -> Result<(), RuntimeError> {
        let resources = self.job.resources;
        usage::bound(
            Path::new(usage::ROOT),
            &self.job.place.cgroup_parent,
            resources.memory_bytes,
            resources.cpu_millis,
        )
        .map_err(|why| {
            refused(format!(
                "this node cannot hold a job's containers to the job's limits, so it makes none: {why}"
            ))
        })
    }

    /// Services are at their names as they are at localhost.
    fn name(&self, names: &[&str]) -> Result<(), RuntimeError> {
        if names.is_empty() {
            return Ok(());
        }
        let lines: String = names
            .iter()
            .map(|name| format!("127.0.0.1\t{name}\n"))
            .collect();
        let written = std::fs::File::options()
            .append(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.hosts)
            .and_then(|mut file| file.write_all(lines.as_bytes()));
        written.map_err(|error| {
            refused(format!(
                "the services' names could not be written to {}: {error}",
                self.hosts.display()
            ))
        })
    }

    /// Makes a sibling and starts it.
    pub(super) async fn make(&self, sibling: &Sibling, what: &str) -> Result<String, RuntimeError> {
        let image_id = self
            .images
            .for_a_job(
                &self.docker,
                &sibling.image,
                &self.job.platform,
                self.pull,
                (&self.own_image, &self.listed),
            )
            .await?;
        let mut labels = self.labels.clone();
        labels.push((label::OF.into(), self.job.container.clone()));
        labels.push((label::PART.into(), what.to_owned()));
        let mut sandbox = containers::sandbox(&self.job, sibling, &image_id, &labels);
        if !sibling.prepend_path.is_empty() {
            let image =
                bounded("looking at an image", self.docker.inspect_image(&image_id)).await?;
            let env = image.config.and_then(|config| config.env);
            let path = path(&sibling.prepend_path, &sandbox.env, env.as_deref());
            sandbox.env.retain(|line| !line.starts_with("PATH="));
            sandbox.env.push(path);
        }
        let mut body = container_body(&sandbox);
        body.healthcheck = sibling.health.as_ref().map(health);
        // Empty means the image's own.
        body.entrypoint = body.entrypoint.filter(|words| !words.is_empty());
        body.cmd = body.cmd.filter(|words| !words.is_empty());
        body.working_dir = body.working_dir.filter(|folder| !folder.is_empty());
        let name = format!("ls-{}-beside-{:016x}", self.instance, rand::random::<u64>());
        let options = CreateContainerOptionsBuilder::new()
            .name(&name)
            .platform(&self.job.platform)
            .build();
        let made = {
            // Requests of one moment would all find room for one more.
            let _one = self.making.lock().await;
            let there = siblings(&self.docker, &self.instance, &self.job.container).await?;
            if there.len() >= MAX_SIBLINGS {
                return Err(refused(containers::Refusal::TooMany.to_string()));
            }
            bounded(
                &format!("making {what} from {}", sibling.image),
                self.docker.create_container(Some(options), body),
            )
            .await?
        };
        let started = async {
            self.link(&made.id, &sibling.links).await?;
            bounded(
                &format!("starting {what} from {}", sibling.image),
                self.docker.start_container(&made.id, None),
            )
            .await
        };
        match started.await {
            Ok(()) => Ok(made.id),
            Err(error) => {
                remove_container(&self.docker, &made.id).await?;
                Err(error)
            }
        }
    }

    /// Puts links where the runner program expects mounts. The engine unpacks inside the
    /// container's own root, so an image cannot lead them elsewhere.
    async fn link(&self, id: &str, links: &[(String, String)]) -> Result<(), RuntimeError> {
        if links.is_empty() {
            return Ok(());
        }
        let archive =
            links_archive(links).map_err(|error| refused(format!("packing links: {error}")))?;
        let options = UploadToContainerOptionsBuilder::new().path("/").build();
        bounded(
            "linking the work folder into a container",
            self.docker
                .upload_to_container(id, Some(options), bollard::body_full(archive.into())),
        )
        .await
    }
}

/// `PATH` with folders ahead of what was asked for, or of what the image has.
pub(super) fn path(ahead: &[String], asked: &[String], own: Option<&[String]>) -> String {
    let value = |list: &[String]| {
        list.iter()
            .find_map(|line| line.strip_prefix("PATH=").map(str::to_owned))
    };
    let rest = value(asked)
        .or_else(|| own.and_then(value))
        .unwrap_or_else(|| USUAL_PATH.into());
    format!("PATH={}:{rest}", ahead.join(":"))
}

fn health(asked: &Health) -> HealthConfig {
    let some = |number: i64| (number > 0).then_some(number);
    HealthConfig {
        test: Some(match asked.command.as_str() {
            "" => vec!["NONE".into()],
            command => vec!["CMD-SHELL".into(), command.into()],
        }),
        interval: some(asked.interval_ns),
        timeout: some(asked.timeout_ns),
        start_period: some(asked.start_period_ns),
        retries: some(asked.retries),
        ..HealthConfig::default()
    }
}

fn links_archive(links: &[(String, String)]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (at, to) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_mtime(0);
        builder.append_link(&mut header, at.trim_start_matches('/'), to)?;
    }
    builder.into_inner()
}

/// The container's hosts file on the engine's side.
pub(crate) fn hosts_of(container: &ContainerInspectResponse) -> PathBuf {
    PathBuf::from(container.hosts_path.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_prepended_to_what_is_there() {
        let ahead = ["/a".to_owned(), "/b".to_owned()];
        let own = ["X=1".to_owned(), "PATH=/image".to_owned()];
        assert_eq!(path(&ahead, &[], Some(&own)), "PATH=/a:/b:/image");
        let asked = ["PATH=/asked".to_owned()];
        assert_eq!(path(&ahead, &asked, Some(&own)), "PATH=/a:/b:/asked");
        assert!(path(&ahead, &[], None).ends_with(USUAL_PATH));
    }

    #[test]
    fn links_are_relative_to_the_root_and_keep_their_ends() {
        let links = [(
            "/github/home".to_owned(),
            "/__w/_temp/_github_home".to_owned(),
        )];
        let bytes = links_archive(&links).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries: Vec<(PathBuf, PathBuf)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let to = entry.link_name().unwrap().unwrap().into_owned();
                (entry.path().unwrap().into_owned(), to)
            })
            .collect();
        assert_eq!(
            entries,
            [(
                PathBuf::from("github/home"),
                PathBuf::from("/__w/_temp/_github_home")
            )]
        );
    }
}
