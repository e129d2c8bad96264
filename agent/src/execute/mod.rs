//! One order, from accepted to its signed result.
//!
//! ```text
//!   prepare (simulate, judge, verify files) -> grant -> journal Started -> package manager -> database -> result
//!      ^                                                                        |
//!      '------------- only what is still at its old version ------- it died without an exit code
//! ```
//! Whatever crashes, the loop begins again at the journal's last record: an order that was accepted is prepared and asks
//! for a new grant; one that was started is followed to its end first. What the database says is what counts.

mod detached;
mod judge;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::agent_v1::{GrantRequest, from_agent};
use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::grant::{NotGranted, SignedGrant, Verdict};
use patchwarden_protocol::order::{Action, Order, PackageChange, Sequence};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, ResultReason};

use self::detached::DetachedError;
use crate::agent::{Agent, order_directory};
use crate::journal::{Active, Finished, JournalError, Record, Started};
use crate::platform::{self, PlatformError};
use crate::provider::{Artifact, Failure, Installed, Provider, Simulation, Stamp, artifacts_digest, bounded};
use crate::{files, provider};

/// A machine that dies in the middle of the same install so often is not tried again.
const MAX_ATTEMPTS: u32 = 3;

/// Somebody who keeps changing packages between our simulation and our start wins after so many times.
const MAX_PREPARATIONS: u32 = 5;

/// How long an order waits for another program to be done with the package manager.
const BUSY_LIMIT: SignedDuration = SignedDuration::from_mins(15);

/// A grant is asked for again this often.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// A nonce is used for so long.
const NONCE_LIFE: SignedDuration = SignedDuration::from_secs(60);

/// Looks at the running package manager.
const WATCH: Duration = Duration::from_millis(250);

/// Bytes that must stay free on each file system beyond what the install needs.
const SPACE_MARGIN: u64 = 32 << 20;

/// Of the package manager's output so much goes to the gateway.
const OUTPUT_LIMIT: u64 = 64 << 10;

/// Longest message of an action and of the result.
const MAX_MESSAGE: usize = 1000;

