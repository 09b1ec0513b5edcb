//! Forms of text that GitHub uses: dates, node ids, percent-decoding.

use base64::Engine as _;

/// `2026-01-31T10:20:30Z`, as REST and webhooks print dates. `ms` counts from the Unix epoch.
pub fn iso(ms: u64) -> String {
    timestamp(ms / 1000 * 1000)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// The form of HTTP's `Date` header.
pub(crate) fn http_date(ms: u64) -> String {
    timestamp(ms)
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

fn timestamp(ms: u64) -> jiff::Timestamp {
    i64::try_from(ms)
        .ok()
        .and_then(|v| jiff::Timestamp::from_millisecond(v).ok())
        .unwrap_or(jiff::Timestamp::MAX)
}

/// Milliseconds of an ISO 8601 date or date-time; `None` when it is neither.
pub(crate) fn parse_date(text: &str) -> Option<u64> {
    if let Ok(t) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(t.as_millisecond()).ok();
    }
    let d: jiff::civil::Date = text.parse().ok()?;
    let t = d.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(t.timestamp().as_millisecond()).ok()
}

/// A GitHub node id: prefix and an opaque part.
pub(crate) fn node_id(prefix: &str, id: u64) -> String {
    let body = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(id.to_be_bytes());
    format!("{prefix}_{body}")
}

/// Decodes `%41` and `+`; broken escapes stay as they are.
pub(crate) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => {
                let pair = bytes
                    .get(i + 1..i + 3)
                    .and_then(|p| std::str::from_utf8(p).ok());
                match pair.and_then(|p| u8::from_str_radix(p, 16).ok()) {
                    Some(b) => {
                        out.push(b);
                        i += 2;
                    }
                    None => out.push(b'%'),
                }
            }
            b => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The pairs of a query string or a form body, in order.
pub(crate) fn query_pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (percent_decode(k), percent_decode(v))
        })
        .collect()
}

/// Percent-encodes what may not stand in a form value.
pub(crate) fn form_encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + bytes.len() / 4);
    for b in bytes {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(*b as char)
            }
            b' ' => out.push('+'),
            _ => {
                out.push('%');
                out.push_str(&hex::encode_upper([*b]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_githubs_form() {
        assert_eq!(iso(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(
            http_date(1_700_000_000_000),
            "Tue, 14 Nov 2023 22:13:20 GMT"
        );
        assert_eq!(parse_date("2023-11-14T22:13:20Z"), Some(1_700_000_000_000));
        assert_eq!(parse_date("1970-01-02"), Some(86_400_000));
        assert_eq!(parse_date("soon"), None);
    }

    #[test]
    fn escapes_are_decoded_and_broken_ones_kept() {
        assert_eq!(percent_decode("a%20b+c%2"), "a b c%2");
        assert_eq!(percent_decode("%3E%3D2026"), ">=2026");
        let all = query_pairs("created=%3E%3D2026-01-01&x&per_page=100");
        assert_eq!(all[0], ("created".into(), ">=2026-01-01".into()));
        assert_eq!(all[1], ("x".into(), String::new()));
        assert_eq!(
            percent_decode(&form_encode(b"{\"a\": \"b%c\"}")),
            "{\"a\": \"b%c\"}"
        );
    }
}
