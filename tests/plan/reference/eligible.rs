//! What may be done on a device.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use patchwarden_plan::model::{
    Approvals, Calendar, Cause, Claim, DecisionAction, Device, Durations, Failure, Group, Mode, Name, Offer, Policy,
    Settings, Snapshot, Update, Zone,
};
use patchwarden_protocol::order::{RestartWhen, Verb};
use patchwarden_protocol::report::Tristate;

use super::approval::{about, approval, approved, glob, own_window_of, removes, update_of, windows_of};
use super::rings::ring_has_it;
use super::selection::{certain_group_of, group_of, line_of, policy_of};
use super::windows::{by_windows, calendars, goes_by_windows, last_start_within, latest_in, open, room, zone};

/// Whether nothing but other devices keeps the update from being installed at `now`, by the policy's own limit; what the
/// policies' updates have come to is as it was written down.
pub fn eligible(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> bool {
    if let What::Install(_) = what {
        return install(snapshot, device, now).is_some_and(|(ids, _)| ids.contains(&what.id(snapshot)));
    }
    let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
    let limit = settings.map(|settings| settings.install_limit);
    limit.is_some_and(|limit| eligible_within(snapshot, device, what, (limit, limit), now))
}

/// Whether it could be done if it were the only thing to do.
pub fn eligible_by_itself(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> bool {
    let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
    let limit = settings.map(|settings| settings.install_limit);
    let expected = expected(snapshot, device, &[what]);
    limit.zip(expected).is_some_and(|(limit, expected)| eligible_within(snapshot, device, what, (expected, limit), now))
}

/// What could be done on a device.
#[derive(Clone, Copy)]
pub enum What<'a> {
    Install(&'a Offer),
    Download(&'a Offer),
    TakeBack(&'a Update),
    Restart,
}

impl<'a> What<'a> {
    /// What the device's policy does with what the device offers.
    pub fn with(snapshot: &Snapshot, device: &Device, offer: &'a Offer) -> Self {
        match policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) {
            Some(settings) if settings.mode == Mode::DownloadOnly => Self::Download(offer),
            _ => Self::Install(offer),
        }
    }

    pub(super) fn offer(self) -> Option<&'a Offer> {
        match self {
            Self::Install(offer) | Self::Download(offer) => Some(offer),
            Self::TakeBack(_) | Self::Restart => None,
        }
    }

    fn id(self, snapshot: &Snapshot) -> Name {
        match self {
            Self::Install(offer) | Self::Download(offer) => update_of(snapshot, offer).id.clone(),
            Self::TakeBack(update) => update.id.clone(),
            Self::Restart => "restart".into(),
        }
    }

    /// The windows in which it is done; none if it is not to be done.
    pub(super) fn windows(self, snapshot: &Snapshot, device: &Device, now: Timestamp) -> Option<Vec<Name>> {
        match self {
            Self::Install(offer) | Self::Download(offer) => {
                windows_of(snapshot, device, update_of(snapshot, offer), now)
            }
            Self::TakeBack(update) => windows_of(snapshot, device, update, now),
            Self::Restart => Some(policy_of(snapshot, device)?.settings.as_ref().ok()?.windows.clone()),
        }
    }

    fn has_own_window(self, snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
        match self {
            Self::Install(offer) | Self::Download(offer) => {
                own_window_of(snapshot, device, update_of(snapshot, offer), now).is_some()
            }
            Self::TakeBack(update) => own_window_of(snapshot, device, update, now).is_some(),
            Self::Restart => false,
        }
    }

    /// Whether it may be done at any time.
    pub(super) fn needs_no_window(self, snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
        let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
        settings.is_some_and(|settings| match self {
            Self::Download(_) if settings.mode == Mode::DownloadOnly => settings.windows.is_empty(),
            Self::Download(offer) | Self::Install(offer) => {
                settings.mode == Mode::InstallImmediately
                    && offer.requires_restart == Tristate::No
                    && offer.interrupts_service == Tristate::No
            }
            Self::TakeBack(_) | Self::Restart => false,
        }) && !self.has_own_window(snapshot, device, now)
    }
}

/// Until when a restart that follows it may begin, if it starts in one of the policy's windows.
pub fn restart_until(snapshot: &Snapshot, device: &Device, what: What<'_>, now: Timestamp) -> Option<Timestamp> {
    if what.has_own_window(snapshot, device, now) || what.needs_no_window(snapshot, device, now) {
        return None;
    }
    let settings = policy_of(snapshot, device)?.settings.as_ref().ok()?;
    let expected = expected_with(snapshot, device, what, now)?;
    let latest = |calendar: &Calendar, room| latest_in(calendar, zone(calendar, device)?, room, now);
    let calendars = calendars(snapshot, &settings.windows)?;
    let starts = calendars.iter().any(|it| latest(it, room(it, expected)).is_some());
    let ends = calendars.iter().filter_map(|it| latest(it, SignedDuration::ZERO));
    ends.max().filter(|_| starts)
}

/// Whether the device may restart after it has done what it holds a claim for.
pub fn may_restart(snapshot: &Snapshot, device: &Device, claim: &Claim, now: Timestamp) -> bool {
    let Some(policy) = policy_of(snapshot, device) else { return false };
    let Ok(settings) = &policy.settings else { return false };
    let (Ok(report), Some(calendars)) = (&device.report, calendars(snapshot, &settings.windows)) else { return false };
    let is_open = |calendar: &&Calendar| zone(calendar, device).is_some_and(|zone| open(calendar, zone, now));
    let fits = |calendar: &&Calendar| calendar.duration > room(calendar, settings.install_limit);
    claim.granted
        && policy.name == claim.policy
        && certain_group_of(snapshot, device).is_some()
        && settled(snapshot, device, settings.settle, now)
        && settings.restart.when != RestartWhen::Never
        && settings.mode != Mode::Audit
        && !settings.suspended
        && (policy.progress.paused.is_none() || claim.verb == Verb::Uninstall)
        && !device.suspended
        && !device.retired
        && !report.problems.iter().any(|code| code.blocks_installs())
        && (calendars.is_empty() || calendars.iter().any(fits))
        && calendars.iter().any(is_open)
}

/// Whether the policy does such a thing.
fn does(snapshot: &Snapshot, settings: &Settings, what: What<'_>) -> bool {
    let in_mode = match what {
        What::Install(_) | What::TakeBack(_) => matches!(settings.mode, Mode::Install | Mode::InstallImmediately),
        What::Restart => {
            matches!(settings.mode, Mode::Install | Mode::InstallImmediately)
                && settings.restart.when != RestartWhen::Never
        }
        // One that was claimed goes on where the policy installs by now: it is the smaller part of that.
        What::Download(offer) => match settings.mode {
            Mode::DownloadOnly => !offer.downloaded,
            Mode::Install | Mode::InstallImmediately => true,
            Mode::Audit => false,
        },
    };
    let filters = &settings.filters;
    let left_out = what.offer().is_some_and(|offer| {
        let update = update_of(snapshot, offer);
        (filters.skip_restart && offer.requires_restart == Tristate::Yes)
            || !(filters.classifications.is_empty() || filters.classifications.contains(&update.classification))
            || filters.exclude_packages.iter().any(|it| update.packages.iter().any(|name| glob(&it.0, name)))
    });
    in_mode && !left_out
}

/// Whether its windows let an install of the update alone start.
pub fn starts_alone(snapshot: &Snapshot, device: &Device, offer: &Offer, now: Timestamp) -> bool {
    let what = What::with(snapshot, device, offer);
    let settings = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok());
    let alone = expected(snapshot, device, &[what]).zip(settings.map(|settings| settings.install_limit));
    alone.is_some_and(|alone| last_start_within(snapshot, device, what, alone, now, now).is_some())
}

/// What is installed together if it is the device's turn, and how long that is expected to take.
pub fn install(snapshot: &Snapshot, device: &Device, now: Timestamp) -> Option<(Vec<Name>, SignedDuration)> {
    let limit = policy_of(snapshot, device)?.settings.as_ref().ok()?.install_limit;
    let mut taken: Vec<What<'_>> = vec![];
    for offer in &device.report.as_ref().ok()?.offers {
        let what = What::Install(offer);
        let mut more = taken.clone();
        more.push(what);
        let together = expected(snapshot, device, &more)?;
        let fits = |it: &What<'_>| {
            !goes_by_windows(snapshot, device, *it, now)
                || by_windows(snapshot, device, *it, together, now, now).is_some()
        };
        if eligible_within(snapshot, device, what, (expected(snapshot, device, &[what])?, limit), now)
            && more.iter().all(fits)
        {
            taken = more;
        }
    }
    let ids = taken.iter().map(|what| what.id(snapshot)).collect();
    Some((ids, expected(snapshot, device, &taken)?))
}

