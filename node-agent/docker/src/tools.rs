//! Fills the tools volume: its files are uploaded to a container that never runs.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use agent_core::runtime::RuntimeError;
use agent_core::sandbox::VolumeMount;
use agent_core::tools::{self, File};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, UploadToContainerOptionsBuilder};

use crate::engine::{bounded, refused, remove_container};
use crate::translate::volume_mount;

/// Uploads every file to a volume that is empty.
pub(crate) async fn fill(
    docker: &Docker,
    volume: &str,
    labels: HashMap<String, String>,
    image_id: &str,
    platform: &str,
) -> Result<(), RuntimeError> {
    let archive = archive(&tools::files())
        .map_err(|error| refused(format!("packing the files of {volume}: {error}")))?;
    let mount = VolumeMount {
        volume: volume.to_owned(),
        target: tools::ROOT.into(),
        read_only: false,
        copy_up: false,
    };
    let body = ContainerCreateBody {
        image: Some(image_id.to_owned()),
        entrypoint: Some(vec!["/never/started".into()]),
        labels: Some(labels.clone()),
        host_config: Some(HostConfig {
            network_mode: Some("none".into()),
            mounts: Some(vec![volume_mount(&mount, &labels)]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new()
        .platform(platform)
        .build();
    let created = bounded(
        "making a filler container",
        docker.create_container(Some(options), body),
    )
    .await?;
    let options = UploadToContainerOptionsBuilder::new()
        .path(tools::ROOT)
        .build();
    let uploaded = bounded(
        &format!("filling volume {volume}"),
        docker.upload_to_container(
            &created.id,
            Some(options),
            bollard::body_full(archive.into()),
        ),
    )
    .await;
    let removed = remove_container(docker, &created.id).await;
    uploaded.and(removed)
}

/// The files as root owns them: the job's user reads and runs them.
fn archive(files: &[File]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let folders: BTreeSet<&Path> = files
        .iter()
        .flat_map(|file| Path::new(&file.path).ancestors().skip(1))
        .filter(|folder| !folder.as_os_str().is_empty())
        .collect();
    for folder in folders {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        header.set_mtime(0);
        builder.append_data(&mut header, folder, std::io::empty())?;
    }
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(file.text.len() as u64);
        header.set_mode(if file.program { 0o755 } else { 0o644 });
        header.set_mtime(0);
        builder.append_data(&mut header, &file.path, file.text.as_bytes())?;
    }
    builder.into_inner()
}
