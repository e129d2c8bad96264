//! The running agent: what its tasks share, and what happens when an order comes in.
//!
//! ```text
//!   session  <---- Link ---->  Agent { journal, reports }  <---- scanner (periodic)
//!   (gateway)                        ^
//!                                    |---- worker: one order at a time (execute)
//! ```
//! One thread runs all of it. `turn` makes sure that only one task uses the package manager.

mod delivery;
mod details;
mod lock;
mod owner;
mod timeline;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use patchwarden_protocol::Envelope;
use patchwarden_protocol::agent_v1::{self, from_agent};
use patchwarden_protocol::canonical;
use patchwarden_protocol::delta::SoftwareDelta;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::progress::Phase;
use patchwarden_protocol::report::{Problem, ProblemCode, Report, Software, Tristate};
use patchwarden_protocol::result::{InstallResult, Outcome, ResultReason};
use patchwarden_protocol::surroundings::{REPORT_VERSION, UpdaterReport};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use crate::changes::{self, Changes, Found};
use crate::config::Config;
use crate::identity::Identity;
use crate::instance::Instance;
use crate::journal::{Accepted, Active, Finished, Journal, JournalError, Record};
use crate::keep::Keep;
use crate::link::Link;
use crate::order::{self, Facts, Refusal};
use crate::past::Past;
use crate::platform::{self, Outdated};
use crate::provider::{Failure, Inventory, PastRun, Provider, bounded};
use crate::scan::{self, Machine, ReportError, Reports};
use crate::settings::Kept;
use crate::shelf::Shelf;
use crate::successor::Successor;
use crate::unfinished::Unfinished;
use crate::updater::{Contact, Updater};
use crate::{boot, execute};

use delivery::Delivery;
pub(crate) use lock::{is_running, lock};
pub(crate) use owner::{ruling, wanted_applications};
use timeline::Timeline;

/// Name of the journal in the state directory.
pub(crate) const JOURNAL: &str = "journal";

/// Between scans until the gateway says otherwise.
const SCAN_INTERVAL: Duration = Duration::from_hours(1);

/// A gateway cannot make a device scan without pause.
const MIN_SCAN_INTERVAL: Duration = Duration::from_secs(3);

/// Of a gateway that knows the phases of a result: see [`REPORT_VERSION`].
const PHASES: u32 = 4;

/// After an error of the state directory (full, read-only) the worker tries again.
const RETRY: Duration = Duration::from_secs(30);

/// What the tasks share.
#[derive(Debug)]
pub(crate) struct Agent<P> {
    pub(crate) config: Config,
    pub(crate) identity: RefCell<Identity>,
    pub(crate) device_key: Fingerprint,
    pub(crate) state: PathBuf,
    pub(crate) link: Link,
    pub(crate) instance: Instance,
    /// Whether it has told anew in this session, as the gateway knew later reports of this machine.
    has_told_anew: Cell<bool>,
    /// What was downloaded ahead.
    pub(crate) keep: Keep,
    /// What orders have installed.
    pub(crate) past: Past,
    /// What they have left half done.
    pub(crate) unfinished: Unfinished,
    pub(crate) successor: Successor,
    changes: Changes,
    /// Recipes for third-party applications, and scripts.
    pub(crate) shelf: Shelf,
    /// Those that came while an order was being installed.
    recipes_waiting: RefCell<Option<Vec<u8>>>,
    /// Why those that the gateway brought last were refused.
    recipes_refused: RefCell<Option<Problem>>,
    delivery: RefCell<Delivery>,
    /// Digest of the details that the gateway has; `None` where it keeps none.
    details_known: RefCell<Option<String>>,
    /// From the software list before to the one with this digest.
    software_delta: RefCell<Option<(String, SoftwareDelta)>>,
    /// Why there is none goes into every report.
    pub(crate) provider: Result<P, Failure>,
    /// The operating system's own.
    updater: Updater,
    /// How it was left, for the report.
    os_updater: RefCell<Option<UpdaterReport>>,
    /// What the policy says beside orders.
    settings: Kept,
    contact: Contact,
    /// Where its owner's limits are.
    limits: PathBuf,
    journal: RefCell<Result<Journal, JournalError>>,
    reports: RefCell<Reports>,
    turn: Mutex<()>,
    accepted: Notify,
    rescan: Notify,
    /// Which fields of a report the gateway knows: of the last session, and of the present version before the first.
    report_version: Cell<u32>,
    /// What is true of the repositories until they are asked (again): a scan behind an order does not ask them.
    until_refresh: RefCell<Vec<Problem>>,
    /// The scanner scans, or waits for its turn to.
    is_scanning: Cell<bool>,
    scan_interval: Cell<Duration>,
    /// A report that the gateway asked for before there was one; whether with the software list.
    wanted: Cell<Option<bool>>,
    /// Digest of the software list that went out last.
    software_sent: RefCell<Option<String>>,
    /// An order that came while another was at work.
    waiting: RefCell<Option<Vec<u8>>>,
    /// When the order at work came into its phases.
    pub(crate) timeline: Timeline,
    /// What was told last, and whether there was a session to tell it to.
    progress: RefCell<Option<(agent_v1::Progress, bool)>>,
}

