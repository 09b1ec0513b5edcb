//! `longshore pool ...`.

use longshore_client::{Client, Error};
use longshore_proto::v1;

use super::{client, pages, request_id, required};
use crate::args::Global;
use crate::args::pool::{Pool, Set};
use crate::exit::Failure;
use crate::output::Out;
use crate::shapes;
use crate::shapes::outcome::Done;
use crate::units::proto_duration;

pub(super) async fn run(global: &Global, command: Pool) -> Result<(), Failure> {
    let client = client(global)?;
    let mut out = Out::new(global.output);
    match command {
        Pool::List => {
            let (pools, cut) = all(&client).await?;
            let pools: Vec<_> = pools.into_iter().map(shapes::pool::Pool::from).collect();
            out.list(&pools)?;
            pages::say_if_cut(cut, pools.len());
            Ok(())
        }
        Pool::Set(args) => {
            let (pools, _) = all(&client).await?;
            let before = pools.into_iter().find(|p| p.name == args.name);
            let validate_only = args.dry_run;
            let request = v1::SetPoolRequest {
                pool: Some(changed(before.unwrap_or_default(), *args)),
                request_id: request_id(),
                validate_only,
            };
            let pool = required(client.set_pool(request).await?.pool, "pool")?;
            out.object(&shapes::pool::Pool::from(pool))
        }
        Pool::Delete(args) => {
            let request = v1::DeletePoolRequest {
                name: args.name.clone(),
                request_id: request_id(),
            };
            client.delete_pool(request).await?;
            out.object(&Done {
                kind: "pool",
                name: args.name,
                done: "deleted",
            })
        }
    }
}

async fn all(client: &Client) -> Result<(Vec<v1::Pool>, bool), Error> {
    pages::collect(None, async |page_size, page_token| {
        let request = v1::ListPoolsRequest {
            page_size,
            page_token,
        };
        let page = client.list_pools(request).await?;
        Ok((page.pools, page.next_page_token))
    })
    .await
}

/// `''` empties a list.
fn replace_list(list: &mut Vec<String>, new: Option<Vec<String>>) {
    if let Some(new) = new {
        *list = new.into_iter().filter(|s| !s.is_empty()).collect();
    }
}

fn replace<T>(old: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *old = new;
    }
}

/// The pool with the given changes; what was left out stays.
fn changed(mut pool: v1::Pool, set: Set) -> v1::Pool {
    pool.name = set.name;
    replace_list(&mut pool.labels, set.labels);
    replace_list(&mut pool.repositories, set.repositories);
    replace_list(&mut pool.required_properties, set.required_properties);
    replace_list(&mut pool.allowed_domains, set.allowed_domains);
    let policy = |p: Option<crate::args::pool::Policy>| p.map(|p| p.word().to_owned());
    replace(
        &mut pool.public_repositories,
        policy(set.public_repositories),
    );
    replace(&mut pool.fork_pull_requests, policy(set.fork_pull_requests));
    replace(&mut pool.image, set.image);
    replace(&mut pool.runner_group, set.runner_group);
    replace(&mut pool.name_prefix, set.name_prefix);
    replace(&mut pool.profile, set.profile);
    replace(&mut pool.network_mode, set.network_mode);
    replace(&mut pool.runtime, set.runtime);
    replace(&mut pool.idle_floor, set.idle_floor);
    replace(&mut pool.maximum, set.maximum);
    replace(
        &mut pool.priority,
        set.priority.map(|p| p.word().to_owned()),
    );
    replace(
        &mut pool.placement,
        set.placement.map(|p| p.word().to_owned()),
    );
    replace(&mut pool.bare_self_hosted, set.bare_self_hosted);
    if set.cpu.is_some() || set.memory.is_some() || set.gpus.is_some() {
        let resources = pool.resources.get_or_insert_default();
        replace(&mut resources.cpu_millis, set.cpu);
        replace(&mut resources.memory_bytes, set.memory);
        replace(&mut resources.gpus, set.gpus);
    }
    if set.gpu_memory.is_some() || set.gpu_compute_capability.is_some() || set.gpu_models.is_some()
    {
        let needs = pool.gpu.get_or_insert_default();
        replace(&mut needs.memory_mib, set.gpu_memory);
        replace(&mut needs.compute_capability, set.gpu_compute_capability);
        replace_list(&mut needs.models, set.gpu_models);
    }
    if let Some(d) = set.idle_timeout {
        pool.idle_timeout = Some(proto_duration(d));
    }
    if let Some(d) = set.lifetime {
        pool.lifetime = Some(proto_duration(d));
    }
    pool
}
