//! What the process is told: defaults < systemd's credentials < TOML file < stored settings < environment < flags.
//!
//! Parsing is pure: the file's text, the environment and the arguments come in
//! as values, a `Config` or a list of problems comes out. Secrets are never
//! part of it, only the paths of their files.

pub mod accounts;
mod changes;
pub mod credentials;
pub mod domains;
pub mod keys;
mod lines;
pub(crate) mod pools;
mod report;
pub mod runtime;
pub mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use scheduler_core::{
    input::Defaults,
    model::{Pool, Resources},
};

pub use changes::Changes;
use credentials::Credentials;
use keys::{KEYS, Key, POOL_KEYS, nearest};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A file that systemd handed over under this name.
    Credential(String),
    /// The file and the line in it.
    File(PathBuf, Option<usize>),
    /// `StartAutoscaler` settings kept in the store.
    Stored,
    Environment(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::File(path, line) => write!(f, "file {}", Place(path, *line)),
            Self::Stored => f.write_str("stored by StartAutoscaler"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag --{flag}"),
        }
    }
}

/// A file and, when it is known, the line.
struct Place<'a>(&'a Path, Option<usize>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())?;
        match self.1 {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}

/// Everything wrong with the configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Settings that may be changed while running and are then stored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WatchSettings {
    /// Owners to watch; empty: every accessible repository.
    pub owners: Vec<String>,
    /// Milliseconds between sweeps.
    pub interval_ms: u64,
    pub since_days: u32,
    /// 0: bounded by the nodes only.
    pub max_runners: u32,
    pub image: String,
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    pub watch: WatchSettings,
    pub retention: Duration,
    pub shutdown_deadline: Duration,
    pub listen: Listen,
    pub identity: Identity,
    pub github: GitHubConfig,
    pub otlp_endpoint: Option<String>,
    pub log: String,
    pub defaults: Defaults,
    pub pools: Vec<Pool>,
    /// Subject, weight, maximum.
    pub shares: Vec<(String, u32, u32)>,
    origins: Origins,
    /// What the file says of each pool, by its name; the rest is default.
    pool_keys: BTreeMap<String, BTreeSet<String>>,
}

/// The three listeners.
#[derive(Clone, Debug)]
pub struct Listen {
    pub api: SocketAddr,
    pub nodes: SocketAddr,
    pub webhooks: SocketAddr,
    /// Webhook requests accepted per second.
    pub webhook_rate: u32,
    /// API requests of one caller accepted per second.
    pub api_rate: u32,
    /// Further names and addresses of the scheduler's own certificate.
    pub names: Vec<String>,
    /// A given certificate of the API and its key, PEM. Off loopback the authority signs one
    /// when none is given.
    pub api_certificate: Option<(PathBuf, PathBuf)>,
}

/// Who may join.
#[derive(Clone, Debug)]
pub struct Identity {
    /// A given authority's certificate and key, PEM; else one is made.
    pub authority: Option<(PathBuf, PathBuf)>,
    /// Life of a node's certificate.
    pub certificate_life: Duration,
}

/// How GitHub is reached. Paths only: the secrets are read by `Secrets`.
#[derive(Clone, Debug)]
pub struct GitHubConfig {
    pub api_url: String,
    pub token_file: Option<PathBuf>,
    pub app_id: Option<u64>,
    pub app_key_file: Option<PathBuf>,
    pub webhook_secret_files: Vec<PathBuf>,
    /// Public URL of the webhook listener, as the hooks at GitHub name it.
    pub webhook_url: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub accounts: accounts::Accounts,
}

type Origins = BTreeMap<&'static str, (Vec<String>, Origin)>;

/// What the command line asks for.
pub struct Arguments {
    matches: ArgMatches,
}

impl Arguments {
    /// Parses arguments; clap prints help and usage errors itself (exit code 2).
    pub fn parse<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        Ok(Self {
            matches: command().try_get_matches_from(arguments)?,
        })
    }

    /// The configuration file, when one was named.
    pub fn file(&self) -> Option<&Path> {
        self.matches.get_one::<PathBuf>("config").map(AsRef::as_ref)
    }

    /// Print what is in force and where it came from, then end.
    pub fn check_config(&self) -> bool {
        self.matches.get_flag("check-config")
    }
}

