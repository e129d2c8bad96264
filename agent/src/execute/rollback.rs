//! The way back: where a check fails after an install, each update that it has installed is taken back to the packages that were
//! there before.
//!
//! ```text
//!   before the grant: is there a way back? -> its files are saved, and verified
//!   a check fails -> journal RollingBack -> simulate, judge -> package manager -> database -> services -> checks -> result
//! ```
//! It is the order's own loop with other actions, and without hooks, restarts or a grant: what goes back needs no restart, or it
//! would not go back (`Provider::goes_back`). The owner's limits count as ever. A kernel goes back by its boot entry: see
//! [`super::kernel`].

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Action, Order, PackageChange, RestartRule, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::report::Removable;
use patchwarden_protocol::result::{ActionResult, Outcome, ResultReason, Step, StepResult};
use patchwarden_protocol::safeguards::{ROLLBACK_BEGINS_SECONDS, Rollback, Safeguards};

use super::fetch::{DOWNLOAD_LIMIT, failure_of};
use super::prepare::Prepared;
use super::restart::Restarts;
use super::{BACK, Ending, ExecuteError, Execution, MAX_MESSAGE, Way, archives, judge, open, write_down};
use crate::files;
use crate::glob::Glob;
use crate::journal::{Accepted, Active, KernelBack, RollingBack, WayBack};
use crate::past::still_offered;
use crate::platform;
use crate::provider::recipes::application_of;
use crate::provider::{Artifact, Failure, Installed, Provider, Simulation, bounded, row};

/// A way back with the files that it needs.
type Found = (WayBack, Vec<Artifact>);

/// Longest message of the step.
pub(super) const MAX_STEP_MESSAGE: usize = 400;

