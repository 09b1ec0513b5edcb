//! The real agent program on real engines, against a scheduler that is only a stream.
//!
//! The runtime suite: every scenario of `on_each_engine!` runs on Docker and on
//! Podman. A missing engine is a failure, not a skip. Everything is found and
//! removed by the labels of the agent under test.

mod abuse;
mod allowlist;
// On ARM every other test is the test of it.
#[cfg(target_arch = "x86_64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod arm_engine;
mod attacks;
mod authority;
mod broken;
mod canary;
mod containers;
mod disk;
mod engine;
mod flood;
mod hung;
mod images;
mod layout;
mod limits;
mod luck;
mod namespaces;
mod next;
mod on;
mod podman;
mod probing;
mod profiles;
mod reboot;
mod runtimes;
mod standby;
mod steps;
mod support;
mod walls;

use std::time::Duration;

use attacks::what_reaches_for_the_kernel_or_other_processes_is_refused;
use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;
use on::{Kind, On};
use probing::{
    a_flushed_table_turns_a_check_red, a_node_publishes_what_it_saw_and_answers_a_check,
    the_image_of_a_killed_agents_probe_goes_at_the_next_start_or_by_purge,
    the_probe_of_the_strict_sandbox_passes_as_a_job,
};
use standby::{
    a_dead_standby_is_not_handed_over, a_job_takes_what_stands_by_and_another_takes_its_place,
    a_killed_agents_standbys_end_and_are_swept,
};
use support::{Bench, kill, remove, run, stop_if_idle};
use walls::no_hand_over_while_the_table_is_gone;

macro_rules! on_each_engine {
    ($($scenario:ident,)*) => {
        mod on_docker {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() { super::$scenario(super::On::Host).await })*
        }
        mod on_podman {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() { super::$scenario(super::On::podman()).await })*
        }
    };
}

on_each_engine! {
    a_registration_becomes_a_job_and_nothing_is_left,
    the_probe_of_the_strict_sandbox_passes_as_a_job,
    a_node_publishes_what_it_saw_and_answers_a_check,
    a_flushed_table_turns_a_check_red,
    a_killed_agent_adopts_its_runner_and_sees_it_to_the_end,
    an_idle_runner_goes_by_the_four_way_check_and_a_busy_one_stays,
    the_host_is_out_of_reach_only_because_of_the_rules_and_they_come_back,
    the_same_rules_hold_where_only_iptables_is,
    a_job_out_of_memory_and_a_missing_image_say_what_they_are,
    told_to_go_it_leaves_within_five_seconds_and_the_job_goes_on,
    no_hand_over_while_the_table_is_gone,
    a_job_takes_what_stands_by_and_another_takes_its_place,
    a_killed_agents_standbys_end_and_are_swept,
    a_dead_standby_is_not_handed_over,
    what_reaches_for_the_kernel_or_other_processes_is_refused,
    the_image_of_a_killed_agents_probe_goes_at_the_next_start_or_by_purge,
}

macro_rules! under_each_runtime {
    ($($scenario:ident,)*) => {
        mod under_crun {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() { super::runtimes::$scenario(super::On::runtime("crun")).await })*
        }
        mod under_runsc {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $scenario() { super::runtimes::$scenario(super::On::runtime("runsc")).await })*
        }
    };
}

