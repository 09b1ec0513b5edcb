//! Golden values, derived row by row from the isolation table.

use crate::gpu::{Injection, Lease};
use proptest::prelude::*;

use super::*;

fn strict(request: &Request, place: &Place) -> Sandbox {
    assert_eq!(request.profile, Profile::Strict);
    of(request, place)
}

fn request() -> Request {
    Request {
        profile: Profile::Strict,
        image: "ghcr.io/actions/actions-runner:2.336.0".into(),
        resources: Resources {
            cpu_millis: 1_500,
            memory_bytes: 1 << 30,
            gpus: 0,
        },
        platform: "linux/amd64".into(),
        network: Network::Open,
        allowed_domains: vec![],
        lifetime_ms: 0,
        gpus: vec![],
        runtime: None,
    }
}

fn place() -> Place {
    Place {
        image_id: "sha256:abc".into(),
        network: "ls-0a1b2c-7".into(),
        work_volume: "work".into(),
        bin_volume: "bin".into(),
        externals_volume: "externals".into(),
        tools_volume: "tools".into(),
        dns: vec!["9.9.9.9".into()],
        proxy: None,
        host_cpus: 3,
        cgroup_parent: "/longshore/x".into(),
        labels: vec![("longshore.node".into(), "n".into())],
        dialect: Dialect::DOCKER,
        seccomp: Filter::Text,
        users_are_mapped: false,
        gpus: vec![],
        runtimes: vec![],
    }
}