impl<P: Provider> Agent<P> {
    /// Opens the state directory. A journal that cannot be read is reported and stops orders, not the agent.
    pub(crate) fn open(
        config: Config,
        identity: Identity,
        state: &Path,
        limits: PathBuf,
        provider: Result<P, Failure>,
    ) -> anyhow::Result<Self> {
        let journal = Journal::open(&state.join(JOURNAL));
        if let Err(error) = &journal {
            tracing::error!("{error}");
        }
        let reports = Reports::load(state)
            .context("the last report is lost; remove the file and start again: a new report will be made")?;
        let software_sent = reports.report().map(|report| report.software_digest.clone());
        let report_version = reports.version().unwrap_or(REPORT_VERSION);
        let unasked = until_refresh(reports.report(), config.refresh_spread_seconds());
        Ok(Self {
            device_key: identity.key.public().fingerprint(),
            keep: Keep::new(state, config.downloads_max()),
            past: Past::new(state),
            unfinished: Unfinished::new(state),
            successor: Successor::new(state),
            shelf: Shelf::new(state, config.recipe_publishers.clone())
                .with_scripts_of(config.script_publishers.clone()),
            recipes_waiting: RefCell::new(None),
            recipes_refused: RefCell::new(None),
            changes: Changes::new(state, config.omit_personal_data),
            delivery: RefCell::default(),
            details_known: RefCell::default(),
            software_delta: RefCell::default(),
            config,
            identity: RefCell::new(identity),
            state: state.to_owned(),
            link: Link::new(),
            instance: Instance::begin(state, platform::now()),
            has_told_anew: Cell::new(false),
            provider,
            updater: Updater::new(state),
            os_updater: RefCell::new(None),
            settings: Kept::new(state),
            contact: Contact::new(state),
            limits,
            journal: RefCell::new(journal),
            turn: Mutex::new(()),
            accepted: Notify::new(),
            rescan: Notify::new(),
            report_version: Cell::new(report_version),
            until_refresh: RefCell::new(unasked),
            is_scanning: Cell::new(false),
            scan_interval: Cell::new(SCAN_INTERVAL),
            wanted: Cell::new(None),
            reports: RefCell::new(reports),
            software_sent: RefCell::new(software_sent),
            waiting: RefCell::new(None),
            timeline: Timeline::default(),
            progress: RefCell::new(None),
        })
    }

    /// Scans now and then, and when asked. A fleet that was started together must not ask the mirrors together: the first scan, and
    /// those that somebody asks for soon after it, are of what the machine has been told before.
    pub(crate) async fn scanner(self: Rc<Self>) {
        let spread = Duration::from_secs(self.config.refresh_spread_seconds().into());
        let first_refresh = Instant::now() + spread.mul_f64(rand::random());
        loop {
            let refresh = Instant::now() >= first_refresh;
            self.is_scanning.set(true);
            self.follow_epoch();
            self.tend_updater().await;
            {
                let _turn = self.turn.lock().await;
                if refresh {
                    self.until_refresh.take();
                }
                self.scan(refresh).await;
                if refresh {
                    let told = self.reports.borrow().report().map(said_of_repositories);
                    self.until_refresh.replace(told.unwrap_or_default());
                }
            }
            self.is_scanning.set(false);
            tokio::time::sleep(MIN_SCAN_INTERVAL).await;
            let pause = if refresh {
                self.scan_interval.get().mul_f64(rand::random_range(0.9..1.1))
            } else {
                first_refresh.saturating_duration_since(Instant::now())
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.rescan.notified() => {}
            }
        }
    }

