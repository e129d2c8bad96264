//! Hooks and checks around the actions.
//!
//! ```text
//!   grant -> checks -> hooks before -> package manager -> hooks after -> restarts -> services -> checks
//! ```
//! A hook is journaled before it is let go, and what came of it once it has ended: after a crash it is followed, or run again
//! if it died with the machine. So each runs at least once. A check changes nothing, and is tried again after a crash.
//!
//! Hooks after the actions also run where the actions came to nothing, once a hook before them was let go: what that has
//! begun is to be ended.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::grant as protocol_grant;
use patchwarden_protocol::order::{Order, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{Outcome, ResultReason, Step, StepResult};
use patchwarden_protocol::safeguards::{Hook, OnFailure};

use super::restart::Restarts;
use super::script::{self, Ended};
use super::{Ending, ExecuteError, Execution, detached, failed, is_own, write_down};
use crate::agent::order_directory;
use crate::files;
use crate::journal::{Guarded, Record, Script};
use crate::platform;
use crate::provider::{Environment, Failure, Provider, bounded};

/// A hook after the actions that ends with this code asks for a restart: the code of AWS Systems Manager for it ("Rebooting
/// managed nodes from scripts").
const ASKS_FOR_RESTART: i32 = 194;

/// A hook in the middle of which the machine dies so often is not run again.
const MAX_RUNS: u32 = 3;

/// Longest message of a step.
const MAX_MESSAGE: usize = 400;

/// How a hook ended.
#[derive(Debug)]
enum Came {
    Succeeded,
    AsksForRestart,
    Failed(String),
    /// With the machine, or by somebody's hand.
    Died(String),
}

fn word_of(step: Step) -> &'static str {
    match step {
        Step::HookBefore => "hook-before",
        Step::HookAfter => "hook-after",
        Step::CheckBefore | Step::CheckAfter | Step::CheckRolledBack => "check",
        Step::Rollback => "rollback",
        Step::ServiceRestart | Step::ServiceRolledBack => "service",
    }
}