/// Rows of the table that a sandbox's data does not hold: what the table asks is
/// said here line by line, and profiles differ only in which rows they lack.
fn missing_rows(s: &Sandbox) -> Vec<(u32, &'static str)> {
    let tmpfs = |path: &str| {
        s.tmpfs
            .iter()
            .find(|(p, _)| p == path)
            .map(|(_, o)| o.as_str())
            .unwrap()
    };
    let ulimit = |name: &str| {
        s.ulimits
            .iter()
            .find(|u| u.name == name)
            .map(|u| (u.soft, u.hard))
    };
    let rows: &[(u32, &'static str, bool)] = &[
        (1, "non-root", s.user == "1001:1001"),
        (
            2,
            "no capabilities",
            s.cap_drop == ["ALL"] && s.cap_add.is_empty() && !s.privileged,
        ),
        (
            3,
            "no escalation",
            s.security_opt
                .contains(&"no-new-privileges:true".to_owned()),
        ),
        (
            4,
            "seccomp by the own list, and nothing else said",
            s.security_opt
                .iter()
                .filter(|o| *o != "no-new-privileges:true")
                .all(|o| o.starts_with(r#"seccomp={"archMap""#))
                && s.security_opt.iter().any(|o| o.starts_with("seccomp=")),
        ),
        (5, "read-only rootfs", s.readonly_rootfs),
        (
            6,
            "tmpfs without exec, bounded",
            tmpfs("/tmp") == "rw,noexec,nosuid,nodev,size=268435456,mode=1777",
        ),
        (
            6,
            "runner root in memory, private",
            tmpfs("/home/runner")
                == "rw,exec,nosuid,nodev,size=67108864,uid=1001,gid=1001,mode=0700",
        ),
        (7, "process limit", s.pids_limit == 2048),
        (
            8,
            "memory limit",
            s.memory == 1 << 30 && !s.oom_kill_disable,
        ),
        (9, "no swap", s.memory_swap == s.memory),
        (
            10,
            "tmpfs inside the memory",
            (64 << 20) + (256 << 20) + s.shm_size <= s.memory / 2,
        ),
        (11, "cpu limit", s.nano_cpus == 1_500_000_000),
        (
            12,
            "ulimits",
            ulimit("core") == Some((0, 0))
                && ulimit("nofile").is_some()
                && ulimit("nproc").is_some(),
        ),
        (
            13,
            "no host mounts",
            s.binds.is_empty() && s.mounts.iter().all(|m| !m.volume.starts_with('/')),
        ),
        (
            13,
            "our tools read-only",
            s.mounts
                .iter()
                .any(|m| m.target == "/opt/longshore" && m.read_only && m.volume == "tools"),
        ),
        (
            14,
            "no engine socket",
            s.mounts.iter().all(|m| !m.target.contains("docker")),
        ),
        (
            15,
            "masked proc",
            ["/proc/kallsyms", "/proc/interrupts", "/proc/keys"]
                .iter()
                .all(|p| s.masked_paths.iter().any(|m| m == p)),
        ),
        (
            15,
            "masked per processor",
            (0..3).all(|c| {
                s.masked_paths
                    .contains(&format!("/sys/devices/system/cpu/cpu{c}/thermal_throttle"))
            }),
        ),
        (
            16,
            "read-only proc/sys",
            s.readonly_paths.contains(&"/proc/sys"),
        ),
        (
            17,
            "own namespaces",
            s.pid_mode.is_empty() && s.uts_mode.is_empty() && s.ipc_mode == "private",
        ),
        (18, "own cgroup namespace", s.cgroupns_mode == "private"),
        (
            19,
            "no devices",
            s.devices.is_empty()
                && s.device_requests.is_empty()
                && s.env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned())
                && s.device_cgroup_rules.is_empty()
                && s.group_add.is_empty(),
        ),
        (
            20,
            "never the host's user namespace",
            s.userns_mode.is_empty(),
        ),
        (
            21,
            "the slot's own network",
            s.network_mode == "ls-0a1b2c-7" && !s.publish_all_ports,
        ),
        (24, "given resolvers", s.dns == ["9.9.9.9"]),
        (
            27,
            "log cap",
            s.log_driver == "local" && s.log_options.contains(&("max-size", "1m")),
        ),
        (
            29,
            "removed by the agent alone",
            !s.auto_remove && s.restart == "no",
        ),
        (30, "init", s.init),
    ];
    rows.iter()
        .filter(|(_, _, holds)| !holds)
        .map(|(row, name, _)| (*row, *name))
        .collect()
}

/// Rows that each profile lacks, by section 9 of the isolation table: `standard`
/// is `strict` but for the root, and for `sudo` where users are mapped (row 20
/// is then what the two rows of privilege were for).
#[test]
fn each_profile_holds_every_row_but_the_ones_it_names() {
    let no_capabilities = (2, "no capabilities");
    let no_escalation = (3, "no escalation");
    let root = (5, "read-only rootfs");
    for (profile, users_are_mapped, lacks) in [
        (Profile::Strict, false, vec![]),
        (Profile::Strict, true, vec![]),
        (Profile::Standard, false, vec![root]),
        (
            Profile::Standard,
            true,
            vec![no_capabilities, no_escalation, root],
        ),
        (Profile::Containers, false, vec![root]),
        (
            Profile::Containers,
            true,
            vec![no_capabilities, no_escalation, root],
        ),
    ] {
        let request = Request {
            profile,
            ..request()
        };
        let place = Place {
            users_are_mapped,
            ..place()
        };
        let s = of(&request, &place);
        assert_eq!(missing_rows(&s), lacks, "{profile:?} {s:#?}");
    }
}

/// What a profile changes, field by field: the rest is the strict sandbox's.
#[test]
fn a_profile_changes_its_own_fields_and_nothing_else() {
    let strict = strict(&request(), &place());
    for profile in [Profile::Standard, Profile::Containers] {
        let asked = Request {
            profile,
            ..request()
        };
        let own_tools = |folder: &str| {
            let mut same = strict.clone();
            // With the call by which 32-bit x86 programs make sockets.
            let filter = format!("seccomp={}", seccomp::filter(profile));
            assert_ne!(same.security_opt[1], filter);
            same.security_opt[1] = filter;
            let hook = "ACTIONS_RUNNER_CONTAINER_HOOKS=/opt/longshore/";
            let env = same.env.iter_mut().find(|env| env.starts_with(hook));
            *env.unwrap() = format!("{hook}{folder}/container-hook.sh");
            same.cmd[2] = format!("/opt/longshore/{folder}");
            same
        };
        let open_root = Sandbox {
            readonly_rootfs: false,
            ..own_tools(profile.word())
        };
        assert_eq!(of(&asked, &place()), open_root, "{profile:?}");
        let mapped = Place {
            users_are_mapped: true,
            ..place()
        };
        let sudo = Sandbox {
            security_opt: vec![format!("seccomp={}", seccomp::filter(profile))],
            cap_add: ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]
                .map(String::from)
                .to_vec(),
            readonly_rootfs: false,
            ..own_tools(&format!("{}-sudo", profile.word()))
        };
        assert_eq!(of(&asked, &mapped), sudo, "{profile:?}");
        assert_eq!(
            (sudo.user.as_str(), &sudo.cap_drop[..]),
            ("1001:1001", &["ALL"][..])
        );
    }
}

/// The same sandbox in the words that Podman's socket understands.
#[test]
fn podman_is_told_the_same_in_its_own_words() {
    let s = strict(
        &request(),
        &Place {
            dialect: Dialect::PODMAN,
            seccomp: Filter::Files("/state".into()),
            ..place()
        },
    );
    let tmpfs: Vec<(&str, &str)> = s
        .tmpfs
        .iter()
        .map(|(path, options)| (path.as_str(), options.as_str()))
        .collect();
    assert_eq!(
        tmpfs,
        [
            (
                "/home/runner",
                "rw,exec,nosuid,nodev,size=67108864,U,mode=0700,notmpcopyup"
            ),
            (
                "/tmp",
                "rw,noexec,nosuid,nodev,size=268435456,mode=1777,notmpcopyup"
            ),
            (
                "/run",
                "rw,noexec,nosuid,nodev,size=1048576,mode=0755,notmpcopyup"
            ),
            (
                "/var/tmp",
                "rw,noexec,nosuid,nodev,size=1048576,mode=0755,notmpcopyup"
            ),
        ]
    );
    assert_eq!(s.security_opt[0], "no-new-privileges:true");
    let mask = s.security_opt[1].strip_prefix("mask=").unwrap();
    assert_eq!(mask.split(':').collect::<Vec<_>>(), s.masked_paths);
    assert_eq!(s.security_opt[2], "seccomp=/state/seccomp-strict.json");
    assert_eq!(
        (s.log_driver, s.log_options.as_slice()),
        ("k8s-file", [("max-size", "1m")].as_slice())
    );
    // Nothing else differs.
    let docker = strict(&request(), &place());
    let same = Sandbox {
        tmpfs: docker.tmpfs.clone(),
        security_opt: docker.security_opt.clone(),
        log_driver: docker.log_driver,
        log_options: docker.log_options.clone(),
        ..s
    };
    assert_eq!(same, docker);
}

#[test]
fn masked_paths_are_exactly_the_tables() {
    let expected = [
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/interrupts",
        "/proc/kallsyms",
        "/proc/modules",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
    ];
    assert_eq!(masked_paths(1), expected);
}

#[test]
fn the_hand_over_is_stdin_and_nothing_else() {
    let s = strict(&request(), &place());
    assert!(s.open_stdin && s.stdin_once && s.attach_stdin && !s.tty);
    assert_eq!(s.entrypoint, ["/bin/sh", "-c"]);
    assert_eq!(s.stop_signal, "SIGINT");
    assert!(
        s.env
            .iter()
            .all(|e| !e.contains("JIT") && !e.contains("TOKEN")),
        "{:?}",
        s.env
    );
}

#[test]
fn an_allow_listed_sandbox_is_told_its_proxy_and_asks_no_resolver() {
    let asked = Request {
        network: Network::Allowlist,
        allowed_domains: vec!["example.com".into()],
        ..request()
    };
    let place = Place {
        network: "ls-0a1b2c-a7".into(),
        proxy: Some("http://10.231.0.57:3128".into()),
        ..place()
    };
    let s = of(&asked, &place);
    assert_eq!(s.network_mode, "ls-0a1b2c-a7");
    assert_eq!(s.dns, ["127.0.0.1"], "else the engine asks the host's");
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        assert!(
            s.env.contains(&format!("{name}=http://10.231.0.57:3128")),
            "{name}"
        );
    }
    let strict = strict(&request(), &self::place());
    assert!(
        !strict
            .env
            .iter()
            .any(|set| set.to_lowercase().contains("proxy"))
    );
}

