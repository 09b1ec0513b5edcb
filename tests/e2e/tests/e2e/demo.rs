//! The demo, as a reader runs it: with jobs of their own, and serving an owner's repositories.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use longshore_e2e::{
    binaries::Binaries,
    demo::{folder::read_json, gather::rows, identity, image, verdict::Summary},
    fleet::Sim,
    wait,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// Longest a whole demo may take on a small, busy machine.
const WITHIN: Duration = Duration::from_secs(900);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The static stand-in for GitHub's runner program, where tests/run and deploy/demo build it.
fn runner_program(binaries: &Binaries) -> Result<PathBuf> {
    let name = format!(
        "static/{}-unknown-linux-gnu/debug/demo-runner",
        std::env::consts::ARCH
    );
    let path = binaries.folder().join("..").join(name);
    path.canonicalize().with_context(|| {
        format!(
            "no stand-in runner at {}: tests/run builds it",
            path.display()
        )
    })
}

struct Demo {
    child: Child,
    log: PathBuf,
}

impl Demo {
    fn start(
        binaries: &Binaries,
        out: &Path,
        log: PathBuf,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let file = std::fs::File::create(&log)?;
        let child = Command::new(binaries.program("demo")?)
            .arg("--bin-dir")
            .arg(binaries.folder())
            .arg("--runner-program")
            .arg(runner_program(binaries)?)
            .arg("--out")
            .arg(out)
            .current_dir(root())
            .env_remove("OWNER")
            .env_remove("GITHUB_TOKEN")
            .env_remove("KEEP")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .context("start the demo")?;
        Ok(Self { child, log })
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn ends_well(&mut self) -> Result<()> {
        let status = tokio::time::timeout(WITHIN, self.child.wait())
            .await
            .with_context(|| {
                format!("the demo still runs after {WITHIN:?}:\n{}", self.output())
            })??;
        ensure!(
            status.success(),
            "the demo ended with {status}:\n{}",
            self.output()
        );
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_own_jobs_run_and_what_they_printed_is_kept() -> Result<()> {
    let binaries = Binaries::find()?;
    let folder = tempfile::tempdir()?;
    let jobs = folder.path().join("jobs.json");
    let native = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "x64"
    };
    let mine = json!([
        {"repo": "reader/app", "labels": ["self-hosted", "linux", native], "steps": ["echo my own words"], "expect": "success"},
        {"repo": "reader/app", "labels": ["self-hosted", "linux", native], "steps": ["echo first", "exit 7"], "expect": "failure"},
        {"repo": "reader/app", "labels": ["self-hosted", "a-label-nobody-has"], "steps": ["true"], "expect": "unschedulable"}
    ]);
    std::fs::write(&jobs, mine.to_string())?;
    let out = folder.path().join("out");
    let jobs_text = jobs.to_string_lossy();
    let mut demo = Demo::start(
        &binaries,
        &out,
        folder.path().join("demo.log"),
        &[("JOBS", &jobs_text)],
    )?;
    demo.ends_well().await?;

    let summary: Summary = read_json(&out.join("summary.json"))?;
    ensure!(summary.expected, "{summary:?}");
    ensure!(
        summary.jobs.failed == 2 && summary.jobs.cancelled == 1,
        "{summary:?}"
    );
    ensure!(
        summary.probes.passed > 10 && summary.probes.failed == 0,
        "{summary:?}"
    );

    let mut outputs = Vec::new();
    for job in std::fs::read_dir(out.join("jobs"))? {
        let job = job?.path();
        let about: Value = read_json(&job.join("job.json"))?;
        if about["repository"] == "reader/app" {
            let text = |name: &str| std::fs::read_to_string(job.join(name)).unwrap_or_default();
            outputs.push((
                about["name"].as_str().unwrap_or_default().to_owned(),
                text("step-1.out"),
                text("step-1.exit"),
                text("step-2.exit"),
                text("explain.txt"),
            ));
        }
    }
    outputs.sort();
    ensure!(outputs.len() == 3, "{outputs:?}");
    ensure!(
        outputs[0].1.contains("my own words") && outputs[0].2 == "0\n",
        "{outputs:?}"
    );
    ensure!(
        outputs[1].1.contains("first") && outputs[1].3 == "7\n",
        "{outputs:?}"
    );
    ensure!(outputs[2].4.contains("a-label-nobody-has"), "{outputs:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_repositories_are_served_by_the_same_command() -> Result<()> {
    let binaries = Binaries::find()?;
    let folder = tempfile::tempdir()?;
    // An address of its own for this GitHub; the demo claims another for itself.
    let claim = identity::claim()?;
    let mut sim = Sim::start(
        &binaries,
        folder.path(),
        Some(&claim.identity.runner_net()),
        1,
        &[],
    )
    .await?;
    sim.control(
        "owners",
        json!({"login": "real", "kind": "organization", "members": {"mona": "admin"}}),
    )
    .await?;
    sim.control(
        "repos",
        json!({"owner": "real", "name": "app", "private": true}),
    )
    .await?;
    let token = sim
        .control(
            "tokens",
            json!({"login": "mona", "scopes": ["repo", "admin:org"]}),
        )
        .await?;
    let native = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "x64"
    };
    let labels = json!(["self-hosted", "linux", native]);
    sim.control(
        "runs",
        json!({"repository": "real/app", "workflow": "CI", "event": "push",
               "jobs": [{"name": "build", "labels": labels, "steps": ["echo built"], "matrix": 3}]}),
    )
    .await?;

    let image = image::build_in(&root(), &runner_program(&binaries)?).await?;
    let out = folder.path().join("out");
    let secret = token["token"].as_str().context("no token")?;
    let log = folder.path().join("demo.log");
    let mut demo = Demo::start(
        &binaries,
        &out,
        log.clone(),
        &[
            ("OWNER", "real"),
            ("LONGSHORE_INTERVAL", "2"),
            ("GITHUB_TOKEN", secret),
            ("GITHUB_API_URL", sim.url()),
            ("IMAGE", &image),
        ],
    )?;
    // What counts is what the demo shows: without webhooks it learns of an end by the next sweep.
    let all_done = wait::until("the owner's jobs to end", WITHIN, || async {
        let shown = std::fs::read_to_string(&log).unwrap_or_default();
        let done = shown
            .lines()
            .filter(|l| l.contains("build") && l.trim_end().ends_with("success"))
            .count();
        if done == 3 {
            Ok(())
        } else {
            Err(format!("{done} of 3 shown as ended"))
        }
    });
    tokio::select! {
        met = all_done => met.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?,
        ended = demo.child.wait() => anyhow::bail!("the demo ended by itself ({:?}):\n{}", ended, demo.output()),
    }
    let pid = demo.child.id().context("the demo runs")?;
    Command::new("kill")
        .arg("-INT")
        .arg(pid.to_string())
        .status()
        .await?;
    demo.ends_well().await?;

    let left = rows(&sim.look("runners").await?);
    ensure!(left.is_empty(), "registrations left behind: {left:?}");
    ensure!(!demo.output().contains(secret), "the token was printed");
    let summary: Summary = read_json(&out.join("summary.json"))?;
    ensure!(
        summary.expected && summary.jobs.succeeded == 3,
        "{summary:?}"
    );
    sim.process.terminate(Duration::from_secs(20)).await?;
    Ok(())
}
