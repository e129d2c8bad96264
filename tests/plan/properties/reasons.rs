//! Every reason is met by the fleets, and documented.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use patchwarden_plan::outcome::{FailedExpression, Overlap};
use patchwarden_plan::{Blocked, Plan, may_act, may_restart, plan};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::config;
use crate::fleet::fleet;

/// Properties of which no case is interesting would hold of anything.
#[test]
fn the_generated_fleets_meet_every_reason() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 5_000, ..config() },
        TestRng::deterministic_rng(RngAlgorithm::XorShift),
    );
    let seen: Mutex<BTreeMap<&str, u32>> = Mutex::default();
    runner
        .run(&fleet(), |(snapshot, now)| {
            let mut seen = seen.lock().expect("not poisoned");
            for device in plan(&snapshot, now).devices {
                *seen.entry("install").or_default() += u32::from(device.install.is_some());
                for update in device.updates {
                    *seen.entry(update.blocked.as_deref().map_or("nothing", Blocked::code)).or_default() += 1;
                }
            }
            for what in to_be_mended(&plan(&snapshot, now)) {
                *seen.entry(what).or_default() += 1;
            }
            for device in &snapshot.devices {
                let answer = may_act(&snapshot, &device.name, now);
                *seen.entry(answer.map_or_else(|blocked| blocked.code(), |()| "granted")).or_default() += 1;
                let restart = may_restart(&snapshot, &device.name, now);
                *seen.entry(restart.map_or_else(|blocked| blocked.code(), |()| "restart")).or_default() += 1;
            }
            Ok(())
        })
        .expect("nothing is asserted");
    let seen = seen.into_inner().expect("not poisoned");
    let rare: BTreeSet<&str> =
        REASONS.into_iter().filter(|code| seen.get(code).is_none_or(|times| *times < 5)).collect();
    assert!(rare.is_empty(), "hardly ever or never met: {rare:?} of {seen:#?}");
    assert!(seen["install"] > 200, "{} installs are too few to say anything", seen["install"]);
}

/// What policies, groups and windows say of themselves beside what blocks updates.
fn to_be_mended(answer: &Plan) -> Vec<&'static str> {
    let windows = answer.windows.iter().filter(|window| window.never_opens).map(|_| "window never opens");
    let policies = answer.policies.iter().flat_map(|policy| {
        let overlap = policy.overlap.as_ref().map(|overlap| match overlap {
            Overlap::SamePriority { .. } => "same priority",
            Overlap::HigherPriority { .. } => "higher priority",
        });
        let never_opens = policy.never_opens.then_some("policy never opens");
        let unprovable = policy.unprovable.as_ref().map(|_| "ring too small");
        let missing = (!policy.missing_groups.is_empty()).then_some("missing group");
        let unknown = (!policy.unknown_devices.first.is_empty()).then_some("unknown excluded device");
        let unlabelled = policy.unlabelled.then_some("no server has the label");
        let not_left_out = (!policy.missing_excluded_groups.is_empty()).then_some("missing excluded group");
        let too_short = policy.too_short.as_ref().map(|_| "own window too short");
        [overlap, never_opens, unprovable, too_short, missing, not_left_out, unknown, unlabelled].into_iter().flatten()
    });
    let groups = answer.groups.iter().filter_map(|group| match group.failed.as_ref()?.expression {
        FailedExpression::Members => Some("members fail"),
        FailedExpression::Rule { .. } => Some("rule fails"),
    });
    let members = answer.groups.iter().filter(|group| !group.unknown_devices.first.is_empty());
    windows.chain(policies).chain(groups).chain(members.map(|_| "unknown member")).collect()
}

/// What a person reads of a reason is where a person looks for it.
#[test]
fn every_reason_is_documented() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/decisions.md");
    let text = std::fs::read_to_string(path).expect("the document can be read");
    let reasons = REASONS.into_iter().filter(|code| code.starts_with(char::is_uppercase));
    for code in reasons.chain(["UnknownDevice", "NoReport", "TooManyParents"]) {
        assert!(text.contains(&format!("`{code}`")), "{code} is not in docs/decisions.md");
    }
}

/// All but `UnknownDevice`, and what else is counted.
const REASONS: [&str; 73] = [
    "install",
    "nothing",
    "NoGroup",
    "MembershipUnknown",
    "GroupInvalid",
    "ParentNotFound",
    "ParentsInCircle",
    "VulnerabilitiesUnknown",
    "ExpressionFailed",
    "AwaitingApproval",
    "LeftAlone",
    "Aging",
    "Ignored",
    "Waived",
    "ToBeRemoved",
    "Held",
    "CheckFailed",
    "NoPolicy",
    "PolicyInvalid",
    "WindowNotFound",
    "WindowInvalid",
    "WindowTooShort",
    "OwnWindowTooShort",
    "PolicyAudit",
    "PolicyDownloadOnly",
    "Filtered",
    "NeverRestarts",
    "PolicySuspended",
    "RolloutPaused",
    "BlastLimit",
    "DeviceSuspended",
    "DeviceRetired",
    "NoTimeZone",
    "DeviceStale",
    "DeviceOffline",
    "ClockOff",
    "DeviceProblem",
    "RolledBack",
    "RetriesExhausted",
    "UpdateStopped",
    "InstallRunning",
    "OthersFirst",
    "Settling",
    "RetryBackoff",
    "RingWaits",
    "WindowClosed",
    "Frozen",
    "FreezeAhead",
    "WindowEnding",
    "OnBattery",
    "OnHold",
    "PeersFirst",
    "ServiceAtLimit",
    "ConcurrencyReached",
    "NotClaimed",
    "OrderExpired",
    "PolicyChanged",
    "NotOffered",
    "Stays",
    "RestartTooLate",
    "restart",
    "window never opens",
    "policy never opens",
    "missing group",
    "missing excluded group",
    "unknown excluded device",
    "no server has the label",
    "unknown member",
    "same priority",
    "higher priority",
    "members fail",
    "ring too small",
    "rule fails",
];