/// What stops the execution without ending the order: it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Detached(#[from] DetachedError),
    #[error(transparent)]
    Canonical(#[from] NotCanonical),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// What is known of each action; `None` while it is still to be done.
type Settled = Vec<Option<ActionResult>>;

/// How the order ended.
#[derive(Debug)]
struct Ending {
    outcome: Outcome,
    reason: Option<ResultReason>,
    message: String,
    actions: Vec<ActionResult>,
    /// The package manager still runs: its files must stay.
    still_running: bool,
}

/// Carries an order out and records its result.
pub(crate) async fn run<P: Provider>(agent: &Agent<P>, active: Active) -> Result<(), ExecuteError> {
    let ending = match &agent.provider {
        Ok(provider) => Execution { agent, provider, active: &active }.carry_out().await?,
        Err(failure) => Ending::nothing_done(Outcome::Failed, failure.reason, failure.message.clone()),
    };
    finish(agent, &active, ending).await
}

/// Signs and journals the result, behind a report that shows it.
async fn finish<P: Provider>(agent: &Agent<P>, active: &Active, ending: Ending) -> Result<(), ExecuteError> {
    let Ending { outcome, reason, message, actions, still_running } = ending;
    let order = &active.accepted.order;
    if !still_running {
        let archives = archives(agent, order.sequence);
        files::remove_tree(&archives).map_err(|source| ExecuteError::Io { path: archives, source })?;
    }
    agent.scan(false).await;
    let result = InstallResult {
        device: order.device.clone(),
        device_key: order.device_key.clone(),
        sequence: order.sequence,
        order_digest: active.accepted.digest.clone(),
        outcome,
        reason,
        message: bounded(&message, MAX_MESSAGE),
        actions,
        started_at: active.accepted.at,
        finished_at: platform::now(),
        restart_required: agent.restart_required(),
    };
    let sealed = agent.seal(&result)?;
    let digest = active.accepted.digest.clone();
    let finished = Finished { digest: digest.clone(), sequence: order.sequence, result: sealed.clone() };
    agent.append(Record::Finished(Box::new(finished)))?;
    let said = match (&reason, result.message.is_empty()) {
        (None, _) => format!("{outcome:?}"),
        (Some(reason), true) => format!("{outcome:?}: {reason:?}"),
        (Some(reason), false) => format!("{outcome:?}: {reason:?}: {}", result.message),
    };
    agent.progress(&digest, Phase::Done, &said);
    agent.send_result(&sealed, output_of(&agent.state, order.sequence));
    Ok(())
}

/// Bounded tail of what the package manager printed in the last attempt of an order.
pub(crate) fn output_of(state: &std::path::Path, sequence: Sequence) -> String {
    let directory = order_directory(state, sequence);
    (1..=MAX_ATTEMPTS)
        .rev()
        .map(|attempt| directory.join(format!("attempt-{attempt}")))
        .find(|attempt| attempt.exists())
        .map(|attempt| detached::output_tail(&attempt, OUTPUT_LIMIT))
        .unwrap_or_default()
}

/// Removes the directories of orders that nobody asks about any more.
pub(crate) fn clean_up<P: Provider>(agent: &Agent<P>) {
    let needed = agent.history(|history| {
        let active = history.active.iter().map(|active| active.accepted.order.sequence);
        active.chain(history.unrecorded().map(|finished| finished.sequence)).map(|s| s.to_string()).collect::<Vec<_>>()
    });
    // Without a journal nobody knows what is needed.
    let Some(needed) = needed else { return };
    // An install that ran out of its time may still read its files.
    if agent.provider.as_ref().is_ok_and(|provider| !matches!(provider.is_busy(), Ok(false))) {
        return;
    }
    let Ok(entries) = std::fs::read_dir(agent.state.join("orders")) else { return };
    for entry in entries.flatten() {
        if !needed.iter().any(|name| entry.file_name() == name.as_str())
            && let Err(error) = files::remove_tree(&entry.path())
        {
            tracing::warn!("{}: {error}", entry.path().display());
        }
    }
}

fn archives<P>(agent: &Agent<P>, sequence: Sequence) -> PathBuf {
    order_directory(&agent.state, sequence).join("archives")
}

impl Ending {
    fn nothing_done(outcome: Outcome, reason: ResultReason, message: String) -> Self {
        Self { outcome, reason: Some(reason), message, actions: Vec::new(), still_running: false }
    }

    /// From what is known of every action; `started` says whether the package manager was let go.
    fn of(settled: Settled, started: bool) -> Self {
        let actions: Vec<ActionResult> = settled.into_iter().flatten().collect();
        let Some(first) = actions.iter().find(|action| !action.installed) else {
            return Self {
                outcome: Outcome::Succeeded,
                reason: None,
                message: String::new(),
                actions,
                still_running: false,
            };
        };
        let (reason, message) = (first.reason, first.message.clone());
        let refusals = [ResultReason::WouldDoMore, ResultReason::Superseded, ResultReason::ReportMismatch];
        let refused = |action: &ActionResult| action.reason.is_some_and(|reason| refusals.contains(&reason));
        if !started && actions.iter().all(refused) {
            let each: Vec<String> =
                actions.iter().map(|action| format!("{}: {}", action.update, action.message)).collect();
            return Self {
                outcome: Outcome::Refused,
                reason,
                message: each.join("; "),
                actions: Vec::new(),
                still_running: false,
            };
        }
        Self { outcome: Outcome::Failed, reason, message, actions, still_running: false }
    }
}

/// Everything is in place; only the grant is missing.
#[derive(Debug)]
struct Prepared {
    settled: Settled,
    packages: Vec<PackageChange>,
    stamp: Stamp,
}

#[derive(Debug)]
enum Answer {
    Granted { nonce: String },
    Denied { reason: String, message: String },
    TimeOver,
}

/// How a started package manager ended.
#[derive(Debug)]
enum Followed {
    Ended(i32),
    Died,
    TimedOut,
}

struct Execution<'a, P> {
    agent: &'a Agent<P>,
    provider: &'a P,
    active: &'a Active,
}

