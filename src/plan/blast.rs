//! A change of the specs that makes many devices eligible at once waits for a person.
//!
//! In: what the specs say of each device now, what they said when it was last planned, and which specs were in force then. Out:
//! for each policy the specs that are in force or that wait for a person, to be written down before anything follows from it;
//! and devices that only the waiting ones make eligible get no turn.
//!
//! ```text
//!   the specs change ---- few devices newly eligible ----> in force
//!          \\------------ too many ----> pending ----spec.confirm----> in force
//!                                            \\-----the specs are as before-----> (nothing has happened)
//! ```
//!
//! - A device is *eligible* if the specs would have updates installed on it: what it is itself (offline, suspended, waiting
//!   for its ring or its window) and what a person has stopped by hand aside, and also if what it offers only ages. One that
//!   offers nothing is eligible if whatever may come would be installed.
//! - What changes by itself (an update that comes, a waiver that ends, a device that joins) changes no spec: what becomes
//!   eligible by it is eligible. Only where the digest of the specs is another one than that in force are devices counted.
//! - The digest of a policy is of what can matter for its devices, whichever these are: its own spec, what the other policies say of
//!   whose they are, the groups that have members and all above them, and the windows that it or one of these groups names.
//! - What cannot be told, because something in the specs cannot be resolved, leaves what was written down as it is: a window
//!   that is missing for a moment makes nobody newly eligible when it is there again.
//! - Objects are applied one after another: changes within ten minutes are counted together.
//! - What waits for a person does so until one says so, or until the limit or the specs are changed: never because fewer devices
//!   are left that it is about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::model::{Accepted, Amount, Blast, Device, Group, Members, Name, Pending, Policy, Settings, Specs, Window};
use super::outcome::{Blocked, DevicePlan, UpdatePlan};
use super::policy::Governor;
use super::rings::Place;
use super::settle::DEFAULT_SETTLE;
use super::window::later;

/// A percentage is so many devices at least.
pub const AT_LEAST: u32 = 10;

/// What the specs say of an update or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// It is installed, sooner or later.
    Yes,
    /// It is not.
    No,
    /// Something cannot be resolved.
    Unknown,
}

/// What the specs say of a device that offers `updates`, and of whatever else it may offer one day: the first that is against
/// that is `refusal`.
pub(super) fn of_device<'u>(updates: impl Iterator<Item = &'u UpdatePlan>, refusal: Option<&Blocked>) -> Say {
    let whatever = refusal.map_or(Say::Yes, Blocked::specs);
    // What is held back on the device itself, waits for a person to restart it, or stays there, says nothing of installs. What ages has not come to the policy's gates yet.
    let said = updates.filter_map(|update| match update.blocked.as_deref() {
        Some(Blocked::Held | Blocked::CheckFailed { .. } | Blocked::NeverRestarts { .. }) => None,
        Some(Blocked::Aging { .. }) => Some(whatever),
        Some(blocked) => Some(blocked.specs()),
        None => Some(Say::Yes),
    });
    let said = said.reduce(|a, b| match (a, b) {
        (Say::Yes, _) | (_, Say::Yes) => Say::Yes,
        (Say::Unknown, _) | (_, Say::Unknown) => Say::Unknown,
        (Say::No, Say::No) => Say::No,
    });
    said.unwrap_or(whatever)
}

/// Whether the device was eligible before. Under no policy or no group it still counts as such for as long as these may be
/// gone for a moment only.
pub(super) fn was_eligible(device: &Device, now: Timestamp) -> bool {
    let governed = device.last_policy.is_some() && device.last_group.is_some();
    let moments_ago = || device.moved.as_ref().is_some_and(|moved| now < later(moved.since, DEFAULT_SETTLE));
    device.eligible && (governed || moments_ago())
}

/// The specs allow now what they did not before, or what nobody had asked them yet.
pub(super) fn is_new(device: &Device, says: Say, now: Timestamp) -> bool {
    says == Say::Yes && !device.retired && !was_eligible(device, now)
}

