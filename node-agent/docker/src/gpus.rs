//! Which GPUs sandboxes may be given, and the container start that proves one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use agent_core::dialect::Dialect;
use agent_core::gpu::{Injection, Lease, Sight, Wanted, judge};
use agent_core::model::ErrorReason;
use agent_core::names::label;
use agent_core::runtime::RuntimeError;
use agent_core::sandbox::{Place, gpu_proof};
use bollard::Docker;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, LogsOptionsBuilder,
    RemoveImageOptionsBuilder,
};
use futures_util::StreamExt;
use tracing::{debug, info, warn};

use crate::engine::{bounded, down, end_of, failed, refused, remove_container};
use crate::runtime::{Inner, lock};
use crate::translate::container_body;

/// One proof, from the container's creation to its words.
const PROOF: Duration = Duration::from_secs(60);
/// The program says one short line.
const MOST_OUTPUT: usize = 64 << 10;

/// The program that looks from inside, and what it was linked with: all of the image.
#[derive(Clone, Debug)]
pub struct ProofProgram {
    pub executable: PathBuf,
    /// The loader, which has to be at this very path.
    pub loader: Option<PathBuf>,
    /// Name by which each is looked for, and where it is.
    pub libraries: Vec<(String, PathBuf)>,
}

/// A GPU to be proven.
#[derive(Clone, Debug)]
pub struct ToProve {
    pub wanted: Wanted,
    /// A CDI spec of the host names it.
    pub has_cdi: bool,
}

/// What came of it: how the engine gives it and what was seen, or why not.
pub type Proof = Result<(Injection, String), String>;

/// What sandboxes may be given now.
#[derive(Default)]
pub(crate) struct Gpus(Mutex<BTreeMap<String, Injection>>);

impl Gpus {
    pub(crate) fn offer(&self, offered: BTreeMap<String, Injection>) {
        *lock(&self.0) = offered;
    }

    /// How the engine gives each of them. Refused as a whole when one is not offered.
    pub(crate) fn leases(&self, uuids: &[String]) -> Result<Vec<Lease>, RuntimeError> {
        let offered = lock(&self.0);
        uuids
            .iter()
            .map(|uuid| {
                let by = offered.get(uuid).ok_or_else(|| RuntimeError {
                    reason: ErrorReason::SpecRefused,
                    detail: format!("{uuid} is not offered by this node at present"),
                })?;
                Ok(Lease {
                    uuid: uuid.clone(),
                    by: *by,
                })
            })
            .collect()
    }
}

impl Inner {
    pub(crate) async fn prove_gpus(
        &self,
        program: &ProofProgram,
        wanted: &[ToProve],
    ) -> Result<Vec<Proof>, RuntimeError> {
        let (docker, facts) = self.connected()?;
        // Asked anew: an engine that was configured for GPUs was started again.
        let engine = bounded("asking the engine about CDI", docker.info()).await?;
        let engine_has_cdi = engine.cdi_spec_dirs.is_some_and(|dirs| !dirs.is_empty());
        let tag = format!("longshore-gpu-proof:{}", self.config.instance.as_str());
        let archive = archive(program.clone()).await?;
        import(&docker, &tag, &self.image_label(), archive).await?;
        let image = bounded("looking at the proving image", docker.inspect_image(&tag)).await?;
        let place = Place {
            image_id: image.id.unwrap_or_else(|| tag.clone()),
            network: String::new(),
            work_volume: String::new(),
            bin_volume: String::new(),
            externals_volume: String::new(),
            tools_volume: String::new(),
            dns: vec![],
            proxy: None,
            host_cpus: self.config.host_cpus,
            cgroup_parent: String::new(),
            labels: vec![
                (label::INSTANCE.into(), self.config.instance.as_str().into()),
                (label::NODE.into(), self.config.node.clone()),
                // Swept at the next start should this process end meanwhile.
                (label::ROLE.into(), "gpu-probe".into()),
            ],
            dialect: Dialect::of(&facts.kind),
            seccomp: facts.seccomp.clone(),
            users_are_mapped: facts.users_are_mapped(),
            gpus: vec![],
            runtimes: vec![],
        };
        let mut proofs = Vec::new();
        for one in wanted {
            let ways: &[Injection] = match engine_has_cdi && one.has_cdi {
                true => &[Injection::Cdi, Injection::Hook],
                false => &[Injection::Hook],
            };
            let proof = self.prove(&docker, &place, &one.wanted, ways).await;
            match &proof {
                Ok((by, seen)) => info!(gpu = one.wanted.uuid, by = by.word(), seen, "proven"),
                Err(problem) => warn!(gpu = one.wanted.uuid, problem, "not proven"),
            }
            proofs.push(proof);
        }
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        let gone = bounded(
            "removing the proving image",
            docker.remove_image(&tag, Some(options), None),
        );
        if let Err(error) = gone.await {
            debug!(%error, "the proving image stays; the next proof replaces it");
        }
        Ok(proofs)
    }

