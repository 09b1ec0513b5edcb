//! The REST surface as a function from a request to a response.

mod accounts;
mod actions;
mod apps;
mod groups;
mod hooks;
mod registrations;
mod route;

use std::collections::{BTreeMap, VecDeque};

use aws_lc_rs::digest;
use serde_json::{Value, json};

use super::render::{Urls, error_body};
use super::text::{http_date, percent_decode, query_pairs};
use super::tokens::Caller;
use super::world::World;

/// A request as plain data. The path carries the query.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Requests that are open at the same moment, this one included.
    pub concurrent: u64,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            headers: vec![
                ("user-agent".into(), "a-test".into()),
                ("accept".into(), "application/vnd.github+json".into()),
                ("x-github-api-version".into(), "2022-11-28".into()),
            ],
            body: Vec::new(),
            concurrent: 1,
        }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str, body: &Value) -> Self {
        Self {
            body: body.to_string().into_bytes(),
            ..Self::new("POST", path)
        }
    }

    pub fn put(path: &str, body: &Value) -> Self {
        Self {
            body: body.to_string().into_bytes(),
            ..Self::new("PUT", path)
        }
    }

    pub fn patch(path: &str, body: &Value) -> Self {
        Self {
            body: body.to_string().into_bytes(),
            ..Self::new("PATCH", path)
        }
    }

    pub fn delete(path: &str) -> Self {
        Self::new("DELETE", path)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// An answer as plain data.
#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How long the service takes over it.
    pub delay_ms: u64,
}

impl Response {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_string().into_bytes(),
            delay_ms: 0,
        }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub(crate) fn error(status: u16, message: &str) -> Self {
        Self::json(status, &error_body(status, message))
    }

    /// 422 with the strings that the runner endpoints use.
    pub(crate) fn invalid(message: &str, errors: &[&str]) -> Self {
        let mut body = error_body(422, message);
        body["errors"] = json!(errors);
        Self::json(422, &body)
    }

    /// 422 with the objects that most endpoints use.
    pub(crate) fn invalid_field(resource: &str, field: &str, code: &str) -> Self {
        let mut body = error_body(422, "Validation Failed");
        body["errors"] = json!([{"resource": resource, "field": field, "code": code}]);
        Self::json(422, &body)
    }

    /// The body as JSON; `Null` when it is none.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// One line of the request log.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LogEntry {
    pub at_ms: u64,
    pub method: String,
    pub path: String,
    pub route: &'static str,
    pub status: u16,
    pub identity: String,
}

