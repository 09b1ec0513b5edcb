//! `runner logs`.

use std::io::{BufRead, BufReader};

use longshore_proto::v1::StreamRunnerLogsResponse;

use crate::fake::Fake;
use crate::program::{command, run, wait};
use crate::world::{Call, FIXED, harbour};

fn with_log(name: &str, chunks: &[(&[u8], u64)]) -> Fake {
    let mut world = harbour(FIXED);
    let chunks = chunks
        .iter()
        .map(|(chunk, skipped)| StreamRunnerLogsResponse {
            chunk: chunk.to_vec(),
            skipped: *skipped,
        });
    world.logs.insert(name.into(), chunks.collect());
    Fake::start(world)
}

#[test]
fn the_bytes_come_as_they_were_written_and_losses_are_said_on_stderr() {
    let chunks: &[(&[u8], u64)] = &[(b"one\n\x1b[1mtwo", 0), (b"\xc3\xa4\n", 17)];
    // Exited: the log outlives the runner.
    let fake = with_log("ls-k3x-ab12", chunks);
    let ended = run(
        &fake.url,
        &["runner", "logs", "ls-k3x-ab12", "--tail", "16k"],
    );
    assert_eq!(ended.code, 0);
    assert_eq!(ended.stdout, "one\n\x1b[1mtwo\u{e4}\n");
    assert_eq!(ended.stderr, "skipped 17 bytes\n");
    let calls = fake.calls();
    let [Call::Logs(request)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!((request.follow, request.tail_bytes), (false, 16 << 10));
}

#[test]
fn programs_get_an_object_for_each_line_and_each_loss() {
    let chunks: &[(&[u8], u64)] = &[(b"one\ntw", 0), (b"o\n", 0), (b"\xffend", 17)];
    let fake = with_log("ls-k3x-ab12", chunks);
    for format in ["json", "jsonl"] {
        let ended = run(&fake.url, &["runner", "logs", "ls-k3x-ab12", "-o", format]);
        let told = "{\"line\":\"one\"}\n{\"line\":\"two\"}\n{\"skipped\":17}\n{\"line\":\"\u{fffd}end\"}\n";
        assert_eq!((ended.code, ended.stdout.as_str()), (0, told));
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn following_shows_output_at_once_and_ends_with_an_error_when_the_scheduler_goes() {
    let fake = with_log("ls-k3x-cd34", &[(b"working\n", 0)]);
    let mut child = command(&fake.url, &["runner", "logs", "-f", "0123456789ab"])
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "working\n");
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
    assert!(matches!(fake.calls().as_slice(), [Call::Logs(r)] if r.follow));
    drop(fake);
    assert_eq!(wait(&mut child).code(), Some(4));
}
