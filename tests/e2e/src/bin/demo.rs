//! `make demo`: a whole fleet on this machine, a realistic queue, and a verdict by a checker of its own.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use longshore_e2e::{
    binaries::Binaries,
    demo::{
        folder::{Folder, write_json},
        identity, image,
        parts::{Parts, Wishes},
        real,
        show::Show,
        simulated,
        stop::Stop,
    },
};

/// Runs a whole fleet on this machine and checks what it left behind.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Folder of the built programs.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// The static stand-in for GitHub's runner program.
    #[arg(long)]
    runner_program: PathBuf,
    /// Folder for logs, state and the summary.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
    /// Socket of the container engine.
    #[arg(long, default_value = "/var/run/docker.sock")]
    engine_socket: PathBuf,
    /// Your own jobs: [{"repo","labels","steps","expect"}].
    #[arg(long, env = "JOBS")]
    jobs: Option<PathBuf>,
    /// Leave it running until Ctrl-C.
    #[arg(long, env = "KEEP", num_args = 0..=1, default_missing_value = "1")]
    keep: Option<String>,
    /// Image of the runners.
    #[arg(long, env = "IMAGE")]
    image: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match whole(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn whole(arguments: Arguments) -> Result<bool> {
    let source = real::Source::from_variables(|name| std::env::var(name).ok())?;
    let wishes = Wishes {
        binaries: arguments
            .bin_dir
            .map_or_else(Binaries::find, |d| Ok(Binaries::at(d)))?,
        runner_program: arguments.runner_program,
        engine_socket: arguments.engine_socket,
        jobs: arguments.jobs.filter(|f| !f.as_os_str().is_empty()),
        keep: arguments.keep.is_some_and(|k| !k.is_empty() && k != "0"),
        image: arguments.image.filter(|i| !i.is_empty()),
    };
    let queue = match source {
        Some(_) => Vec::new(),
        None => simulated::queue(&wishes)?,
    };

    std::fs::create_dir_all(&arguments.out)?;
    let folder = Folder::at(arguments.out.canonicalize().context("folder of the demo")?);
    let _only = identity::only_demo_in(folder.path())?;
    empty(&folder)?;
    let claim = identity::claim()?;
    write_json(&folder.identity(), &claim.identity)?;

    let mut stop = Stop::listen()?;
    let mut show = Show::default();
    show.line(&format!(
        "demo {}: logs and state are in {}",
        claim.identity.run,
        folder.path().display()
    ));
    let mut parts = Parts::default();
    parts.watch(&wishes, &folder).await?;

    // Whatever happens from here on, what was started is stopped and the checker has the last word.
    let mut problems = Vec::new();
    let served = async {
        match &source {
            None => {
                simulated::declare(&folder, &queue)?;
                let image = match &wishes.image {
                    Some(image) => image.clone(),
                    None => image::build(&wishes.runner_program).await?,
                };
                simulated::start(
                    &mut parts,
                    &wishes,
                    &folder,
                    &claim.identity,
                    &queue,
                    &image,
                )
                .await?;
                addresses(&parts, &mut show);
                simulated::run(&mut parts, &folder, &queue, &mut show, &mut stop).await?;
                simulated::write_jobs(&parts, &wishes, &folder, &mut show).await?;
                if wishes.keep {
                    show.line("the queue is done; it stays up until Ctrl-C");
                    stop.wait().await;
                }
            }
            Some(source) => {
                real::declare(&folder)?;
                real::start(&mut parts, &wishes, &folder, &claim.identity, source).await?;
                addresses(&parts, &mut show);
                real::run(&mut parts, &mut show, &mut stop, source).await?;
            }
        }
        show.line("letting the node run empty");
        parts.drain(&claim.identity).await?;
        if source.is_some() {
            real::write_story(&parts, &folder).await?;
        }
        anyhow::Ok(())
    }
    .await;
    problems.extend(served.err());
    show.line("stopping what was started");
    problems.extend(parts.stop_fleet(&wishes, &folder).await);
    problems.extend(parts.stop_simulator(&wishes, &folder).await);
    for problem in &problems {
        eprintln!("demo: {problem:#}");
    }
    let judged = parts.judge(&wishes, &folder).await?;
    Ok(judged && problems.is_empty())
}

fn addresses(parts: &Parts, show: &mut Show) {
    if let Some(scheduler) = &parts.scheduler {
        show.line(&format!(
            "fleet is up; ask it yourself: longshore --scheduler {} --token-file {} runner status",
            scheduler.api_url(),
            scheduler.token_file.display()
        ));
    }
}

/// What an earlier demo of this checkout wrote; its lock stays.
fn empty(folder: &Folder) -> Result<()> {
    for entry in std::fs::read_dir(folder.path())?.flatten() {
        if entry.file_name() == ".lock" {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        }
        .with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}
