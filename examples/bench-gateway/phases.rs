//! What is measured, one after the other.

use std::time::Duration;

use anyhow::{bail, ensure};
use tokio::time::Instant;

use crate::fleet::{Fleet, Load, Turns};
use crate::process::{Gateway, Program};
use crate::search::search;
use crate::world::{World, Writes};

/// Agents that have a turn at the same time, where as much as possible is to be done.
const CROWD: usize = 64;

/// The same where the time of one answer is asked for: as many as there are processors on a small machine, so that none waits for many others.
const FEW: usize = 2;

/// Unchanged reports of a turn, where as much as possible is to be done: half of what a session may send at once.
const MANY: u32 = 9;

/// How long what was done may take to be shown by the API server.
const SHOWN: Duration = Duration::from_mins(10);

/// Without a write for so long there is none to come: a change waits for 0.3 s, a failed write for one second.
const QUIET: Duration = Duration::from_secs(2);

/// All agents must be back within this.
const BACK: Duration = Duration::from_mins(3);

/// Of the agents so many come first where memory is measured: what does not depend on their number shows.
const FIRST: usize = 10;

/// What is measured.
pub struct Bench<'a> {
    /// The cluster.
    pub world: &'a World,
    /// The agents.
    pub fleet: Fleet,
    /// The gateway.
    pub program: Program,
    /// How long each kind of load lasts.
    pub time: Duration,
}

