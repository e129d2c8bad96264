//! What a person must do: everything that does not become right by itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt as _};
use patchwarden_protocol::order::RestartWhen;
use serde::Serialize;

use super::Objects;
use super::summary::{condition, is_active};
use crate::api::conditions as c;
use crate::api::device_inventory::Decision;
use crate::api::{DeviceInventory, PatchPolicy};
use crate::gateway::tls::RENEWABLE_FOR;
use crate::status::pending_key;

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Todo {
    /// On what: kinds and names.
    pub objects: Vec<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub action: String,
}

/// What blocks an update until a person decides to try it again, or says that the device was seen to (docs/decisions.md).
const GIVEN_UP: &[&str] = &["UpdateStopped", "RolledBack", "RetriesExhausted", CHECK_FAILED];

/// The one of these of what stays on the device.
const CHECK_FAILED: &str = "CheckFailed";

/// All of it, as of this time.
pub(super) fn of(namespace: &str, objects: &Objects, now: Timestamp) -> Vec<Todo> {
    let Objects { policies, groups, windows, devices } = objects;
    let mut all = vec![];
    let mut tied = vec![];
    for policy in policies {
        let conditions = policy.status.iter().flat_map(|status| &status.conditions);
        let overlaps = |condition: &&Condition| condition.type_ == c::OVERLAPPING && condition.status == "True";
        if conditions.filter(overlaps).any(|condition| condition.reason == c::REASON_SAME_PRIORITY) {
            tied.push(format!("PatchPolicy/{}", policy.name_any()));
        }
        all.extend(of_object(policy, policy.status.as_ref().map(|status| status.conditions.as_slice())));
    }
    for group in groups {
        all.extend(of_object(group, group.status.as_ref().map(|status| status.conditions.as_slice())));
    }
    for window in windows {
        all.extend(of_object(window, window.status.as_ref().map(|status| status.conditions.as_slice())));
    }
    if !tied.is_empty() {
        let what = format!(
            "{}: they select the same devices, and only their names decide which has them",
            c::REASON_SAME_PRIORITY
        );
        let action = "read the messages of their conditions Overlapping, then give them different spec.priority";
        all.push(Todo { objects: tied, what, action: action.to_owned() });
    }
    let mut gathered = Gathered::default();
    for device in devices.iter().filter(|device| is_active(device)) {
        of_device(namespace, device, policies, &mut all, &mut gathered);
        if has_lost_certificate(device, now) {
            let object = format!("DeviceInventory/{}", device.name_any());
            gathered.by_reason.entry("CertificateEnded").or_default().push(object);
        }
    }
    all.extend(gathered.told(namespace));
    all
}

/// Whether a device's certificate ended so long ago that it cannot renew it.
fn has_lost_certificate(device: &DeviceInventory, now: Timestamp) -> bool {
    let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
    let until = inventory.filter(|inventory| !inventory.online).and_then(|inventory| inventory.certificate_until);
    until.is_some_and(|until| now.duration_since(until) >= RENEWABLE_FOR)
}

/// What the conditions of an object say that a person must do.
fn of_object<K: Resource<DynamicType = ()>>(
    object: &K,
    conditions: Option<&[Condition]>,
) -> impl Iterator<Item = Todo> {
    let told = |type_: &str| {
        let mut conditions = conditions.into_iter().flatten();
        let condition = conditions.find(|condition| condition.type_ == type_ && condition.status == "True")?;
        Some(Todo {
            objects: vec![format!("{}/{}", K::kind(&()), object.name_any())],
            what: format!("{}: {}", condition.reason, condition.message),
            action: stalled_action(&condition.reason).to_owned(),
        })
    };
    [c::STALLED, c::NAMES_UNKNOWN].map(told).into_iter().flatten()
}

