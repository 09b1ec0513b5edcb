//! The files that tell of a sandbox, below a root: the real one, or a recorded one.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file that is read.
const LONGEST: u64 = 1 << 20;

/// A file tree.
#[derive(Clone, Debug)]
pub(crate) struct View {
    root: PathBuf,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Folder of the file system that is mounted, for example the host's.
    pub(crate) origin: String,
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) super_options: Vec<String>,
}

impl Mount {
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|have| have == option)
    }

    /// Size in KiB that a tmpfs was given.
    pub(crate) fn size_kib(&self) -> Option<u64> {
        let size = self
            .super_options
            .iter()
            .find_map(|option| option.strip_prefix("size="))?;
        match size.strip_suffix('k') {
            Some(kib) => kib.parse().ok(),
            None => size.parse::<u64>().ok().map(|bytes| bytes / 1024),
        }
    }
}

impl View {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is looked at is this process, so that it may also act.
    pub(crate) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn read(&self, path: &str) -> Option<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        fs::File::open(self.path(path))
            .ok()?
            .take(LONGEST)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// First of these files that can be read, without the line's end.
    pub(crate) fn value(&self, paths: &[&str]) -> Option<String> {
        paths
            .iter()
            .find_map(|path| self.read(path))
            .map(|text| text.trim().to_owned())
    }

    /// Names in a folder.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(path))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// A field of `/proc/self/status`.
    pub(crate) fn status(&self, field: &str) -> Option<String> {
        self.read("/proc/self/status")?
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    }

    pub(crate) fn mounts(&self) -> Vec<Mount> {
        mounts_of(&self.read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// The runtime, from what its kernel says of itself.
    pub(crate) fn runtime(&self) -> Option<&'static str> {
        let version = self.read("/proc/version").unwrap_or_default();
        // Releases of gVisor give themselves out as this one build of Linux 4.4.
        let gvisor = version.contains("gVisor")
            || version.contains("4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016");
        gvisor.then_some("runsc")
    }
}

/// The mount that covers a path: the last one of the longest target.
pub(crate) fn covering<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| {
            mount.target == "/"
                || path
                    .strip_prefix(mount.target.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .max_by_key(|mount| mount.target.len())
}

fn mounts_of(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mount_of).collect()
}

fn mount_of(line: &str) -> Option<Mount> {
    let (place, system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let words = |text: &str| text.split(',').map(str::to_owned).collect();
    let mut mount = Mount {
        origin: place.next()?.to_owned(),
        target: plain(place.next()?),
        options: words(place.next()?),
        ..Mount::default()
    };
    let mut system = system.split(' ');
    mount.kind = system.next()?.to_owned();
    mount.source = system.next()?.to_owned();
    mount.super_options = words(system.next().unwrap_or_default());
    Some(mount)
}

/// The kernel writes blanks in names as octal numbers.
fn plain(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_field_by_field() {
        let text = "23 1 0:21 / / ro,relatime master:2 - overlay overlay rw,lowerdir=/a\n\
                    24 23 0:22 / /tmp rw,nosuid,noexec - tmpfs tmpfs rw,size=65536k\n\
                    25 23 0:23 /sys /proc/sys ro - proc proc rw\n\
                    nonsense\n";
        let mounts = mounts_of(text);
        assert_eq!(mounts.len(), 3);
        assert!(mounts[0].has("ro") && !mounts[0].has("rw"));
        assert_eq!(mounts[1].size_kib(), Some(65_536));
        assert_eq!(mounts[0].size_kib(), None);
        assert_eq!(mounts[2].origin, "/sys");
        let covers = |path| covering(&mounts, path).map(|mount| mount.target.as_str());
        assert_eq!(covers("/proc/sys/kernel"), Some("/proc/sys"));
        assert_eq!(covers("/proc/system"), Some("/"));
        assert_eq!(covers("/tmp"), Some("/tmp"));
    }
}
