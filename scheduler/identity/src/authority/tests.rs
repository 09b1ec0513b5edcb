//! What the authority signs, seen by the verifiers that servers and clients use.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    client::{
        WebPkiServerVerifier,
        danger::{ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs::default_provider,
    pki_types::{ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerified},
};

use super::*;

const NOW: UtcMillis = 1_763_800_000_000;
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);

fn request(name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    params(name, NOW)
        .unwrap()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap()
}

fn at(now: UtcMillis) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(now))
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    Arc::new(roots)
}

fn verify_node(
    authority: &Authority,
    pem: &str,
    now: UtcMillis,
) -> Result<ClientCertVerified, rustls::Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority), provider);
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let verifier = verifier.build().unwrap();
    verifier.verify_client_cert(&leaf, &[], at(now))
}

fn verify_server(
    authority: &Authority,
    leaf: &CertificateDer<'_>,
    name: &str,
    now: UtcMillis,
) -> Result<ServerCertVerified, rustls::Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(authority), provider);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let verifier = verifier.build().unwrap();
    verifier.verify_server_cert(leaf, &[], &name, &[], at(now))
}

#[test]
fn a_node_gets_a_certificate_that_names_it_and_serves_for_nothing_else() {
    let authority = Authority::create("abcd", NOW).unwrap();
    let issued = authority.admit(&request("gpu-1"), "gpu-1", NOW, WEEK);
    let issued = issued.unwrap();
    let leaf = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
    let named = node_certificate(&leaf).unwrap();
    assert_eq!(named.node, "gpu-1");
    assert_eq!(named.serial, issued.serial);
    assert_eq!(named.not_after / 1_000, issued.not_after / 1_000);
    verify_node(&authority, &issued.pem, NOW).unwrap();
    let day = 24 * 3_600_000;
    verify_node(&authority, &issued.pem, NOW - day + 1_000).unwrap();
    verify_node(&authority, &issued.pem, NOW - day - 2_000).unwrap_err();
    verify_node(&authority, &issued.pem, NOW + 7 * day + 2_000).unwrap_err();
    let name = "gpu-1.node.longshore.internal";
    verify_server(&authority, &leaf, name, NOW).unwrap_err();
}

#[test]
fn another_authority_with_the_same_names_does_not_count() {
    let ours = Authority::create("abcd", NOW).unwrap();
    let theirs = Authority::create("abcd", NOW).unwrap();
    let issued = theirs.admit(&request("gpu-1"), "gpu-1", NOW, WEEK).unwrap();
    verify_node(&ours, &issued.pem, NOW).unwrap_err();
    assert_ne!(ours.fingerprint(), theirs.fingerprint());
}

#[test]
fn a_request_for_another_node_a_broken_and_a_huge_one_are_refused() {
    let authority = Authority::create("abcd", NOW).unwrap();
    let admit = |csr: &str| authority.admit(csr, "gpu-1", NOW, WEEK).unwrap_err();
    let other = admit(&request("gpu-2"));
    assert!(other.to_string().contains("\"gpu-2\""), "{other}");
    assert!(matches!(admit("nothing"), AuthorityError::Request(_)));
    // One bit of the key changed: the signature no longer fits.
    let pem = request("gpu-1");
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    let mut der = der.unwrap().to_vec();
    let last = der.len() - 3;
    der[last] ^= 1;
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(&der);
    let forged =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
    assert!(matches!(admit(&forged), AuthorityError::Request(_)));
    assert_eq!(admit(&"x".repeat(CSR + 1)), AuthorityError::RequestSize);
}

#[test]
fn a_request_cannot_ask_for_more_than_a_nodes_certificate() {
    let authority = Authority::create("abcd", NOW).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut wants = params("gpu-1", NOW).unwrap();
    wants.subject_alt_names = vec![
        dns(SCHEDULER_NAME).unwrap(),
        dns("gpu-2.node.longshore.internal").unwrap(),
    ];
    wants.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let csr = wants.serialize_request(&key).unwrap().pem().unwrap();
    let issued = authority.admit(&csr, "gpu-1", NOW, WEEK).unwrap();
    let leaf = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
    assert_eq!(node_certificate(&leaf).unwrap().node, "gpu-1");
    verify_server(&authority, &leaf, SCHEDULER_NAME, NOW).unwrap_err();
    verify_node(&authority, &issued.pem, NOW).unwrap();
}

#[test]
fn the_schedulers_certificate_serves_its_names_and_is_no_nodes() {
    let authority = Authority::create("abcd", NOW).unwrap();
    let names = ["127.0.0.1".to_owned(), "ci.example.org".to_owned()];
    let served = authority.serve(&names, NOW, WEEK).unwrap();
    let leaf = &served.chain[0];
    for name in [SCHEDULER_NAME, "127.0.0.1", "ci.example.org"] {
        verify_server(&authority, leaf, name, NOW).unwrap();
    }
    verify_server(&authority, leaf, "example.org", NOW).unwrap_err();
    assert_eq!(node_certificate(leaf), None);
    assert_eq!(&served.chain[1], authority.certificate());
    let bad = authority.serve(&["two words".to_owned()], NOW, WEEK);
    let bad = bad.err().unwrap().to_string();
    assert!(bad.contains("two words"), "{bad}");
}

#[test]
fn an_authority_is_the_same_after_it_was_kept_and_read() {
    let made = Authority::create("abcd", NOW).unwrap();
    let read = Authority::from_pem(made.certificate_pem(), &made.key_pem()).unwrap();
    assert_eq!(read.fingerprint(), made.fingerprint());
    let issued = read.admit(&request("gpu-1"), "gpu-1", NOW, WEEK).unwrap();
    verify_node(&made, &issued.pem, NOW).unwrap();
    let other = Authority::create("abcd", NOW).unwrap();
    let mixed = Authority::from_pem(made.certificate_pem(), &other.key_pem());
    let mixed = mixed.unwrap_err().to_string();
    assert!(mixed.contains("another certificate"), "{mixed}");
    let node = Authority::from_pem(&issued.pem, &made.key_pem());
    assert!(matches!(node, Err(AuthorityError::Certificate(_))));
    let garbage = Authority::from_pem(made.certificate_pem(), &"secret".into());
    assert!(!garbage.unwrap_err().to_string().contains("secret"));
    assert!(!format!("{made:?}").contains("BEGIN"));
}
