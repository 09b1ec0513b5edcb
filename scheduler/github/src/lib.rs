//! GitHub's side of the scheduler: authentication, webhooks, sweep, registration.
