//! The scheduler before its authority is known: by the fingerprint in the join token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

/// Trusts the authority with this fingerprint, which the server has to send, and what it signed.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// SHA-256 of the certificate (DER).
    authority: Vec<u8>,
    provider: Arc<CryptoProvider>,
    /// A server came that another authority vouches for.
    met_another: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the scheduler at this address is not the one that made the join token (its authority is another)"
)]
struct OtherAuthority;

impl Pinned {
    pub(crate) fn new(fingerprint: &str) -> anyhow::Result<Self> {
        let digits = fingerprint.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let authority = digits.map(byte).collect::<Option<Vec<_>>>();
        Ok(Self {
            authority: authority.context("the join token's fingerprint is damaged")?,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            met_another: AtomicBool::new(false),
        })
    }

    /// Whether the token is for another scheduler than the one that answers.
    pub(crate) fn met_another(&self) -> bool {
        self.met_another.load(Ordering::Relaxed)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let other = || CertificateError::Other(OtherError(Arc::new(OtherAuthority)));
        let authority = intermediates
            .iter()
            .find(|sent| digest(&SHA256, sent).as_ref() == self.authority)
            .ok_or_else(|| {
                self.met_another.store(true, Ordering::Relaxed);
                other()
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
