//! Every secret of a fleet is searched for wherever it could have been left: in the middle of a job, after
//! it, and after the credentials were refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_e2e::fleet::{STOP_WITHIN, Scheduler, SchedulerSettings, secret_file};
use longshore_e2e::wait;

use crate::otlp::Receiver;
use crate::rig::{Rig, SOON, Settings, WEBHOOK_SECRET, job, native};

/// Shorter words are no secrets.
const LEAST: usize = 16;
/// What GitHub's tokens begin with: those that an App was given are known to nobody here.
const TOKENS: [&str; 3] = ["ghs_", "ghp_", "github_pat_"];
/// Folders whose files hold secrets by design, each readable by its owner only.
const KEPT: [&str; 2] = ["secrets", "identity"];

/// A secret and what it is called in messages.
struct Needle {
    name: String,
    text: String,
}

fn needle(name: impl Into<String>, text: &str) -> Needle {
    let text = text.trim().to_owned();
    assert!(text.len() >= LEAST, "too short to be told from other words");
    let name = name.into();
    Needle { name, text }
}

/// Files below a folder; those with secrets by design, or the others.
fn files(folder: &Path, kept: bool, found: &mut Vec<PathBuf>) {
    // Programs make and remove files meanwhile.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let Ok(of) = entry.metadata() else {
            continue;
        };
        // What an agent joins with lies beside its state.
        let secret = KEPT.contains(&name.as_str()) || name.ends_with(".join-token");
        if of.is_dir() {
            match (secret, kept) {
                (true, true) => files(&path, false, found),
                (true, false) => {}
                (false, _) => files(&path, kept, found),
            }
        } else if of.is_file() && secret == kept && !name.ends_with(".ext4") {
            // A loop device's file is a work folder: the job's own, and mostly holes.
            found.push(path);
        }
    }
}

/// Whatever lies in the folders of secrets: also what later versions put there.
fn kept_secrets(folder: &Path) -> Vec<Needle> {
    let mut found = Vec::new();
    files(folder, true, &mut found);
    let mut needles = Vec::new();
    for path in found {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        // A certificate is public; a key's own words are its lines.
        if text.contains("BEGIN CERTIFICATE") || path.ends_with("identity.json") {
            continue;
        }
        let name = path.display().to_string();
        let lines = text
            .lines()
            .filter(|line| line.len() >= LEAST && !line.starts_with("-----"));
        needles.extend(lines.take(3).map(|line| needle(name.clone(), line)));
    }
    needles
}

/// Texts in which nothing may be found, by their place.
type Places = Vec<(String, Vec<u8>)>;

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len())
        .any(|window| window == word.as_bytes())
}

/// A token of GitHub's form that nobody blotted out.
fn token_in(text: &[u8]) -> bool {
    TOKENS.iter().any(|begin| {
        let begins = text.windows(begin.len()).enumerate();
        begins
            .filter(|(_, window)| *window == begin.as_bytes())
            .any(|(at, _)| {
                let rest = &text[at + begin.len()..];
                rest.iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric())
                    .count()
                    >= LEAST
            })
    })
}

fn found(places: &Places, needles: &[Needle]) -> Vec<String> {
    let mut all = Vec::new();
    for (place, text) in places {
        for needle in needles.iter().filter(|needle| contains(text, &needle.text)) {
            all.push(format!("{} in {place}", needle.name));
        }
        if token_in(text) {
            all.push(format!("a token of GitHub's in {place}"));
        }
    }
    all
}

/// Arguments and environment of every process of this host but this one.
fn processes() -> Places {
    let mut places = Places::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let own = entry.file_name().to_string_lossy() == std::process::id().to_string();
        for file in ["cmdline", "environ"] {
            let path = entry.path().join(file);
            if let (false, Ok(text)) = (own, fs::read(&path)) {
                places.push((path.display().to_string(), text));
            }
        }
    }
    places
}

fn output(program: &str, words: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    [output.stdout, output.stderr].concat()
}

