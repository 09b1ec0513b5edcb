//! `longshore share ...`.

use longshore_proto::v1;

use super::{client, request_id};
use crate::args::Global;
use crate::args::pool::Share;
use crate::exit::Failure;
use crate::output::Out;
use crate::shapes::outcome::Done;

pub(super) async fn run(global: &Global, command: Share) -> Result<(), Failure> {
    let Share::Set(args) = command;
    let request = v1::SetShareRequest {
        subject: args.subject.clone(),
        weight: args.weight,
        maximum: args.maximum,
        request_id: request_id(),
    };
    client(global)?.set_share(request).await?;
    Out::new(global.output).object(&Done {
        kind: "share",
        name: args.subject,
        done: "set",
    })
}
