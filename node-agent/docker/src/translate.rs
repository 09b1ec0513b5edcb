//! A sandbox's data in the engine's words, field by field and nothing more.

use std::collections::HashMap;

use agent_core::gpu::DeviceAsk;
use agent_core::sandbox::{Sandbox, VolumeMount};
use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount, MountType, MountVolumeOptions, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};

/// The body of `POST /containers/create`.
pub fn container_body(sandbox: &Sandbox) -> ContainerCreateBody {
    let labels: HashMap<String, String> = sandbox.labels.iter().cloned().collect();
    ContainerCreateBody {
        hostname: Some(sandbox.hostname.clone()),
        user: Some(sandbox.user.clone()),
        attach_stdin: Some(sandbox.attach_stdin),
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        tty: Some(sandbox.tty),
        open_stdin: Some(sandbox.open_stdin),
        stdin_once: Some(sandbox.stdin_once),
        env: Some(sandbox.env.clone()),
        cmd: Some(sandbox.cmd.clone()),
        entrypoint: Some(sandbox.entrypoint.clone()),
        image: Some(sandbox.image.clone()),
        working_dir: Some(sandbox.working_dir.clone()),
        labels: Some(labels.clone()),
        stop_signal: Some(sandbox.stop_signal.into()),
        stop_timeout: Some(sandbox.stop_timeout_s),
        // An image's own would run beside the job, for as long as it lives.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..HealthConfig::default()
        }),
        host_config: Some(host_config(sandbox, &labels)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(sandbox: &Sandbox, labels: &HashMap<String, String>) -> HostConfig {
    HostConfig {
        cap_drop: Some(strings(&sandbox.cap_drop)),
        cap_add: Some(sandbox.cap_add.clone()),
        privileged: Some(sandbox.privileged),
        readonly_rootfs: Some(sandbox.readonly_rootfs),
        security_opt: Some(sandbox.security_opt.clone()),
        pids_limit: Some(sandbox.pids_limit),
        memory: Some(sandbox.memory),
        memory_swap: Some(sandbox.memory_swap),
        nano_cpus: Some(sandbox.nano_cpus),
        oom_kill_disable: sandbox.oom_kill_disable.then_some(true),
        oom_score_adj: Some(sandbox.oom_score_adj),
        ulimits: Some(
            sandbox
                .ulimits
                .iter()
                .map(|limit| ResourcesUlimits {
                    name: Some(limit.name.into()),
                    soft: Some(limit.soft),
                    hard: Some(limit.hard),
                })
                .collect(),
        ),
        tmpfs: Some(sandbox.tmpfs.iter().cloned().collect()),
        mounts: Some(
            sandbox
                .mounts
                .iter()
                .map(|mount| volume_mount(mount, labels))
                .collect(),
        ),
        binds: Some(sandbox.binds.clone()),
        devices: Some(vec![]),
        device_requests: (!sandbox.device_requests.is_empty())
            .then(|| sandbox.device_requests.iter().map(device_request).collect()),
        device_cgroup_rules: Some(sandbox.device_cgroup_rules.clone()),
        group_add: Some(sandbox.group_add.clone()),
        ipc_mode: Some(sandbox.ipc_mode.into()),
        pid_mode: Some(sandbox.pid_mode.into()),
        uts_mode: Some(sandbox.uts_mode.into()),
        userns_mode: Some(sandbox.userns_mode.into()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        cgroup_parent: (!sandbox.cgroup_parent.is_empty()).then(|| sandbox.cgroup_parent.clone()),
        network_mode: Some(sandbox.network_mode.clone()),
        dns: Some(sandbox.dns.clone()),
        publish_all_ports: Some(sandbox.publish_all_ports),
        shm_size: Some(sandbox.shm_size),
        init: Some(sandbox.init),
        auto_remove: Some(sandbox.auto_remove),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: Some(0),
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some(sandbox.log_driver.into()),
            config: Some(
                sandbox
                    .log_options
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
        }),
        masked_paths: Some(sandbox.masked_paths.clone()),
        readonly_paths: Some(strings(&sandbox.readonly_paths)),
        runtime: (!sandbox.runtime.is_empty()).then(|| sandbox.runtime.clone()),
        ..HostConfig::default()
    }
}

/// By name and never by count: an engine refuses both, and a count is any GPU.
fn device_request(ask: &DeviceAsk) -> DeviceRequest {
    let capabilities = strings(&ask.capabilities);
    DeviceRequest {
        driver: Some(ask.driver.into()),
        device_ids: Some(ask.ids.clone()),
        capabilities: (!capabilities.is_empty()).then(|| vec![capabilities]),
        ..DeviceRequest::default()
    }
}

/// Only volumes: a host folder cannot be named here.
pub(crate) fn volume_mount(mount: &VolumeMount, labels: &HashMap<String, String>) -> Mount {
    Mount {
        target: Some(mount.target.clone()),
        source: Some(mount.volume.clone()),
        typ: Some(MountType::VOLUME),
        read_only: Some(mount.read_only),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(!mount.copy_up),
            labels: Some(labels.clone()),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::dialect::Dialect;
    use agent_core::model::{Resources, RunnerSpec};
    use agent_core::sandbox::{self, Place, Profile, Request, RuntimeClass};

    fn spec(profile: Profile) -> RunnerSpec {
        RunnerSpec {
            image: "image".into(),
            profile: profile.word().into(),
            platform: "linux/amd64".into(),
            resources: Resources {
                cpu_millis: 1_000,
                memory_bytes: 1 << 30,
                gpus: 0,
            },
            ..RunnerSpec::default()
        }
    }

    fn place(users_are_mapped: bool) -> Place {
        Place {
            image_id: "sha256:0".into(),
            network: "ls-x-0".into(),
            work_volume: "work".into(),
            bin_volume: "bin".into(),
            externals_volume: "ext".into(),
            tools_volume: "tools".into(),
            dns: vec![],
            proxy: None,
            host_cpus: 1,
            cgroup_parent: String::new(),
            labels: vec![],
            dialect: Dialect::DOCKER,
            seccomp: Default::default(),
            users_are_mapped,
            gpus: vec![],
            runtimes: vec![(RuntimeClass::Runsc, "runsc".into())],
        }
    }

    fn body(profile: Profile, users_are_mapped: bool) -> ContainerCreateBody {
        let request = Request::from_spec(&spec(profile)).unwrap();
        container_body(&sandbox::of(&request, &place(users_are_mapped)))
    }

    /// An engine fills what a request leaves open from the image: so nothing that
    /// an image can say something about is left open, but its volumes and ports.
    #[test]
    fn an_image_has_no_say_where_it_could_have_one() {
        for profile in Profile::ALL {
            for mapped in [false, true] {
                let body = body(profile, mapped);
                assert_eq!(body.user.as_deref(), Some("1001:1001"));
                assert!(body.entrypoint.is_some_and(|words| !words.is_empty()));
                assert!(body.cmd.is_some_and(|words| !words.is_empty()));
                assert_eq!(body.working_dir.as_deref(), Some("/home/runner"));
                assert_eq!(body.stop_signal.as_deref(), Some("SIGINT"));
                let health = body.healthcheck.and_then(|health| health.test);
                assert_eq!(health, Some(vec!["NONE".to_owned()]));
                let env = body.env.unwrap_or_default();
                assert!(env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
                let host = body.host_config.unwrap_or_default();
                // Ports of an image are not published, and its volumes are anonymous.
                assert_eq!(host.publish_all_ports, Some(false));
                assert_eq!((host.port_bindings, host.volumes_from), (None, None));
            }
        }
    }

    #[test]
    fn the_runtime_is_named_only_where_one_is_asked_for() {
        let named = |asked: &str| {
            let spec = RunnerSpec {
                runtime: asked.into(),
                ..spec(Profile::Strict)
            };
            let place = place(false);
            let body = container_body(&sandbox::of(&Request::from_spec(&spec).unwrap(), &place));
            body.host_config.unwrap_or_default().runtime
        };
        assert_eq!(named(""), None);
        assert_eq!(named("runsc").as_deref(), Some("runsc"));
        // Not among what this node has, which is refused before.
        assert_eq!(named("kata"), None);
    }

    #[test]
    fn fields_that_would_open_a_sandbox_are_never_filled() {
        for profile in Profile::ALL {
            for mapped in [false, true] {
                let host = body(profile, mapped).host_config.unwrap_or_default();
                assert_eq!(host.privileged, Some(false));
                assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
                for list in [&host.binds, &host.device_cgroup_rules, &host.group_add] {
                    assert_eq!(list.as_ref().map(Vec::len), Some(0));
                }
                assert_eq!(host.devices, Some(vec![]));
                assert_eq!((&host.device_requests, &host.runtime), (&None, &None));
                assert_eq!((&host.links, &host.extra_hosts), (&None, &None));
                assert_eq!((&host.sysctls, &host.volume_driver), (&None, &None));
                for mode in [&host.pid_mode, &host.uts_mode, &host.userns_mode] {
                    assert_eq!(mode.as_deref(), Some(""));
                }
                assert_eq!(host.ipc_mode.as_deref(), Some("private"));
                for mount in host.mounts.unwrap_or_default() {
                    assert_eq!(mount.typ, Some(MountType::VOLUME));
                    assert!(!mount.source.unwrap_or_default().contains('/'));
                }
            }
        }
    }
}
