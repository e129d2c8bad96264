//! Services that still run what an order has replaced: restarted where its rule says so.
//!
//! ```text
//!   package manager -> hooks after -> restarts of the machine -> services -> checks
//!   a way back -> those that the order has tried and that are down, started -> services -> checks
//! ```
//! After a restart of the machine none is left. They need no grant of their own: they belong to what the order has begun, as a package's
//! script does that restarts its service; but where the controller has just denied a restart of the machine, none is. One that does not
//! come back fails no update: checks say whether the machine is healthy.
//!
//! Each is journaled before it is let go, and not tried again after a crash: what then became of it systemd says.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::SERVICES_SECONDS;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{ResultReason, Step, StepResult};
use tokio::time::Instant;

use super::restart::{Restarts, decide};
use super::{Ending, ExecuteError, Execution, is_own};
use crate::journal::{Guarded, TriedService};
use crate::platform::{self, BringUp, Outdated};
use crate::provider::{Failure, Provider, bounded};

/// To stop one and to start it: systemd gives it 90 s for each unless it is set up otherwise (systemd-system.conf(5)).
const LIMIT: Duration = Duration::from_mins(3);

/// What systemd says of a service it says at once. So much also for all that is looked at again at the end.
const LOOK: Duration = Duration::from_secs(30);

/// A result has room for more; one machine hardly has.
const MAX_SERVICES: usize = 64;

/// Longest name of a step.
const MAX_NAME: usize = 63;

/// Longest message of a step.
const MAX_MESSAGE: usize = 200;

/// What a step says of a service that is about to be restarted.
const INTERRUPTED: &str = "the agent was interrupted while it was restarted";

