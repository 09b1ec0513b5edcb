//! The join script on a folder that stands for a host, with a systemctl that notes what it is asked.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::ground::{root, said};

const TOKEN: &str = "ls-join-canary-5f1b2c";

/// Notes its arguments; what it starts "joins" as soon as a token is there.
const SYSTEMCTL: &str = r#"#!/bin/bash
echo "$*" >>"$CALLS"
case $1 in
  is-enabled) [[ -e $STATE/enabled ]] ;;
  is-active) [[ -e $STATE/active ]] ;;
  enable) touch "$STATE/enabled" ;;
  restart)
    touch "$STATE/active"
    if [[ -s $LONGSHORE_JOIN_ROOT/etc/credstore/longshore.join-token ]]; then
      mkdir -p "$LONGSHORE_JOIN_ROOT/var/lib/longshore-agent/identity"
      echo '{}' >"$LONGSHORE_JOIN_ROOT/var/lib/longshore-agent/identity/identity.json"
    fi ;;
esac
"#;

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        for folder in ["host", "tools", "programs", "state"] {
            fs::create_dir(host.path(folder)).expect("made");
        }
        host.program("tools/systemctl", SYSTEMCTL);
        host.program("programs/longshore-agent", "#!/bin/true\n");
        host.program("programs/longshore-egress", "#!/bin/true\n");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path(name), mode).expect("set");
    }

    fn join(&self, words: &[&str], token: &str) -> Output {
        let tools = self.path("tools").display().to_string();
        let mut command = Command::new(root().join("deploy/join"));
        command
            .env("PATH", format!("{tools}:/usr/sbin:/usr/bin:/sbin:/bin"))
            .env("LONGSHORE_JOIN_ROOT", self.path("host"))
            .env("LONGSHORE_JOIN_WAIT", "2")
            .env("CALLS", self.path("calls"))
            .env("STATE", self.path("state"))
            .args(["--programs", &self.path("programs").display().to_string()])
            .args(["--scheduler", "https://scheduler.example.org:9001"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A script that refuses its arguments reads nothing.
        let _ = std::io::Write::write_all(&mut stdin, token.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("ends")
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path("host").join(path)).unwrap_or_default()
    }

    /// Every file below the host's root, and what was asked of systemd.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.path("host"), &mut found);
        found.sort();
        found
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

#[test]
fn a_dry_run_says_everything_and_changes_nothing() {
    let host = Host::new();
    let output = host.join(&["--dry-run", "--node", "box1"], TOKEN);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for what in [
        "install /usr/bin/longshore-agent",
        "install /usr/bin/longshore-egress",
        "install /etc/systemd/system/longshore-agent.service",
        "/etc/longshore/agent.toml (scheduler https://scheduler.example.org:9001, node box1",
        "/etc/credstore/longshore.join-token",
        "start longshore-agent and longshore-egress at boot",
        "nothing was changed",
    ] {
        assert!(text.contains(what), "{what} is not told: {text}");
    }
    assert!(host.files().is_empty(), "{:?}", host.files());
    assert!(!host.calls().contains("enable --") && !host.calls().contains("restart"));
    assert!(!text.contains(TOKEN));
}

#[test]
fn a_host_joins_by_one_command_and_a_second_time_there_is_nothing_to_do() {
    let host = Host::new();
    let first = host.join(&["--node", "box1"], &format!("{TOKEN}\n"));
    assert!(first.status.success(), "{}", said(&first));
    assert!(said(&first).contains("joined"));
    assert_eq!(
        host.text("etc/longshore/agent.toml"),
        "# written by join: the scheduler and the name of this node\n\
         scheduler = \"https://scheduler.example.org:9001\"\nnode = \"box1\"\n"
    );
    let mode = |path: &str| {
        let found = fs::metadata(host.path("host").join(path)).expect(path);
        found.permissions().mode() & 0o777
    };
    assert_eq!(mode("usr/bin/longshore-agent"), 0o755);
    assert_eq!(mode("etc/systemd/system/longshore-agent.service"), 0o644);
    // The token served once: nothing holds it now, and nobody was told it.
    for file in host.files() {
        let text = fs::read(&file).expect("readable");
        assert!(
            !String::from_utf8_lossy(&text).contains(TOKEN),
            "{}",
            file.display()
        );
    }
    assert!(!said(&first).contains(TOKEN) && !host.calls().contains(TOKEN));
    assert!(
        host.calls()
            .contains("enable --quiet longshore-egress longshore-agent")
    );
    assert!(
        host.calls()
            .contains("restart longshore-egress longshore-agent")
    );

    fs::remove_file(host.path("calls")).expect("removed");
    let before = host.files();
    let second = host.join(&["--node", "box1"], "");
    assert!(said(&second).contains("nothing to do"), "{}", said(&second));
    assert_eq!(host.files(), before);
    assert!(!host.calls().contains("restart"), "{}", host.calls());
}

#[test]
fn a_new_program_or_scheduler_is_all_that_changes() {
    let host = Host::new();
    assert!(host.join(&[], TOKEN).status.success());
    let own = host.text("etc/longshore/agent.toml") + "max_runners = 3\n\n[standby]\nfloor = 2\n";
    fs::write(host.path("host/etc/longshore/agent.toml"), &own).expect("written");
    host.program("programs/longshore-agent", "#!/bin/false\n");
    let text = said(&host.join(&["--scheduler", "https://second:9001"], ""));
    assert!(
        text.contains("replace /usr/bin/longshore-agent (it differs)"),
        "{text}"
    );
    assert!(!text.contains("longshore-egress (it differs)"), "{text}");
    let settings = host.text("etc/longshore/agent.toml");
    assert!(
        settings.contains(
            "scheduler = [\"https://scheduler.example.org:9001\", \"https://second:9001\"]"
        ),
        "{settings}"
    );
    // What a person wrote stays, and is read as before.
    let table: toml::Table = settings.parse().expect("TOML");
    assert_eq!(table["max_runners"].as_integer(), Some(3));
    assert_eq!(table["standby"]["floor"].as_integer(), Some(2));
}

#[test]
fn the_agent_is_root_only_when_asked() {
    let host = Host::new();
    let drop_in = "etc/systemd/system/longshore-agent.service.d/root.conf";
    assert!(host.join(&["--as-root"], TOKEN).status.success());
    assert!(host.text(drop_in).contains("User=root"));
    let text = said(&host.join(&[], ""));
    assert!(
        text.contains("remove /etc/systemd/system/longshore-agent.service.d/root.conf"),
        "{text}"
    );
    assert!(host.text(drop_in).is_empty());
}

#[test]
fn what_cannot_work_is_said_before_anything_is_changed() {
    let host = Host::new();
    for (words, token, says) in [
        (&["--token", "x"][..], "", "is seen by everybody"),
        (&["--node", "Bad Name"][..], TOKEN, "is not a node name"),
        (
            &["--scheduler", "scheduler:9001"][..],
            TOKEN,
            "is not a URL",
        ),
        (
            &["--programs", "/nowhere"][..],
            TOKEN,
            "has no longshore-agent",
        ),
        (
            &["--token-file", "/nowhere"][..],
            TOKEN,
            "cannot read the token",
        ),
        (&[][..], "", "no token came"),
    ] {
        let output = host.join(words, token);
        let text = said(&output);
        assert!(
            !output.status.success() && text.contains(says),
            "{words:?}: {text}"
        );
    }
    assert!(host.files().is_empty(), "{:?}", host.files());
}

#[test]
fn a_node_that_does_not_come_up_says_where_to_look_and_keeps_its_token() {
    let host = Host::new();
    host.program("tools/systemctl", "#!/bin/bash\n[[ $1 != is-* ]]\n");
    let output = host.join(&[], TOKEN);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("journalctl -u longshore-agent"), "{text}");
    let kept = host.path("host/etc/credstore/longshore.join-token");
    assert_eq!(
        fs::metadata(&kept).expect("kept").permissions().mode() & 0o777,
        0o600
    );
}
