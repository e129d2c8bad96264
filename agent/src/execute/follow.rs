//! After the start: how it went, by the package manager's database.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::PackageChange;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::ResultReason;

use super::prepare::BUSY_LIMIT;
use super::{
    Ending, ExecuteError, Execution, MAX_ATTEMPTS, OUTPUT_LIMIT, Settled, archives, detached, done, failed, judge, open,
};
use crate::agent::order_directory;
use crate::journal::Started;
use crate::platform;
use crate::provider::{self, Failure, Installed, Provider};

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
        match self.follow(started).await? {
            Followed::Ended(code) => {
                self.progress(Phase::Checking, "the package manager has ended; reading its database");
                let output = detached::output_tail(&directory, OUTPUT_LIMIT);
                let explain = |packages: &[PackageChange]| self.provider.explain(&output, Some(code), packages);
                if let Err(failure) = self.check(settled, &output, explain).await {
                    return Ok(Some(self.fail_open(std::mem::take(settled), &failure, true)));
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
            let why = self.provider.explain(&output, None, &self.packages_of(&open(settled)));
            let message = format!("the package manager died {MAX_ATTEMPTS} times: {}", why.message);
            return fail(settled, &Failure::new(why.reason, message));
        }
        Ok(None)
    }

    /// Lets the package manager complete its interrupted work; how that went is seen in the database.
    async fn repair(&self, started: &Started) -> Result<(), ExecuteError> {
        self.progress(Phase::Checking, "the package manager was interrupted: completing its work");
        let directory =
            order_directory(&self.agent.state, self.order().sequence).join(format!("repair-{}", started.attempt));
        let archives = archives(self.agent, self.order().sequence);
        let command = self.provider.repair_command(self.direction(), &archives);
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

fn is_old_or_new(rows: &[Installed], package: &PackageChange) -> bool {
    provider::row(rows, package).is_some_and(|row| row.version == package.installed || row.version == package.candidate)
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
