//! Lists page by page: `Link` only, with ETags, and partial results when a page breaks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use scheduler_core::model::{CredentialName, UtcMillis};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use crate::{
    budget::{Bucket, reads},
    client::{Call, Client, parse},
    credential::{Identity, lock, utc_now},
    error::CallError,
};

/// Items remembered over all lists; beyond that a page is read in full each time.
const MOST_ITEMS: usize = 50_000;
/// A page not asked for in this time is forgotten.
const FORGET_AFTER_MS: u64 = 30 * 60_000;

/// What was read, and what broke on the way.
pub(crate) struct Listing<T> {
    pub(crate) items: Vec<T>,
    /// Set when a later page could not be read: absence then means nothing.
    pub(crate) broken: Option<CallError>,
    /// The first page came by a permanent redirect.
    pub(crate) moved: bool,
}

/// Pages by identity and URL, with the ETag they came under.
pub(crate) struct PageCache<T> {
    pages: Mutex<BTreeMap<(CredentialName, String), Page<T>>>,
}

struct Page<T> {
    etag: String,
    items: Arc<Vec<T>>,
    next: Option<String>,
    used: UtcMillis,
}

impl<T> Default for PageCache<T> {
    fn default() -> Self {
        Self {
            pages: Mutex::new(BTreeMap::new()),
        }
    }
}

impl<T> PageCache<T> {
    fn lookup(&self, identity: &CredentialName, url: &str) -> Option<String> {
        lock(&self.pages)
            .get(&(identity.clone(), url.to_owned()))
            .map(|page| page.etag.clone())
    }

    fn unchanged(
        &self,
        identity: &CredentialName,
        url: &str,
        now: UtcMillis,
    ) -> Option<(Arc<Vec<T>>, Option<String>)> {
        let mut pages = lock(&self.pages);
        let page = pages.get_mut(&(identity.clone(), url.to_owned()))?;
        page.used = now;
        Some((page.items.clone(), page.next.clone()))
    }

    fn store(&self, identity: &CredentialName, url: &str, page: Page<T>) {
        let mut pages = lock(&self.pages);
        pages.remove(&(identity.clone(), url.to_owned()));
        let held: usize = pages.values().map(|page| page.items.len() + 1).sum();
        if held + page.items.len() < MOST_ITEMS {
            pages.insert((identity.clone(), url.to_owned()), page);
        }
    }

    /// Drops what nobody asked for lately.
    pub(crate) fn tidy(&self, now: UtcMillis) {
        lock(&self.pages).retain(|_, page| now.saturating_sub(page.used) < FORGET_AFTER_MS);
    }
}

/// Keeps reads under 600 points a minute and counts what they cost.
pub(crate) struct Pacer {
    buckets: Mutex<BTreeMap<CredentialName, Bucket>>,
    /// Replies that counted (not 304) since the last reset.
    counted: AtomicU64,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            buckets: Mutex::new(BTreeMap::new()),
            counted: AtomicU64::new(0),
        }
    }
}

impl Pacer {
    /// Waits for the identity's turn.
    pub(crate) async fn turn(&self, identity: &CredentialName) {
        loop {
            let now = utc_now();
            let taken = lock(&self.buckets)
                .entry(identity.clone())
                .or_insert_with(|| reads(now))
                .take(now);
            match taken {
                Ok(()) => return,
                Err(at) => sleep(Duration::from_millis(at.saturating_sub(now).max(1))).await,
            }
        }
    }

    pub(crate) fn count(&self) {
        self.counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counted since the last call of this.
    pub(crate) fn take_counted(&self) -> u64 {
        self.counted.swap(0, Ordering::Relaxed)
    }
}

/// Reads a list to its end or `most_pages`. An error on the first page is the list's error.
pub(crate) async fn list<D, T, R>(
    client: &Client,
    pacer: &Pacer,
    cache: &PageCache<T>,
    identity: &Arc<Identity>,
    first: Call,
    most_pages: usize,
    reduce: R,
) -> Result<Listing<T>, CallError>
where
    D: DeserializeOwned,
    T: Clone,
    R: Fn(D) -> Vec<T>,
{
    let mut listing = Listing {
        items: Vec::new(),
        broken: None,
        moved: false,
    };
    let mut call = first;
    for number in 0..most_pages {
        match page::<D, T, R>(client, pacer, cache, identity, &call, &reduce).await {
            Ok((items, next, moved)) => {
                listing.items.extend(items.iter().cloned());
                listing.moved |= moved && number == 0;
                match next {
                    Some(next) => call.ask.target = next,
                    None => return Ok(listing),
                }
            }
            Err(error) if number == 0 => return Err(error),
            Err(error) => {
                listing.broken = Some(error);
                return Ok(listing);
            }
        }
    }
    listing.broken = Some(CallError::Malformed {
        call: call.words,
        detail: format!("more than {most_pages} pages; the rest comes when these are done"),
    });
    Ok(listing)
}

type PageRead<T> = (Arc<Vec<T>>, Option<String>, bool);

async fn page<D, T, R>(
    client: &Client,
    pacer: &Pacer,
    cache: &PageCache<T>,
    identity: &Arc<Identity>,
    call: &Call,
    reduce: &R,
) -> Result<PageRead<T>, CallError>
where
    D: DeserializeOwned,
    R: Fn(D) -> Vec<T>,
{
    let url = call.ask.target.clone();
    let mut call = call.clone().etag(cache.lookup(&identity.name, &url));
    pacer.turn(&identity.name).await;
    let mut answer = client.call(identity, &call).await?;
    if answer.status == http::StatusCode::NOT_MODIFIED {
        if let Some((items, next)) = cache.unchanged(&identity.name, &url, utc_now()) {
            return Ok((items, next, answer.moved));
        }
        // Forgotten in between: ask in full.
        call.ask.etag = None;
        pacer.turn(&identity.name).await;
        answer = client.call(identity, &call).await?;
    }
    pacer.count();
    let document: D = parse(&call, &answer)?;
    let items = Arc::new(reduce(document));
    let next = answer.next();
    if let Some(etag) = answer.header("etag") {
        let page = Page {
            etag: etag.to_owned(),
            items: items.clone(),
            next: next.clone(),
            used: utc_now(),
        };
        cache.store(&identity.name, &url, page);
    }
    Ok((items, next, answer.moved))
}
