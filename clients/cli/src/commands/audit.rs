//! `longshore audit ...`.

use std::time::Duration;

use jiff::Timestamp;
use longshore_proto::v1;

use super::{builder, client, pages};
use crate::args::Global;
use crate::args::token::{Audit, Entries, Verify};
use crate::exit::Failure;
use crate::output::Out;
use crate::shapes::audit::{Entry, Verified};

/// Every entry is read: longer than any other call.
const READ: Duration = Duration::from_secs(600);

pub(super) async fn run(global: &Global, command: Audit) -> Result<(), Failure> {
    match command {
        Audit::List(args) => list(global, args).await,
        Audit::Verify(args) => verify(global, args).await,
    }
}

async fn list(global: &Global, args: Entries) -> Result<(), Failure> {
    let client = client(global)?;
    let since = args.since.map(|span| {
        let now = Timestamp::now();
        let since = now.checked_sub(span).unwrap_or(Timestamp::UNIX_EPOCH);
        prost_types::Timestamp {
            seconds: since.as_second(),
            nanos: since.subsec_nanosecond(),
        }
    });
    let (entries, cut) = pages::collect(Some(args.limit), async |page_size, page_token| {
        let request = v1::ListAuditRequest {
            page_size,
            page_token,
            actor: args.actor.clone().unwrap_or_default(),
            action: args.action.clone().unwrap_or_default(),
            subject: args.subject.clone().unwrap_or_default(),
            outcome: args.outcome.clone().unwrap_or_default(),
            since,
        };
        let page = client.list_audit(request).await?;
        Ok((page.entries, page.next_page_token))
    })
    .await?;
    let entries: Vec<_> = entries.into_iter().map(Entry::from).collect();
    Out::new(global.output).list(&entries)?;
    pages::say_if_cut(cut, entries.len());
    Ok(())
}

async fn verify(global: &Global, args: Verify) -> Result<(), Failure> {
    let client = builder(global)?.timeout(global.timeout.max(READ)).build()?;
    let (expected_id, expected_hash) = args.expect.unwrap_or_default();
    let request = v1::VerifyAuditRequest {
        expected_id,
        expected_hash,
    };
    let verified = Verified::from(client.verify_audit(request).await?);
    Out::new(global.output).object(&verified)?;
    if verified.whole {
        return Ok(());
    }
    Err(Failure::failed(
        format!(
            "the audit log is not as it was written: {}",
            verified.problem
        ),
        "keep the state folder as it is, and compare it with its backups",
    ))
}
