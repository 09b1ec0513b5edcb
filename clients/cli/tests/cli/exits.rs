//! How commands fail: exit codes and the two lines on stderr.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use tonic::{Code, Status};

use crate::fake::{Fake, error};
use crate::program::{command, run, wait};
use crate::world::{FIXED, World, harbour};

/// A port where nothing listens.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn nobody_there() {
    let address = closed_port();
    run(&address, &["runner", "status"]).failed(
        4,
        &format!("no scheduler answers at {address}: connection refused"),
        "start a scheduler with `longshore up`, or name another with --scheduler or LONGSHORE_ADDRESS",
    );
}

#[test]
fn the_flag_stands_over_the_environment() {
    let fake = Fake::start(harbour(FIXED));
    let args = ["job", "list", "--scheduler", &fake.url, "-o", "name"];
    assert_eq!(run(&closed_port(), &args).good(), "101\n102\n");
}

#[test]
fn something_else_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .unwrap();
            // Until the other side hangs up, which may be rude.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    for args in [["runner", "status"], ["runner", "start"]] {
        let ended = run(&address, &args);
        assert_eq!((ended.code, ended.stdout.as_str()), (4, ""));
        let (what, next) = ended.stderr.split_once('\n').unwrap();
        let start = format!("error: no scheduler answers at {address}: ");
        assert!(
            what.starts_with(&start) && what.len() > start.len(),
            "{what}"
        );
        let check = "  next: check that the address is a scheduler's API listener (--scheduler, LONGSHORE_ADDRESS)\n";
        assert_eq!(next, check);
    }
}

/// The webhook listener and any web server: a well-formed answer, but not of gRPC.
#[test]
fn a_web_server_is_no_scheduler() {
    let fake = Fake::start(harbour(FIXED));
    // What tonic makes of a 404 without gRPC, and of a gRPC server without the service.
    let web = "grpc-status header missing, mapped from HTTP status code 404";
    for (call, text) in [("list_nodes", ""), ("list_jobs", web)] {
        let status = Status::new(Code::Unimplemented, text);
        // More than the client tries again.
        fake.world().faults.insert(call, vec![status; 50]);
    }
    for (args, problem) in [
        (
            ["node", "list"],
            "what answers there does not know the call; it is another listener, or another version",
        ),
        (["job", "list"], "what answers there does not speak gRPC"),
    ] {
        run(&fake.url, &args).failed(
            4,
            &format!("no scheduler answers at {}: {problem}", fake.url),
            "check that the address is a scheduler's API listener (--scheduler, LONGSHORE_ADDRESS)",
        );
    }
}

