//! The stand-in scheduler's authority: its TLS, and certificates for whoever asks.

use aws_lc_rs::digest::{SHA256, digest};
use longshore_proto::SCHEDULER_NAME;
use longshore_proto::join_token::JoinToken;
use longshore_proto::v1 as pb;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Longer than any test: what a certificate is told to live.
const HOURS: i64 = 24;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = params("authority of a test", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    /// TLS of a scheduler: agents have to show a certificate for all but joining.
    pub(crate) fn tls(&self) -> ServerTlsConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = params("scheduler of a test", &[SCHEDULER_NAME]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = certificate.pem() + &self.issuer.pem();
        ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(self.issuer.pem()))
            .client_auth_optional(true)
    }

    /// What `longshore node join-token` would print.
    pub(crate) fn join_token(&self) -> String {
        let token = JoinToken {
            id: "0".repeat(16),
            secret: "0".repeat(64),
            authority: hex::encode(digest(&SHA256, self.issuer.der())),
        };
        token.text()
    }

    pub(crate) fn enroll(&self, asked: &pb::EnrollRequest) -> pb::EnrollResponse {
        let mut request = CertificateSigningRequestParams::from_pem(&asked.csr_pem).unwrap();
        request.params = params(&asked.node, &[]);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = jiff::Timestamp::now().as_second();
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        pb::EnrollResponse {
            certificate_pem: request.signed_by(&self.issuer).unwrap().pem(),
            authority_pem: self.issuer.pem(),
            not_after: time(now + HOURS * 3_600),
            scheduler_time: time(now),
        }
    }
}
