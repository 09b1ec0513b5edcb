//! The binary itself: arguments, the ready line, SIGTERM, kill -9 on a real store.

use std::{net::SocketAddr, path::Path, process::Stdio};

use http::StatusCode;
use longshore_proto::v1::{WhoAmIRequest, admin_service_client::AdminServiceClient};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::harness::{Bearer, PATIENCE, deliver_to, queued, send};

const BINARY: &str = env!("CARGO_BIN_EXE_longshore-scheduler");

fn command(state: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .env_clear()
        .arg("--state-dir")
        .arg(state)
        .args(["--api-listen", "127.0.0.1:0"])
        .args(["--node-listen", "127.0.0.1:0"])
        .args(["--webhook-listen", "127.0.0.1:0"])
        // Nobody answers there: a scheduler starts while GitHub is down.
        .args(["--github-api-url", "http://127.0.0.1:1"])
        .kill_on_drop(true);
    command
}

/// The webhook secret as a careful operator keeps it.
fn write_secret(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, super::fake_github::SECRET).expect("written");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).expect("set");
}

async fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .expect("ends in time")
        .expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Starts it and reads its ready line.
async fn start(command: &mut Command) -> (Child, serde_json::Value) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let stdout = child.stdout.take().expect("piped");
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    let read = tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await;
    read.expect("ready in time").expect("readable");
    let ready = serde_json::from_str(&line).expect("one line of JSON");
    (child, ready)
}

fn address(ready: &serde_json::Value, listener: &str) -> SocketAddr {
    let text = ready[listener].as_str().expect("an address");
    text.parse().expect("an address")
}

#[tokio::test]
async fn a_misspelt_key_ends_with_2_and_the_nearest_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("scheduler.toml");
    std::fs::write(&file, "[scheduler]\nmax_runer = 3\n").expect("written");
    let (code, _, errors) = output(command(folder.path()).arg("--config").arg(&file)).await;
    assert_eq!(code, Some(2), "{errors}");
    assert!(
        errors.contains("did you mean `scheduler.max_runners`?"),
        "{errors}"
    );
}

#[tokio::test]
async fn an_api_with_a_certificate_speaks_tls_and_no_plain_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("signed");
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, signed.cert.pem()).expect("written");
    std::fs::write(&key, signed.signing_key.serialize_pem()).expect("written");
    let state = folder.path().join("state");
    let with_files = || {
        let mut command = command(&state);
        command.arg("--api-cert-file").arg(&certificate);
        command.arg("--api-key-file").arg(&key);
        command
    };
    // A key that others may read is refused by name.
    mode(&key, 0o644);
    let (code, _, errors) = output(&mut with_files()).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("k.pem"), "{errors}");
    mode(&key, 0o600);
    let (_child, ready) = start(&mut with_files()).await;
    let token = ready["token_file"].as_str().expect("a token file");
    let token = std::fs::read_to_string(token).expect("readable");
    let bearer = Bearer(token.trim().to_owned());
    let api = address(&ready, "api");
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(signed.cert.pem()));
    let secured = Endpoint::from_shared(format!("https://localhost:{}", api.port()))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .expect("an endpoint");
    let mut admin = AdminServiceClient::with_interceptor(secured.connect_lazy(), bearer.clone());
    let me = admin.who_am_i(WhoAmIRequest {}).await.expect("answers");
    assert_eq!(me.into_inner().role, "admin");
    let plain = Endpoint::from_shared(format!("http://{api}")).expect("an endpoint");
    let mut admin = AdminServiceClient::with_interceptor(plain.connect_lazy(), bearer);
    assert!(admin.who_am_i(WhoAmIRequest {}).await.is_err());
}

fn mode(file: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(file, permissions).expect("set");
}

#[tokio::test]
async fn check_config_shows_origins_and_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut check = command(folder.path());
    check
        .arg("--check-config")
        .env("GITHUB_TOKEN", "ghp_neverprinted")
        .env("LONGSHORE_SINCE_DAYS", "3")
        .env("LONGSHORE_SINCE_DAY", "4");
    let (code, shown, errors) = output(&mut check).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(
        shown.contains("scheduler.since_days = \"3\"  # environment LONGSHORE_SINCE_DAYS"),
        "{shown}"
    );
    assert!(
        shown.contains("did you mean LONGSHORE_SINCE_DAYS?"),
        "{shown}"
    );
    assert!(!shown.contains("neverprinted") && !errors.contains("neverprinted"));
}

