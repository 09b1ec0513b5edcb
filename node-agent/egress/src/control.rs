//! What the agent says to the proxy: one JSON line each way on a Unix socket of root alone.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use agent_core::denied::Denied;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longest line either way: a list of the greatest length fits twice.
pub(crate) const MAX_LINE: u64 = 256 * 1024;
const CALL: Duration = Duration::from_secs(5);

/// One slot's proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The slot's gateway and the proxy's port.
    pub listen: SocketAddr,
    /// Who may ask: the slot's own addresses.
    pub subnet: String,
    /// Entries of `allowed_domains`.
    pub allowed: Vec<String>,
    /// Private ranges that the operator opened to sandboxes.
    pub ranges: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Which slots are open.
    List,
    /// Opens a slot; changes nothing when it is open just so.
    Open(Open),
    /// What a slot was refused since it was opened.
    Denied(SocketAddr),
    /// Closes a slot and all its connections; says what it was refused.
    Close(SocketAddr),
    /// Ends the proxy.
    Stop,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub error: Option<String>,
    pub denied: Option<Denied>,
    #[serde(default)]
    pub open: Vec<SocketAddr>,
    /// Process id of the proxy, in the answer to `List`.
    #[serde(default)]
    pub pid: u32,
}

/// Asks the proxy that listens there.
pub async fn call(socket: &Path, request: &Request) -> Result<Answer, String> {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        let mut reader = BufReader::new(stream.take(MAX_LINE));
        reader.read_line(&mut answer).await?;
        Ok::<Answer, std::io::Error>(serde_json::from_str(&answer)?)
    };
    let answer = match tokio::time::timeout(CALL, ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("asking the egress proxy: {error}")),
        Err(_) => {
            return Err(format!(
                "no answer from the egress proxy within {} s",
                CALL.as_secs()
            ));
        }
    };
    match answer.error {
        Some(error) => Err(format!("the egress proxy says: {error}")),
        None => Ok(answer),
    }
}