impl<P: Provider> Execution<'_, P> {
    /// Finds out what would take back what is about to be installed, and saves the files. What stands against that is no reason
    /// not to install: it is told if a check fails.
    pub(super) async fn save_ways_back(&self, prepared: &Prepared) -> Result<(), ExecuteError> {
        let Some(rollback) = &self.order().safeguards.rollback else { return Ok(()) };
        let indexes = open(&prepared.settled);
        let found = match prepared.beside.first() {
            None => self.find_ways_back(rollback, &indexes).await,
            Some(other) => {
                let done = if other.is_removal() { "removed" } else { "changed" };
                let message = format!("{} is {done} beside it, which nobody takes back", other.name);
                Err(Failure::new(ResultReason::WouldDoMore, message))
            }
        };
        let ways_back = match found {
            Ok(found) => self.save_each(found, &prepared.simulation).await,
            Err(failure) => {
                let none = |index: &usize| WayBack {
                    update: self.order().actions[*index].update.clone(),
                    action: None,
                    why: failure.message.clone(),
                };
                indexes.iter().map(none).collect()
            }
        };
        for WayBack { update, why, .. } in ways_back.iter().filter(|way| way.action.is_none()) {
            self.progress(Phase::Guarding, &format!("{update} could not be taken back: {why}"));
        }
        let mut guarded = self.guarded();
        guarded.ways_back = ways_back;
        self.journal(&guarded)
    }

    /// The way back of each of these actions, with the files that it needs.
    async fn find_ways_back(&self, rollback: &Rollback, indexes: &[usize]) -> Result<Vec<Found>, Failure> {
        let never: Vec<Glob> = rollback.exclude_packages.iter().cloned().map(Glob::new).collect();
        let rows = self.provider.installed(&self.packages_of(indexes)).await?;
        let actions: Vec<&Action> = indexes.iter().map(|index| &self.order().actions[*index]).collect();
        let back: Vec<PackageChange> = actions.iter().flat_map(|action| action.packages.iter().map(reversed)).collect();
        let offered = self.provider.offered(&back).await?;
        let found = actions.into_iter().map(|action| match self.way_back(action, &never, &rows, &offered) {
            Ok(way) => {
                let is_own = |file: &&Artifact| way.packages.iter().any(|package| is_file_of(file, package));
                let files = offered.iter().filter(is_own).cloned().collect();
                (WayBack { update: action.update.clone(), action: Some(way), why: String::new() }, files)
            }
            Err(why) => (WayBack { update: action.update.clone(), action: None, why }, Vec::new()),
        });
        Ok(found.collect())
    }

    /// Saves the files: all at once, or, where that fails, those of one update after the other, so that one that cannot be had
    /// leaves the others their way back.
    async fn save_each(&self, mut found: Vec<Found>, simulation: &Simulation) -> Vec<WayBack> {
        let all: BTreeMap<&str, &Artifact> =
            found.iter().flat_map(|(_, files)| files).map(|file| (file.sha256.as_str(), file)).collect();
        let all: Vec<Artifact> = all.into_values().cloned().collect();
        let archives = archives(&self.place().join(BACK));
        let saved = match files::remove_tree(&archives) {
            Ok(()) => self.save(&all, simulation).await,
            Err(error) => Err(failure_of(&archives, &error)),
        };
        if let Err(failure) = saved {
            let is_alone = found.iter().filter(|(way, _)| way.action.is_some()).count() == 1;
            for (way, files) in found.iter_mut().filter(|(way, _)| way.action.is_some()) {
                let saved = if is_alone { Err(failure.clone()) } else { self.save(files, simulation).await };
                if let Err(Failure { message, .. }) = saved {
                    (way.action, way.why) = (None, message);
                }
            }
        }
        let ways: Vec<WayBack> = found.into_iter().map(|(way, _)| way).collect();
        let count = ways.iter().filter(|way| way.action.is_some()).count();
        if count > 0 {
            self.progress(
                Phase::Downloaded,
                &format!("{count} updates can be taken back: their earlier files are saved"),
            );
        }
        ways
    }

    fn way_back(
        &self,
        action: &Action,
        never: &[Glob],
        rows: &[Installed],
        offered: &[Artifact],
    ) -> Result<Action, String> {
        for package in &action.packages {
            let PackageChange { name, installed, candidate, .. } = package;
            let source = row(rows, package).map(|row| row.source.as_str()).unwrap_or_default();
            if package.is_removal() {
                return Err(format!("{name} is not kept once it is removed"));
            }
            // Somebody else has brought it to where the order would.
            if !judge::is_as_before(rows, package) {
                return Err(match installed.as_str() {
                    "" => format!("{name} was there already"),
                    version => format!("{name} was not at {version} any more"),
                });
            }
            if never.iter().any(|glob| glob.matches(name)) {
                return Err(format!("rollback.excludePackages of the policy has {name}"));
            }
            if !self.provider.goes_back(name, source) {
                return Err(format!("{name} is never brought to an earlier version"));
            }
            if !self.provider.comes_after(name, candidate, installed) {
                return Err(format!("{name} {installed} is no earlier version than {candidate}"));
            }
            if !offered.iter().any(|file| is_file_of(file, &reversed(package))) {
                return Err(format!("no repository offers {name} {installed} any more"));
            }
        }
        let back = still_offered(action.update.clone(), action.packages.iter().map(reversed).collect(), offered);
        let Some(Removable { id, packages, artifacts_digest }) = back else {
            return Err("no repository offers what is installed any more".to_owned());
        };
        Ok(Action { verb: Verb::Uninstall, update: id, packages, artifacts_digest })
    }

    /// Brings the files to where the way back looks for them, beside others that are there.
    async fn save(&self, files: &[Artifact], simulation: &Simulation) -> Result<(), Failure> {
        let archives = archives(&self.place().join(BACK));
        // Of applications the install keeps what was there.
        let is_native = |file: &&Artifact| application_of(&file.name).is_none();
        let files: Vec<Artifact> = files.iter().filter(is_native).cloned().collect();
        if files.is_empty() {
            return Ok(());
        }
        // Beside what is to be installed, which is here already.
        self.expect_room(simulation, &files).await?;
        // The order must still be begun after it.
        let left = self.order().not_after.duration_since(platform::now()) / 2;
        let limit = DOWNLOAD_LIMIT.min(Duration::try_from(left).unwrap_or_default());
        self.bring_files(limit, async |line| self.provider.save(&files, &archives, line).await).await
    }

    /// What is to be taken back after this ending; or why each update that a check has failed stays, by its id.
    pub(super) fn way_back_from(
        &self,
        ending: &Ending,
        restarts: &Restarts,
    ) -> Result<RollingBack, BTreeMap<String, String>> {
        let wanted = self.order().safeguards.rollback.is_some();
        let is_unhealthy = |action: &&ActionResult| wanted && action.reason == Some(ResultReason::CheckFailed);
        let ways = self.guarded().ways_back;
        let (mut actions, mut stays, mut kernels) = (Vec::new(), BTreeMap::new(), Vec::new());
        let tried = self.tried();
        for result in ending.actions.iter().filter(is_unhealthy) {
            if tried.is_some() && self.is_of_kernel(&result.update) {
                kernels.push(result.update.clone());
                continue;
            }
            let why = match ways.iter().find(|way| way.update == result.update) {
                Some(WayBack { action: Some(action), .. }) => {
                    actions.push(action.clone());
                    continue;
                }
                Some(WayBack { why, .. }) => why.clone(),
                None => "what was there before is not known".to_owned(),
            };
            stays.insert(result.update.clone(), why);
        }
        let kernel = tried.filter(|_| !kernels.is_empty()).map(|trial| KernelBack { trial, updates: kernels });
        if actions.is_empty() && kernel.is_none() {
            return Err(stays);
        }
        Ok(RollingBack {
            digest: self.active.accepted.digest.clone(),
            at: platform::now(),
            ending: told(ending.clone(), &stays),
            restarts: restarts.count,
            restart_postponed: restarts.missed.as_ref().map(|failure| failure.message.clone()),
            restart_reason: restarts.missed.as_ref().map(|failure| failure.reason),
            actions,
            started: None,
            kernel,
        })
    }

    /// Takes back what is journaled so, and looks whether the device is healthy then.
    pub(super) async fn go_on_back(&self, rolling: &RollingBack) -> Result<(Ending, Restarts), ExecuteError> {
        let begins = SignedDuration::from_secs(ROLLBACK_BEGINS_SECONDS.into());
        let order = Order {
            actions: rolling.actions.clone(),
            not_after: rolling.at.saturating_add(begins).unwrap_or(Timestamp::MAX),
            restart: RestartRule::never(),
            safeguards: Safeguards::default(),
            ..self.order().clone()
        };
        let active = Active {
            started: rolling.started.clone(),
            ..Active::new(Accepted { order, ..self.active.accepted.clone() })
        };
        // What was installed is not needed any more, and what goes back needs the room.
        let forth = archives(&self.place());
        files::remove_tree(&forth).map_err(|source| ExecuteError::Io { path: forth, source })?;
        let mut ending = rolling.ending.clone();
        let mut restarts = Restarts {
            count: rolling.restarts,
            missed: rolling
                .restart_postponed
                .clone()
                .map(|why| Failure::new(rolling.restart_reason.unwrap_or(ResultReason::RestartPostponed), why)),
            is_scanned: true,
        };
        let mut steps = Vec::new();
        let mut is_brought = false;
        if !rolling.actions.is_empty() {
            let updates = rolling.actions.len();
            self.progress(Phase::Guarding, &format!("a check failed: taking back {updates} updates"));
            let Self { agent, provider, .. } = *self;
            let back = Execution { agent, provider, active: &active, way: Way::Back(rolling) };
            let brought = Box::pin(back.act()).await?;
            write_down(self.agent, back.order(), &brought.actions).await?;
            steps.push(step_of(&rolling.actions, &brought));
            is_brought = brought.actions.iter().any(|action| action.done);
            ending = merge(ending, back.order(), &brought);
        }
        if let Some(kernel) = &rolling.kernel {
            let step = self.bring_kernel_back(kernel, &mut ending, &mut restarts).await?;
            is_brought |= step.ok;
            steps.push(step);
            self.agent.scan(false).await;
        }
        let mut guarded = self.guarded();
        guarded.steps.retain(|result| !matches!(result.step, Step::Rollback | Step::CheckRolledBack));
        // Services that an agent has brought back before it ended stay behind what they follow.
        let is_of_service = |result: &StepResult| result.step == Step::ServiceRolledBack;
        let (services, mut before): (Vec<_>, Vec<_>) = guarded.steps.into_iter().partition(is_of_service);
        before.append(&mut steps);
        before.extend(services);
        guarded.steps = before;
        self.journal(&guarded)?;
        if !ending.still_running && is_brought {
            // They have come to run what was taken back, or are down.
            if self.rule().services {
                self.bring_services_back(restarts.missed.as_ref()).await?;
                self.agent.scan(false).await;
            }
            for check in &self.order().safeguards.checks {
                let seconds = check.settle_seconds;
                self.progress(Phase::Guarding, &format!("check {} once more, for at most {seconds} s", check.name));
                steps.push(self.try_after(Step::CheckRolledBack, check).await);
            }
        }
        let mut guarded = self.guarded();
        guarded.steps.extend(steps);
        self.journal(&guarded)?;
        Ok((ending, restarts))
    }
}

