//! Services that still run what an order has replaced: restarted where its rule says so.
//!
//! ```text
//!   package manager -> hooks after -> restarts of the machine -> services -> checks
//!   a way back -> services -> checks
//! ```
//! After a restart of the machine none is left. They need no grant of their own: they belong to what the order has begun, as a package's
//! script does that restarts its service. One that does not come back fails no update: checks say whether the machine is healthy.
//!
//! What is still outdated is looked up anew after a crash, so nothing is journaled before a restart; one that is known to have been tried
//! is not tried again.

use std::time::Duration;

use jiff::Timestamp;
use patchwarden_protocol::order::{SERVICES_SECONDS, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{ResultReason, Step, StepResult};
use tokio::time::Instant;

use super::restart::{Restarts, decide};
use super::{Ending, ExecuteError, Execution, is_own};
use crate::platform::{self, NotRestarted, Outdated};
use crate::provider::{Failure, Provider, bounded};

/// To stop one and to start it: systemd gives it 90 s for each unless it is set up otherwise (systemd-system.conf(5)).
const LIMIT: Duration = Duration::from_mins(3);

/// A result has room for more; one machine hardly has.
const MAX_SERVICES: usize = 64;

/// Longest name of a step.
const MAX_NAME: usize = 63;

/// Longest message of a step.
const MAX_MESSAGE: usize = 200;

impl<P: Provider> Execution<'_, P> {
    /// After the actions, and after the restarts of the machine.
    pub(super) async fn restart_services(&self, ending: &Ending, restarts: &mut Restarts) -> Result<(), ExecuteError> {
        let rule = self.rule();
        let is_going_down = restarts.missed.as_ref().is_some_and(|missed| missed.reason == ResultReason::RestartFailed);
        let Some(since) = self.first_start().filter(|_| rule.services && !ending.still_running) else { return Ok(()) };
        let has_changed = ending.actions.iter().any(is_own);
        if !has_changed || is_going_down || self.is_aborted_after() || self.verb() == Verb::Restart {
            return Ok(());
        }
        let begin_by = Some(decide::deadline(rule, since));
        let known: Vec<String> = self.guarded().of(Step::ServiceRestart).map(|step| step.name.clone()).collect();
        self.restart_each(Step::ServiceRestart, begin_by, &known, |step| {
            restarts.is_scanned = false;
            let mut guarded = self.guarded();
            guarded.steps.push(step);
            self.journal(&guarded)
        })
        .await
    }

    /// Restarts all that are outdated but those that are `known` to have been tried, beginning until then; notes what came of each.
    pub(super) async fn restart_each(
        &self,
        step: Step,
        begin_by: Option<Timestamp>,
        known: &[String],
        mut note: impl FnMut(StepResult) -> Result<(), ExecuteError>,
    ) -> Result<(), ExecuteError> {
        let Some(Outdated { units, partial: _ }) = self.provider.outdated_services().await else {
            self.progress(Phase::Guarding, "which services still run what was replaced is not known");
            return Ok(());
        };
        let until = Instant::now() + Duration::from_secs(SERVICES_SECONDS.into());
        for unit in units.iter().filter(|unit| !known.contains(&bounded(unit, MAX_NAME))).take(MAX_SERVICES) {
            let left = until.saturating_duration_since(Instant::now()).min(LIMIT);
            let result = |ok: bool, message: &str| StepResult {
                step,
                name: bounded(unit, MAX_NAME),
                ok,
                message: bounded(message, MAX_MESSAGE),
            };
            if let Err(why) = self.may_begin_services(begin_by, left) {
                self.progress(Phase::Guarding, &format!("services still run what was replaced: {why}"));
                return note(result(false, &format!("it and those after it were left as they are: {why}")));
            }
            // As it is now: the owner has the last word.
            let allowed = self.agent.limits().map_err(|error| Failure::from(&error));
            let came = match allowed.and_then(|limits| limits.check_service(unit)) {
                Ok(()) => platform::restart_service(unit, left).await,
                Err(Failure { message, .. }) => Err(NotRestarted::Left(message)),
            };
            match came {
                Ok(()) => {
                    self.progress(Phase::Guarding, &format!("{unit} was restarted: it still ran what was replaced"));
                    note(result(true, ""))?;
                }
                Err(NotRestarted::Left(why)) => {
                    self.progress(Phase::Guarding, &format!("{unit} still runs what was replaced: {why}"));
                }
                Err(NotRestarted::Failed(why)) => {
                    self.progress(Phase::Guarding, &format!("{unit} was restarted and failed: {why}"));
                    note(result(false, &why))?;
                }
            }
        }
        Ok(())
    }

    /// What stands against any more of them.
    fn may_begin_services(&self, begin_by: Option<Timestamp>, left: Duration) -> Result<(), String> {
        if let Some(by) = begin_by.filter(|by| platform::now() > *by) {
            return Err(format!("none is restarted after {}", decide::clock(by)));
        }
        if left.is_zero() {
            return Err(format!("all of them may take {SERVICES_SECONDS} s"));
        }
        self.limits().map(|_| ()).map_err(|failure| failure.message)
    }
}
