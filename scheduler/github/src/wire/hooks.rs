//! Webhooks and their deliveries, as their administration sends them.

use super::{Field, field::document};

document!(
    /// Where a hook sends to.
    HookConfig {
        url: String,
        content_type: String,
    }
);

document!(
    /// A hook of a repository or organisation.
    Hook {
        id: u64,
        active: bool,
        events: Vec<Field<String>>,
        config: HookConfig,
    }
);

document!(
    /// One attempt to deliver; attempts of one event share the guid.
    HookDelivery {
        id: u64,
        guid: String,
        delivered_at: String,
        redelivery: bool,
        /// `OK` when it was answered with 2xx; anything else failed.
        status: String,
        /// 0 or 502 when nothing was reached: the status alone decides.
        status_code: u64,
        event: String,
        action: String,
        repository_id: u64,
    }
);
