//! Hosts that have joined: a key, a request, a join token, a certificate.

use std::{collections::BTreeMap, sync::Arc};

use longshore_proto::{
    SCHEDULER_NAME,
    v1::{
        CreateJoinTokenRequest, EnrollRequest, admin_service_client::AdminServiceClient,
        node_service_client::NodeServiceClient,
    },
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio::sync::Mutex;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::harness::{self, Authorized, Scheduler};

/// Certificates by the node's name; they outlive the scheduler.
pub(crate) type Joined = Arc<Mutex<BTreeMap<String, Identity>>>;

/// A key of a host and its request for a certificate under a name.
pub(crate) fn request_for(name: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(&key).expect("a request");
    (key, request.pem().expect("PEM"))
}

impl Scheduler {
    /// As whoever holds this host's token.
    pub(crate) async fn admin(&self) -> AdminServiceClient<Authorized> {
        let channel = harness::channel(self.running.addresses.api).await;
        AdminServiceClient::with_interceptor(channel, self.bearer())
    }

    /// A join token in the clear; a name binds it.
    pub(crate) async fn join_token(&self, node: &str) -> String {
        let request = CreateJoinTokenRequest {
            node: node.to_owned(),
            ..CreateJoinTokenRequest::default()
        };
        let made = self.admin().await.create_join_token(request).await;
        made.expect("a token").into_inner().secret
    }

    /// A connection to the node listener, with a client certificate or none.
    pub(crate) async fn dial(
        &self,
        identity: Option<Identity>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .domain_name(SCHEDULER_NAME);
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        Endpoint::from_shared(format!("https://{}", self.running.addresses.nodes))?
            .tls_config(tls)?
            .connect()
            .await
    }

    /// Joins with this token.
    pub(crate) async fn enroll(&self, name: &str, token: &str) -> Result<Identity, Status> {
        let (key, csr_pem) = request_for(name);
        let channel = self.dial(None).await.expect("connects");
        let request = EnrollRequest {
            node: name.to_owned(),
            join_token: token.to_owned(),
            csr_pem,
        };
        let answer = NodeServiceClient::new(channel).enroll(request).await?;
        let certificate = answer.into_inner().certificate_pem;
        Ok(Identity::from_pem(certificate, key.serialize_pem()))
    }

    /// What a host of this name calls with; it joins when it has not yet.
    pub(crate) async fn identity(&self, name: &str) -> Identity {
        let mut joined = self.joined.lock().await;
        if let Some(identity) = joined.get(name) {
            return identity.clone();
        }
        let token = self.join_token(name).await;
        let identity = self.enroll(name, &token).await.expect("joins");
        joined.insert(name.to_owned(), identity.clone());
        identity
    }

    /// A client of the host of this name.
    pub(crate) async fn nodes(&self, name: &str) -> NodeServiceClient<Channel> {
        let identity = self.identity(name).await;
        NodeServiceClient::new(self.dial(Some(identity)).await.expect("connects"))
    }
}
