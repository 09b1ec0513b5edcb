//! Precedence, mistakes and what `--check-config` says.

use super::*;

fn resolve(
    arguments: &[&str],
    file: Option<&str>,
    environment: &[(&str, &str)],
    stored: Option<&WatchSettings>,
) -> Result<Config, ConfigError> {
    let arguments =
        Arguments::parse(std::iter::once("longshore-scheduler").chain(arguments.iter().copied()))
            .expect("arguments parse");
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::resolve(&Sources {
        arguments: &arguments,
        file: file.map(|text| (Path::new("/etc/longshore/scheduler.toml"), text)),
        environment: &environment,
        stored,
        credentials: &Credentials::default(),
    })
}

fn problems(file: &str) -> String {
    resolve(&[], Some(file), &[], None)
        .expect_err("the file is wrong")
        .to_string()
}

#[test]
fn everything_has_a_working_default() {
    let config = resolve(&[], None, &[], None).expect("defaults work");
    assert_eq!(config.listen.api.to_string(), "127.0.0.1:9000");
    assert_eq!(config.defaults.resources.cpu_millis, 2_000);
    assert_eq!(config.defaults.resources.memory_bytes, 4 << 30);
    assert_eq!(config.defaults.lifetime, Duration::from_secs(22_500));
    assert_eq!(config.watch.interval_ms, 60_000);
}

#[test]
fn flags_stand_over_environment_over_stored_over_file() {
    let file = "[scheduler]\ninterval = 10\nsince_days = 10\nmax_runners = 10\nimage = \"file\"\n";
    let stored = WatchSettings {
        owners: vec!["stored".to_owned()],
        interval_ms: 20_000,
        since_days: 20,
        max_runners: 20,
        image: "stored".to_owned(),
    };
    let config = resolve(
        &["--interval", "40"],
        Some(file),
        &[("LONGSHORE_SINCE_DAYS", "30"), ("LONGSHORE_INTERVAL", "30")],
        Some(&stored),
    )
    .expect("valid");
    assert_eq!(config.watch.interval_ms, 40_000);
    assert_eq!(config.watch.since_days, 30);
    assert_eq!(config.watch.max_runners, 20);
    let report = config.report(true);
    assert!(
        report.contains("scheduler.interval = \"40\"  # flag --interval"),
        "{report}"
    );
    assert!(
        report.contains("scheduler.since_days = \"30\"  # environment LONGSHORE_SINCE_DAYS"),
        "{report}"
    );
    assert!(
        report.contains("scheduler.max_runners = \"20\"  # stored by StartAutoscaler"),
        "{report}"
    );
    assert!(report.contains("github.token = \"********\""), "{report}");
    let config = resolve(&[], Some(file), &[], None).expect("valid");
    assert_eq!(config.watch.interval_ms, 10_000);
    assert!(
        config
            .report(false)
            .contains("scheduler.image = \"file\"  # file /etc/longshore/scheduler.toml:5\n")
    );
}

#[test]
fn an_unknown_key_is_an_error_with_the_nearest_key() {
    let text = problems("[scheduler]\nintervall = 10\n");
    assert!(
        text.contains("scheduler.toml:2: unknown key `scheduler.intervall`; did you mean `scheduler.interval`?"),
        "{text}"
    );
    let text = problems("[schedular]\ninterval = 10\n");
    assert!(
        text.contains("scheduler.toml:1: unknown section `[schedular]`; did you mean `scheduler`?"),
        "{text}"
    );
    let text = problems("[[pools]]\nname = \"gpu\"\nlables = [\"gpu\"]\n");
    assert!(
        text.contains("pool `gpu`: unknown key `lables`; did you mean `labels`? (line 3)"),
        "{text}"
    );
    let text = problems("[shares]\n\"acme/web\" = { wieght = 2 }\n");
    assert!(
        text.contains("unknown key `wieght`; did you mean `weight`? (line 2)"),
        "{text}"
    );
}

#[test]
fn an_unknown_environment_variable_names_the_nearest() {
    let environment = BTreeMap::from([
        ("LONGSHORE_INTERVALL".to_owned(), "1".to_owned()),
        ("LONGSHORE_ADDRESS".to_owned(), "x".to_owned()),
    ]);
    let warnings = Config::unknown_environment(&environment);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("did you mean LONGSHORE_INTERVAL?"),
        "{warnings:?}"
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = problems(
        "[scheduler]\ninterval = \"soon\"\nmax_runners = -1\n[defaults]\nmemory = \"lots\"\n",
    );
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains("scheduler.interval: `soon` is not a duration"),
        "{text}"
    );
    assert!(
        text.contains("(file /etc/longshore/scheduler.toml:2)"),
        "{text}"
    );
}

