//! HTTP/1.1 as a client needs it: one request a connection, bounded in time and size, no TLS.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// `http://host:port` and the path; nothing else is understood.
pub(crate) fn split_url(url: &str) -> Result<(String, String), String> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("{url}: only http:// is spoken here"))?;
    let (host, path) = match rest.find('/') {
        Some(i) => rest.split_at(i),
        None => (rest, "/"),
    };
    let host = if host.rsplit(']').next().is_some_and(|t| t.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    Ok((host, path.to_owned()))
}

/// Sends one request and reads the whole answer, all within `limit`.
pub(crate) fn send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    limit: Duration,
) -> Result<Answer, String> {
    let (host, path) = split_url(url)?;
    let address = host
        .to_socket_addrs()
        .map_err(|e| format!("{host}: {e}"))?
        .next()
        .ok_or_else(|| format!("{host}: no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT.min(limit))
        .map_err(|e| format!("{host}: {e}"))?;
    let set = stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(limit)))
        .and_then(|()| stream.set_write_timeout(Some(limit)));
    set.map_err(|e| format!("{host}: {e}"))?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: demo-runner/{}\r\n",
        crate::VERSION
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    stream
        .write_all(&bytes)
        .map_err(|e| format!("{host}: {e}"))?;
    let mut raw = Vec::new();
    stream
        .take(MAX_ANSWER)
        .read_to_end(&mut raw)
        .map_err(|e| format!("{host}: {e}"))?;
    parse(&raw).ok_or_else(|| format!("{host}: not an HTTP answer"))
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&raw[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut chunked = false;
    let mut length: Option<usize> = None;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.to_ascii_lowercase().contains("chunked");
        } else if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
    }
    let rest = &raw[end + 4..];
    let body = if chunked {
        unchunk(rest)?
    } else {
        match length {
            // cut off in the middle
            Some(n) if rest.len() < n => return None,
            Some(n) => rest[..n].to_vec(),
            None => rest.to_vec(),
        }
    };
    Some(Answer { status, body })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line_end])
            .ok()?
            .split(';')
            .next()?
            .trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_all_three_framings_are_read() {
        let fixed = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!((fixed.status, fixed.body.as_slice()), (200, &b"hi"[..]));
        let chunked = parse(b"HTTP/1.1 409 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x=y\r\n!\r\n0\r\n\r\n").unwrap();
        assert_eq!(
            (chunked.status, chunked.body.as_slice()),
            (409, &b"hi!"[..])
        );
        let closed = parse(b"HTTP/1.1 202 Accepted\r\n\r\n").unwrap();
        assert_eq!((closed.status, closed.body.len()), (202, 0));
    }

    #[test]
    fn a_cut_answer_is_an_error_and_not_a_short_body() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi").is_none());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi").is_none());
        assert!(parse(b"").is_none());
    }

    #[test]
    fn urls_are_split_and_other_schemes_refused() {
        assert_eq!(
            split_url("http://1.2.3.4/a?b").unwrap(),
            ("1.2.3.4:80".into(), "/a?b".into())
        );
        assert_eq!(
            split_url("http://[::1]:8080").unwrap(),
            ("[::1]:8080".into(), "/".into())
        );
        assert!(split_url("https://github.com/").is_err());
    }
}
