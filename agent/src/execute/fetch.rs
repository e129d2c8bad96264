//! The files of an order: those that were downloaded ahead, the others from the repositories.
//!
//! ```text
//!   orders/N/fetch/RANDOM/   gathered here: from the keep, and from what an interrupted run left
//!   orders/N/archives/       renamed to this once it is whole and verified: what an install uses
//!   downloads/               an order to download puts its files here
//! ```
//! Each run has a directory of its own: the package manager of an agent that was killed may still write into the old one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwarden_protocol::order::Action;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::{Outcome, ResultReason};

use super::prepare::{Prepared, artifact_of};
use super::{Ending, Execution, Settled, archives, done, failed, fetch_directory, open};
use crate::files;
use crate::keep::{self, Keep};
use crate::platform;
use crate::provider::recipes::application_of;
use crate::provider::{Artifact, Failure, Line, Provider, megabytes};

/// Downloads: an hour is enough for gigabytes on a slow line.
pub(super) const DOWNLOAD_LIMIT: Duration = Duration::from_hours(1);

/// What did not come and holds up nothing else: see [`Provider::download_each`].
type Missed = Vec<(String, Failure)>;

/// A directory with what there was of an order's files.
struct Gathered {
    place: PathBuf,
    missing: Vec<Artifact>,
    /// Number of files that were there.
    had: usize,
}

impl<P: Provider> Execution<'_, P> {
    /// Brings all files into the order's archives, each verified. Where only those of some actions did not come: what is known
    /// of the actions then. The others can go on, with what is there.
    pub(super) async fn fetch(&self, prepared: &Prepared) -> Result<Option<Settled>, Failure> {
        let gathered = self.gather(prepared).await?;
        let missed = self.download(prepared, &gathered, DOWNLOAD_LIMIT).await?;
        let archives = archives(&self.place());
        files::remove_tree(&archives)
            .and_then(|()| fs::rename(&gathered.place, &archives))
            .map_err(|error| failure_of(&archives, &error))?;
        let Some((_, first)) = missed.first() else { return Ok(None) };
        let mut settled = prepared.settled.clone();
        for index in open(&settled) {
            let action = &self.order().actions[index];
            if let Some(failure) = failure_for(action, &missed) {
                settled[index] = Some(failed(action, failure));
            }
        }
        // Nobody's file would be fetched for ever.
        if settled == prepared.settled { Err(first.clone()) } else { Ok(Some(settled)) }
    }

    /// Carries out an order to download. Nothing on the machine changes, so nobody is asked for a grant.
    pub(super) async fn download_ahead(&self) -> Ending {
        let settled = vec![None; self.order().actions.len()];
        if platform::now() > self.order().not_after {
            let message = format!("it was not downloaded until {}", self.order().not_after);
            return Ending::nothing_done(Outcome::Expired, ResultReason::Expired, message);
        }
        let prepared = match self.prepare(&settled, false).await {
            Ok(prepared) => prepared,
            Err(failure) => return self.fail_open(settled, &failure, false),
        };
        if prepared.packages.is_empty() {
            return Ending::of(prepared.settled, false);
        }
        match self.fetch_and_keep(&prepared).await {
            Ok((problem, missed)) => self.settle_downloads(prepared, problem.as_ref(), &missed),
            Err(failure) => self.fail_open(prepared.settled, &failure, false),
        }
    }

    /// The failures inside are those of a download of which a part may have arrived.
    async fn fetch_and_keep(&self, prepared: &Prepared) -> Result<(Option<Failure>, Missed), Failure> {
        let gathered = self.gather(prepared).await?;
        let limit = DOWNLOAD_LIMIT.min(Duration::from_secs(self.order().limit_seconds.into()));
        let (problem, missed) = match self.download(prepared, &gathered, limit).await {
            Ok(missed) => (None, missed),
            Err(failure) => (Some(failure), Missed::new()),
        };
        let wanted = needed(&prepared.artifacts).into_iter().map(|file| {
            let by = wanted_by(&self.order().actions, &file, &prepared.artifacts);
            (file, by)
        });
        let (keep, wanted, place) = (self.agent.keep.clone(), wanted.collect(), gathered.place);
        blocking(place.clone(), move || keep.take(wanted, &place)).await?;
        Ok((problem, missed))
    }

    /// What a download fetched counts even if something else of it failed.
    fn settle_downloads(&self, prepared: Prepared, problem: Option<&Failure>, missed: &Missed) -> Ending {
        let Prepared { mut settled, artifacts, .. } = prepared;
        let whole: BTreeSet<String> = self.agent.keep.whole().into_keys().collect();
        let is_here = |artifact: &Artifact| !artifact.needed || whole.contains(&artifact.sha256);
        let actions = &self.order().actions;
        let is_new = |artifact: &&Artifact| owners(actions, artifact, &artifacts).is_empty();
        let all_new_are_here = artifacts.iter().filter(is_new).all(is_here);
        for index in open(&settled) {
            let action = &actions[index];
            // Of what the system keeps itself nothing is here to be seen: its word counts.
            let is_told = problem.is_none() || own_files(action, &artifacts).any(|artifact| artifact.needed);
            settled[index] = Some(if is_told && all_new_are_here && own_files(action, &artifacts).all(is_here) {
                done(action, "")
            } else {
                let unknown = || Failure::new(ResultReason::DownloadFailed, "not all of its files arrived");
                failed(action, &failure_for(action, missed).or(problem).cloned().unwrap_or_else(unknown))
            });
        }
        Ending::of(settled, false)
    }

    async fn gather(&self, prepared: &Prepared) -> Result<Gathered, Failure> {
        let fetch = fetch_directory(&self.place());
        let place = fetch.join(format!("{:08x}", rand::random::<u32>()));
        let archives = archives(&self.place());
        let (keep, files) = (self.agent.keep.clone(), needed(&prepared.artifacts));
        let (count, to) = (files.len(), place.clone());
        let missing = blocking(fetch.clone(), move || gather(&keep, files, &fetch, &archives, &to)).await?;
        Ok(Gathered { place, had: count - missing.len(), missing })
    }

    async fn download(&self, prepared: &Prepared, gathered: &Gathered, limit: Duration) -> Result<Missed, Failure> {
        let Gathered { place, missing, had } = gathered;
        let fetch = async |line: Line<'_>| {
            self.provider.download(self.direction(), &prepared.packages, missing, place, line).await
        };
        // What recipes bring comes from their vendors, by HTTPS.
        let is_native = |artifact: &Artifact| application_of(&artifact.name).is_none();
        if missing.iter().any(is_native) {
            self.bring_files(limit, fetch).await?;
        } else {
            fetch(Line { limit, proxy: None }).await?;
        }
        let missed = self.provider.download_each(missing, place, limit).await;
        let came = missing.iter().filter(|artifact| missed.iter().all(|(name, _)| *name != artifact.name));
        let (count, bytes) = came.fold((0, 0_u64), |(count, bytes), artifact| (count + 1, bytes + artifact.size));
        let here = if *had > 0 { format!("; {had} were here already") } else { String::new() };
        self.progress(Phase::Downloaded, &format!("downloaded {count} files, {}{here}", megabytes(bytes)));
        Ok(missed)
    }
}