    /// Carries out accepted orders, first of all one that a crash interrupted.
    pub(crate) async fn worker(self: Rc<Self>) {
        execute::clean_up(&self);
        loop {
            let active = self.history(|history| history.active.clone()).flatten();
            if let Some(active) = active {
                let _turn = self.turn.lock().await;
                self.note_wanted_applications();
                if let Err(error) = execute::run(&self, active).await {
                    tracing::error!("the order cannot go on: {error}; trying again in {} s", RETRY.as_secs());
                    tokio::time::sleep(RETRY).await;
                }
                if self.follow_epoch() {
                    self.rescan.notify_one();
                }
                let recipes = self.recipes_waiting.borrow_mut().take();
                if let Some(bytes) = recipes {
                    self.receive_recipes(&bytes);
                }
                continue;
            }
            let waiting = self.waiting.borrow_mut().take();
            match waiting {
                Some(bytes) => self.receive_order(bytes),
                None => self.accepted.notified().await,
            }
        }
    }

    /// Scans and sends the report if it changed; returns whether the machine waits for a restart, which is unknown where
    /// the scan fails. The caller holds the turn.
    pub(crate) async fn scan(&self, refresh: bool) -> Tristate {
        self.note_wanted_applications();
        let found = match &self.provider {
            Ok(provider) => scan::look(provider, refresh, &self.keep, &self.past)
                .await
                .inspect(|inventory| self.tidy(inventory))
                .map(|inventory| self.without_held_kernel(inventory))
                .map(|inventory| self.mark(inventory))
                .map(|inventory| self.unfinished.excused(inventory))
                .map_err(|failure| scan::scan_failed(&failure)),
            Err(failure) => Err(Problem { code: ProblemCode::Unsupported, message: failure.message.clone() }),
        };
        if let Err(problem) = &found {
            tracing::error!("the scan failed: {}", problem.message);
        }
        let required = found.as_ref().map(|inventory| inventory.restart.required).unwrap_or_default();
        let runs = self.past_runs(found.as_ref().ok()).await;
        let outdated = match &self.provider {
            Ok(provider) => provider.outdated_services().await,
            Err(_) => None,
        };
        if let Err(error) = self.take_scan(found, runs, outdated) {
            tracing::error!("no report can be made: {error}");
        }
        if let Err(error) = self.take_details() {
            tracing::error!("what this machine is made of is not told: {error}");
        }
        required
    }

    /// A kernel that was taken back waits for no restart.
    fn without_held_kernel(&self, inventory: Inventory) -> Inventory {
        Inventory { restart: boot::without_held(&self.state, inventory.restart), ..inventory }
    }

    /// What no update needs and what is not installed any more is forgotten. Where that fails the next scan tries again.
    fn tidy(&self, inventory: &Inventory) {
        if let Err(error) = self.keep.sweep(inventory) {
            tracing::warn!("downloads that are not needed stay: {error}");
        }
        if let Err(error) = self.past.forget(&inventory.packages) {
            tracing::warn!("what is not installed any more stays remembered: {error}");
        }
        if let Err(error) = self.unfinished.forget(inventory) {
            tracing::warn!("what is whole again stays remembered as half done: {error}");
        }
    }

    /// What the package manager's history says of the time since the last software list, where this one is another.
    async fn past_runs(&self, inventory: Option<&Inventory>) -> Vec<PastRun> {
        let (Ok(provider), Some(inventory)) = (&self.provider, inventory) else { return Vec::new() };
        let since = self.reports.borrow().software_since(&inventory.packages);
        match since {
            Some(since) => provider.past_runs(since).await,
            None => Vec::new(),
        }
    }

