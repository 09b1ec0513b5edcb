//! The `longshore-agent` program.

#![warn(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_core::sandbox::gpu_proof;
use clap::{Arg, ArgAction, ArgMatches, Command};
use longshore_agent::config::{Config, KEYS, RELOADED, Settings};
use longshore_agent::{app, see_gpus, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// As a flag that does not exist ends it: told before anything is touched.
const USAGE: u8 = 2;

fn command() -> Command {
    let mut command = Command::new("longshore-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs a node of a Longshore fleet")
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("TOML file")
                .global(true),
        )
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Print what is in force and where it came from, and exit"),
        )
        .subcommand(
            Command::new("detect")
                .about("Show what this host offers, with the evidence")
                .arg(
                    Arg::new("json")
                        .long("json")
                        .action(ArgAction::SetTrue)
                        .help("As JSON (the only form)"),
                ),
        );
    command = command.subcommand(
        Command::new(gpu_proof::ARGUMENT)
            .hide(true)
            .about("What a container that proves a GPU runs: say what is seen there"),
    );
    command = command.subcommand(
        Command::new("purge")
            .about("Remove everything this node made on its engine, runners included"),
    );
    command = command.subcommand(Command::new("join").about(
        "Join a fleet with the token of --join-token-file, and exit; a host that had joined gets a new identity",
    ));
    for (key, default, help) in KEYS {
        let help = if default.is_empty() {
            help.to_owned()
        } else {
            format!("{help} [default: {default}]")
        };
        command = command.arg(
            Arg::new(key)
                .long(key.replace('_', "-"))
                .value_name("VALUE")
                .help(help)
                .global(true),
        );
    }
    command
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    if matches.subcommand_matches(gpu_proof::ARGUMENT).is_some() {
        return match see_gpus::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("longshore-agent: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let (settings, config) = match configuration(&matches) {
        Ok(both) => both,
        Err(error) => {
            eprintln!("longshore-agent: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    if matches.get_flag("check-config") {
        for line in settings.lines() {
            println!("{line}");
        }
        return ExitCode::SUCCESS;
    }
    match start(&matches, settings, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longshore-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configuration(matches: &ArgMatches) -> anyhow::Result<(Settings, Config)> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    let file = matches
        .get_one::<String>("config")
        .cloned()
        .or_else(|| std::env::var("LONGSHORE_AGENT_CONFIG").ok());
    let flags: BTreeMap<String, String> = KEYS
        .iter()
        .filter_map(|(key, _, _)| {
            Some(((*key).to_owned(), matches.get_one::<String>(key)?.clone()))
        })
        .collect();
    let settings = Settings::gather(
        file.map(PathBuf::from).as_deref(),
        |name| std::env::var(name).ok(),
        &flags,
    )?;
    let config = Config::new(
        &settings,
        &agent_detect::cpu::probe(Path::new("/")).hostname,
    )?;
    Ok((settings, config))
}

#[tokio::main]
async fn start(matches: &ArgMatches, settings: Settings, config: Config) -> anyhow::Result<()> {
    if matches.subcommand_matches("detect").is_some() {
        println!("{}", app::detect(&config).await?);
        return Ok(());
    }
    if matches.subcommand_matches("purge").is_some() {
        return app::purge(&config).await;
    }
    let telemetry =
        telemetry::Telemetry::start(&config.node, &config.log, config.otlp_endpoint.as_deref())?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    let mut hangup = signal(SignalKind::hangup())?;
    let running = async {
        match matches.subcommand_matches("join") {
            Some(_) => app::join_again(&config, stop).await,
            None => app::run(config, stop).await,
        }
    };
    tokio::pin!(running);
    let mut settings = settings;
    let result = loop {
        tokio::select! {
            result = &mut running => break result,
            _ = hangup.recv() => {
                if let Err(error) = reload(matches, &mut settings, &telemetry) {
                    error!(error = format!("{error:#}"), "the configuration stays as it was");
                }
            }
        }
    };
    telemetry.stop();
    result
}

/// Reads the configuration again: applies what can be and names the rest.
fn reload(
    matches: &ArgMatches,
    settings: &mut Settings,
    telemetry: &telemetry::Telemetry,
) -> anyhow::Result<()> {
    let (next, config) = configuration(matches)?;
    let changed = settings.changed(&next);
    telemetry.set_filter(&config.log)?;
    debug!(filter = config.log, "the log filter in force");
    info!(?changed, "the configuration was read again");
    for setting in changed.iter().filter(|key| !RELOADED.contains(key)) {
        warn!(
            setting,
            "this setting changed and needs a restart to be in force; a restart stops no job"
        );
    }
    *settings = next;
    Ok(())
}