under_each_runtime! {
    a_runtime_is_offered_once_a_sandbox_was_made_by_it,
    a_job_is_run_and_adopted,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_not_there_is_refused_by_name() {
    runtimes::a_runtime_that_is_not_there_is_refused_by_name(On::runtime("")).await
}

/// crun is runc to everything outside: the whole of a job's life as on any engine.
mod on_crun {
    #[tokio::test(flavor = "multi_thread")]
    async fn the_probe_of_the_strict_sandbox_passes_as_a_job() {
        super::the_probe_of_the_strict_sandbox_passes_as_a_job(super::On::runtime("crun")).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_registration_becomes_a_job_and_nothing_is_left() {
        super::a_registration_becomes_a_job_and_nothing_is_left(super::On::runtime("crun")).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_job_out_of_memory_and_a_missing_image_say_what_they_are() {
        super::a_job_out_of_memory_and_a_missing_image_say_what_they_are(super::On::runtime("crun"))
            .await
    }
}

/// Rules are taken away and targets put up here, so none of these is on the host's engine.
mod walls_of_docker {
    #[tokio::test(flavor = "multi_thread")]
    async fn each_denial_is_one_rule() {
        super::walls::each_denial_is_one_rule(super::On::own_docker()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_goes_past_tcp_is_denied_by_one_rule() {
        super::attacks::what_goes_past_tcp_is_denied_by_one_rule(super::On::own_docker()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_at_the_wrong_moment_is_undone_too() {
        super::walls::a_change_at_the_wrong_moment_is_undone_too(super::On::Host).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_opened_range_is_reached_and_is_no_breach() {
        super::walls::an_opened_range_is_reached_and_is_no_breach(super::On::own_docker()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_connections_leaves_the_host_its_table() {
        super::attacks::a_flood_of_connections_leaves_the_host_its_table(super::On::own_docker())
            .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sandboxes_do_not_reach_each_other() {
        super::walls::sandboxes_do_not_reach_each_other(super::On::own_docker()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rules_outlive_the_agent_and_changes_are_undone() {
        super::walls::rules_outlive_the_agent_and_changes_are_undone(super::On::own_docker()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_what_is_listed_is_reached_and_only_by_the_proxy() {
        super::allowlist::only_what_is_listed_is_reached_and_only_by_the_proxy(
            super::On::own_docker(),
        )
        .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_proxy_that_is_a_service_is_used_and_left_alone() {
        super::allowlist::a_proxy_that_is_a_service_is_used_and_left_alone(super::On::own_docker())
            .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_proxy_needs_no_agent_and_the_agent_a_living_proxy() {
        super::allowlist::the_proxy_needs_no_agent_and_the_agent_a_living_proxy(
            super::On::own_docker(),
        )
        .await
    }
}
mod walls_of_podman {
    #[tokio::test(flavor = "multi_thread")]
    async fn each_denial_is_one_rule() {
        super::walls::each_denial_is_one_rule(super::On::podman()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sandboxes_do_not_reach_each_other() {
        super::walls::sandboxes_do_not_reach_each_other(super::On::podman()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rules_outlive_the_agent_and_changes_are_undone() {
        super::walls::rules_outlive_the_agent_and_changes_are_undone(super::On::podman()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_what_is_listed_is_reached_and_only_by_the_proxy() {
        super::allowlist::only_what_is_listed_is_reached_and_only_by_the_proxy(super::On::podman())
            .await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_proxy_needs_no_agent_and_the_agent_a_living_proxy() {
        super::allowlist::the_proxy_needs_no_agent_and_the_agent_a_living_proxy(super::On::podman())
            .await
    }
}

async fn a_registration_becomes_a_job_and_nothing_is_left(on: On) {
    let mut bench = Bench::start(&on, "one").await;
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
    let inspect = bench.docker(&["inspect", &runner]);
    let top = bench.docker(&["top", &runner, "-eo", "pid,args"]);
    let logs = bench.docker(&["logs", &runner]);
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
        bench
            .exec(&runner, "cat /home/runner/.credentials")
            .contains(&canary),
        "the search itself works"
    );
    support::assert_strict(on.kind(), &inspect);

    bench.touch(&runner, "/home/runner/_work/go");
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

async fn a_killed_agent_adopts_its_runner_and_sees_it_to_the_end(on: On) {
    let mut bench = Bench::start(&on, "adopt").await;
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
    bench.touch(&runner, "/home/runner/_work/go");
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

async fn an_idle_runner_goes_by_the_four_way_check_and_a_busy_one_stays(on: On) {
    let mut bench = Bench::start(&on, "idle").await;
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

async fn the_host_is_out_of_reach_only_because_of_the_rules_and_they_come_back(on: On) {
    let bench = Bench::start(&on, "wall").await;
    let flush = format!("nft delete table inet {}", bench.table());
    wall(&on, bench, &flush).await;
}

async fn the_same_rules_hold_where_only_iptables_is(on: On) {
    let bench = Bench::start_with(&on, "wallip", &["--firewall", "iptables"]).await;
    let flush = format!("iptables -F {}-in", bench.table());
    let denied = wall(&on, bench, &flush).await;
    assert!(
        !denied.known,
        "iptables cannot tell, and that is said: {denied:?}"
    );
}

/// A job that tries a port of the host again and again, before, without and after the rules.
async fn wall(on: &On, mut bench: Bench, flush: &str) -> pb::DeniedEgress {
    let runner = bench.name("wall");
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    bench
        .intend(&[(&runner, run(&bench.image()))], &[wish])
        .await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    let gateway = bench.gateway(&ready.container_id);
    let server = on.listen(&format!("{}:0", gateway.trim()));
    let server = tokio::net::TcpListener::from_std(server).expect("a listening socket");
    let port = server.local_addr().expect("bound").port();
    let (reached, mut connections) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while server.accept().await.is_ok() {
            let _ = reached.try_send(());
        }
    });
    let job = format!(
        "while [ ! -e _work/stop ]; do if nc -w 1 {} {port} </dev/null >/dev/null 2>&1; then echo REACHED; else echo DENIED; fi; sleep 0.1; done",
        gateway.trim()
    );
    bench.register(&runner, &job, "x").await;
    bench.output_has(&runner, "DENIED").await;
    assert!(!bench.output_so_far(&runner).contains("REACHED"));
    assert!(connections.try_recv().is_err(), "somebody got through");

    // The positive control: the same packet, without the rules and nobody to put them back.
    bench.pause_agent();
    on.must(flush);
    let arrived = tokio::time::timeout(support::deadline(), connections.recv()).await;
    assert!(arrived.is_ok_and(|it| it.is_some()), "no rule, no denial");
    bench.resume_agent();
    bench.output_has(&runner, "REACHED").await;
    // Noticed and put back without anybody asking.
    bench
        .until_output(&runner, |text| {
            text.rsplit("REACHED")
                .next()
                .is_some_and(|rest| rest.matches("DENIED").count() >= 3)
        })
        .await;
    bench.touch(&runner, "/home/runner/_work/stop");
    let exited = bench.phase(&runner, Phase::Exited).await;
    bench.finish().await;
    let denied = exited.exit.and_then(|exit| exit.denied);
    denied.expect("it is told, or that it is not known")
}

async fn a_job_out_of_memory_and_a_missing_image_say_what_they_are(on: On) {
    let mut bench = Bench::start(&on, "oom").await;
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
    let told = bench.guarantees("out_of_memory_told");
    assert!(told || on.kind() == Kind::Podman, "Docker tells it");
    let expected = if told {
        Cause::OutOfMemory
    } else {
        Cause::Finished
    };
    assert_eq!(exit.cause(), expected, "{exit:?}");
    let failed = bench.phase(&missing, Phase::Failed).await;
    assert_eq!(failed.error.expect("an error").reason, "image_unavailable");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_killed_under_a_job_is_told_is_its_cause_and_works_again() {
    let on = On::own_docker();
    let mut bench = Bench::start(&on, "engine").await;
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

    on.docker().kill();
    let down = |report: &pb::NodeReport| {
        let mut conditions = report.conditions.iter();
        conditions.find(|c| c.kind == "engine_down").cloned()
    };
    let report = bench.until_report(|report| down(report).is_some()).await;
    let told = down(&report).expect("waited for it");
    assert!(told.next_step.contains("start the container engine"));

    on.docker().start_again();
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

async fn told_to_go_it_leaves_within_five_seconds_and_the_job_goes_on(on: On) {
    let mut bench = Bench::start(&on, "term").await;
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
        bench
            .docker(&["inspect", "-f", "{{.State.Running}}", &runner])
            .trim(),
        "true"
    );
    bench.touch(&runner, "/home/runner/_work/go");
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
    let on = On::Host;
    let mut bench = Bench::start_with(
        &on,
        "noengine",
        &["--engine-socket", "/nonexistent/docker.sock"],
    )
    .await;
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
