//! What only a browser can be tricked into: requests for another name, requests from another page, tokens in a URL.
//!
//! A page of a stranger can point a name of its own at this address (DNS
//! rebinding), so the name that was asked for has to be ours; an address itself
//! cannot be rebound. A page elsewhere can send requests here, so the page has to
//! be ours too. What a URL holds ends up in histories and logs: no token there.

use http::{HeaderMap, Uri, header, uri::Authority};
use scheduler_identity::bearer;

/// Words of a query that name a secret.
const SECRETS: [&str; 6] = [
    "token",
    "access_token",
    "api_key",
    "apikey",
    "authorization",
    "auth",
];

/// Why a request is refused before anybody is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsafe {
    TokenInUrl,
    /// The name asked for.
    Host(String),
    /// The page that sent it.
    Origin(String),
}

/// Looks at a request; `names` are those of this API beside its addresses.
pub fn check(uri: &Uri, headers: &HeaderMap, names: &[String]) -> Result<(), Unsafe> {
    if has_token(uri) {
        return Err(Unsafe::TokenInUrl);
    }
    let asked = uri.authority().cloned().or_else(|| {
        let host = headers.get(header::HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    });
    let Some(asked) = asked.filter(|asked| is_ours(asked.host(), names)) else {
        let host = uri.host().map(str::to_owned).or_else(|| {
            let host = headers.get(header::HOST)?;
            Some(String::from_utf8_lossy(host.as_bytes()).into_owned())
        });
        return Err(Unsafe::Host(cut(host.as_deref().unwrap_or(""))));
    };
    for origin in headers.get_all(header::ORIGIN) {
        let text = origin.to_str().unwrap_or("");
        let from = text.split_once("://").map(|(_, authority)| authority);
        if !from.is_some_and(|from| from.eq_ignore_ascii_case(asked.as_str())) {
            return Err(Unsafe::Origin(cut(text)));
        }
    }
    Ok(())
}

/// An address, `localhost`, or one of the configured names.
fn is_ours(host: &str, names: &[String]) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<std::net::IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

fn has_token(uri: &Uri) -> bool {
    let text = uri.path_and_query().map_or("", |both| both.as_str());
    if text.contains(bearer::PREFIX) {
        return true;
    }
    let query = uri.query().unwrap_or("");
    query.split('&').any(|pair| {
        let name = pair.split('=').next().unwrap_or("").to_ascii_lowercase();
        SECRETS.contains(&name.as_str())
    })
}

fn cut(text: &str) -> String {
    let printable = text.chars().filter(|letter| !letter.is_control());
    printable.take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(uri: &str, headers: &[(&'static str, &str)]) -> Result<(), Unsafe> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let names = ["fleet.example".to_owned()];
        check(&uri.parse().unwrap(), &map, &names)
    }

    #[test]
    fn only_our_names_and_addresses_are_answered() {
        for host in [
            "127.0.0.1:9000",
            "localhost:1234",
            "[::1]:9000",
            "10.1.2.3",
            "Fleet.Example:9000",
        ] {
            assert_eq!(look("/livez", &[("host", host)]), Ok(()), "{host}");
            assert_eq!(look(&format!("http://{host}/x"), &[]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "fleet.example.evil.example",
            "127.0.0.1.nip.io",
        ] {
            let refused = look("/livez", &[("host", host)]);
            assert_eq!(refused, Err(Unsafe::Host(host.to_owned())));
        }
        assert_eq!(look("/livez", &[]), Err(Unsafe::Host(String::new())));
        // What HTTP/2 says in its pseudo-header stands over a header beside it.
        let both = look("http://evil.example/x", &[("host", "127.0.0.1")]);
        assert_eq!(both, Err(Unsafe::Host("evil.example".to_owned())));
    }

    #[test]
    fn only_our_own_pages_may_send() {
        let host = ("host", "127.0.0.1:9000");
        assert_eq!(
            look("/x", &[host, ("origin", "http://127.0.0.1:9000")]),
            Ok(())
        );
        for origin in [
            "http://127.0.0.1:9001",
            "http://localhost:9000",
            "https://evil.example",
            "null",
            "",
        ] {
            let refused = look("/x", &[host, ("origin", origin)]);
            assert_eq!(refused, Err(Unsafe::Origin(origin.to_owned())));
        }
        let own = ("origin", "http://127.0.0.1:9000");
        let two = look("/x", &[host, own, ("origin", "http://evil.example")]);
        assert!(two.is_err());
    }

    #[test]
    fn a_token_in_a_url_is_seen() {
        let host = [("host", "127.0.0.1")];
        for uri in [
            "/metrics?token=x",
            "/metrics?a=1&Access_Token=x",
            "/m?x=lst_1",
            "/lst_1/x",
        ] {
            assert_eq!(look(uri, &host), Err(Unsafe::TokenInUrl), "{uri}");
        }
        for uri in ["/metrics", "/metrics?page_token=x", "/metrics?name=mytoken"] {
            assert_eq!(look(uri, &host), Ok(()), "{uri}");
        }
    }
}
