//! The plan converges: where nothing goes wrong, everything that is approved and possible gets installed, once.
//!
//! A generated fleet is put into a world without accidents (devices are connected, nothing fails, windows open again), and lives
//! in it until nothing more happens. What is left then must have a reason that neither the clock nor another device lifts.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::civil::time;
use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{
    Amount, Blast, Calendar, Device, DeviceReport, Name, Schedule, Snapshot, Update, UpdateId, UpdateProgress,
    WhenEmpty,
};
use patchwarden_plan::outcome::{DecidedBy, Decision, DevicePlan, Install, UpdatePlan};
use patchwarden_plan::{Blocked, Plan, Planner};
use patchwarden_protocol::order::{RESTART, RestartWhen, Verb};
use patchwarden_protocol::report::{Power, Tristate};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::fleet::fleet;
use crate::properties::{self, claim, config};
use crate::reference;

/// What an install takes.
const TAKES: SignedDuration = SignedDuration::from_mins(10);

/// Where nothing has happened for so long, each window has been open in between.
const QUIET: SignedDuration = SignedDuration::from_hours(26);

/// More than any fleet needs that is generated.
const TOO_LONG: SignedDuration = SignedDuration::from_hours(24 * 40);

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_plan_converges((snapshot, now) in fleet()) {
        Life::of(&without_accidents(snapshot), now).live()?;
    }
}

/// Devices are connected and free, nothing has failed, nobody has to confirm anything, and every window opens again for long enough.
fn without_accidents(mut snapshot: Snapshot) -> Snapshot {
    for device in &mut snapshot.devices {
        device.online = true;
        device.on_hold = false;
        device.current = None;
        device.failures.clear();
        if let Ok(report) = &mut device.report {
            report.power = Power::Mains;
        }
    }
    for policy in &mut snapshot.policies {
        let progress = Arc::make_mut(&mut policy.progress);
        progress.paused = None;
        progress.blast = Blast::default();
        for update in progress.updates.values_mut() {
            update.stopped = None;
            update.failed.clear();
        }
        if let Ok(settings) = &mut policy.settings {
            settings.blast_limit = Amount::Percent(100);
        }
    }
    for Calendar { schedules, duration, cutoff, .. } in
        snapshot.windows.iter_mut().filter_map(|window| window.calendar.as_mut().ok())
    {
        schedules.push(Schedule::Daily { at: time(22, 0, 0, 0) });
        *duration = (*duration).max(SignedDuration::from_hours(6));
        *cutoff = SignedDuration::ZERO;
    }
    // For what comes to wait for a restart.
    snapshot.updates.intern(Update::restart());
    snapshot
}

/// What says whether an update is to be installed, and why.
type Why = (Decision, Option<Arc<DecidedBy>>);

struct Life<'a> {
    /// With what the devices are now.
    snapshot: Snapshot,
    planner: Planner<'a, Device>,
    now: Timestamp,
    end: Timestamp,
    /// When something was done last.
    acted: Timestamp,
    /// Of devices at work, when they are done, and with what.
    at_work: BTreeMap<Name, (Timestamp, Install)>,
    /// What orders have done, restarts aside.
    done: BTreeSet<(Name, String, Name)>,
    /// What had a reason to stay as it is, since something was done last.
    settled: BTreeMap<(Name, Name), Why>,
}

impl<'a> Life<'a> {
    fn of(world: &'a Snapshot, now: Timestamp) -> Self {
        let updates = Cow::Owned(world.updates.clone());
        Self {
            snapshot: world.clone(),
            planner: Planner::new(world.specs(), updates, world.devices.clone(), now),
            now,
            end: now + TOO_LONG,
            acted: now,
            at_work: BTreeMap::new(),
            done: BTreeSet::new(),
            settled: BTreeMap::new(),
        }
    }

    fn live(mut self) -> TestCaseResult {
        loop {
            self.finish()?;
            while self.plan() {}
            self.note()?;
            if self.at_work.is_empty() && self.now - QUIET >= self.acted && self.left().is_empty() {
                return Ok(());
            }
            let ends = self.at_work.values().map(|(ends, _)| *ends);
            let quiet = (self.now < self.acted + QUIET).then_some(self.acted + QUIET);
            let next = ends.chain(self.planner.next_look()).chain(quiet).min();
            let Some(next) = next.filter(|next| *next <= self.end) else {
                let left = self.left();
                return Err(TestCaseError::fail(format!("it does not come to rest: {left:?}, next {next:?}")));
            };
            prop_assert!(next > self.now);
            self.now = next;
        }
    }

