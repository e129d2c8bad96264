//! Resources to the planner's model, validated once.
//!
//! Nothing is dropped: what passed the schema and cannot be understood all the same becomes [`Invalid`] in its place and
//! blocks what depends on it. A device's report is believed only if the device signed it.

mod advice;
mod applications;
mod group;
mod policy;
mod safeguards;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use patchwarden_protocol::canonical;
use patchwarden_protocol::order::Sequence;
use patchwarden_protocol::report::{self, Classification, HeldReason, Report, Severity, Tristate};
use patchwarden_protocol::result::ResultReason;
use patchwarden_protocol::{Envelope, MAX_CLOCK_SKEW_SECONDS};
use serde::Serialize;

use crate::api;
use crate::api::device_inventory::UpdateCompliance;
use crate::install;
use crate::plan::Snapshot;
use crate::plan::model::{
    Accepted, Amount, Blast, Calendar, Catalogue, CatchUp, Cause, Claim, Cron, Device, DeviceReport, DeviceType,
    Disruption, Exclusion, FailedOn, Failure, Filters, Glob, Group, Invalid, Mode, Moved, Name, NoReport, Offer, Os,
    Pair, Pending, Policy, Progress, Requirement, Restart, Ring, RingMembers, Rollout, Schedule, Selector, Settings,
    SpecDigests, TurnOrder, Update, UpdateId, UpdateProgress, WhenEmpty, Window, Zone,
};
use crate::plan::package::package_of;
use crate::vulnerabilities::Vulnerabilities;

use self::advice::installed_source;
pub use advice::Advice;
pub use applications::of as applications;
pub use group::{group, seen, shared_group};
pub use safeguards::{safeguards, site_cache};

/// A policy.
pub fn policy(object: &api::PatchPolicy) -> Policy {
    let spec = &object.spec;
    let (disruption, settings) = (disruption(spec), settings(spec));
    Policy {
        name: object.name_any().into(),
        selector: selector(&spec.selector),
        types: spec.types.iter().copied().map(device_type).collect(),
        groups: names(&spec.approval_groups),
        exclude_groups: names(&spec.exclude_approval_groups),
        exclude: names(&spec.exclude),
        priority: spec.priority,
        // Nothing of it is forgotten where it, or something else, cannot be read: other policies keep to it, too.
        disruption: disruption.as_ref().map_or_else(|_| strictest(spec), Clone::clone),
        settings: settings.and_then(|settings| disruption.map(|_| settings)),
        progress: Arc::new(object.status.as_ref().map(progress).unwrap_or_default()),
        specs: specs(spec),
    }
}

/// How long a device that had another policy waits before this one acts on it, if that can be read.
pub fn settle(spec: &api::PatchPolicySpec) -> Option<SignedDuration> {
    duration("spec.settle", &spec.settle).ok()
}

/// Digests of a policy's spec, without what makes no device eligible.
fn specs(spec: &api::PatchPolicySpec) -> SpecDigests {
    const SELECTION: [&str; 6] =
        ["selector", "types", "approvalGroups", "excludeApprovalGroups", "exclude", "priority"];
    const NEITHER: [&str; 11] = [
        "blastLimit",
        "checks",
        "confirm",
        "deadlines",
        "hooks",
        "osUpdater",
        "retries",
        "rollback",
        "rollout",
        "settle",
        "suspend",
    ];
    let all = serde_json::to_value(spec).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let all = all.into_iter().filter(|(field, _)| !NEITHER.contains(&field.as_str()));
    let (selection, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        all.partition(|(field, _)| SELECTION.contains(&field.as_str()));
    SpecDigests { selection: digest(&selection), rest: digest(&rest) }
}

/// Changes exactly when `spec` does.
fn digest<T: Serialize + std::fmt::Debug>(spec: &T) -> Name {
    let digest = canonical::digest_of(spec).unwrap_or_else(|_| canonical::digest(format!("{spec:?}").as_bytes()));
    digest.into()
}

/// What was written down of a policy's updates.
pub fn progress(status: &api::PatchPolicyStatus) -> Progress {
    let durations = status.durations.as_ref().map(policy::durations).unwrap_or_default();
    let update = |update: &api::patch_policy::UpdateProgress| {
        let ring = Some(update.ring.as_str()).filter(|ring| *ring != api::patch_policy::REST).map(Into::into);
        let (opened, reached, stopped) = (update.opened, update.reached, update.stopped);
        let (installed, anywhere) = (update.installed, update.installed_anywhere);
        let failed = update.failed.iter().map(|it| {
            let ring = it.ring.as_deref().map(Into::into);
            FailedOn { device: it.device.as_str().into(), last: it.last, ring }
        });
        let failed = failed.collect();
        (update.id.as_str().into(), UpdateProgress { ring, opened, reached, stopped, installed, anywhere, failed })
    };
    Progress {
        updates: status.updates.iter().map(update).collect(),
        paused: status.paused,
        durations,
        blast: blast(status),
    }
}

/// Which specs were in force.
fn blast(status: &api::PatchPolicyStatus) -> Blast {
    let accepted = status.in_force.as_ref().map(|it| Accepted {
        specs: it.specs.as_str().into(),
        since: it.since,
        devices: it.devices,
    });
    let pending = status.pending.as_ref();
    let pending = pending.map(|it| Pending { specs: it.specs.as_str().into(), since: it.since, devices: it.devices });
    Blast { accepted, pending }
}

/// By how many seconds the device's clock is behind, where its agent refuses orders for it.
pub fn clock_off(inventory: &api::device_inventory::Inventory) -> Option<i32> {
    let skew = inventory.clock_skew_seconds.filter(|skew| skew.abs() > MAX_CLOCK_SKEW_SECONDS)?;
    Some(i32::try_from(skew).unwrap_or(if skew < 0 { i32::MIN } else { i32::MAX }))
}

fn names(list: &[String]) -> Vec<Name> {
    list.iter().map(|name| name.as_str().into()).collect()
}

/// A window.
pub fn window(object: &api::MaintenanceWindow) -> Window {
    Window { name: object.name_any().into(), calendar: calendar(&object.spec), spec: digest(&object.spec) }
}

/// What the planner works on: the objects of a client's namespace and the converted groups, the organisation's among them.
/// Each device comes with what is true of its claim at this moment.
pub fn snapshot<'a>(
    policies: impl Iterator<Item = &'a api::PatchPolicy>,
    groups: Vec<Group>,
    windows: impl Iterator<Item = &'a api::MaintenanceWindow>,
    devices: impl Iterator<Item = (&'a api::DeviceInventory, &'a api::device_inventory::Compliance)>,
    vulnerabilities: &Vulnerabilities,
    now: Timestamp,
) -> Snapshot {
    let mut updates = Catalogue::default();
    let mut advice = Advice::new(vulnerabilities.advisories.clone());
    Snapshot {
        policies: policies.map(policy).collect(),
        groups,
        windows: windows.map(window).collect(),
        devices: devices
            .map(|(object, compliance)| device(object, compliance, (&mut updates, &mut advice), now))
            .collect(),
        updates,
        vulnerabilities: vulnerabilities.known.clone(),
        seen: vec![],
    }
}