fn command() -> Command {
    let mut command = Command::new("longshore-scheduler")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Turns GitHub's queued jobs into hardened single-use runners on your own machines")
        .arg(
            Arg::new("config")
                .long("config")
                .env("LONGSHORE_CONFIG")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("TOML file; LONGSHORE_* variables stand over it, flags over both"),
        )
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Print what is in force and where each value came from, then exit"),
        );
    for key in KEYS {
        command = command.arg(
            Arg::new(key.path)
                .long(key.flag)
                .value_name(key.value)
                .action(if key.list {
                    ArgAction::Append
                } else {
                    ArgAction::Set
                })
                .help(match key.default {
                    Some(default) => format!("{} [default: {default}]", key.help),
                    None => key.help.to_owned(),
                }),
        );
    }
    command
}

/// Inputs of `Config::resolve`.
pub struct Sources<'a> {
    pub arguments: &'a Arguments,
    /// Path and text of the file.
    pub file: Option<(&'a Path, &'a str)>,
    /// `LONGSHORE_*` variables.
    pub environment: &'a BTreeMap<String, String>,
    /// Settings that `StartAutoscaler` stored.
    pub stored: Option<&'a WatchSettings>,
    /// Files that systemd handed over.
    pub credentials: &'a Credentials,
}

impl Config {
    /// Merges the sources. All problems are reported together.
    pub fn resolve(sources: &Sources<'_>) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut origins = defaults();
        overlay_credentials(sources.credentials, &mut origins);
        let mut tables = Tables::default();
        if let Some((path, text)) = sources.file {
            read_file(path, text, &mut origins, &mut tables, &mut problems);
        }
        if let Some(stored) = sources.stored {
            overlay_stored(stored, &mut origins);
        }
        overlay_environment(sources.environment, &mut origins);
        overlay_flags(&sources.arguments.matches, &mut origins);
        let read = Reader {
            origins: &origins,
            credentials: sources.credentials,
            problems: std::cell::RefCell::new(problems),
        };
        let config = read.config(&tables);
        let problems = read.problems.into_inner();
        match config {
            Some(parts) if problems.is_empty() => Ok(Self { origins, ..parts }),
            _ => Err(ConfigError(problems)),
        }
    }

    /// `LONGSHORE_*` variables that no setting reads, with the nearest one.
    ///
    /// The prefix is shared with the sibling programs, so these are warnings.
    pub fn unknown_environment(environment: &BTreeMap<String, String>) -> Vec<String> {
        const SIBLINGS: &[&str] = &["LONGSHORE_CONFIG", "LONGSHORE_ADDRESS"];
        let known: Vec<String> = KEYS.iter().map(Key::env).collect();
        environment
            .keys()
            .filter(|name| !known.contains(name) && !SIBLINGS.contains(&name.as_str()))
            .filter_map(|name| {
                let near = nearest(name, known.iter().map(String::as_str))?;
                Some(format!(
                    "environment variable {name} is not known here; did you mean {near}?"
                ))
            })
            .collect()
    }
}

fn defaults() -> Origins {
    KEYS.iter()
        .filter_map(|key| {
            let value = key.default?;
            Some((key.path, (vec![value.to_owned()], Origin::Default)))
        })
        .collect()
}

fn overlay_credentials(given: &Credentials, origins: &mut Origins) {
    for (path, name) in credentials::NAMES {
        let Some(key) = KEYS.iter().find(|key| key.path == *path) else {
            continue;
        };
        let files = given.files(name, key.list);
        if !files.is_empty() {
            origins.insert(key.path, (files, Origin::Credential((*name).to_owned())));
        }
    }
}

fn overlay_stored(stored: &WatchSettings, origins: &mut Origins) {
    let mut set = |path, values| origins.insert(path, (values, Origin::Stored));
    set("scheduler.owners", stored.owners.clone());
    set(
        "scheduler.interval",
        vec![format!("{}ms", stored.interval_ms)],
    );
    set("scheduler.since_days", vec![stored.since_days.to_string()]);
    set(
        "scheduler.max_runners",
        vec![stored.max_runners.to_string()],
    );
    set("scheduler.image", vec![stored.image.clone()]);
}

