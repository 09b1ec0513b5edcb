//! The certificate authority of a fleet: what it signs for nodes and for the scheduler itself.

use std::{fmt, net::IpAddr, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use longshore_proto::SCHEDULER_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{
    CertificateDer, DnsName, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject,
};
use secrecy::{ExposeSecret, SecretString};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::random::random;

/// Ending of the name in a node's certificate.
const NODE_ZONE: &str = ".node.longshore.internal";
/// Certificates begin before they are made: clocks behind ours accept them.
const BACKDATED: Duration = Duration::from_secs(24 * 3_600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// Longest request for a certificate, in bytes.
const CSR: usize = 16 * 1_024;

/// Milliseconds since 1970-01-01 UTC.
pub type UtcMillis = u64;

/// Signs certificates. Debug shows no key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub pem: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_after: UtcMillis,
}

/// What a TLS listener presents: the certificate and, for those who pin it, the authority's.
pub struct ServerCertificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub not_after: UtcMillis,
}

/// Whom a client certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    pub node: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_after: UtcMillis,
}

/// Why the authority does not work or does not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority's certificate cannot be used: {0}")]
    Certificate(String),
    #[error("the authority's key cannot be used: {0}")]
    Key(String),
    #[error("the certificate request has more than {CSR} bytes")]
    RequestSize,
    #[error("the certificate request is not valid PKCS #10: {0}")]
    Request(String),
    #[error("the certificate request names {found:?} and the node is {node:?}")]
    OtherNode { found: String, node: String },
    #[error("the certificate could not be signed: {0}")]
    Sign(String),
}

impl Authority {
    /// A new authority with a P-256 key, valid for ten years from a day before `now`.
    pub fn create(fleet: &str, now: UtcMillis) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(|e| AuthorityError::Key(e.to_string()))?;
        let mut params = params(&format!("Longshore authority of fleet {fleet}"), now)?;
        params.not_after = date(now, AUTHORITY_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .map_err(|e| AuthorityError::Sign(e.to_string()))?;
        Ok(Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// One that exists: the first certificate of `certificate` and its key, both PEM.
    pub fn from_pem(certificate: &str, key: &SecretString) -> Result<Self, AuthorityError> {
        let unusable = |e: &dyn fmt::Display| AuthorityError::Certificate(e.to_string());
        // The text of an error of the key's could hold a part of it.
        let key = KeyPair::from_pem(key.expose_secret())
            .map_err(|_| AuthorityError::Key("it is not an unencrypted PKCS #8 key, PEM".into()))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| unusable(&e))?
            .into_owned();
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| unusable(&e))?;
        if !parsed.is_ca() {
            return Err(unusable(&"it is not a certificate of an authority"));
        }
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(AuthorityError::Key(
                "it belongs to another certificate".into(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| unusable(&e))?;
        Ok(Self {
            issuer,
            pem: certificate.to_owned(),
            der,
        })
    }

    /// The authority's certificate, PEM: public.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The key, PEM: for the one file that keeps it.
    pub fn key_pem(&self) -> SecretString {
        self.issuer.key().serialize_pem().into()
    }

    /// SHA-256 of the certificate (DER), lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        hex::encode(digest(&SHA256, &self.der))
    }

    /// Signs a node's request (PKCS #10, PEM). The request must name this node; everything
    /// else that it asks for is ignored.
    pub fn admit(
        &self,
        csr_pem: &str,
        node: &str,
        now: UtcMillis,
        life: Duration,
    ) -> Result<Issued, AuthorityError> {
        if csr_pem.len() > CSR {
            return Err(AuthorityError::RequestSize);
        }
        // Checks the signature: who asks has the key.
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| AuthorityError::Request(e.to_string()))?;
        let found = common_name(&request.params.distinguished_name);
        if found != node {
            return Err(AuthorityError::OtherNode {
                found,
                node: node.to_owned(),
            });
        }
        let serial = serial();
        let mut params = params(node, now)?;
        params.not_after = date(now, life);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![dns(&format!("{node}{NODE_ZONE}"))?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(|e| AuthorityError::Sign(e.to_string()))?;
        Ok(Issued {
            pem: certificate.pem(),
            serial: hex::encode(serial),
            not_after: now + millis(life),
        })
    }

    /// A certificate for this scheduler's listeners, for these names and addresses besides
    /// [`SCHEDULER_NAME`]; its key is made here and kept nowhere.
    pub fn serve(
        &self,
        names: &[String],
        now: UtcMillis,
        life: Duration,
    ) -> Result<ServerCertificate, AuthorityError> {
        let sign = |e: rcgen::Error| AuthorityError::Sign(e.to_string());
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = params("Longshore scheduler", now)?;
        params.not_after = date(now, life);
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        params.subject_alt_names = vec![dns(SCHEDULER_NAME)?];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => dns(name)?,
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), self.der.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_after: now + millis(life),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

/// The public key in a request for a certificate, which must have been checked before.
pub fn public_key(csr_pem: &str) -> Result<Vec<u8>, AuthorityError> {
    use rcgen::PublicKeyData;
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|e| AuthorityError::Request(e.to_string()))?;
    Ok(request.public_key.der_bytes().to_vec())
}

/// Reads whom a client certificate names. Its chain must have been verified before.
pub fn node_certificate(der: &CertificateDer<'_>) -> Option<NodeCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let node = names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) => name.strip_suffix(NODE_ZONE),
            _ => None,
        })?;
    let not_after = certificate.validity().not_after.timestamp();
    Some(NodeCertificate {
        node: node.to_owned(),
        serial: hex::encode(certificate.raw_serial()),
        not_after: u64::try_from(not_after).unwrap_or(0) * 1_000,
    })
}

/// Positive and without a leading zero: DER writes it as it is.
fn serial() -> [u8; 16] {
    let mut serial = random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn params(name: &str, now: UtcMillis) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(Vec::new())
        .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Longshore");
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = date(now.saturating_sub(millis(BACKDATED)), Duration::ZERO);
    Ok(params)
}

fn common_name(subject: &DistinguishedName) -> String {
    use rcgen::DnValue;
    match subject.get(&DnType::CommonName) {
        Some(DnValue::Utf8String(name)) => name.clone(),
        Some(DnValue::PrintableString(name)) => name.as_str().to_owned(),
        _ => String::new(),
    }
}

fn dns(name: &str) -> Result<SanType, AuthorityError> {
    let wrong =
        || AuthorityError::Certificate(format!("{name:?} is neither a host name nor an address"));
    DnsName::try_from(name).map_err(|_| wrong())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn date(now: UtcMillis, later: Duration) -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH + Duration::from_millis(now) + later
}

#[cfg(test)]
mod tests;
