//! After the start: how it went, by the package manager's database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{ActionResult, ResultReason};

use super::{
    Ending, ExecuteError, Execution, MAX_ATTEMPTS, OUTPUT_LIMIT, Settled, archives, detached, done, failed, judge, open,
};
use crate::journal::{Process, Started};
use crate::platform;
use crate::provider::{self, CommandLine, Failure, Installed, Provider};

/// Looks at the running package manager.
const WATCH: Duration = Duration::from_millis(250);

/// How a started package manager ended.
#[derive(Debug)]
enum Followed {
    Ended(i32),
    Died,
    TimedOut,
}

impl<P: Provider> Execution<'_, P> {
    /// Follows a started package manager. Nothing, if it died and a part is still to be done.
    pub(super) async fn follow_to_the_end(
        &self,
        started: &Started,
        settled: &mut Settled,
    ) -> Result<Option<Ending>, ExecuteError> {
        let directory = self.attempt_directory(started.attempt);
        match self.wait_for(&started.process, &directory, started.at).await? {
            Followed::Ended(code) => {
                self.progress(Phase::Checking, "the package manager has ended; reading its database");
                let mut output = detached::output_tail(&directory, OUTPUT_LIMIT);
                if code != 0 {
                    output.push_str(&self.complete(started).await?);
                }
                let explain = |packages: &[PackageChange]| self.provider.explain(&output, Some(code), packages);
                if let Err(failure) = self.check(settled, &output, explain).await {
                    return Ok(Some(self.fail_open(std::mem::take(settled), &failure, true)));
                }
                if started.attempt < MAX_ATTEMPTS && reopen_what_others_held_up(&started.settled, settled) {
                    self.progress(Phase::Checking, "what only another update held up is tried without that one");
                    return Ok(None);
                }
                Ok(Some(Ending::of(std::mem::take(settled), true)))
            }
            Followed::TimedOut => {
                let limit = self.order().limit_seconds;
                let message = format!("the package manager still runs after {limit} s; it is not stopped");
                let failure = Failure::new(ResultReason::TimedOut, message);
                if let Err(unreadable) = self.check(settled, "", |_| failure.clone()).await {
                    tracing::warn!("{unreadable}");
                }
                let ending = self.fail_open(std::mem::take(settled), &failure, true);
                Ok(Some(Ending { still_running: true, ..ending }))
            }
            Followed::Died => self.recover(started, settled).await,
        }
    }

    /// As long as the order's limit, from `began` on.
    async fn wait_for(&self, process: &Process, directory: &Path, began: Timestamp) -> Result<Followed, ExecuteError> {
        let limit = SignedDuration::from_secs(i64::from(self.order().limit_seconds));
        loop {
            // In this order: the code is written before the process ends.
            let alive = platform::is_alive(process)?;
            if let Some(code) = detached::exit_code(directory)? {
                return Ok(Followed::Ended(code));
            }
            if !alive {
                return Ok(Followed::Died);
            }
            if platform::now().duration_since(began) > limit {
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
        let until = until.unwrap_or(Timestamp::MAX).max(platform::now() + self.lock_wait());
        let output = detached::output_tail(&self.attempt_directory(started.attempt), OUTPUT_LIMIT);
        let looked = async {
            // The shell around it may have been killed, and it not.
            self.wait_until_free(until).await?;
            let (removals, changed): (Vec<_>, Vec<_>) =
                started.beside.iter().cloned().partition(PackageChange::is_removal);
            let packages = [self.packages_of(&open(settled)), changed].concat();
            let place = archives(&self.place());
            self.provider.repair_commands(self.direction(), &packages, &removals, &place).await
        };
        let fail =
            |settled: &mut Settled, failure: &Failure| Ok(Some(self.fail_open(std::mem::take(settled), failure, true)));
        match looked.await {
            Ok(commands) => self.repair(started, &commands).await?,
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
            let why = self.provider.explain(&output, None, &self.packages_of(&open(settled)));
            let message = format!("the package manager died {MAX_ATTEMPTS} times: {}", why.message);
            return fail(settled, &Failure::new(why.reason, message));
        }
        Ok(None)
    }

    /// After a failure: what was left half done because of another package is completed. What was printed meanwhile.
    async fn complete(&self, started: &Started) -> Result<String, ExecuteError> {
        let found = async {
            // By an agent that has died since it may have been begun already.
            self.wait_until_free(platform::now() + self.lock_wait()).await?;
            self.provider.completing_commands().await
        };
        match found.await {
            Ok(commands) => {
                self.repair(started, &commands).await?;
                let said = (0..commands.len()).map(|number| self.repair_directory(started, number));
                Ok(said.map(|directory| detached::output_tail(&directory, OUTPUT_LIMIT)).collect())
            }
            Err(failure) => {
                tracing::warn!("what the package manager has left half done stays: {failure}");
                Ok(String::new())
            }
        }
    }

    fn repair_directory(&self, started: &Started, number: usize) -> PathBuf {
        self.place().join(format!("repair-{}-{number}", started.attempt))
    }

    /// Lets the package manager complete its interrupted work; how that went is seen in the database.
    async fn repair(&self, started: &Started, commands: &[CommandLine]) -> Result<(), ExecuteError> {
        for (number, command) in commands.iter().enumerate() {
            self.progress(Phase::Checking, "the package manager was interrupted: completing its work");
            let name = format!("{}-{number}", started.attempt);
            let directory = self.repair_directory(started, number);
            let unit = format!("patchwarden-{}repair-{}-{name}", self.way.word(), self.order().sequence);
            let waiting = detached::prepare(command, &directory, &unit)?;
            let process = waiting.process.clone();
            let began = platform::now();
            waiting.go().await?;
            match self.wait_for(&process, &directory, began).await? {
                Followed::Ended(0) => {}
                Followed::Ended(code) => {
                    let said = detached::output_tail(&directory, OUTPUT_LIMIT);
                    tracing::warn!("completing the interrupted work ended with code {code}: {}", said.trim());
                }
                Followed::Died | Followed::TimedOut => {
                    tracing::warn!("completing the interrupted work did not come to an end");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Settles everything that is open by the database.
    async fn check(
        &self,
        settled: &mut Settled,
        output: &str,
        explain: impl Fn(&[PackageChange]) -> Failure,
    ) -> Result<(), Failure> {
        let rows = self.provider.installed(&self.packages_of(&open(settled))).await?;
        for index in open(settled) {
            let action = &self.order().actions[index];
            let left: Vec<PackageChange> =
                action.packages.iter().filter(|package| !judge::is_done(&rows, package)).cloned().collect();
            settled[index] = Some(if left.is_empty() {
                done(action, &self.provider.remarks(output, &action.packages))
            } else {
                failed(action, &with_versions(&explain(&left), &rows, &left))
            });
        }
        Ok(())
    }
}

/// Some package managers stop everything at the first package that cannot be installed. Whether anything is open now: with
/// what failed by itself since `before` out of the way the rest may be done.
fn reopen_what_others_held_up(before: &Settled, settled: &mut Settled) -> bool {
    let reason = |action: &Option<ActionResult>| action.as_ref().and_then(|action| action.reason);
    let is_held_up = |action: &Option<ActionResult>| reason(action) == Some(ResultReason::OtherFailed);
    let has_culprit = before
        .iter()
        .zip(settled.iter())
        .any(|(before, now)| before.is_none() && reason(now).is_some() && !is_held_up(now));
    if !has_culprit || !settled.iter().any(is_held_up) {
        return false;
    }
    settled.iter_mut().filter(|action| is_held_up(action)).for_each(|action| *action = None);
    true
}

fn is_old_or_new(rows: &[Installed], package: &PackageChange) -> bool {
    judge::is_as_before(rows, package)
        || judge::is_done(rows, package)
        || provider::row(rows, package).is_some_and(|row| row.version == package.candidate)
}

/// The package manager's words, and which versions are there.
fn with_versions(failure: &Failure, rows: &[Installed], packages: &[PackageChange]) -> Failure {
    let found: Vec<String> = packages
        .iter()
        .map(|package| match provider::row(rows, package) {
            None => format!("{} is not installed", package.name),
            Some(row) if !row.complete => format!("{} is at {}, not complete", package.name, row.version),
            Some(row) => format!("{} is at {}", package.name, row.version),
        })
        .collect();
    Failure::new(failure.reason, format!("{}: {}", found.join(", "), failure.message))
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::order::Verb;

    use super::*;

    #[test]
    fn what_another_held_up_is_open_again_once_that_one_is_out_of_the_way() {
        use ResultReason::{OtherFailed, PackageManagerFailed};
        let result = |reason: Option<ResultReason>| {
            let done = reason.is_none();
            Some(ActionResult { update: "u".into(), verb: Verb::Install, done, reason, message: String::new() })
        };
        let reopened = |before: &[Option<ActionResult>], now: &[Option<ActionResult>]| {
            let mut settled = now.to_vec();
            reopen_what_others_held_up(&before.to_vec(), &mut settled)
                .then(|| settled.iter().map(Option::is_none).collect::<Vec<_>>())
        };
        let (done, bad, held_up) = (result(None), result(Some(PackageManagerFailed)), result(Some(OtherFailed)));
        let open = [None, None, None];
        assert_eq!(reopened(&open, &[done.clone(), bad.clone(), held_up.clone()]), Some(vec![false, false, true]));
        assert_eq!(reopened(&open, &[done.clone(), bad.clone(), bad.clone()]), None);
        assert_eq!(
            reopened(&open, &[done.clone(), held_up.clone(), held_up.clone()]),
            None,
            "the cause is still there"
        );
        let before = [None, bad.clone(), None];
        assert_eq!(reopened(&before, &[done, bad, held_up]), None, "that one was out of the way already");
    }
}