/// To what was there before.
pub(super) fn reversed(package: &PackageChange) -> PackageChange {
    let PackageChange { name, arch, installed, candidate } = package.clone();
    PackageChange { name, arch, installed: candidate, candidate: installed }
}

pub(super) fn is_file_of(file: &Artifact, package: &PackageChange) -> bool {
    (&file.name, &file.arch, &file.version) == (&package.name, &package.arch, &package.candidate)
}

/// Says of the updates that stay why they do.
pub(super) fn told(mut ending: Ending, stays: &BTreeMap<String, String>) -> Ending {
    for action in &mut ending.actions {
        if let Some(why) = stays.get(&action.update) {
            action.message = bounded(&format!("{}; it is not taken back: {why}", action.message), MAX_MESSAGE);
        }
    }
    ending
}

/// The result of the order with what came of the way back.
fn merge(mut ending: Ending, order: &Order, brought: &Ending) -> Ending {
    for (number, action) in order.actions.iter().enumerate() {
        let Some(result) = ending.actions.iter_mut().find(|result| result.update == action.update) else { continue };
        let (reason, words) = match brought.actions.get(number) {
            Some(found) if found.done => (ResultReason::RolledBack, format!("taken back to {}", versions(action))),
            Some(found) => (ResultReason::CheckFailed, format!("it could not be taken back: {}", found.message)),
            None => (ResultReason::CheckFailed, format!("it could not be taken back: {}", brought.message)),
        };
        result.reason = Some(reason);
        result.message = bounded(&format!("{}; {words}", result.message), MAX_MESSAGE);
    }
    let_first_speak(&mut ending);
    Ending { still_running: brought.still_running, ..ending }
}

