//! Colour where a person looks, and text from outside made harmless.

use std::io::IsTerminal;

/// Whether colour is used on one stream.
#[derive(Clone, Copy)]
pub(crate) struct Style(bool);

pub(crate) fn on_stdout() -> Style {
    Style(std::io::stdout().is_terminal() && wanted())
}

pub(crate) fn on_stderr() -> Style {
    Style(std::io::stderr().is_terminal() && wanted())
}

fn wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

impl Style {
    pub(crate) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Names and reasons come from GitHub and from jobs: no control character of
/// theirs reaches a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if is_harmful(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Control characters, and the marks that turn the reading direction.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_name_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(printable("\u{202e}gpj"), "\u{fffd}gpj");
        assert_eq!(printable("Bäume 木"), "Bäume 木");
    }
}
