//! The real agent program on a real engine, against a scheduler that is only a stream.
//!
//! A missing engine is a failure, not a skip. Everything is found and removed
//! by the labels of the agent under test.

mod engine;
mod support;

use std::time::Duration;

use engine::PrivateEngine;
use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use support::{Bench, docker, kill, remove, run, stop_if_idle};

const PROBE: &str = include_str!("../../probe/strict.sh");

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_becomes_a_job_and_nothing_is_left() {
    let mut bench = Bench::start("one").await;
    let runner = bench.name("job");
    bench.intend(&[(&runner, run(&bench.image()))], &[]).await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    assert!(!ready.container_id.is_empty());

    let canary = format!("canary-{}", support::random());
    // Holds the job until the secret was looked for everywhere.
    let job = "echo step ran as $(id -u); while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done; n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done";
    bench.register(&runner, job, &canary).await;
    let busy = bench.phase(&runner, Phase::Busy).await;
    assert!(
        busy.worker && busy.consumed_at.is_some() && busy.online_at.is_some(),
        "{busy:?}"
    );

    // Renamed before the hand-over; the secret is nowhere it could be read from outside.
    let inspect = docker(&["inspect", &runner]);
    let top = docker(&["top", &runner, "-eo", "pid,args"]);
    let logs = docker(&["logs", &runner]);
    assert!(logs.contains("Listening for Jobs"), "{logs}");
    for (place, text) in [
        ("inspect", &inspect),
        ("top", &top),
        ("logs", &logs),
        ("agent", &bench.agent_log()),
    ] {
        assert!(!text.contains(&canary), "the secret is in {place}");
    }
    assert!(
        support::exec(&runner, "cat /home/runner/.credentials").contains(&canary),
        "the search itself works"
    );
    support::assert_strict(&inspect);

    support::exec(&runner, "touch /home/runner/_work/go");
    let exited = bench.phase(&runner, Phase::Exited).await;
    let exit = exited.exit.expect("an end has an exit");
    assert_eq!((exit.code, exit.cause()), (Some(0), Cause::Finished));
    let usage = exit.usage.expect("usage is always told");
    assert!(usage.known, "this host's control groups can be read");
    let cpu = usage.cpu.expect("known usage has CPU time");
    assert!(cpu.seconds > 0 || cpu.nanos > 10_000_000, "{cpu:?}");
    assert!(usage.peak_memory_bytes > 100_000, "{usage:?}");

    assert_eq!(bench.leftovers(), "", "the slot's network alone stays");
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_of_the_strict_sandbox_passes_as_a_job() {
    let mut bench = Bench::start("probe").await;
    let runner = bench.name("probe");
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench
        .intend(
            &[(&runner, run(&bench.image()))],
            std::slice::from_ref(&wish),
        )
        .await;
    bench.register(&runner, PROBE, "unused").await;
    let exited = bench.phase(&runner, Phase::Exited).await;
    let output = bench.output(&runner).await;
    assert_eq!(exited.exit.expect("an exit").code, Some(0), "{output}");
    let lines = |word: &str| output.lines().filter(|line| line.starts_with(word)).count();
    assert!(lines("PASS ") >= 25, "{output}");
    assert_eq!(lines("FAIL "), 0, "{output}");
    println!("{output}");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_fails_in_an_ordinary_container() {
    let image = support::image();
    let output = std::process::Command::new("docker")
        .args([
            "run",
            "--rm",
            "--user",
            "0",
            "--network",
            "none",
            "--label",
            "longshore.test=probe",
            &image,
            "sh",
            "-c",
            PROBE,
        ])
        .output()
        .expect("docker runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for row in [
        "FAIL 1 ", "FAIL 2 ", "FAIL 3 ", "FAIL 5 ", "FAIL 8 ", "FAIL 15 ", "FAIL 30 ",
    ] {
        assert!(text.contains(row), "{row} is not seen in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_adopts_its_runner_and_sees_it_to_the_end() {
    let mut bench = Bench::start("adopt").await;
    let (runner, waiting) = (bench.name("busy"), bench.name("wait"));
    let both = [
        (&*runner, run(&bench.image())),
        (&*waiting, run(&bench.image())),
    ];
    bench.intend(&both, &[]).await;
    bench.phase(&waiting, Phase::Ready).await;
    bench
        .register(
            &runner,
            "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done; exit 3",
            "x",
        )
        .await;
    let before = bench.phase(&runner, Phase::Busy).await;

    bench.kill_agent();
    bench.start_agent().await;
    // It is reported before any intent names it again, and its numbers go on from where they were.
    let newer = |runner: &pb::ObservedRunner| runner.observation > before.observation;
    let after = bench.until(&runner, newer).await;
    assert_eq!(after.phase(), Phase::Busy);
    assert_eq!(after.container_id, before.container_id);

    // The sandbox that was only waiting lost its input with the agent: made anew by the same intent.
    bench.intend(&both, &[]).await;
    let again = bench.phase(&waiting, Phase::Ready).await;
    assert!(!again.foreign);
    support::exec(&runner, "touch /home/runner/_work/go");
    let exit = bench
        .phase(&runner, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(exit.code, Some(3));

    // Its end survives another crash, and the same intent does not start it again.
    bench.kill_agent();
    bench.start_agent().await;
    bench.intend(&both, &[]).await;
    let exited = bench.phase(&runner, Phase::Exited).await;
    assert_eq!(exited.exit.expect("an exit").code, Some(3));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_runner_goes_by_the_four_way_check_and_a_busy_one_stays() {
    let mut bench = Bench::start("idle").await;
    let (idle, busy) = (bench.name("idle"), bench.name("busy"));
    bench
        .intend(
            &[(&idle, run(&bench.image())), (&busy, run(&bench.image()))],
            &[],
        )
        .await;
    bench.register(&idle, "", "x").await;
    bench
        .register(&busy, "while :; do sleep 0.2; done", "x")
        .await;
    bench.phase(&idle, Phase::Online).await;
    bench.phase(&busy, Phase::Busy).await;

    bench
        .intend(&[(&idle, stop_if_idle()), (&busy, stop_if_idle())], &[])
        .await;
    let told = bench.settled(&idle).await;
    let told_busy = bench.settled(&busy).await;
    assert!(!told.worker && told_busy.worker);
    bench
        .intend(
            &[
                (&idle, remove(told.observation)),
                (&busy, remove(told_busy.observation)),
            ],
            &[],
        )
        .await;
    let exit = bench
        .phase(&idle, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(exit.cause(), Cause::Idle);
    let refused = bench.until(&busy, |runner| runner.remove_refused).await;
    assert_eq!(refused.phase(), Phase::Busy);

    bench
        .intend(
            &[
                (&idle, stop_if_idle()),
                (&busy, kill("asked by a person", Duration::from_millis(500))),
            ],
            &[],
        )
        .await;
    let exit = bench
        .phase(&busy, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(
        (exit.cause(), exit.detail.as_str()),
        (Cause::Killed, "asked by a person")
    );
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_out_of_reach_only_because_of_the_rules_and_they_come_back() {
    let bench = Bench::start("wall").await;
    let flush = format!("nft delete table inet {}", bench.table());
    wall(bench, &flush).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rules_hold_where_only_iptables_is() {
    let bench = Bench::start_with("wallip", &["--firewall", "iptables"]).await;
    let flush = format!("iptables -F {}-in", bench.table());
    wall(bench, &flush).await;
}

/// A job that tries a port of the host again and again, before, without and after the rules.
async fn wall(mut bench: Bench, flush: &str) {
    let runner = bench.name("wall");
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench
        .intend(&[(&runner, run(&bench.image()))], &[wish])
        .await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    let gateway = docker(&[
        "inspect",
        "-f",
        "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}",
        &ready.container_id,
    ]);
    let server = tokio::net::TcpListener::bind((gateway.trim(), 0))
        .await
        .expect("the bridge has an address");
    let port = server.local_addr().expect("bound").port();
    tokio::spawn(async move { while server.accept().await.is_ok() {} });
    let job = format!(
        "while [ ! -e _work/stop ]; do if nc -w 1 {} {port} </dev/null >/dev/null 2>&1; then echo REACHED; else echo DENIED; fi; sleep 0.1; done",
        gateway.trim()
    );
    bench.register(&runner, &job, "x").await;
    bench.output_has(&runner, "DENIED").await;
    assert!(!bench.output_so_far(&runner).contains("REACHED"));

    // The positive control: the same packet, without the rules.
    support::must(flush);
    bench.output_has(&runner, "REACHED").await;
    // Noticed and put back without anybody asking.
    bench
        .until_output(&runner, |text| {
            text.rsplit("REACHED")
                .next()
                .is_some_and(|rest| rest.matches("DENIED").count() >= 3)
        })
        .await;
    support::exec(&runner, "touch /home/runner/_work/stop");
    bench.phase(&runner, Phase::Exited).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_out_of_memory_and_a_missing_image_say_what_they_are() {
    let mut bench = Bench::start("oom").await;
    let (hungry, missing) = (bench.name("oom"), bench.name("none"));
    let absent = run("127.0.0.1:9/longshore/absent:1");
    bench
        .intend(&[(&hungry, run(&bench.image())), (&missing, absent)], &[])
        .await;
    bench
        .register(
            &hungry,
            "dd if=/dev/zero of=/dev/null bs=400M count=1; true",
            "x",
        )
        .await;
    let exit = bench
        .phase(&hungry, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(exit.cause(), Cause::OutOfMemory, "{exit:?}");
    let failed = bench.phase(&missing, Phase::Failed).await;
    assert_eq!(failed.error.expect("an error").reason, "image_unavailable");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_killed_under_a_job_is_told_is_its_cause_and_works_again() {
    let mut engine = PrivateEngine::start("{}");
    let mut bench = Bench::start_on("engine", &engine).await;
    engine.load(&bench.image());
    let (job, waiting, next) = (bench.name("job"), bench.name("wait"), bench.name("next"));
    let spec = || run(&support::image());
    bench
        .intend(&[(&job, spec()), (&waiting, spec())], &[])
        .await;
    bench.phase(&waiting, Phase::Ready).await;
    bench
        .register(&job, "while :; do sleep 0.2; done", "x")
        .await;
    bench.phase(&job, Phase::Busy).await;

    engine.kill();
    let down = |report: &pb::NodeReport| {
        let mut conditions = report.conditions.iter();
        conditions.find(|c| c.kind == "engine_down").cloned()
    };
    let report = bench.until_report(|report| down(report).is_some()).await;
    let told = down(&report).expect("waited for it");
    assert!(told.next_step.contains("start the container engine"));

    engine.start_again();
    let exit = bench
        .phase(&job, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(exit.cause(), Cause::Engine, "{exit:?}");
    assert!(exit.detail.contains("live-restore"), "{exit:?}");
    bench.until_report(|report| down(report).is_none()).await;

    bench.intend(&[(&next, spec())], &[]).await;
    bench.gone(&job).await;
    bench.register(&next, "exit 0", "x").await;
    let exit = bench
        .phase(&next, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!((exit.code, exit.cause()), (Some(0), Cause::Finished));
    bench.intend(&[], &[]).await;
    bench.gone(&next).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_go_it_leaves_within_five_seconds_and_the_job_goes_on() {
    let mut bench = Bench::start("term").await;
    let runner = bench.name("job");
    bench.intend(&[(&runner, run(&bench.image()))], &[]).await;
    bench
        .register(
            &runner,
            "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done",
            "x",
        )
        .await;
    bench.phase(&runner, Phase::Busy).await;
    let took = bench.terminate_agent().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(
        docker(&["inspect", "-f", "{{.State.Running}}", &runner]).trim(),
        "true"
    );
    support::exec(&runner, "touch /home/runner/_work/go");
    bench.start_agent().await;
    let exit = bench
        .phase(&runner, Phase::Exited)
        .await
        .exit
        .expect("an exit");
    assert_eq!(exit.code, Some(0));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_engine_the_node_says_which_and_how_to_mend_it() {
    let mut bench =
        Bench::start_with("noengine", &["--engine-socket", "/nonexistent/docker.sock"]).await;
    let report = bench
        .until_report(|report| !report.conditions.is_empty())
        .await;
    let condition = &report.conditions[0];
    assert_eq!(condition.kind, "engine_down");
    assert!(
        condition.detail.contains("/nonexistent/docker.sock")
            && condition.detail.contains("install Docker"),
        "{condition:?}"
    );
    bench.stop_agent();
}
