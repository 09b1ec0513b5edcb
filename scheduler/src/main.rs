//! The longshore-scheduler binary: read the configuration, start, wait, end in order.

#![warn(clippy::unwrap_used)]

use std::{collections::BTreeMap, io::Write, path::Path, process::ExitCode, sync::Arc};

use anyhow::Context;
use longshore_scheduler::{
    api::fleet::writes::SETTINGS_KEY,
    app::{self, Addresses, Listeners, Running, Wiring},
    config::{Arguments, Config, ConfigError, Sources, WatchSettings, credentials::Credentials},
    driver::Recovered,
    hub::Hub,
    ports::Store,
    systemd,
    telemetry::Telemetry,
    tls, watchdog,
    web::WebhookBounds,
};
use scheduler_store::{Options, Sqlite};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Wrong arguments or configuration.
const USAGE: u8 = 2;
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // A closed stdout or stderr leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no threads to run on: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<ConfigError>() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::from(FAILED)
            }
        }
    }
}

/// The environment and file a process is configured by.
struct Given {
    environment: BTreeMap<String, String>,
    file: Option<(std::path::PathBuf, String)>,
    credentials: Credentials,
}

impl Given {
    fn read(arguments: &Arguments) -> anyhow::Result<Self> {
        let environment = std::env::vars()
            .filter(|(name, _)| name.starts_with("LONGSHORE_"))
            .collect();
        let file = match arguments.file() {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| {
                    format!("cannot read the configuration file {}", path.display())
                })?;
                Some((path.to_owned(), text))
            }
            None => None,
        };
        let credentials = Credentials::of_process()
            .context("cannot read what systemd handed over ($CREDENTIALS_DIRECTORY)")?;
        Ok(Self {
            environment,
            file,
            credentials,
        })
    }

    fn resolve(
        &self,
        arguments: &Arguments,
        stored: Option<&WatchSettings>,
    ) -> Result<Config, ConfigError> {
        Config::resolve(&Sources {
            arguments,
            file: self
                .file
                .as_ref()
                .map(|(path, text)| (path.as_path(), text.as_str())),
            environment: &self.environment,
            stored,
            credentials: &self.credentials,
        })
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let given = Given::read(arguments)?;
    let base = given.resolve(arguments, None)?;
    if arguments.check_config() {
        return check(arguments, &given, &base).await;
    }
    let telemetry = Telemetry::start(&base.log, base.otlp_endpoint.as_deref())?;
    for warning in Config::unknown_environment(&given.environment) {
        tracing::warn!("{warning}");
    }
    for warning in exposed(&base, &given.credentials) {
        tracing::warn!("{warning}");
    }
    let listeners = Listeners::bind(&base).await?;
    let store = Sqlite::open(Options::new(&base.state_dir))
        .await
        .map_err(|error| anyhow::anyhow!("failed to {error}"))?;
    let stored = stored_settings(&store).await?;
    let config = given.resolve(arguments, stored.as_ref())?;
    let deadline = config.shutdown_deadline;
    let authority = tls::public_file(&config);
    let recovered = Recovered::load(&store)
        .await
        .map_err(|error| anyhow::anyhow!("failed to {error}"))?;
    let hub = Hub::connect(&config, recovered.1.fleet_id())?;
    let mut running = app::start(Wiring {
        config: config.clone(),
        listeners,
        store: Arc::new(store.clone()),
        recovered,
        github: hub.clone(),
        webhook_bounds: WebhookBounds::default(),
        stored_settings: stored.is_some(),
    })
    .await?;
    // Before anybody is told that it runs: whoever is told may end it at once.
    let signals = Signals::listen()?;
    announce(running.addresses, &authority, &running.token_file)?;
    watch_over(&running);
    let mut reload = Reload {
        arguments,
        config,
        hub,
        store: &store,
        telemetry: &telemetry,
    };
    let failure = wait(&mut running, signals, &mut reload).await;
    systemd::notify("STOPPING=1");
    let ending = async {
        running.shutdown().await;
        store.close().await
    };
    match tokio::time::timeout(deadline, ending).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the store was not closed well"),
        Err(_) => tracing::warn!("the shutdown deadline passed; what is stored is whole"),
    }
    tracing::info!("stopped");
    // Blocking: spans go out on a thread of their own.
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await?;
    match failure {
        Some(failure) => Err(anyhow::anyhow!(
            "{failure}; start again: everything answered so far is stored"
        )),
        None => Ok(()),
    }
}

async fn stored_settings(store: &Sqlite) -> anyhow::Result<Option<WatchSettings>> {
    let text = store.setting(SETTINGS_KEY).await?;
    Ok(match text.as_deref().map(serde_json::from_str) {
        Some(Ok(settings)) => Some(settings),
        Some(Err(error)) => {
            tracing::warn!(%error, "stored autoscaler settings are not understood; the configuration holds");
            None
        }
        None => None,
    })
}

