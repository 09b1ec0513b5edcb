//! Where in a TOML file something is said, so that a problem can name its line.

/// The line, from 1, on which `key` of `section` is set; in `[[section]]` tables that of the table
/// number `index`. A key of `""` is the section's own header.
pub(super) fn of(text: &str, section: &str, index: Option<usize>, key: &str) -> Option<usize> {
    let mut inside = section.is_empty();
    let mut tables = 0;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = header(line) {
            inside = header.0 == section;
            if inside && header.1 {
                inside = index.is_none_or(|index| index == tables);
                tables += 1;
            }
            if inside && key.is_empty() {
                return Some(number + 1);
            }
            continue;
        }
        let Some((left, _)) = line.split_once('=') else {
            continue;
        };
        let left = bare(left);
        let dotted = left
            .strip_prefix(section)
            .and_then(|rest| rest.strip_prefix('.'));
        if (inside && left == key) || (!inside && dotted == Some(key)) {
            return Some(number + 1);
        }
    }
    None
}

/// The name of a table, and whether it is one of several.
fn header(line: &str) -> Option<(String, bool)> {
    let line = line.split('#').next().unwrap_or_default().trim();
    if let Some(name) = line
        .strip_prefix("[[")
        .and_then(|rest| rest.strip_suffix("]]"))
    {
        return Some((bare(name), true));
    }
    let name = line.strip_prefix('[')?.strip_suffix(']')?;
    // A list that goes on over several lines has no key before it.
    (!name.contains([',', '"']) || name.contains('.')).then(|| (bare(name), false))
}

fn bare(key: &str) -> String {
    key.trim().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::of;

    const TEXT: &str = "# first\n[scheduler]\ninterval = 10\n\n[[pools]]\nname = \"a\"\n[[pools]] # b\nname = \"b\"\n\
                        cpus = 3\n[shares]\n\"acme/web\" = 2\n";

    #[test]
    fn a_key_is_found_in_its_own_section() {
        assert_eq!(of(TEXT, "scheduler", None, "interval"), Some(3));
        assert_eq!(of(TEXT, "scheduler", None, ""), Some(2));
        assert_eq!(of(TEXT, "scheduler", None, "cpus"), None);
        assert_eq!(of(TEXT, "pools", Some(1), "cpus"), Some(9));
        assert_eq!(of(TEXT, "pools", Some(0), "cpus"), None);
        assert_eq!(of(TEXT, "pools", Some(1), "name"), Some(8));
        assert_eq!(of(TEXT, "shares", None, "acme/web"), Some(11));
    }

    #[test]
    fn a_key_may_stand_without_a_section_or_with_a_dot() {
        assert_eq!(of("a = 1\nnode = 2\n", "", None, "node"), Some(2));
        assert_eq!(
            of(
                "x = 1\nscheduler.interval = 2\n",
                "scheduler",
                None,
                "interval"
            ),
            Some(2)
        );
        assert_eq!(of("list = [\n[1, 2]\n]\nb = 1\n", "", None, "b"), Some(4));
    }
}
