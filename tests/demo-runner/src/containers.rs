//! Jobs with `container:` or `services:`: the container hook is asked, as GitHub's runner asks it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::steps::{self, Context, End};

const HOOK: &str = "ACTIONS_RUNNER_CONTAINER_HOOKS";
/// Where the work folder is in a container.
const WORK: &str = "/__w";

/// `container:`, or one of `services:`, as the service tells it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    image: String,
    env: BTreeMap<String, String>,
    ports: Vec<String>,
    volumes: Vec<String>,
    options: String,
    entrypoint: Option<String>,
    arguments: Vec<String>,
}

/// What the containers of a job are asked with.
pub(crate) struct Containers<'a> {
    context: &'a Context<'a>,
    work: &'a Path,
    /// What the hook answered, passed on with each request.
    state: Value,
    has_container: bool,
}

impl<'a> Containers<'a> {
    /// Has them prepared; the error is the output of what was tried.
    pub(crate) fn prepare(
        context: &'a Context<'a>,
        work: &'a Path,
        container: Option<&Container>,
        services: &BTreeMap<String, Container>,
    ) -> Result<Self, String> {
        let mut containers = Self {
            context,
            work,
            state: json!({}),
            has_container: container.is_some(),
        };
        let services: Vec<Value> = services
            .iter()
            .map(|(name, service)| containers.described(service, Some(name)))
            .collect();
        let args = json!({
            "container": container.map(|container| containers.described(container, None)),
            "services": services,
        });
        let mut output = String::new();
        let result = containers.ask("prepare_job", &args, 0, |text| output.push_str(text));
        output.push_str(&result.rest);
        match result.end {
            End::Success => {
                containers.state = containers
                    .answer()
                    .and_then(|answer| answer.get("state").cloned())
                    .unwrap_or_else(|| json!({}));
                Ok(containers)
            }
            _ => Err(output),
        }
    }

    /// Whether steps run in a container; else they run beside the services.
    pub(crate) fn has_container(&self) -> bool {
        self.has_container
    }

    /// A step's script in the job container.
    pub(crate) fn run(
        &self,
        number: u64,
        script: &str,
        pass_on: impl FnMut(&str),
    ) -> steps::Result {
        let path = self
            .context
            .temp
            .join(format!("container-step-{number}.sh"));
        if let Err(e) = std::fs::write(&path, script) {
            return steps::failed(format!("{}: {e}\n", path.display()));
        }
        let mut env: BTreeMap<&str, String> = self
            .context
            .environment
            .iter()
            .filter(|(name, _)| {
                name.starts_with("GITHUB_") || name.starts_with("RUNNER_") || *name == "CI"
            })
            .map(|(name, value)| (name.as_str(), self.inside(value)))
            .collect();
        env.insert("HOME", "/github/home".into());
        let args = json!({
            "entryPoint": "sh",
            "entryPointArgs": ["-e", self.inside(&path.display().to_string())],
            "workingDirectory": self.inside(&self.context.workspace.display().to_string()),
            "environmentVariables": env,
            "prependPath": [],
        });
        self.ask("run_script_step", &args, number, pass_on)
    }

    pub(crate) fn clean_up(&self) {
        self.ask("cleanup_job", &json!({}), 0, |_| ());
    }

    fn described(&self, container: &Container, service: Option<&str>) -> Value {
        let mut said = json!({
            "image": container.image,
            "createOptions": container.options,
            "environmentVariables": container.env,
            "userMountVolumes": container.volumes.iter().map(|volume| {
                let (source, target) = volume.split_once(':').unwrap_or(("", volume));
                json!({"sourceVolumePath": source, "targetVolumePath": target, "readOnly": false})
            }).collect::<Vec<_>>(),
            "portMappings": container.ports,
            "registry": null,
            "entryPoint": container.entrypoint,
            "entryPointArgs": container.arguments,
        });
        match service {
            Some(name) => said["contextName"] = json!(name),
            None => {
                said["workingDirectory"] =
                    json!(self.inside(&self.context.workspace.display().to_string()));
                said["systemMountVolumes"] = self.mounts();
            }
        }
        said
    }

    /// The mounts GitHub's runner asks for, the engine's socket among them.
    fn mounts(&self) -> Value {
        let work = self.work.display();
        let root = self.work.parent().unwrap_or(self.work).display();
        let mount = |source: String, target: &str| json!({"sourceVolumePath": source, "targetVolumePath": target, "readOnly": false});
        json!([
            mount("/var/run/docker.sock".into(), "/var/run/docker.sock"),
            mount(work.to_string(), WORK),
            mount(format!("{root}/externals"), "/__e"),
            mount(format!("{work}/_temp"), "/__w/_temp"),
            mount(format!("{work}/_actions"), "/__w/_actions"),
            mount(format!("{work}/_tool"), "/__w/_tool"),
            mount(format!("{work}/_temp/_github_home"), "/github/home"),
            mount(format!("{work}/_temp/_github_workflow"), "/github/workflow"),
        ])
    }

    /// A path of the runner as a container sees it.
    fn inside(&self, path: &str) -> String {
        path.replace(&self.work.display().to_string(), WORK)
    }