    /// Plans, writes down what is to be, and starts what is to be started. Returns whether there is anything to plan on.
    fn plan(&mut self) -> bool {
        let changed: BTreeSet<Name> = self.planner.plan(self.now).into_iter().collect();
        let planned: Vec<DevicePlan> =
            self.planner.devices().filter(|planned| changed.contains(&planned.name)).cloned().collect();
        let mut has_more = false;
        for DevicePlan { name, policy, group, possible_groups, moved, eligible, install, .. } in planned {
            let device = self.device(&name);
            let before =
                (&device.last_policy, &device.last_group, &device.last_possible, &device.moved, device.eligible);
            if before == (&policy, &group, &possible_groups, &moved, eligible) && install.is_none() {
                continue;
            }
            (device.last_policy, device.last_group, device.last_possible) = (policy, group, possible_groups);
            (device.moved, device.eligible) = (moved, eligible);
            device.current = install.as_ref().map(claim).or_else(|| device.current.take());
            let device = device.clone();
            self.planner.put(device);
            has_more = true;
            if let Some(install) = install {
                self.at_work.insert(name, (self.now + TAKES, install));
                self.acted = self.now;
                self.settled.clear();
            }
        }
        has_more
    }

    fn device(&mut self, name: &Name) -> &mut Device {
        self.snapshot.devices.iter_mut().find(|device| device.name == *name).expect("the device")
    }

    /// Ends what has had its time: it has succeeded.
    fn finish(&mut self) -> TestCaseResult {
        let now = self.now;
        let over: Vec<Name> =
            self.at_work.iter().filter(|(_, (ends, _))| *ends <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            let Some((_, install)) = self.at_work.remove(&name) else { continue };
            for id in &install.updates {
                let one = (name.clone(), format!("{:?}", install.verb), id.clone());
                let is_new = install.verb == Verb::Restart || self.done.insert(one);
                prop_assert!(is_new, "{:?} of {} on {} a second time", install.verb, id, name);
            }
            let numbers: Vec<_> = install.updates.iter().map(|id| self.snapshot.updates.number(id)).collect();
            let restart = self.snapshot.updates.intern(Update::restart());
            let ids = install.updates.clone();
            let updates = self.snapshot.updates.clone();
            let is_one = move |update| updates.get(update).is_some_and(|it| ids.contains(&it.id));
            let device = self.device(&name);
            device.current = None;
            let report = device.report.as_mut().expect("a report");
            match install.verb {
                Verb::Install => {
                    let needs =
                        report.offers.iter().any(|it| is_one(it.update) && it.requires_restart == Tristate::Yes);
                    report.offers.retain(|offer| !is_one(offer.update));
                    restarts(report, &install, needs.then_some(restart));
                    device.installed.extend(numbers);
                    device.installed.sort_unstable();
                    device.installed.dedup();
                }
                Verb::Download => {
                    report.offers.iter_mut().filter(|offer| is_one(offer.update)).for_each(|it| it.downloaded = true);
                }
                Verb::Uninstall => {
                    report.removable.retain(|update| !is_one(*update));
                    restarts(report, &install, None);
                }
                Verb::Restart => (report.restart_required, report.restart) = (Tristate::No, None),
            }
            let device = device.clone();
            self.planner.put(device);
            self.acted = now;
            self.settled.clear();
        }
        Ok(())
    }

    /// Remembers what has a reason to stay as it is.
    fn note(&mut self) -> TestCaseResult {
        for device in &self.snapshot.devices {
            let decided = self.planner.device(&device.name).expect("a plan for each device");
            for update in &decided.updates {
                let key = (device.name.clone(), self.id(update).clone());
                let why = (update.decision, update.decided_by.clone());
                if self.settled.get(&key).is_some_and(|before| *before != why) {
                    self.settled.remove(&key);
                }
                if !self.settled.contains_key(&key) && self.is_settled((device, decided), update)? {
                    self.settled.insert(key, why);
                }
            }
        }
        Ok(())
    }