/// Which specs are in force for each policy, and what is held because they are not.
pub(super) struct Blasts {
    /// By policy: the digest of all that may decide for its devices.
    specs: Vec<Name>,
    /// By policy: devices that are newly eligible.
    newly: Vec<u32>,
    /// By policy: how many devices it had when it was last decided; none where something else may come of it.
    decided_for: Vec<Option<u32>>,
    /// By policy: what is said to those that only pending specs make eligible.
    held: Vec<Option<Arc<Blocked>>>,
}

impl Blasts {
    pub(super) fn of(specs: Specs<'_>, governors: &[Governor<'_>]) -> Self {
        let groups = with_a_say(specs.groups);
        let common = common(specs.policies, &groups);
        let by_groups = groups.iter().flat_map(|group| windows_of_group(group));
        let by_groups: BTreeSet<&Name> = by_groups.collect();
        let windows: BTreeMap<&Name, &Window> = specs.windows.iter().map(|window| (&window.name, window)).collect();
        let of_policy = |governor: &Governor<'_>| {
            // One whose settings cannot be read is not decided of, and another digest once they can.
            let own = governor.policy.settings.iter().flat_map(|settings| &settings.windows);
            let named: BTreeSet<&Name> = own.chain(by_groups.iter().copied()).collect();
            let named = named.into_iter().filter_map(|name| windows.get(name));
            let named = named.flat_map(|window| ["window", &*window.name, &*window.spec]);
            digest([&*common, &*governor.policy.specs.rest].into_iter().chain(named))
        };
        Self {
            specs: governors.iter().map(of_policy).collect(),
            newly: vec![0; governors.len()],
            decided_for: vec![None; governors.len()],
            held: vec![None; governors.len()],
        }
    }

    /// Counts a device of a policy that is newly eligible, or counts it no more.
    pub(super) fn count(&mut self, policy: usize, adds: bool) {
        if let Some(newly) = self.newly.get_mut(policy) {
            *newly = if adds { newly.saturating_add(1) } else { newly.saturating_sub(1) };
        }
        if let Some(decided_for) = self.decided_for.get_mut(policy) {
            *decided_for = None;
        }
    }

    /// What is to be written down of the policy at `place` with so many devices, where that is not what was `recorded`; and
    /// whether something else is held now.
    pub(super) fn decide(
        &mut self,
        (place, governor): (usize, &Governor<'_>),
        recorded: &Blast,
        devices: u32,
        now: Timestamp,
    ) -> (Option<Blast>, bool) {
        let (Some(specs), Some(decided_for)) = (self.specs.get(place), self.decided_for.get_mut(place)) else {
            return (None, false);
        };
        if *decided_for == Some(devices) {
            return (None, false);
        }
        let is_in_force = recorded.accepted.as_ref().is_some_and(|accepted| accepted.specs == *specs);
        let mut decided = None;
        let held = match &governor.resolved {
            // Of specs that cannot be resolved it cannot be told what they make eligible.
            Err(_) => None,
            Ok(_) if is_in_force && recorded.pending.is_none() => None,
            Ok(resolved) => {
                let limit = limit(resolved.settings.blast_limit, devices);
                let newly = self.newly.get(place).copied().unwrap_or_default();
                let blast = decide(recorded, specs, resolved.settings, newly, limit, now);
                let policy = &governor.policy.name;
                let held = blast
                    .pending
                    .as_ref()
                    .map(|pending| Arc::new(Blocked::BlastLimit { policy: policy.clone(), devices: pending.devices }));
                decided = Some(blast).filter(|blast| blast != recorded);
                held
            }
        };
        // What was decided is what is recorded the next time.
        *decided_for = Some(devices).filter(|_| decided.is_none());
        let Some(before) = self.held.get_mut(place) else { return (decided, false) };
        let is_new = *before != held;
        *before = held;
        (decided, is_new)
    }

    /// What a device is told that only pending specs make eligible.
    pub(super) fn held(&self, place: Option<Place>, is_new: bool) -> Option<&Arc<Blocked>> {
        place.and_then(|place| self.held.get(place.policy)?.as_ref()).filter(|_| is_new)
    }

    /// Marks in a device's plan whether the specs in force have updates installed on it, and blocks what only pending ones do.
    pub(super) fn hold(&self, place: Option<Place>, device: &Device, says: Say, is_new: bool, plan: &mut DevicePlan) {
        let held = self.held(place, is_new);
        if !device.retired {
            plan.eligible = match says {
                Say::Yes => held.is_none(),
                Say::No => false,
                Say::Unknown => device.eligible,
            };
        }
        if let Some(why) = held {
            pass_over(plan, why);
        }
    }
}