/// How long they are expected to take together: by the policy's own words, minute for minute.
pub(super) fn expected(snapshot: &Snapshot, device: &Device, together: &[What<'_>]) -> Option<SignedDuration> {
    let policy = policy_of(snapshot, device)?;
    let limit = policy.settings.as_ref().ok()?.install_limit;
    let known = &policy.progress.durations;
    let mut half_seconds = 120;
    for what in together {
        let What::Install(offer) = what else { return Some(limit) };
        let update = update_of(snapshot, offer);
        let failed = device.failures.iter().any(|failure| failure.update == update.id && failure.attempts > 0);
        match known.updates.get(&update.id).or(known.kinds.get(&update.classification)) {
            Some(seconds) if !failed => half_seconds += 3 * i64::from(*seconds),
            _ => return Some(limit),
        }
    }
    let mut minutes = 0;
    while minutes * 120 < half_seconds {
        minutes += 1;
    }
    Some(limit.min(SignedDuration::from_mins(minutes)))
}

/// How long the order is expected to take in which it would be carried out at `now`.
pub(super) fn expected_with(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    now: Timestamp,
) -> Option<SignedDuration> {
    match what {
        What::Install(_) => Some(install(snapshot, device, now)?.1),
        What::Download(_) | What::TakeBack(_) | What::Restart => {
            Some(policy_of(snapshot, device)?.settings.as_ref().ok()?.install_limit)
        }
    }
}

/// The longest that was ever written down, or measured in the last hour.
pub fn durations(snapshot: &Snapshot, policy: &Policy, now: Timestamp) -> Durations {
    let mut known = policy.progress.durations.clone();
    let governed = |it: &&Device| policy_of(snapshot, it).is_some_and(|governs| governs.name == policy.name);
    for measured in snapshot.devices.iter().filter(governed).flat_map(|device| &device.measured) {
        let number = u32::try_from(measured.updates.len()).expect("few");
        if measured.at + SignedDuration::from_hours(1) <= now || number == 0 {
            continue;
        }
        let share = (0..=measured.seconds).find(|share| share * number >= measured.seconds).expect("that much");
        for id in &measured.updates {
            let longest = known.updates.get(id).copied().unwrap_or(0);
            known.updates.insert(id.clone(), longest.max(share));
        }
        for kind in &measured.kinds {
            let longest = known.kinds.get(kind).copied().unwrap_or(0);
            known.kinds.insert(*kind, longest.max(share));
        }
    }
    known
}

/// The same for an order of which nothing is known but how long it is expected to take, and how long it may.
pub fn eligible_within(
    snapshot: &Snapshot,
    device: &Device,
    what: What<'_>,
    (expected, limit): (SignedDuration, SignedDuration),
    now: Timestamp,
) -> bool {
    let id = what.id(snapshot);
    let Some(settings) = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) else {
        return false;
    };
    let Ok(report) = &device.report else { return false };
    // Also those that it does not follow must be there and of some use.
    let usable = |names: &[Name], limit: SignedDuration| {
        let fits = |calendar: &&Calendar| calendar.duration > room(calendar, limit);
        calendars(snapshot, names).is_some_and(|calendars| calendars.is_empty() || calendars.iter().any(fits))
    };
    let windows = what.windows(snapshot, device, now).unwrap_or_default();
    let has_zone = matches!(device.zone, Some(Ok(_)));
    let needs_zone =
        calendars(snapshot, &windows).is_some_and(|them| them.iter().any(|it| matches!(it.zone, Zone::Device)));
    let pardoned = match what {
        What::Install(offer) | What::Download(offer) => {
            pardoned_before(snapshot, device, update_of(snapshot, offer), now)
        }
        What::TakeBack(update) => pardoned_before(snapshot, device, update, now),
        What::Restart => pardoned_before(snapshot, device, &Update::restart(), now),
    };
    let worst = device.failures.iter().filter(|it| it.update == id).max_by_key(|it| (it.attempts, it.last));
    let rested = worst.is_none_or(|failure| {
        let mut wait = settings.retry_backoff;
        for _ in 1..failure.attempts {
            wait += wait;
        }
        let passes = failure.cause == Cause::Passing;
        if passes && wait > settings.retry_backoff {
            wait = wait.min(SignedDuration::from_hours(12).max(settings.retry_backoff));
        }
        let counts = pardoned.is_none_or(|before| failure.last >= before);
        pardoned.is_some_and(|before| failure.again < before)
            || (now >= failure.again + wait
                && (!counts
                    || ((failure.cause != Cause::RolledBack || matches!(what, What::TakeBack(_)))
                        && (passes
                            || (matches!(failure.cause, Cause::Check(_)) && matches!(what, What::TakeBack(_)))
                            || failure.attempts <= settings.retry_limit))))
    });
    let decided = match what {
        What::Install(offer) | What::Download(offer) => approved(snapshot, device, offer, now) && !offer.held,
        What::TakeBack(update) => removes(snapshot, device, update, now),
        What::Restart => certain_group_of(snapshot, device).is_some() && report.restart_required == Tristate::Yes,
    };
    let is_install = matches!(what, What::Install(_));
    decided
        && does(snapshot, settings, what)
        && !settings.suspended
        && usable(&settings.windows, settings.install_limit)
        && usable(&windows, settings.install_limit)
        && policy_of(snapshot, device).is_some_and(|policy| {
            let stops = snapshot.policies.iter().filter_map(|it| it.progress.updates.get(&id)?.stopped);
            let stopped = stops.max().is_some_and(|since| pardoned.is_none_or(|pardoned| pardoned <= since));
            (policy.progress.paused.is_none() || matches!(what, What::TakeBack(_)))
                && (what.offer().is_none() || !stopped)
                && (!is_install || ring_has_it(policy, &policy.progress, device, &id))
        })
        && !device.suspended
        && !device.retired
        && (has_zone || !needs_zone)
        && device.online
        && device.clock_off.is_none()
        && !report.problems.iter().any(|code| code.blocks_installs())
        && rested
        && device.current.is_none()
        && settled(snapshot, device, settings.settle, now)
        && !held(snapshot, device)
        && last_start_within(snapshot, device, what, (expected, limit), now, now).is_some()
}

