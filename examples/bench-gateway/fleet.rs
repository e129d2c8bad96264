//! Many agents, and the load that they make together.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::agent::{Agent, Command, Tally, Turn};

/// Agents that connect at the same time where they are asked to. Others wait for their turn, so that no connection waits in the gateway.
const CONNECTING: usize = 64;

/// All agents.
pub struct Fleet {
    agents: Vec<mpsc::Sender<Command>>,
    tally: Arc<Tally>,
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Whether each report is a new one.
    pub changed: bool,
    /// Reports of an agent in its turn.
    pub reports: u32,
    /// Agents that have a turn at the same time.
    pub at_once: usize,
    /// For how long agents get new turns.
    pub time: Duration,
}

/// How long turns took.
#[derive(Debug)]
pub struct Turns {
    /// Sorted.
    times: Vec<Duration>,
    /// From the first turn to the end of the last.
    pub elapsed: Duration,
}

impl Turns {
    /// How many.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// What so many in a hundred did not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times.get((self.times.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }
}

impl Fleet {
    /// Starts the agents. None has a session yet.
    pub fn start(agents: Vec<Agent>, tally: Arc<Tally>) -> Self {
        let start = |agent: Agent| {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(agent.run(receiver));
            sender
        };
        Self { agents: agents.into_iter().map(start).collect(), tally }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.agents.len()
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.tally.open()
    }

    /// What failed since this was asked last.
    pub fn take_failures(&self) -> BTreeMap<String, u64> {
        self.tally.take_failures()
    }

    /// Gives some of the agents a session, and waits until they have it.
    pub async fn connect(&self, agents: Range<usize>) -> anyhow::Result<()> {
        self.tell_all(agents, Command::Connect).await
    }

    /// Has all agents hang up.
    pub async fn leave(&self) -> anyhow::Result<()> {
        self.tell_all(0..self.len(), Command::Leave).await
    }

    async fn tell_all(&self, agents: Range<usize>, command: fn(oneshot::Sender<()>) -> Command) -> anyhow::Result<()> {
        let told = self.agents[agents].iter().map(|agent| tell(agent, command));
        stream::iter(told).buffer_unordered(CONNECTING).try_for_each(async |()| Ok(())).await
    }

    /// Gives the agents turns until the time is over, each agent after all others, or until the gateway would let them wait beyond it.
    pub async fn work(&self, load: Load) -> anyhow::Result<Turns> {
        let began = Instant::now();
        let turn = Turn { changed: load.changed, reports: load.reports, until: began + load.time };
        let workers = load.at_once.min(self.len());
        let worker = |first: usize| async move {
            let mut times = Vec::new();
            for agent in self.agents.iter().skip(first).step_by(workers).cycle() {
                if Instant::now() >= turn.until {
                    break;
                }
                match tell(agent, |asked| Command::Turn(turn, asked)).await?? {
                    Some(time) => times.push(time),
                    None => break,
                }
            }
            anyhow::Ok(times)
        };
        let mut times = stream::iter((0..workers).map(worker)).buffer_unordered(workers).try_concat().await?;
        times.sort_unstable();
        ensure!(!times.is_empty(), "no agent had a turn");
        Ok(Turns { times, elapsed: began.elapsed() })
    }
}

async fn tell<T>(
    agent: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> anyhow::Result<T> {
    let (asked, answer) = oneshot::channel();
    agent.send(command(asked)).await.ok().context("an agent has ended")?;
    answer.await.context("an agent has ended")
}
