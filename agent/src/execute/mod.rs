//! One order, from accepted to its signed result.
//!
//! ```text
//!   prepare (simulate, judge) -> fetch, verify and try files -> grant -> journal Started -> package manager -> database -> result
//!      ^                                                                                        |
//!      '------------------- only what is still at its old version ---------- it died without an exit code
//! ```
//! What follows the package manager, before the result, are the restarts: see [`restart`], and of services [`services`]. Hooks and checks surround all of it:
//! see [`guard`]. Where a check fails, the same loop may go the way back: see [`rollback`], and for a kernel [`kernel`].
//!
//! An order to download ends after the files: they are kept for an order to come.
//!
//! Whatever crashes, the loop begins again at the journal's last record: an order that was accepted is prepared and asks
//! for a new grant; one that was started is followed to its end first. What the database says is what counts.

mod beside;
mod checks;
mod detached;
mod ending;
mod fetch;
mod fit;
mod follow;
mod grant;
mod guard;
mod judge;
mod kernel;
mod prepare;
mod rehearse;
mod restart;
mod rollback;
mod room;
mod script;
mod services;
mod signed;
mod successor;
mod through;

use std::path::{Path, PathBuf};

use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::grant as protocol_grant;
use patchwarden_protocol::order::{Action, Dependencies, Order, PackageChange, Sequence, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::report::Tristate;
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, ResultReason, Step, StepResult};
use tokio::time::Instant;

use self::detached::DetachedError;
use self::ending::{ALREADY, Settled, done, failed, open};
pub(crate) use self::ending::{Ending, is_own};
use self::grant::Answer;
use self::prepare::Prepared;
use self::restart::Restarts;
use self::rollback::told;
pub(crate) use self::successor::watch;
use crate::agent::{Agent, order_directory};
use crate::files;
use crate::journal::{Active, Finished, Guarded, JournalError, Record, RollingBack, Started};
use crate::limits::Limits;
use crate::platform::{self, PlatformError};
use crate::provider::{Direction, Failure, Provider, bounded};

/// A machine that dies in the middle of the same install so often is not tried again.
const MAX_ATTEMPTS: u32 = 3;

/// Somebody who keeps changing packages between our simulation and our start wins after so many times.
const MAX_PREPARATIONS: u32 = 5;

/// Of the package manager's output so much goes to the gateway.
const OUTPUT_LIMIT: u64 = 64 << 10;

/// Below an order's directory: that of its way back.
const BACK: &str = "back";

/// Longest message of an action and of the result.
pub(crate) const MAX_MESSAGE: usize = 1000;

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

/// Carries an order out and records its result.
pub(crate) async fn run<P: Provider>(agent: &Agent<P>, active: Active) -> Result<(), ExecuteError> {
    agent.timeline.take_up(&active, platform::now(), Instant::now());
    let (ending, restarts) = match &agent.provider {
        Ok(provider) => Execution { agent, provider, active: &active, way: Way::Forth }.carry_out().await?,
        Err(failure) => ending::without_provider(&active, failure),
    };
    finish(agent, &active, ending, restarts).await
}

