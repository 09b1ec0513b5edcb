//! A job that writes its output as fast as it can.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;

use crate::on::On;
use crate::support::{Bench, random, run};

/// A gigabyte through an engine's log on a busy machine.
const FLOOD: Duration = Duration::from_secs(300);

/// Bytes on disk of all files in a folder and below it.
fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of_folder(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Largest memory of a process so far, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.expect("a peak").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_of_output_is_bounded_everywhere_and_what_the_agent_cut_is_told() {
    let mut bench = Bench::start(&On::Host, "flood").await;
    let (runner, neighbour) = (bench.name("flood"), bench.name("neighbour"));
    bench.want(&runner, run(&bench.image())).await;
    let mark = random();
    // It waits at the end until the neighbour is through, so that both are at work together.
    let job = format!(
        "yes $(head -c 4000 /dev/zero | tr '\\0' x) | head -c 1073741824; echo; \
         while [ ! -e _work/go ]; do sleep 0.1; done; echo end of flood {mark}; exit 38"
    );
    let before = peak_memory(bench.agent_pid());
    bench.register(&runner, &job, "x").await;
    let busy = bench.phase(&runner, Phase::Busy).await;

    // Another job goes through all of its life meanwhile.
    bench.want(&neighbour, run(&bench.image())).await;
    bench.register(&neighbour, "echo fine; exit 33", "x").await;
    let exit = bench.phase(&neighbour, Phase::Exited).await.exit;
    assert_eq!(exit.and_then(|exit| exit.code), Some(33));
    bench.touch(&runner, "/home/runner/_work/go");

    let root = bench.docker(&["info", "-f", "{{.DockerRootDir}}"]);
    let of_engine = PathBuf::from(root.trim())
        .join("containers")
        .join(&busy.container_id);
    let of_agent = bench.state_dir().join("logs");
    let deadline = Instant::now() + FLOOD;
    let (mut largest_engine, mut largest_agent) = (0, 0);
    while bench.phase_now(&runner) != Some(Phase::Exited) {
        assert!(Instant::now() < deadline, "the flood does not end");
        largest_engine = largest_engine.max(size_of_folder(&of_engine));
        largest_agent = largest_agent.max(size_of_folder(&of_agent));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let exit = bench.phase(&runner, Phase::Exited).await.exit;
    let exit = exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(38), Cause::Finished));
    let grown = peak_memory(bench.agent_pid()) - before;
    println!(
        "flood: the agent grew by {grown} KiB; at most {largest_engine} bytes at the engine, {largest_agent} at the agent"
    );
    assert!(
        (1..8 << 20).contains(&largest_engine),
        "at the engine: {largest_engine}"
    );
    assert!(
        (1..3 << 20).contains(&largest_agent),
        "at the agent: {largest_agent}"
    );
    assert!(grown < 32 << 10, "{grown} KiB");

    // Whoever asks for all of it gets the end and the number of bytes that the agent let go.
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench.watch_output(wish).await;
    let said = bench.output(&runner).await;
    let skipped = bench.skipped(&runner);
    println!("flood: {skipped} bytes skipped, {} kept", said.len());
    let end = &said[said.ceil_char_boundary(said.len().saturating_sub(200))..];
    assert!(said.ends_with(&format!("end of flood {mark}\n")), "{end}");
    assert!(said.len() < 3 << 20, "{}", said.len());
    assert!(skipped > 0, "no word of what the agent let go");
    // What a busy engine drops while it hands on, without an end of the stream, nobody can tell.
    let told = said.contains("some output was lost") || skipped + said.len() as u64 > 1 << 30;
    println!("flood: all that was lost is told: {told}");
    bench.finish().await;
}