/// Prints what is in force and where it came from.
async fn check(arguments: &Arguments, given: &Given, base: &Config) -> anyhow::Result<()> {
    let mut note = None;
    let mut stored = None;
    if base.state_dir.join("longshore.db").exists() {
        match Sqlite::open(Options::new(&base.state_dir)).await {
            Ok(store) => stored = stored_settings(&store).await?,
            Err(error) => note = Some(format!("# stored settings are not shown: {error}\n")),
        }
    }
    let config = given.resolve(arguments, stored.as_ref())?;
    Hub::connect(&config, "check")?;
    let token = config.github.token_file.is_none()
        && std::env::var("GITHUB_TOKEN").is_ok_and(|token| !token.trim().is_empty());
    let mut out = std::io::stdout().lock();
    out.write_all(config.report(token).as_bytes())?;
    out.write_all(note.unwrap_or_default().as_bytes())?;
    for warning in Config::unknown_environment(&given.environment) {
        writeln!(out, "# {warning}")?;
    }
    for warning in exposed(&config, &given.credentials) {
        writeln!(out, "# {warning}")?;
    }
    Ok(())
}

/// Files with secrets that others than their owner can read. A warning, not an error: some systems mount them so.
fn exposed(config: &Config, credentials: &Credentials) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let github = &config.github;
    let accounts = github.accounts.accounts.iter();
    let enterprises = github.accounts.enterprises.iter();
    github
        .token_file
        .iter()
        .chain(&github.app_key_file)
        .chain(&github.webhook_secret_files)
        .chain(accounts.filter_map(|account| account.token_file.as_ref()))
        .chain(enterprises.map(|enterprise| &enterprise.token_file))
        .filter(|file| !credentials.hold(file))
        .filter_map(|file| {
            let mode = std::fs::metadata(file).ok()?.permissions().mode();
            let file = file.display();
            (mode & 0o077 != 0).then(|| {
                format!(
                    "{file} holds a secret and others than its owner may read it: chmod 600 {file}"
                )
            })
        })
        .collect()
}

/// One line for whoever started us: ready, and where.
fn announce(addresses: Addresses, authority: &Path, token_file: &Path) -> anyhow::Result<()> {
    let line = serde_json::json!({
        "ready": true,
        "api": addresses.api.to_string(),
        "nodes": addresses.nodes.to_string(),
        "webhooks": addresses.webhooks.to_string(),
        "ca": authority,
        "token_file": token_file,
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    tracing::info!(
        api = %addresses.api,
        nodes = %addresses.nodes,
        webhooks = %addresses.webhooks,
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    systemd::notify("READY=1");
    Ok(())
}

/// Tells systemd again and again that the driver answers, when systemd wants to hear it.
fn watch_over(running: &Running) {
    let variable = |name: &str| std::env::var(name).ok();
    let (usec, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    let Some(every) = watchdog::interval(usec.as_deref(), pid.as_deref(), std::process::id())
    else {
        return;
    };
    let (inbox, waits) = (running.inbox.clone(), running.metrics.full_disk.clone());
    tokio::spawn(watchdog::run(inbox, every, waits, || {
        systemd::notify("WATCHDOG=1");
    }));
}

/// The signals it listens to: two end it in order, one has it read its configuration again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// What a running scheduler needs to take in another configuration.
struct Reload<'a> {
    arguments: &'a Arguments,
    /// In force.
    config: Config,
    hub: Hub,
    store: &'a Sqlite,
    telemetry: &'a Telemetry,
}

impl Reload<'_> {
    /// Applies what can be and names the rest; a wrong configuration changes nothing.
    async fn run(&mut self, running: &Running) -> anyhow::Result<()> {
        let given = Given::read(self.arguments)?;
        let stored = stored_settings(self.store).await?;
        let next = given.resolve(self.arguments, stored.as_ref())?;
        let changes = self.config.changes(&next);
        if changes.is_empty() {
            tracing::info!("the configuration was read again; nothing in it changed");
            return Ok(());
        }
        self.hub.reconfigure(&next)?;
        self.telemetry.set_filter(&next.log)?;
        running.reconfigure(&next, stored.is_some()).await?;
        tracing::info!(changed = ?changes.applied, "the configuration was read again and is in force");
        for setting in &changes.restart {
            tracing::warn!(
                setting,
                "this setting changed and needs a restart to be in force; a restart stops no job"
            );
        }
        for warning in exposed(&next, &given.credentials) {
            tracing::warn!("{warning}");
        }
        self.config = next;
        Ok(())
    }
}

/// Waits for a signal that ends it, or for the driver to fail: the reason then.
async fn wait(
    running: &mut Running,
    mut signals: Signals,
    reload: &mut Reload<'_>,
) -> Option<String> {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return None,
            _ = signals.interrupt.recv() => return None,
            _ = signals.hangup.recv() => {}
            failure = running.failed() => {
                tracing::error!(failure, "the scheduler cannot go on");
                return Some(failure);
            }
        }
        if let Err(error) = reload.run(running).await {
            tracing::error!(
                error = format!("{error:#}"),
                "the configuration stays as it was"
            );
        }
    }
}