/// What to do about an object that waits for a person, or names what is not there, for this reason.
pub fn stalled_action(reason: &str) -> &'static str {
    match reason {
        c::REASON_BLAST_LIMIT => "look at what would change, then set spec.confirm as the message says",
        c::REASON_NEVER_OPENS => "give a window another schedule, or name or keep another one",
        c::REASON_RING_TOO_SMALL => "give the ring more devices, or change it as the message says",
        c::REASON_WINDOW_TOO_SHORT => "give the window a longer duration, or the policy a lower spec.installLimit",
        c::REASON_CLOCK_OFF => SET_CLOCK,
        c::REASON_NO_TIME_ZONE => SET_TIME_ZONE,
        c::REASON_EXPRESSION_FAILED => "correct the expression that the message names",
        c::REASON_DEVICE_NOT_FOUND => "correct the name in its spec, or enrol the device",
        c::REASON_LABEL_NOT_FOUND => "do as the message says",
        c::REASON_ROLLOUT_PAUSED => "find out why devices fail, then set spec.rollout.resumed to now",
        c::REASON_KEY_PENDING => {
            "compare the key with `patchwarden-agent status` on the machine, then put it in spec.acceptedKey"
        }
        c::REASON_RECORD_SET_BACK => RAISE_EPOCH,
        c::REASON_DUPLICATE_IDENTITY => DUPLICATE_IDENTITY,
        c::REASON_REPORT_REFUSED | c::REASON_RESULT_REFUSED => NOT_BELIEVED,
        _ => "correct its spec",
    }
}

const RAISE_EPOCH: &str = "after a restore: kubectl patchwarden raise-epoch";
const DUPLICATE_IDENTITY: &str = "read the message of their condition DuplicateIdentity";
const SET_CLOCK: &str = "set their clocks, by NTP at best";
const SET_TIME_ZONE: &str = "set their spec.timeZone";
const NOT_BELIEVED: &str = "read the message of their condition Ready";

/// What many devices have in common is told once.
#[derive(Default)]
struct Gathered {
    by_reason: BTreeMap<&'static str, Vec<String>>,
    problems: BTreeMap<String, Vec<String>>,
    awaiting: BTreeMap<String, Vec<String>>,
    /// By the update, and whether it stays.
    given_up: BTreeMap<(String, bool), Vec<String>>,
}

fn of_device(
    namespace: &str,
    device: &DeviceInventory,
    policies: &[PatchPolicy],
    all: &mut Vec<Todo>,
    gathered: &mut Gathered,
) {
    let (name, status) = (device.name_any(), device.status.as_ref());
    let object = format!("DeviceInventory/{name}");
    let inventory = status.and_then(|status| status.inventory.as_ref());
    if let Some(key) = pending_key(device) {
        all.push(Todo {
            objects: vec![object.clone()],
            what: format!("a key waits to be accepted: {key}"),
            action: format!(
                "compare it with `patchwarden-agent status` on the machine, then: kubectl patch devinv -n {namespace} {name} --type=merge \
                 -p '{{\"spec\":{{\"acceptedKey\":\"{key}\"}}}}'"
            ),
        });
    }
    let not_ready = condition(device, c::READY).filter(|ready| ready.status == "False");
    for (reason, known) in [
        (c::REASON_REPORT_REFUSED, "ReportRefused"),
        (c::REASON_RESULT_REFUSED, "ResultRefused"),
        (c::REASON_RECORD_SET_BACK, "RecordSetBack"),
        (c::REASON_DUPLICATE_IDENTITY, "DuplicateIdentity"),
        (c::REASON_CLOCK_OFF, "ClockOff"),
        (c::REASON_NO_TIME_ZONE, "NoTimeZone"),
    ] {
        if not_ready.is_some_and(|ready| ready.reason == reason) {
            gathered.by_reason.entry(known).or_default().push(object.clone());
        }
    }
    let Some(compliance) = status.and_then(|status| status.compliance.as_ref()) else { return };
    let report = inventory.and_then(|inventory| inventory.report.as_ref());
    let has_report = report.is_some();
    let problems = || report.iter().flat_map(|report| &report.problems);
    for problem in problems() {
        let what = format!("{:?}: {}", problem.code, problem.message);
        gathered.problems.entry(what).or_default().push(object.clone());
    }
    if has_report && compliance.policy.is_none() {
        gathered.by_reason.entry("NoPolicy").or_default().push(object.clone());
    }
    if has_report && compliance.approval_group.is_none() {
        gathered.by_reason.entry("NoGroup").or_default().push(object.clone());
    }
    let compliant = condition(device, c::COMPLIANT).map(|compliant| compliant.reason.as_str());
    if compliant == Some(c::REASON_DEADLINE_MISSED) {
        gathered.by_reason.entry("DeadlineMissed").or_default().push(object.clone());
    }
    let own = policies.iter().find(|policy| policy.metadata.name == compliance.policy);
    let is_restarted =
        own.and_then(|policy| policy.spec.restart.as_ref()).is_some_and(|restart| restart.when != RestartWhen::Never);
    if compliant == Some(c::REASON_RESTART_REQUIRED) && !is_restarted {
        gathered.by_reason.entry("RestartRequired").or_default().push(object.clone());
    }
    // One that is there and has a problem does not tell what it lacks: that is told of the problem.
    let is_doubted =
        problems().any(|problem| problem.code.hides_updates()) && inventory.is_some_and(|inventory| inventory.online);
    if compliant == Some(c::REASON_UNKNOWN)
        && has_report
        && !is_doubted
        && compliance.policy.is_some()
        && compliance.approval_group.is_some()
    {
        gathered.by_reason.entry("Unknown").or_default().push(object.clone());
    }
    if condition(device, c::OS_UPDATER).is_some_and(|updater| updater.status == "False") {
        gathered.by_reason.entry("OsUpdater").or_default().push(object.clone());
    }
    for update in &compliance.updates {
        let blocked = update.blocked_by.as_deref().unwrap_or_default();
        // It stands before its words.
        let reason = blocked.split_once(':').map_or(blocked, |(reason, _)| reason);
        if update.decision == Decision::AwaitingApproval && reason != "LeftAlone" {
            let group = compliance.approval_group.clone().unwrap_or_default();
            let ids = gathered.awaiting.entry(group).or_default();
            if !ids.contains(&update.id) {
                ids.push(update.id.clone());
            }
        }
        if GIVEN_UP.contains(&reason) {
            let key = (update.id.clone(), reason == CHECK_FAILED);
            gathered.given_up.entry(key).or_default().push(object.clone());
        }
    }
}