#[tokio::test]
async fn a_secret_that_its_group_may_read_is_said_and_one_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let token = folder.path().join("token");
    std::fs::write(&token, "ghp_neverprinted").expect("written");
    for (mode, code, told) in [(0o600, 0, false), (0o640, 0, true), (0o604, 1, true)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&token, permissions).expect("set");
        let mut check = command(folder.path());
        check.args(["--check-config", "--github-token-file"]);
        let (ended, shown, errors) = output(check.arg(&token)).await;
        assert_eq!(ended, Some(code), "{mode:o}: {errors}");
        let all = shown + &errors;
        let warning = format!("chmod 600 {}", token.display());
        assert_eq!(all.contains(&warning), told, "{mode:o}: {all}");
        assert!(!all.contains("neverprinted"));
    }
}

#[tokio::test]
async fn a_key_of_somebody_else_is_refused_by_its_owner() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    write_secret(&key);
    // Giving a file away takes root, as the tests of containers do.
    std::os::unix::fs::chown(&key, Some(4242), None).expect("the tests run as root");
    let mut check = command(folder.path());
    check.args([
        "--check-config",
        "--github-app-id",
        "7",
        "--github-app-key-file",
    ]);
    let (code, _, errors) = output(check.arg(&key)).await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(
        errors.contains("belongs to user 4242") && errors.contains("chown root"),
        "{errors}"
    );
}

#[tokio::test]
async fn a_second_scheduler_on_one_state_folder_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_child, _) = start(&mut command(folder.path())).await;
    let (code, _, errors) = output(&mut command(folder.path())).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("another scheduler"), "{errors}");
}

#[tokio::test]
async fn kill_9_leaves_a_store_that_starts_again_and_sigterm_ends_it_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    write_secret(&secret);
    let state = folder.path().join("state");
    let scheduler = || {
        let mut scheduler = command(&state);
        scheduler.arg("--webhook-secret-file").arg(&secret);
        scheduler
    };
    let (mut child, ready) = start(&mut scheduler()).await;
    assert_eq!(ready["ready"], true);
    let refused = deliver_to(address(&ready, "webhooks"), &queued(1)).await;
    // Signed rightly, yet not a payload of GitHub's: the real parser is behind it.
    assert!(refused.is_some_and(|status| status != StatusCode::UNAUTHORIZED));
    let live = format!("http://{}/readyz", address(&ready, "api"));
    assert_eq!(
        send("GET", &live, &[], Default::default()).await.0,
        StatusCode::OK
    );
    child.kill().await.expect("killed");

    let (mut child, _) = start(&mut scheduler()).await;
    let pid = child.id().expect("runs").to_string();
    let told = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(told.expect("kill runs").success());
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
    assert_eq!(
        ended.expect("ends in time").expect("waited").code(),
        Some(0)
    );
}

/// A socket as systemd listens at, and what comes in.
struct Systemd {
    socket: tokio::net::UnixDatagram,
    path: std::path::PathBuf,
}

impl Systemd {
    fn in_folder(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).expect("bound");
        Self { socket, path }
    }

    async fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let told = tokio::time::timeout(PATIENCE, self.socket.recv(&mut buffer)).await;
        let length = told.expect("told in time").expect("readable");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

#[tokio::test]
async fn systemd_hears_when_it_is_ready_that_the_driver_answers_and_when_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let systemd = Systemd::in_folder(folder.path());
    let mut scheduler = command(&folder.path().join("state"));
    scheduler
        .env("NOTIFY_SOCKET", &systemd.path)
        .env("WATCHDOG_USEC", "300000");
    let (mut child, _) = start(&mut scheduler).await;
    assert_eq!(systemd.told().await, "READY=1");
    for _ in 0..3 {
        assert_eq!(systemd.told().await, "WATCHDOG=1");
    }
    let pid = child.id().expect("runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(sent.expect("kill runs").success());
    loop {
        match systemd.told().await.as_str() {
            "WATCHDOG=1" => {}
            told => {
                assert_eq!(told, "STOPPING=1");
                break;
            }
        }
    }
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
    assert!(ended.expect("ends in time").expect("waited").success());
}

