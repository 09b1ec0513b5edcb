//! What the agent's program is when it runs in the container that proves a GPU:
//! it looks at what it was given and says so in one line.

use std::ffi::CStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use agent_core::gpu::Sight;
use agent_detect::nvidia;
use agent_docker::ProofProgram;

/// Prints what is to be seen here.
pub fn run() -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&look(Path::new("/")))?);
    Ok(())
}

fn look(root: &Path) -> Sight {
    let mut sight = Sight::default();
    let entries = std::fs::read_dir(root.join("dev")).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name
            .strip_prefix("nvidia")
            .and_then(|rest| rest.parse().ok())
        else {
            continue;
        };
        sight.nodes.push(number);
        if let Err(error) = File::open(entry.path()) {
            sight.unopened.push(format!("/dev/{name}: {error}"));
        }
    }
    sight.nodes.sort_unstable();
    match nvidia::open(root) {
        Ok(library) => match library.look(root) {
            Ok(found) => sight.uuids = found.gpus.into_iter().map(|gpu| gpu.uuid).collect(),
            Err(error) => sight.unusable = error.to_string(),
        },
        Err(problem) => sight.unusable = problem,
    }
    sight
}

/// This very program and what it was linked with, as the loader found it.
pub fn program() -> std::io::Result<ProofProgram> {
    let executable = std::fs::canonicalize("/proc/self/exe")?;
    let loader = loader_of(&executable)?;
    let libraries = loaded()
        .into_iter()
        // The driver's own come with the GPU.
        .filter(|path| Some(path) != loader.as_ref())
        .filter_map(|path| Some((path.file_name()?.to_string_lossy().into_owned(), path)))
        .filter(|(name, _)| !name.starts_with("libnvidia") && !name.starts_with("linux-vdso"))
        .collect();
    Ok(ProofProgram {
        executable,
        loader,
        libraries,
    })
}

/// Paths of the loaded shared libraries, by the names they were looked for.
#[allow(unsafe_code)]
fn loaded() -> Vec<PathBuf> {
    unsafe extern "C" fn each(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        list: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the loader hands in a valid entry, and `list` is the vector below.
        let (name, list) = unsafe { ((*info).dlpi_name, &mut *list.cast::<Vec<PathBuf>>()) };
        if !name.is_null() {
            // SAFETY: a C string that lives as long as the library is loaded.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            if name.starts_with('/') {
                list.push(PathBuf::from(name.as_ref()));
            }
        }
        0
    }
    let mut list: Vec<PathBuf> = Vec::new();
    // SAFETY: the callback gets the list and nothing else keeps it.
    unsafe { libc::dl_iterate_phdr(Some(each), std::ptr::from_mut(&mut list).cast()) };
    list
}

/// The interpreter that an ELF file names; none for a static one.
fn loader_of(executable: &Path) -> std::io::Result<Option<PathBuf>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(executable)?;
    let mut header = [0_u8; 64];
    file.read_exact(&mut header)?;
    let number = |bytes: &[u8]| {
        let mut wide = [0_u8; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    };
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return Ok(None);
    }
    let (table, size, count) = (
        number(&header[32..40]),
        number(&header[54..56]),
        number(&header[56..58]),
    );
    for at in 0..count.min(64) {
        let mut entry = [0_u8; 56];
        file.seek(SeekFrom::Start(table + at * size))?;
        file.read_exact(&mut entry)?;
        if number(&entry[0..4]) != u64::from(libc::PT_INTERP) {
            continue;
        }
        let length = number(&entry[32..40]).min(4_096) as usize;
        let mut path = vec![0_u8; length];
        file.seek(SeekFrom::Start(number(&entry[8..16])))?;
        file.read_exact(&mut path)?;
        let path = String::from_utf8_lossy(&path);
        return Ok(Some(PathBuf::from(path.trim_end_matches('\0'))));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_knows_what_it_needs() {
        let program = program().unwrap();
        assert!(program.executable.exists());
        let loader = program.loader.expect("linked dynamically");
        assert!(loader.exists() && loader.to_string_lossy().contains("ld"));
        let names: Vec<&str> = program
            .libraries
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert!(
            names.iter().any(|name| name.starts_with("libc.so")),
            "{names:?}"
        );
        assert!(program.libraries.iter().all(|(_, path)| path.exists()));
    }

    #[test]
    fn nodes_are_listed_and_opened() {
        let root = tempfile::tempdir().unwrap();
        let dev = root.path().join("dev");
        std::fs::create_dir(&dev).unwrap();
        for name in ["nvidia3", "nvidiactl", "nvidia-uvm", "null"] {
            std::fs::write(dev.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", dev.join("nvidia4")).unwrap();
        let sight = look(root.path());
        assert_eq!(sight.nodes, [3, 4]);
        assert_eq!(sight.unopened.len(), 1);
        assert!(sight.unopened[0].contains("/dev/nvidia4"));
        assert!(!sight.unusable.is_empty());
    }
}
