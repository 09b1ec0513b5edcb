//! Bytes that the processes of a control group moved to and from disks.
//!
//! Version 2 counts both, and those of groups that are gone. Version 1 counts
//! only what a process waits for, so its writes are unknown; kernels from 6.9 on
//! count nothing there while no throttle is set, and then reads are unknown too.

use std::fs;
use std::path::Path;

/// A loop device's bytes are those of its file once more.
const LOOP_MAJOR: &str = "7";

/// Bytes read and written; none where the host cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskIo {
    pub(crate) read: Option<u64>,
    pub(crate) written: Option<u64>,
}

/// Of the group `folder` below the root of all hierarchies.
pub(crate) fn read(root: &Path, folder: &Path) -> DiskIo {
    if let Ok(text) = fs::read_to_string(root.join(folder).join("io.stat")) {
        return of_version_2(&text);
    }
    let file = root
        .join("blkio")
        .join(folder)
        .join("blkio.throttle.io_service_bytes_recursive");
    DiskIo {
        read: fs::read_to_string(file)
            .ok()
            .and_then(|text| reads_of_version_1(&text)),
        written: None,
    }
}

/// Lines like `254:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353`.
fn of_version_2(text: &str) -> DiskIo {
    let (mut read, mut written) = (0_u64, 0_u64);
    for line in text.lines().filter(|line| !is_loop(line)) {
        for field in line.split_whitespace().skip(1) {
            match field.split_once('=') {
                Some(("rbytes", bytes)) => read += bytes.parse::<u64>().unwrap_or(0),
                Some(("wbytes", bytes)) => written += bytes.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }
    DiskIo {
        read: Some(read),
        written: Some(written),
    }
}

/// Lines like `254:0 Read 1459200`; a total alone means that nothing is counted.
fn reads_of_version_1(text: &str) -> Option<u64> {
    let mut counted = None;
    for line in text.lines().filter(|line| !is_loop(line)) {
        let mut words = line.split_whitespace().skip(1);
        if words.next() == Some("Read") {
            let bytes = words.next().and_then(|bytes| bytes.parse::<u64>().ok())?;
            counted = Some(counted.unwrap_or(0) + bytes);
        }
    }
    counted
}

fn is_loop(line: &str) -> bool {
    line.split(':').next() == Some(LOOP_MAJOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian 12 (Linux 6.1) shows it, shortened.
    const VERSION_2: &str = "7:0 rbytes=999 wbytes=999 rios=1 wios=1 dbytes=0 dios=0\n\
        8:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n\
        8:16 rbytes=800 wbytes=4 rios=2 wios=1 dbytes=0 dios=0\n";
    const VERSION_1: &str = "7:0 Read 999\n254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 12288\n\
        254:0 Async 0\n254:0 Total 12288\n8:0 Read 10\n8:0 Write 0\n8:0 Total 10\nTotal 13297\n";

    fn tree(path: &str, text: &str) -> (tempfile::TempDir, DiskIo) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        let io = read(dir.path(), Path::new("g/x"));
        (dir, io)
    }

    #[test]
    fn version_2_counts_both_ways_and_each_byte_once() {
        let (_dir, io) = tree("g/x/io.stat", VERSION_2);
        assert_eq!(io.read, Some(1_459_200 + 800));
        assert_eq!(io.written, Some(314_773_504 + 4));
        // No line: no disk was touched, which is known.
        let (_dir, io) = tree("g/x/io.stat", "");
        assert_eq!((io.read, io.written), (Some(0), Some(0)));
    }

    #[test]
    fn version_1_knows_reads_at_most() {
        let file = "blkio/g/x/blkio.throttle.io_service_bytes_recursive";
        let (_dir, io) = tree(file, VERSION_1);
        assert_eq!((io.read, io.written), (Some(4_106), None));
        let (_dir, io) = tree(file, "Total 0\n");
        assert_eq!(io, DiskIo::default(), "nothing is counted here");
        let (_dir, io) = tree("elsewhere", "");
        assert_eq!(io, DiskIo::default());
    }
}
