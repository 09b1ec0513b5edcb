//! Each profile on the real engine, with an image that tries to have a say.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_intent::Desired;
use serde_json::{Value, json};

use crate::engine::PrivateEngine;
use crate::on::On;
use crate::support::{self, Bench, run};

/// What an image can say of a container that is made from it.
const SAYINGS: [&str; 12] = [
    "USER root",
    "WORKDIR /root",
    "ENTRYPOINT [\"/bin/sleep\", \"77\"]",
    "CMD [\"78\"]",
    "STOPSIGNAL SIGKILL",
    "EXPOSE 22 2375",
    "VOLUME /data",
    "VOLUME /home/runner/_work/deep",
    "VOLUME /tmp",
    "ENV NVIDIA_VISIBLE_DEVICES=all HOME=/root TMPDIR=/data OF_THE_IMAGE=yes",
    "ENV ACTIONS_RUNNER_CONTAINER_HOOKS=/data/hook PIPELINE_JOB_OOMSCOREADJ=-1000",
    "HEALTHCHECK --interval=1s CMD touch /data/health",
];

/// Removes the image and what is left of its making.
pub(crate) struct Image(pub(crate) String);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker")
            .args(["image", "rm", "-f", &self.0])
            .output();
    }
}

fn hostile(base: &str) -> Image {
    built(base, &SAYINGS.join("\n"))
}

