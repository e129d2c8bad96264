//! Restarts that follow the actions, or that are all that is ordered.
//!
//! ```text
//!   scan: still required? -> limits -> grant -> warning -> limits, a young grant -> journal Restarting -> command
//!     ^                                                                                                    |
//!     '------------------------------ the agent comes back, in another boot -------------------------------'
//! ```
//! What stands against a restart ends this without one: the result says what, and a later order restarts the machine.
//! Whatever crashes before the journal's record begins again with the scan; after it, another boot id is what counts.

pub(super) mod decide;

use std::process::Stdio;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::grant::{self, Purpose};
use patchwarden_protocol::order::{RestartRule, RestartWhen, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{Outcome, ResultReason};

use self::decide::{Found, clock};
use super::grant::Answer;
use super::{Ending, ExecuteError, Execution, Settled, detached, done, failed, is_own, write_down};
use crate::agent::order_directory;
use crate::files;
use crate::journal::{Record, Restarting, Started};
use crate::platform;
use crate::provider::{CommandLine, Failure, Provider};

/// Between looks at the clock and at the boot id.
const WATCH: Duration = Duration::from_secs(1);

/// Of what the command printed so much goes into the message.
const OUTPUT_LIMIT: u64 = 500;

/// What came of an order's restarts.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// How many there were.
    pub(super) count: u32,
    /// Why a restart that is due did not take place.
    pub(super) missed: Option<Failure>,
    /// Nothing has happened since the last scan.
    pub(super) is_scanned: bool,
}

