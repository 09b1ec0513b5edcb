//! The sender: so many kept connections, on each one delivery at a time, written by hand so that it costs little beside what it measures.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use scheduler_core::model::JobPhase;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::reached;
use crate::{fleet::SECRET, webhook::JobEvent};

/// One in so many deliveries comes a second time, as GitHub's do when an answer was late.
const REPEATED: u64 = 10;
/// Stands for the job's id in the prepared body; as long as every id.
const MARK: u64 = 777_777_777_777;
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose jobs are told.
#[derive(Clone, Copy)]
pub(crate) struct Targets {
    pub(crate) owner: &'static str,
    pub(crate) repositories: usize,
    /// Twelve digits, as all that follow.
    pub(crate) first_job: u64,
    pub(crate) body: usize,
}

/// How far a job's life was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Queued,
    InProgress,
    Completed,
}

impl Step {
    const ALL: [Self; 3] = [Self::Queued, Self::InProgress, Self::Completed];

    fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }

    /// What the store must hold at least.
    pub(crate) fn phase(self) -> JobPhase {
        match self {
            Self::Queued => JobPhase::Queued,
            Self::InProgress => JobPhase::InProgress,
            Self::Completed => JobPhase::Completed,
        }
    }
}

/// The furthest step of each job that was answered with 202.
pub(crate) type Acknowledged = BTreeMap<u64, Step>;

/// Everything that was answered.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) acknowledged: Acknowledged,
    pub(crate) count: usize,
    /// Heads of answers that were not 202.
    pub(crate) refused: Vec<String>,
}

/// A stretch of steady load.
pub(crate) struct Steady {
    pub(crate) answered: usize,
    pub(crate) elapsed: Duration,
    pub(crate) waited_ms: Vec<f64>,
    /// Seconds.
    pub(crate) server_cpu: f64,
}

impl Steady {
    pub(crate) fn rate(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64()
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicUsize,
    samples: Mutex<Vec<(Instant, f64)>>,
}

/// Senders at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    senders: JoinSet<Answers>,
}

impl Load {
    pub(crate) async fn start(address: &str, targets: Targets, connections: usize) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let bodies = Arc::new(prepare(targets)?);
        let mut senders = JoinSet::new();
        for at in 0..connections {
            let stream = TcpStream::connect(address)
                .await
                .context("connect to the webhook listener")?;
            stream.set_nodelay(true)?;
            let sender = Sender {
                stream,
                shared: Arc::clone(&shared),
                bodies: Arc::clone(&bodies),
                key: hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()),
                job: targets.first_job + at as u64,
                step_by: connections as u64,
                request: Vec::new(),
            };
            senders.spawn(sender.run());
        }
        Ok(Self { shared, senders })
    }

    /// Waits for so many answers.
    pub(crate) async fn answered(&self, count: usize, within: Duration) -> Result<()> {
        let enough = || self.shared.answered.load(Ordering::Relaxed) >= count;
        reached("the first answers", within, enough).await
    }

    /// Counts for `measured` after `warm_up`.
    pub(crate) async fn measure(
        &self,
        warm_up: Duration,
        measured: Duration,
        cpu: impl Fn() -> Result<f64>,
    ) -> Result<Steady> {
        tokio::time::sleep(warm_up).await;
        let (begun, before) = (Instant::now(), cpu()?);
        tokio::time::sleep(measured).await;
        let (ended, after) = (Instant::now(), cpu()?);
        let samples = self
            .shared
            .samples
            .lock()
            .map_err(|_| anyhow::anyhow!("a sender panicked"))?;
        let waited_ms: Vec<f64> = samples
            .iter()
            .filter(|(at, _)| (begun..ended).contains(at))
            .map(|(_, waited)| *waited)
            .collect();
        Ok(Steady {
            answered: waited_ms.len(),
            elapsed: ended - begun,
            waited_ms,
            server_cpu: after - before,
        })
    }

    /// Ends the senders, each after the answer it waits for or with its connection.
    pub(crate) async fn stop(mut self) -> Answers {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        while let Some(ended) = self.senders.join_next().await {
            let one = ended.unwrap_or_default();
            all.acknowledged.extend(one.acknowledged);
            all.count += one.count;
            all.refused.extend(one.refused);
        }
        all
    }
}

