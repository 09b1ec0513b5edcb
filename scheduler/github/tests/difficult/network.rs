//! On the way to GitHub: proxies, exemptions, a private CA, an App's tokens.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    encoding::AsDer,
    rsa::KeySize,
    signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use axum::http::Method;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use scheduler_core::{
    input::Input,
    model::{CredentialName, Scope},
};
use scheduler_github::{
    ApiUrl, Config, Credential, CredentialKind, Enterprise, GitHub, Proxy, SecretSource,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    fake::{Fake, Say, jit, registration, runner, token},
    world::{Watching, World, repository},
};

/// A proxy that tunnels CONNECT to one address, whatever name was asked for.
struct Tunnels {
    address: SocketAddr,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Tunnels {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if client.read(&mut byte).await.unwrap_or(0) == 0 {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8(head).unwrap();
                    log.lock().unwrap().push(head.clone());
                    if !head.contains("Proxy-Authorization: Basic dTpw\r\n") {
                        client
                            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                            .await
                            .unwrap();
                        return;
                    }
                    let mut server = TcpStream::connect(to).await.unwrap();
                    client
                        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                        .await
                        .unwrap();
                    // Either side may hang up first.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, asked }
    }
}

struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, from)) = self.tcp.accept().await else {
                continue;
            };
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A TLS server for `github.test` whose CA only the returned file knows.
async fn private_github(folder: &std::path::Path) -> (Fake, PathBuf) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "test authority");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec!["github.test".into()]).unwrap();
    leaf.distinguished_name
        .push(rcgen::DnType::CommonName, "test server");
    let certificate = leaf.signed_by(&key, &issuer).unwrap();
    let path = folder.join("ca.pem");
    std::fs::write(&path, ca_certificate.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let listener = TlsListener {
        tcp: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tls: TlsAcceptor::from(Arc::new(config)),
    };
    (Fake::on(listener, |_| jit(5, "ls-1")), path)
}

fn secure_config(ca_file: Option<PathBuf>, proxy: Option<String>) -> Config {
    Config {
        api_url: ApiUrl::parse("https://github.test/api/v3").unwrap(),
        credentials: vec![token("main", "ghp_x")],
        ca_file,
        proxy: Proxy {
            https: proxy,
            ..Proxy::default()
        },
        ..Config::default()
    }
}

