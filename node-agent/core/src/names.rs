//! Names this node gives to what it makes in the engine.

/// Labels on every container, volume and network of an agent.
pub mod label {
    /// Which fleet it serves; set on containers.
    pub const FLEET: &str = "longshore.fleet";
    pub const NODE: &str = "longshore.node";
    /// Which agent on this engine owns it. Sweeping goes by this one alone.
    pub const INSTANCE: &str = "longshore.instance";
    pub const SLOT: &str = "longshore.slot";
    /// Hash of the sandbox's data, to recognise it after a restart.
    pub const SPEC: &str = "longshore.spec";
    /// runner, sibling, init, filler, probe or gpu-probe.
    pub const ROLE: &str = "longshore.role";
    /// On images that an agent makes for itself: whose. One label and not two, since
    /// Podman takes all that an import asks for as one.
    pub const OWN_IMAGE: &str = "longshore.own-image";
    pub const PROFILE: &str = "longshore.profile";
    pub const PLATFORM: &str = "longshore.platform";
    /// Class of the runtime that makes it, where that is known.
    pub const RUNTIME: &str = "longshore.runtime";
    /// What a sibling is in its job: the job container, a step's or a service's name.
    pub const PART: &str = "longshore.part";
    /// Id of the runner's container that a sibling belongs to.
    pub const OF: &str = "longshore.of";
    /// UUIDs of the GPUs it was given, with commas between; absent without any.
    pub const GPUS: &str = "longshore.gpus";
    pub const LIFETIME_MS: &str = "longshore.lifetime-ms";
    /// What an allow-listed sandbox may reach, separated by spaces; absent on others.
    pub const ALLOWED: &str = "longshore.allowed-domains";
}

/// Tells two agents on one engine apart: derived from what they cannot share,
/// so that it survives a lost state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance(String);

impl Instance {
    pub fn new(node: &str, state_dir: &str) -> Self {
        let mut hash = Fnv::default();
        hash.write(node.as_bytes());
        hash.write(&[0]);
        hash.write(state_dir.as_bytes());
        Self(format!("{:06x}", hash.0 & 0xff_ffff))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What every bridge of this agent begins with. Linux allows 15 characters.
    pub fn bridge_prefix(&self) -> String {
        format!("ls-{}-", self.0)
    }

    /// Network and bridge of one slot.
    pub fn network(&self, slot: u32) -> String {
        format!("ls-{}-{slot}", self.0)
    }

    /// What the bridges of closed slots begin with: nothing is forwarded from them.
    pub fn closed_prefix(&self) -> String {
        format!("ls-{}-a", self.0)
    }

    /// Network and bridge of a slot from which only the egress proxy is reached.
    pub fn closed_network(&self, slot: u32) -> String {
        format!("ls-{}-a{slot}", self.0)
    }

    /// Container before its hand-over. A runner's name never has this form.
    pub fn unnamed_container(&self, slot: u32, salt: &str) -> String {
        format!("ls-{}-slot{slot}-{salt}", self.0)
    }

    /// Volume of one job's work folder.
    pub fn work_volume(&self, slot: u32, salt: &str) -> String {
        format!("ls-{}-work{slot}-{salt}", self.0)
    }

    /// Volume with one folder of an image's runner program.
    pub fn program_volume(&self, folder: &str, image_id: &str) -> String {
        let id = image_id.trim_start_matches("sha256:");
        format!("ls-{}-{folder}-{}", self.0, &id[..id.len().min(16)])
    }

    /// True for containers that were never renamed to a runner.
    pub fn is_unnamed(&self, container: &str) -> bool {
        let name = container.trim_start_matches('/');
        name.strip_prefix(&self.bridge_prefix())
            .is_some_and(|rest| rest.starts_with("slot"))
    }

    /// Firewall table of this agent.
    pub fn table(&self) -> String {
        format!("longshore_{}", self.0)
    }
}

/// A runner's name becomes a container name, a file name and a log field.
pub fn is_runner_name(name: &str) -> bool {
    name.len() <= 64
        && name.len() >= 4
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// FNV-1a, for names and spec hashes; nothing secret depends on it.
pub struct Fnv(pub u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u64::from(*byte);
            self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_on_one_engine_never_share_a_name() {
        let a = Instance::new("node", "/var/lib/longshore-a");
        let b = Instance::new("node", "/var/lib/longshore-b");
        assert_ne!(a, b);
        assert_ne!(a.network(1), b.network(1));
        assert_ne!(a.table(), b.table());
    }

    #[test]
    fn bridge_names_fit_linux() {
        let a = Instance::new("node", "/x");
        assert!(a.network(9_999).len() <= 15, "{}", a.network(9_999));
    }

    #[test]
    fn a_container_is_a_runner_only_after_its_rename() {
        let a = Instance::new("node", "/x");
        assert!(a.is_unnamed(&format!("/{}", a.unnamed_container(3, "ab"))));
        assert!(!a.is_unnamed("/ls-fleet-0123"));
    }

    #[test]
    fn runner_names_cannot_leave_a_folder_or_an_argument() {
        for bad in ["", "../x", "a/b", "-rf", "a b", "ls-\n", ".hid"] {
            assert!(!is_runner_name(bad), "{bad:?}");
        }
        assert!(is_runner_name("ls-f1-0a1b2c"));
    }
}
