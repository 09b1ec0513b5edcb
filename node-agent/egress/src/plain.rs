//! Plain HTTP through the proxy: one request, sent on to the host of its own address.

use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Request, Response, Uri, http::uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;

const ANSWER: Duration = Duration::from_secs(120);

/// Takes out what is between two neighbours only.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

/// The request as its own host gets it: path only, and the host of its address.
fn rewritten<B>(request: Request<B>, host: &str, port: u16) -> Option<Request<B>> {
    let (mut parts, body) = request.into_parts();
    let path = parts
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    strip(&mut parts.headers);
    let authority = match port {
        80 => host.to_owned(),
        port => format!("{host}:{port}"),
    };
    // Whatever it was: the host that was checked is the one that is asked.
    parts.headers.remove(HOST);
    parts
        .headers
        .insert(HOST, HeaderValue::from_str(&authority).ok()?);
    Some(Request::from_parts(parts, body))
}

/// Sends it on, and hands the answer back.
pub(crate) async fn forward(
    request: Request<Incoming>,
    stream: TcpStream,
    host: &str,
    port: u16,
) -> Result<Response<Incoming>, String> {
    let request = rewritten(request, host, port).ok_or("its host cannot be written")?;
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_headers(100)
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    // Ends with its last byte, or when either side goes.
    tokio::spawn(connection);
    match tokio::time::timeout(ANSWER, sender.send_request(request)).await {
        Ok(Ok(mut response)) => {
            strip(response.headers_mut());
            Ok(response)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_was_checked_is_the_one_that_is_asked() {
        let request = Request::builder()
            .uri("http://a.test:8080/x?y=1")
            .header(HOST, "evil.test")
            .header(CONNECTION, "close, X-Secret")
            .header("x-secret", "1")
            .header("proxy-connection", "keep-alive")
            .header(PROXY_AUTHORIZATION, "Basic x")
            .header("accept", "*/*")
            .body(())
            .unwrap();
        let sent = rewritten(request, "a.test", 8_080).unwrap();
        assert_eq!(sent.uri(), "/x?y=1");
        assert_eq!(sent.headers()[HOST], "a.test:8080");
        let mut names: Vec<&str> = sent.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "host"]);
    }
}