impl<P: Provider> Execution<'_, P> {
    /// After the actions, and after the restarts of the machine.
    pub(super) async fn restart_services(&self, ending: &Ending, restarts: &mut Restarts) -> Result<(), ExecuteError> {
        let has_changed = self.first_start().is_some() && ending.actions.iter().any(is_own);
        if !self.rule().services || ending.still_running || !has_changed {
            return Ok(());
        }
        self.restart_outdated(Step::ServiceRestart, restarts.missed.as_ref()).await?;
        restarts.is_scanned &= self.guarded().tried(Step::ServiceRestart).next().is_none();
        Ok(())
    }

    /// After the way back: those that the order has restarted come to run what there was before, also where they are down since, and
    /// whatever the time is. For others the same counts as on the way forth.
    pub(super) async fn bring_services_back(&self, missed: Option<&Failure>) -> Result<(), ExecuteError> {
        self.restart_outdated(Step::ServiceRolledBack, missed).await
    }

    async fn restart_outdated(&self, step: Step, missed: Option<&Failure>) -> Result<(), ExecuteError> {
        let mut guarded = self.guarded();
        let mut own = BTreeSet::new();
        if step == Step::ServiceRolledBack {
            own.extend(guarded.tried(Step::ServiceRestart).map(str::to_owned));
        }
        // What was left by an agent that has ended meanwhile is looked at anew.
        let known: BTreeSet<String> = guarded.tried(step).map(str::to_owned).collect();
        let names: BTreeSet<String> = known.iter().map(|unit| bounded(unit, MAX_NAME)).collect();
        guarded.steps.retain(|result| result.step != step || names.contains(&result.name));
        let until = Instant::now() + Duration::from_secs(SERVICES_SECONDS.into());
        for (unit, how) in self.due(step, &own, &known, until, &mut guarded).await? {
            let is_own = own.contains(&unit);
            // What is not known because the time is over is told below, of this one and those after it.
            if let Err(why) = self.may_be_restarted(&unit, how, until).await
                && Instant::now() < until
            {
                self.progress(Phase::Guarding, &format!("{unit} still runs what was replaced: {why}"));
                if how == BringUp::Start {
                    self.add_step(&mut guarded, result(step, &unit, false, &why))?;
                }
                continue;
            }
            let begins = match guarded.tried(step).count() {
                MAX_SERVICES.. => Err(format!("no more than {MAX_SERVICES} are restarted")),
                _ => self.may_restart_now(is_own, missed, until).await,
            };
            // It may have been waited for long, and the owner has the last word.
            let left = match begins.and_then(|left| self.check_service(&unit).map(|()| left)) {
                Ok(left) => left,
                Err(why) => {
                    self.progress(Phase::Guarding, &format!("services still run what was replaced: {why}"));
                    let why = format!("it and those after it were left as they are: {why}");
                    self.add_step(&mut guarded, result(step, &unit, false, &why))?;
                    break;
                }
            };
            guarded.services.push(TriedService { step, unit: unit.clone() });
            self.add_step(&mut guarded, result(step, &unit, false, INTERRUPTED))?;
            let came = platform::bring_up_service(&unit, how, left).await;
            self.progress(
                Phase::Guarding,
                &match &came {
                    Ok(()) => format!("{unit} was restarted: it still ran what was replaced"),
                    Err(why) => format!("{unit} was restarted and failed: {why}"),
                },
            );
            guarded.steps.pop();
            let message = came.as_ref().err().map(String::as_str).unwrap_or_default();
            self.add_step(&mut guarded, result(step, &unit, came.is_ok(), message))?;
        }
        self.look_again(step, guarded).await
    }

    /// Which are to be brought up and have not been tried: those of the order first.
    async fn due(
        &self,
        step: Step,
        own: &BTreeSet<String>,
        known: &BTreeSet<String>,
        until: Instant,
        guarded: &mut Guarded,
    ) -> Result<Vec<(String, BringUp)>, ExecuteError> {
        let mut due = Vec::new();
        for unit in own.difference(known) {
            if told(until, platform::service_active(unit)).await.is_err() {
                due.push((unit.clone(), BringUp::Start));
            }
        }
        let Some(Outdated { units, left, partial: _ }) = self.provider.outdated_services().await else {
            let why = "which still run what was replaced is not known";
            self.progress(Phase::Guarding, &format!("services: {why}"));
            self.add_step(guarded, result(step, "services", false, why))?;
            return Ok(due);
        };
        let down: BTreeSet<String> = due.iter().map(|(unit, _)| unit.clone()).collect();
        for unit in units.iter().filter(|unit| !known.contains(*unit) && !down.contains(*unit)) {
            match left.get(unit) {
                Some(why) => {
                    self.progress(Phase::Guarding, &format!("{unit} still runs what was replaced: {why}"));
                }
                None => due.push((unit.clone(), BringUp::Restart)),
            }
        }
        due.sort_by_key(|(unit, _)| !own.contains(unit));
        Ok(due)
    }

    /// Whether it is one to be restarted, whatever the time is.
    async fn may_be_restarted(&self, unit: &str, how: BringUp, until: Instant) -> Result<(), String> {
        self.check_service(unit)?;
        match how {
            BringUp::Start => Ok(()),
            BringUp::Restart => told(until, platform::may_restart_service(unit)).await,
        }
    }

    /// Whether the owner excludes it. Limits that cannot be read are told where it is about to begin.
    fn check_service(&self, unit: &str) -> Result<(), String> {
        match self.agent.limits() {
            Ok(limits) => limits.check_service(unit).map_err(|failure| failure.message),
            Err(_) => Ok(()),
        }
    }

    /// Whether any more of them may be restarted now; then within which time. Those that the order has restarted before are brought back
    /// rather late than not at all.
    async fn may_restart_now(
        &self,
        is_own: bool,
        missed: Option<&Failure>,
        until: Instant,
    ) -> Result<Duration, String> {
        let since = self.first_start().unwrap_or(self.active.accepted.at);
        let begin_by = if is_own { Timestamp::MAX } else { decide::deadline(self.rule(), since) };
        if !is_own {
            self.check_restarts(missed)?;
        }
        let in_time = SignedDuration::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
        let patience = self.lock_wait().min(in_time);
        let patient_until = platform::now().saturating_add(patience).unwrap_or(Timestamp::MAX);
        self.wait_until_free(patient_until.min(begin_by)).await.map_err(|failure| failure.message)?;
        if platform::now() > begin_by {
            return Err(format!("none is restarted after {}", decide::clock(begin_by)));
        }
        let left = until.saturating_duration_since(Instant::now()).min(LIMIT);
        if left.is_zero() {
            return Err(format!("all of them may take {SERVICES_SECONDS} s"));
        }
        self.limits().map(|_| left).map_err(|failure| failure.message)
    }

    /// What came of the restarts of the machine and of hooks, and stands against those of services.
    fn check_restarts(&self, missed: Option<&Failure>) -> Result<(), String> {
        match missed {
            Some(Failure { reason: ResultReason::Denied, message, .. }) => {
                return Err(format!("the controller has denied a restart: {message}"));
            }
            Some(Failure { reason: ResultReason::RestartFailed, .. }) => {
                return Err("the machine may be about to restart".to_owned());
            }
            _ => {}
        }
        if self.is_aborted_after() {
            return Err("a hook failed after which nothing more is done".to_owned());
        }
        Ok(())
    }

    /// Of most services systemd says that they are up as soon as they have a process: one that has ended since is told. So is what became
    /// of one that an agent was interrupted beside.
    async fn look_again(&self, step: Step, mut guarded: Guarded) -> Result<(), ExecuteError> {
        let units: Vec<String> = guarded.tried(step).map(str::to_owned).collect();
        let until = Instant::now() + LOOK;
        for unit in units {
            let name = bounded(&unit, MAX_NAME);
            let Some(known) = guarded.steps.iter_mut().find(|known| known.step == step && known.name == name) else {
                continue;
            };
            let is_open = known.message == INTERRUPTED;
            if !known.ok && !is_open {
                continue;
            }
            let up = told(until, platform::service_active(&unit)).await;
            *known = match &up {
                Ok(()) if is_open => result(step, &unit, true, INTERRUPTED),
                Ok(()) => continue,
                Err(why) => result(step, &unit, false, why),
            };
        }
        self.journal(&guarded)
    }

    fn add_step(&self, guarded: &mut Guarded, result: StepResult) -> Result<(), ExecuteError> {
        guarded.steps.push(result);
        self.journal(guarded)
    }
}

/// What systemd says, which may be of one that does not answer: nobody waits for it beyond this time, however many are asked about.
async fn told(until: Instant, question: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let said = tokio::time::timeout_at(until.min(Instant::now() + LOOK), question).await;
    said.unwrap_or_else(|_| Err("systemd does not answer".to_owned()))
}

fn result(step: Step, unit: &str, ok: bool, message: &str) -> StepResult {
    StepResult { step, name: bounded(unit, MAX_NAME), ok, message: bounded(message, MAX_MESSAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_many_services_about_which_systemd_says_nothing_nobody_waits_for_each() {
        let until = Instant::now() + Duration::from_millis(50);
        let all = async {
            for _ in 0..MAX_SERVICES {
                assert_eq!(told(until, std::future::pending()).await, Err("systemd does not answer".to_owned()));
            }
        };
        tokio::time::timeout(LOOK / 2, all).await.expect("the time of all is the time of each");
        assert_eq!(told(Instant::now(), std::future::ready(Ok(()))).await, Ok(()), "it has answered");
    }
}
