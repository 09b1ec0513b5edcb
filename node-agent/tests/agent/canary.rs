//! The registration is searched for wherever it could have been left, in the middle of a job.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use longshore_proto::v1::observed_runner::Phase;

use crate::on::On;
use crate::support::{self, Bench, run};

/// Larger files are read in pieces that overlap by the length of what is searched.
const PIECE: usize = 1 << 20;

/// Where `needle` is in the files below a folder that were written, renamed or made since
/// then: older ones cannot hold it. Sockets, pipes and devices are passed over.
fn files_with(folder: &Path, since: SystemTime, needle: &str) -> Vec<PathBuf> {
    let since = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Others make and remove things meanwhile.
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            // Of the entry itself: no link is followed.
            let Ok(of) = entry.metadata() else {
                continue;
            };
            let recent = u64::try_from(of.ctime()).is_ok_and(|changed| changed >= since);
            if of.is_dir() {
                folders.push(entry.path());
            } else if of.is_file() && recent && holds(&entry.path(), needle) {
                found.push(entry.path());
            }
        }
    }
    found
}

fn holds(path: &Path, needle: &str) -> bool {
    let Ok(mut file) = fs::File::open(path) else {
        return false;
    };
    let mut buffer = vec![0; PIECE];
    let zeroes = vec![0; PIECE];
    let mut kept = 0;
    loop {
        let Ok(read) = file.read(&mut buffer[kept..]) else {
            return false;
        };
        let end = kept + read;
        let text = &buffer[..end];
        // Work folders are mostly holes.
        if read > 0 && text == &zeroes[..end] {
            kept = 0;
            continue;
        }
        if text
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
        {
            return true;
        }
        if read == 0 {
            return false;
        }
        kept = end.min(needle.len());
        buffer.copy_within(end - kept..end, 0);
    }
}

/// Arguments and environments of every process of the host that hold it.
fn processes_with(needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let path = entry.path().join(file);
            if holds(&path, needle) {
                found.push(path);
            }
        }
    }
    found
}

/// Places outside the sandbox where it is, by name.
fn places(
    bench: &Bench,
    runner: &str,
    root: &Path,
    since: SystemTime,
    needle: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    for (place, text) in [
        ("inspect", bench.docker(&["inspect", runner])),
        ("top", bench.docker(&["top", runner, "-eo", "pid,args"])),
        ("logs", bench.docker(&["logs", runner])),
        ("agent's log", bench.agent_log()),
    ] {
        if text.contains(needle) {
            found.push(place.to_owned());
        }
    }
    // Container configurations, logs, writable layers and volumes are all below it.
    let on_disk = ["containers", "volumes", "overlay2", "image", "network"];
    let files = on_disk
        .iter()
        .flat_map(|folder| files_with(&root.join(folder), since, needle))
        .chain(files_with(bench.folder(), since, needle))
        .chain(files_with(Path::new("/run/docker"), since, needle))
        .chain(processes_with(needle));
    found.extend(files.map(|path| path.display().to_string()));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_nowhere_but_in_its_sandbox() {
    let on = On::Host;
    // Taken from standby: the way most go.
    let extra = [
        "--standby-enabled",
        "true",
        "--standby-floor",
        "1",
        "--standby-ceiling",
        "1",
        // Read from end to end.
        "--job-disk",
        "128MiB",
    ];
    let mut bench = Bench::start_with(&on, "canary", &extra).await;
    let (first, runner) = (bench.name("first"), bench.name("job"));
    bench.want(&first, run(&bench.image())).await;
    bench.phase(&first, Phase::Ready).await;
    let waiting = bench
        .until_standbys("one waits", |found| found.len() == 1)
        .await;
    bench.want(&runner, run(&bench.image())).await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    assert_eq!(ready.container_id, waiting[0]);

    let canary = format!("canary-{}-{}", support::random(), support::random());
    let job = "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done";
    // File systems keep time in coarser steps.
    let since = SystemTime::now() - Duration::from_secs(2);
    bench.register(&runner, job, &canary).await;
    bench.phase(&runner, Phase::Busy).await;
    let root = PathBuf::from(bench.docker(&["info", "-f", "{{.DockerRootDir}}"]).trim());

    // In the middle of the job: as it was sent, as the files hold it, and as it is encoded twice.
    let encoded = support::base64(&canary);
    for needle in [&canary, &encoded] {
        let found = places(&bench, &runner, &root, since, needle);
        assert_eq!(found, Vec::<String>::new(), "{needle} was left");
    }
    let inside = bench.exec(
        &runner,
        "cat /home/runner/.credentials; stat -c %a /home/runner/.credentials",
    );
    assert!(
        inside.contains(&canary) && inside.trim().ends_with("600"),
        "{inside}"
    );

    // The search itself works: put there on purpose, it is found in each kind of place.
    let planted = format!("planted-{}", support::random());
    bench.exec(
        &runner,
        &format!("echo {planted} > /home/runner/_work/left"),
    );
    fs::write(
        bench.folder().join("left"),
        format!("{}{planted}", " ".repeat(PIECE - 5)),
    )
    .unwrap();
    let mut sleeper = std::process::Command::new("sleep")
        .arg("60")
        .env("LEFT", &planted)
        .spawn()
        .unwrap();
    let found = places(&bench, &runner, &root, since, &planted).join("\n");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    for place in ["/volumes/", "/left", "/environ"] {
        assert!(found.contains(place), "{place} is not in\n{found}");
    }

    bench.exec(&runner, "touch /home/runner/_work/go");
    bench.phase(&runner, Phase::Exited).await;
    for needle in [&canary, &encoded] {
        let found = files_with(&root.join("volumes"), since, needle);
        assert!(found.is_empty(), "{found:?}");
    }
    bench.let_go(&first).await;
    bench.finish().await;
}