    fn take_scan(
        &self,
        found: Result<Inventory, Problem>,
        runs: Vec<PastRun>,
        outdated: Option<Outdated>,
    ) -> Result<(), ReportError> {
        let machine = Machine { outdated, ..self.machine()? };
        let mut reports = self.reports.borrow_mut();
        let (report, software) = scan::assemble(machine, found, reports.report())?;
        if let Some(software) = &software {
            self.note_changes(&reports, &report.software_digest, software, runs)?;
        }
        let changed = reports.update(report, software.as_ref(), &self.identity.borrow().key, platform::now())?;
        if let Some(report) = reports.report() {
            let Report { counts, problems, truncated, .. } = report;
            tracing::info!(
                "scanned: {} updates ({} security){}, {} packages, {} problems{}",
                counts.updates,
                counts.security,
                if *truncated { ", more than fit the report" } else { "" },
                counts.packages,
                problems.len(),
                if changed { "" } else { "; unchanged" }
            );
            for problem in problems {
                tracing::warn!("{:?}: {}", problem.code, problem.message);
            }
        }
        drop(reports);
        let wanted = self.wanted.take();
        if changed || wanted.is_some() {
            self.send_report(wanted.unwrap_or_default());
        }
        self.send_changes();
        Ok(())
    }

    /// Writes down what has changed since the last software list, before that is replaced.
    fn note_changes(
        &self,
        reports: &Reports,
        digest: &str,
        software: &Software,
        runs: Vec<PastRun>,
    ) -> Result<(), ReportError> {
        let known = reports.report().map(|report| report.software_digest.as_str());
        let Some(from) = known.filter(|known| !known.is_empty() && *known != digest) else { return Ok(()) };
        let before = match reports.known_software() {
            Ok(before) => before,
            // The list is replaced by this one: only what changed in between is not known.
            Err(error) => {
                tracing::warn!("what has changed since the last scan is not known: {error}");
                return Ok(());
            }
        };
        // An agent that died before it wrote the report has left a newer list than that is of.
        if canonical::digest_of(&before).is_ok_and(|digest| digest == from) {
            self.software_delta.replace(Some((digest.to_owned(), SoftwareDelta::between(from, &before, software))));
        }
        let found = self.history(|history| {
            let active = history.active.as_ref().filter(|active| active.started.is_some());
            let accepted = active.map(|Active { accepted, .. }| accepted);
            let named = accepted.map(|accepted| (accepted.order.sequence, accepted.order.actions.as_slice()));
            let place =
                |accepted: &Accepted| (accepted.digest.clone(), order_directory(&self.state, accepted.order.sequence));
            (changes::differences(&before, software, named), accepted.map(place))
        });
        let (changes, order) = found.unwrap_or_else(|| (changes::differences(&before, software, None), None));
        let found = Found { at: platform::now(), from: from.to_owned(), to: digest.to_owned(), order, changes, runs };
        let path = self.changes.path();
        self.changes.note(found).map_err(|source| ReportError::Io { path: path.to_owned(), source })
    }

    fn machine(&self) -> Result<Machine, ReportError> {
        let journal = self.journal.borrow();
        let (highest, mut problems) = match &*journal {
            Ok(journal) => (journal.history().highest, Vec::new()),
            Err(error) => {
                let problem = Problem { code: ProblemCode::JournalCorrupt, message: error.to_string() };
                // What the last report said of it still holds.
                let known = self.reports.borrow().report().and_then(|report| report.last_sequence);
                (known, vec![problem])
            }
        };
        problems.extend(self.limits().err().map(|error| error.problem()));
        problems.extend(self.until_refresh.borrow().iter().cloned());
        problems.extend(self.recipes_refused.borrow().clone());
        let machine = Machine::look(self.config.device.clone(), highest, problems)?;
        let (os_updater, version) = (self.os_updater.borrow().clone(), self.report_version.get());
        Ok(Machine { os_updater, version, ..machine })
    }

