//! Every setting once: its key in the file, its flag, its default, its meaning.
//!
//! The environment name of a setting is `LONGSHORE_` and its flag in capitals.

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Dotted path in the TOML file.
    pub path: &'static str,
    /// Long flag without the dashes.
    pub flag: &'static str,
    /// Name of the value in `--help`.
    pub value: &'static str,
    /// Default as one would write it; `None`: unset.
    pub default: Option<&'static str>,
    /// May be given several times.
    pub list: bool,
    pub help: &'static str,
}

impl Key {
    /// Name of the environment variable that sets it.
    pub fn env(&self) -> String {
        format!("LONGSHORE_{}", self.flag.replace('-', "_").to_uppercase())
    }
}

const fn key(
    path: &'static str,
    flag: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Key {
    Key {
        path,
        flag,
        value,
        default,
        list: false,
        help,
    }
}

const fn list(
    path: &'static str,
    flag: &'static str,
    value: &'static str,
    help: &'static str,
) -> Key {
    Key {
        path,
        flag,
        value,
        default: None,
        list: true,
        help,
    }
}

/// All settings, in the order `--check-config` prints them.
pub const KEYS: &[Key] = &[
    key(
        "scheduler.state_dir",
        "state-dir",
        "DIR",
        Some("/var/lib/longshore"),
        "Folder of longshore.db, secrets/ and logs/",
    ),
    list(
        "scheduler.owners",
        "owner",
        "NAME",
        "User or organisation to watch; none: every accessible repository",
    ),
    key(
        "scheduler.interval",
        "interval",
        "DURATION",
        Some("60s"),
        "Time between sweeps of GitHub's REST API (a bare number is seconds)",
    ),
    key(
        "scheduler.since_days",
        "since-days",
        "N",
        Some("1"),
        "Sweep only repositories updated in the last N days",
    ),
    key(
        "scheduler.max_runners",
        "max-runners",
        "N",
        Some("0"),
        "Most runners at once; 0: bounded by the nodes only",
    ),
    key(
        "scheduler.image",
        "image",
        "IMAGE",
        Some(scheduler_core::input::DEFAULT_IMAGE),
        "Runner image of pools that name none",
    ),
    key(
        "scheduler.retention",
        "retention",
        "DURATION",
        Some("30d"),
        "How long finished jobs, runners and their logs are kept",
    ),
    key(
        "scheduler.shutdown_deadline",
        "shutdown-deadline",
        "DURATION",
        Some("10s"),
        "Longest time a shutdown may take",
    ),
    key(
        "listen.api",
        "api-listen",
        "ADDRESS",
        Some("127.0.0.1:9000"),
        "gRPC, grpc-web, /metrics, /livez, /readyz; off loopback with TLS only",
    ),
    key(
        "listen.nodes",
        "node-listen",
        "ADDRESS",
        Some("127.0.0.1:9001"),
        "Node agents; always TLS, and a client certificate for all but joining",
    ),
    key(
        "listen.webhooks",
        "webhook-listen",
        "ADDRESS",
        Some("127.0.0.1:9002"),
        "POST /webhooks/github; plain HTTP: off loopback put a proxy with TLS before it",
    ),
    key(
        "listen.webhook_rate",
        "webhook-rate",
        "N",
        Some("20000"),
        "Webhook requests accepted per second; more get 429",
    ),
    list(
        "listen.names",
        "name",
        "NAME",
        "Further host name or address for the scheduler's own certificate",
    ),
    key(
        "listen.api_cert_file",
        "api-cert-file",
        "FILE",
        None,
        "Certificate of the API, PEM; unset: plain on loopback, else the fleet's authority signs one",
    ),
    key(
        "listen.api_key_file",
        "api-key-file",
        "FILE",
        None,
        "Its key, PEM",
    ),
    key(
        "identity.authority_cert_file",
        "authority-cert-file",
        "FILE",
        None,
        "Certificate of a given authority, PEM; unset: one is made in the state folder",
    ),
    key(
        "identity.authority_key_file",
        "authority-key-file",
        "FILE",
        None,
        "Its key, PKCS #8, PEM",
    ),
    key(
        "identity.certificate_life",
        "certificate-life",
        "DURATION",
        Some("7d"),
        "Life of a node's certificate; the agent renews it at two thirds",
    ),
    key(
        "listen.api_rate",
        "api-rate",
        "N",
        Some("500"),
        "API requests of one caller accepted per second, twice that at once; more get 429 or RESOURCE_EXHAUSTED",
    ),
    key(
        "github.api_url",
        "github-api-url",
        "URL",
        Some("https://api.github.com"),
        "https://HOST/api/v3 for GitHub Enterprise Server",
    ),
    key(
        "github.token_file",
        "github-token-file",
        "FILE",
        None,
        "File with a personal access token (or GITHUB_TOKEN in the environment)",
    ),
    key(
        "github.app_id",
        "github-app-id",
        "N",
        None,
        "Id of the GitHub App",
    ),
    key(
        "github.app_key_file",
        "github-app-key-file",
        "FILE",
        None,
        "Private key of the GitHub App, PEM",
    ),
    list(
        "github.webhook_secret_files",
        "webhook-secret-file",
        "FILE",
        "File with a webhook secret; several while one is being replaced",
    ),
    key(
        "github.webhook_url",
        "webhook-url",
        "URL",
        None,
        "Public URL of POST /webhooks/github: finds our hooks at GitHub at the start, to have failed deliveries sent again",
    ),
    key(
        "github.ca_file",
        "github-ca-file",
        "FILE",
        None,
        "Further certificate authorities for GitHub, PEM",
    ),
    key(
        "telemetry.otlp_endpoint",
        "otlp-endpoint",
        "URL",
        None,
        "OTLP/gRPC receiver of traces, for example http://127.0.0.1:4317",
    ),
    key(
        "telemetry.log",
        "log",
        "FILTER",
        Some("info"),
        "Log filter: error, warn, info, debug, or target=level pairs",
    ),
    key(
        "defaults.cpu",
        "default-cpu",
        "CPUS",
        Some("2"),
        "CPUs of one runner, for example 2, 0.5 or 1500m",
    ),
    key(
        "defaults.memory",
        "default-memory",
        "SIZE",
        Some("4GiB"),
        "Memory of one runner; 4g is read as 4GiB",
    ),
    key(
        "defaults.idle_timeout",
        "idle-timeout",
        "DURATION",
        Some("5m"),
        "A surplus idle runner ends after this",
    ),
    key(
        "defaults.lifetime",
        "lifetime",
        "DURATION",
        Some("6h15m"),
        "Longest life of a runner, at most 5d",
    ),
    key(
        "defaults.node_lease",
        "node-lease",
        "DURATION",
        Some("30s"),
        "A node silent for this long is unreachable",
    ),
    key(
        "defaults.orphan_age",
        "orphan-age",
        "DURATION",
        Some("10m"),
        "Age at which an unknown registration of ours is deleted",
    ),
    key(
        "defaults.ghost_age",
        "ghost-age",
        "DURATION",
        Some("5m"),
        "A runner without a worker whose registration is so old and at GitHub no more is a ghost",
    ),
    key(
        "defaults.ghost_confirmation",
        "ghost-confirmation",
        "DURATION",
        Some("60s"),
        "Two of GitHub's lists so far apart have to miss a ghost before it is killed",
    ),
    key(
        "defaults.after_completion",
        "after-completion",
        "DURATION",
        Some("10m"),
        "A runner that lives so long after its job completed is killed",
    ),
    key(
        "defaults.stop_grace",
        "stop-grace",
        "DURATION",
        Some("90s"),
        "Time between SIGINT and SIGKILL of a runner that has to end",
    ),
    key(
        "defaults.ageing",
        "ageing",
        "DURATION",
        Some("10m"),
        "A job rises one priority band per this long in the queue",
    ),
    key(
        "defaults.bare_self_hosted",
        "bare-self-hosted",
        "BOOL",
        Some("false"),
        "Serve jobs that ask for [self-hosted] alone",
    ),
];

/// Settings that a running scheduler takes in at SIGHUP, besides `[[pools]]`, `[shares]` and the
/// lists of accounts: these paths, and what begins with one that ends in a dot.
const RELOADED: &[&str] = &[
    "scheduler.owners",
    "scheduler.interval",
    "scheduler.since_days",
    "scheduler.max_runners",
    "scheduler.image",
    "github.",
    "telemetry.log",
    "defaults.",
];

/// Whether a running scheduler takes in a change of this setting; if not it needs a restart.
pub fn is_reloaded(path: &str) -> bool {
    RELOADED
        .iter()
        .any(|known| path == *known || (known.ends_with('.') && path.starts_with(known)))
}

/// Keys of one `[[pools]]` table.
pub const POOL_KEYS: &[&str] = &[
    "name",
    "labels",
    "repositories",
    "public_repositories",
    "fork_pull_requests",
    "image",
    "runner_group",
    "name_prefix",
    "cpu",
    "memory",
    "gpus",
    "gpu_memory",
    "gpu_compute_capability",
    "gpu_models",
    "profile",
    "network_mode",
    "allowed_domains",
    "runtime",
    "idle_floor",
    "maximum",
    "priority",
    "placement",
    "required_properties",
    "idle_timeout",
    "lifetime",
    "bare_self_hosted",
    "precedence",
];

/// Keys of one entry of `[shares]` when it is a table.
pub const SHARE_KEYS: &[&str] = &["weight", "maximum"];

/// The nearest of `known` to a misspelt key, when one is near.
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}