#[tokio::test]
async fn what_systemd_hands_over_is_used_and_its_mode_is_its_own_matter() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let credentials = folder.path().join("credentials");
    std::fs::create_dir(&credentials).expect("made");
    for name in ["github-token", "webhook-secret", "webhook-secret-next"] {
        let file = credentials.join(name);
        std::fs::write(&file, "ghp_neverprinted").expect("written");
        // As the access list of systemd looks.
        let mode = std::fs::Permissions::from_mode(0o440);
        std::fs::set_permissions(&file, mode).expect("set");
    }
    let mut check = command(folder.path());
    check
        .arg("--check-config")
        .env("CREDENTIALS_DIRECTORY", &credentials);
    let (code, shown, errors) = output(&mut check).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(shown.contains("# credential github-token"), "{shown}");
    assert!(shown.contains("webhook-secret-next"), "{shown}");
    assert!(
        !shown.contains("chmod") && !shown.contains("neverprinted"),
        "{shown}"
    );
}

/// The lines it logs, until one says this.
async fn logged(
    lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
    says: &str,
) -> Vec<String> {
    let mut seen = Vec::new();
    let read = async {
        while let Some(line) = lines.next_line().await.expect("readable") {
            let found = line.contains(says);
            seen.push(line);
            if found {
                return;
            }
        }
        panic!("it ended without {says}");
    };
    let read = tokio::time::timeout(PATIENCE, read).await;
    assert!(read.is_ok(), "{says} was not logged: {seen:?}");
    seen
}

#[tokio::test]
async fn a_changed_configuration_is_taken_in_at_sighup_and_a_wrong_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("scheduler.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    write("[[pools]]\nname = \"first\"\n");
    let secret = folder.path().join("secret");
    write_secret(&secret);
    let mut scheduler = command(&folder.path().join("state"));
    scheduler
        .arg("--config")
        .arg(&file)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = scheduler.spawn().expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut ready = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let read = tokio::time::timeout(PATIENCE, stdout.read_line(&mut ready)).await;
    read.expect("ready in time").expect("readable");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("one line of JSON");
    let webhooks = address(&ready, "webhooks");
    let pid = child.id().expect("runs").to_string();
    let hang_up = || async {
        let sent = Command::new("kill").args(["-HUP", &pid]).status().await;
        assert!(sent.expect("kill runs").success());
    };
    // Nothing could have signed it: no secret is known.
    let refused = deliver_to(webhooks, &queued(1)).await;
    assert_ne!(refused, Some(StatusCode::BAD_REQUEST));

    write("[[pools]]\nname = \"first\"\ncpus = 2\n");
    hang_up().await;
    let told = logged(&mut lines, "the configuration stays as it was").await;
    let last = told.last().expect("a line");
    assert!(last.contains("did you mean `cpu`? (line 3)"), "{last}");

    write(&format!(
        "[scheduler]\nretention = \"2d\"\n[telemetry]\nlog = \"debug\"\n[github]\nwebhook_secret_files = [{:?}]\n\
         [[pools]]\nname = \"second\"\n",
        secret.display().to_string()
    ));
    hang_up().await;
    let told = logged(&mut lines, "needs a restart").await;
    assert!(told.last().expect("a line").contains("scheduler.retention"));
    let applied = told.iter().find(|line| line.contains("is in force\""));
    let applied = applied.expect("what is in force is told");
    for what in ["telemetry.log", "github.webhook_secret_files", "pools"] {
        assert!(applied.contains(what), "{what}: {applied}");
    }
    // The new secret signs from now on: the broken payload is refused for what it is.
    let from = tokio::time::Instant::now();
    loop {
        let status = deliver_to(webhooks, &queued(1)).await.expect("an answer");
        if status != StatusCode::UNAUTHORIZED && status != StatusCode::NOT_FOUND {
            break;
        }
        assert!(from.elapsed() < PATIENCE, "{status}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    hang_up().await;
    logged(&mut lines, "nothing in it changed").await;
    child.kill().await.expect("killed");
}