/// A device, with its claim, its failures and what it offered before as `compliance` has them; what it did not offer
/// before is first seen `now`. Updates get their place in the catalogue; what they fix is what the device tells and what is advised.
pub fn device(
    object: &api::DeviceInventory,
    compliance: &api::device_inventory::Compliance,
    (catalogue, advice): (&mut Catalogue, &mut Advice),
    now: Timestamp,
) -> Device {
    let inventory = object.status.as_ref().and_then(|status| status.inventory.as_ref());
    let device_type = device_type(object.spec.device_type);
    let is_silent = device_type == DeviceType::Server && inventory.is_some_and(|inventory| !inventory.online);
    Device {
        name: object.name_any().into(),
        labels: object.labels().iter().map(|(key, value)| (catalogue.name(key), catalogue.name(value))).collect(),
        device_type,
        zone: object.spec.time_zone.as_ref().map(|name| time_zone("spec.timeZone", name)),
        suspended: object.spec.suspend,
        retired: object.spec.lifecycle == api::device_inventory::Lifecycle::Retired,
        report: believed_report(object).map(|report| DeviceReport {
            applications: applications::known(compliance.settings.as_ref(), report, catalogue, now),
            ..device_report(report, &compliance.updates, (catalogue, advice), now)
        }),
        last_group: compliance.approval_group.as_deref().map(Into::into),
        last_possible: compliance.possible_groups.iter().map(|name| name.as_str().into()).collect(),
        online: inventory.is_some_and(|inventory| inventory.online),
        online_since: inventory.and_then(|inventory| inventory.last_transition_time),
        clock_off: inventory.and_then(clock_off),
        on_hold: false,
        current: compliance.current.as_ref().map(claim),
        failures: compliance
            .failures
            .iter()
            .map(|failure| Failure {
                update: failure.update.as_str().into(),
                attempts: failure.attempts,
                last: failure.tried.unwrap_or(failure.last),
                again: failure.last,
                cause: cause(failure.reason, is_silent, || {
                    catalogue.intern(Update::by_id(failure.update.as_str().into()))
                }),
            })
            .collect(),
        installed: install::installed(compliance).iter().map(|id| catalogue.number(id)).collect(),
        last_policy: compliance.policy.as_deref().map(Into::into),
        moved: moved(compliance),
        eligible: compliance.eligible,
        measured: compliance.last.iter().filter_map(policy::measured).collect(),
    }
}

/// Since when it has its policy and group, as it was written down.
fn moved(compliance: &api::device_inventory::Compliance) -> Option<Box<Moved>> {
    let pair = |before: &api::device_inventory::Governance| Pair {
        policy: before.policy.as_deref().map(Into::into),
        group: before.approval_group.as_deref().map(Into::into),
    };
    let since = compliance.governed_since?;
    Some(Box::new(Moved { since, before: compliance.governed_before.as_ref().map(pair) }))
}

fn device_report(
    report: &Report,
    before: &[UpdateCompliance],
    (catalogue, advice): (&mut Catalogue, &mut Advice),
    now: Timestamp,
) -> DeviceReport {
    let os = &report.os;
    DeviceReport {
        os: Arc::new(Os {
            family: catalogue.name(&os.family),
            name: catalogue.name(&os.name),
            version: catalogue.name(&os.version),
            arch: catalogue.name(&os.arch),
            kernel: catalogue.name(&os.kernel),
        }),
        offers: report
            .updates
            .iter()
            .filter(|update| is_offered(update))
            .map(|update| {
                let Sighting { first_seen, missing_since } = sighting(before, &update.id, now);
                let (cves, severity) = advice.of(os, update);
                let place = catalogue.intern(Update {
                    id: update.id.as_str().into(),
                    classification: update.classification,
                    severity,
                    packages: update.packages.iter().map(|package| package.name.as_str().into()).collect(),
                    cves,
                    published: update.published.and_then(published),
                });
                let installed = installed_source(update).map(|version| catalogue.name(version));
                Offer {
                    update: place,
                    held: update.held,
                    downloaded: update.downloaded,
                    requires_restart: update.requires_restart,
                    interrupts_service: update.interrupts_service,
                    first_seen,
                    missing_since,
                    installed,
                }
            })
            .collect(),
        // What a device has installed does not say of itself what it was.
        removable: report
            .removable
            .iter()
            .map(|installed| {
                catalogue.intern(Update {
                    id: installed.id.as_str().into(),
                    classification: Classification::Unclassified,
                    severity: Severity::Unknown,
                    packages: installed.packages.iter().map(|package| package.name.as_str().into()).collect(),
                    cves: vec![],
                    published: None,
                })
            })
            .collect(),
        truncated: report.truncated,
        restart_required: report.restart.required,
        restart: (report.restart.required == Tristate::Yes).then(|| catalogue.intern(Update::restart())),
        problems: report.problems.iter().map(|problem| problem.code).collect(),
        power: report.power,
        applications: BTreeMap::new(),
    }
}