/// Signs and journals the result, behind a report that shows it.
async fn finish<P: Provider>(
    agent: &Agent<P>,
    active: &Active,
    ending: Ending,
    restarts: Restarts,
) -> Result<(), ExecuteError> {
    let Restarts { count, missed, is_scanned } = restarts;
    let Ending { outcome, reason, mut message, actions, still_running } = ending;
    let order = &active.accepted.order;
    let place = order_directory(&agent.state, order.sequence);
    let places = [place.join(BACK), place];
    let cut = attempts_of(&places).any(|attempt| detached::is_cut(&attempt));
    let cut = cut.then(|| "the package manager printed more than is kept: of that only the end is told".to_owned());
    for why in kernel::settle(agent).into_iter().chain(cut) {
        message = if message.is_empty() { why } else { format!("{message}; {why}") };
    }
    let left = places.iter().map(|place| fetch_directory(place));
    for path in left.chain(places.iter().filter(|_| !still_running).map(|place| archives(place))) {
        files::remove_tree(&path).map_err(|source| ExecuteError::Io { path, source })?;
    }
    if !is_scanned {
        write_down(agent, order, &actions).await?;
    }
    let guarded = agent.history(|history| history.active.as_ref()?.guarded.clone());
    let mut result = InstallResult {
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
        restarts: count,
        steps: steps_told(guarded.flatten(), agent.tells_services()),
        phases: if agent.tells_phases() { agent.timeline.of(&active.accepted.digest) } else { Vec::new() },
        restart_postponed: bounded(&missed.map(|failure| failure.message).unwrap_or_default(), MAX_MESSAGE),
    };
    fit::shorten(&mut result)?;
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

/// What came of hooks, checks and services; without these where the gateway would refuse a result that has them.
fn steps_told(guarded: Option<Guarded>, services: bool) -> Vec<StepResult> {
    let mut steps = guarded.map(|guarded| guarded.steps).unwrap_or_default();
    steps.retain(|result| services || !matches!(result.step, Step::ServiceRestart | Step::ServiceRolledBack));
    steps
}

/// Remembers what came of the actions, for whoever takes it back, and makes a report that shows it. Returns whether the
/// machine waits for a restart.
async fn write_down<P: Provider>(
    agent: &Agent<P>,
    order: &Order,
    actions: &[ActionResult],
) -> Result<Tristate, ExecuteError> {
    let io = |(path, source)| ExecuteError::Io { path, source };
    let others = agent.history(|history| history.active.iter().any(Active::has_touched_others)).unwrap_or_default();
    agent.past.record(&order.actions, actions, others).map_err(io)?;
    // What others have left is not the order's, also where it was to bring the same. Of what was begun nothing was half done at its
    // version before: such an action is refused (see `judge`). And while another had the lock nothing was done.
    let is_locked = |action: &Action| {
        actions.iter().any(|it| it.update == action.update && it.reason == Some(ResultReason::Locked))
    };
    let tried: Vec<PackageChange> = agent
        .history(|history| {
            let actions = history.active.iter().flat_map(Active::tried).filter(|action| !is_locked(action));
            let packages = actions.flat_map(|action| &action.packages);
            packages.filter(|package| !package.is_removal()).cloned().collect()
        })
        .unwrap_or_default();
    if let Ok(provider) = &agent.provider
        && !tried.is_empty()
    {
        match provider.unconfigured().await {
            Ok(found) => agent.unfinished.record(&tried, &found).map_err(io)?,
            Err(failure) => tracing::warn!("what the order has left half done is not known: {failure}"),
        }
    }
    Ok(agent.scan(false).await)
}

/// Where the package manager may have been let go.
fn attempts_of(places: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    places.iter().flat_map(|place| (1..=MAX_ATTEMPTS).map(|attempt| place.join(format!("attempt-{attempt}"))))
}

/// Bounded tail of what the package manager printed in the last attempt of an order, and in that of its way back.
pub(crate) fn output_of(state: &Path, sequence: Sequence) -> String {
    let place = order_directory(state, sequence);
    let last = |place: &Path| {
        let attempts = (1..=MAX_ATTEMPTS).rev().map(|attempt| place.join(format!("attempt-{attempt}")));
        attempts.into_iter().find(|attempt| attempt.exists())
    };
    match (last(&place), last(&place.join(BACK))) {
        (None, _) => String::new(),
        (Some(forth), None) => detached::output_tail(&forth, OUTPUT_LIMIT),
        (Some(forth), Some(back)) => {
            let between = "\n--- back to the earlier versions ---\n";
            let half = (OUTPUT_LIMIT - between.len() as u64) / 2;
            detached::output_tail(&forth, half) + between + &detached::output_tail(&back, half)
        }
    }
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

/// The files that the package manager uses.
fn archives(place: &Path) -> PathBuf {
    place.join("archives")
}

/// Where downloads are gathered before they are whole.
fn fetch_directory(place: &Path) -> PathBuf {
    place.join("fetch")
}

/// For people: what an order is for.
pub(crate) fn summary(order: &Order) -> String {
    let number = order.actions.len();
    match verb_of(order) {
        Verb::Install => format!("{number} updates to install"),
        Verb::Download => format!("{number} updates to download"),
        Verb::Uninstall => format!("{number} updates to take back"),
        Verb::Restart => "a restart".to_owned(),
    }
}

/// All actions of an order have the same verb.
fn verb_of(order: &Order) -> Verb {
    order.actions.first().map(|action| action.verb).unwrap_or_default()
}

/// Whose actions are carried out.
enum Way<'a> {
    /// The order's.
    Forth,
    /// Those that take back what the order has installed.
    Back(&'a RollingBack),
}

impl Way<'_> {
    /// In names of units.
    fn word(&self) -> &'static str {
        match self {
            Self::Forth => "",
            Self::Back(_) => "back-",
        }
    }
}

