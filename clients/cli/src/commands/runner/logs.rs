//! `longshore runner logs`: the bytes as the job wrote them.

use std::io::Write;

use longshore_proto::v1;

use crate::args::Global;
use crate::args::runner::Logs;
use crate::commands::client;
use crate::exit::Failure;

pub(super) async fn run(global: &Global, args: Logs) -> Result<(), Failure> {
    let client = client(global)?;
    let request = v1::StreamRunnerLogsRequest {
        name: args.name,
        follow: args.follow,
        tail_bytes: args.tail.unwrap_or(0),
    };
    let mut stream = client.stream_runner_logs(request).await?;
    let mut stdout = std::io::stdout().lock();
    loop {
        // A followed runner may be silent for hours; a finished one may not.
        let next = if args.follow {
            stream.next().await
        } else {
            stream.next_within(global.timeout).await
        };
        let Some(chunk) = next? else { return Ok(()) };
        if chunk.skipped > 0 {
            eprintln!("skipped {} bytes", chunk.skipped);
        }
        stdout.write_all(&chunk.bytes)?;
        stdout.flush()?;
    }
}