#[test]
fn an_allow_list_that_means_nothing_is_refused() {
    let spec = |domains: &[&str]| RunnerSpec {
        image: "i".into(),
        platform: "linux/amd64".into(),
        network_mode: "allowlist".into(),
        allowed_domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        resources: request().resources,
        ..RunnerSpec::default()
    };
    assert!(Request::from_spec(&spec(&["github", "*.example.com"])).is_ok());
    for wrong in [&[][..], &["com"], &["http://a.test"]] {
        let refused = Request::from_spec(&spec(wrong));
        assert!(matches!(refused, Err(Refusal::Domains(_))), "{wrong:?}");
    }
}

#[test]
fn network_none_has_neither_network_nor_resolver() {
    let s = strict(
        &Request {
            network: Network::None,
            ..request()
        },
        &place(),
    );
    assert_eq!((s.network_mode.as_str(), s.dns.len()), ("none", 0));
}

#[test]
fn the_spec_hash_ignores_names_and_sees_limits() {
    let a = strict(&request(), &place());
    let b = strict(
        &request(),
        &Place {
            network: "other".into(),
            work_volume: "w2".into(),
            ..place()
        },
    );
    let mut bigger = request();
    bigger.resources.memory_bytes += 1;
    assert_eq!(a.spec_hash(), b.spec_hash());
    let standard = Request {
        profile: Profile::Standard,
        ..request()
    };
    assert_ne!(a.spec_hash(), of(&standard, &place()).spec_hash());
    assert_ne!(a.spec_hash(), strict(&bigger, &place()).spec_hash());
}

