//! `longshore node ...`.

use std::time::Duration;

use longshore_client::Client;
use longshore_proto::v1;

use super::{builder, client, pages, request_id, required};
use crate::args::Global;
use crate::args::node::{Check, JoinToken, Node};
use crate::exit::Failure;
use crate::output::Out;
use crate::shapes;
use crate::shapes::outcome::Done;
use crate::units::proto_duration;

pub(super) async fn run(global: &Global, command: Node) -> Result<(), Failure> {
    let client = client(global)?;
    let mut out = Out::new(global.output);
    let node = match command {
        Node::List => return list(&client, &mut out).await,
        Node::Check(args) => return check(global, &mut out, args).await,
        Node::Remove(args) => return remove(&client, &mut out, args.name).await,
        Node::JoinToken(args) => return join_token(&client, &mut out, args).await,
        Node::Describe(args) => {
            let request = v1::GetNodeRequest { name: args.name };
            client.get_node(request).await?.node
        }
        Node::Cordon(args) => {
            let request = v1::CordonNodeRequest {
                name: args.name,
                request_id: request_id(),
            };
            client.cordon_node(request).await?.node
        }
        Node::Uncordon(args) => {
            let request = v1::UncordonNodeRequest {
                name: args.name,
                request_id: request_id(),
            };
            client.uncordon_node(request).await?.node
        }
        Node::Drain(args) => {
            let request = v1::DrainNodeRequest {
                name: args.name,
                deadline: args.deadline.map(proto_duration),
                request_id: request_id(),
            };
            client.drain_node(request).await?.node
        }
    };
    out.object(&shapes::node::Node::from(required(node, "node")?))
}

async fn list(client: &Client, out: &mut Out) -> Result<(), Failure> {
    let (nodes, cut) = pages::collect(None, async |page_size, page_token| {
        let request = v1::ListNodesRequest {
            page_size,
            page_token,
        };
        let page = client.list_nodes(request).await?;
        Ok((page.nodes, page.next_page_token))
    })
    .await?;
    let nodes: Vec<_> = nodes.into_iter().map(shapes::node::Node::from).collect();
    out.list(&nodes)?;
    pages::say_if_cut(cut, nodes.len());
    Ok(())
}

/// A look takes longer than any other call.
const LOOK: Duration = Duration::from_secs(120);

async fn check(global: &Global, out: &mut Out, args: Check) -> Result<(), Failure> {
    let client = builder(global)?.timeout(global.timeout.max(LOOK)).build()?;
    let request = v1::CheckNodeRequest {
        name: args.name,
        profile: args.profile,
        network_mode: args.network,
        runtime: args.runtime.unwrap_or_default(),
        image: args.image.unwrap_or_default(),
    };
    let looked = client.check_node(request).await?;
    let looked = shapes::check::Checked::from(looked);
    out.object(&looked)?;
    match looked.broken() {
        broken if broken.is_empty() => Ok(()),
        broken => Err(Failure::failed(
            format!("node {} does not hold {}", looked.node, broken.join(", ")),
            "cordon it, and see docs/security.md for what sets these",
        )),
    }
}

async fn join_token(client: &Client, out: &mut Out, args: JoinToken) -> Result<(), Failure> {
    use shapes::join_token::{Fresh, JoinToken};
    let now = jiff::Timestamp::now();
    if args.list {
        let told = client
            .list_join_tokens(v1::ListJoinTokensRequest {})
            .await?;
        let tokens = told.tokens.into_iter();
        let tokens: Vec<_> = tokens.map(|token| JoinToken::new(token, now)).collect();
        return out.list(&tokens);
    }
    if let Some(id) = args.revoke {
        let request_id = request_id();
        let request = v1::RevokeJoinTokenRequest { request_id, id };
        let token = client.revoke_join_token(request).await?.token;
        return out.object(&JoinToken::new(required(token, "token")?, now));
    }
    let request = v1::CreateJoinTokenRequest {
        request_id: request_id(),
        node: args.node.unwrap_or_default(),
        ttl: Some(proto_duration(args.ttl)),
    };
    let made = client.create_join_token(request).await?;
    out.secret(&Fresh {
        kept: JoinToken::new(required(made.token, "token")?, now),
        token: made.secret,
    })
}

async fn remove(client: &Client, out: &mut Out, name: String) -> Result<(), Failure> {
    let request = v1::RemoveNodeRequest {
        name: name.clone(),
        request_id: request_id(),
    };
    client.remove_node(request).await?;
    out.object(&Done {
        kind: "node",
        name,
        done: "removed",
    })
}
