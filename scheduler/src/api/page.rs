//! Pages of lists kept in memory, by the name of the last entry.

use tonic::Status;

use super::errors;

/// Entries of a page when the caller does not say.
const DEFAULT: u32 = 100;
/// Entries of a page, at most.
const MOST: u32 = 1_000;

/// Size of a page from what was asked.
pub fn size(asked: u32) -> usize {
    (if asked == 0 { DEFAULT } else { asked.min(MOST) }) as usize
}

/// The page after `token` of entries in the order of their names.
///
/// Returns the entries and the next token, empty on the last page.
pub fn cut<T>(
    entries: impl Iterator<Item = T>,
    name: impl Fn(&T) -> String,
    page_size: u32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let after = match token {
        "" => None,
        token => Some(
            token
                .strip_prefix("after:")
                .ok_or_else(errors::bad_page_token)?,
        ),
    };
    let size = size(page_size);
    let mut page: Vec<T> = entries
        .filter(|entry| after.is_none_or(|after| name(entry).as_str() > after))
        .take(size + 1)
        .collect();
    if page.len() <= size {
        return Ok((page, String::new()));
    }
    page.truncate(size);
    let next = page.last().map(|last| format!("after:{}", name(last)));
    Ok((page, next.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_to_the_whole_list() {
        let all: Vec<String> = (0..25).map(|n| format!("n{n:02}")).collect();
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let (page, next) = cut(all.iter(), |n| (*n).clone(), 10, &token).expect("a page");
            assert!(page.len() <= 10);
            seen.extend(page.into_iter().cloned());
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_foreign_token_is_refused_and_sizes_are_bounded() {
        let none = std::iter::empty::<String>();
        assert!(cut(none, String::clone, 0, "nonsense").is_err());
        assert_eq!((size(0), size(5), size(1_000_000)), (100, 5, 1_000));
    }
}