struct Execution<'a, P> {
    agent: &'a Agent<P>,
    provider: &'a P,
    active: &'a Active,
    way: Way<'a>,
}

impl<P: Provider> Execution<'_, P> {
    fn order(&self) -> &Order {
        &self.active.accepted.order
    }

    fn verb(&self) -> Verb {
        verb_of(self.order())
    }

    fn direction(&self) -> Direction {
        match self.verb().into() {
            Direction::Forward if self.dependencies() == Dependencies::AllowAll => Direction::Removing,
            direction => direction,
        }
    }

    /// Where the files and the output of the package manager lie.
    fn place(&self) -> PathBuf {
        let place = order_directory(&self.agent.state, self.order().sequence);
        match self.way {
            Way::Forth => place,
            Way::Back(_) => place.join(BACK),
        }
    }

    fn progress(&self, phase: Phase, text: &str) {
        self.agent.progress(&self.active.accepted.digest, phase, text);
    }

    async fn carry_out(&self) -> Result<(Ending, Restarts), ExecuteError> {
        if let Some(rolling) = &self.active.rolling_back {
            return self.go_on_back(rolling).await;
        }
        let (ending, mut restarts) = match (&self.active.restarting, self.verb()) {
            (Some(restarting), _) => self.resume_restart(restarting).await?,
            (None, Verb::Download) => (self.download_ahead().await, Restarts::default()),
            (None, Verb::Restart) => self.restart_alone().await?,
            (None, Verb::Install | Verb::Uninstall) => {
                let ending = match self.guarded().ending {
                    Some(ending) => ending,
                    None => self.answer_for_successor(self.act().await?).await?,
                };
                let ending = self.guard_after(ending).await?;
                let restarts = self.restart_after(&ending).await?;
                (ending, restarts)
            }
        };
        self.restart_services(&ending, &mut restarts).await?;
        let ending = self.check_kernel(ending);
        let ending = self.check_after(ending, &mut restarts).await?;
        match self.way_back_from(&ending, &restarts) {
            Ok(rolling) => {
                self.agent.append(Record::RollingBack(Box::new(rolling.clone())))?;
                self.go_on_back(&rolling).await
            }
            Err(why) => Ok((told(ending, &why), restarts)),
        }
    }

    /// Lets the package manager carry out the actions.
    async fn act(&self) -> Result<Ending, ExecuteError> {
        let mut latest = self.active.started.clone();
        let ending = self.attempt(&mut latest).await?;
        Ok(match &latest {
            Some(started) => self.tell_beside(started, ending).await,
            None => ending,
        })
    }

    /// The same, as often as it takes; `latest` is the last time that it was let go.
    async fn attempt(&self, latest: &mut Option<Started>) -> Result<Ending, ExecuteError> {
        let mut preparations = 0;
        // Checks and hooks are over: they may take longer than a grant counts, and are not begun again with the next one.
        let mut is_guarded = false;
        // A hook may have cut off the network since.
        let mut is_saved = false;
        // What cannot be installed although it may be.
        let mut refused: Settled = vec![None; self.order().actions.len()];
        loop {
            let mut settled = refused.clone();
            if let Some(started) = latest.as_ref() {
                settled.clone_from(&started.settled);
                // What was found out since then stays: else it would be tried for ever.
                for (known, refused) in settled.iter_mut().zip(&refused) {
                    if known.is_none() {
                        known.clone_from(refused);
                    }
                }
                if let Some(ending) = self.follow_to_the_end(started, &mut settled).await? {
                    return Ok(ending);
                }
                self.settle_returned(&mut settled)?;
            }
            let started_before = latest.is_some();
            let prepared = match self.prepare(&settled, started_before).await {
                Ok(prepared) => prepared,
                Err(failure) => return Ok(self.fail_open(settled, &failure, started_before)),
            };
            if prepared.packages.is_empty() {
                return Ok(Ending::of(prepared.settled, started_before));
            }
            match self.fetch_and_rehearse(&prepared).await {
                Ok(None) => {}
                Ok(Some(found)) => {
                    refused = found;
                    continue;
                }
                Err(failure) => return Ok(self.fail_open(prepared.settled, &failure, started_before)),
            }
            if !started_before && !is_saved {
                self.save_ways_back(&prepared).await?;
                is_saved = true;
            }
            let (nonce, granted_at) = match self.may_begin(started_before).await {
                Answer::Granted { nonce, at } => (nonce, at),
                Answer::Denied { reason, message } => {
                    let failure = Failure::new(ResultReason::Denied, format!("{reason}: {message}"));
                    return Ok(self.give_up(Outcome::Withdrawn, settled, failure, started_before));
                }
                Answer::TimeOver => {
                    let until = self.order().not_after;
                    let why = match self.way {
                        Way::Forth => format!("no grant came until {until}"),
                        Way::Back(_) => format!("it could not be begun until {until}"),
                    };
                    let failure = Failure::new(ResultReason::Expired, why);
                    return Ok(self.give_up(Outcome::Expired, settled, failure, started_before));
                }
            };
            if matches!(self.way, Way::Forth) {
                self.progress(Phase::Granted, "the controller says now");
            }
            // What a crash has interrupted is completed, whatever the machine looks like meanwhile.
            if !started_before {
                // Before what runs beside them, too: the owner may have changed them while the grant was waited for.
                if let Err(failure) = self.check_owner(&prepared) {
                    return Ok(self.fail_open(prepared.settled, &failure, started_before));
                }
                if let Err(failure) = self.check_time_for_hooks(granted_at) {
                    return Ok(self.give_up(Outcome::Expired, settled, failure, started_before));
                }
                if let Some(failure) = self.guard_before(!is_guarded).await? {
                    return Ok(self.fail_open(prepared.settled, &failure, started_before));
                }
                is_guarded = true;
                if platform::now().duration_since(granted_at) >= protocol_grant::LIFETIME {
                    self.progress(Phase::Verified, "the hooks took longer than a grant counts: asking again");
                    continue;
                }
            }
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
            // As they are now: whoever changed them while the grant was waited for has the last word.
            if let Err(failure) = self.check_owner(&prepared) {
                return Ok(self.fail_open(prepared.settled, &failure, started_before));
            }
            if !started_before {
                self.watch_over_successor(&prepared).await?;
            }
            *latest = Some(self.start(prepared, nonce, latest.as_ref()).await?);
        }
    }

    /// Where something stands against some actions: what is known of all of them then.
    async fn fetch_and_rehearse(&self, prepared: &Prepared) -> Result<Option<Settled>, Failure> {
        match self.fetch(prepared).await? {
            None => self.rehearse(prepared).await,
            found => Ok(found),
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

    /// The owner's limits as they are now, if they let the actions begin.
    fn limits(&self) -> Result<Limits, Failure> {
        let limits = self.agent.limits().map_err(|error| Failure::from(&error))?;
        limits.check(self.verb(), platform::now())?;
        Ok(limits)
    }

    fn attempt_directory(&self, attempt: u32) -> PathBuf {
        self.place().join(format!("attempt-{attempt}"))
    }

    fn packages_of(&self, indexes: &[usize]) -> Vec<PackageChange> {
        indexes.iter().flat_map(|index| self.order().actions[*index].packages.iter().cloned()).collect()
    }
}