#[tokio::test]
async fn https_goes_through_the_proxys_tunnel_and_trusts_the_ca_file() {
    let folder = tempfile::tempdir().unwrap();
    let (server, ca_file) = private_github(folder.path()).await;
    let proxy = Tunnels::start(server.address).await;
    let url = |user: &str| Some(format!("http://{user}{}", proxy.address));
    let github = GitHub::connect(secure_config(Some(ca_file.clone()), url("u:p@"))).unwrap();
    assert_eq!(
        github
            .register(&registration("ls-1"))
            .await
            .unwrap()
            .github_id,
        5
    );
    assert!(proxy.asked.lock().unwrap()[0].starts_with("CONNECT github.test:443 HTTP/1.1\r\n"));
    assert_eq!(
        server.seen()[0].target,
        "/api/v3/orgs/acme/actions/runners/generate-jitconfig"
    );
    assert!(!server.seen()[0].headers.contains_key("proxy-authorization"));
    // Positive control: without the CA file the same server is not trusted.
    let stranger = GitHub::connect(secure_config(None, url("u:p@"))).unwrap();
    let error = stranger
        .register(&registration("ls-2"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("TLS with github.test") && error.contains("CA file"),
        "{error}"
    );
    let refused = GitHub::connect(secure_config(Some(ca_file), url(""))).unwrap();
    let error = refused
        .register(&registration("ls-3"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("407") && error.contains("user:password"),
        "{error}"
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_ca_file_without_certificates_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    for (text, word) in [
        ("", "no PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "PEM"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = GitHub::connect(secure_config(Some(path.clone()), None))
            .unwrap_err()
            .to_string();
        assert!(error.contains(word) && error.contains("ca.pem"), "{error}");
    }
}

#[tokio::test]
async fn plain_http_goes_through_the_proxy_in_absolute_form_unless_exempt() {
    let direct = Fake::start(|_| jit(1, "direct")).await;
    let proxy = Fake::start(|_| jit(2, "proxied")).await;
    let mut config = direct.config();
    config.proxy.http = Some(format!("http://u:p@{}", proxy.address));
    let github = GitHub::connect(config.clone()).unwrap();
    assert_eq!(
        github.register(&registration("a")).await.unwrap().github_id,
        2
    );
    let seen = &proxy.seen()[0];
    assert!(seen.absolute, "the proxy must be asked in absolute form");
    assert_eq!(seen.headers["proxy-authorization"], "Basic dTpw");
    assert_eq!(
        seen.headers["host"].to_str().unwrap(),
        direct.address.to_string()
    );
    config.proxy.no_proxy = "127.0.0.0/8".into();
    let github = GitHub::connect(config).unwrap();
    assert_eq!(
        github.register(&registration("b")).await.unwrap().github_id,
        1
    );
    assert_eq!((proxy.seen().len(), direct.seen().len()), (1, 1));
    assert!(!direct.seen()[0].absolute);
}

/// An enterprise with a credential of the same name.
fn enterprise(slug: &str, organizations: &[&str]) -> Enterprise {
    Enterprise {
        slug: slug.into(),
        credential: CredentialName::new(slug),
        organizations: organizations.iter().map(|&login| login.into()).collect(),
    }
}

struct AppKey {
    pem: String,
    public: Vec<u8>,
}

fn app_key() -> AppKey {
    use aws_lc_rs::{encoding::Pkcs8V1Der, signature::KeyPair};
    let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let body = STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    AppKey {
        pem: format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            lines.join("\n")
        ),
        public: pair.public_key().as_ref().to_vec(),
    }
}

fn app_config(fake: &Fake, key: &AppKey) -> Config {
    let mut config = fake.config();
    config.credentials = vec![Credential {
        name: CredentialName::new("app"),
        kind: CredentialKind::App {
            id: "4711".into(),
            key: SecretSource::Value {
                origin: "test".into(),
                value: key.pem.clone().into(),
            },
        },
    }];
    config
}

fn bearer(seen: &crate::fake::Seen) -> String {
    seen.headers["authorization"]
        .to_str()
        .unwrap()
        .trim_start_matches("Bearer ")
        .to_owned()
}

/// A token of the new, long form.
fn long_token(number: usize) -> String {
    format!("ghs_4711_{}.{number}", "eyJhbGciOiJSUzI1NiJ9".repeat(40))
}

fn app_world() -> World {
    let world = World::default();
    world.set(
        "/app/installations?per_page=100",
        json!([
            {"id": 31, "account": {"login": "acme", "type": "Organization"}, "suspended_at": null,
             "permissions": {"organization_self_hosted_runners": "write", "actions": "read"}},
            {"id": 32, "account": {"login": "mona", "type": "User"}, "permissions": {"administration": "write"}},
            {"id": 33, "account": {"login": "tiny", "type": "User"}, "permissions": {"administration": "read"}},
            {"id": 34, "account": {"login": "gone", "type": "User"}, "suspended_at": "2026-01-01T00:00:00Z"},
        ]),
    );
    world
}

fn serve_app(
    world: World,
    tokens: &'static AtomicUsize,
    refuse: &'static AtomicUsize,
) -> impl Fn(&crate::fake::Seen) -> Say + Send + Sync + 'static {
    move |seen| {
        if seen.target.ends_with("/access_tokens") {
            let number = tokens.fetch_add(1, Ordering::SeqCst);
            let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
            return Say::new(
                201,
                json!({"token": long_token(number), "expires_at": expires.to_string()}),
            );
        }
        if seen.target == "/installation/token" {
            return Say::new(204, Value::Null);
        }
        if !seen.target.starts_with("/app/")
            && refuse
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
        {
            return Say::new(401, json!({"message": "Bad credentials"}));
        }
        if seen.target.starts_with("/installation/repositories") {
            let full = if bearer(seen).ends_with(".0") {
                "acme/web"
            } else {
                "mona/site"
            };
            let mut found = repository(if full == "acme/web" { 1 } else { 2 }, full);
            found["permissions"] = json!({"admin": false});
            return Say::new(200, json!({"total_count": 1, "repositories": [found]}));
        }
        if seen.method == Method::POST {
            return jit(6, "ls-1");
        }
        world.answer(seen)
    }
}

#[tokio::test]
async fn an_app_signs_its_jwt_keeps_its_tokens_and_gives_them_back() {
    static TOKENS: AtomicUsize = AtomicUsize::new(0);
    static REFUSE: AtomicUsize = AtomicUsize::new(0);
    let key = app_key();
    let world = app_world();
    let fake = Fake::start(serve_app(world, &TOKENS, &REFUSE)).await;
    let mut watching = Watching::start(app_config(&fake, &key));
    watching.next_sweep().await;
    watching.next_sweep().await;
    assert_eq!(
        TOKENS.load(Ordering::SeqCst),
        3,
        "one token per installation that is not suspended"
    );

    let seen = fake.seen();
    let jwt = bearer(
        seen.iter()
            .find(|seen| seen.target.starts_with("/app/installations?"))
            .unwrap(),
    );
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &key.public)
        .verify(
            signed.as_bytes(),
            &URL_SAFE_NO_PAD.decode(signature).unwrap(),
        )
        .unwrap();
    let claims = URL_SAFE_NO_PAD
        .decode(signed.split('.').nth(1).unwrap())
        .unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["iss"], "4711");
    let now = crate::fake::unix_now();
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        600
    );
    assert!((50..=75).contains(&(now - claims["iat"].as_u64().unwrap())));

    let status = watching.status.borrow().clone();
    let scope = |full: &str| status.repositories[full].scope.clone();
    assert_eq!(
        scope("acme/web"),
        Scope::Organization {
            login: "acme".into()
        }
    );
    assert_eq!(
        scope("mona/site"),
        Scope::Repository {
            owner: "mona".into(),
            repo: "site".into()
        }
    );
    assert_eq!(
        status.repositories["acme/web"].credential.as_str(),
        "app/31"
    );
    let problem = status
        .problems
        .iter()
        .find(|problem| problem.subject.contains("tiny"))
        .unwrap();
    assert!(
        problem.detail.contains("Administration (write)"),
        "{problem:?}"
    );

    watching.github.shutdown().await;
    assert_eq!(fake.count(&Method::DELETE, "/installation/token"), 3);
}

