//! Whether the addresses are free, before anything is started.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use longshore_client::{Builder, Error};
use longshore_proto::v1::GetStatusRequest;

use crate::exit::{self, Failure};

use super::plan::Plan;

/// A scheduler on this host answers at once or is stuck.
const PROBE: Duration = Duration::from_secs(2);

pub(super) async fn check_free(plan: &Plan) -> Result<(), Failure> {
    for (what, address) in plan.listeners() {
        let problem = match TcpListener::bind(address) {
            Ok(_) => continue,
            Err(e) => e,
        };
        if problem.kind() != std::io::ErrorKind::AddrInUse {
            return Err(Failure::failed(
                format!("cannot listen at {address} for {what}: {problem}"),
                "choose another address",
            ));
        }
        if address == plan.api && is_scheduler(address).await {
            return Err(Failure::said(
                exit::REFUSED,
                format!("a scheduler already runs at {address}"),
                "use it as it is (longshore runner status), or stop it with `longshore down`",
            ));
        }
        return Err(Failure::said(
            exit::REFUSED,
            format!("{address} is in use by another program; it is wanted for {what}"),
            if address == plan.api {
                "choose another address with --scheduler, or end that program"
            } else {
                "choose another address with that flag, or end that program"
            },
        ));
    }
    Ok(())
}

async fn is_scheduler(address: SocketAddr) -> bool {
    let client = Builder::new(format!("http://{address}"))
        .timeout(PROBE)
        .attempts(1)
        .build();
    match client {
        // One that asks who calls is one too.
        Ok(client) => matches!(
            client.get_status(GetStatusRequest {}).await,
            Ok(_) | Err(Error::Api(_))
        ),
        Err(_) => false,
    }
}