impl<P: Provider> Execution<'_, P> {
    fn order(&self) -> &Order {
        &self.active.accepted.order
    }

    fn progress(&self, phase: Phase, text: &str) {
        self.agent.progress(&self.active.accepted.digest, phase, text);
    }

    async fn carry_out(&self) -> Result<Ending, ExecuteError> {
        let mut latest = self.active.started.clone();
        let mut preparations = 0;
        loop {
            let mut settled = vec![None; self.order().actions.len()];
            if let Some(started) = &latest {
                settled.clone_from(&started.settled);
                if let Some(ending) = self.follow_to_the_end(started, &mut settled).await? {
                    return Ok(ending);
                }
            }
            let started_before = latest.is_some();
            let prepared = match self.prepare(settled.clone()).await {
                Ok(prepared) => prepared,
                Err(failure) => return Ok(self.fail_open(settled, &failure, started_before)),
            };
            if prepared.packages.is_empty() {
                return Ok(Ending::of(prepared.settled, started_before));
            }
            let nonce = match self.ask().await {
                Answer::Granted { nonce } => nonce,
                Answer::Denied { reason, message } => {
                    let failure = Failure::new(ResultReason::Denied, format!("{reason}: {message}"));
                    return Ok(self.give_up(Outcome::Withdrawn, settled, failure, started_before));
                }
                Answer::TimeOver => {
                    let until = self.order().not_after;
                    let failure = Failure::new(ResultReason::Expired, format!("no grant came until {until}"));
                    return Ok(self.give_up(Outcome::Expired, settled, failure, started_before));
                }
            };
            self.progress(Phase::Granted, "the controller says now");
            preparations += 1;
            match self.provider.stamp() {
                Ok(stamp) if stamp == prepared.stamp => {}
                Ok(_) if preparations < MAX_PREPARATIONS => {
                    self.progress(Phase::Verified, "packages changed since the simulation: simulating again");
                    continue;
                }
                Ok(_) => {
                    let message = "another program keeps changing packages";
                    return Ok(self.fail_open(settled, &Failure::new(ResultReason::Locked, message), started_before));
                }
                Err(failure) => return Ok(self.fail_open(settled, &failure, started_before)),
            }
            let attempt = latest.as_ref().map_or(1, |started| started.attempt + 1);
            latest = Some(self.start(prepared, nonce, attempt).await?);
        }
    }

    /// Everything that is still open fails for the same reason.
    fn fail_open(&self, mut settled: Settled, failure: &Failure, started: bool) -> Ending {
        for index in open(&settled) {
            settled[index] = Some(failed(&self.order().actions[index], failure));
        }
        Ending::of(settled, started)
    }

    /// The order is void. If a part of it is done already, the result is that part.
    fn give_up(&self, outcome: Outcome, settled: Settled, failure: Failure, started: bool) -> Ending {
        if started {
            self.fail_open(settled, &failure, started)
        } else {
            Ending::nothing_done(outcome, failure.reason, failure.message)
        }
    }

    fn packages_of(&self, indexes: &[usize]) -> Vec<PackageChange> {
        indexes.iter().flat_map(|index| self.order().actions[*index].packages.iter().cloned()).collect()
    }

    // ---- before -------------------------------------------------------------------------------------------------

    async fn prepare(&self, mut settled: Settled) -> Result<Prepared, Failure> {
        self.wait_until_free(platform::now().saturating_add(BUSY_LIMIT).unwrap_or(Timestamp::MAX)).await?;
        let stamp = self.provider.stamp()?;
        let rows = self.provider.installed(&self.packages_of(&open(&settled))).await?;
        for index in open(&settled) {
            let action = &self.order().actions[index];
            if action.packages.iter().all(|package| judge::is_done(&rows, package)) {
                settled[index] = Some(done(action, "was at this version already"));
            }
        }
        let (indexes, simulation, artifacts) = self.select(&mut settled, &rows).await?;
        let packages = self.packages_of(&indexes);
        if packages.is_empty() {
            return Ok(Prepared { settled, packages, stamp });
        }
        self.progress(Phase::Simulated, &describe(&simulation));
        self.check_space(&simulation, &artifacts).await?;
        let archives = archives(self.agent, self.order().sequence);
        self.provider.download(&packages, &artifacts, &archives).await?;
        let files = artifacts.iter().filter(|artifact| artifact.needed).count();
        let bytes: u64 = artifacts.iter().map(|artifact| artifact.size).sum();
        self.progress(Phase::Downloaded, &format!("downloaded {files} files, {}", megabytes(bytes)));
        Ok(Prepared { settled, packages, stamp })
    }

    async fn wait_until_free(&self, until: Timestamp) -> Result<(), Failure> {
        let mut said = false;
        while self.provider.is_busy()? {
            if platform::now() > until {
                return Err(Failure::new(ResultReason::Locked, "another program uses the package manager"));
            }
            if !said {
                self.progress(Phase::Verified, "waits for another program that uses the package manager");
                said = true;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// The actions that can be carried out together, with what will then be done. The others are settled, each with its
    /// own reason: one bad update does not hold up the rest.
    async fn select(
        &self,
        settled: &mut Settled,
        rows: &[Installed],
    ) -> Result<(Vec<usize>, Simulation, Vec<Artifact>), Failure> {
        loop {
            let indexes = open(settled);
            if indexes.is_empty() {
                return Ok((indexes, Simulation::default(), Vec::new()));
            }
            let simulation = match self.try_together(&indexes, &indexes, rows).await {
                Ok(simulation) => simulation,
                Err(failure) => {
                    self.settle_one_by_one(&indexes, &failure, settled, rows).await;
                    continue;
                }
            };
            let artifacts = self.provider.artifacts(&self.packages_of(&indexes)).await?;
            let mut all_offered = true;
            for &index in &indexes {
                let action = &self.order().actions[index];
                if let Err(failure) = check_artifacts(action, &artifacts) {
                    settled[index] = Some(failed(action, &failure));
                    all_offered = false;
                }
            }
            if all_offered {
                return Ok((indexes, simulation, artifacts));
            }
        }
    }

    async fn try_together(
        &self,
        indexes: &[usize],
        allowed: &[usize],
        rows: &[Installed],
    ) -> Result<Simulation, Failure> {
        let wanted = self.packages_of(indexes);
        let simulation = self.provider.simulate(&wanted).await?;
        judge::judge(&simulation, &wanted, &self.packages_of(allowed), self.order().dependencies, rows)?;
        Ok(simulation)
    }

    /// Settles at least one of `indexes`: those that do not fit with the ones before.
    async fn settle_one_by_one(
        &self,
        indexes: &[usize],
        together: &Failure,
        settled: &mut Settled,
        rows: &[Installed],
    ) {
        let mut good: Vec<usize> = Vec::new();
        let mut allowed = indexes.to_vec();
        for &index in indexes {
            good.push(index);
            // A single action has been tried already.
            let tried = if indexes.len() == 1 {
                Err(together.clone())
            } else {
                self.try_together(&good, &allowed, rows).await.map(|_| ())
            };
            if let Err(failure) = tried {
                good.pop();
                allowed.retain(|other| *other != index);
                settled[index] = Some(failed(&self.order().actions[index], &failure));
            }
        }
        // The package manager contradicts itself: each more would be allowed, all together not.
        if good.len() == indexes.len()
            && let Some(last) = indexes.last()
        {
            settled[*last] = Some(failed(&self.order().actions[*last], together));
        }
    }

    async fn check_space(&self, simulation: &Simulation, artifacts: &[Artifact]) -> Result<(), Failure> {
        let space = self.provider.space(&simulation.changes, artifacts).await?;
        let mut needed: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (path, bytes) in [(self.agent.state.as_path(), space.download), ("/".as_ref(), space.unpacked)] {
            let free = platform::free_space(path)
                .map_err(|error| Failure::new(ResultReason::DiskFull, format!("{}: {error}", path.display())))?;
            needed.entry(free.device).or_insert((free.bytes, SPACE_MARGIN)).1 += bytes;
        }
        for (free, needed) in needed.into_values() {
            if free < needed {
                let message = format!("{} are needed, {} are free", megabytes(needed), megabytes(free));
                return Err(Failure::new(ResultReason::DiskFull, message));
            }
        }
        Ok(())
    }

    // ---- now ----------------------------------------------------------------------------------------------------

    /// Asks for the grant until an answer or the order's end.
    async fn ask(&self) -> Answer {
        let digest = &self.active.accepted.digest;
        let mut grants = self.agent.link.grants();
        let mut nonce = (new_nonce(), platform::now());
        loop {
            let now = platform::now();
            if now > self.order().not_after {
                return Answer::TimeOver;
            }
            if now.duration_since(nonce.1) >= NONCE_LIFE {
                nonce = (new_nonce(), now);
            }
            let request = GrantRequest { order_digest: digest.clone(), nonce: nonce.0.clone() };
            self.agent.link.send(from_agent::Message::GrantRequest(request));
            let again = tokio::time::sleep(ASK_AGAIN);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    () = self.agent.link.opened() => break,
                    changed = grants.changed() => if changed.is_err() { break },
                }
                let bytes = grants.borrow_and_update().clone();
                match self.verdict(&bytes, &nonce.0) {
                    Ok(Verdict::Granted) if platform::now() <= self.order().not_after => {
                        return Answer::Granted { nonce: nonce.0 };
                    }
                    Ok(Verdict::Granted) => return Answer::TimeOver,
                    Ok(Verdict::Denied { reason, message }) => return Answer::Denied { reason, message },
                    Err(why) => tracing::warn!("a grant is not accepted: {why}"),
                }
            }
        }
    }

    fn verdict(&self, bytes: &[u8], nonce: &str) -> Result<Verdict, String> {
        let signed: SignedGrant = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let root = self.agent.identity.borrow().root;
        let digest = &self.active.accepted.digest;
        let verdict = signed.verdict(&root, &self.agent.device_key, digest, nonce, platform::now());
        verdict.map_err(|why: NotGranted| why.to_string())
    }

    async fn start(&self, prepared: Prepared, nonce: String, attempt: u32) -> Result<Started, ExecuteError> {
        let Prepared { settled, packages, stamp: _ } = prepared;
        let sequence = self.order().sequence;
        let command = self.provider.install_command(&packages, &archives(self.agent, sequence));
        let unit = format!("patchwarden-install-{sequence}-{attempt}");
        let waiting = detached::prepare(&command, &self.attempt_directory(attempt), &unit)?;
        let started = Started {
            digest: self.active.accepted.digest.clone(),
            attempt,
            nonce,
            at: platform::now(),
            process: waiting.process.clone(),
            settled,
        };
        self.agent.append(Record::Started(Box::new(started.clone())))?;
        waiting.go().await?;
        self.progress(Phase::Installing, &format!("{} packages", packages.len()));
        Ok(started)
    }

    fn attempt_directory(&self, attempt: u32) -> PathBuf {
        order_directory(&self.agent.state, self.order().sequence).join(format!("attempt-{attempt}"))
    }

    // ---- after --------------------------------------------------------------------------------------------------

    /// Follows a started package manager. Nothing, if it died and a part is still to be done.
    async fn follow_to_the_end(
        &self,
        started: &Started,
        settled: &mut Settled,
    ) -> Result<Option<Ending>, ExecuteError> {
        let directory = self.attempt_directory(started.attempt);
        match self.follow(started).await? {
            Followed::Ended(code) => {
                self.progress(Phase::Checking, "the package manager has ended; reading its database");
                let output = detached::output_tail(&directory, OUTPUT_LIMIT);
                if let Err(failure) =
                    self.check(settled, |packages| self.provider.explain(&output, Some(code), packages)).await
                {
                    return Ok(Some(self.fail_open(std::mem::take(settled), &failure, true)));
                }
                Ok(Some(Ending::of(std::mem::take(settled), true)))
            }
            Followed::TimedOut => {
                let limit = self.order().limit_seconds;
                let message = format!("the package manager still runs after {limit} s; it is not stopped");
                let failure = Failure::new(ResultReason::TimedOut, message);
                if let Err(unreadable) = self.check(settled, |_| failure.clone()).await {
                    tracing::warn!("{unreadable}");
                }
                let ending = self.fail_open(std::mem::take(settled), &failure, true);
                Ok(Some(Ending { still_running: true, ..ending }))
            }
            Followed::Died => self.recover(started, settled).await,
        }
    }

    async fn follow(&self, started: &Started) -> Result<Followed, ExecuteError> {
        let directory = self.attempt_directory(started.attempt);
        let limit = SignedDuration::from_secs(i64::from(self.order().limit_seconds));
        loop {
            // In this order: the code is written before the process ends.
            let alive = platform::is_alive(&started.process)?;
            if let Some(code) = detached::exit_code(&directory)? {
                return Ok(Followed::Ended(code));
            }
            if !alive {
                return Ok(Followed::Died);
            }
            if platform::now().duration_since(started.at) > limit {
                return Ok(Followed::TimedOut);
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// The package manager died with the machine, or was killed. Completes what it left half done, looks at the
    /// database, and leaves open only what is still at its old version.
    async fn recover(&self, started: &Started, settled: &mut Settled) -> Result<Option<Ending>, ExecuteError> {
        self.progress(Phase::Checking, "the package manager died; looking at what it left");
        let until = started.at.saturating_add(SignedDuration::from_secs(i64::from(self.order().limit_seconds)));
        let until = until.unwrap_or(Timestamp::MAX).max(platform::now() + BUSY_LIMIT);
        let output = detached::output_tail(&self.attempt_directory(started.attempt), OUTPUT_LIMIT);
        let looked = async {
            // The shell around it may have been killed, and it not.
            self.wait_until_free(until).await?;
            self.provider.needs_repair().await
        };
        let fail =
            |settled: &mut Settled, failure: &Failure| Ok(Some(self.fail_open(std::mem::take(settled), failure, true)));
        match looked.await {
            Ok(true) => self.repair(started).await?,
            Ok(false) => {}
            Err(failure) => return fail(settled, &failure),
        }
        let rows = match self.provider.installed(&self.packages_of(&open(settled))).await {
            Ok(rows) => rows,
            Err(failure) => return fail(settled, &failure),
        };
        for index in open(settled) {
            let action = &self.order().actions[index];
            if action.packages.iter().all(|package| judge::is_done(&rows, package)) {
                settled[index] = Some(done(action, ""));
            } else if !action.packages.iter().all(|package| is_old_or_new(&rows, package)) {
                let why = self.provider.explain(&output, None, &action.packages);
                settled[index] = Some(failed(action, &with_versions(&why, &rows, &action.packages)));
            }
        }
        if open(settled).is_empty() {
            return Ok(Some(Ending::of(std::mem::take(settled), true)));
        }
        if started.attempt >= MAX_ATTEMPTS {
            let message = format!("the package manager died {MAX_ATTEMPTS} times");
            return fail(settled, &Failure::new(ResultReason::PackageManagerFailed, message));
        }
        Ok(None)
    }

    /// Lets the package manager complete its interrupted work; how that went is seen in the database.
    async fn repair(&self, started: &Started) -> Result<(), ExecuteError> {
        self.progress(Phase::Checking, "the package manager was interrupted: completing its work");
        let directory =
            order_directory(&self.agent.state, self.order().sequence).join(format!("repair-{}", started.attempt));
        let command = self.provider.repair_command();
        let unit = format!("patchwarden-repair-{}-{}", self.order().sequence, started.attempt);
        let waiting = detached::prepare(&command, &directory, &unit)?;
        let process = waiting.process.clone();
        let began = platform::now();
        waiting.go().await?;
        let limit = SignedDuration::from_secs(i64::from(self.order().limit_seconds));
        loop {
            let alive = platform::is_alive(&process)?;
            if let Some(code) = detached::exit_code(&directory)? {
                if code != 0 {
                    tracing::warn!("completing the interrupted work ended with code {code}");
                }
                return Ok(());
            }
            if !alive || platform::now().duration_since(began) > limit {
                tracing::warn!("completing the interrupted work did not come to an end");
                return Ok(());
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Settles everything that is open by the database.
    async fn check(&self, settled: &mut Settled, explain: impl Fn(&[PackageChange]) -> Failure) -> Result<(), Failure> {
        let rows = self.provider.installed(&self.packages_of(&open(settled))).await?;
        for index in open(settled) {
            let action = &self.order().actions[index];
            let left: Vec<PackageChange> =
                action.packages.iter().filter(|package| !judge::is_done(&rows, package)).cloned().collect();
            settled[index] = Some(if left.is_empty() {
                done(action, "")
            } else {
                failed(action, &with_versions(&explain(&left), &rows, &left))
            });
        }
        Ok(())
    }
}

fn open(settled: &Settled) -> Vec<usize> {
    (0..settled.len()).filter(|index| settled[*index].is_none()).collect()
}

fn done(action: &Action, message: &str) -> ActionResult {
    ActionResult { update: action.update.clone(), installed: true, reason: None, message: message.to_owned() }
}

fn failed(action: &Action, failure: &Failure) -> ActionResult {
    ActionResult {
        update: action.update.clone(),
        installed: false,
        reason: Some(failure.reason),
        message: bounded(&failure.message, MAX_MESSAGE),
    }
}

/// The ordered files must be those that the package manager would use now.
fn check_artifacts(action: &Action, artifacts: &[Artifact]) -> Result<(), Failure> {
    let mut files = Vec::new();
    for package in &action.packages {
        let artifact = artifacts.iter().find(|artifact| {
            artifact.name == package.name && artifact.arch == package.arch && artifact.version == package.candidate
        });
        match artifact {
            Some(artifact) => files.push(artifact),
            None => {
                let message = format!("{} {} is not offered any more", package.name, package.candidate);
                return Err(Failure::new(ResultReason::Superseded, message));
            }
        }
    }
    let found = artifacts_digest(
        files.iter().map(|f| (f.name.as_str(), f.arch.as_str(), f.version.as_str(), f.sha256.as_str())),
    );
    if found == action.artifacts_digest {
        return Ok(());
    }
    let message = format!("the repository offers other files under the ordered versions ({found})");
    Err(Failure::new(ResultReason::Superseded, message))
}

fn is_old_or_new(rows: &[Installed], package: &PackageChange) -> bool {
    provider::row(rows, package).is_some_and(|row| row.version == package.installed || row.version == package.candidate)
}

/// The package manager's words, and which versions are there.
fn with_versions(failure: &Failure, rows: &[Installed], packages: &[PackageChange]) -> Failure {
    let found: Vec<String> = packages
        .iter()
        .map(|package| match provider::row(rows, package) {
            None => format!("{} is not installed", package.name),
            Some(row) if !row.complete => format!("{} is at {}, not configured", package.name, row.version),
            Some(row) => format!("{} is at {}", package.name, row.version),
        })
        .collect();
    Failure::new(failure.reason, format!("{}: {}", found.join(", "), failure.message))
}

/// `openssl 3.0.16-1 -> 3.0.17-1~deb12u3, new libx 1.0`.
fn describe(simulation: &Simulation) -> String {
    let changes: Vec<String> = simulation
        .changes
        .iter()
        .map(|change| match &change.old {
            Some(old) => format!("{} {old} -> {}", change.name, change.new),
            None => format!("new {} {}", change.name, change.new),
        })
        .collect();
    bounded(&changes.join(", "), MAX_MESSAGE)
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// 128 random bits.
fn new_nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}