/// What was asked, and how often.
#[derive(Debug)]
pub struct RequestLog {
    keep: usize,
    pub entries: VecDeque<LogEntry>,
    /// (method, route, status) → count
    pub counts: BTreeMap<(String, &'static str, u16), u64>,
}

impl RequestLog {
    pub(crate) fn new(keep: usize) -> Self {
        Self {
            keep,
            entries: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    fn note(&mut self, entry: LogEntry) {
        *self
            .counts
            .entry((entry.method.clone(), entry.route, entry.status))
            .or_default() += 1;
        self.entries.push_back(entry);
        while self.entries.len() > self.keep {
            self.entries.pop_front();
        }
    }

    /// Requests with this method and route; `None` is any.
    pub fn count(&self, method: Option<&str>, route: Option<&str>) -> u64 {
        self.counts
            .iter()
            .filter(|((m, r, _), _)| method.is_none_or(|x| x == m) && route.is_none_or(|x| x == *r))
            .map(|(_, n)| n)
            .sum()
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Requests answered with 304.
    pub fn not_modified(&self) -> u64 {
        self.counts
            .iter()
            .filter(|((_, _, s), _)| *s == 304)
            .map(|(_, n)| n)
            .sum()
    }
}

/// What a handler knows of a request.
pub(crate) struct Ctx {
    pub(crate) caller: Caller,
    /// The `Authorization` header as it came.
    pub(crate) authorization: Option<String>,
    pub(crate) params: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Value,
    pub(crate) urls: Urls,
    /// Path to page with, in the numeric form GitHub uses for `Link`.
    pub(crate) link_path: String,
    pub(crate) newest: bool,
}

impl Ctx {
    pub(crate) fn param(&self, i: usize) -> &str {
        self.params.get(i).map_or("", String::as_str)
    }

    pub(crate) fn id(&self, i: usize) -> Option<u64> {
        self.param(i).parse().ok()
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.query(name)
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    }
}

pub(crate) type Answer = Result<Response, Response>;

const VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

impl World {
    /// The whole REST surface.
    pub fn call(&mut self, request: &Request) -> Response {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let (ghes, path) = match path.strip_prefix("/api/v3") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => (true, rest),
            _ => (false, path),
        };
        let mut route_name = "(none)";
        let mut identity = "anonymous".to_owned();
        let mut response = self.answer(request, path, query, ghes, &mut route_name, &mut identity);
        self.finish(request, &mut response, &identity, route_name);
        self.log.note(LogEntry {
            at_ms: self.now,
            method: request.method.clone(),
            path: request.path.clone(),
            route: route_name,
            status: response.status,
            identity,
        });
        response
    }

    fn answer(
        &mut self,
        request: &Request,
        path: &str,
        query: &str,
        ghes: bool,
        route_name: &mut &'static str,
        identity: &mut String,
    ) -> Response {
        if request
            .find("user-agent")
            .is_none_or(|v| v.trim().is_empty())
        {
            return Response {
                status: 403,
                headers: vec![("content-type".into(), "text/plain".into())],
                body: b"Request forbidden by administrative rules. Please make sure your request has a User-Agent header.\n"
                    .to_vec(),
                delay_ms: 0,
            };
        }
        let version = request.find("x-github-api-version").unwrap_or(VERSIONS[0]);
        if !VERSIONS.contains(&version) {
            return Response::error(400, &format!("API version `{version}` is not supported."));
        }
        let newest = version == VERSIONS[1];
        let mut segments: Vec<String> = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(percent_decode)
            .collect();
        if let Some(moved) = self.redirect(&segments, query, ghes) {
            *route_name = "(moved)";
            return moved;
        }
        self.unfold_numeric(&mut segments);
        let caller = match self.identify(request.find("authorization")) {
            Ok(c) => c,
            Err(r) => {
                if let Some((_, route)) = route::find(&request.method, &segments) {
                    *route_name = route.template;
                }
                return r;
            }
        };
        *identity = caller.key();
        let Some((params, found)) = route::find(&request.method, &segments) else {
            return Response::error(404, "Not Found");
        };
        *route_name = found.template;
        if let Some(refusal) = self.limited(request, &caller, found) {
            return refusal;
        }
        if self.roll(self.cfg.faults.server_502, "server_502") {
            return Response::json(502, &json!({"message": "Server Error"}));
        }
        let body: Value = if request.body.is_empty() {
            Value::Null
        } else {
            match serde_json::from_slice(&request.body) {
                Ok(v) => v,
                Err(_) => return Response::error(400, "Problems parsing JSON"),
            }
        };
        let ctx = Ctx {
            caller,
            authorization: request.find("authorization").map(str::to_owned),
            params,
            query: query_pairs(query),
            body,
            urls: self.urls(ghes),
            link_path: self.numeric_path(&segments),
            newest,
        };
        let response = (found.handler)(self, &ctx).unwrap_or_else(|refusal| refusal);
        let wrote = request.method != "GET" && response.status < 300;
        if wrote && self.roll(self.cfg.faults.cut_after_effect, "cut_after_effect") {
            return Response {
                delay_ms: 10_000,
                ..Response::json(502, &json!({"message": "Server Error"}))
            };
        }
        response
    }

    /// Limits, real and by fault.
    fn limited(
        &mut self,
        request: &Request,
        caller: &Caller,
        found: &route::Route,
    ) -> Option<Response> {
        let faults = self.cfg.faults.clone();
        let secondary = |retry_after: Option<u64>, status: u16| {
            let mut r = Response::error(
                status,
                "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
            );
            if let Some(s) = retry_after {
                r.headers.push(("retry-after".into(), s.to_string()));
            }
            r
        };
        if self.roll(faults.secondary_limit, "secondary_limit") {
            return Some(secondary(Some(60), 403));
        }
        if self.roll(
            faults.secondary_limit_without_retry_after,
            "secondary_limit_without_retry_after",
        ) {
            return Some(secondary(None, 403));
        }
        if self.roll(faults.too_many_requests_429, "too_many_requests_429") {
            return Some(secondary(None, 429));
        }
        if self
            .cfg
            .limits
            .concurrent
            .is_some_and(|n| request.concurrent > n)
        {
            return Some(secondary(Some(60), 403));
        }
        let key = caller.key();
        let points = if request.method == "GET" { 1 } else { 5 };
        if let Some(wait) = self.over_points(&key, found.template, points) {
            return Some(secondary(Some(wait), 403));
        }
        if found.template == "/rate_limit" {
            return None;
        }
        let resource = self.resource_of(found.template);
        let standing = self.standing(&key, &resource, 1)?;
        if standing.exceeded {
            let whom = key.replace(':', " ID ");
            return Some(Response::error(
                403,
                &format!("API rate limit exceeded for {whom}."),
            ));
        }
        None
    }

    fn resource_of(&self, template: &str) -> String {
        if template.ends_with("/registration-token") || template.ends_with("/remove-token") {
            "actions_runner_registration".into()
        } else if template.ends_with("/generate-jitconfig") {
            self.cfg.limits.jit_resource.clone()
        } else {
            "core".into()
        }
    }

    /// ETag, 304 and the headers every answer has.
    fn finish(
        &mut self,
        request: &Request,
        response: &mut Response,
        identity: &str,
        template: &'static str,
    ) {
        let resource = self.resource_of(template);
        let lagging = ["/runs", "/jobs", "/runners"]
            .iter()
            .any(|part| template.contains(part));
        if request.method == "GET" && response.status == 200 {
            if lagging && self.cfg.faults.list_lag_ms > 0 {
                self.count_fault("list_lag_ms");
            }
            if self.cfg.faults.no_etag {
                self.count_fault("no_etag");
            }
        }
        let etag_wanted =
            request.method == "GET" && response.status == 200 && !self.cfg.faults.no_etag;
        if etag_wanted {
            let mut seed = response.body.clone();
            seed.extend_from_slice(identity.as_bytes());
            let hash = hex::encode(digest::digest(&digest::SHA256, &seed).as_ref());
            let etag = format!("W/\"{hash}\"");
            let same = request.find("if-none-match").is_some_and(|v| {
                v.split(',')
                    .any(|t| t.trim().trim_start_matches("W/") == etag.trim_start_matches("W/"))
            });
            response.headers.push(("etag".into(), etag));
            response.headers.push((
                "cache-control".into(),
                "private, max-age=60, s-maxage=60".into(),
            ));
            response.headers.push((
                "vary".into(),
                "Accept, Authorization, Cookie, X-GitHub-OTP,Accept-Encoding".into(),
            ));
            if same {
                response.status = 304;
                response.body.clear();
                self.refund(identity, &resource);
            }
        }
        if !response.body.is_empty() && response.header("content-type").is_none() {
            response.headers.push((
                "content-type".into(),
                "application/json; charset=utf-8".into(),
            ));
        }
        response
            .headers
            .push(("server".into(), "github.com".into()));
        response.headers.push((
            "x-github-media-type".into(),
            "github.v3; format=json".into(),
        ));
        response
            .headers
            .push(("x-github-request-id".into(), self.log.total().to_string()));
        if let Some(s) = self.standing(identity, &resource, 0) {
            response
                .headers
                .push(("x-ratelimit-limit".into(), s.limit.to_string()));
            response.headers.push((
                "x-ratelimit-remaining".into(),
                (s.limit.saturating_sub(s.used)).to_string(),
            ));
            response
                .headers
                .push(("x-ratelimit-used".into(), s.used.to_string()));
            response
                .headers
                .push(("x-ratelimit-reset".into(), s.reset_s.to_string()));
            response
                .headers
                .push(("x-ratelimit-resource".into(), s.resource));
        }
        let offset = self.cfg.faults.clock_offset_ms;
        if offset != 0 {
            self.count_fault("clock_offset_ms");
        }
        let at = self.now.saturating_add_signed(offset);
        response.headers.push(("date".into(), http_date(at)));
    }

    /// 301 for the old path of a renamed repository.
    fn redirect(&self, segments: &[String], query: &str, ghes: bool) -> Option<Response> {
        if segments.first().map(String::as_str) != Some("repos") || segments.len() < 3 {
            return None;
        }
        let old = format!("{}/{}", segments[1], segments[2]).to_lowercase();
        let id = *self.moved.get(&old)?;
        let rest: String = segments[3..].iter().map(|s| format!("/{s}")).collect();
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{query}")
        };
        let url = format!("{}/repositories/{id}{rest}{query}", self.urls(ghes).api);
        let body = json!({"message": "Moved Permanently", "url": url, "documentation_url": "https://docs.github.com/rest/guides/best-practices-for-using-the-rest-api#follow-redirects"});
        let mut r = Response::json(301, &body);
        r.headers.push(("location".into(), url));
        Some(r)
    }

    /// `/repositories/{id}/..` and `/organizations/{id}/..` are the same as the forms with names.
    fn unfold_numeric(&self, segments: &mut Vec<String>) {
        let Some(id) = segments.get(1).and_then(|s| s.parse::<u64>().ok()) else {
            return;
        };
        match segments[0].as_str() {
            "repositories" => {
                if let Some(r) = self.repos.get(&id) {
                    let (owner, name) = r.full_name.split_once('/').unwrap_or(("", ""));
                    let head = ["repos".to_owned(), owner.to_owned(), name.to_owned()];
                    segments.splice(0..2, head);
                }
            }
            "organizations" => {
                if let Some(o) = self.owners.get(&id) {
                    segments.splice(0..2, ["orgs".to_owned(), o.login.clone()]);
                }
            }
            _ => {}
        }
    }

    fn numeric_path(&self, segments: &[String]) -> String {
        let tail = |from: usize| {
            segments[from.min(segments.len())..]
                .iter()
                .map(|s| format!("/{s}"))
                .collect::<String>()
        };
        match segments.first().map(String::as_str) {
            Some("repos") if segments.len() > 3 => {
                match self.repo_id(&format!("{}/{}", segments[1], segments[2])) {
                    Ok(id) => format!("/repositories/{id}{}", tail(3)),
                    Err(_) => tail(0),
                }
            }
            Some("orgs") if segments.len() > 2 => match self.owner_id(&segments[1]) {
                Ok(id) => format!("/organizations/{id}{}", tail(2)),
                Err(_) => tail(0),
            },
            _ => tail(0),
        }
    }

    /// One page of a list, and the `Link` header for the others.
    pub(crate) fn page<T: Clone>(&mut self, ctx: &Ctx, all: &[T]) -> (Vec<T>, Option<String>) {
        let per_page = match ctx.number("per_page", 30) {
            0 => 30,
            n => n.min(100),
        };
        let page = ctx.number("page", 1).max(1);
        let mut start = (page - 1).saturating_mul(per_page);
        if page > 1
            && (start as usize) < all.len()
            && self.roll(self.cfg.faults.page_shift, "page_shift")
        {
            start += 1;
        }
        let from = usize::try_from(start).unwrap_or(usize::MAX).min(all.len());
        let to = from.saturating_add(per_page as usize).min(all.len());
        let pages = (all.len() as u64).div_ceil(per_page).max(1);
        let mut links = Vec::new();
        let url = |n: u64| {
            let mut q: Vec<String> = ctx
                .query
                .iter()
                .filter(|(k, _)| k != "page")
                .map(|(k, v)| format!("{k}={}", super::text::form_encode(v.as_bytes())))
                .collect();
            q.push(format!("page={n}"));
            format!("{}{}?{}", ctx.urls.api, ctx.link_path, q.join("&"))
        };
        if page > 1 {
            links.push(format!("<{}>; rel=\"prev\"", url(page - 1)));
        }
        if page < pages {
            links.push(format!("<{}>; rel=\"next\"", url(page + 1)));
            links.push(format!("<{}>; rel=\"last\"", url(pages)));
        }
        if page > 1 {
            links.push(format!("<{}>; rel=\"first\"", url(1)));
        }
        let mut link = (!links.is_empty()).then(|| links.join(", "));
        if link.is_some() && self.roll(self.cfg.faults.link_absent, "link_absent") {
            link = None;
        }
        (all[from..to].to_vec(), link)
    }

    /// What was asked so far.
    pub fn requests(&self) -> &RequestLog {
        &self.log
    }

    pub fn clear_requests(&mut self) {
        let keep = self.cfg.keep_requests;
        self.log = RequestLog::new(keep);
    }
}

/// Adds a `Link` header.
pub(crate) fn with_link(mut response: Response, link: Option<String>) -> Response {
    if let Some(l) = link {
        response.headers.push(("link".into(), l));
    }
    response
}

pub(crate) fn not_found() -> Response {
    Response::error(404, "Not Found")
}