impl Bench<'_> {
    /// Measures, and prints each thing when it is known.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut gateway = self.program.start()?;
        gateway.ready().await?;
        self.first_reports(&gateway).await?;
        say(&format!(
            "with their reports, each object {} bytes as JSON: {}",
            self.world.object_bytes().await?,
            self.world.cost().await?
        ));
        self.unchanged(&gateway).await?;
        self.changed(&gateway).await?;
        self.search(&gateway).await?;
        say(&format!("after all changes: {}", self.world.cost().await?));
        // Not in the grace of 15 s: else those that have left would be shown as offline.
        self.fleet.leave().await?;
        gateway.kill().await?;
        let gateway = self.memory().await?;
        let gateway = self.reconnect(gateway).await?;
        gateway.kill().await?;
        Ok(())
    }

    /// Each agent's first session and report, with all of its software.
    async fn first_reports(&self, gateway: &Gateway) -> anyhow::Result<()> {
        let (began, cpu, writes) = (Instant::now(), gateway.cpu()?, self.world.writes().await?);
        let agents = self.fleet.len();
        self.fleet.connect(0..agents).await?;
        let connected = began.elapsed();
        // They come in turns, and each list of software after its report.
        let kept = async || {
            let (changed, waiting) = (gateway.metric(CHANGED).await?, gateway.metric(WAITING).await?);
            Ok(changed >= agents as u64 && waiting == 0)
        };
        ensure!(self.wait_until(kept, SHOWN).await?, "not every first report is kept");
        let written = self.writes_end(gateway, began).await?;
        self.wait_until_shown(|_| 1).await?;
        say(&format!(
            "first sessions: {agents} in {:.1} s; first reports, all software with them: shown after {:.1} s; {:.2} ms of the gateway's processor time for each; {}",
            connected.as_secs_f64(),
            written.as_secs_f64(),
            gateway.cpu()?.saturating_sub(cpu).as_secs_f64() * 1000.0 / count(agents),
            self.writes_since(&writes).await?
        ));
        self.no_failures()
    }

    async fn unchanged(&self, gateway: &Gateway) -> anyhow::Result<()> {
        let before = self.world.writes().await?;
        for (words, at_once, reports) in [("as many as possible", CROWD, MANY), ("one answer", FEW, 1)] {
            let counted = gateway.metric(UNCHANGED).await?;
            let cpu = gateway.cpu()?;
            let turns = self.fleet.work(Load { changed: false, reports, at_once, time: self.time }).await?;
            let cpu = gateway.cpu()?.saturating_sub(cpu).as_secs_f64();
            let done = gateway.metric(UNCHANGED).await? - counted;
            ensure!(done == turns.count() as u64 * u64::from(reports), "{done} reports were counted as unchanged");
            say(&format!(
                "unchanged reports, {words} ({reports} and a question, {at_once} agents at once): {} in {:.1} s; {:.0}/s for each core of the gateway ({:.1} s of processor time); answered after {}",
                done,
                turns.elapsed.as_secs_f64(),
                count(done) / cpu,
                cpu,
                times(&turns)
            ));
        }
        let writes = self.writes_since(&before).await?;
        ensure!(writes == NONE, "unchanged reports have made the gateway write: {writes}");
        say("unchanged reports: no writes to the API server");
        self.no_failures()
    }

    async fn changed(&self, gateway: &Gateway) -> anyhow::Result<()> {
        let mut expected = self.world.shown().await?.0;
        for (words, at_once) in [("as many as possible", CROWD), ("one answer", FEW)] {
            let (before, counted, cpu) = (self.world.writes().await?, gateway.metric(CHANGED).await?, gateway.cpu()?);
            let turns = self.fleet.work(Load { changed: true, reports: 1, at_once, time: self.time }).await?;
            let done = gateway.metric(CHANGED).await? - counted;
            ensure!(done == turns.count() as u64, "{done} of {} reports were counted as changed", turns.count());
            self.writes_end(gateway, Instant::now()).await?;
            let total = expected.values().sum::<u64>() + done;
            let shown = self.wait_until(async || Ok(self.world.shown().await?.0.values().sum::<u64>() == total), SHOWN);
            ensure!(shown.await?, "not every changed report is shown by the API server");
            let cpu = gateway.cpu()?.saturating_sub(cpu).as_secs_f64();
            say(&format!(
                "changed reports, {words} (one, {at_once} agents at once): {done} in {:.1} s, {:.0}/s; {:.0}/s for each core of the gateway ({cpu:.1} s of processor time, until all are shown); kept, and answered, after {}; {}",
                turns.elapsed.as_secs_f64(),
                count(done) / turns.elapsed.as_secs_f64(),
                count(done) / cpu,
                times(&turns),
                self.writes_since(&before).await?
            ));
            expected = self.world.shown().await?.0;
        }
        self.no_failures()
    }

    async fn search(&self, gateway: &Gateway) -> anyhow::Result<()> {
        let cpu = gateway.cpu()?;
        let searches = search(self.world).await?;
        ensure!(searches.found > 0, "the API finds nothing");
        let milliseconds = |percent| searches.percentile(percent).as_secs_f64() * 1000.0;
        say(&format!(
            "searches for a package, one after the other, the first 100 devices that have it: {}, answered after {:.2} ms (p50), {:.2} ms (p99); {:.2} ms of processor time for each",
            searches.count(),
            milliseconds(50),
            milliseconds(99),
            gateway.cpu()?.saturating_sub(cpu).as_secs_f64() * 1000.0 / count(searches.count())
        ));
        Ok(())
    }

    /// What a session takes that has nothing to do.
    async fn memory(&self) -> anyhow::Result<Gateway> {
        let mut gateway = self.program.start()?;
        gateway.ready().await?;
        let none = gateway.resident().await?;
        let (first, all) = (self.fleet.len() / FIRST, self.fleet.len());
        self.fleet.connect(0..first).await?;
        let some = gateway.resident().await?;
        self.fleet.connect(first..all).await?;
        let many = gateway.resident().await?;
        let each = |bytes: u64, sessions: usize| count(bytes) / 1024.0 / count(sessions);
        say(&format!(
            "resident memory with {all} devices and no session: {:.1} MiB; with {first} idle sessions {:.1} MiB ({:.1} KiB each); with {all} {:.1} MiB ({:.1} KiB each)",
            mebibytes(none),
            mebibytes(some),
            each(some.saturating_sub(none), first),
            mebibytes(many),
            each(many.saturating_sub(none), all)
        ));
        self.no_failures()?;
        Ok(gateway)
    }

    /// The gateway is killed and started again: all agents come back by themselves.
    async fn reconnect(&self, gateway: Gateway) -> anyhow::Result<Gateway> {
        let (agents, writes) = (self.fleet.len(), self.world.writes().await?);
        ensure!(self.fleet.sessions() == agents, "{} of {agents} agents have a session", self.fleet.sessions());
        gateway.kill().await?;
        let began = Instant::now();
        let mut gateway = self.program.start()?;
        gateway.ready().await?;
        let ready = began.elapsed();
        let while_away = self.fleet.take_failures();
        let cpu = gateway.cpu()?;
        let back = self.wait_until(async || Ok(self.fleet.sessions() == agents), BACK).await?;
        let (elapsed, failures) = (began.elapsed(), self.fleet.take_failures());
        say(&format!(
            "killed (-9) with {agents} sessions and started again: ready after {:.1} s, {} sessions back after {:.1} s ({:.2} ms of processor time for each); while it was away: {while_away:?}; errors after that: {failures:?}",
            ready.as_secs_f64(),
            self.fleet.sessions(),
            elapsed.as_secs_f64(),
            gateway.cpu()?.saturating_sub(cpu).as_secs_f64() * 1000.0 / count(agents),
        ));
        ensure!(back, "not all agents are back after {} s", BACK.as_secs());
        self.writes_end(&gateway, Instant::now()).await?;
        // Longer than it takes until a device counts as offline after the gateway's start.
        let online = async || Ok(self.world.shown().await?.1 == agents);
        ensure!(self.wait_until(online, SHOWN).await?, "a device that is back is shown as offline");
        say(&format!("the restart: {}", self.writes_since(&writes).await?));
        Ok(gateway)
    }

    async fn wait_until_shown(&self, counter: impl Fn(&str) -> u64) -> anyhow::Result<()> {
        let agents = self.fleet.len();
        let all = async || {
            let (counters, online) = self.world.shown().await?;
            Ok(online == agents && counters.len() == agents && counters.iter().all(|(name, it)| *it == counter(name)))
        };
        if self.wait_until(all, SHOWN).await? { Ok(()) } else { bail!("not every report is shown by the API server") }
    }

    /// When the gateway has written last, or kept a list of software, after `began`, as soon as it has done neither for a while. To ask for all devices all the time would
    /// keep the API server from what it is asked to write.
    async fn writes_end(&self, gateway: &Gateway, began: Instant) -> anyhow::Result<Duration> {
        let done = async || {
            let unchanged = gateway.metric(UNCHANGED).await?;
            anyhow::Ok((gateway.metric(WRITES).await?, unchanged))
        };
        let (mut last, mut known) = (began.elapsed(), done().await?);
        while began.elapsed() < last + QUIET {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = done().await?;
            if now != known {
                (last, known) = (began.elapsed(), now);
            }
        }
        Ok(last)
    }

    async fn wait_until(&self, holds: impl AsyncFn() -> anyhow::Result<bool>, limit: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + limit;
        while !holds().await? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(true)
    }

    async fn writes_since(&self, before: &Writes) -> anyhow::Result<String> {
        let mut words = Vec::new();
        for (key, now) in self.world.writes().await? {
            let more = now - before.get(&key).copied().unwrap_or_default();
            if more > 0 {
                words.push(format!("{more} {} {}", key.0, key.1));
            }
        }
        Ok(if words.is_empty() {
            NONE.to_owned()
        } else {
            format!("writes by the API server's count: {}", words.join(", "))
        })
    }

    fn no_failures(&self) -> anyhow::Result<()> {
        let failures = self.fleet.take_failures();
        ensure!(failures.is_empty(), "sessions have failed: {failures:?}");
        Ok(())
    }
}

const NONE: &str = "no writes";

const UNCHANGED: &str = "patchwarden_gateway_reports_total{result=\"unchanged\"}";

const WAITING: &str = "patchwarden_gateway_waiting_sessions";

const WRITES: &str = "patchwarden_gateway_api_writes_total{resource=\"deviceinventories/status\",verb=\"patch\"}";

const CHANGED: &str = "patchwarden_gateway_reports_total{result=\"changed\"}";

/// When something is known it is printed.
fn say(text: &str) {
    println!("- {text}");
}

#[allow(clippy::cast_precision_loss, reason = "for people, who read three digits")]
fn count(number: impl TryInto<u64>) -> f64 {
    number.try_into().map_or(f64::NAN, |number: u64| number as f64)
}

fn mebibytes(bytes: u64) -> f64 {
    count(bytes) / f64::from(1 << 20)
}

fn times(turns: &Turns) -> String {
    let milliseconds = |percent| turns.percentile(percent).as_secs_f64() * 1000.0;
    format!("{:.2} ms (p50), {:.2} ms (p99)", milliseconds(50), milliseconds(99))
}