/// Whether specs wait for a person, and it was not eligible before; as it was written down.
fn held(snapshot: &Snapshot, device: &Device) -> bool {
    policy_of(snapshot, device).is_some_and(|policy| policy.progress.blast.pending.is_some()) && !device.eligible
}

/// Whether the specs have updates installed on the device, now or later: whatever it is itself, whatever is open.
pub fn allowed(snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
    let Some(settings) = policy_of(snapshot, device).and_then(|policy| policy.settings.as_ref().ok()) else {
        return false;
    };
    let usable = |names: &[Name]| {
        let fits = |calendar: &&Calendar| calendar.duration > room(calendar, settings.install_limit);
        calendars(snapshot, names).is_some_and(|calendars| calendars.is_empty() || calendars.iter().any(fits))
    };
    let Ok(report) = &device.report else { return false };
    let installs = matches!(settings.mode, Mode::Install | Mode::InstallImmediately)
        && usable(&settings.windows)
        && certain_group_of(snapshot, device).is_some();
    let counts = |offer: &&Offer| !(offer.held && approved(snapshot, device, offer, now));
    let mut offers = report.offers.iter().filter(counts).peekable();
    let allows = |offer: &Offer| {
        let update = update_of(snapshot, offer);
        let ages = !approved(snapshot, device, offer, now);
        approval(snapshot, device, update, now).is_some()
            && (ages
                || (does(snapshot, settings, What::Install(offer))
                    && windows_of(snapshot, device, update, now).is_some_and(|windows| usable(&windows))))
    };
    let removals = report.removable.iter().map(|update| &**snapshot.updates.get(*update).expect("interned"));
    let mut removals = removals.filter(|update| removes(snapshot, device, update, now)).peekable();
    let takes_back = |update: &Update| windows_of(snapshot, device, update, now).is_some_and(|it| usable(&it));
    let restarts = report.restart_required == Tristate::Yes && settings.restart.when != RestartWhen::Never;
    let nothing_to_do = offers.peek().is_none() && removals.peek().is_none() && !restarts;
    installs && (nothing_to_do || restarts || offers.any(allows) || removals.any(takes_back))
}

