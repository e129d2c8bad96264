//! Orders that install the agent's own next version: see [`crate::successor`].

mod watch;

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::ResultReason;

use super::fetch::{DOWNLOAD_LIMIT, failure_of};
use super::prepare::Prepared;
use super::rollback::{is_file_of, reversed};
use super::{Ending, ExecuteError, Execution, Settled, Way, failed};
use crate::files;
use crate::platform;
use crate::provider::{Failure, Provider};
use crate::successor::{PACKAGE, Plan, Successor, UNIT};

pub(crate) use watch::watch;

/// Looks whether the next version has a session.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl<P: Provider> Execution<'_, P> {
    /// Sees to it that the earlier version comes back where the next one gets no session. What stands against that is no reason
    /// not to install it.
    pub(super) async fn watch_over_successor(&self, prepared: &Prepared) -> Result<(), ExecuteError> {
        let is_ordered = prepared.packages.iter().any(|package| package.name == PACKAGE);
        if !is_ordered || matches!(self.way, Way::Back(_)) {
            return Ok(());
        }
        let successor = &self.agent.successor;
        successor.clear().map_err(|source| ExecuteError::Io { path: successor.place(), source })?;
        match self.prepare_return(prepared, successor).await {
            Ok(seconds) => self.progress(
                Phase::Guarding,
                &format!("the agent's next version is taken back if it has no session within {seconds} s"),
            ),
            Err(failure) => {
                successor.clear().map_err(|source| ExecuteError::Io { path: successor.place(), source })?;
                let why = format!("the agent's next version would not be taken back: {}", failure.message);
                self.progress(Phase::Guarding, &why);
            }
        }
        Ok(())
    }

    async fn prepare_return(&self, prepared: &Prepared, successor: &Successor) -> Result<u32, Failure> {
        let broken = |why: String| Failure::new(ResultReason::PackageManagerFailed, why);
        let Some(package) = prepared.packages.iter().find(|package| package.name == PACKAGE).cloned() else {
            return Err(broken(format!("{PACKAGE} is not ordered")));
        };
        let back = reversed(&package);
        let mut files = self.provider.offered(std::slice::from_ref(&back)).await?;
        files.retain(|file| is_file_of(file, &back));
        if files.is_empty() {
            return Err(broken(format!("no repository offers {PACKAGE} {} any more", back.candidate)));
        }
        self.expect_room(&prepared.simulation, &files).await?;
        let io = |path: PathBuf| move |error| failure_of(&path, &error);
        files::ensure_directory(&successor.place(), files::PASSAGE).map_err(io(successor.place()))?;
        self.bring_files(DOWNLOAD_LIMIT, async |line| self.provider.save(&files, &successor.archives(), line).await)
            .await?;
        let limit_seconds = self.agent.config.check_in_seconds();
        let takes = SignedDuration::from_secs(i64::from(self.order().limit_seconds));
        let plan = Plan {
            order_digest: self.active.accepted.digest.clone(),
            package,
            predecessor: platform::process(std::process::id()).map_err(|error| broken(error.to_string()))?,
            program: std::env::current_exe().map_err(io("the agent's program".into()))?,
            gateway: self.agent.config.gateway.clone(),
            preview_zypper: self.agent.config.preview_zypper,
            limit_seconds,
            until: platform::now().saturating_add(takes).unwrap_or(jiff::Timestamp::MAX),
        };
        successor.write(&plan).map_err(io(successor.place()))?;
        platform::start_service(UNIT).await.map_err(broken)?;
        Ok(limit_seconds)
    }

    /// The next version tells nothing of its order before it has a session: nobody could hear it, and it may not stay. The earlier
    /// one says that it was taken back, where it was.
    pub(super) async fn answer_for_successor(&self, mut ending: Ending) -> Result<Ending, ExecuteError> {
        let successor = &self.agent.successor;
        let io = |source| ExecuteError::Io { path: successor.place(), source };
        let mut said = false;
        while successor.is_awaited().map_err(io)? {
            if !said {
                self.progress(Phase::Checking, "the agent's next version has no session yet");
                said = true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let mut settled: Settled = ending.actions.iter().cloned().map(Some).collect();
        if self.settle_returned(&mut settled)? {
            let still_running = ending.still_running;
            ending = Ending { still_running, ..Ending::of(settled, true) };
        }
        Ok(ending)
    }

    /// What was taken back by the earlier version is not installed again by this order. Returns whether anything was.
    pub(super) fn settle_returned(&self, settled: &mut Settled) -> Result<bool, ExecuteError> {
        let successor = &self.agent.successor;
        let returned = successor.returned().map_err(|source| ExecuteError::Io { path: successor.place(), source })?;
        let Some(returned) = returned.filter(|returned| returned.order_digest == self.active.accepted.digest) else {
            return Ok(false);
        };
        let failure = Failure::new(ResultReason::RolledBack, returned.message);
        let mut is_any = false;
        for (result, action) in settled.iter_mut().zip(&self.order().actions) {
            if action.packages.contains(&returned.package) && result.as_ref().is_none_or(|result| !result.done) {
                *result = Some(failed(action, &failure));
                is_any = true;
            }
        }
        Ok(is_any)
    }
}
