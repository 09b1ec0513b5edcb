//! Puts the agent together and runs it until it is told to go.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_core::firewall::resolvers_of;
use agent_core::names::Instance;
use agent_core::sandbox::{Filter, RuntimeClass};
use agent_detect::nvidia::meter::Meter;
use agent_detect::properties::{Property, State};
use agent_detect::runtimes::Runtimes;
use agent_detect::{Engine, Host, Limits, Standing, assemble, offer};
use agent_docker::{DockerRuntime, EngineFacts, WorkFolders};
use anyhow::{Context, bail};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock::Clock;
use crate::config::Config;
use crate::dial::{Address, Dial};
use crate::driver::{Driver, INPUTS, Input, Outlets, Snapshot};
use crate::findings::Findings;
use crate::gpus::Gpus;
use crate::identity::{Identity, read_token};
use crate::link::Link;
use crate::logstore::LogStore;
use crate::push::Push;
use crate::shield;
use crate::state::StateFile;
use crate::systemd;
use crate::wire;

/// All of it ends within this time after a signal.
/// Longest that a person who joins a host waits.
const JOINING: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(5);

/// The engine runtime that a configuration asks for.
pub fn runtime(config: &Config, host: &Host) -> DockerRuntime {
    let cpus = host.cpu.cpus.max(1);
    let dns = config.dns.clone().unwrap_or_else(|| {
        resolvers_of(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    });
    DockerRuntime::new(agent_docker::Config {
        socket: config.engine_socket.clone(),
        node: config.node.clone(),
        instance: Instance::new(&config.node, &config.state_dir.to_string_lossy()),
        slots_cidr: config.slots_cidr,
        premade_slots: config.premade_slots.unwrap_or(if config.max_runners > 0 {
            config.max_runners
        } else {
            cpus
        }),
        parallel_starts: config.parallel_starts.unwrap_or(cpus as usize * 3),
        state_dir: config.state_dir.clone(),
        dns,
        firewall: config.firewall,
        egress_socket: config.egress_socket.clone(),
        allow_ranges: config.allow_ranges.clone(),
        min_free_disk: config.min_free_disk,
        job_disk: config.job_disk,
        pull: config.pull,
        container_images: config.container_images.clone(),
        engine_timeout: config.engine_timeout,
        image_refresh: config.image_refresh,
        image_keep: config.image_keep,
        host_cpus: possible_cpus(),
        profiles: config.profiles,
        runtimes: config.runtimes.clone(),
        meminfo: "/proc/meminfo".into(),
        standby: config.standby_enabled.then(|| agent_core::standby::Limits {
            floor: config.standby_floor,
            ceiling: config.standby_ceiling.unwrap_or(cpus),
        }),
    })
}

/// Processors the kernel may ever have: each has files that are masked.
fn possible_cpus() -> u32 {
    let online = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/present").unwrap_or_default();
    listed
        .trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|last| last.parse::<u32>().ok())
        .map_or(online, |last| last + 1)
        .max(online)
}

/// The engine's facts in the words of the fingerprint.
pub fn engine_of(facts: EngineFacts) -> Engine {
    Engine {
        kind: facts.kind,
        version: facts.version,
        api_version: facts.api_version,
        cgroup_version: facts.cgroup_version,
        cgroup_driver: facts.cgroup_driver,
        storage_driver: facts.storage_driver,
        backing_filesystem: facts.backing_filesystem,
        live_restore: facts.live_restore,
        rootless: facts.rootless,
        security_options: facts.security_options,
        seccomp_gap: match facts.seccomp {
            Filter::Without(why) => why,
            Filter::Text | Filter::Files(_) => String::new(),
        },
        work_quota: facts.work_folders == WorkFolders::Sized,
        work_quota_gap: match facts.work_folders {
            WorkFolders::Sized => String::new(),
            WorkFolders::Watched(why) => why,
            WorkFolders::Untried => "not tried yet".into(),
        },
        architecture: facts.architecture,
        cpus: facts.cpus,
        memory_bytes: facts.memory_bytes,
        runtimes: facts.runtimes,
        default_runtime: facts.default_runtime,
    }
}

