//! The options of `container.options`: those that narrow or describe, and no others.

use super::{Refusal, Sibling};

/// Supported options, for messages.
pub(super) const SUPPORTED: &str = "--health-cmd, --health-interval, --health-timeout, --health-retries, --health-start-period, --no-healthcheck, --env, --entrypoint, --workdir, --cpus and --memory";

/// How a service says that it is ready. Times in nanoseconds; 0 is the engine's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Empty: none at all, not even the image's.
    pub command: String,
    pub interval_ns: i64,
    pub timeout_ns: i64,
    pub start_period_ns: i64,
    pub retries: i64,
}

/// Applies a line of options to a sibling.
pub(super) fn apply(line: &str, sibling: &mut Sibling) -> Result<(), Refusal> {
    let mut words = split(line)?.into_iter();
    while let Some(word) = words.next() {
        let (name, given) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                (name.to_owned(), Some(value.to_owned()))
            }
            _ => (word.clone(), None),
        };
        if name == "--no-healthcheck" && given.is_none() {
            sibling.health = Some(Health::default());
            continue;
        }
        let Some(known) = KNOWN.iter().find(|known| **known == name) else {
            return Err(Refusal::Option(shown(&name), SUPPORTED));
        };
        let value = match given.or_else(|| words.next()) {
            Some(value) => value,
            None => return Err(Refusal::Value(known, String::new())),
        };
        set(known, value, sibling)?;
    }
    if sibling
        .health
        .as_ref()
        .is_some_and(|health| health.command.is_empty() && *health != Health::default())
    {
        return Err(Refusal::Value("--health-cmd", String::new()));
    }
    Ok(())
}

const KNOWN: [&str; 12] = [
    "--health-cmd",
    "--health-interval",
    "--health-timeout",
    "--health-retries",
    "--health-start-period",
    "--env",
    "-e",
    "--entrypoint",
    "--workdir",
    "-w",
    "--cpus",
    "--memory",
];

fn set(name: &'static str, value: String, sibling: &mut Sibling) -> Result<(), Refusal> {
    let bad = |value: &str| Refusal::Value(name, shown(value));
    let health = |sibling: &mut Sibling| sibling.health.take().unwrap_or_default();
    match name {
        "--health-cmd" => {
            sibling.health = Some(Health {
                command: value,
                ..health(sibling)
            });
        }
        "--health-interval" | "--health-timeout" | "--health-start-period" => {
            let ns = duration(&value).ok_or_else(|| bad(&value))?;
            let mut changed = health(sibling);
            match name {
                "--health-interval" => changed.interval_ns = ns,
                "--health-timeout" => changed.timeout_ns = ns,
                _ => changed.start_period_ns = ns,
            }
            sibling.health = Some(changed);
        }
        "--health-retries" => {
            let retries: u16 = value.parse().map_err(|_| bad(&value))?;
            sibling.health = Some(Health {
                retries: retries.into(),
                ..health(sibling)
            });
        }
        "--env" | "-e" => {
            let (name, value) = value.split_once('=').ok_or_else(|| bad(&value))?;
            sibling.env.insert(name.to_owned(), value.to_owned());
        }
        "--entrypoint" => sibling.entrypoint = vec![value],
        "--workdir" | "-w" => sibling.working_dir = value,
        "--cpus" => {
            let cpus: f64 = value.parse().map_err(|_| bad(&value))?;
            if !(0.01..=4_096.0).contains(&cpus) {
                return Err(bad(&value));
            }
            // Bounded just above, so it fits.
            sibling.cpu_millis = Some((cpus * 1_000.0) as u32);
        }
        _ => {
            let bytes = size(&value).ok_or_else(|| bad(&value))?;
            if bytes < crate::sandbox::MIN_MEMORY {
                return Err(bad(&value));
            }
            sibling.memory_bytes = Some(bytes);
        }
    }
    Ok(())
}

/// Words of a line as a shell would split it: quotes and backslashes, nothing else.
fn split(line: &str) -> Result<Vec<String>, Refusal> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => {
                let next = chars.next().ok_or_else(|| unbalanced(line))?;
                word.get_or_insert_default().push(next);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(unbalanced(line));
    }
    words.extend(word);
    Ok(words)
}

fn unbalanced(line: &str) -> Refusal {
    Refusal::Form(format!("quotes do not match in options {:?}", shown(line)))
}

fn duration(text: &str) -> Option<i64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let number: i64 = number
        .parse()
        .ok()
        .filter(|n| (0..=86_400_000).contains(n))?;
    let unit: i64 = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let at = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(at);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Of a text that somebody else wrote, what fits a message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let words = split(r#"--health-cmd "redis-cli ping" -e 'A=b c' x\ y"#).unwrap();
        assert_eq!(
            words,
            ["--health-cmd", "redis-cli ping", "-e", "A=b c", "x y"]
        );
        assert!(split("--env 'A").is_err());
        assert!(split("a\\").is_err());
    }

    #[test]
    fn health_and_limits_are_taken() {
        let mut sibling = Sibling::default();
        apply(
            "--health-cmd pg_isready --health-interval 10s --health-timeout=5s --health-retries 5 --cpus 0.5 --memory 256m -e A=b=c -w /x --entrypoint /go",
            &mut sibling,
        )
        .unwrap();
        let health = sibling.health.unwrap();
        assert_eq!(health.command, "pg_isready");
        assert_eq!(
            (health.interval_ns, health.timeout_ns),
            (10_000_000_000, 5_000_000_000)
        );
        assert_eq!((health.retries, health.start_period_ns), (5, 0));
        assert_eq!(
            (sibling.cpu_millis, sibling.memory_bytes),
            (Some(500), Some(256 << 20))
        );
        assert_eq!(sibling.env["A"], "b=c");
        assert_eq!(
            (sibling.working_dir.as_str(), &sibling.entrypoint[..]),
            ("/x", &["/go".to_owned()][..])
        );
    }

    #[test]
    fn what_would_widen_a_sandbox_is_refused_by_name() {
        for line in [
            "--privileged",
            "--cap-add SYS_ADMIN",
            "--cap-add=ALL",
            "-v /:/host",
            "--volume /var/run/docker.sock:/var/run/docker.sock",
            "--mount type=bind,source=/,target=/h",
            "--device /dev/kvm",
            "--gpus all",
            "--network host",
            "--net=host",
            "--pid host",
            "--ipc host",
            "--uts host",
            "--userns host",
            "--cgroupns host",
            "--security-opt seccomp=unconfined",
            "--runtime runc",
            "--user root",
            "-u 0",
            "--group-add docker",
            "--sysctl a=b",
            "--ulimit nofile=1",
            "--tmpfs /x",
            "--publish 80:80",
            "-p 80:80",
            "-P",
            "--add-host a:1.2.3.4",
            "--restart always",
            "--oom-score-adj -1000",
            "--cgroup-parent /",
            "--label longshore.instance=x",
            "--log-driver none",
            "image",
        ] {
            let error = apply(line, &mut Sibling::default()).unwrap_err();
            let Refusal::Option(name, _) = &error else {
                panic!("{line}: {error}")
            };
            assert!(line.starts_with(name.as_str()), "{line}: {error}");
            assert!(error.to_string().contains("--health-cmd"), "{error}");
        }
        for line in [
            "--memory 1m",
            "--cpus -1",
            "--cpus nan",
            "--health-interval soon",
            "--health-retries",
            "--health-interval 5s",
            "--env A",
        ] {
            let error = apply(line, &mut Sibling::default()).unwrap_err();
            assert!(matches!(error, Refusal::Value(..)), "{line}: {error}");
        }
    }
}