fn overlay_environment(environment: &BTreeMap<String, String>, origins: &mut Origins) {
    for key in KEYS {
        let name = key.env();
        let Some(value) = environment.get(&name).filter(|value| !value.is_empty()) else {
            continue;
        };
        let values = if key.list {
            value
                .split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect()
        } else {
            vec![value.clone()]
        };
        origins.insert(key.path, (values, Origin::Environment(name)));
    }
}

fn overlay_flags(matches: &ArgMatches, origins: &mut Origins) {
    for key in KEYS {
        if matches.value_source(key.path) != Some(ValueSource::CommandLine) {
            continue;
        }
        if let Some(values) = matches.get_many::<String>(key.path) {
            let values = values.cloned().collect();
            origins.insert(key.path, (values, Origin::Flag(key.flag.to_owned())));
        }
    }
}

/// Parts of the file that are no plain settings.
#[derive(Default)]
struct Tables {
    pools: Vec<toml::Table>,
    shares: toml::Table,
    accounts: accounts::Lists,
    /// The whole file, to find lines in.
    text: String,
}

fn read_file(
    path: &Path,
    text: &str,
    origins: &mut Origins,
    tables: &mut Tables,
    problems: &mut Vec<String>,
) {
    text.clone_into(&mut tables.text);
    let file = path.display();
    let table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => {
            problems.push(format!("{file} is not valid TOML: {error}"));
            return;
        }
    };
    for (section, value) in table {
        match (section.as_str(), value) {
            ("pools", toml::Value::Array(entries)) => {
                for entry in entries {
                    match entry {
                        toml::Value::Table(pool) => tables.pools.push(pool),
                        _ => problems.push(format!("{file}: write each pool as [[pools]]")),
                    }
                }
            }
            ("pools", _) => problems.push(format!("{file}: write each pool as [[pools]]")),
            ("shares", toml::Value::Table(table)) => tables.shares = table,
            (_, toml::Value::Table(mut entries)) => {
                if section == "github" {
                    let mut wrong = Vec::new();
                    tables.accounts = accounts::take(&mut entries, &mut wrong);
                    problems.extend(wrong.into_iter().map(|text| format!("{file}: {text}")));
                }
                read_section(path, text, &section, entries, origins, problems);
            }
            (key, _) => {
                let file = Place(path, lines::of(text, "", None, key));
                let hint = suggestion(key, KEYS.iter().map(|key| key.path));
                problems.push(format!("{file}: unknown key `{key}`{hint}"));
            }
        }
    }
}

fn read_section(
    path: &Path,
    text: &str,
    section: &str,
    entries: toml::Table,
    origins: &mut Origins,
    problems: &mut Vec<String>,
) {
    let sections: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| key.path.split('.').next())
        .chain(["pools", "shares"])
        .collect();
    if !sections.contains(&section) {
        let hint = suggestion(section, sections);
        let file = Place(path, lines::of(text, section, None, ""));
        problems.push(format!("{file}: unknown section `[{section}]`{hint}"));
        return;
    }
    for (name, value) in entries {
        let dotted = format!("{section}.{name}");
        let line = lines::of(text, section, None, &name);
        let file = Place(path, line);
        let Some(key) = KEYS.iter().find(|key| key.path == dotted) else {
            let hint = match accounts::nearest_list(&name).filter(|_| section == "github") {
                Some(list) => format!("; did you mean [[github.{list}]]?"),
                None => suggestion(&dotted, KEYS.iter().map(|key| key.path)),
            };
            problems.push(format!("{file}: unknown key `{dotted}`{hint}"));
            continue;
        };
        match texts(&value) {
            Some(values) if key.list || !value.is_array() => {
                origins.insert(key.path, (values, Origin::File(path.to_owned(), line)));
            }
            _ if key.list => problems.push(format!("{file}: `{dotted}` takes a list of texts")),
            _ => problems.push(format!("{file}: `{dotted}` takes one value")),
        }
    }
}

fn suggestion<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(key, known) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => "; --help lists what is known".to_owned(),
    }
}

fn texts(value: &toml::Value) -> Option<Vec<String>> {
    let one = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    };
    match value {
        toml::Value::Array(entries) => entries.iter().map(one).collect(),
        value => Some(vec![one(value)?]),
    }
}

/// Turns merged texts into typed values and gathers what is wrong.
struct Reader<'a> {
    origins: &'a Origins,
    credentials: &'a Credentials,
    problems: std::cell::RefCell<Vec<String>>,
}

