//! A disk that runs full under the agent, and jobs that fill it by other ways than their work folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;
use longshore_proto::v1::runner_exit::Cause;

use crate::on::On;
use crate::profiles::{built, under};
use crate::support::{self, Bench, run};

/// A file system in memory of this size; goes with the value.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "longshore-test"])
            .arg(folder.path())
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn full(report: &pb::NodeReport) -> Option<&pb::Condition> {
    let mut conditions = report.conditions.iter();
    conditions.find(|condition| condition.kind == "disk_full")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_work_finishes_the_old_and_mends_itself() {
    let disk = SmallDisk::of("160m");
    let on = On::Host;
    let folder = tempfile::tempdir_in(disk.0.path()).unwrap();
    let mut bench = Bench::start_in(&on, "disk", folder, &[]).await;
    let (old, refused, new) = (bench.name("old"), bench.name("refused"), bench.name("new"));
    let started = run(&bench.image());
    bench.intend(&[(&old, started.clone())], &[]).await;
    let job = "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done; exit 3";
    bench.register(&old, job, "x").await;
    bench.phase(&old, Phase::Busy).await;

    // Less is left than the 64 MiB the agent of these tests keeps free.
    std::fs::write(disk.filler(), vec![1; 120 << 20]).unwrap();
    let report = bench.until_report(|report| full(report).is_some()).await;
    let condition = full(&report).expect("waited for it");
    assert!(
        condition.detail.contains("min_free_disk") && condition.next_step.contains("free space"),
        "{condition:?}"
    );
    let both = [(&*old, started.clone()), (&*refused, started.clone())];
    bench.intend(&both, &[]).await;
    let failed = bench.phase(&refused, Phase::Failed).await;
    assert_eq!(failed.error.expect("an error").reason, "disk_full");

    bench.touch(&old, "/home/runner/_work/go");
    let exited = bench.phase(&old, Phase::Exited).await;
    assert_eq!(exited.exit.expect("an exit").code, Some(3));

    std::fs::remove_file(disk.filler()).unwrap();
    bench.until_report(|report| full(report).is_none()).await;
    bench.intend(&[(&new, started)], &[]).await;
    bench.phase(&new, Phase::Ready).await;
    bench.finish().await;
}

/// Ended for the disk that it took, which was measured and not its work folder's.
async fn is_ended_for_its_disk(bench: &mut Bench, runner: &str, job: &str) {
    bench.register(runner, job, "x").await;
    let exited = bench.phase(runner, Phase::Exited).await;
    let exit = exited.exit.expect("an end has an exit");
    assert_eq!(exit.cause(), Cause::DiskFull, "{exit:?}");
    assert!(
        exit.detail.contains("more than job_disk"),
        "{}",
        exit.detail
    );
    assert_eq!(bench.leftovers(), "");
}

/// A closed root keeps nobody from a volume that the image declares, and a container beside a
/// job has a root and volumes of its own: each is counted, and all of a job's together.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_an_image_and_containers_beside_a_job_count_as_its_disk() {
    let lines = "RUN mkdir /data /open && chmod 1777 /data /open\nVOLUME /data";
    let image = built(&support::image(), lines);
    let mut bench = Bench::start_with(&On::Host, "elsewhere", &["--job-disk", "64MiB"]).await;
    let (closed, beside) = (bench.name("closed"), bench.name("beside"));
    bench.want(&closed, run(&image.0)).await;
    let job = "dd if=/dev/zero of=/data/fill bs=1M count=100; while :; do sleep 0.2; done";
    is_ended_for_its_disk(&mut bench, &closed, job).await;

    bench.want(&beside, under("containers", &image.0)).await;
    // Neither is too much by itself.
    let step =
        "for at in /data /open; do dd if=/dev/zero of=$at/fill bs=1M count=40; done; sleep 600";
    let request = serde_json::json!({"command": "run_container_step", "state": {},
        "responseFile": "/home/runner/_work/answer", "args": {"image": image.0,
        "entryPoint": "sh", "entryPointArgs": ["-c", step], "environmentVariables": {}}});
    let job = format!(
        "cd /home/runner/_work; cat >ask <<'END'\n{request}\nEND\n\
         sh $ACTIONS_RUNNER_CONTAINER_HOOKS <ask; while :; do sleep 0.2; done"
    );
    is_ended_for_its_disk(&mut bench, &beside, &job).await;
    bench.finish().await;
}

/// While hardly anything is left for anybody, who took the most makes room; who took little stays.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_that_is_nearly_full_the_job_that_takes_the_most_is_ended() {
    let disk = SmallDisk::of("192m");
    let folder = tempfile::tempdir_in(disk.0.path()).unwrap();
    let flags = ["--job-disk", "128MiB"];
    let mut bench = Bench::start_in(&On::Host, "floor", folder, &flags).await;
    let (large, small) = (bench.name("large"), bench.name("small"));
    let write = |mib: u32| {
        format!(
            "dd if=/dev/zero of=_work/some bs=1M count={mib} && touch _work/written; \
             while [ ! -e _work/go ]; do sleep 0.1; done; exit 4"
        )
    };
    for (runner, mib) in [(&small, 8), (&large, 80)] {
        bench.want(runner, run(&bench.image())).await;
        bench.register(runner, &write(mib), "x").await;
        bench.phase(runner, Phase::Busy).await;
        let wait = "t=0; until [ -e /home/runner/_work/written ]; do sleep 0.1; t=$((t+1)); [ $t -lt 600 ] || exit 1; done";
        bench.exec(runner, wait);
    }
    // Less than a quarter of the 64 MiB that the agent of these tests keeps free.
    let free = Command::new("stat")
        .args(["-f", "-c", "%a %S"])
        .arg(disk.0.path())
        .output()
        .unwrap();
    let free = String::from_utf8(free.stdout).unwrap();
    let (blocks, size) = free.trim().split_once(' ').unwrap();
    let free: usize = blocks.parse::<usize>().unwrap() * size.parse::<usize>().unwrap();
    std::fs::write(disk.filler(), vec![1; free - (8 << 20)]).unwrap();
    let exited = bench.phase(&large, Phase::Exited).await;
    let exit = exited.exit.expect("an end has an exit");
    assert_eq!(exit.cause(), Cause::DiskFull, "{exit:?}");
    assert!(
        exit.detail.contains("less than a quarter of min_free_disk"),
        "{}",
        exit.detail
    );
    assert_eq!(bench.phase_now(&small), Some(Phase::Busy));
    std::fs::remove_file(disk.filler()).unwrap();
    bench.touch(&small, "/home/runner/_work/go");
    let exited = bench.phase(&small, Phase::Exited).await;
    assert_eq!(exited.exit.expect("an exit").code, Some(4));
    bench.finish().await;
}
