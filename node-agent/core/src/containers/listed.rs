//! Images of this node that jobs may make containers from, by the operator's list.
//!
//! What a job names and anybody can pull is no secret of the node. What is only here may be:
//! an image that its owner built, or pulled with credentials of theirs.

/// Most entries that are taken.
const MOST: usize = 256;

/// Patterns of names, with `*` for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed(Vec<String>);

impl Listed {
    /// From patterns with commas between them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
        let list: Vec<String> = words.map(str::to_owned).collect();
        if list.len() > MOST {
            return Err(format!("more than {MOST} entries"));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.:/@*".contains(c);
        match list.iter().find(|word| !word.chars().all(good)) {
            Some(wrong) => Err(format!(
                "{wrong:?} is not an image's name, with * for anything"
            )),
            None => Ok(Self(list)),
        }
    }

    pub fn has(&self, image: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, image))
    }
}

fn matches(pattern: &str, image: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == image;
    };
    let Some(mut left) = image.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_whole_name() {
        let listed = Listed::parse("postgres:16, company/ci-*:*, *:test").unwrap();
        for (image, is) in [
            ("postgres:16", true),
            ("postgres:160", false),
            ("postgres", false),
            ("company/ci-base:1", true),
            ("company/ci-base", false),
            ("evil/company/ci-base:1", false),
            ("anything:test", true),
            ("anything:test2", false),
        ] {
            assert_eq!(listed.has(image), is, "{image}");
        }
        assert!(Listed::parse("*").unwrap().has("x"));
        assert!(!Listed::parse("").unwrap().has("x"));
        assert!(Listed::parse("a b").is_err());
        assert!(Listed::parse(&"x,".repeat(MOST + 1)).is_err());
    }
}