    /// Digest of the recipes that are here: see [`Shelf::digest`].
    pub(crate) fn recipes_digest(&self) -> Option<String> {
        self.shelf.digest()
    }

    /// A session begins. What an earlier one brought and was not taken is not told any more, from the next scan on, unless this
    /// one brings it again.
    pub(crate) fn forget_recipes(&self) {
        self.recipes_waiting.replace(None);
        self.recipes_refused.replace(None);
    }

    /// The gateway brings recipes. What is refused is told in the report. Once something is installed, the recipes stay the same until
    /// the order's end: what came of it is looked up by them.
    pub(crate) fn receive_recipes(&self, bytes: &[u8]) {
        let is_begun =
            |history: &crate::journal::History| history.active.as_ref().is_some_and(|active| active.started.is_some());
        if self.history(is_begun).unwrap_or_default() {
            tracing::info!("recipes came; they are looked at after the order");
            self.recipes_waiting.replace(Some(bytes.to_vec()));
            return;
        }
        match self.shelf.take(bytes, platform::now()) {
            Ok(false) if self.recipes_refused.borrow().is_none() => return,
            Ok(_) => {
                tracing::info!("recipes were taken: {}", self.shelf.digest().unwrap_or_default());
                self.recipes_refused.replace(None);
            }
            Err(error) => {
                tracing::warn!("{error}");
                let problem = error.problem();
                let is_told = self.reports.borrow().report().is_some_and(|report| report.problems.contains(&problem));
                self.recipes_refused.replace(Some(problem));
                // The same in each session.
                if is_told {
                    return;
                }
            }
        }
        self.rescan.notify_one();
    }

    /// Digest of the current report.
    pub(crate) fn report_digest(&self) -> String {
        self.reports.borrow().digest()
    }

    /// Whether the machine waits for a restart, by the current report.
    pub(crate) fn restart_required(&self) -> Tristate {
        self.reports.borrow().report().map(|report| report.restart.required).unwrap_or_default()
    }

    /// The gateway asks for the report.
    pub(crate) fn send_report_asked(&self, asked: agent_v1::SendReport) {
        let agent_v1::SendReport { scan, software } = asked;
        if scan || self.reports.borrow().report().is_none() {
            self.wanted.set(Some(software || self.wanted.get() == Some(true)));
            // The first report comes from the scan that is at work already.
            if scan || !self.is_scanning.get() {
                self.rescan.notify_one();
            }
        } else {
            self.send_report(software);
        }
    }

    /// Sends the current report; the software list too if it is asked for, and what differs if it is another one than went out last.
    fn send_report(&self, software: bool) {
        let reports = self.reports.borrow();
        let (Some(report), Some(envelope)) = (reports.report(), reports.envelope()) else { return };
        if reports.version() > Some(self.report_version.get()) {
            // A gateway that does not know all of its fields refuses it: the next scan makes another one.
            self.wanted.set(Some(software || self.wanted.get() == Some(true)));
            return self.rescan.notify_one();
        }
        let envelope = match serde_json::to_vec(envelope) {
            Ok(envelope) => envelope,
            Err(error) => return tracing::error!("the report cannot be sent: {error}"),
        };
        let digest = &report.software_digest;
        let send_software = software || self.software_sent.borrow().as_ref() != Some(digest);
        let software_delta = if send_software && !software { self.delta_to(digest) } else { Vec::new() };
        let software = if send_software && !digest.is_empty() && software_delta.is_empty() {
            match reports.software() {
                Ok(software) => software,
                Err(error) => {
                    tracing::error!("the software list cannot be sent: {error}");
                    Vec::new()
                }
            }
        } else {
            Vec::new()
        };
        let with_software = !software.is_empty() || !software_delta.is_empty();
        let sent = self.link.send(from_agent::Message::Report(agent_v1::Report { envelope, software, software_delta }));
        if sent && with_software {
            self.software_sent.replace(Some(digest.clone()));
        }
    }