/// Whether the device would take the update, be it that an administrator of it has put the package on hold. What its package manager
/// leaves out by itself is told and no offer: it neither makes the device lack something nor ages for others, and other versions and
/// packages of the same source may be offered beside it.
pub fn is_offered(update: &report::Update) -> bool {
    !update.held || update.held_reason == HeldReason::Hold
}

/// Since when a device offers an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// This very update.
    pub first_seen: Timestamp,
    /// Any version of the same package, without a report in between in which none was offered.
    pub missing_since: Timestamp,
}

/// Of the update `id`, which is offered `now`, on a device whose status had `before`. Whole seconds, as they are written.
pub fn sighting(before: &[UpdateCompliance], id: &str, now: Timestamp) -> Sighting {
    let package = package_of(id);
    let first_seen = before.iter().find(|update| update.id == id).and_then(|update| update.first_seen);
    let first_seen = first_seen.unwrap_or_else(|| whole_seconds(now));
    let versions = before.iter().filter(|update| package_of(&update.id) == package);
    let missing_since = versions.filter_map(|update| update.missing_since.or(update.first_seen)).min();
    Sighting { first_seen, missing_since: missing_since.map_or(first_seen, |missing| missing.min(first_seen)) }
}

/// A vendor's date, if it can be one: 1970 stands for none in more than one index. Whole seconds, as it is written down.
fn published(told: Timestamp) -> Option<Timestamp> {
    Some(whole_seconds(told)).filter(|date| *date > Timestamp::UNIX_EPOCH)
}

/// Times in status are whole seconds, as everywhere in Kubernetes: what is read back equals what was written.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A claim, as the planner sees it.
pub fn claim(current: &api::device_inventory::CurrentInstall) -> Claim {
    Claim {
        sequence: current.sequence,
        policy: current.policy.as_str().into(),
        updates: names(&current.updates),
        verb: current.verb,
        granted: current.phase == api::device_inventory::InstallPhase::Installing,
        not_after: current.not_after,
        limit: SignedDuration::from_secs(i64::from(current.limit_seconds)),
        restart: SignedDuration::from_secs(i64::from(current.restart_seconds)),
        expected: SignedDuration::from_secs(i64::from(current.expected_seconds.unwrap_or(current.limit_seconds))),
    }
}

/// The report of a device, if its accepted key signed it for this very device and it does not count backwards.
pub fn believed_report(object: &api::DeviceInventory) -> Result<&Report, NoReport> {
    let refused = |why: String| NoReport::Refused(why);
    let accepted = object.spec.accepted_key.as_deref().ok_or(NoReport::KeyNotAccepted)?;
    let inventory = object.status.as_ref().and_then(|status| status.inventory.as_ref()).ok_or(NoReport::None)?;
    let duplicate = inventory.duplicate_identity.as_ref();
    if let Some(found) = duplicate.filter(|found| found.counts(Some(accepted), object.spec.duplicate_resolved)) {
        return Err(NoReport::DuplicateIdentity(found.words()));
    }
    let report = inventory.report.as_ref().ok_or(NoReport::None)?;
    let (Some(signature), Some(key)) = (&inventory.signature, &inventory.public_key) else {
        return Err(refused("status.inventory.report is not signed".to_owned()));
    };
    if key.fingerprint().as_str() != accepted {
        return Err(NoReport::KeyNotAccepted);
    }
    let envelope = Envelope::reassemble(report, signature.clone())
        .map_err(|error| refused(format!("status.inventory.report: {error}")))?;
    envelope.open(key).map_err(|error| refused(format!("status.inventory.report: {error}")))?;
    let namespace = object.namespace().unwrap_or_default();
    if report.device.namespace != namespace || report.device.name != object.name_any() {
        return Err(refused(format!("status.inventory.report is of another device, {}", report.device)));
    }
    let compliance = object.status.as_ref().and_then(|status| status.compliance.as_ref());
    let seen = compliance.map_or(0, |compliance| compliance.report_counter);
    if report.counter < seen {
        return Err(refused(format!(
            "status.inventory.report went back from counter {seen} to {}: an old report is being replayed, or the machine was restored from a backup",
            report.counter
        )));
    }
    compliance.map_or(Ok(()), |compliance| knows_of(report, compliance))?;
    Ok(report)
}

/// Whether the record knows of all orders that the device has had, and the device of the epoch.
fn knows_of(report: &Report, compliance: &api::device_inventory::Compliance) -> Result<(), NoReport> {
    let told = report.last_sequence.unwrap_or_default();
    let settings = compliance.settings.as_ref().and_then(|settings| settings.settings.peek());
    let epoch = settings.map_or(0, |settings| settings.epoch);
    if told.epoch < epoch {
        return Err(NoReport::BeforeEpoch { epoch });
    }
    let known = compliance.sequence;
    // A record that was made anew takes over what the device's first report says.
    if compliance.report_counter > 0 && told > known.max(Sequence::start_of(epoch)) {
        return Err(NoReport::AheadOfRecord { told, known });
    }
    Ok(())
}

