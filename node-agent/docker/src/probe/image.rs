//! The probe as the agent's own image, and as an archive for a job's.

use std::collections::HashMap;

use agent_core::names::{Fnv, label};
use agent_core::probe::{ARGUMENTS, PROGRAM};
use agent_core::runtime::RuntimeError;
use bollard::Docker;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures_util::StreamExt;
use tracing::warn;

use crate::engine::{bounded, gone_is_fine, refused};
use crate::runtime::Inner;

impl Inner {
    /// An image that holds the program and nothing else, made without a registry.
    pub(super) async fn own_image(
        &self,
        docker: &Docker,
        platform: &str,
    ) -> Result<String, RuntimeError> {
        let mut hash = Fnv::default();
        hash.write(agent_probe::PROGRAM);
        let repository = self.own_repository();
        let tag = format!("{:016x}", hash.0);
        let name = format!("{repository}:{tag}");
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(&repository)
            .tag(&tag)
            .platform(platform)
            // By it the image is found again when this process ends before the probe does.
            .changes(vec![format!("LABEL {}", self.image_label())])
            .build();
        let body = bollard::body_full(root()?.into());
        bounded("making the probe's image", async {
            let mut made = std::pin::pin!(docker.create_image(Some(options), Some(body), None));
            let mut last = None;
            while let Some(step) = made.next().await {
                last = step?.status.or(last);
            }
            Ok(last)
        })
        .await?
        .map(|id| id.trim().trim_start_matches("sha256:").to_owned())
        // By its id: not every engine gives it the name that it is asked to give.
        .filter(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        .map(|id| format!("sha256:{id}"))
        .ok_or_else(|| refused(format!("making image {name}: the engine told no id")))
    }

    fn own_repository(&self) -> String {
        format!("{PROGRAM}-{}", self.config.instance.as_str())
    }

    /// Removes the image that a look which was broken off left.
    pub(crate) async fn remove_own_images(&self, docker: &Docker) -> Result<(), RuntimeError> {
        let filters = HashMap::from([("reference", vec![self.own_repository()])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let what = "listing the probe's images";
        for image in bounded(what, docker.list_images(Some(options))).await? {
            self.forget_own_image(docker, &image.id).await;
        }
        Ok(())
    }

    pub(super) async fn forget_own_image(&self, docker: &Docker, name: &str) {
        if let Err(error) = remove_image(docker, name).await {
            warn!(%error, "left an image behind; it is removed at the next start");
        }
        self.images.forget(name);
    }

    /// Another one than containers have: an image that a person makes from a job's
    /// sandbox is that person's.
    pub(crate) fn image_label(&self) -> String {
        format!("{}={}", label::OWN_IMAGE, self.config.instance.as_str())
    }

    /// Removes images that an earlier process of this agent made to look at sandboxes
    /// and GPUs.
    pub(crate) async fn sweep_own_images(&self, docker: &Docker) -> Result<(), RuntimeError> {
        // One that runs now needs its image.
        let Ok(_one) = self.probing.try_lock() else {
            return Ok(());
        };
        let filters = HashMap::from([("label", vec![self.image_label()])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let list = bounded("listing own images", docker.list_images(Some(options))).await?;
        for image in list {
            remove_image(docker, &image.id).await?;
        }
        Ok(())
    }
}

async fn remove_image(docker: &Docker, name: &str) -> Result<(), RuntimeError> {
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    bounded(&format!("removing the probe's image {name}"), async {
        gone_is_fine(
            docker
                .remove_image(name, Some(options), None)
                .await
                .map(drop),
        )
    })
    .await
}

/// The program and its arguments for a job's image.
pub(super) fn archive(told: &[String]) -> Result<Vec<u8>, RuntimeError> {
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, PROGRAM, 0o700, agent_probe::PROGRAM)?;
    add(&mut builder, ARGUMENTS, 0o600, told.join("\n").as_bytes())?;
    builder
        .into_inner()
        .map_err(|error| refused(format!("packing the probe: {error}")))
}

/// The agent's own image.
fn root() -> Result<Vec<u8>, RuntimeError> {
    let mut builder = tar::Builder::new(Vec::new());
    for folder in [
        "dev",
        "etc",
        "home",
        "home/runner",
        "proc",
        "run",
        "sbin",
        "sys",
        "tmp",
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        // The engine gives a tmpfs the mode of the folder below it.
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        header.set_mtime(0);
        builder
            .append_data(&mut header, folder, std::io::empty())
            .map_err(|error| refused(format!("packing the probe's image: {error}")))?;
    }
    add(&mut builder, PROGRAM, 0o755, agent_probe::PROGRAM)?;
    builder
        .into_inner()
        .map_err(|error| refused(format!("packing the probe's image: {error}")))
}

fn add(
    builder: &mut tar::Builder<Vec<u8>>,
    name: &str,
    mode: u32,
    content: &[u8],
) -> Result<(), RuntimeError> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    builder
        .append_data(&mut header, name, content)
        .map_err(|error| refused(format!("packing {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_image_holds_the_program_and_folders_alone() {
        let tar = root().unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let files: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.header().entry_type().is_file())
            .map(|entry| entry.path().unwrap().display().to_string())
            .collect();
        assert_eq!(files, [PROGRAM]);
    }
}
