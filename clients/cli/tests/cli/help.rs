//! The help texts are the reference of the commands.

use crate::program::{golden, run};

#[test]
fn every_command_explains_itself() {
    let mut all = String::new();
    for command in [
        "",
        "up",
        "down",
        "runner",
        "runner start",
        "runner stop",
        "runner status",
        "runner list-workflows",
        "runner list-containers",
        "runner provision",
        "runner stop-container",
        "runner logs",
        "node",
        "node list",
        "node describe",
        "node check",
        "node cordon",
        "node uncordon",
        "node drain",
        "node remove",
        "node join-token",
        "job",
        "job list",
        "job describe",
        "explain",
        "pool",
        "pool list",
        "pool set",
        "pool delete",
        "share",
        "share set",
        "token",
        "token create",
        "token list",
        "token revoke",
        "audit",
        "audit list",
        "audit verify",
        "whoami",
    ] {
        let mut args: Vec<_> = command.split(' ').filter(|a| !a.is_empty()).collect();
        args.push("-h");
        let text = run("http://127.0.0.1:9000", &args).good();
        all.push_str(&format!("$ longshore {}\n{text}\n", args.join(" ")));
    }
    golden("help.txt", &all);
}

#[test]
fn every_command_is_in_the_help_test() {
    // A command that is added must be added above: the golden text then shows it.
    let help = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/golden/help.txt");
    let help = std::fs::read_to_string(help).unwrap();
    for group in ["", "runner ", "node ", "job ", "pool ", "share "] {
        let head = format!("$ longshore {group}-h\n");
        let section = help.split(&head).nth(1).unwrap();
        let section = section.split("\n$ longshore").next().unwrap();
        let commands = section.split("Commands:\n").nth(1).unwrap();
        for line in commands.lines().take_while(|l| !l.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            assert!(
                help.contains(&format!("$ longshore {group}{name} -h\n")),
                "{group}{name} is not tested"
            );
        }
    }
}

#[test]
fn the_version_is_data() {
    let text = run("", &["--version"]).good();
    assert_eq!(text, format!("longshore {}\n", env!("CARGO_PKG_VERSION")));
}