#[tokio::test]
async fn a_refused_installation_token_is_dropped_once_and_the_call_repeated_once() {
    static TOKENS: AtomicUsize = AtomicUsize::new(0);
    static REFUSE: AtomicUsize = AtomicUsize::new(0);
    let key = app_key();
    let world = app_world();
    let fake = Fake::start(serve_app(world, &TOKENS, &REFUSE)).await;
    let github = GitHub::connect(app_config(&fake, &key)).unwrap();
    // After a restart the installation's credential is known by its name alone.
    let mut wanted = registration("ls-1");
    wanted.credential = CredentialName::new("app/31");
    github.register(&wanted).await.unwrap();
    assert_eq!(TOKENS.load(Ordering::SeqCst), 1);
    REFUSE.store(1, Ordering::SeqCst);
    github.register(&wanted).await.unwrap();
    assert_eq!(TOKENS.load(Ordering::SeqCst), 2);
    assert!(bearer(&fake.seen().pop().unwrap()).ends_with(".1"));
    REFUSE.store(2, Ordering::SeqCst);
    let error = github.register(&wanted).await.unwrap_err();
    assert_eq!(TOKENS.load(Ordering::SeqCst), 3, "no third try");
    assert!(!error.to_string().contains("ghs_"), "{error}");
}

#[tokio::test]
async fn organisations_register_as_wide_as_the_token_may_and_enterprises_by_their_own() {
    let fake = Fake::start(|seen| {
        let organization = |login: &str| json!({"login": login, "id": 3, "type": "Organization"});
        let listed = |full: &str, id: u64| {
            let mut found = repository(id, full);
            found["owner"]["type"] = json!("Organization");
            Say::new(200, json!([found]))
        };
        match seen.target.split('?').next().unwrap() {
            "/users/open" => Say::new(200, organization("open")),
            "/users/closed" => Say::new(200, organization("closed")),
            "/users/nobody" => Say::new(404, json!({"message": "Not Found"})),
            "/orgs/open/repos" => listed("open/a", 1),
            "/orgs/closed/repos" => listed("closed/b", 2),
            "/orgs/closed/actions/runners" => {
                Say::new(403, json!({"message": "Must have admin rights"}))
            }
            "/orgs/open/actions/runners" => Say::new(200, json!({"runners": []})),
            "/enterprises/corp/actions/runners" => {
                Say::new(200, json!({"runners": [runner(3, "ls-x")]}))
            }
            _ if seen.target.contains("/actions/runs") => {
                Say::new(200, json!({"workflow_runs": []}))
            }
            _ => Say::new(404, json!({"message": "Not Found"})),
        }
    })
    .await;
    let mut config = fake.config();
    config.owners = vec!["open".into(), "closed".into(), "nobody".into()];
    config.enterprises = vec![enterprise("corp", &[])];
    let mut corp = token("corp", "ghp_corp");
    if let CredentialKind::Token(source) = corp.kind {
        corp.kind = CredentialKind::EnterpriseToken(source);
    }
    config.credentials.push(corp);
    let mut watching = Watching::start(config);
    let listed = watching
        .until("the enterprise's runners", |input| {
            matches!(
                input,
                Input::RunnersListed {
                    scope: Scope::Enterprise { .. },
                    ..
                }
            )
        })
        .await;
    assert!(matches!(listed, Input::RunnersListed { runners, .. } if runners.len() == 1));
    watching.next_sweep().await;
    let status = watching.status.borrow().clone();
    let of = |full: &str| {
        (
            status.repositories[full].scope.to_string(),
            status.repositories[full].credential.to_string(),
        )
    };
    assert_eq!(of("open/a"), ("open".into(), "main".into()));
    assert_eq!(of("closed/b"), ("enterprises/corp".into(), "corp".into()));
    let asked = fake.seen();
    let enterprise = asked
        .iter()
        .find(|seen| seen.target.starts_with("/enterprises"))
        .unwrap();
    assert_eq!(bearer(enterprise), "ghp_corp");
    let problem = status
        .problems
        .iter()
        .find(|problem| problem.subject == "owner nobody")
        .unwrap();
    assert!(problem.detail.contains("Add a token"), "{problem:?}");
}