/// All that this fleet says and writes, at this moment.
async fn places(rig: &Rig, receiver: &Receiver, runner: Option<&str>, jobs: &[u64]) -> Places {
    let mut places = Places::new();
    let mut written = Vec::new();
    files(rig.folder(), false, &mut written);
    let names: Vec<String> = written
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    for name in ["longshore.db", "longshore.db-wal", "scheduler.log"] {
        assert!(
            names.iter().any(|path| path.ends_with(name)),
            "{name} is not among {names:?}"
        );
    }
    for path in written {
        // The simulator is GitHub: what it says to itself is not ours.
        if path.ends_with("github-sim.log") || path == rig.scheduler.token_file {
            continue;
        }
        if let Ok(text) = fs::read(&path) {
            places.push((path.display().to_string(), text));
        }
    }
    places.extend(processes());
    let (spans, text) = receiver.text();
    places.push((format!("{spans} spans"), text.into_bytes()));
    let mut questions: Vec<Vec<String>> = [
        "runner status",
        "runner list-containers",
        "runner list-workflows",
        "job list",
        "node list",
        "pool list",
    ]
    .map(|words| words.split(' ').map(str::to_owned).collect())
    .to_vec();
    let one = |noun: &str, name: &str| {
        ["".to_owned() + noun, "describe".to_owned(), name.to_owned()].to_vec()
    };
    questions.extend(jobs.iter().map(|id| one("job", &id.to_string())));
    questions.extend(rig.node_names().iter().map(|name| one("node", name)));
    for question in questions {
        let mut words: Vec<&str> = question.iter().map(String::as_str).collect();
        words.extend(["-o", "json"]);
        let answer = rig.cli(&words).await;
        let text = [answer.stdout, answer.stderr].concat();
        assert!(text.len() > 2, "{words:?} has no answer");
        places.push((words.join(" "), text));
    }
    let token = fs::read_to_string(&rig.scheduler.token_file).expect("a token");
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let url = format!("{}/metrics", rig.scheduler.api_url());
    let metrics = output("curl", &["-fsS", "--max-time", "30", "-H", &bearer, &url]);
    assert!(contains(&metrics, "longshore_jobs"), "no metrics");
    places.push(("/metrics".to_owned(), metrics));
    if let Some(runner) = runner {
        for words in [
            vec!["inspect", runner],
            vec!["logs", runner],
            vec!["top", runner, "-eo", "pid,args"],
        ] {
            let text = output("docker", &words);
            assert!(
                !text.is_empty() || words[0] == "logs",
                "{words:?} says nothing"
            );
            places.push((format!("docker {}", words.join(" ")), text));
        }
    }
    places
}