    fn id(&self, update: &UpdatePlan) -> &Name {
        &self.planner.updates().get(update.update).expect("interned").id
    }

    /// What is left, and had no reason to be since something was done last.
    fn left(&self) -> Vec<String> {
        let left = |device: &DevicePlan, update: &UpdatePlan| {
            let id = self.id(update);
            let is_settled = self.settled.contains_key(&(device.name.clone(), id.clone()));
            (!is_settled).then(|| format!("{id} on {}: {:?}", device.name, update.blocked))
        };
        self.planner.devices().flat_map(|it| it.updates.iter().filter_map(|update| left(it, update))).collect()
    }

    /// Whether neither the clock nor what becomes of other devices will ever lift what is against it.
    fn is_settled(
        &self,
        (device, decided): (&Device, &DevicePlan),
        update: &UpdatePlan,
    ) -> Result<bool, TestCaseError> {
        use Blocked as B;
        let Some(blocked) = update.blocked.as_deref() else { return Ok(false) };
        Ok(match blocked {
            // Not approved.
            B::NoGroup
            | B::MembershipUnknown { .. }
            | B::GroupInvalid { .. }
            | B::ParentNotFound { .. }
            | B::ParentsInCircle { .. }
            | B::TooManyParents { .. }
            | B::VulnerabilitiesUnknown { .. }
            | B::ExpressionFailed { .. }
            | B::AwaitingApproval
            | B::LeftAlone
            | B::Ignored
            | B::ToBeRemoved => {
                // A restart is the policy's business.
                let id = self.id(update);
                prop_assert!(update.decision != Decision::Approved || **id == *RESTART, "{} is approved", id);
                true
            }
            // What the policy or the device says of it.
            B::Held
            | B::CheckFailed { .. }
            | B::NoPolicy
            | B::PolicyInvalid { .. }
            | B::WindowNotFound { .. }
            | B::WindowInvalid { .. }
            | B::WindowTooShort { .. }
            | B::OwnWindowTooShort { .. }
            | B::PolicyAudit { .. }
            | B::PolicyDownloadOnly { .. }
            | B::Filtered { .. }
            | B::NeverRestarts { .. }
            | B::PolicySuspended { .. }
            | B::DeviceSuspended
            | B::DeviceRetired
            | B::NoTimeZone { .. }
            | B::ClockOff { .. }
            | B::DeviceProblem { .. } => true,
            // The policy has no windows.
            B::WindowClosed { opens: None } => {
                let policy = reference::policy_of(&self.snapshot, device).expect("a policy");
                prop_assert!(policy.settings.as_ref().expect("settings").windows.is_empty(), "no window opens again");
                true
            }
            // By devices that are not there, or not well: by nobody's work, or it would pass.
            B::ServiceAtLimit { .. } if self.at_work.is_empty() => {
                let answer = Plan {
                    devices: self.planner.devices().cloned().collect(),
                    policies: vec![],
                    groups: vec![],
                    windows: vec![],
                    next_look: None,
                };
                properties::no_service_has_more_devices_unavailable_than_it_may(&self.snapshot, &answer, self.now)?;
                true
            }
            B::PeersFirst { .. } if self.at_work.is_empty() => self.peers_are_held(decided)?,
            // It could not go, either.
            B::OthersFirst => {
                let held = |it: &&UpdatePlan| {
                    matches!(it.blocked.as_deref(), Some(B::ServiceAtLimit { .. } | B::PeersFirst { .. }))
                };
                let mut is_settled = false;
                for other in decided.updates.iter().filter(held) {
                    is_settled |= self.is_settled((device, decided), other)?;
                }
                is_settled
            }
            B::RingWaits { policy, ring, until: None } => self.lacks_proof(policy, ring, update)?,
            B::ServiceAtLimit { .. }
            | B::PeersFirst { .. }
            | B::RingWaits { .. }
            | B::Aging { .. }
            | B::Waived { .. }
            | B::InstallRunning { .. }
            | B::Settling { .. }
            | B::WindowClosed { .. }
            | B::Frozen { .. }
            | B::FreezeAhead { .. }
            | B::WindowEnding { .. }
            | B::ConcurrencyReached { .. } => false,
            B::OnBattery
            | B::RolloutPaused { .. }
            | B::BlastLimit { .. }
            | B::DeviceStale
            | B::DeviceOffline
            | B::UpdateStopped { .. }
            | B::RolledBack { .. }
            | B::RetriesExhausted { .. }
            | B::RetryBackoff { .. }
            | B::OnHold
            | B::UnknownDevice
            | B::NotClaimed
            | B::OrderExpired { .. }
            | B::NoReport
            | B::PolicyChanged { .. }
            | B::NotOffered { .. }
            | B::RestartTooLate { .. }
            | B::Stays { .. } => {
                return Err(TestCaseError::fail(format!("{} on {}: nothing went wrong", blocked, decided.name)));
            }
        })
    }

