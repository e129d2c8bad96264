//! One simulated agent: a real key, certificate, connection and session, and the reports of a [`Machine`].
//!
//! ```text
//!   fleet -- Connect, Leave, Turn --> agent -- mTLS, session --> gateway
//!                                       '--> Tally: sessions, what failed
//! ```
//! It keeps its session as a real agent does: what ends unasked is begun again after the agent's own pauses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use patchwarden::gateway::budget::Budget;
use patchwarden::gateway::sessions::CHANGES;
use patchwarden::shell;
use patchwarden_agent::simulation::{self, Joined};
use patchwarden_protocol::agent_v1 as wire;
use patchwarden_protocol::agent_v1::from_agent::Message as Outbound;
use patchwarden_protocol::agent_v1::to_agent::Message as Inbound;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::machine::Machine;

/// Something that the gateway refuses at once and without looking anything up: its answer comes when everything before it is done with.
const QUESTION: &str = "GrantRequest";

/// The gateway must answer within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session that lasted so long worked: the pauses begin anew.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// What an agent is told.
#[derive(Debug)]
pub enum Command {
    /// Get a session and keep it; answered when it is there.
    Connect(oneshot::Sender<()>),
    /// Hang up, and stay away.
    Leave(oneshot::Sender<()>),
    /// Send reports and a question; answered with how long that took, or with nothing where the gateway would let it wait too long.
    Turn(Turn, oneshot::Sender<anyhow::Result<Option<Duration>>>),
}

/// What is sent before the question.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Whether each report is a new one.
    pub changed: bool,
    /// How many.
    pub reports: u32,
    /// It is not begun later than this.
    pub until: Instant,
}

/// What all agents count.
#[derive(Debug, Default)]
pub struct Tally {
    open: AtomicUsize,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    /// Sessions that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Sessions that could not be had or ended unasked, by their reason, since this was asked last.
    pub fn take_failures(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn failed(&self, error: &anyhow::Error) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(format!("{error:#}")).or_default() += 1;
    }
}

struct Session {
    sender: mpsc::Sender<wire::FromAgent>,
    inbound: Streaming<wire::ToAgent>,
    since: Instant,
    tally: Arc<Tally>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    async fn say(&self, message: Outbound) -> anyhow::Result<()> {
        self.sender.send(wire::FromAgent { message: Some(message) }).await.context("the session has ended")
    }

    async fn hear(&mut self) -> anyhow::Result<Inbound> {
        hear(&mut self.inbound).await
    }
}

async fn hear(inbound: &mut Streaming<wire::ToAgent>) -> anyhow::Result<Inbound> {
    let message = inbound
        .message()
        .await
        .map_err(|status| anyhow::anyhow!("the session ended: {:?}: {}", status.code(), status.message()))?;
    message.and_then(|message| message.message).context("the gateway ended the session")
}

/// A simulated agent.
pub struct Agent {
    joined: Joined,
    machine: Machine,
    budget: Budget,
    tally: Arc<Tally>,
    instance: wire::Instance,
}

impl Agent {
    /// Of a machine that has joined.
    pub fn new(joined: Joined, machine: Machine, tally: Arc<Tally>) -> Self {
        let id = format!("{:032x}", rand::random::<u128>());
        let instance = wire::Instance { id, ..wire::Instance::default() };
        Self { joined, machine, budget: Budget::new(CHANGES.0, CHANGES.1), tally, instance }
    }

