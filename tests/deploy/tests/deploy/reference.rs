//! The tables of docs/configuration.md are those of the programs. BLESS=1 writes them.

use longshore_agent::config as agent;
use longshore_scheduler::config::keys;

use super::ground::{root, text};

const PAGE: &str = "docs/configuration.md";
const END: &str = "<!-- end of reference -->";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn code(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!("`{}`", cell(text)),
    }
}

fn in_force(reloaded: bool) -> &'static str {
    if reloaded { "at reload" } else { "at restart" }
}

fn of_the_scheduler() -> String {
    let mut table =
        "| Key | Flag | Default | In force | Meaning |\n|---|---|---|---|---|\n".to_owned();
    for key in keys::KEYS {
        let often = if key.list { " (repeatable)" } else { "" };
        table += &format!(
            "| `{}` | `--{}`{often} | {} | {} | {} |\n",
            key.path,
            key.flag,
            code(key.default.unwrap_or_default()),
            in_force(keys::is_reloaded(key.path)),
            cell(key.help)
        );
    }
    table
}

fn of_the_agent() -> String {
    let mut table = "| Key | Default | In force | Meaning |\n|---|---|---|---|\n".to_owned();
    for (key, default, help) in agent::KEYS {
        table += &format!(
            "| `{key}` | {} | {} | {} |\n",
            code(default),
            in_force(agent::RELOADED.contains(&key)),
            cell(help)
        );
    }
    table
}

/// The page with one program's table between its marks.
fn with(page: &str, program: &str, table: &str) -> String {
    let begin = format!("<!-- reference of {program}:");
    let at = page.find(&begin).expect("the mark where it begins");
    let from = at + page[at..].find('\n').expect("a line") + 1;
    let to = from + page[from..].find(END).expect("the mark where it ends");
    format!("{}{table}{}", &page[..from], &page[to..])
}

#[test]
fn the_reference_of_settings_is_that_of_the_programs() {
    let page = text(PAGE);
    let wanted = with(&page, "longshore-scheduler", &of_the_scheduler());
    let wanted = with(&wanted, "longshore-agent", &of_the_agent());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(root().join(PAGE), &wanted).expect("written");
        return;
    }
    let differs = page
        .lines()
        .zip(wanted.lines())
        .find(|(page, wanted)| page != wanted);
    assert_eq!(
        differs, None,
        "{PAGE} is not what the programs have: BLESS=1 cargo test --workspace --test deploy -- reference"
    );
    assert_eq!(page, wanted);
}

#[test]
fn every_key_of_a_pool_and_of_a_share_is_explained() {
    let page = text(PAGE);
    for key in keys::POOL_KEYS.iter().chain(keys::SHARE_KEYS) {
        let told = page.contains(&format!("`{key}`")) || page.contains(&format!("{key} = "));
        assert!(told, "{PAGE} does not mention {key}");
    }
}

/// A table that lacks a key or says another default is found.
#[test]
fn a_page_that_lags_behind_is_found() {
    let page = format!("a\n<!-- reference of x: y -->\nold\n{END}\nb\n");
    assert_eq!(
        with(&page, "x", "new\n"),
        format!("a\n<!-- reference of x: y -->\nnew\n{END}\nb\n")
    );
}