/// `1h30m` and the like: the schema allows nothing else.
pub fn duration(field: &str, text: &str) -> Result<SignedDuration, Invalid> {
    let invalid = || Invalid(format!("{field}: `{text}` is not a duration such as 4h or 1h30m"));
    if text.is_empty() {
        return Err(invalid());
    }
    let span: Span = text.parse().map_err(|_| invalid())?;
    SignedDuration::try_from(span).map_err(|_| invalid())
}

/// As [`duration`], with days of 24 hours before the hours.
fn optional_duration(field: &str, text: Option<&str>) -> Result<Option<SignedDuration>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let Some((days, rest)) = text.split_once('d') else { return duration(field, text).map(Some) };
    let days: i64 =
        days.parse().map_err(|_| Invalid(format!("{field}: `{text}` is not a duration such as 7d, 36h or 1d12h")))?;
    let rest = if rest.is_empty() { SignedDuration::ZERO } else { duration(field, rest)? };
    Ok(Some(SignedDuration::from_hours(days.saturating_mul(24)).saturating_add(rest)))
}

fn settings(spec: &api::PatchPolicySpec) -> Result<Settings, Invalid> {
    let install_limit = duration("spec.installLimit", &spec.install_limit)?;
    // They go into the order as they are: nothing is decided by them.
    safeguards(spec, install_limit)?;
    spec.site_cache.as_ref().map(site_cache).transpose()?;
    Ok(Settings {
        mode: match spec.mode {
            api::patch_policy::Mode::Audit => Mode::Audit,
            api::patch_policy::Mode::DownloadOnly => Mode::DownloadOnly,
            api::patch_policy::Mode::Install => Mode::Install,
            api::patch_policy::Mode::InstallImmediately => Mode::InstallImmediately,
        },
        filters: spec.filters.as_ref().map(filters).unwrap_or_default(),
        suspended: spec.suspend,
        windows: names(&spec.windows),
        rollout: rollout(&spec.rollout)?,
        dependencies: spec.dependencies,
        restart: spec.restart.as_ref().map(restart).transpose()?.unwrap_or_default(),
        install_limit,
        retry_limit: spec.retries.limit,
        retry_backoff: duration("spec.retries.backoff", &spec.retries.backoff)?,
        catch_up: spec.catch_up.as_ref().map(catch_up).transpose()?,
        settle: duration("spec.settle", &spec.settle)?,
        blast_limit: amount("spec.blastLimit", &spec.blast_limit, 0)?,
        confirm: spec.confirm.as_deref().map(Into::into),
        deadlines: policy::deadlines(&spec.deadlines)?,
        applications: applications::wanted(&spec.applications)?,
    })
}

fn catch_up(spec: &api::patch_policy::CatchUp) -> Result<CatchUp, Invalid> {
    Ok(CatchUp {
        after: optional_duration("spec.catchUp.after", Some(&spec.after))?.unwrap_or_default(),
        require_mains: spec.require_mains,
    })
}

fn restart(spec: &api::patch_policy::Restart) -> Result<Restart, Invalid> {
    Ok(Restart {
        when: spec.when,
        within: duration("spec.restart.within", &spec.within)?,
        warning: duration("spec.restart.warning", &spec.warning)?,
        message: spec.message.clone().unwrap_or_default(),
        limit: spec.limit,
        services: spec.services,
    })
}

fn filters(spec: &api::patch_policy::Filters) -> Filters {
    Filters {
        skip_restart: spec.skip_restart,
        classifications: spec.classifications.clone(),
        exclude_packages: spec.exclude_packages.iter().cloned().map(Glob).collect(),
    }
}

fn rollout(spec: &api::patch_policy::Rollout) -> Result<Rollout, Invalid> {
    Ok(Rollout {
        max_concurrent: amount("spec.rollout.maxConcurrent", &spec.max_concurrent, 1)?,
        rings: spec.rings.iter().enumerate().map(|(index, one)| ring(index, one)).collect::<Result<_, _>>()?,
        failure_budget: spec
            .failure_budget
            .as_ref()
            .map(|budget| amount("spec.rollout.failureBudget", budget, 0))
            .transpose()?,
        resumed: spec.resumed,
    })
}

fn ring(index: usize, spec: &api::patch_policy::Ring) -> Result<Ring, Invalid> {
    use api::patch_policy::WhenEmpty as When;
    let field = |name: &str| format!("spec.rollout.rings[{index}]{name}");
    Ok(Ring {
        name: spec.name.as_str().into(),
        members: match (&spec.selector, spec.percent) {
            (Some(labels), None) => RingMembers::Selector(selector(labels)),
            (None, Some(percent)) => RingMembers::Percent(percent),
            (Some(_), Some(_)) | (None, None) => {
                return Err(Invalid(format!("{}: give either selector or percent", field(""))));
            }
        },
        soak: optional_duration(&field(".soak"), Some(&spec.soak))?.unwrap_or_default(),
        min_successes: spec.min_successes.unwrap_or(1),
        min_success_percent: spec.min_success_percent.unwrap_or(100),
        when_empty: match spec.when_empty {
            None | Some(When::Wait) => WhenEmpty::Wait,
            Some(When::Promote) => WhenEmpty::Promote,
        },
    })
}

fn disruption(spec: &api::PatchPolicySpec) -> Result<Option<Disruption>, Invalid> {
    let Some(stated) = &spec.disruption else { return Ok(None) };
    let limit = amount("spec.disruption.maxUnavailable", &stated.max_unavailable, 1)?;
    Ok(Some(disruption_of(stated, limit)))
}

/// What is kept to where the limit cannot be read: one device of a service at a time.
fn strictest(spec: &api::PatchPolicySpec) -> Option<Disruption> {
    spec.disruption.as_ref().map(|stated| disruption_of(stated, Amount::Count(1)))
}