fn failure_for<'a>(action: &Action, missed: &'a Missed) -> Option<&'a Failure> {
    let is_its = |(name, _): &&(String, Failure)| action.packages.iter().any(|package| package.name == *name);
    missed.iter().find(is_its).map(|(_, failure)| failure)
}

fn needed(artifacts: &[Artifact]) -> Vec<Artifact> {
    artifacts.iter().filter(|artifact| artifact.needed).cloned().collect()
}

/// Files of the action's own packages.
fn own_files<'a>(action: &'a Action, artifacts: &'a [Artifact]) -> impl Iterator<Item = &'a Artifact> {
    action.packages.iter().filter_map(|package| artifact_of(package, artifacts))
}

/// The actions that order this file. None for a new package: it is needed by some action, and nobody says by which.
fn owners<'a>(actions: &'a [Action], file: &Artifact, artifacts: &[Artifact]) -> Vec<&'a Action> {
    actions.iter().filter(|action| own_files(action, artifacts).any(|own| own == file)).collect()
}

/// Digests of the updates for which the file is kept.
fn wanted_by(actions: &[Action], file: &Artifact, artifacts: &[Artifact]) -> Vec<String> {
    let mut actions_of_it = owners(actions, file, artifacts);
    if actions_of_it.is_empty() {
        actions_of_it = actions.iter().collect();
    }
    actions_of_it.into_iter().map(|action| action.artifacts_digest.clone()).collect()
}

/// Makes `place` with what there is, verified; returns what is missing. What an interrupted run left is used and removed.
fn gather(
    keep: &Keep,
    artifacts: Vec<Artifact>,
    fetch: &Path,
    archives: &Path,
    place: &Path,
) -> io::Result<Vec<Artifact>> {
    let mut left = vec![archives.to_owned()];
    files::ensure_directory(fetch, files::PASSAGE)?;
    for entry in fs::read_dir(fetch)? {
        left.push(entry?.path());
    }
    files::ensure_directory(place, files::PASSAGE)?;
    let mut missing = Vec::new();
    for artifact in artifacts {
        let to = place.join(&artifact.file_name);
        let mut is_here = keep.lend(&artifact, &to)?;
        for directory in &left {
            is_here = is_here || keep::put_verified(&directory.join(&artifact.file_name), &to, &artifact.sha256)?;
        }
        if !is_here {
            missing.push(artifact);
        }
    }
    for directory in left {
        files::remove_tree(&directory)?;
    }
    Ok(missing)
}

/// Hashing gigabytes must not stop the session's keepalive.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| failure_of(&path, &error)),
        Err(error) => Err(Failure::new(ResultReason::DownloadFailed, error.to_string())),
    }
}

pub(super) fn failure_of(path: &Path, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull => ResultReason::DiskFull,
        _ => ResultReason::DownloadFailed,
    };
    Failure::new(reason, format!("{}: {error}", path.display()))
}
