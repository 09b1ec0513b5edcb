//! Job containers and services, asked for by the real hook in a real sandbox.

use std::time::{Duration, Instant};

use agent_core::sandbox::Profile;
use agent_core::seccomp::filter;
use longshore_proto::v1::observed_runner::Phase;
use serde_json::{Value, json};

use crate::images::{REGISTRY, Registry};
use crate::on::On;
use crate::profiles::{built, under};
use crate::support::{self, Bench, deadline, docker};

/// A job that does what it is told: each file `_work/ask/N` is a request for the hook, whose output, code and answer
/// become `N.out`, `N.code` and `N.answer`; `end` ends it.
const JOB: &str = r#"cd /home/runner/_work && mkdir -p ask _temp/_github_home && n=1
while [ ! -e ask/end ]; do
    if [ -e ask/$n ]; then
        begin=$(cut -d. -f1 /proc/uptime)
        sh "$ACTIONS_RUNNER_CONTAINER_HOOKS" <ask/$n >ask/$n.out 2>&1
        echo $? >ask/$n.tmp && mv ask/$n.tmp ask/$n.code
        n=$((n+1))
    fi
    sleep 0.1
done"#;

struct Job<'a> {
    bench: &'a Bench,
    runner: String,
    asked: u32,
}

impl Job<'_> {
    /// Asks the hook, and gives its exit code, its output and its answer.
    fn ask(&mut self, request: Value) -> (i32, String, Value) {
        self.begin(request);
        self.answered()
    }

    /// Asks the hook and does not wait for it.
    fn begin(&mut self, mut request: Value) {
        self.asked += 1;
        let n = self.asked;
        request["responseFile"] = json!(format!("/home/runner/_work/ask/{n}.answer"));
        // Written beside and moved, so that it is read whole.
        let line = format!(
            "cd /home/runner/_work/ask && cat >{n}.new <<'END'\n{request:#}\nEND\nmv {n}.new {n}"
        );
        self.bench.exec(&self.runner, &line);
    }

    /// Whether the last request still waits for its answer.
    fn waits(&self) -> bool {
        let look = format!(
            "test -e /home/runner/_work/ask/{}.code && echo yes || true",
            self.asked
        );
        self.bench.exec(&self.runner, &look).is_empty()
    }

    /// Waits for the last request.
    fn answered(&self) -> (i32, String, Value) {
        let n = self.asked;
        let wait = format!(
            "cd /home/runner/_work/ask; t=0; while [ ! -e {n}.code ] && [ $t -lt 600 ]; do sleep 0.1; t=$((t+1)); done; cat {n}.code"
        );
        let code = self.bench.exec(&self.runner, &wait);
        let read = |what: &str| {
            self.bench.exec(
                &self.runner,
                &format!("cat /home/runner/_work/ask/{n}.{what} 2>/dev/null || true"),
            )
        };
        let answer = serde_json::from_str(&read("answer")).unwrap_or(Value::Null);
        (code.trim().parse().unwrap(), read("out"), answer)
    }
}