fn disruption_of(spec: &api::patch_policy::Disruption, max_unavailable: Amount) -> Disruption {
    Disruption {
        label: spec.group_by.clone(),
        max_unavailable,
        order: spec.order.as_ref().map(|order| TurnOrder { label: order.label.clone(), values: order.values.clone() }),
        healthy_peers: spec.healthy_peers == Some(true),
    }
}

fn amount(field: &str, value: &IntOrString, least: u32) -> Result<Amount, Invalid> {
    let invalid = |shown: String| {
        Invalid(format!("{field}: `{shown}` is neither a number from {least} nor a percentage from {least}% to 100%"))
    };
    match value {
        IntOrString::Int(count) => match u32::try_from(*count) {
            Ok(count) if count >= least => Ok(Amount::Count(count)),
            _ => Err(invalid(count.to_string())),
        },
        IntOrString::String(text) => match text.strip_suffix('%').and_then(|digits| digits.parse().ok()) {
            Some(percent) if (least..=100).contains(&percent) => Ok(Amount::Percent(percent)),
            _ => Err(invalid(text.clone())),
        },
    }
}

fn calendar(spec: &api::MaintenanceWindowSpec) -> Result<Calendar, Invalid> {
    let zone = match spec.time_zone.as_str() {
        "Device" => Zone::Device,
        name => Zone::Fixed(time_zone("spec.timeZone", name)?),
    };
    let schedules = spec
        .schedules
        .iter()
        .enumerate()
        .map(|(index, schedule)| read_schedule(&format!("spec.schedules[{index}]"), schedule))
        .collect::<Result<_, _>>()?;
    let length = duration("spec.duration", &spec.duration)?;
    let cutoff = spec.cutoff.as_ref().map_or(Ok(SignedDuration::ZERO), |text| duration("spec.cutoff", text))?;
    if length <= SignedDuration::ZERO || cutoff >= length {
        return Err(Invalid("spec.cutoff must be shorter than spec.duration, and that longer than nothing".to_owned()));
    }
    let exclusions = spec
        .exclusions
        .iter()
        .map(|exclusion| Exclusion { name: exclusion.name.as_str().into(), from: exclusion.from, to: exclusion.to })
        .collect();
    Ok(Calendar { zone, schedules, duration: length, cutoff, exclusions })
}

fn read_schedule(field: &str, schedule: &api::maintenance_window::Schedule) -> Result<Schedule, Invalid> {
    let api::maintenance_window::Schedule { monthly, weekly, daily, once, cron } = schedule;
    match (monthly, weekly, daily, once, cron) {
        (Some(monthly), None, None, None, None) => Ok(Schedule::Monthly {
            week: match monthly.week {
                api::maintenance_window::Week::First => 1,
                api::maintenance_window::Week::Second => 2,
                api::maintenance_window::Week::Third => 3,
                api::maintenance_window::Week::Fourth => 4,
                api::maintenance_window::Week::Last => -1,
            },
            weekday: weekday(monthly.weekday),
            offset_days: monthly.offset_days.unwrap_or_default(),
            at: time(&format!("{field}.monthly.at"), &monthly.at)?,
        }),
        (None, Some(weekly), None, None, None) => Ok(Schedule::Weekly {
            weekdays: weekly.weekdays.iter().copied().map(weekday).collect(),
            at: time(&format!("{field}.weekly.at"), &weekly.at)?,
        }),
        (None, None, Some(daily), None, None) => {
            Ok(Schedule::Daily { at: time(&format!("{field}.daily.at"), &daily.at)? })
        }
        (None, None, None, Some(once), None) => Ok(Schedule::Once {
            at: once.at.parse::<DateTime>().map_err(|_| {
                Invalid(format!("{field}.once.at: `{}` is not a date and time such as 2026-12-24T22:00", once.at))
            })?,
        }),
        (None, None, None, None, Some(cron)) => {
            let read = Cron::parse(&cron.expression);
            read.map(Schedule::Cron).map_err(|Invalid(why)| Invalid(format!("{field}.cron.expression: {why}")))
        }
        _ => Err(Invalid(format!("{field}: give exactly one of monthly, weekly, daily, once and cron"))),
    }
}

fn time(field: &str, text: &str) -> Result<Time, Invalid> {
    text.parse().map_err(|_| Invalid(format!("{field}: `{text}` is not a time of day such as 22:00")))
}

fn time_zone(field: &str, name: &str) -> Result<TimeZone, Invalid> {
    TimeZone::get(name).map_err(|_| {
        Invalid(format!("{field}: `{name}` is not an IANA time zone that this version of Patchwarden knows"))
    })
}

fn weekday(day: api::maintenance_window::Weekday) -> jiff::civil::Weekday {
    use api::maintenance_window::Weekday as Day;
    match day {
        Day::Monday => jiff::civil::Weekday::Monday,
        Day::Tuesday => jiff::civil::Weekday::Tuesday,
        Day::Wednesday => jiff::civil::Weekday::Wednesday,
        Day::Thursday => jiff::civil::Weekday::Thursday,
        Day::Friday => jiff::civil::Weekday::Friday,
        Day::Saturday => jiff::civil::Weekday::Saturday,
        Day::Sunday => jiff::civil::Weekday::Sunday,
    }
}

