//! The door without an engine: who is let in, and how long an answer may be asked.

use tokio::io::AsyncReadExt;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asker, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (asker.unwrap(), accepted.unwrap().0)
}

async fn asked(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (mut asker, accepted) = pair().await;
    let bytes = text.to_vec();
    let writing = tokio::spawn(async move {
        // The other end may stop reading early.
        let _ = asker.write_all(&bytes).await;
        let _ = asker.shutdown().await;
    });
    let (read, _write) = accepted.into_split();
    let result = ask(read, "secret").await.map(|request| request.to_vec());
    writing.abort();
    result
}

#[tokio::test]
async fn only_the_job_itself_is_let_in() {
    assert_eq!(asked(b"secret\n{}\n").await, Ok(b"{}\n".to_vec()));
    for text in [
        &b"wrong\n{}\n"[..],
        b"secre\n{}\n",
        b"secrets\n{}\n",
        b"\n{}\n",
        b"",
    ] {
        assert_eq!(asked(text).await, Err("the secret is not this job's"));
    }
    assert!(asked(b"secret\n{}").await.is_err(), "a cut request");
}

#[tokio::test]
async fn a_request_has_a_largest_size() {
    let mut text = b"secret\n".to_vec();
    text.resize(text.len() + MAX_REQUEST + 512, b' ');
    text.push(b'\n');
    assert!(asked(&text).await.is_err_and(|why| why.contains("1 MiB")));
}

#[tokio::test]
async fn output_comes_in_lines_and_keeps_its_ends() {
    let (mut asker, accepted) = pair().await;
    let (_read, write) = accepted.into_split();
    let reply = Reply(tokio::sync::Mutex::new(write));
    let mut rest = Vec::new();
    reply.output(b"one\ntw", &mut rest).await.unwrap();
    reply.output(b"o\n\nlast", &mut rest).await.unwrap();
    reply.rest(&rest).await.unwrap();
    let done = Done {
        code: 3,
        answer: Some(serde_json::json!({"a": "b\nc"})),
    };
    reply
        .done(Some("/home/runner/x".into()), done)
        .await
        .unwrap();
    drop(reply);
    let mut text = String::new();
    asker.read_to_string(&mut text).await.unwrap();
    assert_eq!(
        text,
        "o one\no two\no \np last\nf /home/runner/x\nr {\"a\":\"b\\nc\"}\nx 3\n"
    );
}

#[tokio::test]
async fn somebody_who_went_away_is_noticed() {
    let (asker, accepted) = pair().await;
    let (_read, write) = accepted.into_split();
    let reply = Reply(tokio::sync::Mutex::new(write));
    drop(asker);
    let noticed = tokio::time::timeout(Duration::from_secs(20), reply.until_gone()).await;
    assert!(noticed.is_ok());
}