impl Gathered {
    fn told(self, namespace: &str) -> Vec<Todo> {
        let Self { by_reason, problems, awaiting, given_up } = self;
        let mut all = vec![];
        for (what, objects) in problems {
            all.push(Todo { objects, what, action: "on the machine: patchwarden-agent doctor".to_owned() });
        }
        for (reason, objects) in by_reason {
            let (what, action) = match reason {
                "ReportRefused" => ("their reports are not believed", NOT_BELIEVED),
                "ResultRefused" => ("the results of their installs are not believed", NOT_BELIEVED),
                "RecordSetBack" => ("they have had orders of which the cluster knows nothing", RAISE_EPOCH),
                "DuplicateIdentity" => ("several machines use their key", DUPLICATE_IDENTITY),
                "CertificateEnded" => (
                    "their certificates ended more than 180 days ago, and cannot be renewed any more",
                    "on the machine: patchwarden-agent join --force, with a new join token; or set spec.lifecycle: Retired",
                ),
                "ClockOff" => ("their clocks are so far off that they take no orders", SET_CLOCK),
                "NoTimeZone" => {
                    ("windows are on their clocks, and they have no time zone: nothing is installed", SET_TIME_ZONE)
                }
                "NoPolicy" => (
                    "no PatchPolicy selects them: nothing is installed",
                    "widen spec.selector or spec.types of a PatchPolicy",
                ),
                "NoGroup" => {
                    ("no ApprovalGroup has them: nothing is approved", "add them to spec.members of an ApprovalGroup")
                }
                "DeadlineMissed" => {
                    ("a deadline is over", "kubectl patchwarden explain DEVICE says what holds them up")
                }
                "RestartRequired" => (
                    "they wait for a restart, which no policy gives them",
                    "restart them, or set spec.restart of their PatchPolicy",
                ),
                "Unknown" => {
                    ("not heard of for too long", "see whether they are on, and what patchwarden-agent says there")
                }
                _ => ("their own updater is not as their policy says", "read the message of their condition OsUpdater"),
            };
            all.push(Todo { objects, what: what.to_owned(), action: action.to_owned() });
        }
        for ((update, stays), objects) in given_up {
            let (what, first) = if stays {
                (format!("a check failed after {update}, which stays"), "see to the device")
            } else {
                (format!("{update} has failed and is not tried again"), "find out why")
            };
            let action =
                format!("{first}, then: kubectl patchwarden reprocess -n {namespace} --group GROUP '{update}'");
            all.push(Todo { objects, what, action });
        }
        for (group, ids) in awaiting.into_iter().filter(|(group, _)| !group.is_empty()) {
            let more = if ids.len() > 1 { format!(" and {} more", ids.len() - 1) } else { String::new() };
            let first = ids.first().cloned().unwrap_or_default();
            all.push(Todo {
                objects: vec![format!("ApprovalGroup/{group}")],
                what: format!("{first}{more} await approval"),
                action: format!("kubectl patchwarden approve (or decline) -n {namespace} --group {group} UPDATE"),
            });
        }
        all
    }
}
