//! Reads what the in-container probe printed.
//!
//! One line per property: `PASS|FAIL|NOT_GUARANTEED <row> <words>`; any other line is a remark.

use serde::{Deserialize, Serialize};

/// What a probe found about one property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The property holds.
    Passed,
    /// It does not hold.
    Failed,
    /// This host cannot give it, and says so.
    NotGuaranteed,
}

/// One property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Row of the property table.
    pub row: String,
    /// What was found.
    pub found: Found,
    /// The probe's words.
    pub text: String,
}

/// The properties in a probe's output.
pub fn read(output: &str) -> Vec<Probe> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.trim().splitn(3, char::is_whitespace);
            let found = match words.next()?.trim_end_matches(':') {
                "PASS" | "ok" => Found::Passed,
                "FAIL" => Found::Failed,
                "NOT_GUARANTEED" | "SKIP" => Found::NotGuaranteed,
                _ => return None,
            };
            Some(Probe {
                row: words.next()?.to_owned(),
                found,
                text: words.next().unwrap_or_default().trim().to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_is_told_from_the_others() {
        let probes = read(
            "starting\nPASS 1 non-root\nFAIL 16 /proc/sys is writable\nNOT_GUARANTEED 28 no quota\nPASSED all\n",
        );
        assert_eq!(
            probes
                .iter()
                .map(|p| (p.row.as_str(), p.found))
                .collect::<Vec<_>>(),
            [
                ("1", Found::Passed),
                ("16", Found::Failed),
                ("28", Found::NotGuaranteed)
            ]
        );
        assert_eq!(probes[1].text, "/proc/sys is writable");
    }
}
