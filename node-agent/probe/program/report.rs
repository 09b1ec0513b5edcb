//! What was found, one line or one JSON object per check.

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    Pass,
    NotGuaranteed,
    Fail,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::NotGuaranteed => "NOT_GUARANTEED",
            Self::Fail => "FAIL",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) state: State,
    /// Row of the isolation table in docs/security.md.
    pub(crate) row: u32,
    pub(crate) name: &'static str,
    pub(crate) detail: String,
}

/// Collects checks. A property that is not claimed for this sandbox cannot fail.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) checks: Vec<Check>,
    pub(crate) unclaimed: Vec<String>,
}

impl Report {
    pub(crate) fn say(&mut self, state: State, row: u32, name: &'static str, detail: String) {
        let unclaimed = self.unclaimed.iter().any(|other| other == name);
        let state = match state {
            State::Fail if unclaimed => State::NotGuaranteed,
            other => other,
        };
        // One line each, whatever a file of the sandbox holds.
        let detail = detail
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(400)
            .collect();
        self.checks.push(Check {
            state,
            row,
            name,
            detail,
        });
    }

    pub(crate) fn pass(&mut self, row: u32, name: &'static str, detail: impl Into<String>) {
        self.say(State::Pass, row, name, detail.into());
    }

    pub(crate) fn fail(&mut self, row: u32, name: &'static str, detail: impl Into<String>) {
        self.say(State::Fail, row, name, detail.into());
    }

    /// Neither proven nor broken.
    pub(crate) fn open(&mut self, row: u32, name: &'static str, detail: impl Into<String>) {
        self.say(State::NotGuaranteed, row, name, detail.into());
    }

    /// Passes with one text and fails with another.
    pub(crate) fn hold(
        &mut self,
        good: bool,
        row: u32,
        name: &'static str,
        passed: impl Into<String>,
        failed: impl Into<String>,
    ) {
        if good {
            self.pass(row, name, passed);
        } else {
            self.fail(row, name, failed);
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.state == State::Fail)
    }

    pub(crate) fn lines(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            text.push_str(&format!(
                "{} {} {} {}\n",
                check.state.word(),
                check.row,
                check.name,
                check.detail
            ));
        }
        text
    }

    pub(crate) fn json(&self, runtime: &str, profile: &str, network: &str) -> String {
        let checks: Vec<String> = self
            .checks
            .iter()
            .map(|check| {
                format!(
                    "{{\"state\":\"{}\",\"row\":{},\"name\":\"{}\",\"detail\":{}}}",
                    check.state.word(),
                    check.row,
                    check.name,
                    quoted(&check.detail)
                )
            })
            .collect();
        format!(
            "{{\"runtime\":{},\"profile\":{},\"network\":{},\"failed\":{},\"checks\":[{}]}}\n",
            quoted(runtime),
            quoted(profile),
            quoted(network),
            self.failed(),
            checks.join(",")
        )
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_claimed_cannot_fail() {
        let mut report = Report {
            unclaimed: vec!["seccomp".into()],
            ..Report::default()
        };
        report.fail(4, "seccomp", "off");
        assert!(!report.failed());
        report.fail(5, "read_only_rootfs", "writable");
        assert!(report.failed());
        assert_eq!(
            report.lines(),
            "NOT_GUARANTEED 4 seccomp off\nFAIL 5 read_only_rootfs writable\n"
        );
    }

    #[test]
    fn a_line_stays_one_line_and_json_is_json() {
        let mut report = Report::default();
        report.pass(1, "non_root", "a\nFAIL 2 \"x\\");
        assert_eq!(report.lines(), "PASS 1 non_root a FAIL 2 \"x\\\n");
        assert_eq!(
            report.json("runc", "strict", "open"),
            "{\"runtime\":\"runc\",\"profile\":\"strict\",\"network\":\"open\",\"failed\":false,\"checks\":[{\"state\":\"PASS\",\"row\":1,\"name\":\"non_root\",\"detail\":\"a FAIL 2 \\\"x\\\\\"}]}\n"
        );
    }
}
