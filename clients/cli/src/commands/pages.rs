//! Collecting the pages of a list, with a bound.

use longshore_client::{Error, MAX_PAGE};

/// Most items one command collects.
const MOST: usize = 100_000;

/// All items, at most `limit`; and whether there were more.
pub(super) async fn collect<T>(
    limit: Option<u32>,
    page: impl AsyncFn(u32, String) -> Result<(Vec<T>, String), Error>,
) -> Result<(Vec<T>, bool), Error> {
    let limit = limit.map_or(MOST, |n| n as usize).min(MOST);
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let size = (limit - all.len()).min(MAX_PAGE as usize) as u32;
        let (items, next) = page(size, token.clone()).await?;
        all.extend(items);
        let more = !next.is_empty() && next != token;
        if all.len() >= limit {
            let cut = more || all.len() > limit;
            all.truncate(limit);
            return Ok((all, cut));
        }
        if !more {
            return Ok((all, false));
        }
        token = next;
    }
}

/// On stderr, so that it is in nobody's data.
pub(super) fn say_if_cut(cut: bool, shown: usize) {
    if cut {
        eprintln!("only the first {shown} are shown");
    }
}