    /// Does what it is told until nobody can tell it anything any more.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let (mut session, mut failures) = (None, 0);
        let mut connecting: Option<oneshot::Sender<()>> = None;
        let mut is_wanted = false;
        loop {
            if is_wanted && session.is_none() {
                match self.open().await {
                    Ok(opened) => {
                        session = Some(opened);
                        // Whoever asked may not wait any more.
                        if let Some(asked) = connecting.take() {
                            _ = asked.send(());
                        }
                    }
                    Err(error) => {
                        self.tally.failed(&error);
                        tokio::time::sleep(simulation::pause(failures)).await;
                        failures += 1;
                        continue;
                    }
                }
            }
            let heard = async {
                match &mut session {
                    Some(session) => session.hear().await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Connect(asked)) => {
                        is_wanted = true;
                        match session {
                            Some(_) => _ = asked.send(()),
                            None => connecting = Some(asked),
                        }
                        Ok(())
                    }
                    Some(Command::Leave(asked)) => {
                        (is_wanted, session) = (false, None);
                        _ = asked.send(());
                        Ok(())
                    }
                    Some(Command::Turn(turn, asked)) => {
                        let outcome = match &mut session {
                            Some(session) => self.turn(session, turn).await,
                            None => Err(anyhow::anyhow!("there is no session")),
                        };
                        _ = asked.send(outcome);
                        Ok(())
                    }
                },
                heard = heard => match (heard, &session) {
                    (Ok(message), Some(session)) => self.answer(session, message).await,
                    (Ok(_), None) => Ok(()),
                    (Err(error), _) => Err(error),
                },
            };
            if let Err(error) = ended {
                self.tally.failed(&error);
                if session.take().is_some_and(|session| session.since.elapsed() >= GOOD_SESSION) {
                    failures = 0;
                }
                tokio::time::sleep(simulation::pause(failures)).await;
                failures += 1;
            }
        }
    }

    async fn open(&mut self) -> anyhow::Result<Session> {
        let mut client = self.joined.connect().await?;
        let (sender, receiver) = mpsc::channel(64);
        let hello = wire::Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            report_digest: self.machine.report_digest().to_owned(),
            device_time: shell::now().to_string(),
            recipes_digest: Some(String::new()),
            settings_digest: Some(String::new()),
            // Its keys stay what they are.
            trust_digest: None,
            instance: Some(self.instance.clone()),
        };
        sender.send(wire::FromAgent { message: Some(Outbound::Hello(hello)) }).await.context("a new session")?;
        let opening = timeout(PATIENCE, client.session(ReceiverStream::new(receiver))).await;
        let inbound = opening
            .context("the gateway does not answer")?
            .map_err(|status| anyhow::anyhow!("the session was refused: {:?}: {}", status.code(), status.message()))?;
        let mut inbound = inbound.into_inner();
        match timeout(PATIENCE, hear(&mut inbound)).await.context("the gateway does not welcome")?? {
            Inbound::Welcome(_) => {}
            other => bail!("the gateway's first message is no welcome: {other:?}"),
        }
        self.budget = Budget::new(CHANGES.0, CHANGES.1);
        self.tally.open.fetch_add(1, Ordering::Relaxed);
        Ok(Session { sender, inbound, since: Instant::now(), tally: self.tally.clone() })
    }

    /// What a real agent says to what it hears. These agents get no orders.
    async fn answer(&self, session: &Session, message: Inbound) -> anyhow::Result<()> {
        match message {
            Inbound::SendReport(asked) => session.say(Outbound::Report(self.machine.report(asked.software)?)).await,
            other => bail!("the gateway says what nothing was said for: {other:?}"),
        }
    }

    /// The time from the first report to the answer to the question. What the gateway would let wait is not sent before its time.
    async fn turn(&mut self, session: &mut Session, turn: Turn) -> anyhow::Result<Option<Duration>> {
        let (mut from, mut budget) = (Instant::now(), self.budget.clone());
        for _ in 0..=turn.reports {
            from = budget.spend(from);
        }
        if from > turn.until {
            return Ok(None);
        }
        self.budget = budget;
        tokio::time::sleep_until(from).await;
        let reports = (0..turn.reports)
            .map(|_| if turn.changed { self.machine.change(self.joined.key()) } else { self.machine.report(false) });
        let reports: Vec<_> = reports.collect::<Result<_, _>>()?;
        let began = Instant::now();
        for report in reports {
            session.say(Outbound::Report(report)).await?;
        }
        session.say(Outbound::GrantRequest(wire::GrantRequest::default())).await?;
        let answered = async {
            loop {
                match session.hear().await? {
                    Inbound::Refused(refused) if refused.what == QUESTION => return anyhow::Ok(Some(began.elapsed())),
                    other => self.answer(session, other).await?,
                }
            }
        };
        timeout(PATIENCE, answered).await.context("the gateway does not answer")?
    }
}
