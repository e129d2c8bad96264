//! What a policy says of a device beside orders, to signed settings. Pure.
//!
//! ```text
//!   spec.osUpdater, spec.applications, what lies in status, what the device tells --> step --> Keep | Wait | Drop | Sign --> status.compliance.settings
//! ```
//! An unchanged thing is not signed again: only another choice, another key, and more than half of their life being over make new
//! ones. A device that has a policy's word keeps it until it has another: so where no policy says anything any more, that is said.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS;
use patchwarden_protocol::applications::{Application, Ensure};
use patchwarden_protocol::canonical;
use patchwarden_protocol::key::Fingerprint;
use patchwarden_protocol::report::{DeviceRef, Report};
use patchwarden_protocol::settings::{MAX_LIFETIME, OsUpdater, Settings, SignedSettings};
use patchwarden_protocol::surroundings::{UpdaterChoice, UpdaterReport, UpdaterState};

use crate::api::DeviceInventory;
use crate::api::conditions as c;
use crate::api::device_inventory::Lifecycle;
use crate::convert::whole_seconds;

/// Settings that would count for less than this longer are not signed anew: the delegation's end limits both.
const WORTHWHILE: SignedDuration = SignedDuration::from_hours(24);

/// What is known, but for the device's object.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What lies in status.
    pub held: Option<&'a SignedSettings>,
    /// What the device tells, if it is believed.
    pub report: Option<&'a Report>,
    /// The policy that governs the device, and what it says.
    pub policy: Option<(&'a str, Said<'a>)>,
    /// Until when a device that had another policy waits.
    pub settles: Option<Timestamp>,
    /// The epoch of orders.
    pub epoch: u32,
    /// The key that signs.
    pub order_key: &'a Fingerprint,
    /// Until when it may.
    pub delegated_until: Timestamp,
    /// The clock.
    pub now: Timestamp,
}

/// What a policy says of a device beside orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said<'a> {
    /// What becomes of the operating system's own updater.
    pub os_updater: Option<OsUpdater>,
    /// Applications that are to be there or not, in the order of names.
    pub applications: &'a [Application],
}

impl Said<'_> {
    /// Whether it says nothing.
    pub fn is_nothing(&self) -> bool {
        self.os_updater.is_none() && self.applications.is_empty()
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// What lies there stays.
    Keep,
    /// The same, and it is looked at again then.
    Wait(Timestamp),
    /// What lies there says nothing any more.
    Drop,
    /// To be signed.
    Sign(Box<Settings>),
}

/// What is to become of a device's settings.
pub fn step(object: &DeviceInventory, facts: &Facts<'_>) -> Step {
    let Facts { held, report, policy, settles, epoch, order_key, delegated_until, now } = *facts;
    let key = object.spec.accepted_key.as_deref().and_then(|key| key.parse::<Fingerprint>().ok());
    let Some(device_key) = key.filter(|_| object.spec.lifecycle == Lifecycle::Active) else { return Step::Keep };
    let device =
        DeviceRef { namespace: object.metadata.namespace.clone().unwrap_or_default(), name: object.name_any() };
    let read = held.and_then(|held| held.settings.peek());
    // One that a device was told is never taken back.
    let held_epoch = read.as_ref().map_or(0, |read| read.epoch);
    let epoch = epoch.max(held_epoch);
    let told = report.and_then(|report| report.os_updater.as_ref());
    let asks = |read: &Settings| read.os_updater == OsUpdater::Disable || !read.applications.is_empty();
    let (policy, os_updater, applications) = match policy {
        Some((policy, said)) if !said.is_nothing() => {
            (policy, said.os_updater.unwrap_or_default(), said.applications.to_vec())
        }
        Some(_) | None => match &read {
            Some(read) if asks(read) && read.not_after <= now && epoch == 0 => return Step::Drop,
            // The second: status was lost, and the device has the word of a policy still.
            Some(read) if asks(read) => ("", OsUpdater::Leave, Vec::new()),
            None if report.is_some_and(acts_by_policy) => ("", OsUpdater::Leave, Vec::new()),
            Some(_) | None if epoch > 0 => ("", OsUpdater::Leave, Vec::new()),
            Some(_) | None => return Step::Keep,
        },
    };
    let told_at = told.and_then(|told| told.settings);
    let last = [read.as_ref().map(|read| read.issued_at), told_at].into_iter().flatten().max();
    let latest = now.saturating_add(SignedDuration::from_secs(MAX_CLOCK_SKEW_SECONDS)).unwrap_or(now);
    let now_whole = whole_seconds(now);
    // What was issued later than that is of a clock that was wrong: no device with a right one has taken it.
    let after = last.filter(|last| *last < latest).and_then(|last| last.checked_add(SignedDuration::from_secs(1)).ok());
    let issued_at = after.map_or(now_whole, |after| after.max(now_whole));
    let not_after = issued_at.saturating_add(MAX_LIFETIME).unwrap_or(issued_at).min(delegated_until);
    let wanted = Settings {
        device,
        device_key,
        policy: policy.to_owned(),
        os_updater,
        applications,
        epoch,
        issued_at,
        not_after,
    };
    let is_same = |read: &Settings| {
        let Settings { device, device_key, policy, os_updater, applications, epoch, issued_at: _, not_after: _ } = read;
        let said = (device, device_key, policy, os_updater, applications);
        *epoch == wanted.epoch
            && said == (&wanted.device, &wanted.device_key, &wanted.policy, &wanted.os_updater, &wanted.applications)
    };
    let is_signed =
        |held: &SignedSettings| held.settings.signatures.iter().any(|signature| signature.keyid == order_key.as_str());
    let is_good = match (&read, held) {
        (Some(read), Some(held)) => {
            is_same(read)
                && is_signed(held)
                // The device has later ones, from before status was set back.
                && told_at.is_none_or(|told| told <= read.issued_at || told >= latest)
                && !(is_due(read, now) && not_after.duration_since(read.not_after) >= WORTHWHILE)
        }
        _ => false,
    };
    match settles {
        _ if is_good => Step::Keep,
        Some(settles) if settles > now && held_epoch == epoch => Step::Wait(settles),
        // The epoch waits for nothing; beside it stays what was said before.
        Some(settles) if settles > now => {
            let before = read.map(|read| (read.policy, read.os_updater, read.applications));
            let (policy, os_updater, applications) = before.unwrap_or_default();
            Step::Sign(Box::new(Settings { policy, os_updater, applications, ..wanted }))
        }
        _ => Step::Sign(Box::new(wanted)),
    }
}