    /// What differs between the software list that went out last and the one with this digest; empty where that is not known.
    fn delta_to(&self, digest: &str) -> Vec<u8> {
        let sent = self.software_sent.borrow();
        let delta = self.software_delta.borrow();
        let fitting = delta.as_ref().filter(|(to, delta)| to == digest && sent.as_ref() == Some(&delta.from));
        fitting.and_then(|(_, delta)| serde_json::to_vec(delta).ok()).unwrap_or_default()
    }

    /// At the start of a session: what was told last, if there was nobody to tell it to, and results that the gateway has
    /// not confirmed, behind the report that belongs to them.
    pub(crate) fn send_outstanding(&self, told: &str) {
        if let Some((progress, is_sent @ false)) = self.progress.borrow_mut().as_mut() {
            *is_sent = self.link.send(from_agent::Message::Progress(progress.clone()));
        }
        let has_unrecorded = self.history(|history| history.unrecorded().next().is_some()).unwrap_or_default();
        // Of a report that was made since the session was asked for the gateway knows nothing.
        if has_unrecorded || self.report_digest() != told {
            self.send_report(false);
        }
        self.send_unrecorded();
    }

    /// Sends the results that the gateway has not confirmed.
    fn send_unrecorded(&self) {
        let unrecorded: Vec<Finished> =
            self.history(|history| history.unrecorded().cloned().collect()).unwrap_or_default();
        for finished in &unrecorded {
            self.send_result(&finished.result, execute::output_of(&self.state, finished.sequence));
        }
    }

    /// The gateway knows later reports of this machine: it was set back to an earlier state of itself. What the journal knows of is told again,
    /// and then a report with a counter of the present time, before which there are no orders.
    fn tell_anew(&self) {
        if self.has_told_anew.replace(true) {
            return;
        }
        tracing::warn!(
            "the gateway knows later reports of this machine: was it restored from a backup or a snapshot? All is told again"
        );
        let outcomes: Vec<Finished> = self
            .history(|history| history.outcomes.iter().map(|outcome| outcome.finished.clone()).collect())
            .unwrap_or_default();
        for finished in &outcomes {
            self.send_result(&finished.result, execute::output_of(&self.state, finished.sequence));
        }
        let raised = self.reports.borrow_mut().raise(&self.identity.borrow().key, platform::now());
        match raised {
            Ok(true) => self.send_report(true),
            Ok(false) => tracing::error!("this machine's clock is behind its last report: no other report can be made"),
            Err(error) => tracing::error!("no other report can be made: {error}"),
        }
    }

    /// A session begins.
    pub(crate) fn begin_session(&self) {
        self.has_told_anew.set(false);
        if let Err(error) = self.instance.was_welcomed() {
            tracing::warn!("that this process was welcomed cannot be written down: {error}");
        }
    }

    /// Follows into the epoch that the settings name, once no order is at work: those of earlier epochs are refused from here on,
    /// and every result is told again, before the report that says so. Whether it has.
    fn follow_epoch(&self) -> bool {
        let epoch = self.epoch();
        let is_due = |history: &crate::journal::History| {
            history.active.is_none() && history.highest.unwrap_or_default().epoch < epoch
        };
        if !self.history(is_due).unwrap_or_default() {
            return false;
        }
        match self.append(Record::Highest { sequence: Sequence::start_of(epoch) }) {
            Ok(()) => {
                tracing::info!("orders are of epoch {epoch} from here on: those of earlier ones are refused");
                self.send_unrecorded();
                true
            }
            Err(error) => {
                tracing::error!("the epoch {epoch} is not followed: {error}");
                false
            }
        }
    }

    /// The gateway says which fields of a report it knows.
    pub(crate) fn set_report_version(&self, version: u32) {
        let version = version.min(REPORT_VERSION);
        if self.report_version.replace(version) != version {
            self.rescan.notify_one();
        }
    }

    /// Whether the gateway knows the phases of a result.
    pub(crate) fn tells_phases(&self) -> bool {
        self.report_version.get() >= PHASES
    }

    /// Whether the gateway knows services that still run what was replaced, and what became of them in a result.
    pub(crate) fn tells_services(&self) -> bool {
        self.report_version.get() >= scan::SERVICES
    }