/// The first that failed speaks for the order.
pub(super) fn let_first_speak(ending: &mut Ending) {
    if let Some(first) = ending.actions.iter().find(|action| !action.done) {
        ending.reason = first.reason;
        ending.message.clone_from(&first.message);
    }
}

fn versions(action: &Action) -> String {
    let versions = action.packages.iter().map(|package| match package.candidate.as_str() {
        "" => format!("no {}", package.name),
        version => format!("{} {version}", package.name),
    });
    versions.collect::<Vec<_>>().join(", ")
}

fn step_of(actions: &[Action], brought: &Ending) -> StepResult {
    let ok = brought.outcome == Outcome::Succeeded;
    let message =
        if ok { actions.iter().map(versions).collect::<Vec<_>>().join(", ") } else { brought.message.clone() };
    StepResult { step: Step::Rollback, name: "packages".to_owned(), ok, message: bounded(&message, MAX_STEP_MESSAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(update: &str) -> Action {
        let package =
            PackageChange { name: update.into(), arch: "all".into(), installed: "2".into(), candidate: "1".into() };
        Action {
            verb: Verb::Uninstall,
            update: update.into(),
            packages: vec![package],
            artifacts_digest: String::new(),
        }
    }

    fn result(update: &str, verb: Verb, reason: Option<ResultReason>, message: &str) -> ActionResult {
        ActionResult { update: update.into(), verb, done: reason.is_none(), reason, message: message.into() }
    }

    fn ending(actions: Vec<ActionResult>) -> Ending {
        Ending::of(actions.into_iter().map(Some).collect(), true)
    }

    #[test]
    fn each_update_says_what_became_of_it_and_the_first_that_failed_speaks_for_the_order() {
        let sick = |update| result(update, Verb::Install, Some(ResultReason::CheckFailed), "check web failed");
        let forth = ending(vec![result("a", Verb::Install, None, ""), sick("b"), sick("c"), sick("d")]);
        let forth = told(forth, &BTreeMap::from([("d".to_owned(), "libc".to_owned())]));
        let order = |updates: &[&str]| Order {
            actions: updates.iter().map(|update| action(update)).collect(),
            ..crate::journal::tests::order(1)
        };
        let back = ending(vec![
            result("b", Verb::Uninstall, None, ""),
            result("c", Verb::Uninstall, Some(ResultReason::WouldDoMore), "it would remove x"),
        ]);
        let found = merge(forth.clone(), &order(&["b", "c"]), &back);
        let words: Vec<_> = found.actions.iter().map(|one| (one.reason, one.message.as_str())).collect();
        let (failed, rolled_back) = (Some(ResultReason::CheckFailed), Some(ResultReason::RolledBack));
        let expected = [
            (None, ""),
            (rolled_back, "check web failed; taken back to b 1"),
            (failed, "check web failed; it could not be taken back: it would remove x"),
            (failed, "check web failed; it is not taken back: libc"),
        ];
        assert_eq!(words, expected);
        assert_eq!((found.outcome, found.reason), (Outcome::Failed, rolled_back));
        assert_eq!(found.message, "check web failed; taken back to b 1");
        // The package manager was never let go.
        let nothing = Ending::nothing_done(Outcome::Expired, ResultReason::Expired, "too late".to_owned());
        let found = merge(forth, &order(&["b"]), &nothing);
        assert_eq!(found.actions[1].message, "check web failed; it could not be taken back: too late");
        assert_eq!(found.reason, failed);
        assert!(!step_of(&[action("b")], &nothing).ok);
        assert_eq!(step_of(&[action("b"), action("c")], &ending(vec![])).message, "b 1, c 1");
    }
}