#[test]
fn refusals_name_what_is_wrong() {
    let good = RunnerSpec {
        image: "i@sha256:00".into(),
        platform: "linux/amd64".into(),
        resources: request().resources,
        ..RunnerSpec::default()
    };
    assert!(Request::from_spec(&good).is_ok());
    let with = |change: fn(&mut RunnerSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        Request::from_spec(&spec).unwrap_err().to_string()
    };
    assert!(with(|s| s.profile = "privileged-dind".into()).contains("privileged-dind"));
    assert!(with(|s| s.network_mode = "host".into()).contains("host"));
    assert!(with(|s| s.platform = "windows/amd64".into()).contains("windows"));
    assert!(with(|s| s.image = "--privileged".into()).contains("--privileged"));
    assert!(with(|s| s.image = "a b".into()).contains("image reference"));
    assert!(with(|s| s.resources.memory_bytes = 1).contains("64 MiB"));
    assert!(with(|s| s.resources.cpu_millis = 0).contains("CPU"));
    assert!(with(|s| s.gpu_uuids = vec!["GPU-1".into()]).contains("0 GPUs were asked for by 1"));
    assert!(with(|s| s.resources.gpus = 1).contains("1 GPUs were asked for by 0"));
    for bad in ["all", "0", "nvidia.com/gpu=all", "GPU-1,GPU-2"] {
        let mut spec = good.clone();
        spec.resources.gpus = 1;
        spec.gpu_uuids = vec![bad.into()];
        assert!(
            matches!(Request::from_spec(&spec), Err(Refusal::Gpu { .. })),
            "{bad}"
        );
    }
    let mut twice = good.clone();
    twice.resources.gpus = 2;
    twice.gpu_uuids = vec!["GPU-1".into(), "GPU-1".into()];
    assert!(Request::from_spec(&twice).is_err());
}