/// What this host offers, as JSON.
pub async fn detect(config: &Config) -> anyhow::Result<String> {
    let host = agent_detect::host(&config.probe_root);
    let (engine, problem) = match DockerRuntime::detect(&config.engine_socket).await {
        Ok(facts) => (Some(engine_of(facts)), None),
        Err(error) => (None, Some(error.detail)),
    };
    let gpus = offer(host.nvidia.clone(), &Standing::default());
    let capability = assemble(&host, engine.as_ref(), &limits(config), &gpus);
    let value =
        serde_json::json!({ "capability": capability, "host": host, "engine_problem": problem });
    Ok(serde_json::to_string_pretty(&value)?)
}

/// Removes what this node made. Refused while its agent runs.
pub async fn purge(config: &Config) -> anyhow::Result<()> {
    StateFile::open(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    runtime(config, &agent_detect::host(&config.probe_root))
        .purge()
        .await?;
    Ok(())
}

/// Row 25: the scheduler places allow-listed pools by it.
fn allowlist(gap: Option<String>) -> Property {
    Property {
        name: "egress_allowlist".into(),
        state: match gap {
            None => State::Guaranteed,
            Some(_) => State::NotGuaranteed,
        },
        evidence: gap.unwrap_or_else(|| {
            "a closed slot reaches its egress proxy and nothing else; the proxy is an unprivileged process of its own"
                .into()
        }),
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        cpu_millis: config.cpu_millis,
        memory_bytes: config.memory_bytes,
        max_runners: config.max_runners,
        profiles: config.profiles,
        emulated: config.emulated,
    }
}

/// Runs the agent until `stop`.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    shield::from_memory_shortage();
    let host = agent_detect::host(&config.probe_root);
    let state = StateFile::open(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let clock = Clock::system();
    let identity = Identity::new(&config.state_dir, &config.node);
    if !identity.has_joined()? {
        // A scheduler that is not there yet must not hold up a boot.
        systemd::notify("READY=1\nSTATUS=joining the fleet");
        tokio::select! {
            joined = join(&config, &identity, &clock, &stop) => joined?,
            // There is no driver yet that could answer.
            () = ping_meanwhile() => {}
        }
    }
    let dial = Dial::new(config.scheduler.clone(), identity);
    let logs =
        LogStore::open(&config.state_dir).context("cannot open the folder for kept output")?;
    let logs = Arc::new(logs);
    let runtime = Arc::new(runtime(&config, &host));
    let limits = limits(&config);
    let facts = runtime.clone();
    let gpus = Gpus::new(runtime.clone(), host.nvidia.clone());
    let known = gpus.clone();
    let gpu_memory = Arc::new(Meter::new(&config.probe_root));
    let findings = Arc::new(Findings::open(&config.state_dir));
    let seen = findings.clone();
    let boot = boot_id();
    let fingerprint = Box::new(move || {
        let engine = facts.facts().map(engine_of);
        let mut found = assemble(&host, engine.as_ref(), &limits, &known.findings());
        if let Some(engine) = &engine {
            found.properties.push(allowlist(facts.allowlist_gap()));
            let host = looked_at(engine, &found.kernel, &boot);
            let runtimes = Runtimes {
                own: RuntimeClass::of_name(&engine.default_runtime),
                offered: facts.runtimes(),
            };
            found.properties = seen.over(found.properties, &host, &runtimes);
        }
        wire::capability_to(&found)
    });
    let (inputs, inbox) = mpsc::channel(INPUTS);
    let (snapshots, watched) = watch::channel(Arc::new(Snapshot::default()));
    let (subscriptions, wanted) = watch::channel(Vec::new());
    let (attached, mut ready) = watch::channel(false);
    let asked = inputs.clone();
    let (engine, engine_ready) = watch::channel(0);
    let outlets = Outlets {
        snapshots,
        subscriptions,
        engine,
    };
    let gpus = tokio::spawn(gpus.run(config.probe_root.clone(), inputs.clone(), engine_ready));
    let driver = Driver::new(
        runtime,
        clock,
        Some(state),
        logs.clone(),
        fingerprint,
        findings,
        gpu_memory,
        outlets,
        config.lease_ms,
    );
    let link = Link {
        dial: dial.clone(),
        node: config.node.clone(),
        instance: format!("{:032x}", rand::random::<u128>()),
        clock,
        snapshots: watched,
        inputs,
        attached,
    };
    let push = Push {
        dial: dial.clone(),
        logs,
        subscriptions: wanted,
    };
    let driver = tokio::spawn(driver.run(inbox, stop.clone()));
    let link = tokio::spawn(link.run(stop.clone()));
    let push = tokio::spawn(push.run(stop.clone()));
    let scheduler: Vec<_> = config.scheduler.iter().map(Address::to_string).collect();
    // Up means that it works: a scheduler that is not there yet must not hold up a boot.
    systemd::notify(&format!(
        "READY=1\nSTATUS=waiting for {}",
        scheduler.join(", ")
    ));
    let pings = watch_over(asked);
    let renewal = tokio::spawn(Identity::renew(dial, clock, stop.clone()));
    let node = config.node.clone();
    let tell = async {
        if ready.wait_for(|attached| *attached).await.is_ok() {
            systemd::notify(&format!("STATUS=attached to {}", scheduler.join(", ")));
            let line = serde_json::json!({ "ready": true, "node": node, "scheduler": scheduler });
            let mut out = std::io::stdout().lock();
            // Nobody reading is no reason to stop.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = tell => {}
    }
    info!("detaching");
    systemd::notify("STOPPING=1\nSTATUS=detaching; jobs go on");
    gpus.abort();
    if let Some(pings) = pings {
        pings.abort();
    }
    renewal.abort();
    let all = async { tokio::join!(driver, link, push) };
    let _ = tokio::time::timeout(END, all).await;
    Ok(())
}

/// How often systemd wants to hear that all is well.
fn ping_interval() -> Option<Duration> {
    let variable = |name: &str| std::env::var(name).ok();
    let (usec, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    systemd::interval(usec.as_deref(), pid.as_deref(), std::process::id())
}

/// Tells systemd by the clock alone; never ends.
async fn ping_meanwhile() {
    let Some(every) = ping_interval() else {
        return std::future::pending().await;
    };
    loop {
        systemd::notify("WATCHDOG=1");
        tokio::time::sleep(every).await;
    }
}

/// Tells systemd again and again that the driver answers, when systemd wants to hear it.
fn watch_over(driver: mpsc::Sender<Input>) -> Option<tokio::task::JoinHandle<()>> {
    let every = ping_interval()?;
    let ping = || systemd::notify("WATCHDOG=1");
    Some(tokio::spawn(systemd::watch(driver, every, ping)))
}

/// Joins the fleet anew with the given token, whoever this host was before.
pub async fn join_again(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    let identity = Identity::new(&config.state_dir, &config.node);
    let clock = Clock::system();
    tokio::time::timeout(JOINING, join(config, &identity, &clock, &stop))
        .await
        .unwrap_or_else(|_| {
            let seconds = JOINING.as_secs();
            bail!("not joined within {seconds} s, for the reasons above; mend them and join again, the token is not spent")
        })
}

async fn join(
    config: &Config,
    identity: &Identity,
    clock: &Clock,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let file = config.join_token_file.as_ref().context(
        "this host has not joined a fleet: run `longshore node join-token` where the scheduler is, and start the \
         agent with --join-token-file FILE",
    )?;
    let token = read_token(file)?;
    identity.join(&config.scheduler, &token, clock, stop).await
}

/// What a look at a sandbox depends on: another of any of these and it is looked at anew.
fn looked_at(engine: &Engine, kernel: &str, boot: &str) -> String {
    format!(
        "{} {} {} cgroup{} {} {} {kernel} {boot} {:?} {} {:?}",
        env!("CARGO_PKG_VERSION"),
        engine.kind,
        engine.version,
        engine.cgroup_version,
        engine.cgroup_driver,
        engine.storage_driver,
        engine.security_options,
        engine.default_runtime,
        engine.runtimes,
    )
}

fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Two agents over one state folder would fight for the same containers.
fn lock(state_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = state_dir.join("lock");
    let file =
        std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!(
            "another agent uses {}; give this one its own state_dir",
            state_dir.display()
        )
    })?;
    Ok(file)
}