/// A job under profile `containers` that waits for requests: with the name of its runner and
/// the id of its container.
async fn a_job_that_asks(test: &str) -> (Bench, String, String) {
    let mut bench = Bench::start(&On::Host, test).await;
    let runner = bench.name("job");
    let image = bench.image();
    bench
        .intend(&[(&runner, under("containers", &image))], &[])
        .await;
    let container = bench.phase(&runner, Phase::Ready).await.container_id;
    bench.register(&runner, JOB, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    (bench, runner, container)
}

fn mounts() -> Value {
    let mount = |source: &str, target: &str| json!({"sourceVolumePath": source, "targetVolumePath": target, "readOnly": false});
    json!([
        mount("/var/run/docker.sock", "/var/run/docker.sock"),
        mount("/home/runner/_work", "/__w"),
        mount("/home/runner/externals", "/__e"),
        mount("/home/runner/_work/_temp", "/__w/_temp"),
        mount("/home/runner/_work/_temp/_github_home", "/github/home"),
    ])
}

fn prepare(image: &str) -> Value {
    json!({"command": "prepare_job", "state": {}, "args": {
        "container": {
            "image": image, "workingDirectory": "/__w", "createOptions": "--cpus 0.5",
            "environmentVariables": {"GREETING": "hello"}, "userMountVolumes": [], "systemMountVolumes": mounts(),
            "registry": null, "portMappings": [],
        },
        "services": [{
            "contextName": "web", "image": image, "createOptions": "--health-cmd 'nc -w 1 127.0.0.1 8081 -e true' --health-interval 1s --health-retries 60",
            "entrypoint": "httpd", "entryPointArgs": ["-f", "-p", "8081", "-h", "/etc"],
            "environmentVariables": {}, "userMountVolumes": [], "portMappings": ["8081:8081"],
        }],
    }})
}

fn script(line: &str) -> Value {
    json!({"command": "run_script_step", "state": {}, "args": {
        "entryPoint": "sh", "entryPointArgs": ["-ec", line], "workingDirectory": "/__w/_temp",
        "environmentVariables": {"STEP": "two"}, "prependPath": ["/__w/tools"],
    }})
}

fn step(image: &str, line: &str) -> Value {
    json!({"command": "run_container_step", "state": {}, "args": {
        "image": image, "dockerfile": null, "entryPoint": "sh", "entryPointArgs": ["-ec", line],
        "workingDirectory": "/__w", "createOptions": null, "environmentVariables": {"INPUT_WHO": "world"},
        "prependPath": [], "userMountVolumes": [], "systemMountVolumes": mounts(), "registry": null, "portMappings": null,
    }})
}

/// Ids of the containers beside a runner's.
fn beside(container: &str) -> Vec<String> {
    let filter = format!("label=longshore.of={container}");
    let list = docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]);
    list.lines().map(str::to_owned).collect()
}

/// Everything about a sibling that a sandbox promises, as the engine tells it.
fn assert_held(id: &str, job: &str) {
    let all: Value = serde_json::from_str(&docker(&["inspect", id])).unwrap();
    let host = &all[0]["HostConfig"];
    assert_eq!(all[0]["Config"]["User"], "1001:1001");
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    let filter = format!("seccomp={}", filter(Profile::Containers));
    assert_eq!(
        host["SecurityOpt"],
        json!(["no-new-privileges:true", filter])
    );
    assert_eq!(host["NetworkMode"], format!("container:{job}"));
    assert_eq!(
        (&host["Privileged"], &host["Runtime"]),
        (&json!(false), &json!("runc"))
    );
    for empty in ["CapAdd", "Devices", "DeviceRequests", "Binds", "GroupAdd"] {
        assert!(
            host[empty].as_array().is_none_or(Vec::is_empty),
            "{empty}: {}",
            host[empty]
        );
    }
    for mode in ["PidMode", "UTSMode", "UsernsMode"] {
        assert_eq!(host[mode], "");
    }
    assert_eq!(
        (&host["IpcMode"], &host["CgroupnsMode"]),
        (&json!("private"), &json!("private"))
    );
    assert!(host["Memory"].as_i64().unwrap() <= 256 << 20);
    for mount in all[0]["Mounts"].as_array().unwrap() {
        assert_eq!(mount["Type"], "volume", "{mount}");
    }
}

