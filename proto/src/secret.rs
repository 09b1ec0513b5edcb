//! Debug of the messages that hold a secret: everything but the secret.

use std::fmt;

use crate::v1::{CreateJoinTokenResponse, CreateTokenResponse, EnrollRequest, Registration};

const HIDDEN: &str = "***";

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("runner", &self.runner)
            .field("jit_config", &HIDDEN)
            .finish()
    }
}

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollRequest")
            .field("node", &self.node)
            .field("join_token", &HIDDEN)
            .field("csr_pem", &self.csr_pem)
            .finish()
    }
}

impl fmt::Debug for CreateJoinTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateJoinTokenResponse")
            .field("token", &self.token)
            .field("secret", &HIDDEN)
            .finish()
    }
}

impl fmt::Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenResponse")
            .field("token", &self.token)
            .field("secret", &HIDDEN)
            .finish()
    }
}