/// Whether the device says, believed or not, that it does something in the name of a policy beside orders.
pub fn may_act_by_policy(object: &DeviceInventory) -> bool {
    let report = object.status.as_ref().and_then(|status| status.inventory.as_ref()?.report.as_ref());
    report.is_some_and(acts_by_policy)
}

/// Its updater is off, or it asks for applications to be installed or removed.
fn acts_by_policy(report: &Report) -> bool {
    report.os_updater.as_ref().is_some_and(is_off_by_policy)
        || report.updates.iter().any(|update| Ensure::of(update.classification).is_some())
}

fn is_off_by_policy(told: &UpdaterReport) -> bool {
    told.by == UpdaterChoice::Policy && told.state != UpdaterState::Left
}

/// From half of their life on, and for each device at another time within the next quarter: not all on one day.
fn is_due(settings: &Settings, now: Timestamp) -> bool {
    let life = settings.not_after.duration_since(settings.issued_at);
    let digest = canonical::digest(settings.device_key.as_str().as_bytes());
    let place = digest.bytes().last().map_or(0, |digit| i32::from(digit % 16));
    let due = life / 2 + life / 64 * place;
    now >= settings.issued_at.saturating_add(due).unwrap_or(Timestamp::MAX)
}

/// Status, reason and message of the condition [`c::OS_UPDATER`]; nothing where no policy says anything, nor has.
pub fn condition(
    held: Option<&SignedSettings>,
    report: Option<&Report>,
) -> Option<(&'static str, &'static str, String)> {
    let Settings { policy, os_updater, .. } = held?.settings.peek()?;
    let told = report.and_then(|report| report.os_updater.as_ref());
    if policy.is_empty() {
        let message = "no policy says anything of it any more: it is given back once the device knows";
        return told.is_some_and(is_off_by_policy).then(|| ("Unknown", c::REASON_NOT_TOLD_YET, message.to_owned()));
    }
    let says = format!("PatchPolicy/{policy} says {os_updater:?}");
    let Some(UpdaterReport { state, by, updaters, settings: _, message }) = told else {
        let message = format!("{says}, and the device has not told what became of it: its agent may be too old");
        return Some(("Unknown", c::REASON_NOT_TOLD_YET, message));
    };
    let why = if message.is_empty() { says.clone() } else { message.clone() };
    let is_so = match os_updater {
        OsUpdater::Disable => *state == UpdaterState::Off,
        OsUpdater::Leave => *state == UpdaterState::Left,
    };
    Some(match by {
        UpdaterChoice::Unsupported => ("False", c::REASON_UNSUPPORTED, why),
        UpdaterChoice::NoContact => ("False", c::REASON_GIVEN_BACK, why),
        UpdaterChoice::Owner | UpdaterChoice::Limits if !is_so => ("False", c::REASON_REFUSED_BY_DEVICE, why),
        _ if *state == UpdaterState::Partly => ("False", c::REASON_CHANGED_ON_DEVICE, why),
        _ if is_so => {
            let off = if updaters.is_empty() { String::new() } else { format!(": off are {}", updaters.join(", ")) };
            ("True", c::REASON_AS_POLICY_SAYS, format!("{says}{off}"))
        }
        _ => ("Unknown", c::REASON_NOT_TOLD_YET, format!("{says}, and the device does not know it yet")),
    })
}

#[cfg(test)]
mod tests;