impl Reader<'_> {
    fn text(&self, path: &str) -> Option<&str> {
        let (values, _) = self.origins.get(path)?;
        values.first().map(String::as_str)
    }

    fn parsed<T>(&self, path: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(path)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                let origin = self.origins.get(path).map(|(_, origin)| origin.to_string());
                self.problems.borrow_mut().push(format!(
                    "{path}: {problem} ({})",
                    origin.unwrap_or_default()
                ));
                None
            }
        }
    }

    fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.parsed(path, |text| {
            text.trim()
                .parse()
                .map_err(|_| format!("`{text}` is not a whole number in range"))
        })
    }

    fn list(&self, path: &str) -> Vec<String> {
        self.origins
            .get(path)
            .map(|(values, _)| values.clone())
            .unwrap_or_default()
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.parsed(path, |text| self.credentials.path(text))
    }

    fn paths(&self, path: &str) -> Vec<PathBuf> {
        let read = |text: String| match self.credentials.path(&text) {
            Ok(path) => Some(path),
            Err(problem) => {
                let mut problems = self.problems.borrow_mut();
                problems.push(format!("{path}: {problem}"));
                None
            }
        };
        self.list(path).into_iter().filter_map(read).collect()
    }

    fn config(&self, tables: &Tables) -> Option<Config> {
        let watch = self.watch();
        let defaults = self.defaults(watch.as_ref());
        let listen = self.listen();
        let identity = self.identity();
        let github = self.github(&tables.accounts);
        let retention = self.parsed("scheduler.retention", values::duration);
        let shutdown = self.parsed("scheduler.shutdown_deadline", values::duration);
        let mut problems = Vec::new();
        let pools = defaults
            .as_ref()
            .map(|defaults| pools::pools(&tables.pools, &tables.text, defaults, &mut problems));
        let shares = pools::shares(&tables.shares, &tables.text, &mut problems);
        self.problems.borrow_mut().append(&mut problems);
        Some(Config {
            state_dir: self.path("scheduler.state_dir")?,
            watch: watch?,
            retention: retention?,
            shutdown_deadline: shutdown?,
            listen: listen?,
            identity: identity?,
            github,
            otlp_endpoint: self.text("telemetry.otlp_endpoint").map(str::to_owned),
            log: self.text("telemetry.log").unwrap_or("info").to_owned(),
            defaults: defaults?,
            pools: pools?,
            shares,
            origins: Origins::new(),
            pool_keys: pools::written(&tables.pools),
        })
    }

    fn watch(&self) -> Option<WatchSettings> {
        let interval = self.parsed("scheduler.interval", |text| {
            let interval = values::duration(text)?;
            if interval < Duration::from_secs(1) {
                return Err("the sweep interval must be at least 1s".to_owned());
            }
            Ok(interval)
        });
        let since_days = self.number("scheduler.since_days");
        let max_runners = self.number("scheduler.max_runners");
        Some(WatchSettings {
            owners: self.list("scheduler.owners"),
            interval_ms: interval?.as_millis() as u64,
            since_days: since_days?,
            max_runners: max_runners?,
            image: self.text("scheduler.image")?.to_owned(),
        })
    }

    fn defaults(&self, watch: Option<&WatchSettings>) -> Option<Defaults> {
        let span = |name: &str| self.parsed(name, values::duration);
        let cpu_millis = self.parsed("defaults.cpu", values::cpu_millis);
        let memory_bytes = self.parsed("defaults.memory", values::runner_bytes);
        let lifetime = self.parsed("defaults.lifetime", |text| {
            let lifetime = values::duration(text)?;
            if lifetime > Duration::from_secs(5 * 86_400) {
                return Err("GitHub ends a job after 5 days; use at most 5d".to_owned());
            }
            Ok(lifetime)
        });
        let idle_timeout = span("defaults.idle_timeout");
        let node_lease = span("defaults.node_lease");
        let orphan_age = span("defaults.orphan_age");
        let at_least_a_second = |name: &str| {
            self.parsed(name, |text| {
                let span = values::duration(text)?;
                if span < Duration::from_secs(1) {
                    return Err("must be at least 1s".to_owned());
                }
                Ok(span)
            })
        };
        let ghost_age = at_least_a_second("defaults.ghost_age");
        let ghost_confirmation = at_least_a_second("defaults.ghost_confirmation");
        let after_completion = at_least_a_second("defaults.after_completion");
        let stop_grace = at_least_a_second("defaults.stop_grace");
        let ageing = span("defaults.ageing");
        let bare = self.parsed("defaults.bare_self_hosted", values::boolean);
        let watch = watch?;
        Some(Defaults {
            image: watch.image.clone(),
            max_runners: watch.max_runners,
            idle_timeout: idle_timeout?,
            lifetime: lifetime?,
            node_lease: node_lease?,
            orphan_age: orphan_age?,
            ghost_age: ghost_age?,
            ghost_confirmation: ghost_confirmation?,
            after_completion: after_completion?,
            stop_grace: stop_grace?,
            ageing: ageing?,
            resources: Resources {
                cpu_millis: cpu_millis?,
                memory_bytes: memory_bytes?,
                gpus: 0,
            },
            bare_self_hosted: bare?,
        })
    }

    fn listen(&self) -> Option<Listen> {
        let api = self.parsed("listen.api", address);
        let nodes = self.parsed("listen.nodes", address);
        let webhooks = self.parsed("listen.webhooks", address);
        let webhook_rate = self.number("listen.webhook_rate");
        let api_rate = self.number("listen.api_rate");
        Some(Listen {
            api: api?,
            nodes: nodes?,
            webhooks: webhooks?,
            webhook_rate: webhook_rate?,
            api_rate: api_rate?,
            names: self.list("listen.names"),
            api_certificate: self.pair("listen.api_cert_file", "listen.api_key_file")?,
        })
    }

    /// A certificate and its key: both, or none.
    fn pair(&self, certificate: &str, key: &str) -> Option<Option<(PathBuf, PathBuf)>> {
        match (self.path(certificate), self.path(key)) {
            (Some(certificate), Some(key)) => Some(Some((certificate, key))),
            (None, None) => Some(None),
            _ => {
                let problem = format!(
                    "{certificate} and {key} belong together; give both, or none to have one made"
                );
                self.problems.borrow_mut().push(problem);
                None
            }
        }
    }

    fn identity(&self) -> Option<Identity> {
        let life = self.parsed("identity.certificate_life", |text| {
            let life = values::duration(text)?;
            match life >= Duration::from_secs(10) {
                true => Ok(life),
                false => Err("must be at least 10s, and is better days than hours".to_owned()),
            }
        });
        let authority = self.pair(
            "identity.authority_cert_file",
            "identity.authority_key_file",
        );
        Some(Identity {
            authority: authority?,
            certificate_life: life?,
        })
    }

    fn github(&self, lists: &accounts::Lists) -> GitHubConfig {
        let accounts = accounts::read(lists, self.credentials, &mut self.problems.borrow_mut());
        let config = GitHubConfig {
            api_url: self.text("github.api_url").unwrap_or_default().to_owned(),
            token_file: self.path("github.token_file"),
            app_id: self.number("github.app_id"),
            app_key_file: self.path("github.app_key_file"),
            webhook_secret_files: self.paths("github.webhook_secret_files"),
            webhook_url: self.text("github.webhook_url").map(str::to_owned),
            ca_file: self.path("github.ca_file"),
            accounts,
        };
        let problem = |text: &str| self.problems.borrow_mut().push(text.to_owned());
        match (config.app_id, &config.app_key_file) {
            (Some(_), None) => problem(
                "github.app_id is set without github.app_key_file; download a private key on the App's settings page and name its file",
            ),
            (None, Some(_)) => problem(
                "github.app_key_file is set without github.app_id; the id stands on the App's settings page",
            ),
            _ => {}
        }
        if !config.api_url.starts_with("https://") && !config.api_url.starts_with("http://") {
            problem("github.api_url must start with https:// (or http:// for a test server)");
        }
        config
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.trim()
        .replace("localhost:", "127.0.0.1:")
        .parse()
        .map_err(|_| format!("`{text}` is not an address; write it like 127.0.0.1:9000"))
}

/// Keys of a pool, for messages and documents.
pub fn pool_keys() -> &'static [&'static str] {
    POOL_KEYS
}

#[cfg(test)]
mod tests;
