//! CDI specs: files that tell engines how to put a device into a container.

use std::fs;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::Serialize;
use serde_json::{Map, Value};

/// Folders that engines read specs from, below the root.
const FOLDERS: [&str; 2] = ["etc/cdi", "var/run/cdi"];
/// What is read of one host at most.
const MOST_FILES: usize = 64;
const MOST_BYTES: u64 = 4 << 20;
const MOST_DEVICES: usize = 1_024;
const DEEPEST: usize = 32;

/// The kind whose devices are NVIDIA's GPUs.
pub const NVIDIA: &str = "nvidia.com/gpu";

/// Everything the specs of a host say of NVIDIA's GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cdi {
    /// Specs that hold such devices.
    pub files: Vec<PathBuf>,
    pub devices: Vec<Device>,
    /// Specs that could not be read, and why.
    pub problems: Vec<String>,
}

/// A device as a spec names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// An index, a UUID or `all`.
    pub name: String,
    /// Its nodes on the host.
    pub nodes: Vec<String>,
}

impl Device {
    /// Named by UUID, not by a number that changes from start to start.
    pub fn is_uuid(&self) -> bool {
        self.name.starts_with("GPU-") || self.name.starts_with("MIG-")
    }

    /// N of its `/dev/nvidiaN`.
    pub fn minor(&self) -> Option<u32> {
        self.nodes
            .iter()
            .find_map(|node| node.strip_prefix("/dev/nvidia")?.parse().ok())
    }
}

impl Cdi {
    /// Whether a spec names this device, so that an engine with CDI can inject it.
    pub fn names(&self, uuid: &str) -> bool {
        self.devices.iter().any(|device| device.name == uuid)
    }
}

pub fn probe(root: &Path) -> Cdi {
    let mut found = Cdi::default();
    let mut files: Vec<PathBuf> = FOLDERS
        .iter()
        .filter_map(|folder| fs::read_dir(root.join(folder)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            matches!(kind, Some("yaml" | "yml" | "json"))
        })
        .take(MOST_FILES)
        .collect();
    files.sort();
    for file in files {
        match read(&file) {
            Ok(devices) if devices.is_empty() => {}
            Ok(devices) => {
                found.devices.extend(devices);
                found.devices.truncate(MOST_DEVICES);
                found.files.push(file);
            }
            Err(problem) => found
                .problems
                .push(format!("{}: {problem}", file.display())),
        }
    }
    found
}

fn read(file: &Path) -> Result<Vec<Device>, String> {
    let size = fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > MOST_BYTES {
        return Err(format!("{size} bytes are more than a spec has"));
    }
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    parse(&text)
}

/// NVIDIA's GPUs in one spec, YAML or JSON; nothing for another kind.
pub fn parse(text: &str) -> Result<Vec<Device>, String> {
    let spec = document(text)?;
    if spec["kind"] != NVIDIA {
        return Ok(vec![]);
    }
    let devices = spec["devices"].as_array().ok_or("it lists no devices")?;
    let device = |value: &Value| {
        let nodes = value["containerEdits"]["deviceNodes"].as_array();
        Device {
            name: match &value["name"] {
                Value::String(name) => name.clone(),
                other => other.to_string(),
            },
            nodes: nodes
                .into_iter()
                .flatten()
                .filter_map(|node| node["path"].as_str().map(str::to_owned))
                .collect(),
        }
    };
    Ok(devices.iter().take(MOST_DEVICES).map(device).collect())
}

/// A list or a map that is being read.
enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

/// The first document of a YAML text. JSON is YAML. No anchors: specs have none.
fn document(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, at) = event.map_err(|error| error.to_string())?;
        let value = match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() >= DEEPEST {
                    return Err("it is nested too deeply".into());
                }
                open.push(match event {
                    Event::SequenceStart(..) => Open::List(vec![]),
                    _ => Open::Map(Map::new(), None),
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Map(map, _)) => Value::Object(map),
                None => return Err("it ends what never began".into()),
            },
            Event::Scalar(text, style, ..) => match (style, text.as_ref()) {
                (ScalarStyle::Plain, "" | "~" | "null") => Value::Null,
                _ => Value::String(text.into_owned()),
            },
            Event::Alias(_) => {
                let line = at.start.line();
                return Err(format!("line {line} has an alias, which is not read"));
            }
            _ => continue,
        };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, key)) => match (key.take(), value) {
                (None, Value::String(name)) => *key = Some(name),
                (None, _) => return Err("a key is not a text".into()),
                (Some(name), value) => {
                    map.insert(name, value);
                }
            },
        }
    }
    Err("it is empty".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = include_str!("../../fixtures/gpu-tree/etc/cdi/nvidia.yaml");

    #[test]
    fn a_spec_is_read() {
        let devices = parse(YAML).unwrap();
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "0",
                "GPU-5a5e9b22-0000-4000-8000-1234567890ab",
                "MIG-7c70bd44-0000-4000-8000-1234567890ab",
                "all"
            ]
        );
        assert_eq!(devices[1].nodes, ["/dev/nvidia0"]);
        assert_eq!(
            devices[2].nodes,
            ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap12"]
        );
        assert_eq!(devices[2].minor(), Some(1));
        assert!(!devices[0].is_uuid() && devices[1].is_uuid());
    }

    #[test]
    fn json_is_read_too() {
        let json = r#"{"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices":
            [{"name": "GPU-1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia4"}]}}]}"#;
        assert_eq!(parse(json).unwrap()[0].minor(), Some(4));
    }

    #[test]
    fn other_kinds_and_broken_specs_harm_nothing() {
        assert_eq!(parse("kind: intel.com/gpu\ndevices: []\n"), Ok(vec![]));
        for broken in [
            "",
            "kind: nvidia.com/gpu\n",
            "kind: [",
            "kind: nvidia.com/gpu\ndevices: &x [*x]\n",
            "? [a]\n: b\n",
            &"[".repeat(100),
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/cdi")).unwrap();
        fs::write(root.path().join("etc/cdi/broken.yaml"), "kind: [").unwrap();
        fs::write(root.path().join("etc/cdi/notes.txt"), "kind: [").unwrap();
        let found = probe(root.path());
        assert_eq!((found.devices.len(), found.problems.len()), (0, 1));
        assert!(found.problems[0].contains("broken.yaml"));
    }
}
