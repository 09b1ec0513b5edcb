//! How much disk a folder takes. Walks a stranger's tree without leaving it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A tree that is deeper is not looked into: it counts as too much.
const DEPTH: usize = 200;
/// So does one with more entries.
const ENTRIES: u64 = 3_000_000;

/// Bytes of disk below a folder, each hard link its share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Something was too deep or too much to be counted.
    pub(crate) cut: bool,
}

/// Measures. What vanishes meanwhile is not counted.
pub(crate) fn folder(path: &Path) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let top = open(path)?;
    let device = top.metadata()?.dev();
    walk(&top, device, 0, &mut measured);
    Ok(measured)
}

fn walk(folder: &File, device: u64, depth: usize, measured: &mut Measured) {
    if depth > DEPTH || measured.entries > ENTRIES {
        measured.cut = true;
        return;
    }
    // By the open folder, not by names: those above may be changed by now.
    let here = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let Ok(entries) = fs::read_dir(&here) else {
        return;
    };
    for entry in entries.flatten() {
        // Not followed when it is a link.
        let path = here.join(entry.file_name());
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.dev() != device {
            continue;
        }
        measured.entries += 1;
        let links = if meta.is_dir() {
            1
        } else {
            meta.nlink().max(1)
        };
        measured.bytes += meta.blocks() * 512 / links;
        if measured.entries > ENTRIES {
            measured.cut = true;
            return;
        }
        if meta.is_dir()
            && let Ok(inner) = open(&path)
            && inner.metadata().is_ok_and(|meta| meta.dev() == device)
        {
            walk(&inner, device, depth + 1, measured);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_by_blocks_and_links_lead_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("big"), vec![1; 8 << 20]).unwrap();
        let top = dir.path();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/one"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(top.join("a/b/one"), top.join("a/two")).unwrap();
        let sparse = File::create(top.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink(outside.path(), top.join("a/out")).unwrap();
        let measured = folder(top).unwrap();
        assert!(!measured.cut);
        assert_eq!(measured.entries, 6);
        assert!(
            (1 << 20..(1 << 20) + (64 << 10)).contains(&measured.bytes),
            "{measured:?}"
        );
        assert!(folder(&top.join("a/out")).is_err(), "nor at the top");
    }

    #[test]
    fn what_is_too_deep_counts_as_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 0..DEPTH + 5 {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        assert!(folder(dir.path()).unwrap().cut);
    }
}