fn selector(selector: &api::Selector) -> Selector {
    use api::selector::Operator;
    let values = |requirement: &api::selector::Requirement| {
        requirement.values.iter().map(|value| value.0.clone()).collect::<Vec<_>>()
    };
    let equals = selector.match_labels.iter().map(|(key, value)| Requirement::In(key.clone(), vec![value.0.clone()]));
    let expressions = selector.match_expressions.iter().map(|requirement| {
        let key = requirement.key.clone();
        match requirement.operator {
            Operator::In => Requirement::In(key, values(requirement)),
            Operator::NotIn => Requirement::NotIn(key, values(requirement)),
            Operator::Exists => Requirement::Exists(key),
            Operator::DoesNotExist => Requirement::DoesNotExist(key),
        }
    });
    Selector(equals.chain(expressions).collect())
}

/// No result came of a server that was to install it, and it is silent: the update may be what has killed it. A workstation may have
/// been switched off; and whoever is there again has not died of it.
fn cause(reason: Option<ResultReason>, is_silent: bool, place: impl FnOnce() -> UpdateId) -> Cause {
    match (reason, is_silent) {
        (Some(ResultReason::CheckFailed), _) => Cause::Check(place()),
        (Some(ResultReason::RolledBack), _) => Cause::RolledBack,
        (Some(reason), _) if reason.may_pass() => Cause::Passing,
        (Some(reason), _) if reason.is_of_the_update() => Cause::Update,
        (None, true) => Cause::Update,
        (Some(_), _) | (None, false) => Cause::Other,
    }
}