    /// The gateway says how often to scan.
    pub(crate) fn set_scan_interval(&self, seconds: u32) {
        if seconds > 0 {
            self.scan_interval.set(Duration::from_secs(u64::from(seconds)).max(MIN_SCAN_INTERVAL));
        }
    }

    /// Looks at the journal, if it can be read.
    pub(crate) fn history<T>(&self, look: impl FnOnce(&crate::journal::History) -> T) -> Option<T> {
        self.journal.borrow().as_ref().ok().map(|journal| look(journal.history()))
    }

    /// Writes to the journal.
    pub(crate) fn append(&self, record: Record) -> Result<(), JournalError> {
        match &mut *self.journal.borrow_mut() {
            Ok(journal) => journal.append(record),
            Err(error) => Err(JournalError::Impossible { path: self.state.join(JOURNAL), why: error.to_string() }),
        }
    }

    /// An order came in.
    pub(crate) fn receive_order(&self, bytes: Vec<u8>) {
        let signed = match order::parse(&bytes) {
            Ok(signed) => signed,
            Err(refusal) => return self.refuse(refusal),
        };
        let digest = signed.order.digest();
        let known = self.history(|history| {
            let outcome = history.outcome(&digest).map(|outcome| outcome.finished.clone());
            let active = history
                .active
                .as_ref()
                .map(|Active { accepted, .. }| (accepted.digest.clone(), accepted.order.sequence));
            (outcome, active, history.highest)
        });
        let Some((outcome, active, highest)) = known else {
            return self.refuse(Refusal {
                reason: ResultReason::JournalCorrupt,
                message: self.journal.borrow().as_ref().err().map(ToString::to_string).unwrap_or_default(),
                digest,
                sequence: signed.order.peek().map(|order| order.sequence).unwrap_or_default(),
                uses_sequence: false,
            });
        };
        if let Some(finished) = outcome {
            self.send_result(&finished.result, execute::output_of(&self.state, finished.sequence));
            return;
        }
        match active {
            Some((active, _)) if active == digest => {
                let progress = self.progress.borrow().clone().filter(|(progress, _)| progress.order_digest == digest);
                match progress {
                    Some((progress, _)) => {
                        self.link.send(from_agent::Message::Progress(progress));
                    }
                    None => self.progress(&digest, Phase::Delivered, "the order is being resumed"),
                }
                return;
            }
            Some((_, sequence)) => {
                self.progress(&digest, Phase::Delivered, &format!("waits until order {sequence} has ended"));
                self.waiting.replace(Some(bytes));
                return;
            }
            None => {}
        }
        let report_digest = self.report_digest();
        let root = self.identity.borrow().root;
        let (now, limits) = (platform::now(), self.limits());
        let facts = Facts {
            root: &root,
            device: &self.config.device,
            device_key: &self.device_key,
            highest,
            report_digest: &report_digest,
            now,
            skew: self.link.skew(),
            limits: &limits,
        };
        let order = match order::verify(&signed, &facts) {
            Ok(order) => order,
            Err(refusal) => return self.refuse(refusal),
        };
        let text =
            format!("order {} of policy {}: {}", order.sequence, bounded(&order.policy, 253), execute::summary(&order));
        let accepted = Accepted { digest: digest.clone(), order, at: now };
        if let Err(error) = self.append(Record::Accepted(Box::new(accepted))) {
            let text = format!("the order cannot be journaled, so it is not accepted: {error}");
            tracing::error!("{text}");
            self.progress(&digest, Phase::Delivered, &text);
            return;
        }
        self.timeline.begin(&digest, Instant::now());
        self.progress(&digest, Phase::Verified, &text);
        self.accepted.notify_one();
    }