fn decide(recorded: &Blast, specs: &Name, settings: &Settings, newly: u32, limit: u32, now: Timestamp) -> Blast {
    let Blast { accepted, pending } = recorded;
    if accepted.as_ref().is_some_and(|accepted| accepted.specs == *specs) {
        return Blast { accepted: accepted.clone(), pending: None };
    }
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    // Also of a change to what waits already: it does not wait less for it.
    let since = pending.as_ref().map_or(whole, |pending| pending.since);
    let recently = accepted.as_ref().filter(|accepted| since < later(accepted.since, DEFAULT_SETTLE));
    let recently = recently.map_or(0, |accepted| accepted.devices);
    let known = pending.as_ref().filter(|pending| pending.specs == *specs).map_or(0, |pending| pending.devices);
    let devices = newly.saturating_add(recently).max(known);
    let confirmed = settings.confirm.as_ref() == Some(specs);
    // A change that makes nobody eligible harms nobody, whatever came before it.
    let is_harmless = newly == 0 && known == 0;
    if !confirmed && !is_harmless && devices > limit {
        return Blast { accepted: accepted.clone(), pending: Some(Pending { specs: specs.clone(), since, devices }) };
    }
    let devices = if confirmed { 0 } else { devices };
    Blast { accepted: Some(Accepted { specs: specs.clone(), since: whole, devices }), pending: None }
}

fn limit(amount: Amount, devices: u32) -> u32 {
    match amount {
        Amount::Count(count) => count,
        // All of them, however often they are counted.
        Amount::Percent(100..) => u32::MAX,
        Amount::Percent(_) => amount.of(devices).max(AT_LEAST),
    }
}

/// The groups that may have a device one day, and all that these ask. What the others say is asked by nobody.
fn with_a_say(groups: &[Group]) -> Vec<&Group> {
    let by_name: BTreeMap<&Name, &Group> = groups.iter().map(|group| (&group.name, group)).collect();
    let has_members = |members: &Members| {
        let Members { selector, names, rule } = members;
        selector.is_some() || !names.is_empty() || rule.is_some()
    };
    let mut found: BTreeMap<&Name, &Group> = BTreeMap::new();
    for group in groups.iter().filter(|group| has_members(&group.members)) {
        let mut next = Some(group);
        while let Some(group) = next.filter(|group| found.insert(&group.name, group).is_none()) {
            next = group.parent.as_ref().and_then(|parent| by_name.get(parent).copied());
        }
    }
    found.into_values().collect()
}

/// The windows that a group gives to updates. Of one that cannot be read that is not known: nothing is decided by it, and its
/// digest is another once it can be.
fn windows_of_group(group: &Group) -> impl Iterator<Item = &Name> {
    group.approvals.iter().flat_map(|approvals| {
        let decisions = approvals.decisions.iter().filter_map(|decision| decision.window.as_ref());
        decisions.chain(approvals.rules.iter().filter_map(|rule| rule.window.as_ref()))
    })
}

/// As the other policies and the groups that decide which policy has a device, and what is approved for it.
fn common(policies: &[Policy], groups: &[&Group]) -> Name {
    let policies = policies.iter().map(|policy| ("policy", &policy.name, &policy.specs.selection));
    let groups = groups.iter().map(|group| ("group", &group.name, &group.spec));
    let mut all: Vec<(&str, &Name, &Name)> = policies.chain(groups).collect();
    all.sort_unstable();
    digest(all.into_iter().flat_map(|(kind, name, spec)| [kind, &**name, &**spec]))
}