#[test]
fn a_leased_gpu_is_the_only_difference() {
    let lease = |uuid: &str, by| Lease {
        uuid: uuid.into(),
        by,
    };
    let with_one = Request {
        gpus: vec!["GPU-1".into()],
        ..request()
    };
    let knowing = Place {
        gpus: vec![
            lease("GPU-1", Injection::Hook),
            lease("GPU-2", Injection::Hook),
        ],
        ..place()
    };
    let s = strict(&with_one, &knowing);
    assert_eq!(s.device_requests.len(), 1);
    assert_eq!(s.device_requests[0].driver, "nvidia");
    assert_eq!(s.device_requests[0].ids, ["GPU-1"]);
    assert!(s.env.contains(&"NVIDIA_VISIBLE_DEVICES=GPU-1".to_owned()));
    let mut same = s;
    let without = strict(&request(), &knowing);
    same.device_requests.clear();
    same.env = without.env.clone();
    assert_eq!(same, without);

    let cdi = Place {
        gpus: vec![lease("GPU-1", Injection::Cdi)],
        ..place()
    };
    let s = strict(&with_one, &cdi);
    assert_eq!(s.device_requests[0].ids, ["nvidia.com/gpu=GPU-1"]);
    assert!(s.env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
}

#[test]
fn the_proving_container_is_as_closed_as_a_job() {
    let lease = Lease {
        uuid: "GPU-1".into(),
        by: Injection::Hook,
    };
    let proof = super::gpu_proof::sandbox(&lease, "linux/amd64", &place());
    let job = strict(&request(), &place());
    assert_eq!(proof.device_requests[0].ids, ["GPU-1"]);
    assert_eq!(
        (proof.network_mode.as_str(), proof.mounts.len()),
        ("none", 0)
    );
    assert_eq!(
        (
            &proof.user,
            &proof.cap_drop,
            &proof.cap_add,
            &proof.security_opt
        ),
        (&job.user, &job.cap_drop, &job.cap_add, &job.security_opt)
    );
    assert!(proof.readonly_rootfs && !proof.privileged && !proof.open_stdin);
    assert_eq!(proof.masked_paths, job.masked_paths);
}

/// What an engine calls its runtimes.
fn runtimes() -> Vec<(RuntimeClass, String)> {
    RuntimeClass::ALL
        .into_iter()
        .map(|class| (class, class.terms().names[0].to_owned()))
        .collect()
}

/// Golden for each class, the ones that no test has run among them (Kata, Sysbox and newer
/// releases of gVisor): the sandbox is the engine's own but for who makes it.
#[test]
fn a_runtime_class_changes_who_makes_the_sandbox_and_nothing_else() {
    for (class, name, verified) in [
        (RuntimeClass::Runc, "runc", true),
        (RuntimeClass::Crun, "crun", true),
        (RuntimeClass::Runsc, "runsc", true),
        (RuntimeClass::Kata, "kata", false),
        (RuntimeClass::Sysbox, "sysbox-runc", false),
    ] {
        assert_eq!(class.terms().verified.is_some(), verified, "{class:?}");
        for profile in [Profile::Strict, Profile::Standard] {
            let own = Request {
                profile,
                ..request()
            };
            let asked = Request {
                runtime: Some(class),
                ..own.clone()
            };
            let place = Place {
                runtimes: runtimes(),
                ..place()
            };
            let made = of(&asked, &place);
            assert_eq!(made.runtime, name);
            assert_ne!(made.spec_hash(), of(&own, &place).spec_hash());
            let same = Sandbox {
                runtime: String::new(),
                ..made
            };
            assert_eq!(same, of(&own, &place), "{class:?} {profile:?}");
        }
    }
    // A newer gVisor, by the name that the node gives it.
    let newer = Place {
        runtimes: vec![(RuntimeClass::Runsc, "runsc-systrap".into())],
        ..place()
    };
    let asked = Request {
        runtime: Some(RuntimeClass::Runsc),
        ..request()
    };
    assert_eq!(of(&asked, &newer).runtime, "runsc-systrap");
}

#[test]
fn a_runtime_is_a_word_of_the_list_and_has_to_suit() {
    let spec = |runtime: &str| RunnerSpec {
        image: "i".into(),
        platform: "linux/amd64".into(),
        runtime: runtime.into(),
        resources: request().resources,
        ..RunnerSpec::default()
    };
    let of = |spec: &RunnerSpec| Request::from_spec(spec).map(|request| request.runtime);
    assert_eq!(of(&spec("")), Ok(None));
    assert_eq!(of(&spec("runsc")), Ok(Some(RuntimeClass::Runsc)));
    for wrong in ["/usr/bin/runsc", "io.containerd.runsc.v1", "RUNSC", "host"] {
        let error = of(&spec(wrong)).unwrap_err().to_string();
        assert!(error.contains("no runtime class"), "{error}");
    }
    let containers = RunnerSpec {
        profile: "containers".into(),
        ..spec("crun")
    };
    let error = of(&containers).unwrap_err().to_string();
    assert!(error.contains("containers"), "{error}");
    let mut gpu = spec("runsc");
    gpu.resources.gpus = 1;
    gpu.gpu_uuids = vec!["GPU-1".into()];
    assert!(of(&gpu).is_err());
    gpu.runtime = "crun".into();
    assert!(of(&gpu).is_ok());
}

/// What must be empty or off whatever was asked, at any place.
fn widened(s: &Sandbox) -> Vec<&'static str> {
    let names_a_host_path = |mount: &VolumeMount| {
        mount.volume.is_empty()
            || mount.volume.contains('/')
            || mount.volume.contains("docker.sock")
    };
    [
        ("bind", !s.binds.is_empty()),
        ("host folder", s.mounts.iter().any(names_a_host_path)),
        (
            "device",
            !s.devices.is_empty() || !s.device_cgroup_rules.is_empty(),
        ),
        ("group", !s.group_add.is_empty()),
        ("privileged", s.privileged),
        ("capability kept", s.cap_drop != ["ALL"]),
        (
            "capability added",
            s.cap_add
                .iter()
                .any(|cap| !profile::SUDO_CAPABILITIES.contains(&cap.as_str())),
        ),
        ("pid namespace", !s.pid_mode.is_empty()),
        ("uts namespace", !s.uts_mode.is_empty()),
        ("user namespace", !s.userns_mode.is_empty()),
        ("ipc namespace", s.ipc_mode != "private"),
        ("cgroup namespace", s.cgroupns_mode != "private"),
        (
            "network",
            !["none", "ls-0a1b2c-7"].contains(&s.network_mode.as_str()),
        ),
        ("published ports", s.publish_all_ports),
        ("user", s.user != "1001:1001"),
        (
            "runtime",
            !s.runtime.is_empty() && !runtimes().iter().any(|(_, name)| *name == s.runtime),
        ),
        (
            "unconfined",
            s.security_opt
                .iter()
                .filter_map(|o| o.strip_prefix("seccomp="))
                .any(|filter| !Profile::ALL.iter().any(|p| seccomp::filter(*p) == filter))
                || s.security_opt
                    .iter()
                    .filter(|o| o.contains("seccomp"))
                    .count()
                    != 1,
        ),
    ]
    .into_iter()
    .filter_map(|(what, wide)| wide.then_some(what))
    .collect()
}

