//! `longshore token ...`, `longshore whoami`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use longshore_client::Client;
use longshore_proto::v1;

use super::{client, pages, request_id, required};
use crate::args::Global;
use crate::args::token::{Create, List, Revoke, Token};
use crate::exit::Failure;
use crate::output::Out;
use crate::shapes::token::{Made, Me, Token as Shown};
use crate::units::proto_duration;

pub(super) async fn run(global: &Global, command: Token) -> Result<(), Failure> {
    let client = client(global)?;
    let mut out = Out::new(global.output);
    match command {
        Token::Create(args) => create(&client, &mut out, args).await,
        Token::List(args) => list(&client, &mut out, args).await,
        Token::Revoke(args) => revoke(&client, &mut out, args).await,
    }
}

pub(super) async fn who_am_i(global: &Global) -> Result<(), Failure> {
    let answer = client(global)?.who_am_i(v1::WhoAmIRequest {}).await?;
    Out::new(global.output).object(&Me::from(answer))
}

async fn create(client: &Client, out: &mut Out, args: Create) -> Result<(), Failure> {
    // Before anything is made: a token that cannot be kept is of no use.
    let mut file = args.to.as_deref().map(new_file).transpose()?;
    let request = v1::CreateTokenRequest {
        request_id: request_id(),
        name: args.name,
        role: args.role,
        scope: args.scope.unwrap_or_default(),
        ttl: args.ttl.map(proto_duration),
        no_expiry: args.no_expiry,
    };
    let made = match client.create_token(request).await {
        Ok(made) => made,
        Err(error) => {
            if let Some(path) = &args.to {
                // Ours and empty.
                let _ = std::fs::remove_file(path);
            }
            return Err(error.into());
        }
    };
    let token = Shown::from(required(made.token, "token")?);
    let mut secret = Some(made.secret);
    if let (Some(file), Some(path)) = (&mut file, &args.to) {
        let text = secret.take().unwrap_or_default();
        writeln!(file, "{text}")
            .and_then(|()| file.sync_all())
            .map_err(|e| {
                Failure::failed(
                    format!("write {}: {e}", path.display()),
                    format!("revoke it: longshore token revoke {}", token.id),
                )
            })?;
    }
    let file = args.to.map(|path| path.display().to_string());
    out.object(&Made {
        token,
        secret,
        file,
    })
}

fn new_file(path: &Path) -> Result<std::fs::File, Failure> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| {
            Failure::usage(
                format!("make the file {}: {e}", path.display()),
                "name a file that is not there yet",
            )
        })
}

async fn list(client: &Client, out: &mut Out, args: List) -> Result<(), Failure> {
    let (tokens, cut) = pages::collect(None, async |page_size, page_token| {
        let request = v1::ListTokensRequest {
            page_size,
            page_token,
            include_over: args.all,
        };
        let page = client.list_tokens(request).await?;
        Ok((page.tokens, page.next_page_token))
    })
    .await?;
    let tokens: Vec<_> = tokens.into_iter().map(Shown::from).collect();
    out.list(&tokens)?;
    pages::say_if_cut(cut, tokens.len());
    Ok(())
}

async fn revoke(client: &Client, out: &mut Out, args: Revoke) -> Result<(), Failure> {
    let request = v1::RevokeTokenRequest {
        request_id: request_id(),
        token: args.token,
    };
    let answer = client.revoke_token(request).await?;
    out.object(&Shown::from(required(answer.token, "token")?))
}