#[test]
fn a_certificate_and_its_key_belong_together() {
    for (one, other) in [
        ("--api-cert-file", "listen.api_key_file"),
        ("--api-key-file", "listen.api_cert_file"),
        ("--authority-cert-file", "identity.authority_key_file"),
    ] {
        let text = resolve(&[one, "/x.pem"], None, &[], None)
            .expect_err("refused")
            .to_string();
        assert!(
            text.contains(other) && text.contains("belong together"),
            "{text}"
        );
    }
    let both = ["--api-cert-file", "/c.pem", "--api-key-file", "/k.pem"];
    let listen = resolve(&both, None, &[], None).expect("both").listen;
    let pair = Some(("/c.pem".into(), "/k.pem".into()));
    assert_eq!(listen.api_certificate, pair);
}

#[test]
fn pools_and_shares_are_read() {
    let config = resolve(
        &[],
        Some(
            r#"
[[pools]]
name = "gpu"
labels = ["GPU", "linux"]
cpu = 8
memory = "32g"
gpus = 1
gpu_memory = "40GiB"
gpu_compute_capability = "8.0"
gpu_models = ["H100", "A100"]
public_repositories = "refuse"
priority = "high"
lifetime = "2d"
[shares]
"acme" = 4
"acme/web" = { weight = 2, maximum = 10 }
"#,
        ),
        &[],
        None,
    )
    .expect("valid");
    let pool = &config.pools[0];
    assert!(pool.labels.contains("gpu"));
    assert_eq!(pool.resources.memory_bytes, 32 << 30);
    assert_eq!(pool.resources.gpus, 1);
    assert_eq!(pool.gpu.memory_mib, 40_960);
    assert_eq!(pool.gpu.compute_capability, (8, 0));
    assert_eq!(pool.gpu.models, ["H100", "A100"]);
    let text = problems("[[pools]]\nname = \"x\"\ngpu_compute_capability = \"eight\"\n");
    assert!(
        text.contains("`eight` is not a compute capability; write it like 8.0"),
        "{text}"
    );
    assert_eq!(pool.lifetime, Duration::from_secs(2 * 86_400));
    assert_eq!(
        config.shares,
        vec![("acme".to_owned(), 4, 0), ("acme/web".to_owned(), 2, 10)]
    );
}

#[test]
fn what_is_told_of_a_pool_makes_the_same_pool_again() {
    let file = r#"
[[pools]]
name = "all"
labels = ["gpu", "linux"]
repositories = ["acme/*"]
public_repositories = "strict"
fork_pull_requests = "allow"
image = "a/b:1"
runner_group = "big"
name_prefix = "x"
cpu = 1.5
memory = "1500m"
gpus = 1
gpu_memory = "40GiB"
gpu_compute_capability = "8.0"
gpu_models = ["H100"]
profile = "standard"
network_mode = "allowlist"
allowed_domains = ["github.com"]
runtime = "crun"
idle_floor = 1
maximum = 3
priority = "low"
placement = "spread"
required_properties = ["no_ipv6"]
idle_timeout = "90s"
lifetime = "6h15m"
bare_self_hosted = true
precedence = -1
[[pools]]
name = "bare"
"#;
    let told = |file: &str| {
        let config = resolve(&[], Some(file), &[], None).expect("valid");
        (config.pools.clone(), config.report(false))
    };
    let (pools, report) = told(file);
    let tables = &report[report.find("[[pools]]").expect("told")..];
    assert_eq!(told(tables).0, pools, "{tables}");
    for key in POOL_KEYS {
        let line = format!("\n{key} = ");
        assert!(tables.contains(&line), "{key} is not told:\n{tables}");
    }
    assert!(
        tables.contains("memory = \"1500MiB\"  # file\n"),
        "{tables}"
    );
    assert!(tables.contains("precedence = 0  # default\n"), "{tables}");
}

#[test]
fn half_an_app_is_an_error_with_the_next_step() {
    let text = resolve(&["--github-app-id", "7"], None, &[], None)
        .expect_err("refused")
        .to_string();
    assert!(text.contains("github.app_key_file"), "{text}");
}

#[test]
fn several_organisations_users_and_enterprises_are_read() {
    let config = resolve(
        &[],
        Some(
            r#"
[github]
token_file = "/etc/longshore/token"
[[github.organizations]]
login = "acme"
token_file = "/etc/longshore/acme"
[[github.organizations]]
login = "wide"
[[github.users]]
login = "mona"
token_file = "/etc/longshore/mona"
[[github.enterprises]]
slug = "corp"
token_file = "/etc/longshore/corp"
organizations = ["sub", "other"]
[[github.enterprises]]
slug = "second"
token_file = "/etc/longshore/second"
organizations = ["third"]
"#,
        ),
        &[],
        None,
    )
    .expect("valid");
    let accounts = &config.github.accounts;
    let read: Vec<_> = accounts
        .accounts
        .iter()
        .map(|a| (a.login.as_str(), a.organization, a.token_file.is_some()))
        .collect();
    assert_eq!(
        read,
        [
            ("acme", true, true),
            ("wide", true, false),
            ("mona", false, true)
        ]
    );
    assert_eq!(accounts.enterprises[0].organizations, ["sub", "other"]);
    assert_eq!(accounts.enterprises[1].slug, "second");
    let report = config.report(false);
    for line in [
        "organization acme: token /etc/longshore/acme  # file",
        "organization wide: token the general credential  # file",
        "user mona: token /etc/longshore/mona  # file",
        "enterprise corp: token /etc/longshore/corp, organizations [\"sub\", \"other\"]  # file",
    ] {
        assert!(report.contains(line), "{report}");
    }
}

