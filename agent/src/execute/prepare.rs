//! Before the grant: what will be done, and whether it is what was ordered.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::order::{Action, PackageChange, Verb};
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::result::ResultReason;

use super::room::Shortage;
use super::{ALREADY, Execution, MAX_MESSAGE, MAX_PREPARATIONS, Settled, Way, archives, done, failed, judge, open};
use crate::limits::Limits;
use crate::platform;
use crate::provider::{
    self, Artifact, Direction, Failure, Installed, Provider, Simulation, Stamp, Unconfigured, artifacts_digest, bounded,
};
use crate::unfinished::is_of;

/// What may be done. Files and grant are missing.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What is known of the actions now.
    pub(super) settled: Settled,
    /// What is to be changed.
    pub(super) packages: Vec<PackageChange>,
    /// Their files, and those of new packages that they need.
    pub(super) artifacts: Vec<Artifact>,
    /// What the package manager will do.
    pub(super) simulation: Simulation,
    /// What of it is done to other packages that are there.
    pub(super) beside: Vec<PackageChange>,
    /// When this was true.
    pub(super) stamp: Stamp,
}

impl<P: Provider> Execution<'_, P> {
    /// `started`: the package manager was let go for this order before. Where packages change meanwhile, nothing of what was found out
    /// counts: the database was another one than that of the simulation.
    pub(super) async fn prepare(&self, settled: &Settled, started: bool) -> Result<Prepared, Failure> {
        let patient_until = platform::now() + self.lock_wait();
        // Nothing is begun later.
        let latest = if started { Timestamp::MAX } else { self.order().not_after };
        let mut preparations = 0;
        loop {
            self.wait_until_free(patient_until.min(latest)).await?;
            let stamp = self.provider.stamp()?;
            let found = self.prepare_once(settled.clone(), started, stamp.clone()).await;
            preparations += 1;
            if preparations == MAX_PREPARATIONS || self.provider.stamp()? == stamp {
                return found;
            }
            self.progress(Phase::Verified, "packages changed during the simulation: simulating again");
        }
    }

    async fn prepare_once(&self, mut settled: Settled, started: bool, stamp: Stamp) -> Result<Prepared, Failure> {
        let limits = self.limits()?;
        let rows = self.provider.installed(&self.packages_of(&open(&settled))).await?;
        for index in open(&settled) {
            let action = &self.order().actions[index];
            if action.packages.iter().all(|package| judge::is_done(&rows, package)) {
                settled[index] = Some(done(action, ALREADY));
            } else if let Err(failure) = self.check_action(action, &rows, started) {
                settled[index] = Some(failed(action, &failure));
            }
        }
        let (packages, simulation, artifacts) = loop {
            let (indexes, simulation, artifacts) = self.select(&mut settled, &rows, &limits).await?;
            if indexes.is_empty() {
                let (packages, artifacts, beside) = (Vec::new(), Vec::new(), Vec::new());
                return Ok(Prepared { settled, packages, artifacts, simulation, beside, stamp });
            }
            let to_fetch = self.to_fetch(&artifacts);
            match self.check_room(&simulation, &to_fetch).await? {
                None => break (self.packages_of(&indexes), simulation, artifacts),
                Some(Shortage { failure, is_kernels: true }) => {
                    self.settle_kernels(&indexes, &artifacts, &failure, &mut settled).await?;
                }
                // For an install what is here already takes room too, once it is unpacked.
                Some(Shortage { failure, .. }) if self.verb() == Verb::Download => {
                    self.settle_largest(&indexes, &to_fetch, &failure, &mut settled);
                }
                Some(Shortage { failure, .. }) => self.settle_largest(&indexes, &artifacts, &failure, &mut settled),
            }
        };
        let would = if self.verb() == Verb::Download { "an install would do: " } else { "" };
        self.progress(Phase::Simulated, &bounded(&format!("{would}{}", describe(&simulation)), MAX_MESSAGE));
        let beside = self.beside(&simulation, &packages).await?;
        Ok(Prepared { settled, packages, artifacts, simulation, beside, stamp })
    }

    /// Before anything is asked of the package manager.
    fn check_action(&self, action: &Action, rows: &[Installed], started: bool) -> Result<(), Failure> {
        // What is out of date is not blamed for going the wrong way.
        judge::check_versions(&action.packages, rows)?;
        let there = |package| provider::row(rows, package);
        let moves = action.packages.iter().filter_map(|package| {
            there(package).map(|row| (row.name.as_str(), row.version.as_str(), package.candidate.as_str()))
        });
        judge::check_direction(self.direction(), moves, |name, a, b| self.provider.comes_after(name, a, b))?;
        // What was begun is completed, although the versions are not those that are remembered any more.
        if self.direction() != Direction::Back || started {
            return Ok(());
        }
        // That this order has installed it is in the journal.
        let is_own = matches!(self.way, Way::Back(_));
        let never =
            action.packages.iter().filter_map(there).find(|row| !self.provider.goes_back(&row.name, &row.source));
        let why = match never {
            Some(row) => format!("{} is never brought to an earlier version", row.name),
            None if !is_own && !self.agent.past.is_taken_back_by(action) => {
                "no order has installed this update, so none can take it back".to_owned()
            }
            None => return Ok(()),
        };
        Err(Failure::new(ResultReason::ReportMismatch, why))
    }

    /// How long an order waits for another program to be done with the package manager.
    pub(super) fn lock_wait(&self) -> SignedDuration {
        SignedDuration::from_secs(self.agent.config.lock_wait_seconds().into())
    }

    pub(super) async fn wait_until_free(&self, until: Timestamp) -> Result<(), Failure> {
        let mut said = false;
        while self.provider.is_busy()? {
            if platform::now() > until {
                let by = self.provider.holder().map(|holder| format!(": {holder}")).unwrap_or_default();
                let message = format!("another program still uses the package manager{by}; it is not stopped");
                return Err(Failure::new(ResultReason::Locked, message));
            }
            if !said {
                self.progress(Phase::Verified, "waits for another program that uses the package manager");
                said = true;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// The actions that can be carried out together, with what will then be done. The others are settled, each with its
    /// own reason: one bad update does not hold up the rest.
    async fn select(
        &self,
        settled: &mut Settled,
        rows: &[Installed],
        limits: &Limits,
    ) -> Result<(Vec<usize>, Simulation, Vec<Artifact>), Failure> {
        loop {
            let indexes = open(settled);
            if indexes.is_empty() {
                return Ok((indexes, Simulation::default(), Vec::new()));
            }
            let simulation = match self.try_together(&indexes, &indexes, rows, limits).await {
                Ok(simulation) => simulation,
                Err(failure) if failure.is_general => return Err(failure),
                Err(failure) => {
                    self.settle_one_by_one(&indexes, &failure, settled, rows, limits).await?;
                    continue;
                }
            };
            let artifacts = self.provider.artifacts(self.direction(), &self.packages_of(&indexes)).await?;
            let mut all_offered = true;
            for &index in &indexes {
                let action = &self.order().actions[index];
                let checked = match check_artifacts(action, &artifacts) {
                    Ok(()) => self.check_hashes_of(action, &artifacts, indexes.len() == 1).await?,
                    failure => failure,
                };
                if let Err(failure) = checked {
                    settled[index] = Some(failed(action, &failure));
                    all_offered = false;
                }
            }
            if all_offered {
                check_hashes(&artifacts)?;
                return Ok((indexes, simulation, artifacts));
            }
        }
    }

    /// Whether all that the action brings can be verified. A new package that one of several actions needs is whose it is when
    /// that one is planned alone; one that cannot be has its own files looked at.
    async fn check_hashes_of(
        &self,
        action: &Action,
        artifacts: &[Artifact],
        is_alone: bool,
    ) -> Result<Result<(), Failure>, Failure> {
        if is_alone || !artifacts.iter().any(has_no_hash) {
            return Ok(check_hashes(artifacts));
        }
        match self.provider.artifacts(self.direction(), &action.packages).await {
            Ok(files) => Ok(check_hashes(&files)),
            Err(failure) if failure.is_general => Err(failure),
            Err(_) => {
                let own = action.packages.iter().filter_map(|package| artifact_of(package, artifacts)).cloned();
                Ok(check_hashes(&own.collect::<Vec<_>>()))
            }
        }
    }

    /// To try updates one by one takes its time. Nothing that is found out after the order's end is of any use.
    pub(super) fn check_time(&self) -> Result<(), Failure> {
        let until = self.order().not_after;
        if platform::now() <= until {
            return Ok(());
        }
        Err(Failure::new(ResultReason::Expired, format!("its updates were still tried one by one at {until}"))
            .general())
    }

    async fn try_together(
        &self,
        indexes: &[usize],
        allowed: &[usize],
        rows: &[Installed],
        limits: &Limits,
    ) -> Result<Simulation, Failure> {
        let wanted = self.packages_of(indexes);
        let mut simulation = self.provider.simulate(self.direction(), &wanted).await?;
        self.allow_unfinished(&mut simulation).await?;
        let moves = simulation
            .changes
            .iter()
            .filter_map(|change| change.old.as_deref().map(|old| (change.name.as_str(), old, change.new.as_str())));
        judge::check_direction(self.direction(), moves, |name, a, b| self.provider.comes_after(name, a, b))?;
        let allowed = self.packages_of(allowed);
        judge::judge(&simulation, &wanted, &allowed, self.dependencies(), rows)?;
        self.check_removals(&simulation).await?;
        self.check_done(limits, &simulation, &allowed)?;
        Ok(simulation)
    }

    /// To configure what earlier orders have left half done is allowed by those, once a newer version of each package whose script
    /// has failed is among the changes: else it fails again, and with it whatever depends on it.
    async fn allow_unfinished(&self, simulation: &mut Simulation) -> Result<(), Failure> {
        if simulation.configures.is_empty() {
            return Ok(());
        }
        let known = self.agent.unfinished.read();
        if known.is_empty() {
            return Ok(());
        }
        let found = self.provider.unconfigured().await?;
        let is_known = |found: &Unconfigured| known.iter().any(|known| is_of(found, known));
        let is_healed = |found: &Unconfigured| {
            simulation.changes.iter().any(|change| {
                (&change.name, &change.arch) == (&found.name, &found.arch)
                    && self.provider.comes_after(&found.name, &change.new, &found.version)
            })
        };
        if let Some(failed) = found.iter().find(|found| found.has_failed && is_known(found) && !is_healed(found)) {
            let Unconfigured { name, version, .. } = failed;
            let message = format!("a script of {name} {version} has failed: nothing goes before its next version");
            return Err(Failure::new(ResultReason::OtherFailed, message));
        }
        // Of each architecture: the name is all that apt tells.
        let is_allowed = |name: &String| {
            let mut found = found.iter().filter(|found| found.name == *name).peekable();
            // What is in another state than these two is nothing that is known here.
            found.peek().is_some() && found.all(is_known)
        };
        simulation.configures.retain(|name| !is_allowed(name));
        Ok(())
    }

    /// The owner's limits as they are now, for what is about to begin.
    pub(super) fn check_owner(&self, prepared: &Prepared) -> Result<(), Failure> {
        self.check_done(&self.limits()?, &prepared.simulation, &prepared.packages)
    }

    /// Whether the owner's limits let this be done.
    fn check_done(&self, limits: &Limits, simulation: &Simulation, ordered: &[PackageChange]) -> Result<(), Failure> {
        limits.check_changes(simulation)?;
        limits.check_dependencies(simulation, ordered)?;
        limits.check_applications(&simulation.changes, |name| !self.provider.goes_back(name, ""))
    }

    /// Settles at least one of `indexes`: those that do not fit with the ones before. A failure that is none of them stands.
    async fn settle_one_by_one(
        &self,
        indexes: &[usize],
        together: &Failure,
        settled: &mut Settled,
        rows: &[Installed],
        limits: &Limits,
    ) -> Result<(), Failure> {
        let mut good: Vec<usize> = Vec::new();
        let mut allowed = indexes.to_vec();
        for &index in indexes {
            good.push(index);
            // A single action has been tried already.
            let tried = if indexes.len() == 1 {
                Err(together.clone())
            } else {
                self.check_time()?;
                self.try_together(&good, &allowed, rows, limits).await.map(|_| ())
            };
            if let Err(failure) = tried {
                if failure.is_general {
                    return Err(failure);
                }
                good.pop();
                allowed.retain(|other| *other != index);
                settled[index] = Some(failed(&self.order().actions[index], &failure));
            }
        }
        // The package manager contradicts itself: each more would be allowed, all together not.
        if good.len() == indexes.len()
            && let Some(last) = indexes.last()
        {
            settled[*last] = Some(failed(&self.order().actions[*last], together));
        }
        Ok(())
    }

    /// Which of the files are not here. What an interrupted run or [`Self::save_ways_back`] has left in the order's place is told
    /// by its size alone: it is verified when it is taken.
    fn to_fetch(&self, artifacts: &[Artifact]) -> Vec<Artifact> {
        let (kept, archives) = (self.agent.keep.whole(), archives(&self.place()));
        let is_left = |file: &Artifact| {
            archives
                .join(&file.file_name)
                .symlink_metadata()
                .is_ok_and(|found| found.is_file() && found.len() == file.size)
        };
        let is_here = |file: &Artifact| kept.contains_key(&file.sha256) || is_left(file);
        artifacts.iter().filter(|file| file.needed && !is_here(file)).cloned().collect()
    }
}

pub(super) fn artifact_of<'a>(package: &PackageChange, artifacts: &'a [Artifact]) -> Option<&'a Artifact> {
    artifacts.iter().find(|artifact| {
        artifact.name == package.name && artifact.arch == package.arch && artifact.version == package.candidate
    })
}

