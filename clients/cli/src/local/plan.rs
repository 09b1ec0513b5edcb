//! What is to be started, with which flags.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::args::Global;
use crate::args::local::Local;
use crate::args::runner::Scaling;
use crate::exit::Failure;

use super::state::state_dir;

/// Where `up` puts the listeners when neither flag nor file says so.
const NODES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);
const WEBHOOKS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);

/// A fleet on this host.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) state: PathBuf,
    pub(crate) api: SocketAddr,
    local: Local,
    scaling: Scaling,
}

impl Plan {
    pub(crate) fn new(global: &Global, local: &Local, scaling: &Scaling) -> Result<Plan, Failure> {
        let api = loopback(&global.scheduler).ok_or_else(|| {
            Failure::usage(
                format!("a scheduler cannot listen at {}", global.scheduler),
                "give a loopback address such as http://127.0.0.1:9000, or start it on that host",
            )
        })?;
        Ok(Plan {
            state: state_dir(local.state_dir.as_deref())?,
            api,
            local: local.clone(),
            scaling: scaling.clone(),
        })
    }

    pub(super) fn verbose(&self) -> bool {
        self.local.verbose
    }

    /// Addresses that must be free, with what they are for. A configuration
    /// file may move the last two, so they are then not known here.
    pub(super) fn listeners(&self) -> Vec<(&'static str, SocketAddr)> {
        let mut listeners = vec![("the API", self.api)];
        let unless_in_file = |given: Option<SocketAddr>, default| match given {
            Some(given) => Some(given),
            None => self.local.config.is_none().then_some(default),
        };
        if let Some(nodes) = unless_in_file(self.local.node_listen, NODES) {
            listeners.push(("node agents (--node-listen)", nodes));
        }
        if let Some(webhooks) = unless_in_file(self.local.webhook_listen, WEBHOOKS) {
            listeners.push(("webhooks (--webhook-listen)", webhooks));
        }
        listeners
    }

    /// Flags of longshore-scheduler.
    pub(super) fn scheduler_args(&self) -> Vec<OsString> {
        let mut args = Args::default();
        args.flag("--state-dir", self.state.join("scheduler"));
        args.flag("--api-listen", self.api.to_string());
        args.optional("--config", self.local.config.as_ref());
        self.listen_args(&mut args);
        self.github_args(&mut args);
        self.scaling_args(&mut args);
        args.0
    }

    /// Folder of the agent's state.
    pub(super) fn agent_state(&self) -> PathBuf {
        self.state.join("agent")
    }

    /// The agent's name, when one was given.
    pub(super) fn node(&self) -> Option<&str> {
        self.local.node.as_deref()
    }

    /// Flags of longshore-agent; `nodes` is where the scheduler listens.
    pub(super) fn agent_args(&self, nodes: &str, join_token: Option<&Path>) -> Vec<OsString> {
        let mut args = Args::default();
        args.flag("--state-dir", self.agent_state());
        args.flag("--scheduler", format!("https://{nodes}"));
        args.optional("--join-token-file", join_token);
        args.optional("--config", self.local.agent_config.as_ref());
        self.engine_args(&mut args);
        args.0
    }

    /// Flags of `longshore` that start the same fleet in another process.
    pub(super) fn up_args(&self) -> Vec<OsString> {
        let mut args = Args::default();
        args.0.push("up".into());
        args.0.push("--detached".into());
        args.flag("--scheduler", format!("http://{}", self.api));
        args.flag("--state-dir", &self.state);
        args.optional("--config", self.local.config.as_ref());
        args.optional("--agent-config", self.local.agent_config.as_ref());
        self.listen_args(&mut args);
        self.github_args(&mut args);
        self.scaling_args(&mut args);
        self.engine_args(&mut args);
        args.0
    }

    fn listen_args(&self, args: &mut Args) {
        let text = |a: Option<SocketAddr>| a.map(|a| a.to_string());
        args.optional("--node-listen", text(self.local.node_listen));
        args.optional("--webhook-listen", text(self.local.webhook_listen));
    }

    fn github_args(&self, args: &mut Args) {
        let local = &self.local;
        args.optional("--github-api-url", local.github_api_url.as_ref());
        args.optional("--github-token-file", local.github_token_file.as_ref());
        let id = local.github_app_id.map(|id| id.to_string());
        args.optional("--github-app-id", id);
        args.optional("--github-app-key-file", local.github_app_key_file.as_ref());
        for file in &local.webhook_secret_files {
            args.flag("--webhook-secret-file", file);
        }
    }

    fn scaling_args(&self, args: &mut Args) {
        let scaling = &self.scaling;
        for owner in &scaling.owners {
            args.flag("--owner", owner);
        }
        args.optional("--interval", scaling.interval.map(|n| n.to_string()));
        args.optional("--since-days", scaling.since_days.map(|n| n.to_string()));
        args.optional("--max-runners", scaling.max_runners.map(|n| n.to_string()));
        args.optional("--image", scaling.image.as_ref());
    }

    fn engine_args(&self, args: &mut Args) {
        args.optional("--node", self.local.node.as_ref());
        args.optional("--engine-socket", self.local.engine_socket.as_ref());
        args.optional("--slots-cidr", self.local.slots_cidr.as_ref());
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    fn optional(&mut self, name: &str, value: Option<impl AsRef<std::ffi::OsStr>>) {
        if let Some(value) = value {
            self.flag(name, value);
        }
    }
}

/// Whether a scheduler at this address would be one of this host.
pub(crate) fn is_loopback(address: &str) -> bool {
    loopback(address).is_some()
}

/// Whether what is sent to this address, by whatever scheme, stays on this host.
pub(crate) fn is_this_host(address: &str) -> bool {
    let rest = address.strip_prefix("https://").unwrap_or(address);
    loopback(rest).is_some()
}

/// `http://127.0.0.1:9000`, `localhost:9000` as an address to listen at.
fn loopback(address: &str) -> Option<SocketAddr> {
    let rest = match address.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => address,
    };
    let rest = rest.trim_end_matches('/');
    let parsed = match rest.strip_prefix("localhost:") {
        Some(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?),
        None => rest.parse().ok()?,
    };
    parsed.ip().is_loopback().then_some(parsed)
}

/// Paths given to a child are absolute: it may run in another folder.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_this_hosts_goes_to_loopback_only() {
        for here in [
            "http://127.0.0.1:9000",
            "https://localhost:1",
            "https://[::1]:1",
        ] {
            assert!(is_this_host(here), "{here}");
        }
        for away in [
            "http://192.0.2.1:9000",
            "https://fleet.example:1",
            "https://127.0.0.1.example:1",
        ] {
            assert!(!is_this_host(away), "{away}");
        }
    }

    #[test]
    fn only_a_loopback_address_can_be_listened_at() {
        for (text, want) in [
            ("http://127.0.0.1:9000", Some("127.0.0.1:9000")),
            ("http://localhost:9100/", Some("127.0.0.1:9100")),
            ("127.0.0.1:0", Some("127.0.0.1:0")),
            ("http://[::1]:9000", Some("[::1]:9000")),
            ("http://192.0.2.1:9000", None),
            ("https://127.0.0.1:9000", None),
            ("http://scheduler.example:9000", None),
        ] {
            let got = loopback(text).map(|a| a.to_string());
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }
}