    fn answer(&self) -> Option<Value> {
        let text = std::fs::read(self.response()).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn response(&self) -> std::path::PathBuf {
        self.context.temp.join("container-hook.answer.json")
    }

    fn ask(
        &self,
        command: &str,
        args: &Value,
        number: u64,
        pass_on: impl FnMut(&str),
    ) -> steps::Result {
        let Some(hook) = self
            .context
            .environment
            .get(HOOK)
            .filter(|path| !path.is_empty())
        else {
            // Without a hook the runner looks for an engine.
            return steps::run(self.context, number, "exec docker version", pass_on);
        };
        let request = json!({
            "command": command, "responseFile": self.response().display().to_string(), "args": args, "state": self.state,
        });
        let file = self
            .context
            .temp
            .join(format!("container-hook-{number}.json"));
        let made = ["_github_home", "_github_workflow"]
            .iter()
            .try_for_each(|folder| std::fs::create_dir_all(self.context.temp.join(folder)))
            .and_then(|()| std::fs::write(self.response(), ""))
            .and_then(|()| std::fs::write(&file, request.to_string()));
        if let Err(e) = made {
            return steps::failed(format!("{}: {e}\n", file.display()));
        }
        // bash where there is one, else sh: by the ending, as GitHub's runner does
        let script = format!(
            "shell=$(command -v bash || command -v sh)\nexec \"$shell\" -e '{}' <'{}'",
            hook.replace('\'', "'\\''"),
            file.display()
        );
        steps::run(self.context, number, &script, pass_on)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A hook that keeps what it was told and answers.
    const STUB: &str = r#"cat >>"$RUNNER_TEMP/told"; echo >>"$RUNNER_TEMP/told"; echo from the hook
printf '{"state":{"container":"c1"}}' >"$RUNNER_TEMP/container-hook.answer.json"; exit ${CODE:-0}"#;

    fn asked(
        environment: BTreeMap<String, String>,
        work: &Path,
    ) -> (Result<(), String>, Vec<Value>) {
        let cancelled = AtomicBool::new(false);
        let (workspace, temp) = (work.join("web/web"), work.join("_temp"));
        let context = Context {
            workspace: &workspace,
            temp: &temp,
            environment: &environment,
            cancelled: &cancelled,
        };
        let container = Container {
            image: "debian:12".into(),
            volumes: vec!["/data:/data".into()],
            ..Container::default()
        };
        let services = BTreeMap::from([("redis".to_owned(), Container::default())]);
        let result =
            Containers::prepare(&context, work, Some(&container), &services).map(|containers| {
                let result = containers.run(1, "echo hello", |_| ());
                assert_eq!(result.rest, "from the hook\n");
                containers.clean_up();
            });
        let told = std::fs::read_to_string(temp.join("told")).unwrap_or_default();
        let told = told.lines().map(|line| serde_json::from_str(line).unwrap());
        (result, told.collect())
    }

    fn world() -> (tempfile::TempDir, BTreeMap<String, String>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("web/web")).unwrap();
        std::fs::create_dir_all(dir.path().join("_temp")).unwrap();
        let hook = dir.path().join("hook.sh");
        std::fs::write(&hook, STUB).unwrap();
        let environment = [
            ("PATH", std::env::var("PATH").unwrap()),
            (HOOK, hook.display().to_string()),
            (
                "RUNNER_TEMP",
                dir.path().join("_temp").display().to_string(),
            ),
        ];
        (
            dir,
            environment
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        )
    }

    #[test]
    fn a_hook_is_told_in_the_shape_of_githubs_runner() {
        let (dir, environment) = world();
        let (result, told) = asked(environment, dir.path());
        assert_eq!(result, Ok(()));
        let commands: Vec<&str> = told
            .iter()
            .map(|request| request["command"].as_str().unwrap())
            .collect();
        assert_eq!(commands, ["prepare_job", "run_script_step", "cleanup_job"]);
        let container = &told[0]["args"]["container"];
        assert_eq!(container["workingDirectory"], "/__w/web/web");
        assert_eq!(
            container["systemMountVolumes"][0]["sourceVolumePath"],
            "/var/run/docker.sock"
        );
        assert_eq!(
            container["userMountVolumes"][0]["targetVolumePath"],
            "/data"
        );
        assert_eq!(told[0]["args"]["services"][0]["contextName"], "redis");
        assert_eq!(told[1]["state"], json!({"container": "c1"}));
        assert_eq!(
            told[1]["args"]["entryPointArgs"][1],
            "/__w/_temp/container-step-1.sh"
        );
        assert_eq!(
            told[1]["args"]["environmentVariables"]["RUNNER_TEMP"],
            "/__w/_temp"
        );
    }

    #[test]
    fn a_hook_that_fails_and_a_missing_one_end_the_job_before_its_steps() {
        let (dir, mut environment) = world();
        environment.insert("CODE".into(), "1".into());
        let (result, told) = asked(environment.clone(), dir.path());
        assert_eq!((result, told.len()), (Err("from the hook\n".into()), 1));
        environment.remove(HOOK);
        // A shell and no engine's program, whatever this host has.
        let programs = dir.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        std::os::unix::fs::symlink("/bin/sh", programs.join("sh")).unwrap();
        environment.insert("PATH".into(), programs.display().to_string());
        std::fs::remove_file(dir.path().join("_temp/told")).unwrap();
        let (result, told) = asked(environment, dir.path());
        assert!(result.is_err_and(|text| text.contains("docker")) && told.is_empty());
    }
}
