//! Tokens: found where they are, shown once, and the audit log told to people and programs.

use std::os::unix::fs::PermissionsExt;

use crate::fake::Fake;
use crate::program::{command, finish, run};
use crate::world::{Call, FIXED, harbour};

/// The token that a run with these arguments shows to the scheduler.
fn shown(fake: &Fake, args: &[&str], env: &[(&str, &str)]) -> String {
    let args = [args, &["whoami", "-o", "json"]].concat();
    let mut command = command(&fake.url, &args);
    for (name, value) in env {
        command.env(name, value);
    }
    let answer = finish(command).json();
    answer["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_token_is_taken_from_the_file_that_is_named_else_from_this_hosts() {
    let fake = Fake::start(harbour(FIXED));
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (flag, env) = (write("flag", "lst_flag\n"), write("env", "lst_env"));
    write("local-token", "lst_local\n");
    let home = dir.path().display().to_string();
    let home = ("LONGSHORE_HOME", home.as_str());
    let named = ("LONGSHORE_TOKEN_FILE", env.as_str());
    assert_eq!(shown(&fake, &[], &[home]), "Bearer lst_local");
    assert_eq!(shown(&fake, &[], &[home, named]), "Bearer lst_env");
    let by_flag = shown(&fake, &["--token-file", &flag], &[home, named]);
    assert_eq!(by_flag, "Bearer lst_flag");
    // One that was named and is not there is not replaced by another.
    let missing = dir.path().join("missing").display().to_string();
    let ended = run(&fake.url, &["--token-file", &missing, "whoami"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    let empty = write("empty", "\n");
    let ended = run(&fake.url, &["--token-file", &empty, "whoami"]);
    assert!(ended.stderr.contains("it is empty"), "{}", ended.stderr);
}

#[test]
fn a_token_is_not_sent_to_another_host_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "lst_named").unwrap();
    let file = file.display().to_string();
    // Refused before anything is sent.
    let ended = run("http://192.0.2.1:9000", &["--token-file", &file, "whoami"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("in clear"), "{}", ended.stderr);
}

#[test]
fn a_token_is_shown_once_or_written_to_a_new_file() {
    let fake = Fake::start(harbour(FIXED));
    let make = [
        "token", "create", "ci", "--role", "viewer", "--scope", "acme",
    ];
    let made = run(&fake.url, &[&make[..], &["-o", "json"]].concat()).json();
    assert_eq!(made["token"], "lst_made");
    assert_eq!(made["name"], "ci");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let to = file.display().to_string();
    let into = [&make[..], &["--ttl", "2h", "--to", &to]].concat();
    let text = run(&fake.url, &into).good();
    assert!(!text.contains("lst_made"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "lst_made\n");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let calls = fake.calls();
    let [Call::Token(first), Call::Token(second)] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!(
        (first.role.as_str(), first.scope.as_str()),
        ("viewer", "acme")
    );
    assert_eq!(second.ttl.as_ref().map(|ttl| ttl.seconds), Some(7_200));
    // A file that is there is somebody's: nothing is made for it.
    let ended = run(&fake.url, &into);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(fake.calls().is_empty());
    let list = run(&fake.url, &["token", "list", "-o", "name"]).good();
    assert_eq!(list, "ci\n");
    let revoked = run(&fake.url, &["token", "revoke", "ci", "-o", "json"]).json();
    assert_eq!(revoked["state"], "revoked");
}

#[test]
fn the_audit_log_is_listed_and_a_broken_one_fails() {
    let fake = Fake::start(harbour(FIXED));
    let list = run(&fake.url, &["audit", "list", "--outcome", "denied"]).good();
    assert!(
        list.contains("FleetService/StopRunner") && list.contains("denied"),
        "{list}"
    );
    let whole = run(&fake.url, &["audit", "verify", "-o", "json"]).json();
    assert_eq!(whole["whole"], true);
    let noted = format!("4:{}", "cd".repeat(32));
    let ended = run(&fake.url, &["audit", "verify", "--expect", &noted]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("entry 4 is missing"),
        "{}",
        ended.stderr
    );
    let ended = run(&fake.url, &["audit", "verify", "--expect", "4:short"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}