/// Whether its policy and group are those that it had when it was last planned, and for long enough.
fn settled(snapshot: &Snapshot, device: &Device, settle: SignedDuration, now: Timestamp) -> bool {
    let policy = policy_of(snapshot, device).map(|policy| policy.name.clone());
    let group = group_of(snapshot, device).map(|group| group.name.clone());
    assert_eq!((&policy, &group), (&device.last_policy, &device.last_group), "as it was written down");
    device.moved.as_ref().is_none_or(|moved| now >= moved.since + settle)
}

/// Whether the last failure of the update is of a check after it, and a person has said since that the device was seen to: by what the
/// id alone tells of an update that may not be offered any more.
pub fn seen_to(snapshot: &Snapshot, device: &Device, id: &Name, now: Timestamp) -> bool {
    let known = Update::by_id(id.clone());
    let before = pardoned_before(snapshot, device, &known, now);
    worst(device, id).zip(before).is_some_and(|(failure, before)| {
        matches!(failure.cause, Cause::Check(_)) && failure.attempts > 0 && failure.last < before
    })
}

/// Updates that a check has found something of and that are told of in no other way, with when that was: those that are there and
/// to which nobody has seen, eight at most.
pub fn checked(snapshot: &Snapshot, device: &Device, now: Timestamp) -> Vec<(Timestamp, Name)> {
    let Ok(report) = &device.report else { return vec![] };
    let is_told = |id: &Name| {
        let is_removed = |update: &&Update| update.id == *id && removes(snapshot, device, update, now);
        report.offers.iter().any(|offer| update_of(snapshot, offer).id == *id)
            || report.removable.iter().filter_map(|it| snapshot.updates.get(*it)).any(|it| is_removed(&&**it))
            || (report.restart_required == Tristate::Yes && **id == *"restart")
    };
    let ids: BTreeSet<&Name> = device.failures.iter().map(|failure| &failure.update).collect();
    let mut found: Vec<(Timestamp, Name)> = vec![];
    for id in ids {
        let Some(failure) = worst(device, id) else { continue };
        let is_found = matches!(failure.cause, Cause::Check(_)) && failure.attempts > 0;
        if is_found && !is_told(id) && !seen_to(snapshot, device, id, now) {
            found.push((failure.last, id.clone()));
        }
    }
    found.sort();
    found.split_off(found.len().saturating_sub(8))
}