/// A scheduler beside the first whose token GitHub refuses, until it says so.
async fn refused_by_github(rig: &Rig, token: &str) {
    let folder = rig.folder().join("refused");
    let token_file = folder.join("secrets/token");
    secret_file(&token_file, token).unwrap();
    let settings = SchedulerSettings {
        state: folder.join("state"),
        github_url: Some(rig.sim.url().to_owned()),
        token_file: Some(token_file),
        owners: vec!["acme".to_owned()],
        more: vec!["--log".to_owned(), "debug".to_owned()],
        ..SchedulerSettings::default()
    };
    let mut refused = Scheduler::start(&rig.binaries, &folder, &settings)
        .await
        .unwrap();
    wait::until("what GitHub refused to be told", SOON, || async {
        let words = ["runner", "status", "-o", "json"];
        let answer = refused.cli(&rig.binaries, &words).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        match text.contains("Bad credentials") || text.contains("401") {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await
    .unwrap();
    let ended = refused.process.terminate(STOP_WITHIN).await.unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn no_secret_is_found_where_it_does_not_belong() {
    let receiver = Receiver::default();
    let mut rig = Rig::start(Settings {
        otlp: Some(receiver.start().await),
        app: true,
        // Everything that there is to say is said.
        scheduler: vec!["--log", "debug"],
        agent_env: vec![("LONGSHORE_LOG".to_owned(), "debug".to_owned())],
        ..Settings::default()
    })
    .await;
    let mut needles = vec![needle("the webhook secret", WEBHOOK_SECRET)];
    needles.extend(kept_secrets(rig.folder()));
    let bearer = fs::read_to_string(&rig.scheduler.token_file).expect("a token");
    needles.push(needle("the bearer token of this host", &bearer));
    for name in [
        "secrets/token",
        "secrets/app-key",
        "secrets/webhook",
        "secrets/ca.key",
        "identity/node.key",
        ".join-token",
    ] {
        assert!(
            needles.iter().any(|needle| needle.name.ends_with(name)),
            "{name} is not looked for"
        );
    }

    let wait_for_go = "while [ ! -e /home/runner/_work/go ]; do sleep 0.1; done";
    let pushed = rig
        .push("acme/web", vec![job("first", &native(), &[wait_for_go])])
        .await;
    let running = rig.job_is(pushed.jobs[0], "in_progress").await;
    let runner = running["runner_name"]
        .as_str()
        .expect("a runner")
        .to_owned();
    // The registration as the sandbox has it: nobody else does.
    let inside = output(
        "docker",
        &["exec", &runner, "cat", "/home/runner/.credentials"],
    );
    let inside = String::from_utf8_lossy(&inside).into_owned();
    let words = inside
        .split('"')
        .filter(|word| word.len() >= LEAST && !word.contains("://"));
    let registration: Vec<Needle> = words.map(|word| needle("the registration", word)).collect();
    assert!(!registration.is_empty(), "{inside}");
    needles.extend(registration);

    let in_the_middle = places(&rig, &receiver, Some(&runner), &pushed.jobs).await;
    assert_eq!(
        found(&in_the_middle, &needles),
        Vec::<String>::new(),
        "in the middle of a job"
    );

    let _ = output(
        "docker",
        &["exec", &runner, "touch", "/home/runner/_work/go"],
    );
    rig.all_end(&pushed.jobs, "success", SOON).await;
    rig.known_end(pushed.jobs[0]).await;
    // A delivery that nobody signed rightly, and a token that GitHub does not know: both are told.
    let refused = output(
        "curl",
        &[
            "-sS",
            "--max-time",
            "30",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            "X-GitHub-Event: ping",
            "-H",
            "X-Hub-Signature-256: sha256=00",
            "-d",
            "{}",
            &rig.scheduler.webhook_url(),
        ],
    );
    assert!(
        contains(&refused, "40"),
        "{}",
        String::from_utf8_lossy(&refused)
    );
    let wrong = format!("ghp_{}", "Canary7".repeat(6));
    needles.push(needle("the token that GitHub refuses", &wrong));
    refused_by_github(&rig, &wrong).await;

    wait::until("spans of the job", SOON, || async {
        match receiver.text().0 {
            0 => Err("none came".to_owned()),
            _ => Ok(()),
        }
    })
    .await
    .unwrap();
    let mut after = places(&rig, &receiver, None, &pushed.jobs).await;
    assert_eq!(
        found(&after, &needles),
        Vec::<String>::new(),
        "after the job"
    );

    // The search itself works: each needle is found where it is planted.
    for needle in &needles {
        after.push((
            "planted".to_owned(),
            format!("x{}y", needle.text).into_bytes(),
        ));
        let seen = found(&after, &needles);
        assert!(
            seen.contains(&format!("{} in planted", needle.name)),
            "{}: {seen:?}",
            needle.name
        );
        after.pop();
    }
    after.push(("planted".to_owned(), b"ghs_0123456789abcdefghij".to_vec()));
    assert_eq!(found(&after, &needles), ["a token of GitHub's in planted"]);
    let planted = "planted-in-an-environment";
    let mut sleeper = Command::new("sleep")
        .arg("90")
        .env("LEFT", planted)
        .spawn()
        .unwrap();
    let seen = found(&processes(), &[needle("planted", planted)]).join(" ");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(seen.contains("/environ"), "{seen}");
    rig.finish().await;
}