#[test]
fn a_repository_has_an_owner() {
    for args in ["job list --repo web", "runner list-containers --repo a/b/c"] {
        let ended = run("http://127.0.0.1:9", &args.split(' ').collect::<Vec<_>>());
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("write owner/name"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn an_answer_that_does_not_come() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    run(&address, &["node", "list", "--timeout", "300ms"]).failed(
        6,
        &format!("{address} did not answer ListNodes within 300 ms"),
        "look at the scheduler's log, or allow more time with --timeout",
    );
}

#[test]
fn unknown_things_are_not_found() {
    let fake = Fake::start(harbour(FIXED));
    for (args, what, next) in [
        (
            "node describe n9",
            "no node is called n9",
            "list them: longshore node list",
        ),
        (
            "node drain n9",
            "no node is called n9",
            "list them: longshore node list",
        ),
        (
            "runner list-containers --node n9",
            "no node is called n9",
            "list them: longshore node list",
        ),
        (
            "job describe 9",
            "no job is called 9",
            "list them: longshore job list",
        ),
        (
            "explain 9",
            "no job is called 9",
            "list them: longshore job list",
        ),
        (
            "runner stop-container --container zz",
            "no runner is called zz",
            "list them: longshore runner list",
        ),
        (
            "runner logs zz",
            "no runner is called zz",
            "list them: longshore runner list",
        ),
        (
            "runner provision --repo acme/none",
            "repository acme/none is not watched",
            "list them: longshore runner list-workflows",
        ),
        (
            "pool delete zz",
            "no pool is called zz",
            "list them: longshore pool list",
        ),
    ] {
        let args: Vec<_> = args.split(' ').collect();
        run(&fake.url, &args).failed(3, what, next);
    }
}

#[test]
fn an_ambiguous_name_is_wrong_usage() {
    let fake = Fake::start(harbour(FIXED));
    run(
        &fake.url,
        &["runner", "stop-container", "--container", "ls-"],
    )
    .failed(
        2,
        "ls- is the beginning of 3 runners",
        "give more of the name",
    );
}

#[test]
fn refusals_have_a_code_of_their_own() {
    for code in [
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::FailedPrecondition,
    ] {
        let fake = Fake::start(World::default());
        let refusal = error(code, "node n1 runs 2 jobs", "node_busy", "drain it first");
        fake.world().faults.insert("remove_node", vec![refusal]);
        run(&fake.url, &["node", "remove", "n1"]).failed(
            5,
            "node n1 runs 2 jobs",
            "drain it first",
        );
    }
}

#[test]
fn a_fault_of_the_scheduler_is_a_plain_failure() {
    let fake = Fake::start(World::default());
    fake.world()
        .faults
        .insert("list_nodes", vec![Status::internal("disk\x1b[31m full")]);
    let ended = run(&fake.url, &["node", "list"]);
    assert_eq!(ended.code, 1);
    assert_eq!(ended.stderr, "error: disk\u{fffd}[31m full\n");
}

#[test]
fn a_read_is_tried_again_while_the_scheduler_restarts() {
    let fake = Fake::start(harbour(FIXED));
    let away = || error(Code::Unavailable, "starting", "starting", "wait");
    fake.world()
        .faults
        .insert("list_nodes", vec![away(), away(), away()]);
    assert_eq!(
        run(&fake.url, &["node", "list", "-o", "name"]).good(),
        "n1\n"
    );
    fake.world()
        .faults
        .insert("list_nodes", (0..10).map(|_| away()).collect());
    run(&fake.url, &["node", "list"]).failed(4, "starting", "wait");
    assert_eq!(
        fake.world().faults["list_nodes"].len(),
        6,
        "four tries in all"
    );
}

#[test]
fn wrong_usage() {
    let fake = Fake::start(World::default());
    for args in [
        "",
        "runner",
        "job lst",
        "job list --state done",
        "runner start --interval 0",
        "runner provision --count 0",
        "runner stop-container",
        "share set acme --weight 1001",
        "node list --timeout 0",
        "node list -o yaml",
        "node list --no-such",
        "explain twelve",
    ] {
        let args: Vec<_> = args.split(' ').filter(|a| !a.is_empty()).collect();
        let ended = run(&fake.url, &args);
        assert_eq!(ended.code, 2, "{args:?}");
        assert_eq!(ended.stdout, "", "{args:?}");
        assert!(!ended.stderr.is_empty(), "{args:?}");
    }
    let ended = run("ftp://x", &["node", "list"]);
    assert_eq!(ended.code, 2);
    assert!(
        ended.stderr.contains("next: give it as http://HOST:PORT"),
        "{}",
        ended.stderr
    );
    assert_eq!(fake.calls(), [], "nothing reached the scheduler");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    // Far more than a pipe holds.
    let jobs = (1..=5_000)
        .map(|id| longshore_proto::v1::Job {
            id,
            name: "x".repeat(100),
            ..Default::default()
        })
        .collect();
    let fake = Fake::start(World {
        jobs,
        ..World::default()
    });
    let mut child = command(
        &fake.url,
        &["job", "list", "--limit", "5000", "-o", "jsonl"],
    )
    .spawn()
    .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("\"id\":1,"), "{line}");
    drop(stdout);
    let status = wait(&mut child);
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_full_disk_is_an_error() {
    let fake = Fake::start(harbour(FIXED));
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = command(&fake.url, &["job", "list"]);
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: write the output: "), "{stderr}");
}
