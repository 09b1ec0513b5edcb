//! `longshore runner logs`: the bytes as the job wrote them, or an object for each line.

use std::io::Write;

use longshore_proto::v1;
use serde::Serialize;

use crate::args::Global;
use crate::args::runner::Logs;
use crate::commands::client;
use crate::exit::Failure;
use crate::output::Out;

/// A line longer than this comes in pieces.
const LONGEST_LINE: usize = 64 << 10;

pub(super) async fn run(global: &Global, args: Logs) -> Result<(), Failure> {
    let client = client(global)?;
    let request = v1::StreamRunnerLogsRequest {
        name: args.name,
        follow: args.follow,
        tail_bytes: args.tail.unwrap_or(0),
    };
    let mut stream = client.stream_runner_logs(request).await?;
    let mut out = Out::new(global.output);
    let mut lines = (!out.for_people()).then(Lines::default);
    loop {
        // A followed runner may be silent for hours; a finished one may not.
        let next = if args.follow {
            stream.next().await
        } else {
            stream.next_within(global.timeout).await
        };
        let Some(chunk) = next? else {
            return match lines {
                Some(lines) => lines.end(&mut out),
                None => Ok(()),
            };
        };
        match &mut lines {
            Some(lines) => lines.add(&chunk.bytes, chunk.skipped, &mut out)?,
            None => plain(&chunk.bytes, chunk.skipped)?,
        }
    }
}

fn plain(bytes: &[u8], skipped: u64) -> Result<(), Failure> {
    if skipped > 0 {
        eprintln!("skipped {skipped} bytes");
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// What `-o json` writes: a line of output, or bytes lost before the next one.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Line(String),
    Skipped(u64),
}

/// Output cut into lines; what is no UTF-8 is replaced.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], skipped: u64, out: &mut Out) -> Result<(), Failure> {
        if skipped > 0 {
            self.tell(out)?;
            out.line(&Told::Skipped(skipped))?;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in piece.chunks(LONGEST_LINE) {
                self.begun.extend_from_slice(piece);
                if piece.ends_with(b"\n") || self.begun.len() >= LONGEST_LINE {
                    self.tell(out)?;
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, out: &mut Out) -> Result<(), Failure> {
        if self.begun.is_empty() {
            return Ok(());
        }
        let begun = std::mem::take(&mut self.begun);
        let line = begun.strip_suffix(b"\n").unwrap_or(&begun);
        out.line(&Told::Line(String::from_utf8_lossy(line).into_owned()))
    }

    fn end(mut self, out: &mut Out) -> Result<(), Failure> {
        self.tell(out)
    }
}