    fn refuse(&self, refusal: Refusal) {
        let Refusal { reason, message, digest, sequence, uses_sequence } = refusal;
        let message = bounded(&message, execute::MAX_MESSAGE);
        tracing::warn!("order {sequence} ({digest}) is refused: {reason:?}: {message}");
        self.progress(&digest, Phase::Delivered, &format!("refused: {message}"));
        let now = platform::now();
        let result = InstallResult {
            device: self.config.device.clone(),
            device_key: self.device_key.clone(),
            sequence,
            order_digest: digest.clone(),
            outcome: Outcome::Refused,
            reason: Some(reason),
            message,
            actions: Vec::new(),
            started_at: now,
            finished_at: now,
            restart_required: self.restart_required(),
            restarts: 0,
            restart_postponed: String::new(),
            steps: Vec::new(),
            phases: Vec::new(),
        };
        let sealed = match Envelope::seal(&result, &self.identity.borrow().key) {
            Ok(sealed) => sealed,
            Err(error) => return tracing::error!("the refusal cannot be signed: {error}"),
        };
        if uses_sequence {
            let finished = Finished { digest, sequence, result: sealed.clone() };
            if let Err(error) = self.append(Record::Finished(Box::new(finished))) {
                // Unsaid rather than forgotten: the gateway will send the order again.
                return tracing::error!("the refusal cannot be journaled: {error}");
            }
        }
        self.send_result(&sealed, String::new());
        if matches!(reason, ResultReason::ReportMismatch | ResultReason::LimitedByDevice) {
            self.wanted.set(Some(self.wanted.get().unwrap_or_default()));
            self.rescan.notify_one();
        }
    }

    /// Sends a signed result.
    pub(crate) fn send_result(&self, result: &Envelope<InstallResult>, output: String) {
        match serde_json::to_vec(result) {
            Ok(envelope) => {
                self.link.send(from_agent::Message::Result(agent_v1::Result { envelope, output }));
            }
            Err(error) => tracing::error!("the result cannot be sent: {error}"),
        }
    }

    /// The gateway has a result.
    pub(crate) fn result_recorded(&self, digest: &str) {
        let sequence = self.history(|history| {
            history.outcome(digest).filter(|outcome| !outcome.recorded).map(|outcome| outcome.finished.sequence)
        });
        let Some(Some(sequence)) = sequence else { return };
        match self.append(Record::Recorded { digest: digest.to_owned() }) {
            Ok(()) => {
                tracing::info!("the gateway has the result of order {sequence}");
                execute::clean_up(self);
            }
            Err(error) => tracing::error!("the result of order {sequence} will be sent again: {error}"),
        }
    }

    /// Tells people where an order is.
    pub(crate) fn progress(&self, digest: &str, phase: Phase, text: &str) {
        tracing::info!(trace_id = trace_id(digest), "{}: {text}", phase.as_str());
        self.timeline.note(digest, phase, Instant::now());
        let progress = agent_v1::Progress {
            order_digest: digest.to_owned(),
            phase: phase.as_str().to_owned(),
            text: text.to_owned(),
        };
        let is_sent = self.link.send(from_agent::Message::Progress(progress.clone()));
        self.progress.replace(Some((progress, is_sent)));
    }

    /// Signs a result with the device's key.
    pub(crate) fn seal(
        &self,
        result: &InstallResult,
    ) -> Result<Envelope<InstallResult>, patchwarden_protocol::canonical::NotCanonical> {
        Envelope::seal(result, &self.identity.borrow().key)
    }
}

/// The id of an order's trace, which the gateway tells of by OpenTelemetry: the first half of the order's digest.
fn trace_id(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:")?.get(..32)
}

/// What the last report says of the repositories, or that there is none, and within how many seconds of the agent's start they are asked.
fn until_refresh(last: Option<&Report>, spread_seconds: u32) -> Vec<Problem> {
    let unasked = || {
        let message = format!(
            "since this machine joined no repository was asked yet: they are within {spread_seconds} s of the agent's start \
             (refresh_spread_seconds)"
        );
        vec![Problem { code: ProblemCode::RepositoryUnavailable, message }]
    };
    last.map_or_else(unasked, said_of_repositories)
}

fn said_of_repositories(report: &Report) -> Vec<Problem> {
    report.problems.iter().filter(|problem| problem.code == ProblemCode::RepositoryUnavailable).cloned().collect()
}

/// Directory of an order.
pub(crate) fn order_directory(state: &Path, sequence: Sequence) -> PathBuf {
    state.join("orders").join(sequence.to_string())
}