/// Fourteen are there, six are asked for in one moment, and sixteen are what a job may have.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_moment_make_no_more_containers_than_a_job_may_have() {
    let (mut bench, runner, container) = a_job_that_asks("sixteen").await;
    let image = bench.image();
    let mut job = Job {
        bench: &bench,
        runner: runner.clone(),
        asked: 0,
    };
    let service = |n: u32| {
        json!({"contextName": format!("s{n}"), "image": &image, "createOptions": null,
            "entrypoint": "sleep", "entryPointArgs": ["600"], "environmentVariables": {},
            "userMountVolumes": [], "portMappings": []})
    };
    let services: Vec<Value> = (0..14).map(service).collect();
    let (code, out, _) = job.ask(json!({"command": "prepare_job", "state": {}, "args": {
        "container": null, "services": services}}));
    assert_eq!(code, 0, "{out}");

    let wait = "while [ ! -e /__w/ask/go ]; do sleep 0.2; done";
    let request = step(&image, wait);
    let all_at_once = format!(
        "cd /home/runner/_work/ask && cat >step <<'END'\n{request:#}\nEND
         for n in 1 2 3 4 5 6; do
             (sh \"$ACTIONS_RUNNER_CONTAINER_HOOKS\" <step >many$n.out 2>&1; echo $? >many$n.code) &
         done; wait"
    );
    let hook = bench.exec(&runner, "tr '\\0' '\\n' </proc/1/environ");
    let hook = hook
        .lines()
        .find(|line| line.starts_with("ACTIONS_RUNNER_CONTAINER_HOOKS="))
        .unwrap();
    std::thread::scope(|scope| {
        let steps = scope.spawn(|| bench.exec(&runner, &format!("export {hook}; {all_at_once}")));
        let begin = Instant::now();
        let refused = loop {
            let codes = "cd /home/runner/_work/ask; cat many*.code 2>/dev/null || true";
            let codes = bench.exec(&runner, codes);
            if codes.lines().count() == 4 {
                break codes;
            }
            assert!(begin.elapsed() < deadline(), "{codes}");
            std::thread::sleep(Duration::from_millis(200));
        };
        assert_eq!(refused, "1\n1\n1\n1\n");
        assert_eq!(beside(&container).len(), 16);
        let words = bench.exec(&runner, "cat /home/runner/_work/ask/many*.out");
        assert_eq!(
            words.matches("more than 16 containers").count(),
            4,
            "{words}"
        );
        bench.exec(&runner, "touch /home/runner/_work/ask/go");
        steps.join().unwrap();
    });
    let codes = bench.exec(&runner, "cat /home/runner/_work/ask/many*.code || true");
    assert_eq!(codes.matches('0').count(), 2, "{codes}");
    bench.touch(&runner, "/home/runner/_work/ask/end");
    bench.phase(&runner, Phase::Exited).await;
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_has_a_container_and_a_service_beside_it_and_all_of_it_goes() {
    let (mut bench, runner, container) = a_job_that_asks("beside").await;
    let image = bench.image();
    assert!(bench.guarantees("profile_containers"));
    let mut job = Job {
        bench: &bench,
        runner: runner.clone(),
        asked: 0,
    };

    // The way to the agent is for the job alone: neither inspected nor in an environment.
    let letter = bench.exec(&runner, "cat /home/runner/.longshore");
    let secret = letter.split_whitespace().nth(2).unwrap().to_owned();
    assert_eq!(secret.len(), 64, "{letter}");
    let environment = bench.exec(&runner, "tr '\\0' '\\n' </proc/1/environ");
    for (place, text) in [
        ("inspect", docker(&["inspect", &runner])),
        ("environment", environment),
        ("arguments", docker(&["top", &runner, "-eo", "pid,args"])),
        ("log", bench.agent_log()),
    ] {
        assert!(!text.contains(&secret), "the secret is in {place}");
    }

    let (code, out, answer) = job.ask(prepare(&image));
    assert_eq!(code, 0, "{out}\n{}", bench.agent_log());
    let service = answer["context"]["services"]["web"].clone();
    assert_eq!(service["ports"], json!({"8081": "8081"}), "{answer}");
    assert!(
        answer["state"]["container"].is_string() && answer["isAlpine"] == false,
        "{answer}"
    );
    let there = beside(&container);
    assert_eq!(there.len(), 2);
    for id in &there {
        assert_held(id, &container);
    }

    // Reached by port from the job, and by name wherever names are looked up.
    let page = "printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8081";
    assert!(bench.exec(&runner, page).contains("runner:x:1001"));
    let hosts = bench.exec(&runner, "cat /etc/hosts");
    assert!(
        hosts.lines().any(|line| line == "127.0.0.1\tweb"),
        "{hosts}"
    );

    // A step in the job container, as that container is and not as the runner's.
    let (code, out, _) = job.ask(script(
        "id -u; echo $GREETING $STEP; pwd; grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo ${PATH%%:*}; touch /__w/from-container; ls -d /github/home/ /home/runner/.credentials 2>&1 || true; grep web /etc/hosts; printf last; exit 7",
    ));
    assert_eq!(code, 7, "{out}");
    for line in [
        "1001",
        "hello two",
        "/__w/_temp",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "/__w/tools",
        "/github/home/",
    ] {
        assert!(out.lines().any(|told| told == line), "{line} in\n{out}");
    }
    assert!(out.ends_with("last"), "{out}");
    assert!(
        out.contains("/home/runner/.credentials: No such file"),
        "{out}"
    );
    bench.exec(&runner, "test -e /home/runner/_work/from-container");

    // A step that is a container, which goes with it.
    let (code, out, _) = job.ask(step(
        &image,
        "echo $INPUT_WHO; ls /__w/from-container; exit 3",
    ));
    assert_eq!((code, out.as_str()), (3, "world\n/__w/from-container\n"));
    assert_eq!(beside(&container).len(), 2);

    // What would widen a sandbox is refused and named, and makes nothing.
    for (pointer, value, words) in [
        (
            "/args/createOptions",
            json!("--privileged"),
            "--privileged is not supported",
        ),
        (
            "/args/createOptions",
            json!("-v /:/host"),
            "-v is not supported",
        ),
        (
            "/args/userMountVolumes",
            json!([{"sourceVolumePath": "/etc", "targetVolumePath": "/x"}]),
            "share its work folder and nothing else",
        ),
        (
            "/args/dockerfile",
            json!("/__w/Dockerfile"),
            "Dockerfile is not supported",
        ),
        (
            "/args/image",
            json!("no.such.registry.invalid/x:1"),
            "no.such.registry.invalid/x:1",
        ),
    ] {
        let mut request = step(&image, "true");
        *request.pointer_mut(pointer).unwrap() = value;
        let (code, out, _) = job.ask(request);
        assert_eq!(code, 1, "{out}");
        assert!(out.contains(words), "{words} in\n{out}");
    }
    assert_eq!(beside(&container).len(), 2);

    // The agent is killed and comes back: the job goes on asking.
    let (asked, name) = (job.asked, job.runner);
    let looked = bench.property("non_root").evidence;
    bench.kill_agent();
    bench.start_agent().await;
    bench.looked_since(&looked).await;
    bench.phase(&runner, Phase::Busy).await;
    assert_eq!(beside(&container).len(), 2, "adopted with their job");
    let mut job = Job {
        bench: &bench,
        runner: name,
        asked,
    };
    let (code, out, _) = job.ask(script("echo again"));
    assert_eq!((code, out.as_str()), (0, "again\n"));

    let (code, out, _) = job.ask(json!({"command": "cleanup_job", "state": {}, "args": {}}));
    assert_eq!(code, 0, "{out}");
    assert_eq!(beside(&container), Vec::<String>::new());

    // A job that does not clean up leaves nothing either.
    assert_eq!(job.ask(prepare(&image)).0, 0);
    bench.touch(&runner, "/home/runner/_work/ask/end");
    bench.phase(&runner, Phase::Exited).await;
    assert_eq!(beside(&container), Vec::<String>::new());
    assert_eq!(bench.leftovers(), "");
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

/// A service that is ready once `ready` is there, and says so by its health.
fn with_service(image: &str, name: &str, options: &str) -> Value {
    json!({"command": "prepare_job", "state": {}, "args": {
        "container": null,
        "services": [{
            "contextName": name, "image": image, "createOptions": options,
            "entrypoint": "sh", "entryPointArgs": ["-c", "echo the last words of a service; sleep 600"],
            "environmentVariables": {}, "userMountVolumes": [], "portMappings": [],
        }],
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_a_service_that_starts_and_is_told_of_one_that_is_unhealthy() {
    let (mut bench, runner, container) = a_job_that_asks("health").await;
    let image = bench.image();
    let mut job = Job {
        bench: &bench,
        runner: runner.clone(),
        asked: 0,
    };

    let slow = "--health-cmd 'test -e /tmp/ready' --health-interval 1s --health-retries 1000";
    job.begin(with_service(&image, "slow", slow));
    // It has failed its check more than once and is asked again: starting, not unhealthy.
    let begun = std::time::Instant::now();
    let id = loop {
        let there = beside(&container);
        let look = "{{.State.Health.Status}} {{.State.Health.FailingStreak}}";
        let told = match there.first() {
            Some(id) => docker(&["inspect", "-f", look, id]),
            None => String::new(),
        };
        match told.trim().split_once(' ') {
            Some(("starting", times)) if times.parse::<u32>().unwrap() >= 2 => {
                break there[0].clone();
            }
            _ => {}
        }
        assert!(begun.elapsed() < deadline(), "{told}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert!(job.waits(), "the first step would begin before its service");
    docker(&["exec", &id, "touch", "/tmp/ready"]);
    let (code, out, answer) = job.answered();
    assert_eq!(code, 0, "{out}");
    assert_eq!(answer["context"]["services"]["slow"]["id"], json!(id));
    let told = docker(&["inspect", "-f", "{{.State.Health.Status}}", &id]);
    assert_eq!(told.trim(), "healthy");
    let (code, out, _) = job.ask(json!({"command": "cleanup_job", "state": {}, "args": {}}));
    assert_eq!(code, 0, "{out}");

    let broken =
        "--health-cmd 'echo no tables here; exit 3' --health-interval 1s --health-retries 2";
    let (code, out, _) = job.ask(with_service(&image, "db", broken));
    assert_eq!(code, 1, "{out}");
    for words in [
        "service db is unhealthy",
        "code 3",
        "no tables here",
        "the last words of a service",
    ] {
        assert!(out.contains(words), "{words} in\n{out}");
    }
    // One that ends instead of coming up is told by its code.
    let mut gone = with_service(&image, "gone", slow);
    gone["args"]["services"][0]["entryPointArgs"] = json!(["-c", "echo no room; exit 9"]);
    let (code, out, _) = job.ask(gone);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("service gone ended with code 9") && out.contains("no room"),
        "{out}"
    );

    bench.touch(&runner, "/home/runner/_work/ask/end");
    bench.phase(&runner, Phase::Exited).await;
    assert_eq!(beside(&container), Vec::<String>::new());
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

/// The hole in the rules is one port of one gateway for one slot.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_job_itself_reaches_its_door() {
    let mut bench = Bench::start(&On::Host, "door").await;
    let image = bench.image();
    let (own, other) = (bench.name("own"), bench.name("other"));
    let wait = "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done";
    let wanted = [
        (own.as_str(), under("containers", &image)),
        (other.as_str(), under("strict", &image)),
    ];
    bench.intend(&wanted, &[]).await;
    for runner in [&own, &other] {
        bench.phase(runner, Phase::Ready).await;
        bench.register(runner, wait, "x").await;
        bench.phase(runner, Phase::Busy).await;
    }
    let gateway = bench.gateway(&own);
    // Both ports have a listener; a rule keeps the job from all but its door.
    let listener = std::net::TcpListener::bind((gateway.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let reaches = |runner: &str, port: u16| {
        let line = format!("nc -w 3 {gateway} {port} -e true");
        bench.inside(runner, &line).status().unwrap().success()
    };
    assert!(reaches(&own, 3_129), "its own door");
    assert!(!reaches(&own, port), "another port of its gateway");
    assert!(!reaches(&other, 3_129), "another job's door");
    let stranger = bench.gateway(&other);
    let line = format!("nc -w 3 {stranger} 3129 -e true");
    assert!(
        !bench.inside(&other, &line).status().unwrap().success(),
        "a strict job has none"
    );
    // Without the secret it answers nothing but no.
    let line = format!("printf 'guess\\n{{}}\\n' | nc -w 5 {gateway} 3129");
    assert!(
        bench
            .exec(&own, &line)
            .contains("the secret is not this job's")
    );

    bench.touch(&own, "/home/runner/_work/go");
    bench.phase(&own, Phase::Exited).await;
    let rules = bench.rules();
    // Other sets remember what was denied.
    let doors = rules.split("set doors").nth(1).unwrap();
    let doors = doors.split("}\n").next().unwrap();
    assert!(!doors.contains("elements"), "closed with the job:\n{rules}");
    bench.touch(&other, "/home/runner/_work/go");
    bench.phase(&other, Phase::Exited).await;
    bench.intend(&[], &[]).await;
    for runner in [&own, &other] {
        bench.gone(runner).await;
    }
    bench.finish().await;
}

/// A step that is cancelled does not run on.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_hook_is_gone_ends() {
    let (mut bench, runner, container) = a_job_that_asks("gone").await;
    let image = bench.image();
    let request = step(&image, "echo begun; while :; do sleep 1; done");
    bench.exec(
        &runner,
        &format!("cd /home/runner/_work/ask && cat >1.new <<'END'\n{request}\nEND\nmv 1.new 1"),
    );
    bench.exec(
        &runner,
        "t=0; until grep -q begun /home/runner/_work/ask/1.out || [ $t -gt 300 ]; do sleep 0.1; t=$((t+1)); done; grep begun /home/runner/_work/ask/1.out",
    );
    assert_eq!(beside(&container).len(), 1);
    bench.exec(&runner, "killall -KILL nc");
    let begun = std::time::Instant::now();
    while !beside(&container).is_empty() {
        assert!(begun.elapsed().as_secs() < 30, "it runs on");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    bench.touch(&runner, "/home/runner/_work/ask/end");
    bench.phase(&runner, Phase::Exited).await;
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

/// What the owner of a host keeps there is not a job's to read, by no name and no number.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_only_on_the_node_is_given_to_no_job_that_is_not_in_it() {
    let secret = built(&support::image(), "RUN echo the-owners-own >/secret");
    let shown = built(&support::image(), "RUN echo for-anybody >/secret");
    let list = format!("{},other:*", shown.0);
    let flags = ["--container-images", &list];
    let mut bench = Bench::start_with(&On::Host, "images", &flags).await;
    let image = bench.image();
    let runner = bench.name("job");
    bench
        .intend(&[(&runner, under("containers", &image))], &[])
        .await;
    bench.phase(&runner, Phase::Ready).await;
    bench.register(&runner, JOB, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    let mut job = Job {
        bench: &bench,
        runner: runner.clone(),
        asked: 0,
    };
    let id = docker(&["image", "inspect", "-f", "{{.Id}}", &secret.0]);
    let digits = id.trim().trim_start_matches("sha256:");
    for (named, words) in [
        (secret.0.as_str(), "container_images"),
        (id.trim(), "an image's id"),
        (digits, "an image's id"),
        (&digits[..12], "an image's id"),
    ] {
        let (code, out, _) = job.ask(step(named, "cat /secret"));
        assert_eq!(code, 1, "{named}: {out}");
        assert!(out.contains(words), "{named}: {words} in\n{out}");
        assert!(!out.contains("the-owners-own"), "{named}: {out}");
    }
    // The control: there it is, for whoever may have it.
    let (code, out, _) = job.ask(step(&shown.0, "cat /secret"));
    assert_eq!((code, out.as_str()), (0, "for-anybody\n"));
    let (code, out, _) = job.ask(step(&image, "echo its own"));
    assert_eq!((code, out.as_str()), (0, "its own\n"));
    bench.touch(&runner, "/home/runner/_work/ask/end");
    bench.phase(&runner, Phase::Exited).await;
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}

/// What a registry gives to anybody is pulled for a job; a name that it does not know stays the
/// owner's, whatever is on the node under it.
#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_can_pull_is_pulled_for_a_job_and_what_the_node_has_besides_is_not_given() {
    let on = On::own_docker();
    let registry = Registry::start(&on);
    let (public, private) = (
        format!("{REGISTRY}/acme/tool:1"),
        format!("{REGISTRY}/acme/private:1"),
    );
    let id = registry.publish(&public, "1");
    // Another one has that name here: it is not what the job gets.
    for name in [&public, &private] {
        registry.docker(&["tag", &support::image(), name]);
    }
    let mut bench = Bench::start_with(&on, "public", &["--pull", "true"]).await;
    let own = built(&support::image(), "RUN echo another >/another");
    on.docker().load(&own.0);
    let runner = bench.name("job");
    bench
        .intend(&[(&runner, under("containers", &own.0))], &[])
        .await;
    let container = bench.phase(&runner, Phase::Ready).await.container_id;
    bench.register(&runner, JOB, "x").await;
    bench.phase(&runner, Phase::Busy).await;
    let mut job = Job {
        bench: &bench,
        runner: runner.clone(),
        asked: 0,
    };
    let (code, out, _) = job.ask(step(&private, "echo started"));
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("container_images") && !out.contains("started"),
        "{out}"
    );
    let mut request = prepare(&public);
    request["args"]["services"] = json!([]);
    let (code, out, _) = job.ask(request);
    assert_eq!(code, 0, "{out}\n{}", bench.agent_log());
    let filter = format!("label=longshore.of={container}");
    let beside = bench.docker(&["ps", "-aq", "--filter", &filter]);
    let made = bench.docker(&["inspect", "-f", "{{.Image}}", beside.trim()]);
    assert_eq!(made.trim(), id, "the registry's");
    bench.touch(&runner, "/home/runner/_work/ask/end");
    bench.phase(&runner, Phase::Exited).await;
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    bench.finish().await;
}
