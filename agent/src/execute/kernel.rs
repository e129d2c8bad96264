//! A kernel's way back: its boot entry. Where the order allows to take updates back, the restart that follows a new kernel starts that
//! once (see [`crate::boot`]).
//!
//! ```text
//!   journal Restarting (with the trial) -> boot loader armed -> restart -.-> new kernel: checks pass   -> it is what starts from now on
//!                                                                        |               a check fails -> held, restart, checks
//!                                                                        '-> earlier kernel            -> held, checks
//! ```
//! The new kernel's package stays installed: to remove it would need what depends on it to go as well (`linux-image-amd64`), and nothing
//! is removed by itself. It is held by what the boot loader is set to.
//!
//! That the machine has come up with another kernel than the one that was tried counts as a check that has failed, for the updates that
//! brought the kernel alone. A machine that loses its power before the checks have passed has come up with the earlier one, too: nobody
//! can tell that from a kernel that does not run.

use patchwarden_protocol::order::{Action, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{Outcome, ResultReason, Step, StepResult};
use patchwarden_protocol::safeguards::Rollback;

use super::restart::Restarts;
use super::rollback::{MAX_STEP_MESSAGE, let_first_speak};
use super::{Ending, ExecuteError, Execution, MAX_MESSAGE, Settled, Way, failed, is_own};
use crate::agent::Agent;
use crate::boot::{self, Trial};
use crate::glob::Glob;
use crate::journal::KernelBack;
use crate::platform;
use crate::provider::{Failure, Provider, bounded};

/// Between why the package is not taken back, and why its boot entry is not.
const NOR: &str = ", and not by its boot entry either: ";

/// Name of the step beside that of packages.
const KERNEL: &str = "kernel";

impl<P: Provider> Execution<'_, P> {
    fn brings_kernel(&self, action: &Action) -> bool {
        action.packages.iter().any(|package| self.provider.is_kernel(&package.name))
    }

    /// Whether this update of the order brings a kernel.
    pub(super) fn is_of_kernel(&self, update: &str) -> bool {
        self.order().actions.iter().any(|action| action.update == update && self.brings_kernel(action))
    }

    /// The trial of the last restart, which has taken place.
    pub(super) fn tried(&self) -> Option<Trial> {
        let restarting = self.agent.history(|history| history.active.as_ref()?.restarting.clone()).flatten()?;
        let is_over = platform::boot_id().is_ok_and(|boot| boot != restarting.boot_id);
        restarting.trial.filter(|_| is_over)
    }

    pub(super) fn has_come_back_with_another_kernel(&self) -> bool {
        self.tried().is_some_and(|trial| platform::kernel() != trial.kernel)
    }

    /// What the restart that is about to begin tries: a kernel that this order has brought, where the order lets it be taken back and the
    /// boot loader can.
    pub(super) async fn plan_trial(&self, settled: &Settled) -> Result<Option<Trial>, ExecuteError> {
        let order = self.order();
        let (Some(rollback), Way::Forth, Verb::Install) = (&order.safeguards.rollback, &self.way, self.verb()) else {
            return Ok(None);
        };
        // One more restart of the same trial.
        if let Some(trial) = self.tried() {
            return Ok(Some(trial));
        }
        let is_new =
            |(action, result): (&Action, &Option<_>)| result.as_ref().is_some_and(is_own) && self.brings_kernel(action);
        if !order.actions.iter().zip(settled).any(is_new) || self.is_kernel_excluded(rollback) {
            return Ok(None);
        }
        let planned = match self.check_taking_back() {
            Ok(()) => boot::plan(&self.agent.state).await,
            Err(failure) => Err(failure.message),
        };
        match planned {
            Ok(trial) => Ok(Some(trial)),
            Err(why) => {
                self.note_no_way_back(&why)?;
                Ok(None)
            }
        }
    }

    /// By the policy's list of what is never taken back.
    fn is_kernel_excluded(&self, rollback: &Rollback) -> bool {
        let never: Vec<Glob> = rollback.exclude_packages.iter().cloned().map(Glob::new).collect();
        let kernels = self.order().actions.iter().filter(|action| self.brings_kernel(action));
        let mut packages = kernels.flat_map(|action| &action.packages);
        packages.any(|package| never.iter().any(|glob| glob.matches(&package.name)))
    }

    /// The owner's limits as they are now, for what takes back.
    fn check_taking_back(&self) -> Result<(), Failure> {
        let limits = self.agent.limits().map_err(|error| Failure::from(&error))?;
        limits.check(Verb::Uninstall, platform::now())
    }

    /// Remembers why the boot loader does not bring the kernel back, to be told if a check fails.
    fn note_no_way_back(&self, why: &str) -> Result<(), ExecuteError> {
        self.progress(Phase::Restarting, &format!("the kernel could not be taken back by its boot entry: {why}"));
        let mut guarded = self.guarded();
        for way in &mut guarded.ways_back {
            if way.action.is_none() && self.is_of_kernel(&way.update) {
                let before = way.why.split_once(NOR).map_or(way.why.as_str(), |(before, _)| before);
                way.why = bounded(&format!("{before}{NOR}{why}"), MAX_MESSAGE / 2);
            }
        }
        self.journal(&guarded)
    }

    /// Lets the boot loader start what a restart tries; without that, a kernel that is held is let go where it is not the newest any
    /// more. Whether what is tried is set: where it cannot be, it is a restart as any other.
    pub(super) async fn set_boot_loader(&self, trial: Option<&Trial>) -> Result<bool, ExecuteError> {
        let Some(trial) = trial else {
            match boot::release(&self.agent.state).await {
                Ok(false) => {}
                Ok(true) => self.progress(Phase::Restarting, "a kernel that was held is not the newest any more"),
                Err(why) => tracing::warn!("the boot loader is left as it is: {why}"),
            }
            return Ok(true);
        };
        let Trial { kernel, earlier_kernel, .. } = trial;
        match trial.arm() {
            Ok(()) => {
                let words =
                    format!("starts the kernel {kernel} once; whatever becomes of it, {earlier_kernel} is next");
                self.progress(Phase::Restarting, &words);
                Ok(true)
            }
            Err(why) => {
                // As far as anything was written.
                if let Err(error) = trial.restore(&self.agent.state) {
                    tracing::warn!("the boot loader: {error}");
                }
                self.note_no_way_back(&why)?;
                Ok(false)
            }
        }
    }

    /// Updates that brought a kernel have failed where the machine has not come up with it.
    pub(super) fn check_kernel(&self, mut ending: Ending) -> Ending {
        let Some(trial) = self.tried() else { return ending };
        let running = platform::kernel();
        if running == trial.kernel {
            return ending;
        }
        let why = format!("the kernel {} was started once, and the machine has come up with {running}", trial.kernel);
        self.progress(Phase::Guarding, &why);
        let failure = Failure::new(ResultReason::CheckFailed, why);
        for (result, action) in ending.actions.iter_mut().zip(&self.order().actions) {
            if is_own(result) && self.brings_kernel(action) {
                *result = failed(action, &failure);
            }
        }
        ending.outcome = Outcome::Failed;
        let_first_speak(&mut ending);
        ending
    }

    /// Holds the new kernel and starts the earlier one, if it does not run already. The machine may go down in here.
    pub(super) async fn bring_kernel_back(
        &self,
        KernelBack { trial, updates }: &KernelBack,
        ending: &mut Ending,
        restarts: &mut Restarts,
    ) -> Result<StepResult, ExecuteError> {
        let came = self.start_earlier(trial, ending.still_running, restarts).await?;
        let (reason, words) = match &came {
            Ok(()) => (ResultReason::RolledBack, format!("taken back to the kernel {}", trial.earlier_kernel)),
            Err(why) => (ResultReason::CheckFailed, format!("it could not be taken back: {why}")),
        };
        for result in ending.actions.iter_mut().filter(|result| updates.contains(&result.update)) {
            result.reason = Some(reason);
            result.message = bounded(&format!("{}; {words}", result.message), MAX_MESSAGE);
        }
        let_first_speak(ending);
        let message = match &came {
            Ok(()) => format!("{} runs, {} is held", trial.earlier_kernel, trial.kernel),
            Err(why) => why.clone(),
        };
        let message = bounded(&message, MAX_STEP_MESSAGE);
        Ok(StepResult { step: Step::Rollback, name: KERNEL.to_owned(), ok: came.is_ok(), message })
    }

    /// Why the earlier kernel does not run, if it does not.
    async fn start_earlier(
        &self,
        trial: &Trial,
        still_running: bool,
        restarts: &mut Restarts,
    ) -> Result<Result<(), String>, ExecuteError> {
        let Trial { kernel, earlier_kernel, .. } = trial;
        let has_come_back = platform::kernel() != *kernel;
        // What the boot loader has done by itself is not asked about.
        if !has_come_back && let Err(failure) = self.check_taking_back() {
            if let Err(why) = trial.restore(&self.agent.state) {
                return Ok(Err(format!("{}; the boot loader: {why}", failure.message)));
            }
            return Ok(Err(failure.message));
        }
        if let Err(why) = trial.keep_earlier(&self.agent.state) {
            return Ok(Err(why));
        }
        if !has_come_back {
            self.progress(Phase::Guarding, &format!("a check failed: back to the kernel {earlier_kernel}"));
            let missed = if still_running {
                Some(Failure::new(ResultReason::RestartPostponed, "the package manager still runs"))
            } else {
                self.restart_back(restarts.count).await?
            };
            if let Some(failure) = missed {
                let why =
                    format!("{earlier_kernel} is what starts next, and there was no restart: {}", failure.message);
                restarts.missed = Some(failure);
                return Ok(Err(why));
            }
        }
        self.count_restart_back(restarts);
        let running = platform::kernel();
        if running == *earlier_kernel {
            return Ok(Ok(()));
        }
        Ok(Err(format!("the machine has come up with {running}, and {earlier_kernel} is what starts next")))
    }

    /// The restart of the way back, if there was one.
    fn count_restart_back(&self, restarts: &mut Restarts) {
        let number = self.agent.history(|history| Some(history.active.as_ref()?.restarting.as_ref()?.number));
        restarts.count = restarts.count.max(number.flatten().unwrap_or_default());
    }
}

/// At the end of an order: what was tried and not taken back is what starts from now on. Why it is not, for people.
pub(super) fn settle<P: Provider>(agent: &Agent<P>) -> Option<String> {
    let trial = agent.history(|history| {
        let active = history.active.as_ref()?;
        let is_back = active.rolling_back.as_ref().is_some_and(|rolling| rolling.kernel.is_some());
        active.restarting.as_ref()?.trial.clone().filter(|_| !is_back)
    });
    let trial = trial.flatten()?;
    match trial.restore(&agent.state) {
        Ok(true) => None,
        Ok(false) => Some("what is started next was set by somebody else meanwhile, and stays so".to_owned()),
        Err(why) => Some(format!("{} is still what starts next: {why}", trial.earlier_kernel)),
    }
}