fn device_type(device_type: api::device_inventory::DeviceType) -> DeviceType {
    match device_type {
        api::device_inventory::DeviceType::Server => DeviceType::Server,
        api::device_inventory::DeviceType::Workstation => DeviceType::Workstation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patchwarden_protocol::key::PrivateKey;
    use serde_json::json;

    fn device_with_report(key: &PrivateKey, signer: &PrivateKey, name: &str, counter: u64) -> api::DeviceInventory {
        let report = json!({
            "device": {"namespace": "acme", "name": name}, "counter": counter, "agentVersion": "0", "bootId": "b",
            "bootTime": "2026-01-01T00:00:00Z",
            "os": {"family": "linux", "name": "debian", "version": "12", "arch": "amd64", "kernel": "6"},
            "restart": {"required": "No"}, "updates": [], "truncated": false,
            "counts": {"updates": 0, "security": 0, "packages": 1}, "softwareDigest": "sha256:0",
        });
        let document: Report = serde_json::from_value(report.clone()).unwrap();
        let envelope = Envelope::seal(&document, signer).unwrap();
        serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory",
            "metadata": {"name": "web-1", "namespace": "acme"},
            "spec": {"acceptedKey": key.public().fingerprint()},
            "status": {
                "inventory": {"report": report, "signature": envelope.signatures[0], "publicKey": key.public(), "online": true},
                "compliance": {"counts": {"missing": 0, "pending": 0, "installing": 0, "failed": 0, "awaitingApproval": 0, "ignored": 0, "held": 0}, "reportCounter": 5}
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_failure_is_the_updates_where_it_is_its_own_fault_or_a_server_is_not_heard_of_any_more() {
        let place = Catalogue::default().intern(Update::restart());
        let server = |reason| cause(reason, true, || place);
        for passing in
            [ResultReason::DownloadFailed, ResultReason::DiskFull, ResultReason::Locked, ResultReason::SiteCacheDown]
        {
            assert_eq!(server(Some(passing)), Cause::Passing, "{passing:?}");
        }
        for own in [ResultReason::PackageManagerFailed, ResultReason::NotInstalled] {
            assert_eq!(server(Some(own)), Cause::Update, "{own:?}");
        }
        assert_eq!(server(Some(ResultReason::CheckFailed)), Cause::Check(place));
        assert_eq!(server(Some(ResultReason::RolledBack)), Cause::RolledBack);
        assert_eq!(server(Some(ResultReason::HookFailed)), Cause::Other);
        assert_eq!(server(None), Cause::Update);
        assert_eq!(cause(None, false, || place), Cause::Other);
    }

    #[test]
    fn what_stands_for_no_date_is_none() {
        let read = |text: &str| published(text.parse().unwrap()).map(|date| date.to_string());
        assert_eq!(read("2026-01-05T00:00:00.9Z").as_deref(), Some("2026-01-05T00:00:00Z"));
        for none in ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.5Z", "1969-12-31T23:00:00Z"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn a_key_that_several_machines_use_is_not_believed_until_a_person_has_dealt_with_it() {
        let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
        let since = Timestamp::from_second(1_800_000_000).unwrap();
        let believed = |key_of_finding: &PrivateKey, resolved: Option<Timestamp>| {
            let mut object = device_with_report(&key, &key, "web-1", 5);
            object.spec.duplicate_resolved = resolved;
            let inventory = object.status.as_mut().unwrap().inventory.as_mut().unwrap();
            inventory.duplicate_identity = Some(api::device_inventory::DuplicateIdentity {
                since,
                key: key_of_finding.public().fingerprint().into(),
                machines: vec!["web-1 at 192.0.2.1".into(), "web-1 at 192.0.2.2".into()],
            });
            believed_report(&object).map(|_| ())
        };
        for resolved in [None, Some(Timestamp::UNIX_EPOCH)] {
            let Err(NoReport::DuplicateIdentity(words)) = believed(&key, resolved) else { panic!("{resolved:?}") };
            let expected = "web-1 at 192.0.2.1, and web-1 at 192.0.2.2";
            assert!(
                words.contains(expected) && words.contains("spec.duplicateResolved: 2027-01-15T08:00:00Z"),
                "{words}"
            );
        }
        assert_eq!(believed(&key, Some(since)), Ok(()));
        assert_eq!(believed(&other, None), Ok(()), "the device has a new key");
    }

    #[test]
    fn what_a_restore_has_hidden_is_seen_by_the_orders_that_a_device_has_had() {
        use patchwarden_protocol::delegation::Delegation;
        use patchwarden_protocol::settings::{OsUpdater, Settings, SignedSettings};
        let key = PrivateKey::generate();
        let at = Timestamp::UNIX_EPOCH;
        let told = |epoch: u32| {
            let device = patchwarden_protocol::report::DeviceRef { namespace: "acme".into(), name: "web-1".into() };
            let (device_key, policy, os_updater) = (key.public().fingerprint(), String::new(), OsUpdater::Leave);
            let (applications, issued_at, not_after) = (vec![], at, at);
            let settings =
                Settings { device, device_key, policy, os_updater, applications, epoch, issued_at, not_after };
            let delegation = Delegation { order_key: key.public(), not_before: at, not_after: at };
            let delegation = Envelope::seal(&delegation, &key).unwrap();
            SignedSettings { settings: Envelope::seal(&settings, &key).unwrap(), delegation }
        };
        let sequence = |(epoch, number)| Sequence { epoch, number };
        let believed = |last: (u32, u32), known: (u32, u32), epoch: Option<u32>, seen: u64| {
            let mut object = device_with_report(&key, &key, "web-1", 5);
            let status = object.status.as_mut().unwrap();
            let inventory = status.inventory.as_mut().unwrap();
            let mut report = inventory.report.take().unwrap();
            report.last_sequence = Some(sequence(last));
            inventory.signature = Some(Envelope::seal(&report, &key).unwrap().signatures[0].clone());
            inventory.report = Some(report);
            let compliance = status.compliance.as_mut().unwrap();
            compliance.sequence = sequence(known);
            compliance.report_counter = seen;
            compliance.settings = epoch.map(told);
            believed_report(&object).map(|_| ())
        };
        assert_eq!(believed((0, 4), (0, 4), None, 5), Ok(()));
        assert_eq!(believed((0, 3), (0, 4), None, 5), Ok(()), "an order that never reached it");
        let (told, known) = (sequence((0, 4)), sequence((0, 3)));
        assert_eq!(believed((0, 4), (0, 3), None, 5), Err(NoReport::AheadOfRecord { told, known }));
        assert_eq!(believed((0, 4), (0, 0), None, 0), Ok(()), "the record was made anew");
        // The epoch was raised, the device follows, and gets orders in it.
        assert_eq!(believed((0, 4), (0, 3), Some(2), 5), Err(NoReport::BeforeEpoch { epoch: 2 }));
        assert_eq!(believed((2, 0), (0, 3), Some(2), 5), Ok(()));
        assert_eq!(believed((2, 1), (2, 1), Some(2), 5), Ok(()));
        let (told, known) = (sequence((2, 1)), sequence((0, 3)));
        assert_eq!(
            believed((2, 1), (0, 3), Some(2), 5),
            Err(NoReport::AheadOfRecord { told, known }),
            "set back again"
        );
        assert_eq!(believed((2, 1), (0, 3), None, 5), Err(NoReport::AheadOfRecord { told, known }));
    }

    #[test]
    fn what_apt_leaves_out_by_itself_is_no_offer_and_what_is_on_hold_is() {
        let of = |held, held_reason| {
            is_offered(&report::Update {
                held,
                held_reason,
                ..crate::gateway::testing::update("pkg:deb/debian/bash@5.3")
            })
        };
        assert!(of(false, HeldReason::Hold) && of(true, HeldReason::Hold));
        for reason in [HeldReason::Pinned, HeldReason::Phased, HeldReason::Unauthenticated] {
            assert!(!of(true, reason), "{reason:?}");
        }
    }

    #[test]
    fn a_report_is_believed_only_from_the_accepted_key_for_this_device_and_not_from_the_past() {
        let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
        assert!(believed_report(&device_with_report(&key, &key, "web-1", 5)).is_ok());
        let forged = believed_report(&device_with_report(&key, &other, "web-1", 5)).unwrap_err();
        assert!(matches!(&forged, NoReport::Refused(why) if why.contains("no valid signature")), "{forged:?}");
        let of_another = believed_report(&device_with_report(&key, &key, "web-2", 5)).unwrap_err();
        assert!(matches!(&of_another, NoReport::Refused(why) if why.contains("acme/web-2")), "{of_another:?}");
        let replayed = believed_report(&device_with_report(&key, &key, "web-1", 4)).unwrap_err();
        assert!(matches!(&replayed, NoReport::Refused(why) if why.contains("from counter 5 to 4")), "{replayed:?}");
        let mut altered = device_with_report(&key, &key, "web-1", 5);
        let report = altered.status.as_mut().unwrap().inventory.as_mut().unwrap().report.as_mut().unwrap();
        report.counts.packages = 2;
        assert!(matches!(believed_report(&altered), Err(NoReport::Refused(_))));
        let mut unaccepted = device_with_report(&key, &key, "web-1", 5);
        unaccepted.spec.accepted_key = Some(other.public().fingerprint().to_string());
        assert_eq!(believed_report(&unaccepted).unwrap_err(), NoReport::KeyNotAccepted);
    }

    #[test]
    fn a_cron_expression_that_cannot_be_used_names_its_field() {
        let with = |schedules: serde_json::Value| {
            let spec = json!({"timeZone": "Europe/Berlin", "duration": "1h", "schedules": schedules});
            window(&api::MaintenanceWindow::new("nights", serde_json::from_value(spec).unwrap())).calendar
        };
        let cron = |expression: &str| json!([{"daily": {"at": "22:00"}}, {"cron": {"expression": expression}}]);
        let calendar = with(cron("30 2 * * 1-5")).unwrap();
        assert!(matches!(&calendar.schedules[1], Schedule::Cron(cron) if cron.to_string() == "30 2 * * 1-5"));
        assert_eq!(
            with(cron("0 0 31 2 *")).unwrap_err().0,
            "spec.schedules[1].cron.expression: no month of those that it names has a day 31"
        );
        assert_eq!(
            with(json!([{"cron": {"expression": "0 0 * * 1"}, "daily": {"at": "22:00"}}])).unwrap_err().0,
            "spec.schedules[0]: give exactly one of monthly, weekly, daily, once and cron"
        );
    }

    fn a_policy(spec: serde_json::Value) -> Policy {
        policy(&api::PatchPolicy::new("servers", serde_json::from_value(spec).unwrap()))
    }

    #[test]
    fn a_policy_that_says_nothing_of_it_settles_in_ten_minutes() {
        let settle = |spec| a_policy(spec).settings.unwrap().settle;
        assert_eq!(settle(json!({})), crate::plan::DEFAULT_SETTLE);
        assert_eq!(settle(json!({"settle": "0m"})), SignedDuration::ZERO);
        assert_eq!(settle(json!({"settle": "24h"})), crate::plan::MAX_SETTLE);
    }

    #[test]
    fn the_digests_of_a_policy_change_with_what_decides_on_which_devices_updates_are_installed() {
        let specs = |spec: serde_json::Value| a_policy(spec).specs;
        let plain = specs(json!({}));
        for neither in [
            json!({"suspend": true, "osUpdater": "Disable"}),
            json!({"hooks": {"before": [{"name": "x"}]}, "checks": [{"name": "a", "tcp": {"port": 1}}]}),
            json!({"confirm": "00112233445566ff", "blastLimit": 3, "settle": "1h"}),
            json!({"rollout": {"maxConcurrent": 5, "resumed": "2026-01-01T00:00:00Z"}, "retries": {"limit": 0}}),
            // What holds anyway.
            json!({"mode": "Audit", "installLimit": "30m"}),
        ] {
            assert_eq!(specs(neither.clone()), plain, "{neither}");
        }
        for selects in [
            json!({"priority": 1}),
            json!({"types": ["Server"]}),
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            json!({"approvalGroups": ["g"]}),
            json!({"excludeApprovalGroups": ["g"]}),
            json!({"exclude": ["d"]}),
        ] {
            let other = specs(selects.clone());
            assert!(other.selection != plain.selection && other.rest == plain.rest, "{selects}");
        }
        for decides in
            [json!({"mode": "Install", "windows": ["w"]}), json!({"windows": ["w"]}), json!({"installLimit": "1h"})]
        {
            let other = specs(decides.clone());
            assert!(other.selection == plain.selection && other.rest != plain.rest, "{decides}");
        }
    }

    #[test]
    fn what_a_policy_says_of_its_services_counts_although_something_cannot_be_read() {
        let broken = |disruption| a_policy(json!({"installLimit": "soon", "disruption": disruption}));
        let of = |limit| {
            let order = Some(TurnOrder { label: "role".to_owned(), values: vec!["replica".to_owned()] });
            Some(Disruption { label: "app".to_owned(), max_unavailable: limit, order, healthy_peers: true })
        };
        let said = |limit| {
            let order = json!({"label": "role", "values": ["replica"]});
            json!({"groupBy": "app", "maxUnavailable": limit, "order": order, "healthyPeers": true})
        };
        let policy = broken(said(json!("20%")));
        assert!(policy.settings.is_err());
        assert_eq!(policy.disruption, of(Amount::Percent(20)));
        // One at a time is the least that there is.
        let policy = a_policy(json!({"disruption": said(json!("many"))}));
        assert_eq!(policy.disruption, of(Amount::Count(1)));
        let why = "spec.disruption.maxUnavailable: `many` is neither a number from 1 nor a percentage from 1% to 100%";
        assert_eq!(policy.settings.unwrap_err().0, why);
        assert_eq!(a_policy(json!({"installLimit": "soon"})).disruption, None);
    }

    #[test]
    fn a_tenth_of_the_devices_may_become_eligible_at_once_where_nothing_is_said() {
        let settings = |spec| a_policy(spec).settings.unwrap();
        assert_eq!(settings(json!({})).blast_limit, Amount::Percent(10));
        assert_eq!(settings(json!({"blastLimit": 0})).blast_limit, Amount::Count(0));
        assert_eq!(settings(json!({"confirm": "00112233445566ff"})).confirm.as_deref(), Some("00112233445566ff"));
    }

    #[test]
    fn workstations_catch_up_on_mains_power_unless_the_policy_says_otherwise() {
        let catch_up = |spec| a_policy(spec).settings.unwrap().catch_up;
        assert_eq!(catch_up(json!({})), None);
        let after = SignedDuration::from_hours(7 * 24);
        let week = catch_up(json!({"catchUp": {"after": "7d"}}));
        assert_eq!(week, Some(CatchUp { after, require_mains: true }));
        let anyhow = catch_up(json!({"catchUp": {"after": "7d", "requireMains": false}}));
        assert_eq!(anyhow, Some(CatchUp { after, require_mains: false }));
    }

    #[test]
    fn durations_are_hours_and_minutes() {
        assert_eq!(duration("f", "1h30m").unwrap(), SignedDuration::from_mins(90));
        assert_eq!(duration("f", "4h").unwrap(), SignedDuration::from_hours(4));
        assert_eq!(duration("f", "90m").unwrap(), SignedDuration::from_mins(90));
        assert_eq!(duration("f", "").unwrap_err().0, "f: `` is not a duration such as 4h or 1h30m");
    }

    #[test]
    fn a_zone_that_is_unknown_here_names_its_field() {
        assert_eq!(
            time_zone("spec.timeZone", "Mars/Olympus").unwrap_err().0,
            "spec.timeZone: `Mars/Olympus` is not an IANA time zone that this version of Patchwarden knows"
        );
    }
}