impl<P: Provider> Execution<'_, P> {
    /// What is known of hooks and checks, by the journal as it is now.
    pub(super) fn guarded(&self) -> Guarded {
        let known = self.agent.history(|history| history.active.as_ref()?.guarded.clone()).flatten();
        known.unwrap_or_else(|| Guarded::new(self.active.accepted.digest.clone()))
    }

    pub(super) fn journal(&self, guarded: &Guarded) -> Result<(), ExecuteError> {
        Ok(self.agent.append(Record::Guarded(Box::new(guarded.clone())))?)
    }

    /// Hooks that are begun before the actions must leave time for these: for another grant, where this one will be too old.
    pub(super) fn check_time_for_hooks(&self, granted_at: Timestamp) -> Result<(), Failure> {
        let Order { safeguards, not_after, .. } = self.order();
        if safeguards.before.is_empty() || self.guarded().has_begun {
            return Ok(());
        }
        let takes = SignedDuration::from_secs(safeguards.seconds_before().into());
        let ends = platform::now().saturating_add(takes).unwrap_or(Timestamp::MAX);
        if ends.duration_since(granted_at) < protocol_grant::LIFETIME || ends <= *not_after {
            return Ok(());
        }
        let why = format!("checks and hooks before it may take until {ends}, and it was to begin by {not_after}");
        Err(Failure::new(ResultReason::Expired, why))
    }

    /// Before the package manager is let go for the first time. What stands against it, if anything does.
    pub(super) async fn guard_before(&self, check: bool) -> Result<Option<Failure>, ExecuteError> {
        let safeguards = &self.order().safeguards;
        let mut guarded = self.guarded();
        // What a hook has begun (taken a service away, say) may be what a check finds.
        if check && !guarded.has_begun && !safeguards.checks.is_empty() {
            guarded.steps.clear();
            for check in &safeguards.checks {
                self.progress(Phase::Guarding, &format!("check {}", check.name));
                let result = self.try_before(check).await;
                guarded.steps.push(result.clone());
                if !result.ok {
                    self.journal(&guarded)?;
                    let why = format!("check {} failed before anything was done: {}", result.name, result.message);
                    return Ok(Some(Failure::new(ResultReason::Unhealthy, why)));
                }
            }
            self.journal(&guarded)?;
        }
        self.run_hooks(Step::HookBefore, &safeguards.before, guarded).await
    }

    /// Once the package manager has ended, or will not be let go.
    pub(super) async fn guard_after(&self, ending: Ending) -> Result<Ending, ExecuteError> {
        let hooks = &self.order().safeguards.after;
        let mut guarded = self.guarded();
        self.wait_for_hook_before(&mut guarded).await?;
        let has_begun = guarded.has_begun || self.first_start().is_some();
        if hooks.is_empty() || !has_begun {
            return Ok(ending);
        }
        if ending.still_running {
            guarded.steps.retain(|result| result.step != Step::HookAfter);
            guarded.steps.extend(hooks.iter().map(|hook| StepResult {
                step: Step::HookAfter,
                name: hook.name.clone(),
                ok: false,
                message: "was not run: the package manager still runs".to_owned(),
            }));
            self.journal(&guarded)?;
            return Ok(ending);
        }
        if guarded.ending.is_none() {
            // From here on the packages are not looked at again: a hook may change them.
            guarded.ending = Some(ending.clone());
            self.journal(&guarded)?;
        }
        let aborted = self.run_hooks(Step::HookAfter, hooks, guarded).await?;
        Ok(match aborted {
            Some(failure) if ending.outcome == Outcome::Succeeded => {
                Ending { outcome: Outcome::Failed, reason: Some(failure.reason), message: failure.message, ..ending }
            }
            _ => ending,
        })
    }

    /// Whether a hook that must not fail has failed after the actions: nothing more is done then.
    pub(super) fn is_aborted_after(&self) -> bool {
        let guarded = self.guarded();
        let hooks = self.order().safeguards.after.iter();
        hooks.zip(guarded.of(Step::HookAfter)).any(|(hook, result)| !result.ok && hook.on_failure == OnFailure::Abort)
    }

    /// After everything: whether the machine is healthy with what was done. Where it is not, all that was done has failed.
    pub(super) async fn check_after(
        &self,
        mut ending: Ending,
        restarts: &mut Restarts,
    ) -> Result<Ending, ExecuteError> {
        let checks = &self.order().safeguards.checks;
        let has_changed = self.first_start().is_some() && ending.actions.iter().any(is_own);
        if checks.is_empty() || ending.still_running || !has_changed {
            return Ok(ending);
        }
        // What is installed is remembered as that, whatever the checks say: it can be taken back.
        if !restarts.is_scanned {
            write_down(self.agent, self.order(), &ending.actions).await?;
            restarts.is_scanned = true;
        }
        let mut guarded = self.guarded();
        guarded.steps.retain(|result| result.step != Step::CheckAfter);
        let mut failure = None;
        for check in checks {
            self.progress(Phase::Guarding, &format!("check {}, for at most {} s", check.name, check.settle_seconds));
            let result = self.try_after(Step::CheckAfter, check).await;
            guarded.steps.push(result.clone());
            if !result.ok {
                let why = format!("check {} failed: {}", result.name, result.message);
                self.progress(Phase::Guarding, &why);
                failure = Some(Failure::new(ResultReason::CheckFailed, why));
                break;
            }
        }
        self.journal(&guarded)?;
        let Some(failure) = failure else { return Ok(ending) };
        for (result, action) in ending.actions.iter_mut().zip(&self.order().actions) {
            if is_own(result) {
                *result = failed(action, &failure);
            }
        }
        Ok(Ending { outcome: Outcome::Failed, reason: Some(failure.reason), message: failure.message, ..ending })
    }

    /// Runs what has not run yet. A hook that must not fail and has.
    async fn run_hooks(
        &self,
        step: Step,
        hooks: &[Hook],
        mut guarded: Guarded,
    ) -> Result<Option<Failure>, ExecuteError> {
        for (index, hook) in hooks.iter().enumerate() {
            let known = guarded.of(step).nth(index).cloned();
            let result = match known {
                Some(result) => result,
                None => self.run_hook(step, index, hook, &mut guarded).await?,
            };
            if !result.ok && hook.on_failure == OnFailure::Abort {
                let why = format!("hook {}: {}", hook.name, result.message);
                return Ok(Some(Failure::new(ResultReason::HookFailed, why)));
            }
        }
        Ok(None)
    }

    async fn run_hook(
        &self,
        step: Step,
        index: usize,
        hook: &Hook,
        guarded: &mut Guarded,
    ) -> Result<StepResult, ExecuteError> {
        let mut runs = 0;
        let came = loop {
            // One that an agent let go that was killed is followed.
            let script = match guarded.running.take() {
                Some(script) => script,
                None => match self.let_go(step, index, hook, runs + 1, guarded).await? {
                    Ok(script) => script,
                    Err(why) => break Came::Failed(why),
                },
            };
            runs = script.run;
            match self.follow_hook(step, index, hook, &script).await? {
                Came::Died(_) if runs < MAX_RUNS => {}
                came => break came,
            }
        };
        self.note(step, index, hook, came, guarded)
    }

    /// A hook before the actions that is at work although they will not follow any more: it is waited for, and not run again.
    async fn wait_for_hook_before(&self, guarded: &mut Guarded) -> Result<(), ExecuteError> {
        let index = guarded.of(Step::HookBefore).count();
        let script = guarded.running.clone().filter(|script| script.step == Step::HookBefore);
        let (Some(script), Some(hook)) = (script, self.order().safeguards.before.get(index)) else { return Ok(()) };
        let came = self.follow_hook(Step::HookBefore, index, hook, &script).await?;
        self.note(Step::HookBefore, index, hook, came, guarded).map(|_| ())
    }

    async fn follow_hook(&self, step: Step, index: usize, hook: &Hook, script: &Script) -> Result<Came, ExecuteError> {
        let (directory, seconds) = (self.place_of(step, index), hook.timeout_seconds);
        let said = || script::said(&directory);
        Ok(match script::follow(&directory, &script.process, script.at, seconds).await? {
            Ended::Code(0) => Came::Succeeded,
            Ended::Code(ASKS_FOR_RESTART) if step == Step::HookAfter => Came::AsksForRestart,
            Ended::Code(code) => Came::Failed(format!("ended with code {code}: {}", said())),
            Ended::TookTooLong => Came::Failed(format!("did not end within {seconds} s and was killed: {}", said())),
            Ended::Died => {
                Came::Died(format!("was interrupted, {} times of at most {MAX_RUNS}: {}", script.run, said()))
            }
        })
    }

    /// Journals what came of a hook.
    fn note(
        &self,
        step: Step,
        index: usize,
        hook: &Hook,
        came: Came,
        guarded: &mut Guarded,
    ) -> Result<StepResult, ExecuteError> {
        guarded.asks_restart |= matches!(came, Came::AsksForRestart);
        let (ok, message) = match came {
            Came::Succeeded | Came::AsksForRestart => (true, script::said(&self.place_of(step, index))),
            Came::Failed(why) | Came::Died(why) => (false, why),
        };
        let result = StepResult { step, name: hook.name.clone(), ok, message: bounded(message.trim(), MAX_MESSAGE) };
        guarded.running = None;
        guarded.steps.push(result.clone());
        self.journal(guarded)?;
        let word = if ok { "succeeded" } else { "failed" };
        self.progress(Phase::Guarding, format!("hook {} {word}: {}", hook.name, result.message).trim_end_matches(": "));
        Ok(result)
    }

    fn place_of(&self, step: Step, index: usize) -> PathBuf {
        order_directory(&self.agent.state, self.order().sequence).join(format!("{}-{index}", word_of(step)))
    }

    /// Journals and starts a hook; or why it cannot be run.
    async fn let_go(
        &self,
        step: Step,
        index: usize,
        hook: &Hook,
        run: u32,
        guarded: &mut Guarded,
    ) -> Result<Result<Script, String>, ExecuteError> {
        let phase = if step == Step::HookBefore { "before" } else { "after" };
        let mut environment = self.environment(phase)?;
        if let Some(ending) = &guarded.ending {
            environment.push(("PATCHWARDEN_OUTCOME", format!("{:?}", ending.outcome).into()));
        }
        let command = match self.script(&hook.name, hook.timeout_seconds, environment) {
            Ok(command) => command,
            Err(why) => return Ok(Err(why)),
        };
        self.progress(Phase::Guarding, &format!("hook {}, for at most {} s", hook.name, hook.timeout_seconds));
        let sequence = self.order().sequence;
        let unit = format!("patchwarden-{}-{index}-{sequence}-{run}", word_of(step));
        let waiting = detached::prepare(&command, &self.place_of(step, index), &unit)?;
        let script = Script { step, run, process: waiting.process.clone(), at: platform::now() };
        guarded.running = Some(script.clone());
        guarded.has_begun = true;
        self.journal(guarded)?;
        waiting.go().await?;
        Ok(Ok(script))
    }

    /// What a script is told, beside what every script is.
    pub(super) fn environment(&self, phase: &str) -> Result<Environment, ExecuteError> {
        let order = self.order();
        let directory = order_directory(&self.agent.state, order.sequence);
        let path = directory.join("updates");
        let ids = order.actions.iter().map(|action| action.update.replace(char::is_control, " ") + "\n");
        let written = files::ensure_directory(&directory, files::PASSAGE)
            .and_then(|()| files::write_atomic(&path, ids.collect::<String>().as_bytes(), files::PRIVATE));
        written.map_err(|source| ExecuteError::Io { path: path.clone(), source })?;
        let verb = match self.verb() {
            Verb::Install => "Install",
            Verb::Uninstall => "Uninstall",
            Verb::Download => "Download",
            Verb::Restart => "Restart",
        };
        Ok(vec![
            ("PATCHWARDEN_PHASE", phase.into()),
            ("PATCHWARDEN_VERB", verb.into()),
            ("PATCHWARDEN_SEQUENCE", order.sequence.to_string().into()),
            ("PATCHWARDEN_POLICY", order.policy.clone().into()),
            ("PATCHWARDEN_UPDATES", path.into()),
        ])
    }
}