/// The ordered files must be those that the package manager would use now.
fn check_artifacts(action: &Action, artifacts: &[Artifact]) -> Result<(), Failure> {
    let mut files = Vec::new();
    for package in &action.packages {
        let Some(artifact) = artifact_of(package, artifacts) else {
            let message = format!("{} {} is not offered any more", package.name, package.candidate);
            return Err(Failure::new(ResultReason::Superseded, message));
        };
        files.push(artifact);
    }
    let found = artifacts_digest(files.iter().map(|file| file.line()));
    if found == action.artifacts_digest {
        return Ok(());
    }
    let message = format!("the repository offers other files under the ordered versions ({found})");
    Err(Failure::new(ResultReason::Superseded, message))
}

fn has_no_hash(file: &Artifact) -> bool {
    file.needed && file.sha256.is_empty()
}

/// A file of which the index states no SHA-256 cannot be verified, and is never fetched.
fn check_hashes(artifacts: &[Artifact]) -> Result<(), Failure> {
    match artifacts.iter().find(|file| has_no_hash(file)) {
        None => Ok(()),
        Some(file) => {
            let message = format!("{} {}: its repository states no SHA-256 of it", file.name, file.version);
            Err(Failure::new(ResultReason::PackageManagerFailed, message))
        }
    }
}

/// `openssl 3.0.16-1 -> 3.0.17-1~deb12u3, new libx 1.0`.
fn describe(simulation: &Simulation) -> String {
    let changes = simulation.changes.iter().map(|change| match &change.old {
        Some(old) if change.new.is_empty() => format!("remove {} {old}", change.name),
        Some(old) => format!("{} {old} -> {}", change.name, change.new),
        None => format!("new {} {}", change.name, change.new),
    });
    // What goes comes first: of a long list the rest is cut off.
    let removals = simulation.removals.iter().map(|name| format!("remove {name}"));
    bounded(&removals.chain(changes).collect::<Vec<_>>().join(", "), MAX_MESSAGE)
}