    /// Whether what comes first in the order does not go, either.
    fn peers_are_held(&self, decided: &DevicePlan) -> Result<bool, TestCaseError> {
        let has = |what: fn(&Blocked) -> bool| {
            let others = self.planner.devices().filter(|it| it.name != decided.name);
            others.flat_map(|it| &it.updates).filter_map(|it| it.blocked.as_deref()).any(what)
        };
        let first = has(|it| matches!(it, Blocked::ServiceAtLimit { .. }));
        let full = has(|it| matches!(it, Blocked::ConcurrencyReached { .. }));
        prop_assert!(first || full, "{} waits for nobody", decided.name);
        Ok(first)
    }

    /// Whether a ring does not go on. It lacks successes then; where it may be passed over, it is not without devices.
    fn lacks_proof(&self, policy: &Name, ring: &Name, update: &UpdatePlan) -> Result<bool, TestCaseError> {
        let id = self.id(update);
        let progress = self.planner.policies().find(|it| it.name == *policy).expect("the policy").progress.clone();
        let policy = self.snapshot.policies.iter().find(|it| it.name == *policy).expect("the policy");
        let rollout = &policy.settings.as_ref().expect("settings").rollout;
        let (place, ring) = rollout.rings.iter().enumerate().find(|(_, it)| it.name == *ring).expect("the ring");
        let is_soaking = |it: &UpdateProgress| it.ring.as_ref() == Some(&ring.name) && it.reached.is_some();
        if progress.updates.get(id).is_some_and(is_soaking) {
            return Ok(false);
        }
        let in_ring = |device: &&Device| {
            !device.retired
                && reference::policy_of(&self.snapshot, device).is_some_and(|it| it.name == policy.name)
                && reference::ring_of(policy, device) == place
        };
        let devices: Vec<&Device> = self.snapshot.devices.iter().filter(in_ring).collect();
        let proved = devices.iter().filter(|it| reference::has_installed(&self.snapshot, it, id)).count();
        prop_assert!(proved < ring.min_successes as usize, "{} has proved {}", ring.name, id);
        let tells = |device: &&&Device| {
            let offers = |report: &DeviceReport| {
                report.truncated
                    || report.problems.iter().any(|problem| problem.hides_updates())
                    || report.offers.iter().any(|it| reference::update_of(&self.snapshot, it).id == *id)
            };
            reference::has_installed(&self.snapshot, device, id) || device.report.as_ref().map_or(true, offers)
        };
        let is_wanted = devices.iter().filter(tells).count() > 0;
        prop_assert!(
            ring.when_empty == WhenEmpty::Wait || is_wanted,
            "{} is empty, and {} waits for it",
            ring.name,
            id
        );
        Ok(true)
    }
}

/// What follows an install by the order's rule, where it `needs` a restart.
fn restarts(report: &mut DeviceReport, install: &Install, needs: Option<UpdateId>) {
    let waits = needs.is_some() || report.restart_required == Tristate::Yes;
    let does = match install.restart.when {
        RestartWhen::Never => false,
        RestartWhen::IfRequired => waits,
        RestartWhen::Always => true,
    };
    if does {
        (report.restart_required, report.restart) = (Tristate::No, None);
    } else if let Some(restart) = needs {
        (report.restart_required, report.restart) = (Tristate::Yes, Some(restart));
    }
}
