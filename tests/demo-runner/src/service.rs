//! The calls to GitHub's runner service.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{self, Answer};
use crate::settings::Settings;

/// A poll waits 50 s at the service.
const POLL: Duration = Duration::from_secs(65);
const CALL: Duration = Duration::from_secs(20);

/// Why a call did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The service said no: status and kind.
    Refused(u16, String),
    /// No answer, or none that can be read.
    Transport(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(status, kind) => write!(f, "the service answered {status} {kind}"),
            Self::Transport(why) => write!(f, "{why}"),
        }
    }
}

/// A message of the broker.
#[derive(Debug)]
pub(crate) enum Message {
    Job { request: String, run_url: String },
    Cancel { request: String },
    Other(String),
}

pub(crate) struct Service {
    settings: Settings,
    token: Mutex<Option<String>>,
}

impl Service {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            token: Mutex::new(None),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Gets a fresh access token.
    pub(crate) fn authenticate(&self) -> Result<String, Failed> {
        let assertion = self.settings.assertion().map_err(Failed::Transport)?;
        let form = format!(
            "grant_type=client_credentials&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion={assertion}"
        );
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        let answer = http::send(
            "POST",
            &self.settings.authorization_url,
            &headers,
            form.as_bytes(),
            CALL,
        )
        .map_err(Failed::Transport)?;
        let body = check(&answer)?;
        let token = body.get("access_token").and_then(Value::as_str);
        let token = token
            .ok_or_else(|| Failed::Transport("the token answer has no token".into()))?
            .to_owned();
        if let Ok(mut held) = self.token.lock() {
            *held = Some(token.clone());
        }
        Ok(token)
    }

    fn current(&self) -> Result<String, Failed> {
        match self.token.lock().ok().and_then(|t| t.clone()) {
            Some(t) => Ok(t),
            None => self.authenticate(),
        }
    }

    fn call(
        &self,
        method: &str,
        url: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, Failed> {
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let mut token = self.current()?;
        for attempt in 0..2 {
            let bearer = format!("Bearer {token}");
            let headers = [
                ("Authorization", bearer.as_str()),
                ("Content-Type", "application/json"),
            ];
            let answer =
                http::send(method, url, &headers, &bytes, limit).map_err(Failed::Transport)?;
            if answer.status != 401 || attempt == 1 {
                return Ok(answer);
            }
            // an hour has passed: once more with a fresh token
            token = self.authenticate()?;
        }
        Err(Failed::Transport("unauthorized".into()))
    }

    pub(crate) fn open_session(&self) -> Result<String, Failed> {
        let body = json!({"agent": {"name": self.settings.agent_name, "version": crate::VERSION, "osDescription": "Linux"}});
        let answer = self.call(
            "POST",
            &format!("{}/session", self.settings.server),
            Some(&body),
            CALL,
        )?;
        let body = check(&answer)?;
        let id = body.get("sessionId").and_then(Value::as_str);
        id.map(str::to_owned)
            .ok_or_else(|| Failed::Transport("the session answer has no id".into()))
    }

    pub(crate) fn close_session(&self, session: &str) -> Result<(), Failed> {
        let url = format!("{}/session?sessionId={session}", self.settings.server);
        check(&self.call("DELETE", &url, None, CALL)?).map(|_| ())
    }

    /// A long poll; `None` when nothing came.
    pub(crate) fn poll(&self, session: &str, busy: bool) -> Result<Option<Message>, Failed> {
        let url = format!(
            "{}/message?sessionId={session}&status={}&runnerVersion={}&os=Linux&architecture=X64&disableUpdate={}",
            self.settings.server,
            if busy { "Busy" } else { "Online" },
            crate::VERSION,
            self.settings.disable_update
        );
        let answer = self.call("GET", &url, None, POLL)?;
        if answer.status == 202 || (answer.status == 200 && answer.body.is_empty()) {
            return Ok(None);
        }
        let message = check(&answer)?;
        let kind = message
            .get("messageType")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let inner: Value = message
            .get("body")
            .and_then(Value::as_str)
            .and_then(|b| serde_json::from_str(b).ok())
            .unwrap_or(Value::Null);
        let text = |name: &str| {
            inner
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Ok(Some(match kind {
            "RunnerJobRequest" => Message::Job {
                request: text("runner_request_id"),
                run_url: text("run_service_url"),
            },
            "JobCancellation" => Message::Cancel {
                request: text("jobId"),
            },
            other => Message::Other(other.to_owned()),
        }))
    }

    pub(crate) fn acknowledge(&self, session: &str, request: &str) -> Result<(), Failed> {
        let url = format!("{}/acknowledge?sessionId={session}", self.settings.server);
        check(&self.call(
            "POST",
            &url,
            Some(&json!({"runnerRequestId": request})),
            Duration::from_secs(5),
        )?)
        .map(|_| ())
    }

    pub(crate) fn acquire(&self, run_url: &str, request: &str) -> Result<Value, Failed> {
        let body = json!({"jobMessageId": request, "runnerOS": "Linux"});
        check(&self.call("POST", &format!("{run_url}/acquirejob"), Some(&body), CALL)?)
    }

    pub(crate) fn renew(&self, run_url: &str, request: &str) -> Result<(), Failed> {
        check(&self.call(
            "POST",
            &format!("{run_url}/renewjob"),
            Some(&json!({"jobId": request})),
            CALL,
        )?)
        .map(|_| ())
    }

    pub(crate) fn complete(
        &self,
        run_url: &str,
        request: &str,
        conclusion: &str,
    ) -> Result<(), Failed> {
        let body = json!({"jobId": request, "conclusion": conclusion});
        check(&self.call("POST", &format!("{run_url}/completejob"), Some(&body), CALL)?).map(|_| ())
    }

    pub(crate) fn step(&self, run_url: &str, report: &Value) -> Result<(), Failed> {
        check(&self.call("POST", &format!("{run_url}/steps"), Some(report), CALL)?).map(|_| ())
    }
}

fn check(answer: &Answer) -> Result<Value, Failed> {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    if (200..300).contains(&answer.status) {
        return Ok(body);
    }
    let kind = body
        .get("errorKind")
        .or(body.get("error"))
        .and_then(Value::as_str)
        .unwrap_or_default();
    Err(Failed::Refused(answer.status, kind.to_owned()))
}

/// Tries a call again after failures of the transport and of the service itself, with growing pauses.
pub(crate) fn persist<T>(
    tries: u32,
    mut call: impl FnMut() -> Result<T, Failed>,
) -> Result<T, Failed> {
    let mut pause = Duration::from_millis(250);
    for _ in 1..tries {
        match call() {
            Err(Failed::Transport(_)) => {}
            Err(Failed::Refused(status, _)) if status >= 500 => {}
            other => return other,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(8));
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_and_a_lost_connection_is_tried_again() {
        let mut n = 0;
        let got = persist(5, || {
            n += 1;
            if n < 3 {
                Err(Failed::Transport("gone".into()))
            } else {
                Ok(n)
            }
        });
        assert_eq!(got, Ok(3));
        let mut n = 0;
        let got: Result<(), _> = persist(5, || {
            n += 1;
            Err(Failed::Refused(409, String::new()))
        });
        assert_eq!((got, n), (Err(Failed::Refused(409, String::new())), 1));
    }
}