#[test]
fn wrong_accounts_are_told_with_the_next_step() {
    for (file, says) in [
        (
            "[[github.enterprises]]\nslug = \"corp\"\n",
            "github.enterprises `corp` has no `token_file`; an enterprise needs a token of its own",
        ),
        (
            "[[github.enterprises]]\nslug = \"corp\"\ntoken_file = \"x\"\napp_id = 7\n",
            "github.enterprises `corp`: `app_id` cannot be used: GitHub lets no App",
        ),
        (
            "[[github.enterprises]]\ntoken_file = \"x\"\n",
            "github.enterprises number 1 has no `slug`",
        ),
        (
            "[[github.enterprises]]\nslug = \"corp\"\ntoken_file = \"x\"\norganizations = \"sub\"\n",
            "`organizations` takes a list of texts",
        ),
        (
            "[[github.organizations]]\nlogin = \"acme\"\ntoken_fil = \"x\"\n",
            "unknown key `token_fil`; did you mean `token_file`?",
        ),
        (
            "[[github.users]]\nlogin = \"mona\"\n",
            "github.users `mona` has no `token_file`",
        ),
        (
            "[github]\norganizations = [\"acme\"]\n",
            "write each entry as [[github.organizations]]",
        ),
        (
            "[[github.organisations]]\nlogin = \"acme\"\n",
            "did you mean [[github.organizations]]?",
        ),
    ] {
        let text = problems(file);
        assert!(text.contains(says), "{file}: {text}");
    }
}

#[test]
fn what_systemd_hands_over_needs_no_setting_and_stands_below_all_of_them() {
    let arguments = |flags: &[&str]| {
        let all = std::iter::once("longshore-scheduler").chain(flags.iter().copied());
        Arguments::parse(all).expect("arguments parse")
    };
    let folder = PathBuf::from("/run/credentials/longshore-scheduler.service");
    let names = ["github-token", "webhook-secret", "webhook-secret-next"];
    let credentials = Credentials::new(folder.clone(), names.map(str::to_owned));
    let with = |flags: &[&str], file: &str| {
        Config::resolve(&Sources {
            arguments: &arguments(flags),
            file: Some((Path::new("/etc/longshore/scheduler.toml"), file)),
            environment: &BTreeMap::new(),
            stored: None,
            credentials: &credentials,
        })
    };
    let config = with(&[], "").expect("valid");
    assert_eq!(config.github.token_file, Some(folder.join("github-token")));
    assert_eq!(config.github.webhook_secret_files.len(), 2);
    let report = config.report(false);
    assert!(report.contains("# credential github-token"), "{report}");
    let config = with(&["--github-token-file", "/flag"], "").expect("valid");
    assert_eq!(config.github.token_file, Some("/flag".into()));

    let users = "[[github.users]]\nlogin = \"mona\"\ntoken_file = \"credential:NAME\"\n";
    let config = with(&[], &users.replace("NAME", "github-token")).expect("valid");
    let own = config.github.accounts.accounts[0].token_file.clone();
    assert_eq!(own, Some(folder.join("github-token")));
    let text = with(&[], &users.replace("NAME", "mona")).expect_err("absent");
    let text = text.to_string();
    assert!(
        text.contains("github.users `mona`") && text.contains("LoadCredential=mona"),
        "{text}"
    );
}

#[test]
fn what_a_running_scheduler_takes_in_is_told_from_what_needs_a_restart() {
    let with = |file: &str| resolve(&[], Some(file), &[], None).expect("valid");
    let old = with("[scheduler]\ninterval = 10\n[[pools]]\nname = \"a\"\n");
    assert!(old.changes(&old).is_empty());
    let new = with(
        "[scheduler]\ninterval = 20\nretention = \"1d\"\n[listen]\napi = \"127.0.0.1:1\"\n[defaults]\ncpu = 3\n\
         [[pools]]\nname = \"b\"\n[shares]\nacme = 2\n[[github.users]]\nlogin = \"mona\"\ntoken_file = \"/x\"\n",
    );
    let changes = old.changes(&new);
    assert_eq!(
        changes.applied,
        [
            "scheduler.interval",
            "defaults.cpu",
            "github's accounts",
            "pools",
            "shares"
        ]
    );
    assert_eq!(changes.restart, ["scheduler.retention", "listen.api"]);
}