/// The first 16 digits in hexadecimal: a person copies them.
fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> Name {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
        digest.update([0]);
    }
    let first = digest.finalize().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{first:016x}").into()
}

impl Blocked {
    /// What the specs say of an update for which this is the first reason against it.
    fn specs(&self) -> Say {
        match self {
            Self::AwaitingApproval
            | Self::LeftAlone
            | Self::Ignored
            | Self::Waived { .. }
            | Self::ToBeRemoved
            | Self::PolicyAudit { .. }
            | Self::PolicyDownloadOnly { .. }
            | Self::Filtered { .. }
            | Self::NeverRestarts { .. } => Say::No,
            Self::NoGroup
            | Self::MembershipUnknown { .. }
            | Self::GroupInvalid { .. }
            | Self::ParentNotFound { .. }
            | Self::ParentsInCircle { .. }
            | Self::TooManyParents { .. }
            | Self::VulnerabilitiesUnknown { .. }
            | Self::ExpressionFailed { .. }
            | Self::NoPolicy
            | Self::PolicyInvalid { .. }
            | Self::WindowNotFound { .. }
            | Self::WindowInvalid { .. }
            | Self::WindowTooShort { .. }
            | Self::OwnWindowTooShort { .. }
            | Self::UnknownDevice
            | Self::NotClaimed
            | Self::OrderExpired { .. }
            | Self::NoReport
            | Self::PolicyChanged { .. }
            | Self::NotOffered { .. }
            | Self::Stays { .. }
            | Self::RestartTooLate { .. } => Say::Unknown,
            // What time approves, and what a person stopped by hand for a while.
            Self::Aging { .. } | Self::PolicySuspended { .. } | Self::RolloutPaused { .. } | Self::BlastLimit { .. }
            // What the device is itself.
            | Self::Held
            | Self::CheckFailed { .. }
            | Self::DeviceSuspended
            | Self::DeviceRetired
            | Self::NoTimeZone { .. }
            | Self::DeviceStale
            | Self::DeviceOffline
            | Self::ClockOff { .. }
            | Self::DeviceProblem { .. }
            | Self::RolledBack { .. }
            | Self::RetriesExhausted { .. }
            | Self::UpdateStopped { .. }
            // What passes.
            | Self::OnHold
            | Self::OnBattery
            | Self::OthersFirst
            | Self::InstallRunning { .. }
            | Self::Settling { .. }
            | Self::RetryBackoff { .. }
            | Self::RingWaits { .. }
            | Self::PeersFirst { .. }
            | Self::ServiceAtLimit { .. }
            | Self::WindowClosed { .. }
            | Self::Frozen { .. }
            | Self::FreezeAhead { .. }
            | Self::WindowEnding { .. }
            | Self::ConcurrencyReached { .. } => Say::Yes,
        }
    }

    /// Whether it comes after `BlastLimit` in the order of the gates.
    pub(super) fn yields_to_blast_limit(&self) -> bool {
        self.is_passing()
            || matches!(
                self,
                Self::DeviceSuspended
                    | Self::DeviceRetired
                    | Self::NoTimeZone { .. }
                    | Self::DeviceStale
                    | Self::DeviceOffline
                    | Self::ClockOff { .. }
                    | Self::DeviceProblem { .. }
                    | Self::RolledBack { .. }
                    | Self::RetriesExhausted { .. }
                    | Self::UpdateStopped { .. }
            )
    }
}

/// What comes before it in the order of the gates stays.
fn pass_over(plan: &mut DevicePlan, why: &Arc<Blocked>) {
    plan.install = None;
    for update in &mut plan.updates {
        if update.blocked.as_deref().is_none_or(Blocked::yields_to_blast_limit) {
            update.blocked = Some(why.clone());
            update.eligible_at = None;
        }
    }
}