pub(crate) fn built(base: &str, lines: &str) -> Image {
    let image = Image(format!("longshore-hostile-test:{}", support::random()));
    let mut build = Command::new("docker")
        .args(["build", "-q", "--network", "none", "-t", &image.0, "-"])
        .env("DOCKER_BUILDKIT", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the docker program is installed");
    let text = format!("FROM {base}\n{lines}\n");
    let mut input = build.stdin.take().expect("piped");
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(build.wait().unwrap().success(), "docker build:\n{text}");
    image
}

pub(crate) fn under(profile: &str, image: &str) -> Desired {
    let Desired::Run(spec) = run(image) else {
        unreachable!("a run")
    };
    Desired::Run(pb::RunnerSpec {
        profile: profile.into(),
        ..spec
    })
}

/// The strict sandbox's fields, and the few that a profile changes.
fn assert_profile(profile: &str, inspect: &str) {
    let mut all: Value = serde_json::from_str(inspect).unwrap();
    let readonly = all[0]["HostConfig"]["ReadonlyRootfs"].clone();
    assert_eq!(readonly, json!(profile == "strict"), "{profile}");
    all[0]["HostConfig"]["ReadonlyRootfs"] = json!(true);
    support::assert_strict(crate::on::Kind::Docker, &all.to_string());
    let config = &all[0]["Config"];
    assert_eq!(config["WorkingDir"], "/home/runner");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c"]));
    let bindings = &all[0]["HostConfig"]["PortBindings"];
    assert!(bindings.as_object().is_none_or(serde_json::Map::is_empty));
    assert_eq!(all[0]["HostConfig"]["PublishAllPorts"], false);
    assert_eq!(all[0]["HostConfig"]["Runtime"], "runc");
    let ports = &all[0]["NetworkSettings"]["Ports"];
    assert!(
        ports
            .as_object()
            .is_none_or(|ports| ports.values().all(Value::is_null)),
        "{ports}"
    );
    assert!(all[0]["State"]["Health"].is_null(), "{}", all[0]["State"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_image_has_no_say_in_any_profile_and_its_volumes_go() {
    let image = hostile(&support::image());
    let mut bench = Bench::start(&On::Host, "hostile").await;
    for profile in ["strict", "standard", "containers"] {
        let runner = bench.name(profile);
        bench
            .intend(&[(&runner, under(profile, &image.0))], &[])
            .await;
        bench.phase(&runner, Phase::Ready).await;
        bench
            .register(
                &runner,
                "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done",
                "x",
            )
            .await;
        bench.phase(&runner, Phase::Busy).await;

        let inspect = bench.docker(&["inspect", &runner]);
        assert_profile(profile, &inspect);
        let all: Value = serde_json::from_str(&inspect).unwrap();
        let mounts = all[0]["Mounts"].as_array().unwrap();
        let anonymous: Vec<&str> = mounts
            .iter()
            .filter(|mount| {
                ["/data", "/home/runner/_work/deep"]
                    .contains(&mount["Destination"].as_str().unwrap())
            })
            .map(|mount| mount["Name"].as_str().unwrap())
            .collect();
        assert_eq!(
            anonymous.len(),
            2,
            "the image's volumes are there to go: {mounts:#?}"
        );

        // From inside: as the runner's program sees it.
        let environment = bench.exec(&runner, "tr '\\0' '\\n' </proc/1/environ");
        let has = |line: &str| environment.lines().any(|told| told == line);
        assert!(has("OF_THE_IMAGE=yes"), "{environment}");
        for ours in [
            "NVIDIA_VISIBLE_DEVICES=void",
            "HOME=/home/runner",
            "TMPDIR=/home/runner/_work/_tmp",
            "PIPELINE_JOB_OOMSCOREADJ=900",
        ] {
            assert!(has(ours), "{profile}: {ours} in\n{environment}");
        }
        assert!(!environment.contains("/data/hook"), "{environment}");
        let status = bench.exec(&runner, "cat /proc/1/status");
        for line in [
            "Uid:\t1001\t1001\t1001\t1001",
            "CapBnd:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(status.contains(line), "{profile}: {line} in\n{status}");
        }
        let root = bench.exec(&runner, "grep ' / ' /proc/mounts");
        let expected = if profile == "strict" { " ro," } else { " rw," };
        assert!(root.contains(expected), "{profile}: {root}");
        assert!(
            bench
                .exec(&runner, "grep ' /tmp ' /proc/mounts")
                .starts_with("tmpfs")
        );
        assert_eq!(bench.exec(&runner, "ls /data"), "", "no health check ran");

        bench.touch(&runner, "/home/runner/_work/go");
        bench.phase(&runner, Phase::Exited).await;
        assert_eq!(bench.leftovers(), "");
        let volumes = bench.docker(&["volume", "ls", "-q"]);
        for name in anonymous {
            assert!(!volumes.contains(name), "{profile}: {name} stayed");
        }
        bench.intend(&[], &[]).await;
        bench.gone(&runner).await;
    }
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_of_profiles_is_neither_offered_nor_made() {
    let extra = ["--profiles", "standard"];
    let mut bench = Bench::start_with(&On::Host, "offer", &extra).await;
    let runner = bench.name("refused");
    bench
        .intend(&[(&runner, under("strict", &bench.image()))], &[])
        .await;
    let failed = bench.phase(&runner, Phase::Failed).await;
    assert!(bench.guarantees("profile_standard"));
    assert!(!bench.guarantees("profile_strict"));
    let error = failed.error.expect("a refusal says why");
    assert_eq!(error.reason, "spec_refused");
    assert!(error.detail.contains("profile strict"), "{}", error.detail);
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

/// What cannot work says within a second which profile can, or that none does.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_profile_does_not_offer_fails_at_once_and_names_the_one_that_does() {
    let mut bench = Bench::start(&On::Host, "refusals").await;
    for profile in ["strict", "standard"] {
        let runner = bench.name(profile);
        bench
            .intend(&[(&runner, under(profile, &bench.image()))], &[])
            .await;
        bench.phase(&runner, Phase::Ready).await;
        // As a step runs them: from the listener's own PATH.
        let job = "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done
            for line in 'docker build .' 'podman run x' 'sudo apt-get update' \"sh $ACTIONS_RUNNER_CONTAINER_HOOKS\"; do
                begin=$(cut -d. -f1 /proc/uptime)
                $line >/home/runner/_work/out 2>/home/runner/_work/err </dev/null && echo WORKED: $line
                [ $(($(cut -d. -f1 /proc/uptime) - begin)) -le 1 ] || echo SLOW: $line
                cat /home/runner/_work/out /home/runner/_work/err
            done
            touch /opt/longshore/strict/bin/docker && echo WRITABLE";
        let wish = pb::LogSubscription {
            runner: runner.clone(),
            offset: 0,
        };
        bench
            .intend(
                &[(&runner, under(profile, &bench.image()))],
                std::slice::from_ref(&wish),
            )
            .await;
        bench.register(&runner, job, "x").await;
        bench.phase(&runner, Phase::Busy).await;
        let hook =
            format!("ACTIONS_RUNNER_CONTAINER_HOOKS=/opt/longshore/{profile}/container-hook.sh");
        let environment = bench.exec(&runner, "tr '\\0' '\\n' </proc/1/environ");
        assert!(
            environment.lines().any(|line| line == hook),
            "{environment}"
        );
        bench.touch(&runner, "/home/runner/_work/go");
        bench.phase(&runner, Phase::Exited).await;
        let text = bench.output(&runner).await;
        for words in [
            "docker: no profile gives a job a container engine",
            "podman: no profile gives a job a container engine",
            "sudo: ",
            "user_namespace",
            "do not work in profile",
            "use a pool with profile containers",
        ] {
            assert!(text.contains(words), "{profile}: {words} in\n{text}");
        }
        for bad in ["WORKED", "SLOW", "WRITABLE"] {
            assert!(!text.contains(bad), "{profile}:\n{text}");
        }
        bench.intend(&[], &[]).await;
        bench.gone(&runner).await;
    }
    bench.finish().await;
}

/// An engine that maps users: root inside is nobody outside, so `standard` may have it.
fn mapping_engine() -> On {
    let ranges = "printf 'daemon:300000:65536\\n' >/run/longshore-ranges && mount --bind /run/longshore-ranges /etc/subuid && mount --bind /run/longshore-ranges /etc/subgid";
    let prepare = format!("mount -t tmpfs tmpfs /run && touch /etc/subuid /etc/subgid && {ranges}");
    let engine = PrivateEngine::start_in(r#"{"userns-remap": "daemon"}"#, None, &prepare);
    On::Docker(Arc::new(Mutex::new(engine)))
}

#[tokio::test(flavor = "multi_thread")]
async fn where_users_are_mapped_standard_becomes_root_inside_and_strict_does_not() {
    let on = mapping_engine();
    let image = with_setuid(&support::image());
    on.docker().load(&image.0);
    let mut bench = Bench::start(&on, "mapped").await;
    for profile in ["strict", "standard"] {
        let runner = bench.name(profile);
        bench
            .intend(&[(&runner, under(profile, &image.0))], &[])
            .await;
        bench.phase(&runner, Phase::Ready).await;
        assert!(bench.guarantees("user_namespace"));
        let job = "cd /home/runner/_work; touch mine && echo WORK
            /bin/su root -c 'id -u; touch /opt/made && chown 1001 /opt/made && rm /opt/made && echo ROOT'
            cat /proc/self/uid_map; command -v sudo; echo done >end; while [ ! -e go ]; do sleep 0.1; done";
        let wish = pb::LogSubscription {
            runner: runner.clone(),
            offset: 0,
        };
        bench
            .intend(
                &[(&runner, under(profile, &image.0))],
                std::slice::from_ref(&wish),
            )
            .await;
        bench.register(&runner, job, "x").await;
        bench.phase(&runner, Phase::Busy).await;
        let inspect = bench.docker(&["inspect", &runner]);
        let all: Value = serde_json::from_str(&inspect).unwrap();
        let host = &all[0]["HostConfig"];
        let added = match profile {
            "strict" => json!(null),
            _ => json!(["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]),
        };
        let told = match &host["CapAdd"] {
            Value::Array(list) if list.is_empty() => json!(null),
            other => other.clone(),
        };
        assert_eq!((&told, &host["CapDrop"]), (&added, &json!(["ALL"])));
        bench.output_has(&runner, "300000").await;
        let wait = "t=0; until [ -e /proc/1/root/home/runner/_work/end ] || [ $t -gt 300 ]; do sleep 0.1; t=$((t+1)); done; touch /home/runner/_work/go";
        bench.docker(&["exec", &runner, "sh", "-c", wait]);
        bench.phase(&runner, Phase::Exited).await;
        let text = bench.output(&runner).await;
        assert!(
            text.lines().any(|line| line == "WORK"),
            "{profile}:\n{text}"
        );
        let root = text.lines().any(|line| line == "ROOT");
        assert_eq!(root, profile == "standard", "{profile}:\n{text}");
        // The message stands in only where there is none.
        let shim = text.contains("/opt/longshore/strict/bin/sudo");
        assert_eq!(shim, profile == "strict", "{profile}:\n{text}");
        bench.intend(&[], &[]).await;
        bench.gone(&runner).await;
    }
    bench.finish().await;
}

/// The test image with a root without a password, and a `su` that may become it.
fn with_setuid(base: &str) -> Image {
    let lines = "RUN cp /bin/busybox /bin/su-root && chmod 4755 /bin/su-root && rm /bin/su && ln -s su-root /bin/su && mkdir -p /opt && printf 'root::0:0::/:/bin/sh\\nrunner:x:1001:1001::/home/runner:/bin/sh\\n' >/etc/passwd";
    built(base, lines)
}