    /// The first way that works.
    async fn prove(
        &self,
        docker: &Docker,
        place: &Place,
        wanted: &Wanted,
        ways: &[Injection],
    ) -> Proof {
        let mut problems = Vec::new();
        for by in ways {
            let name = format!(
                "ls-{}-gpu-{:08x}",
                self.config.instance.as_str(),
                rand::random::<u32>()
            );
            let lease = Lease {
                uuid: wanted.uuid.clone(),
                by: *by,
            };
            let sight = tokio::time::timeout(PROOF, self.see(docker, place, &lease, &name)).await;
            if let Err(error) = remove_container(docker, &name).await {
                debug!(%error, "a proving container is removed at the next start");
            }
            let judged = match sight {
                Ok(Ok(sight)) => judge(wanted, &sight),
                Ok(Err(error)) => Err(error.detail),
                Err(_) => Err(format!(
                    "the container did not say what it saw within {} s",
                    PROOF.as_secs()
                )),
            };
            match judged {
                Ok(evidence) => {
                    let seen = format!(
                        "a container was started with it by {}: {evidence}",
                        by.word()
                    );
                    return Ok((*by, seen));
                }
                Err(problem) => problems.push(format!("by {}: {problem}", by.word())),
            }
        }
        Err(problems.join("; "))
    }

    async fn see(
        &self,
        docker: &Docker,
        place: &Place,
        lease: &Lease,
        name: &str,
    ) -> Result<Sight, RuntimeError> {
        let sandbox = gpu_proof::sandbox(lease, "", place);
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        bounded(
            "making the proving container",
            docker.create_container(Some(options), container_body(&sandbox)),
        )
        .await?;
        bounded(
            "starting the proving container",
            docker.start_container(name, None),
        )
        .await?;
        // How it ended is told by what it said.
        end_of(docker, name).await;
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let mut logs = docker.logs(name, Some(options));
        let mut said = String::new();
        while let Some(piece) = logs.next().await {
            let piece = piece.map_err(|error| failed("reading what the container saw", &error))?;
            said.push_str(&String::from_utf8_lossy(&piece.into_bytes()));
            if said.len() > MOST_OUTPUT {
                break;
            }
        }
        let line = said.lines().find(|line| line.starts_with('{'));
        line.and_then(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| {
                refused(format!(
                    "the container did not say what it saw, but: {}",
                    said.trim().chars().take(500).collect::<String>()
                ))
            })
    }
}

/// An image of one program: nothing is pulled, and there is nothing else to run.
async fn archive(program: ProofProgram) -> Result<Vec<u8>, RuntimeError> {
    let built = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(Vec::new());
        // Engines do not read entries with holes.
        archive.sparse(false);
        let mut folders = vec![PathBuf::from("proof"), PathBuf::from("proof/lib")];
        if let Some(loader) = &program.loader {
            let above = loader.ancestors().skip(1).collect::<Vec<_>>();
            let below_root = above
                .iter()
                .rev()
                .filter_map(|path| path.strip_prefix("/").ok());
            folders.extend(below_root.map(PathBuf::from));
        }
        for folder in folders.iter().filter(|path| path.as_os_str() != "") {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            archive.append_data(&mut header, folder, std::io::empty())?;
        }
        let mut add = |path: &str, file: &PathBuf| {
            archive.append_path_with_name(file, path.trim_start_matches('/'))
        };
        add(gpu_proof::PROGRAM, &program.executable)?;
        if let Some(loader) = &program.loader {
            add(&loader.to_string_lossy(), loader)?;
        }
        for (name, file) in &program.libraries {
            add(&format!("{}/{name}", gpu_proof::LIBRARIES), file)?;
        }
        archive.into_inner()
    })
    .await;
    match built {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(down(format!(
            "the image of the proving container cannot be made: {error}"
        ))),
        Err(_) => Err(down("the agent is ending".into())),
    }
}

async fn import(
    docker: &Docker,
    tag: &str,
    label: &str,
    archive: Vec<u8>,
) -> Result<(), RuntimeError> {
    let (repo, version) = tag.split_once(':').unwrap_or((tag, "latest"));
    let options = CreateImageOptionsBuilder::new()
        .from_src("-")
        .repo(repo)
        .tag(version)
        // Swept at the next start should this process end meanwhile.
        .changes(vec![format!("LABEL {label}")])
        .build();
    let body = bollard::body_full(archive.into());
    let mut progress = docker.create_image(Some(options), Some(body), None);
    bounded("importing the proving image", async {
        while let Some(step) = progress.next().await {
            step?;
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_given() {
        let gpus = Gpus::default();
        assert!(gpus.leases(&[]).is_ok_and(|leases| leases.is_empty()));
        let refused = gpus.leases(&["GPU-1".into()]).unwrap_err();
        assert_eq!(refused.reason, ErrorReason::SpecRefused);
        gpus.offer(BTreeMap::from([("GPU-1".to_owned(), Injection::Cdi)]));
        assert_eq!(
            gpus.leases(&["GPU-1".into()]).unwrap()[0].by,
            Injection::Cdi
        );
        assert!(gpus.leases(&["GPU-1".into(), "GPU-2".into()]).is_err());
    }
}
