//! The first node of a fleet on this host joins without anybody carrying a token.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use longshore_client::Client;
use longshore_proto::v1;

use super::plan::Plan;
use super::state::make_dir;
use crate::commands::request_id;
use crate::exit::Failure;

/// A join token in a file, which goes when this does.
#[derive(Debug)]
pub(super) struct JoinFile(PathBuf);

impl JoinFile {
    /// Asks for a token unless the agent has joined the authority `ca` before.
    pub(super) async fn for_agent(
        plan: &Plan,
        client: &Client,
        ca: Option<&Path>,
    ) -> Result<Option<JoinFile>, Failure> {
        if has_joined(&plan.agent_state().join("identity"), ca) {
            return Ok(None);
        }
        let request = v1::CreateJoinTokenRequest {
            request_id: request_id(),
            node: plan.node().unwrap_or_default().to_owned(),
            ttl: None,
        };
        let made = client.create_join_token(request).await?;
        make_dir(&plan.state)?;
        let path = plan.state.join("join-token");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(made.secret.as_bytes()));
        written.map_err(|e| {
            let what = format!("write {}: {e}", path.display());
            Failure::failed(what, "check the folder's owner and free space")
        })?;
        Ok(Some(JoinFile(path)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for JoinFile {
    fn drop(&mut self) {
        // It is used or runs out.
        let _ = fs::remove_file(&self.0);
    }
}

/// An identity of another authority, whose scheduler's state is gone, is put aside.
fn has_joined(identity: &Path, ca: Option<&Path>) -> bool {
    if !identity.join("identity.json").exists() {
        return false;
    }
    let Some(Ok(ours)) = ca.map(fs::read) else {
        return true;
    };
    let same = fs::read(identity.join("ca.pem")).is_ok_and(|joined| joined == ours);
    if !same {
        let aside = identity.with_extension("of-another-scheduler");
        let _ = fs::remove_dir_all(&aside);
        return fs::rename(identity, aside).is_err();
    }
    true
}