impl<P: Provider> Execution<'_, P> {
    /// Restarts the machine after the actions, if that is due. The machine may go down in here.
    pub(super) async fn restart_after(&self, ending: &Ending) -> Result<Restarts, ExecuteError> {
        let is_allowed = self.rule().when != RestartWhen::Never;
        if !is_allowed && self.guarded().asks_restart {
            let missed = Some(postponed("a hook asked for it, and the order allows none"));
            return Ok(Restarts { missed, ..Restarts::default() });
        }
        let since = self.first_start();
        if since.is_none() && self.guarded().asks_restart {
            let missed = Some(postponed("a hook asked for it, and nothing was installed"));
            return Ok(Restarts { missed, ..Restarts::default() });
        }
        let Some(since) = since.filter(|_| is_allowed) else { return Ok(Restarts::default()) };
        if ending.still_running {
            let missed = Some(postponed("the package manager still runs"));
            return Ok(Restarts { missed, ..Restarts::default() });
        }
        if self.is_aborted_after() {
            let missed = Some(postponed("a hook failed after which nothing more is done"));
            return Ok(Restarts { missed, ..Restarts::default() });
        }
        let settled = ending.actions.iter().cloned().map(Some).collect();
        self.restart_while_due(&settled, since, 0).await
    }

    /// Carries out an order to restart.
    pub(super) async fn restart_alone(&self) -> Result<(Ending, Restarts), ExecuteError> {
        let settled: Settled = vec![None];
        let since = self.active.accepted.at;
        // Nobody is asked for what is not needed or cannot be.
        let required = self.agent.scan(false).await;
        if !decide::is_due(self.rule().when, required, 0, true) {
            return Ok(self.with_restarts(settled, Restarts { is_scanned: true, ..Restarts::default() }));
        }
        if let Err(failure) = self.check_limits(since, 0, self.rule().warning_seconds) {
            let restarts = Restarts { missed: Some(failure), is_scanned: true, count: 0 };
            return Ok(self.with_restarts(settled, restarts));
        }
        let until = self.order().not_after;
        let (outcome, reason, message) = match self.ask(Purpose::Act, until).await {
            Answer::Granted { .. } => {
                self.progress(Phase::Granted, "the controller says now");
                let restarts = self.restart_while_due(&settled, since, 0).await?;
                return Ok(self.with_restarts(settled, restarts));
            }
            Answer::Denied { reason, message } => {
                (Outcome::Withdrawn, ResultReason::Denied, format!("{reason}: {message}"))
            }
            Answer::TimeOver => {
                (Outcome::Expired, ResultReason::Expired, format!("no grant came until {}", clock(until)))
            }
        };
        Ok((Ending::nothing_done(outcome, reason, message), Restarts::default()))
    }

    /// Goes on after the agent came back from a restart, or was killed beside one.
    pub(super) async fn resume_restart(&self, restarting: &Restarting) -> Result<(Ending, Restarts), ExecuteError> {
        let settled = restarting.settled.clone();
        let since = self.first_start().unwrap_or(self.active.accepted.at);
        let missed = self.follow_restart(restarting, since).await?;
        let restarts = if missed.is_some() {
            Restarts { count: restarting.number.saturating_sub(1), missed, is_scanned: false }
        } else {
            self.progress(Phase::Restarting, &format!("the machine was restarted ({})", restarting.number));
            self.restart_while_due(&settled, since, restarting.number).await?
        };
        Ok(self.with_restarts(settled, restarts))
    }

    /// What became of a restart that was journaled, by an agent that has just come back. Nothing, if it has taken place.
    async fn follow_restart(&self, restarting: &Restarting, since: Timestamp) -> Result<Option<Failure>, ExecuteError> {
        let found = decide::look(restarting, self.rule(), since, &platform::boot_id()?, platform::now());
        match (found, self.command(0)) {
            (Found::Restarted, _) => Ok(None),
            (Found::RunAgain, Ok(command)) => {
                let again = Restarting { run: restarting.run + 1, at: platform::now(), ..restarting.clone() };
                self.go_down(again, &command).await
            }
            (Found::RunAgain, Err(_)) | (Found::Wait, _) => {
                self.progress(Phase::Restarting, "the machine has not restarted yet");
                self.wait_for_another_boot(restarting).await
            }
        }
    }

    async fn restart_while_due(
        &self,
        settled: &Settled,
        since: Timestamp,
        mut count: u32,
    ) -> Result<Restarts, ExecuteError> {
        let changed = self.verb() == Verb::Restart || settled.iter().flatten().any(is_own);
        loop {
            let actions: Vec<_> = settled.iter().flatten().cloned().collect();
            let required = write_down(self.agent, self.order(), &actions).await?;
            if self.has_come_back_with_another_kernel() {
                return Ok(Restarts { count, missed: None, is_scanned: true });
            }
            let is_asked_for = count == 0 && self.guarded().asks_restart;
            if !is_asked_for && !decide::is_due(self.rule().when, required, count, changed) {
                return Ok(Restarts { count, missed: None, is_scanned: true });
            }
            if let Some(failure) = self.restart_once(settled, since, count).await? {
                self.progress(Phase::Restarting, &format!("no restart: {failure}"));
                return Ok(Restarts { count, missed: Some(failure), ..Restarts::default() });
            }
            count += 1;
        }
    }

    /// Restarts once more, to bring a kernel back: as every restart of the order but for the grant, since the order has allowed the
    /// way back, and what has broken may be what leads to the controller. Nothing, if this is another boot afterwards.
    pub(super) async fn restart_back(&self, restarts: u32) -> Result<Option<Failure>, ExecuteError> {
        let since = self.first_start().unwrap_or(self.active.accepted.at);
        let known = self.agent.history(|history| history.active.as_ref()?.restarting.clone()).flatten();
        if let Some(begun) = known.filter(|restarting| restarting.number > restarts) {
            return self.follow_restart(&begun, since).await;
        }
        let warned = async {
            self.check_limits(since, restarts, self.rule().warning_seconds)?;
            let begin_by = decide::deadline(self.rule(), since);
            self.wait_for_package_manager(begin_by).await?;
            self.warn().await;
            self.wait_for_package_manager(begin_by).await?;
            self.check_limits(since, restarts, 0)
        };
        let command = match warned.await {
            Ok(command) => command,
            Err(failure) => return Ok(Some(failure)),
        };
        let restarting = Restarting {
            digest: self.active.accepted.digest.clone(),
            boot_id: platform::boot_id()?,
            number: restarts + 1,
            run: 1,
            granted_at: platform::now(),
            at: platform::now(),
            settled: Vec::new(),
            trial: None,
        };
        self.go_down(restarting, &command).await
    }

    /// Nothing, if this is another boot afterwards; mostly this does not return then.
    async fn restart_once(
        &self,
        settled: &Settled,
        since: Timestamp,
        restarts: u32,
    ) -> Result<Option<Failure>, ExecuteError> {
        let warned = async {
            self.check_limits(since, restarts, self.rule().warning_seconds)?;
            let begin_by = decide::deadline(self.rule(), since);
            self.wait_for_package_manager(begin_by).await?;
            let warn_by = decide::before(begin_by, self.rule().warning_seconds);
            let mut granted_at = self.ask_to_restart(warn_by).await?;
            self.warn().await;
            self.wait_for_package_manager(begin_by).await?;
            if platform::now().duration_since(granted_at) >= grant::LIFETIME {
                granted_at = self.ask_to_restart(begin_by).await?;
            }
            Ok((granted_at, self.check_limits(since, restarts, 0)?))
        };
        let (granted_at, command) = match warned.await {
            Ok(ready) => ready,
            Err(failure) => return Ok(Some(failure)),
        };
        let restarting = Restarting {
            digest: self.active.accepted.digest.clone(),
            boot_id: platform::boot_id()?,
            number: restarts + 1,
            run: 1,
            granted_at,
            at: platform::now(),
            settled: settled.clone(),
            trial: self.plan_trial(settled).await?,
        };
        self.go_down(restarting, &command).await
    }

    /// Whether the machine can restart and may `warning_seconds` from now; then with which command.
    fn check_limits(&self, since: Timestamp, restarts: u32, warning_seconds: u32) -> Result<CommandLine, Failure> {
        let command = self.command(warning_seconds)?;
        decide::may_begin(self.rule(), since, restarts, warning_seconds, platform::now()).map_err(postponed)?;
        Ok(command)
    }

    /// With which command the machine restarts so many seconds from now, if it can and its owner allows it.
    fn command(&self, seconds: u32) -> Result<CommandLine, Failure> {
        let limits = self.agent.limits().map_err(|error| Failure::from(&error))?;
        limits.check(Verb::Restart, decide::after(platform::now(), seconds))?;
        platform::restart::command(&self.agent.config).map_err(|why| Failure::new(ResultReason::RestartImpossible, why))
    }

    /// A package manager in the middle of its work is not shut down, whoever started it.
    async fn wait_for_package_manager(&self, begin_by: Timestamp) -> Result<(), Failure> {
        let patient_until = platform::now() + self.lock_wait();
        self.wait_until_free(patient_until.min(begin_by)).await.map_err(|failure| postponed(failure.message))
    }

    /// When it was granted.
    async fn ask_to_restart(&self, until: Timestamp) -> Result<Timestamp, Failure> {
        match self.ask(Purpose::Restart, until).await {
            Answer::Granted { nonce: _, at } => Ok(at),
            Answer::Denied { reason, message } => {
                Err(Failure::new(ResultReason::Denied, format!("{reason}: {message}")))
            }
            Answer::TimeOver => Err(postponed(format!("no grant came until {}", clock(until)))),
        }
    }

    /// Tells users and waits as long as they were told.
    async fn warn(&self) {
        let RestartRule { warning_seconds, message, .. } = self.rule();
        if *warning_seconds == 0 {
            return;
        }
        let begins = decide::after(platform::now(), *warning_seconds);
        let minutes = warning_seconds.div_ceil(60);
        let own = "Updates were installed. Please save your work.";
        let message = if message.is_empty() { own } else { message };
        let text = format!("{message}\nThis machine restarts in {minutes} min, at {}.", clock(begins));
        let told = match platform::restart::tell_users(&text).await {
            Ok(()) => "users who are logged in were told".to_owned(),
            Err(why) => format!("nobody was told ({why})"),
        };
        self.progress(Phase::Restarting, &format!("restarts at {}; {told}", clock(begins)));
        loop {
            let left = Duration::try_from(begins.duration_since(platform::now())).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            // In pieces: the clock may be set, and a machine may sleep.
            tokio::time::sleep(left.min(WATCH)).await;
        }
    }

    /// Journals and runs the command.
    async fn go_down(
        &self,
        mut restarting: Restarting,
        command: &CommandLine,
    ) -> Result<Option<Failure>, ExecuteError> {
        self.agent.append(Record::Restarting(Box::new(restarting.clone())))?;
        if !self.set_boot_loader(restarting.trial.as_ref()).await? {
            restarting.trial = None;
            self.agent.append(Record::Restarting(Box::new(restarting.clone())))?;
        }
        let shown: Vec<_> = command.words.iter().map(|word| word.to_string_lossy()).collect();
        let shown = shown.join(" ");
        self.progress(
            Phase::Restarting,
            &format!("restarts now ({} of at most {}): {shown}", restarting.number, self.rule().limit),
        );
        match self.run_command(&restarting, command).await? {
            Some(why) => Ok(Some(Failure::new(ResultReason::RestartFailed, format!("{shown}: {why}")))),
            None => self.wait_for_another_boot(&restarting).await,
        }
    }

    /// Why it failed, if it did. What it prints goes to a file, which needs no reader.
    async fn run_command(
        &self,
        restarting: &Restarting,
        command: &CommandLine,
    ) -> Result<Option<String>, ExecuteError> {
        let directory = order_directory(&self.agent.state, self.order().sequence).join("restart");
        let path = directory.join(detached::OUTPUT);
        let open = || {
            files::ensure_directory(&directory, files::PASSAGE)?;
            let mut options = files::options(files::PRIVATE);
            let file = options.write(true).create(true).truncate(true).open(&path)?;
            Ok((file.try_clone()?, file))
        };
        let (first, second) = open().map_err(|source| ExecuteError::Io { path: path.clone(), source })?;
        let mut command = command.command();
        command.stdin(Stdio::null()).stdout(Stdio::from(first)).stderr(Stdio::from(second));
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let patience = decide::patience(restarting, platform::now());
        let ended = tokio::time::timeout(Duration::try_from(patience).unwrap_or_default(), child.wait()).await;
        Ok(match ended {
            Ok(Ok(status)) => match status.code() {
                // A signal may be part of the shutdown.
                None | Some(0) => None,
                Some(code) => {
                    let said = detached::output_tail(&directory, OUTPUT_LIMIT);
                    Some(format!("ended with code {code}: {}", said.trim()))
                }
            },
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => {
                // It must not restart the machine when nobody allows it any more.
                if let Err(error) = child.start_kill() {
                    tracing::warn!("the command that restarts the machine cannot be stopped: {error}");
                }
                Some("did not end".to_owned())
            }
        })
    }

    async fn wait_for_another_boot(&self, restarting: &Restarting) -> Result<Option<Failure>, ExecuteError> {
        let mut left = decide::patience(restarting, platform::now());
        loop {
            let boot = platform::boot()?;
            if boot.id != restarting.boot_id {
                return Ok(None);
            }
            if left <= SignedDuration::ZERO {
                let message = format!(
                    "the machine was to restart at {} and is still up since {}",
                    clock(restarting.at),
                    clock(boot.time)
                );
                return Ok(Some(Failure::new(ResultReason::RestartFailed, message)));
            }
            tokio::time::sleep(WATCH).await;
            left = left.min(decide::patience(restarting, platform::now()));
        }
    }

    /// How an order ends after its restarts. The actions decide; a restart that is all of an order is its action, and is
    /// done if the machine was restarted: what is then still required is told, and left to a later order.
    fn with_restarts(&self, mut settled: Settled, restarts: Restarts) -> (Ending, Restarts) {
        if self.verb() == Verb::Restart {
            let result = |action| match &restarts {
                Restarts { count: 0, missed: None, .. } => done(action, "no restart is required any more"),
                // It was allowed to begin.
                Restarts { count: 0, missed: Some(Failure { reason: ResultReason::Denied, message, .. }), .. } => {
                    failed(action, &postponed(message))
                }
                Restarts { count: 0, missed: Some(failure), .. } => failed(action, failure),
                Restarts { missed: Some(failure), .. } if failure.reason == ResultReason::RestartFailed => {
                    failed(action, failure)
                }
                Restarts { count, .. } => done(action, &format!("restarted {count} times")),
            };
            settled = self.order().actions.iter().map(|action| Some(result(action))).collect();
        }
        (Ending::of(settled, true), restarts)
    }

    pub(super) fn rule(&self) -> &RestartRule {
        &self.order().restart
    }

    /// When the package manager was first let go for this order, by the journal as it is now.
    pub(super) fn first_start(&self) -> Option<Timestamp> {
        let started = self.agent.history(|history| history.active.as_ref()?.started.as_ref().map(Started::since));
        started.flatten()
    }
}

fn postponed(why: impl Into<String>) -> Failure {
    Failure::new(ResultReason::RestartPostponed, why)
}