/// One delivery's body with places for the job's id.
struct Body {
    step: Step,
    bytes: Vec<u8>,
    ids: Vec<usize>,
}

/// The bodies of every repository, a job's steps in order.
fn prepare(targets: Targets) -> Result<Vec<[Body; 3]>> {
    let mark = MARK.to_string();
    let body = |repository: usize, step: Step| {
        let event = JobEvent {
            id: MARK,
            owner: targets.owner,
            repo: &format!("repo{repository}"),
            repo_id: repository as u64 + 1,
            action: step.word(),
            status: step.word(),
            conclusion: (step == Step::Completed).then_some("success"),
            labels: &["self-hosted", "linux", "x64"],
            runner: None,
        };
        let bytes = event.body(targets.body).to_vec();
        let ids: Vec<usize> = (0..bytes.len() - mark.len())
            .filter(|at| bytes[*at..].starts_with(mark.as_bytes()))
            .collect();
        Body { step, bytes, ids }
    };
    let bodies: Vec<[Body; 3]> = (0..targets.repositories)
        .map(|repository| Step::ALL.map(|step| body(repository, step)))
        .collect();
    anyhow::ensure!(
        bodies.iter().flatten().all(|body| body.ids.len() == 2),
        "a job's id and its run's id are in each body"
    );
    Ok(bodies)
}

struct Sender {
    stream: TcpStream,
    shared: Arc<Shared>,
    bodies: Arc<Vec<[Body; 3]>>,
    key: hmac::Key,
    job: u64,
    step_by: u64,
    request: Vec<u8>,
}

impl Sender {
    async fn run(mut self) -> Answers {
        let mut answers = Answers::default();
        let bodies = Arc::clone(&self.bodies);
        loop {
            let job = self.job;
            self.job += self.step_by;
            for body in &bodies[(job % bodies.len() as u64) as usize] {
                let mut delivery = rand::random::<u128>();
                loop {
                    if self.shared.stop.load(Ordering::Relaxed) {
                        return answers;
                    }
                    let sent = Instant::now();
                    let Ok(head) = self.deliver(body, job, delivery).await else {
                        // The server was killed; what was under way was not answered.
                        return answers;
                    };
                    if !head.starts_with("HTTP/1.1 202") {
                        answers.refused.push(head);
                        return answers;
                    }
                    answers.count += 1;
                    answers.acknowledged.insert(job, body.step);
                    self.note(sent);
                    // A second time now and then: the same delivery, the same id.
                    if !delivery.is_multiple_of(u128::from(REPEATED)) {
                        break;
                    }
                    delivery += 1;
                }
            }
        }
    }

    fn note(&self, sent: Instant) {
        self.shared.answered.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut samples) = self.shared.samples.lock() {
            let now = Instant::now();
            samples.push((now, (now - sent).as_secs_f64() * 1_000.0));
        }
    }

    /// Sends one delivery; the head of the answer.
    async fn deliver(&mut self, body: &Body, job: u64, delivery: u128) -> std::io::Result<String> {
        let id = job.to_string();
        let mut bytes = body.bytes.clone();
        for at in &body.ids {
            bytes[*at..*at + id.len()].copy_from_slice(id.as_bytes());
        }
        let signature = hex::encode(hmac::sign(&self.key, &bytes));
        let guid = delivery / u128::from(REPEATED);
        self.request.clear();
        self.request.extend_from_slice(
            format!(
                "POST /webhooks/github HTTP/1.1\r\nhost: bench\r\nuser-agent: GitHub-Hookshot/bench\r\n\
                 content-type: application/json\r\nx-github-event: workflow_job\r\n\
                 x-github-delivery: {guid:032x}\r\nx-hub-signature-256: sha256={signature}\r\n\
                 content-length: {}\r\n\r\n",
                bytes.len()
            )
            .as_bytes(),
        );
        self.request.extend_from_slice(&bytes);
        self.stream.write_all(&self.request).await?;
        tokio::time::timeout(PATIENCE, answer(&mut self.stream)).await?
    }
}

/// Reads one answer, body and all; returns its head.
async fn answer(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut read = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|text| text.trim().parse::<usize>().ok())
            .unwrap_or(0);
        while read.len() < end + 4 + length {
            if stream.read_buf(&mut read).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        return Ok(head);
    }
}