/// Whether something that failed is left on the device, or is to be tried again.
pub fn has_failed(snapshot: &Snapshot, device: &Device, now: Timestamp) -> bool {
    let offers =
        |id: &Name| device.report.iter().flat_map(|it| &it.offers).any(|offer| update_of(snapshot, offer).id == *id);
    device.failures.iter().filter(|it| it.attempts > 0).any(|it| match it.cause {
        Cause::Passing => false,
        Cause::Update | Cause::Other => true,
        Cause::RolledBack => offers(&it.update),
        Cause::Check(_) => !seen_to(snapshot, device, &it.update, now),
    })
}

pub(super) fn worst<'d>(device: &'d Device, id: &Name) -> Option<&'d Failure> {
    device.failures.iter().filter(|it| it.update == *id).max_by_key(|it| (it.attempts, it.last))
}

/// Until when failures do not count.
pub(super) fn pardoned_before(
    snapshot: &Snapshot,
    device: &Device,
    update: &Update,
    now: Timestamp,
) -> Option<Timestamp> {
    reprocessed(&line_of(snapshot, certain_group_of(snapshot, device)?)?, update, now)
}

/// Until when failures of the update do not count, by what a group and those above it decide.
pub(super) fn reprocessed(line: &[(&Group, &Approvals)], update: &Update, now: Timestamp) -> Option<Timestamp> {
    let decisions = line.iter().flat_map(|(_, approvals)| &approvals.decisions);
    decisions
        .filter(|it| it.until.is_none_or(|until| now < until) && about(&it.target, update))
        .filter_map(|it| match it.action {
            DecisionAction::Reprocess { failed_before } => Some(failed_before).filter(|before| *before <= now),
            _ => None,
        })
        .max()
}