/// A spec of the wire whose profile, platform and network are often real ones.
fn any_spec() -> impl Strategy<Value = RunnerSpec> {
    let word = |known: &[&str]| {
        let known: Vec<String> = known.iter().map(|word| (*word).to_owned()).collect();
        prop_oneof![4 => proptest::sample::select(known), 1 => ".{0,12}"]
    };
    let image = prop_oneof![
        "[a-z]{1,8}(/[a-z]{1,8}){0,2}(:[a-z0-9]{1,6})?",
        ".{0,40}",
        Just("/var/run/docker.sock:/var/run/docker.sock".to_owned()),
    ];
    (
        (
            image,
            word(&[
                "",
                "strict",
                "standard",
                "containers",
                "nested",
                "privileged",
            ]),
            word(&[
                "",
                "open",
                "none",
                "allowlist",
                "host",
                "container:x",
                "bridge",
            ]),
            word(&["linux/amd64", "linux/arm64", "linux/arm/v7"]),
            word(&["", "", "runsc", "crun", "kata", "/usr/bin/evil"]),
        ),
        (any::<u32>(), any::<u64>(), 0u32..2, any::<u64>()),
        proptest::collection::vec(prop_oneof!["(GPU|MIG)-[0-3]", ".{0,8}"], 0..2),
        proptest::collection::vec(
            prop_oneof![Just("privileged=true".to_owned()), ".{0,20}"],
            3,
        ),
    )
        .prop_map(
            |(
                (image, profile, network_mode, platform, runtime),
                (cpu, memory, gpus, lifetime_ms),
                uuids,
                words,
            )| {
                RunnerSpec {
                    image,
                    profile,
                    network_mode,
                    allowed_domains: words
                        .iter()
                        .map(|word| format!("*.{word}.test"))
                        .take(usize::from(lifetime_ms % 2 == 0))
                        .collect(),
                    platform,
                    resources: Resources {
                        cpu_millis: cpu,
                        memory_bytes: memory,
                        gpus,
                    },
                    gpu_uuids: uuids,
                    lifetime_ms,
                    traceparent: words[0].clone(),
                    pool: words[1].clone(),
                    scope: words[2].clone(),
                    runtime,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is asked for, nothing that opens a sandbox comes out of any profile.
    #[test]
    fn no_request_opens_a_sandbox(spec in any_spec(), users_are_mapped in any::<bool>()) {
        let Ok(request) = Request::from_spec(&spec) else { return Ok(()) };
        // A careless place that knows every GPU of the node.
        let every = ["GPU-0", "GPU-1", "GPU-2", "MIG-3", "all"];
        let gpus = every.map(|uuid| Lease { uuid: uuid.into(), by: Injection::Hook }).to_vec();
        let place = Place { users_are_mapped, gpus, runtimes: runtimes(), ..place() };
        let s = of(&request, &place);
        prop_assert_eq!(widened(&s), Vec::<&str>::new());
        let profile = request.profile;
        prop_assert_eq!(
            s.cap_add.len(),
            if profile.has_sudo(users_are_mapped) { 5 } else { 0 }
        );
        // Leased devices, by name, and nothing of anybody else's.
        let asked: Vec<&String> = s.device_requests.iter().flat_map(|ask| &ask.ids).collect();
        prop_assert!(asked.iter().all(|id| request.gpus.contains(id)), "{asked:?}");
        prop_assert!(asked.len() <= request.resources.gpus as usize);
        // Of the profile's own sandbox, only these fields may depend on what was asked.
        let mut closed = of(&Request { profile, ..super::tests::request() }, &place);
        prop_assert!(closed.device_requests.is_empty());
        if asked.is_empty() {
            prop_assert_eq!(&s.env, &closed.env);
        } else {
            let seen = format!("NVIDIA_VISIBLE_DEVICES={}", request.gpus.join(","));
            prop_assert!(s.env.contains(&seen) || asked.len() < request.gpus.len(), "{:?}", s.env);
            closed.env = s.env.clone();
            closed.device_requests = s.device_requests.clone();
        }
        closed.platform = s.platform.clone();
        closed.memory = s.memory;
        closed.memory_swap = s.memory;
        closed.nano_cpus = s.nano_cpus;
        closed.shm_size = s.shm_size;
        closed.tmpfs = s.tmpfs.clone();
        closed.network_mode = s.network_mode.clone();
        closed.dns = s.dns.clone();
        // The runtime is the one that the node has for the class, by the node's own word.
        let class = RuntimeClass::parse(&spec.runtime);
        let name = runtimes().into_iter().find(|(known, _)| Some(*known) == class);
        closed.runtime = name.map(|(_, name)| name).unwrap_or_default();
        prop_assert_eq!(&s, &closed);
        prop_assert!(s.tmpfs.iter().all(|(_, o)| o.contains("nosuid,nodev,size=")));
    }
}

/// The property above can fail: each way of widening is seen.
#[test]
fn every_way_to_widen_a_sandbox_is_seen() {
    type Way = (&'static str, fn(&mut Sandbox));
    let ways: &[Way] = &[
        ("bind", |s| s.binds.push("/:/host".into())),
        ("host folder", |s| {
            s.mounts[0].volume = "/var/run/docker.sock".into()
        }),
        ("device", |s| s.devices.push("/dev/kvm".into())),
        ("group", |s| s.group_add.push("docker".into())),
        ("privileged", |s| s.privileged = true),
        ("capability kept", |s| s.cap_drop.clear()),
        ("capability added", |s| s.cap_add.push("SYS_ADMIN".into())),
        ("pid namespace", |s| s.pid_mode = "host"),
        ("user namespace", |s| s.userns_mode = "host"),
        ("network", |s| s.network_mode = "host".into()),
        ("runtime", |s| s.runtime = "/usr/bin/evil".into()),
        ("unconfined", |s| {
            s.security_opt.push("seccomp=unconfined".into())
        }),
    ];
    for (way, widen) in ways {
        let mut s = strict(&request(), &place());
        assert_eq!(widened(&s), Vec::<&str>::new());
        widen(&mut s);
        assert_eq!(widened(&s), [*way]);
    }
}
