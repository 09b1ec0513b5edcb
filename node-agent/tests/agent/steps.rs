//! Ten things that workflows do, and one more that tells two profiles apart, under
//! each profile on a real engine. `docs/security.md` has the same table.
//!
//! The servers are on an address that stands for the internet, in a network namespace
//! of the test; the compiler is the host's own, copied into an image.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;

use crate::namespaces::command;
use crate::on::On;
use crate::profiles::under;
use crate::support::{self, Bench, docker};
use crate::walls::{INTERNET, Outside};

const PROGRAM: &str = r#"#include <pthread.h>
#include <stdio.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int count;
static void *work(void *unused) { pthread_mutex_lock(&lock); count++; pthread_mutex_unlock(&lock); return unused; }
int main(void) {
    pthread_t threads[64];
    for (int i = 0; i < 64; i++) if (pthread_create(&threads[i], 0, work, 0)) return 1;
    for (int i = 0; i < 64; i++) pthread_join(threads[i], 0);
    return printf("%d threads\n", count) < 0;
}
"#;

/// A step's name, its script, and whether it works under strict, standard and containers.
const STEPS: [(&str, &str, [bool; 3]); 11] = [
    (
        "checkout",
        "wget -q -O- http://SERVER/repo.tar.gz | tar xz && test -s web/threads.c",
        [true, true, true],
    ),
    (
        "tool",
        "mkdir -p _tool/greet && wget -q -O- http://SERVER/tool.tar.gz | tar xz -C _tool/greet && _tool/greet/greet",
        [true, true, true],
    ),
    (
        "compile",
        "cd web && gcc -pthread -o app threads.c",
        [true, true, true],
    ),
    (
        "threads",
        "test \"$(web/app)\" = '64 threads'",
        [true, true, true],
    ),
    ("docker", "docker build .", [false, false, false]),
    ("sudo", "sudo apt-get update", [false, false, false]),
    (
        "service",
        "sh $ACTIONS_RUNNER_CONTAINER_HOOKS <prepare.json && t=0 && until nc -w 1 127.0.0.1 8081 -e true; do t=$((t+1)); test $t -lt 50; sleep 0.2; done",
        [false, false, true],
    ),
    (
        "tmp",
        "dd if=/dev/zero of=$TMPDIR/large bs=1M count=320 2>/dev/null && rm $TMPDIR/large",
        [true, true, true],
    ),
    (
        "log",
        "yes longshore | head -c 20000000",
        [true, true, true],
    ),
    ("background", "sleep 300 & :", [true, true, true]),
    ("image", "echo new >/opt/tools/new", [false, true, true]),
];

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {words}");
}

/// What is downloaded, in the folder of a web server.
fn wares(folder: &Path) {
    std::fs::create_dir_all(folder.join("web")).unwrap();
    std::fs::write(folder.join("web/threads.c"), PROGRAM).unwrap();
    std::fs::write(folder.join("greet"), "#!/bin/sh\necho a tool\n").unwrap();
    shell(&format!(
        "cd {} && chmod 755 greet && tar czf repo.tar.gz web && tar czf tool.tar.gz greet",
        folder.display()
    ));
}

