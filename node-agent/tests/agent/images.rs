//! Images of a registry: a tag that moves is followed, what it replaced goes if the agent
//! brought it, and the owner's images stay. The registry is Debian's, in the engine's
//! network namespace.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;

use crate::on::On;
use crate::support::{self, Bench, deadline, run};

pub(crate) const REGISTRY: &str = "127.0.0.1:5000";

/// Ends with the test.
pub(crate) struct Registry {
    program: Child,
    _folder: tempfile::TempDir,
    engine: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Registry {
    pub(crate) fn start(on: &On) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {REGISTRY}}}\n",
            folder.path().join("files").display()
        );
        std::fs::write(&config, text).unwrap();
        let program = on
            .command("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (deploy/prepare-host --for test)");
        let begin = Instant::now();
        while !on.run(&format!(
            "busybox wget -q -O /dev/null http://{REGISTRY}/v2/"
        )) {
            assert!(begin.elapsed() < deadline(), "the registry does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self {
            program,
            _folder: folder,
            engine: format!("unix://{}", on.socket()),
        }
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        support::docker(&[&["-H", &self.engine], arguments].concat())
    }

    fn has(&self, image: &str) -> bool {
        let asked = Command::new("docker")
            .args(["-H", &self.engine, "image", "inspect", image])
            .output();
        asked.unwrap().status.success()
    }

    /// A runner image of its own under this name at the registry, and of this program's
    /// doing not on the node: the registry's other name leaves names here alone. Its id.
    pub(crate) fn publish(&self, name: &str, version: &str) -> String {
        let name = &name.replacen("127.0.0.1", "localhost", 1);
        let file = format!(
            "printf 'FROM {}\\nLABEL version={name}-{version}\\n' | DOCKER_BUILDKIT=0 docker -H {} build -q -t {name} -",
            support::image(),
            self.engine
        );
        let built = Command::new("sh").args(["-ec", &file]).output().unwrap();
        let words = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{words}");
        let id = String::from_utf8(built.stdout).unwrap().trim().to_owned();
        self.docker(&["push", "-q", name]);
        self.docker(&["image", "rm", name]);
        id
    }
}

/// Runs one job from this image; the id of the image it ran from, and how it ended.
async fn ran(bench: &mut Bench, image: &str, job: &str) -> (String, pb::RunnerExit) {
    let runner = bench.name("job");
    bench.intend(&[(&runner, run(image))], &[]).await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    let id = bench.docker(&["inspect", "-f", "{{.Image}}", &ready.container_id]);
    bench.register(&runner, job, "x").await;
    let exited = bench.phase(&runner, Phase::Exited).await;
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    (
        id.trim().to_owned(),
        exited.exit.expect("an end has an exit"),
    )
}

/// Waits until jobs from this name are made from that image.
async fn becomes(bench: &mut Bench, image: &str, id: &str) {
    let begin = Instant::now();
    loop {
        let (now, exit) = ran(bench, image, "true").await;
        assert_eq!(exit.cause(), Cause::Finished);
        if now == id {
            return;
        }
        assert!(
            begin.elapsed() < deadline(),
            "{image} is {now} and not {id}"
        );
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < deadline(), "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_followed_and_only_images_of_ours_go() {
    let on = On::own_docker();
    let registry = Registry::start(&on);
    let (runner, owners) = (
        format!("{REGISTRY}/runner:1"),
        format!("{REGISTRY}/a/owners"),
    );
    let first = registry.publish(&runner, "1");
    assert!(!registry.has(&first), "it is only at the registry");
    let theirs = registry.publish(&owners, "1");
    registry.docker(&["pull", "-q", &owners]);
    // Built here under a name that the registry knows as well.
    let built = format!("{REGISTRY}/built:1");
    let strangers = registry.publish(&built, "registry");
    registry.docker(&["tag", &support::image(), &built]);
    let work = registry.docker(&["image", "inspect", "-f", "{{.Id}}", &built]);

    let more = [
        "--pull",
        "true",
        "--image-refresh",
        "1",
        "--image-keep",
        "1",
    ];
    let mut bench = Bench::start_with(&on, "images", &more).await;
    assert_eq!(ran(&mut bench, &runner, "true").await.0, first);
    assert_eq!(ran(&mut bench, &owners, "true").await.0, theirs);

    let second = registry.publish(&runner, "2");
    let newer = registry.publish(&owners, "2");
    assert!(first != second && theirs != newer);
    becomes(&mut bench, &runner, &second).await;
    becomes(&mut bench, &owners, &newer).await;
    // After a restart it still means what it was found to mean.
    bench.kill_agent();
    bench.start_agent().await;
    until("the image that the agent brought is gone", || {
        !registry.has(&first)
    })
    .await;
    becomes(&mut bench, &runner, &second).await;

    // The owner's stays, under its name; what was made from it for jobs goes.
    let volumes = |id: &str| {
        let part = id.trim_start_matches("sha256:")[..16].to_owned();
        registry.docker(&["volume", "ls", "-q"]).contains(&part)
    };
    until("the program of the owner's old image is gone", || {
        !volumes(&theirs)
    })
    .await;
    let named = registry.docker(&["image", "inspect", "-f", "{{.Id}}", &owners]);
    assert_eq!(named.trim(), theirs);

    // Their own work is not replaced by what a registry has under that name.
    assert_eq!(ran(&mut bench, &built, "true").await.0, work.trim());
    let third = registry.publish(&runner, "3");
    becomes(&mut bench, &runner, &third).await;
    assert_eq!(ran(&mut bench, &built, "true").await.0, work.trim());
    assert!(!registry.has(&strangers));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_program_that_github_refuses_is_replaced_at_once() {
    let on = On::own_docker();
    let registry = Registry::start(&on);
    let runner = format!("{REGISTRY}/runner:latest");
    let old = registry.publish(&runner, "old");
    // The tag is looked at for no other reason.
    let more = ["--pull", "true", "--image-refresh", "0"];
    let mut bench = Bench::start_with(&on, "refused", &more).await;
    assert_eq!(ran(&mut bench, &runner, "true").await.0, old);
    let new = registry.publish(&runner, "new");
    assert_eq!(ran(&mut bench, &runner, "true").await.0, old);
    let (id, exit) = ran(&mut bench, &runner, "exit 7").await;
    assert_eq!((id, exit.cause()), (old, Cause::VersionDeprecated));
    becomes(&mut bench, &runner, &new).await;
    bench.finish().await;
}
