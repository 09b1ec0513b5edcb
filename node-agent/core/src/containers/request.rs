//! Reads what the runner program tells its container hook.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{EXTERNALS, MAX_SIBLINGS, Refusal, Service, Sibling, WORK, is_image, options};
use crate::sandbox::RUNNER_ROOT;

/// What the hook is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Prepare {
        container: Option<Sibling>,
        services: Vec<Service>,
    },
    /// A command in the job container.
    Script(Sibling),
    /// A container that runs to its end.
    Container(Sibling),
    Cleanup,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    command: String,
    #[serde(default)]
    response_file: Option<String>,
    #[serde(default)]
    args: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPrepare {
    container: Option<RawContainer>,
    services: Option<Vec<RawContainer>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawContainer {
    context_name: Option<String>,
    image: Option<String>,
    dockerfile: Option<String>,
    #[serde(alias = "entrypoint")]
    entry_point: Option<String>,
    entry_point_args: Option<Vec<String>>,
    working_directory: Option<String>,
    create_options: Option<String>,
    environment_variables: Option<BTreeMap<String, Option<String>>>,
    prepend_path: Option<Vec<String>>,
    user_mount_volumes: Option<Vec<RawMount>>,
    system_mount_volumes: Option<Vec<RawMount>>,
    registry: Option<RawRegistry>,
    port_mappings: Option<RawPorts>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMount {
    #[serde(default)]
    source_volume_path: Option<String>,
    target_volume_path: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRegistry {
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPorts {
    List(Vec<String>),
    Map(BTreeMap<String, String>),
}

/// The command of a request, and the file its answer goes to.
pub fn parse(text: &[u8]) -> Result<(Command, Option<String>), Refusal> {
    // The reader's own words may quote the request, which can hold secrets.
    let form = |what: &str| Refusal::Form(what.to_owned());
    let raw: Raw = serde_json::from_slice(text).map_err(|_| form("it is not its JSON"))?;
    let answer = raw.response_file.filter(|path| !path.is_empty());
    if let Some(path) = &answer
        && (!is_path(path) || !path.starts_with(RUNNER_ROOT))
    {
        return Err(form("its response file is not below the runner's folder"));
    }
    let container = |args: Value| {
        serde_json::from_value::<RawContainer>(args).map_err(|_| form("its arguments"))
    };
    let command = match raw.command.as_str() {
        "prepare_job" => {
            let args: RawPrepare =
                serde_json::from_value(raw.args).map_err(|_| form("its arguments"))?;
            prepare(args)?
        }
        "run_script_step" => Command::Script(checked(container(raw.args)?, false)?),
        "run_container_step" => Command::Container(checked(container(raw.args)?, true)?),
        "cleanup_job" => Command::Cleanup,
        _ => return Err(form("its command")),
    };
    Ok((command, answer))
}

fn prepare(args: RawPrepare) -> Result<Command, Refusal> {
    let services = args.services.unwrap_or_default();
    if services.len() + usize::from(args.container.is_some()) > MAX_SIBLINGS {
        return Err(Refusal::TooMany);
    }
    let container = args
        .container
        .map(|raw| {
            ports(raw.port_mappings.as_ref())?;
            checked(raw, true)
        })
        .transpose()?;
    let services = services
        .into_iter()
        .map(|mut raw| {
            let name = raw.context_name.take().unwrap_or_default();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 63 || name == "localhost" || !name.chars().all(plain)
            {
                return Err(Refusal::Name(name.chars().take(80).collect()));
            }
            let ports = ports(raw.port_mappings.as_ref())?;
            Ok(Service {
                name,
                ports,
                sibling: checked(raw, true)?,
            })
        })
        .collect::<Result<_, Refusal>>()?;
    Ok(Command::Prepare {
        container,
        services,
    })
}

fn checked(raw: RawContainer, makes_one: bool) -> Result<Sibling, Refusal> {
    if raw.dockerfile.is_some_and(|path| !path.is_empty()) {
        return Err(Refusal::Dockerfile);
    }
    if let Some(registry) = raw.registry {
        let given = |word: Option<String>| word.is_some_and(|word| !word.is_empty());
        if given(registry.username) || given(registry.password) {
            return Err(Refusal::Registry);
        }
    }
    let image = raw.image.unwrap_or_default();
    let image = image.strip_prefix("docker://").unwrap_or(&image).to_owned();
    if makes_one && !is_image(&image) {
        return Err(Refusal::Image(image.chars().take(80).collect()));
    }
    let mut sibling = Sibling {
        image,
        entrypoint: raw
            .entry_point
            .filter(|word| !word.is_empty())
            .into_iter()
            .collect(),
        cmd: raw.entry_point_args.unwrap_or_default(),
        working_dir: raw.working_directory.unwrap_or_default(),
        prepend_path: raw.prepend_path.unwrap_or_default(),
        env: raw
            .environment_variables
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect(),
        ..Sibling::default()
    };
    options::apply(&raw.create_options.unwrap_or_default(), &mut sibling)?;
    for (name, value) in &sibling.env {
        // Values may have line ends: they are no lines of a file here.
        if name.is_empty() || name.contains(['=', '\0', '\n']) || value.contains('\0') {
            return Err(Refusal::Environment(name.chars().take(80).collect()));
        }
    }
    if !sibling.working_dir.is_empty() && !is_path(&sibling.working_dir) {
        return Err(Refusal::Target(sibling.working_dir));
    }
    for mount in raw.system_mount_volumes.unwrap_or_default() {
        // The runner program always asks for it; nobody gets it.
        if mount
            .source_volume_path
            .as_deref()
            .is_some_and(is_engine_socket)
        {
            continue;
        }
        sibling.links.extend(link(mount)?);
    }
    for mount in raw.user_mount_volumes.unwrap_or_default() {
        sibling.links.extend(link(mount)?);
    }
    Ok(sibling)
}

fn is_engine_socket(path: &str) -> bool {
    matches!(path, "/var/run/docker.sock" | "/run/docker.sock")
}

/// What a mount of the runner's own folders becomes: nothing where the shared work
/// folder has it in that place anyway, else a link inside the sibling. A link is
/// followed in there alone, so it cannot lead out.
fn link(mount: RawMount) -> Result<Option<(String, String)>, Refusal> {
    let source = mount.source_volume_path.unwrap_or_default();
    let plain = source.trim_end_matches('/').replace("//", "/");
    let refused = || Refusal::Volume(source.chars().take(120).collect());
    if !is_path(&plain) {
        return Err(refused());
    }
    let of_runner = plain.strip_prefix(RUNNER_ROOT).ok_or_else(refused)?;
    let inside = match of_runner.strip_prefix("/_work") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{WORK}{rest}"),
        _ if of_runner == "/externals" => EXTERNALS.to_owned(),
        _ => return Err(refused()),
    };
    let target = mount.target_volume_path.trim_end_matches('/').to_owned();
    if target == inside {
        return Ok(None);
    }
    let taken = |root: &str| target == root || target.starts_with(&format!("{root}/"));
    if !is_path(&target)
        || target == "/"
        || ["/proc", "/sys", "/dev", WORK, EXTERNALS]
            .into_iter()
            .any(taken)
    {
        return Err(Refusal::Target(target.chars().take(120).collect()));
    }
    Ok(Some((target, inside)))
}

/// Absolute, without a way up, and one line.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 4_096
        && !path.contains(|c: char| c.is_control())
        && path.split('/').all(|part| part != "..")
}

/// Ports that services say they have. They share the job's network namespace, so a
/// port is where it is.
fn ports(raw: Option<&RawPorts>) -> Result<Vec<u16>, Refusal> {
    let list: Vec<String> = match raw {
        None => vec![],
        Some(RawPorts::List(list)) => list.clone(),
        Some(RawPorts::Map(map)) => map.iter().map(|(a, b)| format!("{a}:{b}")).collect(),
    };
    list.iter()
        .map(|mapping| {
            let refused = || Refusal::Port(mapping.chars().take(80).collect());
            let plain = mapping.strip_suffix("/tcp").unwrap_or(mapping);
            let plain = plain.strip_suffix("/udp").unwrap_or(plain);
            let (outer, inner) = plain.split_once(':').unwrap_or((plain, plain));
            let port: u16 = inner.parse().map_err(|_| refused())?;
            if port == 0 || (outer != inner && !outer.is_empty() && outer != "0") {
                return Err(refused());
            }
            Ok(port)
        })
        .collect()
}