/// The test image with the host's C compiler: what a compilation really uses.
fn builder(folder: &Path) -> String {
    let tag = format!("longshore-steps-test:{}", support::random());
    shell(&format!(
        r#"cd {}
        programs=$(for name in cc1 collect2 as ld; do gcc -print-prog-name=$name; done)
        plugin=$(gcc -print-file-name=liblto_plugin.so)
        used=$(gcc -M web/threads.c | tr ' \\' '\n\n' | grep '^/'; gcc -pthread -Wl,-t web/threads.c -o tried | grep '^/' | grep -v '/cc[^/]*\.o$'; rm tried)
        for program in $(command -v gcc) $programs; do
            path=$(command -v "$program"); echo "$path"; ldd "$path" | grep -o '/[^ ]*'
        done >files
        printf '%s\n' $used $plugin >>files
        xargs realpath -s <files | sed 's,^/,,' | sort -u | tar -C / -chf tools.tar -T -
        mkdir -p opt/tools && tar rf tools.tar --owner=1001 --group=1001 opt/tools
        printf 'FROM {}\nADD tools.tar /\n' >Dockerfile"#,
        folder.display(),
        support::image()
    ));
    let mut context = Command::new("tar")
        .args([
            "-C",
            &folder.display().to_string(),
            "-c",
            "Dockerfile",
            "tools.tar",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let built = Command::new("docker")
        .args(["build", "-q", "--network", "none", "-t", &tag, "-"])
        .env("DOCKER_BUILDKIT", "0")
        .stdin(context.stdout.take().unwrap())
        .output()
        .unwrap();
    context.wait().unwrap();
    let words = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{words}");
    tag
}

/// All steps, each with its result on a line of its own in a file.
fn job(image: &str) -> String {
    let prepare = serde_json::json!({"command": "prepare_job", "state": {}, "responseFile": "/home/runner/_work/answer.json",
        "args": {"services": [{"contextName": "web", "image": image, "entryPoint": "httpd",
                 "entryPointArgs": ["-f", "-p", "8081", "-h", "/etc"], "portMappings": ["8081"]}]}});
    let mut text = format!(
        "cd /home/runner/_work && cat >prepare.json <<'END'\n{prepare}\nEND\nwhile [ ! -e go ]; do sleep 0.1; done\n"
    );
    for (name, script, _) in STEPS {
        let script = script.replace("SERVER", INTERNET);
        text.push_str(&format!(
            "cat >{name}.sh <<'END'\n{script}\nEND\nbegin=$(cut -d. -f1 /proc/uptime)\nsh -e {name}.sh >{name}.out 2>{name}.err </dev/null && code=0 || code=$?\ntail -c 2000 {name}.out >&2; cat {name}.err >&2\necho {name} $code $(($(cut -d. -f1 /proc/uptime) - begin)) >>results\n"
        ));
    }
    text.push_str("cat log.out; while [ ! -e end ]; do sleep 0.1; done\n");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_typical_steps_work_or_fail_at_once_under_each_profile() {
    let folder = tempfile::tempdir().unwrap();
    wares(folder.path());
    let image = builder(folder.path());
    let on = On::own_docker();
    on.docker().load(&image);
    docker(&["image", "rm", &image]);
    let outside = Outside::put_up_with(&on, &[]);
    let _server = Server(
        command(outside.pid(), &["-n"], "busybox")
            .args(["httpd", "-f", "-p", "80", "-h"])
            .arg(folder.path())
            .spawn()
            .unwrap(),
    );
    let mut bench = Bench::start(&on, "steps").await;
    for (at, profile) in ["strict", "standard", "containers"].into_iter().enumerate() {
        let runner = bench.name(profile);
        bench
            .intend(&[(&runner, under(profile, &image))], &[])
            .await;
        bench.phase(&runner, Phase::Ready).await;
        bench.register(&runner, &job(&image), "x").await;
        bench.phase(&runner, Phase::Busy).await;
        bench.touch(&runner, "/home/runner/_work/go");
        let wait = format!(
            "cd /home/runner/_work; t=0; until [ \"$(cat results 2>/dev/null | wc -l)\" -eq {} ] || [ $t -gt 900 ]; do sleep 0.1; t=$((t+1)); done; cat results",
            STEPS.len()
        );
        let results = bench.exec(&runner, &wait);
        let results: BTreeMap<&str, Vec<i32>> = results
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, rest)| (name, rest.split(' ').map(|n| n.parse().unwrap()).collect()))
            .collect();
        for (name, _, works) in STEPS {
            let words = || {
                let line = format!("cd /home/runner/_work; tail -c 500 {name}.out; cat {name}.err");
                bench.exec(&runner, &line)
            };
            let [code, seconds] = results[name][..] else {
                panic!("{name}: {results:?}")
            };
            assert_eq!(
                code == 0,
                works[at],
                "{profile}: {name} ended with {code}: {}",
                words()
            );
            if !works[at] {
                assert!(seconds <= 1, "{profile}: {name} took {seconds} s to fail");
                let words = words();
                let names_a_way = match name {
                    "image" => words.contains("Read-only file system"),
                    "sudo" => words.contains("user_namespace"),
                    "docker" => words.contains("no profile gives a job a container engine"),
                    _ => words.contains("use a pool with profile containers"),
                };
                assert!(names_a_way, "{profile}: {name}: {words}");
            }
        }
        bench.touch(&runner, "/home/runner/_work/end");
        let exited = bench.phase(&runner, Phase::Exited).await;
        // The background process and the long log outlive nothing.
        assert_eq!(
            exited.exit.unwrap().cause(),
            pb::runner_exit::Cause::Finished
        );
        let log = bench.docker(&["ps", "-aq"]);
        assert_eq!(log, "", "{profile}");
        bench.intend(&[], &[]).await;
        bench.gone(&runner).await;
    }
    bench.finish().await;
}
