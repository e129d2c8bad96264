//! The life of a claimed install, between its claim and its recorded result. Pure.
//!
//! ```text
//!            claim               grant                signed result
//!   (none) ---------> Claimed ---------> Installing ---------------> last[0]
//!                        |                    |
//!                        |                    `-- notAfter + limit + restarts and way back: no result (outcome absent)
//!                        |-- notAfter is over: likewise
//!                        |-- denied, then the device's signed `Withdrawn`
//!                        `-- the Job was never made, or is gone, before any grant: released
//! ```
//!
//! A grant is given only by writing it into the claim that it is for, so a claim without one is a promise that the device
//! has not acted and cannot: it may be released.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use patchwarden_protocol::key::PublicKey;
use patchwarden_protocol::order::Verb;
use patchwarden_protocol::report::{Classification, Tristate};
use patchwarden_protocol::result::{ActionResult, InstallResult, Outcome, ResultReason, Step, StepResult};

use crate::api::DeviceInventory;
use crate::api::device_inventory::{
    Compliance, CurrentInstall, DeployedUpdate, Failure, InstallPhase, Inventory, PastInstall,
};
use crate::convert::{self, is_offered};
use crate::plan::package::package_of;

/// How many past installs status keeps; all of them are in the store.
const KEPT_IN_STATUS: usize = 3;

/// Of how many updates status keeps that they were installed ...
const INSTALLED_IN_STATUS: usize = 32;
/// ... and how many bytes their ids may take, so that a device stays small whatever its updates are called.
const INSTALLED_BYTES_IN_STATUS: usize = 2048;

/// Of how many updates of the newest install, and of each before it, status keeps since when they had been known ...
const DEPLOYED_IN_STATUS: [usize; KEPT_IN_STATUS] = [16, 8, 8];
/// ... and how many bytes the ids of all these may take.
const DEPLOYED_BYTES_IN_STATUS: usize = 2048;

/// Of how many hooks and checks of the newest install status keeps what came of them.
const STEPS_IN_STATUS: usize = 8;

/// Characters of an action's, a step's or a failure's message that status keeps; all of it is in the store.
const MESSAGE_IN_STATUS: usize = 200;

/// How many bytes those of all failures may take, and those of what came of all updates of the last installs: the latest keep theirs.
const MESSAGES_BYTES_IN_STATUS: usize = 1024;

/// Whether the Job of a claim is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobPresence {
    /// It is, or is about to be: this controller has just created it.
    Present,
    /// It is being deleted.
    Terminating,
    /// It is not.
    Absent,
}

/// What became of the claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// There is none.
    NoClaim,
    /// It holds the device.
    Holds,
    /// The device's signed result was recorded; with all that it installed, of which status keeps less.
    Recorded(Box<PastInstall>),
    /// Its time is over and no result came.
    TimedOut(Box<PastInstall>),
    /// It was given up before any grant.
    Released(Box<CurrentInstall>),
    /// A result lies there that is not believed: the claim holds the device.
    ResultRefused(String),
}

/// Moves a claim on as far as results and time allow.
pub fn settle(device: &DeviceInventory, job: JobPresence, compliance: &mut Compliance, now: Timestamp) -> Settled {
    let Some(current) = compliance.current.clone() else {
        return Settled::NoClaim;
    };
    let inventory = device.status.as_ref().and_then(|status| status.inventory.as_ref());
    let refused = match inventory.map(|inventory| result_for(device, inventory, &current)) {
        Some(Ok(Some(result))) => {
            let past = record(compliance, &current, &result, inventory, now);
            return Settled::Recorded(Box::new(past));
        }
        Some(Err(why)) => Some(why),
        Some(Ok(None)) | None => None,
    };
    if now >= convert::claim(&current).expires() {
        let past = time_out(compliance, &current, now);
        return Settled::TimedOut(Box::new(past));
    }
    if job == JobPresence::Absent && current.phase == InstallPhase::Claimed {
        compliance.current = None;
        return Settled::Released(Box::new(current));
    }
    refused.map_or(Settled::Holds, Settled::ResultRefused)
}

/// The result for `current`, if the device's accepted key signed it. Another install's result is none.
fn result_for(
    device: &DeviceInventory,
    inventory: &Inventory,
    current: &CurrentInstall,
) -> Result<Option<InstallResult>, String> {
    let Some(envelope) = &inventory.result else {
        return Ok(None);
    };
    let key: &PublicKey = match &inventory.public_key {
        Some(key) if Some(key.fingerprint().as_str()) == device.spec.accepted_key.as_deref() => key,
        _ => return Err("status.inventory.result: the device's key is not the accepted one".to_owned()),
    };
    let result = envelope.open(key).map_err(|error| format!("status.inventory.result: {error}"))?;
    let of_this_device = result.device_key == key.fingerprint()
        && result.device.name == device.name_any()
        && Some(&result.device.namespace) == device.namespace().as_ref();
    if !of_this_device {
        return Err(format!("status.inventory.result is of another device, {}", result.device));
    }
    Ok((result.order_digest == current.order_digest).then_some(result))
}

fn record(
    compliance: &mut Compliance,
    current: &CurrentInstall,
    result: &InstallResult,
    inventory: Option<&Inventory>,
    now: Timestamp,
) -> PastInstall {
    let still = |update: &str| {
        let report = inventory.and_then(|inventory| inventory.report.as_ref())?;
        let mut offers = report.updates.iter().filter(|offered| offered.id == update && is_offered(offered));
        let (contradicts, message) = match current.verb {
            Verb::Install => (offers.next().is_some(), "reported as installed, and still offered by the same device"),
            Verb::Uninstall => (
                report.removable.iter().any(|installed| installed.id == update),
                "reported as taken back, and still installed on the same device",
            ),
            Verb::Download => (
                offers.any(|offered| !offered.downloaded),
                "reported as downloaded, and not there by the same device's report",
            ),
            Verb::Restart => {
                (report.restart.required == Tristate::Yes, "restarted, and the same device still waits for a restart")
            }
        };
        contradicts.then_some(message)
    };
    for update in &current.updates {
        let action = result.actions.iter().find(|action| action.update == *update);
        if action.is_some_and(|action| action.done) {
            compliance.failures.retain(|failure| failure.update != *update);
            match still(update) {
                // The report came before the result: a device that contradicts itself gets no second order at once.
                Some(message) => {
                    forget_installed(compliance, current.verb, update);
                    let reason = reason_of_attempt(current.verb, Some(ResultReason::NotInstalled));
                    note_failure(compliance, update, true, reason, message, now);
                }
                None if current.verb == Verb::Install => {
                    supersede(compliance, update);
                    note_installed(compliance, update);
                }
                None if current.verb == Verb::Uninstall => {
                    compliance.installed = installed(compliance);
                    compliance.installed.retain(|id| id != update);
                }
                None => {}
            }
            continue;
        }
        let reason = action.and_then(|action| action.reason).or(result.reason);
        let message = action.map_or(&result.message, |action| &action.message);
        match result.outcome {
            // Nothing is wrong with the update; but what was withdrawn is not ordered again at once.
            Outcome::Withdrawn => note_failure(compliance, update, false, reason, message, now),
            Outcome::Succeeded | Outcome::Failed | Outcome::Refused | Outcome::Expired => {
                if counts_as_attempt(reason) {
                    forget_installed(compliance, current.verb, update);
                }
                if current.verb == Verb::Install && reason == Some(ResultReason::CheckFailed) {
                    supersede(compliance, update);
                }
                let (counts, reason) = (counts_as_attempt(reason), reason_of_attempt(current.verb, reason));
                note_failure(compliance, update, counts, reason, message, now);
            }
        }
    }
    // Checks succeeded, and so does the device with whatever was installed before.
    if result.outcome == Outcome::Succeeded && current.verb == Verb::Install {
        compliance.failures.retain(|failure| failure.reason != Some(ResultReason::CheckFailed));
    }
    let past = PastInstall {
        sequence: current.sequence,
        job: current.job.clone(),
        outcome: Some(result.outcome),
        reason: result.reason,
        message: bounded(&result.message),
        updates: current.updates.iter().filter_map(|update| bounded_action(result, update)).collect(),
        finished_at: now,
        seconds: seconds(current, result, now),
        kinds: kinds(current),
        deployed: deployed(current, result),
        steps: steps(result),
    };
    finish(compliance, past.clone());
    past
}

/// How long the device was at it, by its own clock. Nothing where it did nothing, and nothing that cannot be: longer than
/// since the claim, or than the limit; its clock was set meanwhile.
fn seconds(current: &CurrentInstall, result: &InstallResult, now: Timestamp) -> Option<u32> {
    match result.outcome {
        Outcome::Succeeded | Outcome::Failed => {}
        Outcome::Refused | Outcome::Withdrawn | Outcome::Expired => return None,
    }
    let skew = SignedDuration::from_secs(patchwarden_protocol::MAX_CLOCK_SKEW_SECONDS);
    let limit = SignedDuration::from_secs(i64::from(current.limit_seconds));
    let longest = current.since.duration_until(now).min(limit).saturating_add(skew);
    let took = result.started_at.duration_until(result.finished_at);
    u32::try_from(took.as_secs()).ok().filter(|_| took <= longest && !took.is_negative())
}

/// Since when what was installed had been known.
fn deployed(current: &CurrentInstall, result: &InstallResult) -> Vec<DeployedUpdate> {
    let is_done = |id: &str| {
        result.actions.iter().any(|action| action.update == id && action.verb == Verb::Install && action.done)
    };
    let known = current.updates.iter().zip(&current.known).filter(|(id, _)| is_done(id));
    known
        .map(|(id, known)| DeployedUpdate { id: id.clone(), first_seen: known.first_seen, published: known.published })
        .collect()
}

/// The kinds of its updates, each once.
fn kinds(current: &CurrentInstall) -> Vec<Classification> {
    current.known.iter().map(|known| known.classification).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What the device says of an update that was ordered, no longer than status allows.
fn bounded_action(result: &InstallResult, update: &str) -> Option<ActionResult> {
    let action = result.actions.iter().find(|action| action.update == update)?;
    Some(ActionResult { message: action.message.chars().take(MESSAGE_IN_STATUS).collect(), ..action.clone() })
}

/// The hooks and checks that failed, and a rollback with what came of it; then, as far as there is room, services that did not come back.
fn steps(result: &InstallResult) -> Vec<StepResult> {
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    let is_told = |one: &&StepResult| !one.ok || matches!(one.step, Step::Rollback | Step::CheckRolledBack);
    let is_of_service = |one: &&StepResult| matches!(one.step, Step::ServiceRestart | Step::ServiceRolledBack);
    let (services, others): (Vec<_>, Vec<_>) = result.steps.iter().filter(is_told).partition(is_of_service);
    let told = others.into_iter().chain(services).take(STEPS_IN_STATUS);
    told.map(|one| StepResult {
        name: cut(&one.name, 63),
        message: cut(&one.message, MESSAGE_IN_STATUS),
        ..one.clone()
    })
    .collect()
}

fn time_out(compliance: &mut Compliance, current: &CurrentInstall, now: Timestamp) -> PastInstall {
    let message = "no result came before the install's time was over".to_owned();
    let began = current.phase == InstallPhase::Installing;
    for update in &current.updates {
        if began {
            forget_installed(compliance, current.verb, update);
        }
        note_failure(compliance, update, began, reason_of_attempt(current.verb, None), &message, now);
    }
    let past = PastInstall {
        sequence: current.sequence,
        job: current.job.clone(),
        outcome: None,
        reason: None,
        message,
        updates: Vec::new(),
        finished_at: now,
        seconds: None,
        kinds: kinds(current),
        deployed: Vec::new(),
        steps: Vec::new(),
    };
    finish(compliance, past.clone());
    past
}

fn finish(compliance: &mut Compliance, past: PastInstall) {
    compliance.current = None;
    for older in &mut compliance.last {
        older.steps.clear();
    }
    compliance.last.insert(0, past);
    compliance.last.truncate(KEPT_IN_STATUS);
    let mut room = DEPLOYED_BYTES_IN_STATUS;
    for (past, most) in compliance.last.iter_mut().zip(DEPLOYED_IN_STATUS) {
        let fits = |one: &&DeployedUpdate| {
            let left = room.checked_sub(one.id.len());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let kept = past.deployed.iter().take(most).take_while(fits).count();
        past.deployed.truncate(kept);
    }
    shorten_messages(compliance);
}

/// Messages are for people, and nothing goes by them: they are cut so that a device stays small on which much has failed.
fn shorten_messages(compliance: &mut Compliance) {
    let mut failures: Vec<&mut Failure> = compliance.failures.iter_mut().collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.last));
    shorten(failures.into_iter().map(|failure| &mut failure.message));
    let actions = compliance.last.iter_mut().flat_map(|past| &mut past.updates);
    shorten(actions.map(|action| &mut action.message));
    for past in compliance.last.iter_mut().skip(1) {
        past.message = past.message.chars().take(MESSAGE_IN_STATUS).collect();
    }
}

/// Of messages in the order of their worth: each cut to what status keeps of it and to what the ones before it have left.
fn shorten<'m>(messages: impl Iterator<Item = &'m mut String>) {
    let mut room = MESSAGES_BYTES_IN_STATUS;
    for message in messages {
        let mut kept: String = message.chars().take(MESSAGE_IN_STATUS).collect();
        kept.truncate(kept.floor_char_boundary(room));
        room -= kept.len();
        *message = kept;
    }
}

/// Updates that orders have installed, the latest first. A status of before they were written down tells by its last installs; what then
/// became of each is told by the latest of these.
pub fn installed(compliance: &Compliance) -> Vec<String> {
    if !compliance.installed.is_empty() {
        return compliance.installed.clone();
    }
    let (mut decided, mut found) = (BTreeSet::new(), Vec::new());
    for action in compliance.last.iter().flat_map(|past| &past.updates) {
        let tells = match action.verb {
            Verb::Install => action.done || counts_as_attempt(action.reason),
            Verb::Uninstall => action.done,
            Verb::Download | Verb::Restart => false,
        };
        if tells && decided.insert(action.update.as_str()) && action.verb == Verb::Install && action.done {
            found.push(action.update.clone());
        }
    }
    found
}

/// What a check found after another version of the package is over where this one has taken its place.
fn supersede(compliance: &mut Compliance, update: &str) {
    let is_over = |failure: &Failure| {
        failure.reason == Some(ResultReason::CheckFailed)
            && failure.update != update
            && package_of(&failure.update) == package_of(update)
    };
    compliance.failures.retain(|failure| !is_over(failure));
}

/// What has just failed on the device does not count as installed on it, also where it was so before.
fn forget_installed(compliance: &mut Compliance, verb: Verb, update: &str) {
    if verb == Verb::Install {
        compliance.installed = installed(compliance);
        compliance.installed.retain(|id| id != update);
    }
}

/// Of more than status keeps the oldest are forgotten.
fn note_installed(compliance: &mut Compliance, update: &str) {
    compliance.installed = installed(compliance);
    let installed = &mut compliance.installed;
    installed.retain(|id| id != update);
    installed.insert(0, update.to_owned());
    let mut bytes = 0;
    let fits = |id: &&String| {
        bytes += id.len();
        bytes <= INSTALLED_BYTES_IN_STATUS
    };
    let kept = installed.iter().take(INSTALLED_IN_STATUS).take_while(fits).count();
    installed.truncate(kept);
}

/// Whether the update itself was tried, rather than an order that had become out of date.
fn counts_as_attempt(reason: Option<ResultReason>) -> bool {
    match reason {
        Some(
            ResultReason::ReportMismatch
            | ResultReason::Superseded
            | ResultReason::Expired
            | ResultReason::TooEarly
            | ResultReason::Replayed
            | ResultReason::JournalCorrupt
            | ResultReason::Denied
            | ResultReason::RestartPostponed
            | ResultReason::OtherFailed
            | ResultReason::Unhealthy
            | ResultReason::SiteCacheDown
            | ResultReason::OtherDevice
            | ResultReason::BadSignature
            | ResultReason::Unreadable
            | ResultReason::LimitedByDevice,
        ) => false,
        Some(
            ResultReason::WouldDoMore
            | ResultReason::DiskFull
            | ResultReason::DownloadFailed
            | ResultReason::Locked
            | ResultReason::PackageManagerFailed
            | ResultReason::NotInstalled
            | ResultReason::TimedOut
            | ResultReason::RestartFailed
            | ResultReason::RestartImpossible
            | ResultReason::HookFailed
            | ResultReason::CheckFailed
            | ResultReason::RolledBack,
        )
        | None => true,
    }
}

/// Why an attempt failed. A download changes nothing on the device, so that its failure says nothing of the update.
fn reason_of_attempt(verb: Verb, reason: Option<ResultReason>) -> Option<ResultReason> {
    match verb {
        Verb::Download if counts_as_attempt(reason) => Some(ResultReason::DownloadFailed),
        Verb::Download | Verb::Install | Verb::Uninstall | Verb::Restart => reason,
    }
}

fn note_failure(
    compliance: &mut Compliance,
    update: &str,
    counts: bool,
    reason: Option<ResultReason>,
    message: &str,
    now: Timestamp,
) {
    let passes = |reason: Option<ResultReason>| reason.is_some_and(ResultReason::may_pass);
    let new = Failure {
        update: update.to_owned(),
        attempts: u32::from(counts),
        last: now,
        tried: None,
        reason,
        message: bounded(message),
    };
    let Some(failure) = compliance.failures.iter_mut().find(|failure| failure.update == update) else {
        compliance.failures.push(new);
        return;
    };
    let was_tried = failure.attempts > 0 && !passes(failure.reason);
    let is_tried = counts && !passes(reason);
    *failure = match (was_tried, is_tried) {
        (true, true) => Failure { attempts: failure.attempts.saturating_add(1), ..new },
        // Why an attempt failed, and when, is not forgotten for an order that was none.
        (true, false) => Failure { last: now, tried: failure.tried.or(Some(failure.last)), ..failure.clone() },
        (false, false) if counts => Failure { attempts: failure.attempts.saturating_add(1), ..new },
        (false, false) if failure.attempts > 0 => Failure { last: now, ..failure.clone() },
        // What could not even be tried has used up nothing.
        (false, _) => new,
    };
}

/// The CRD allows 1,000 characters.
fn bounded(text: &str) -> String {
    text.chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::device_inventory::KnownUpdate;
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::order::Sequence;
    use patchwarden_protocol::report::{DeviceRef, HeldReason, Report, Update};
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn claimed(phase: InstallPhase) -> Compliance {
        Compliance {
            current: Some(CurrentInstall {
                sequence: Sequence { epoch: 0, number: 3 },
                job: "web-1-0-3".into(),
                order_digest: "sha256:order".into(),
                leader: "controller-1/3".into(),
                policy: "servers".into(),
                verb: Verb::Install,
                phase,
                since: at("2026-01-10T22:00:00Z"),
                not_after: at("2026-01-10T22:15:00Z"),
                limit_seconds: 1800,
                restart_seconds: 0,
                expected_seconds: None,
                known: vec![],
                updates: vec!["a".into(), "b".into()],
                grant: None,
            }),
            ..Compliance::default()
        }
    }

    fn result(key: &PrivateKey, outcome: Outcome, reason: Option<ResultReason>) -> InstallResult {
        let action = |update: &str, installed| ActionResult {
            update: update.into(),
            verb: Verb::Install,
            done: installed,
            reason: if installed { None } else { reason },
            message: String::new(),
        };
        InstallResult {
            device: DeviceRef { namespace: "acme".into(), name: "web-1".into() },
            device_key: key.public().fingerprint(),
            sequence: Sequence { epoch: 0, number: 3 },
            order_digest: "sha256:order".into(),
            outcome,
            reason,
            message: "why".into(),
            actions: vec![action("a", true), action("b", outcome == Outcome::Succeeded)],
            started_at: at("2026-01-10T22:00:10Z"),
            finished_at: at("2026-01-10T22:01:00Z"),
            restart_required: Tristate::No,
            restarts: 0,
            restart_postponed: String::new(),
            steps: vec![],
            phases: vec![],
        }
    }

    fn device(key: &PrivateKey, signed: Option<(&InstallResult, &PrivateKey)>) -> DeviceInventory {
        let result = signed.map(|(result, signer)| Envelope::seal(result, signer).unwrap());
        serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory",
            "metadata": {"name": "web-1", "namespace": "acme"},
            "spec": {"acceptedKey": key.public().fingerprint()},
            "status": {"inventory": {"publicKey": key.public(), "online": true, "result": result}}
        }))
        .unwrap()
    }

    const DURING: &str = "2026-01-10T22:05:00Z";

    #[test]
    fn a_signed_result_ends_the_claim_and_counts_what_failed() {
        let key = PrivateKey::generate();
        let mut compliance = claimed(InstallPhase::Installing);
        let result = result(&key, Outcome::Failed, Some(ResultReason::PackageManagerFailed));
        let settled = settle(&device(&key, Some((&result, &key))), JobPresence::Present, &mut compliance, at(DURING));
        assert!(matches!(settled, Settled::Recorded(_)));
        assert_eq!(compliance.current, None);
        assert_eq!(compliance.last[0].outcome, Some(Outcome::Failed));
        let failed: Vec<_> = compliance.failures.iter().map(|f| (f.update.as_str(), f.attempts)).collect();
        assert_eq!(failed, [("b", 1)]);
    }

    #[test]
    fn what_a_device_leaves_out_of_an_update_does_not_contradict_that_the_rest_is_installed() {
        let key = PrivateKey::generate();
        let failures = |held_reason| {
            let mut compliance = claimed(InstallPhase::Installing);
            let result = result(&key, Outcome::Succeeded, None);
            let mut device = device(&key, Some((&result, &key)));
            let left_out = Update { held: true, held_reason, ..crate::gateway::testing::update("a") };
            let report = Report { updates: vec![left_out], ..crate::gateway::testing::report("acme", "web-1") };
            device.status.as_mut().unwrap().inventory.as_mut().unwrap().report = Some(report);
            settle(&device, JobPresence::Present, &mut compliance, at(DURING));
            compliance.failures.iter().filter(|failure| failure.update == "a").count()
        };
        assert_eq!((failures(HeldReason::Pinned), failures(HeldReason::Hold)), (0, 1));
    }

    #[test]
    fn a_result_tells_how_long_it_took_unless_that_cannot_be() {
        let key = PrivateKey::generate();
        let took = |outcome, from: &str, to: &str| {
            let mut compliance = claimed(InstallPhase::Installing);
            let current = compliance.current.as_mut().unwrap();
            let known = |classification| KnownUpdate { classification, first_seen: at(DURING), published: None };
            current.known = vec![known(Classification::Security), known(Classification::Security)];
            let result = InstallResult { started_at: at(from), finished_at: at(to), ..result(&key, outcome, None) };
            settle(&device(&key, Some((&result, &key))), JobPresence::Present, &mut compliance, at(DURING));
            assert_eq!(compliance.last[0].kinds, [Classification::Security]);
            compliance.last[0].seconds
        };
        let from = "2026-01-10T22:00:10Z";
        assert_eq!(took(Outcome::Succeeded, from, "2026-01-10T22:01:00Z"), Some(50));
        assert_eq!(took(Outcome::Failed, from, "2026-01-10T22:01:00Z"), Some(50));
        assert_eq!(took(Outcome::Refused, from, "2026-01-10T22:01:00Z"), None);
        assert_eq!(took(Outcome::Succeeded, from, "2026-01-10T22:00:09Z"), None);
        // It was claimed five minutes ago, and clocks may be off by two.
        assert_eq!(took(Outcome::Succeeded, from, "2026-01-10T22:07:10Z"), Some(420));
        assert_eq!(took(Outcome::Succeeded, from, "2026-01-10T22:07:11Z"), None);
    }

    // covers CC-4
    #[test]
    fn it_is_told_since_when_what_was_installed_had_been_known_of_the_last_three_installs() {
        let key = PrivateKey::generate();
        let mut compliance = claimed(InstallPhase::Installing);
        let mut many = result(&key, Outcome::Succeeded, None);
        let action = many.actions[0].clone();
        many.actions =
            (0..20).map(|n| ActionResult { update: format!("u{n}"), done: n != 1, ..action.clone() }).collect();
        let known = KnownUpdate {
            classification: Classification::Security,
            first_seen: at("2026-01-05T00:00:00Z"),
            published: Some(at("2026-01-03T00:00:00Z")),
        };
        let current = compliance.current.as_mut().unwrap();
        current.updates = (0..20).map(|n| format!("u{n}")).collect();
        current.known = vec![known; 20];
        let claim = current.clone();
        let device = device(&key, Some((&many, &key)));
        let settled = settle(&device, JobPresence::Present, &mut compliance, at(DURING));
        // All but the one that was not done are told; status keeps the first of them.
        let Settled::Recorded(past) = settled else { panic!("{settled:?}") };
        assert_eq!((past.deployed.len(), compliance.last[0].deployed.len()), (19, 16));
        assert!(past.deployed.iter().all(|one| one.id != "u1"));
        let first = &compliance.last[0].deployed[0];
        assert_eq!((first.id.as_str(), first.first_seen), ("u0", at("2026-01-05T00:00:00Z")));
        assert_eq!(first.published, Some(at("2026-01-03T00:00:00Z")));
        let told = |compliance: &Compliance| compliance.last.iter().map(|past| past.deployed.len()).collect::<Vec<_>>();
        for expected in [&[16, 8][..], &[16, 8, 8], &[16, 8, 8]] {
            compliance.current = Some(claim.clone());
            settle(&device, JobPresence::Present, &mut compliance, at(DURING));
            assert_eq!(told(&compliance), expected);
        }
        // What is recorded is not recorded again.
        assert_eq!(settle(&device, JobPresence::Present, &mut compliance, at(DURING)), Settled::NoClaim);
        assert_eq!(told(&compliance), [16, 8, 8]);
    }

    #[test]
    fn since_when_updates_had_been_known_takes_little_room_whatever_they_are_called() {
        let past = |length: usize| PastInstall {
            sequence: Sequence { epoch: 0, number: 1 },
            job: String::new(),
            outcome: None,
            reason: None,
            message: String::new(),
            updates: Vec::new(),
            finished_at: at(DURING),
            seconds: None,
            kinds: Vec::new(),
            deployed: vec![
                DeployedUpdate {
                    id: "u".repeat(length),
                    first_seen: at(DURING),
                    published: Some(at(DURING))
                };
                40
            ],
            steps: Vec::new(),
        };
        let told = |lengths: [usize; 3]| {
            let mut compliance = Compliance::default();
            lengths.into_iter().rev().for_each(|length| finish(&mut compliance, past(length)));
            let deployed: Vec<_> = compliance.last.into_iter().map(|past| past.deployed).collect();
            let bytes = serde_json::to_string(&deployed).unwrap().len();
            (deployed.iter().map(Vec::len).collect::<Vec<_>>(), bytes)
        };
        assert_eq!(told([60, 60, 60]).0, [16, 8, 8]);
        assert_eq!(told([253, 10, 10]).0, [8, 0, 0], "the newest comes first");
        assert_eq!(told([10, 100, 10]).0, [16, 8, 8]);
        assert!(told([64, 64, 64]).1 < 4700);
    }

    #[test]
    fn a_result_that_another_key_signed_changes_nothing_and_is_named() {
        let (key, thief) = (PrivateKey::generate(), PrivateKey::generate());
        let mut compliance = claimed(InstallPhase::Installing);
        let result = result(&key, Outcome::Succeeded, None);
        let device = device(&key, Some((&result, &thief)));
        let settled = settle(&device, JobPresence::Present, &mut compliance, at(DURING));
        assert!(matches!(&settled, Settled::ResultRefused(why) if why.contains("no valid signature")), "{settled:?}");
        assert_eq!(compliance, claimed(InstallPhase::Installing));
    }

    #[test]
    fn a_result_of_an_earlier_order_does_not_end_the_claim() {
        let key = PrivateKey::generate();
        let mut compliance = claimed(InstallPhase::Installing);
        let mut earlier = result(&key, Outcome::Succeeded, None);
        earlier.order_digest = "sha256:earlier".into();
        let device = device(&key, Some((&earlier, &key)));
        assert_eq!(settle(&device, JobPresence::Present, &mut compliance, at(DURING)), Settled::Holds);
    }

    #[test]
    fn an_order_that_was_out_of_date_is_no_failure_of_its_updates() {
        let key = PrivateKey::generate();
        for (reason, attempts) in
            [(ResultReason::ReportMismatch, 0), (ResultReason::LimitedByDevice, 0), (ResultReason::WouldDoMore, 1)]
        {
            let mut compliance = claimed(InstallPhase::Claimed);
            let mut refusal = result(&key, Outcome::Refused, Some(reason));
            refusal.actions.clear();
            settle(&device(&key, Some((&refusal, &key))), JobPresence::Present, &mut compliance, at(DURING));
            assert_eq!(compliance.failures.iter().map(|f| f.attempts).collect::<Vec<_>>(), [attempts; 2], "{reason:?}");
        }
        let mut compliance = claimed(InstallPhase::Claimed);
        let mut withdrawn = result(&key, Outcome::Withdrawn, Some(ResultReason::Denied));
        withdrawn.actions.clear();
        settle(&device(&key, Some((&withdrawn, &key))), JobPresence::Present, &mut compliance, at(DURING));
        assert_eq!(compliance.failures.iter().map(|f| f.attempts).collect::<Vec<_>>(), [0, 0]);
    }

    #[test]
    fn a_result_that_breaks_the_bounds_of_status_is_recorded_within_them() {
        let key = PrivateKey::generate();
        let mut compliance = claimed(InstallPhase::Installing);
        let mut long = result(&key, Outcome::Failed, Some(ResultReason::PackageManagerFailed));
        long.message = "x".repeat(5000);
        long.actions[1].message = "y".repeat(5000);
        let other = ActionResult { update: "z".repeat(5000), ..long.actions[0].clone() };
        long.actions.extend(std::iter::repeat_n(other, 100));
        settle(&device(&key, Some((&long, &key))), JobPresence::Present, &mut compliance, at(DURING));
        let past = &compliance.last[0];
        assert_eq!((past.message.len(), past.updates.len(), past.updates[1].message.len()), (1000, 2, 200));
        assert_eq!(compliance.failures[0].message.len(), 200);
    }

    #[test]
    fn status_tells_which_hooks_and_checks_failed() {
        use patchwarden_protocol::result::Step;
        let key = PrivateKey::generate();
        let step = |step, ok| StepResult { step, name: "web".into(), ok, message: "m".repeat(500) };
        let mut compliance = claimed(InstallPhase::Installing);
        let claim = compliance.current.clone();
        let mut failed = result(&key, Outcome::Failed, Some(ResultReason::CheckFailed));
        failed.steps = vec![
            step(Step::CheckBefore, true),
            step(Step::HookBefore, true),
            step(Step::HookAfter, false),
            step(Step::CheckAfter, false),
        ];
        let device = device(&key, Some((&failed, &key)));
        settle(&device, JobPresence::Present, &mut compliance, at(DURING));
        let told: Vec<_> = compliance.last[0].steps.iter().map(|it| (it.step, it.ok, it.message.len())).collect();
        assert_eq!(told, [(Step::HookAfter, false, 200), (Step::CheckAfter, false, 200)]);
        compliance.current = claim;
        settle(&device, JobPresence::Present, &mut compliance, at(DURING));
        assert_eq!(compliance.last.iter().map(|past| past.steps.len()).collect::<Vec<_>>(), [2, 0]);
    }

    #[test]
    fn services_that_did_not_come_back_leave_room_in_status_for_what_else_failed() {
        let key = PrivateKey::generate();
        let mut compliance = claimed(InstallPhase::Installing);
        let mut failed = result(&key, Outcome::Failed, Some(ResultReason::CheckFailed));
        let step = |step, name: &str, ok| StepResult { step, name: name.into(), ok, message: String::new() };
        failed.steps = (0..9).map(|number| step(Step::ServiceRestart, &format!("s{number}"), false)).collect();
        failed.steps.extend([
            step(Step::CheckAfter, "web", false),
            step(Step::Rollback, "packages", true),
            step(Step::ServiceRolledBack, "s0", true),
            step(Step::ServiceRolledBack, "s1", false),
            step(Step::CheckRolledBack, "web", true),
        ]);
        settle(&device(&key, Some((&failed, &key))), JobPresence::Present, &mut compliance, at(DURING));
        let told: Vec<_> = compliance.last[0].steps.iter().map(|it| (it.step, it.name.as_str())).collect();
        let first = [(Step::CheckAfter, "web"), (Step::Rollback, "packages"), (Step::CheckRolledBack, "web")];
        assert_eq!(told[..3], first);
        let services = ["s0", "s1", "s2", "s3", "s4"].map(|name| (Step::ServiceRestart, name));
        assert_eq!(told[3..], services);
    }

    #[test]
    fn an_install_that_succeeds_forgets_what_checks_found_earlier() {
        let key = PrivateKey::generate();
        for (verb, left) in [(Verb::Install, 1), (Verb::Download, 2)] {
            let mut compliance = claimed(InstallPhase::Installing);
            compliance.current.as_mut().unwrap().verb = verb;
            for (update, reason) in [("x", ResultReason::CheckFailed), ("y", ResultReason::NotInstalled)] {
                note_failure(&mut compliance, update, true, Some(reason), "", at(DURING));
            }
            let result = result(&key, Outcome::Succeeded, None);
            settle(&device(&key, Some((&result, &key))), JobPresence::Present, &mut compliance, at(DURING));
            let others = |it: &&Failure| ["x", "y"].contains(&it.update.as_str());
            assert_eq!(compliance.failures.iter().filter(others).count(), left, "{verb:?}");
        }
    }

    #[test]
    fn a_version_that_takes_the_place_of_another_ends_what_a_check_found_after_that_and_nothing_else() {
        let key = PrivateKey::generate();
        let of = |id: &str, reason| {
            let mut compliance = claimed(InstallPhase::Installing);
            compliance.current.as_mut().unwrap().updates = vec![id.into()];
            for found in ["pkg:deb/debian/u@1", "pkg:deb/debian/v@1"] {
                note_failure(&mut compliance, found, true, Some(ResultReason::CheckFailed), "", at(DURING));
            }
            let mut told = result(&key, Outcome::Failed, reason);
            told.actions.truncate(1);
            (told.actions[0].update, told.actions[0].done) = (id.into(), reason.is_none());
            settle(&device(&key, Some((&told, &key))), JobPresence::Present, &mut compliance, at(DURING));
            compliance.failures.into_iter().map(|failure| failure.update).collect::<Vec<_>>()
        };
        let (one, two, other) = ("pkg:deb/debian/u@1", "pkg:deb/debian/u@2", "pkg:deb/debian/v@1");
        assert_eq!(of(two, Some(ResultReason::CheckFailed)), [other, two]);
        assert_eq!(of(two, Some(ResultReason::PackageManagerFailed)), [one, other, two], "it is not there");
        assert_eq!(of(two, None), [other], "another update of the order has failed");
        assert_eq!(of("KB1", Some(ResultReason::CheckFailed)), [one, other, "KB1"]);
    }

    #[test]
    fn a_device_that_was_not_healthy_or_had_no_cache_before_is_no_attempt_of_its_updates() {
        let key = PrivateKey::generate();
        for (reason, attempts) in [
            (ResultReason::Unhealthy, 0),
            (ResultReason::SiteCacheDown, 0),
            (ResultReason::DownloadFailed, 1),
            (ResultReason::HookFailed, 1),
            (ResultReason::CheckFailed, 1),
        ] {
            let mut compliance = claimed(InstallPhase::Installing);
            let result = result(&key, Outcome::Failed, Some(reason));
            settle(&device(&key, Some((&result, &key))), JobPresence::Present, &mut compliance, at(DURING));
            assert_eq!(compliance.failures.iter().map(|f| f.attempts).collect::<Vec<_>>(), [attempts], "{reason:?}");
        }
    }

    #[test]
    fn what_a_download_fails_of_says_nothing_of_the_update() {
        let key = PrivateKey::generate();
        for (reason, told, attempts) in [
            (Some(ResultReason::PackageManagerFailed), ResultReason::DownloadFailed, 1),
            (Some(ResultReason::Locked), ResultReason::DownloadFailed, 1),
            (Some(ResultReason::Denied), ResultReason::Denied, 0),
        ] {
            let mut compliance = claimed(InstallPhase::Installing);
            compliance.current.as_mut().unwrap().verb = Verb::Download;
            let result = result(&key, Outcome::Failed, reason);
            settle(&device(&key, Some((&result, &key))), JobPresence::Present, &mut compliance, at(DURING));
            let failed: Vec<_> = compliance.failures.iter().map(|it| (it.reason, it.attempts)).collect();
            assert_eq!(failed, [(Some(told), attempts)], "{reason:?}");
        }
    }

    #[test]
    fn an_order_that_was_no_attempt_does_not_hide_why_the_last_one_failed() {
        let mut compliance = Compliance::default();
        note_failure(&mut compliance, "a", true, Some(ResultReason::PackageManagerFailed), "dpkg failed", at(DURING));
        note_failure(&mut compliance, "a", false, Some(ResultReason::Denied), "not now", at("2026-01-10T23:00:00Z"));
        let failure = &compliance.failures[0];
        let told = |it: &Failure| (it.attempts, it.reason, it.message.clone(), it.last, it.tried);
        let later = at("2026-01-10T23:00:00Z");
        let first = (1, Some(ResultReason::PackageManagerFailed), "dpkg failed".to_owned(), later, Some(at(DURING)));
        assert_eq!(told(failure), first);
        // Nor for one that could not even be tried, which uses up nothing.
        note_failure(&mut compliance, "a", true, Some(ResultReason::DownloadFailed), "404", later);
        assert_eq!(told(&compliance.failures[0]), first);
        for attempts in 1..=4 {
            note_failure(&mut compliance, "b", true, Some(ResultReason::Locked), "dpkg's lock", at(DURING));
            assert_eq!(compliance.failures[1].attempts, attempts);
        }
        note_failure(&mut compliance, "b", false, Some(ResultReason::Denied), "not now", later);
        let fourth = (4, Some(ResultReason::Locked), "dpkg's lock".to_owned(), later, None);
        assert_eq!(told(&compliance.failures[1]), fourth);
        note_failure(&mut compliance, "b", true, Some(ResultReason::HookFailed), "", later);
        assert_eq!((compliance.failures[1].attempts, compliance.failures[1].tried), (1, None));
    }

    #[test]
    fn a_granted_claim_holds_until_its_time_is_over_whatever_becomes_of_its_job() {
        let key = PrivateKey::generate();
        let device = device(&key, None);
        for job in [JobPresence::Present, JobPresence::Terminating, JobPresence::Absent] {
            let mut compliance = claimed(InstallPhase::Installing);
            assert_eq!(settle(&device, job, &mut compliance, at("2026-01-10T22:46:59Z")), Settled::Holds);
            let settled = settle(&device, job, &mut compliance, at("2026-01-10T22:47:00Z"));
            assert!(matches!(settled, Settled::TimedOut(_)), "{settled:?}");
            assert_eq!(compliance.last[0].outcome, None);
            assert_eq!(compliance.failures.iter().map(|f| f.attempts).collect::<Vec<_>>(), [1, 1]);
        }
        // Restarts, and a way back, follow after the limit.
        let mut compliance = claimed(InstallPhase::Installing);
        compliance.current.as_mut().unwrap().restart_seconds = 600;
        let before = at("2026-01-10T22:56:59Z");
        assert_eq!(settle(&device, JobPresence::Present, &mut compliance, before), Settled::Holds);
        let settled = settle(&device, JobPresence::Present, &mut compliance, at("2026-01-10T22:57:00Z"));
        assert!(matches!(settled, Settled::TimedOut(_)), "{settled:?}");
    }

    #[test]
    fn a_claim_that_was_never_granted_ends_with_the_time_to_start() {
        let device = device(&PrivateKey::generate(), None);
        let mut compliance = claimed(InstallPhase::Claimed);
        let before = at("2026-01-10T22:16:59Z");
        assert_eq!(settle(&device, JobPresence::Present, &mut compliance, before), Settled::Holds);
        let settled = settle(&device, JobPresence::Present, &mut compliance, at("2026-01-10T22:17:00Z"));
        assert!(matches!(settled, Settled::TimedOut(_)), "{settled:?}");
        assert_eq!(compliance.failures.iter().map(|f| f.attempts).collect::<Vec<_>>(), [0, 0]);
    }

    #[test]
    fn a_claim_without_a_grant_is_released_when_its_job_is_gone_but_not_while_it_is_going() {
        let key = PrivateKey::generate();
        let device = device(&key, None);
        let mut compliance = claimed(InstallPhase::Claimed);
        assert_eq!(settle(&device, JobPresence::Terminating, &mut compliance, at(DURING)), Settled::Holds);
        let settled = settle(&device, JobPresence::Absent, &mut compliance, at(DURING));
        assert!(matches!(settled, Settled::Released(_)));
        assert!(compliance.failures.is_empty());
    }

    #[test]
    fn status_keeps_the_ids_of_32_updates_latest_first_and_no_more_than_fit() {
        let mut compliance = Compliance::default();
        (0..40).chain([20]).for_each(|number| note_installed(&mut compliance, &format!("KB{number:07}")));
        let newest: Vec<_> = compliance.installed.iter().map(String::as_str).take(3).collect();
        assert_eq!((compliance.installed.len(), newest.as_slice()), (32, &["KB0000020", "KB0000039", "KB0000038"][..]));
        let long = |number: u32| format!("{number:0>250}");
        (0..20).for_each(|number| note_installed(&mut compliance, &long(number)));
        assert_eq!(compliance.installed, (12..20).rev().map(long).collect::<Vec<_>>(), "8 times 250 bytes");
    }

    #[test]
    fn what_was_installed_is_known_by_the_last_installs_of_before_and_not_once_it_is_gone_or_fails() {
        let action = |update: &str, verb: Verb, done: bool| ActionResult {
            update: update.to_owned(),
            verb,
            done,
            reason: (!done).then_some(ResultReason::PackageManagerFailed),
            message: String::new(),
        };
        let past = |updates: Vec<ActionResult>| PastInstall {
            sequence: Sequence { epoch: 0, number: 1 },
            job: String::new(),
            outcome: None,
            reason: None,
            message: String::new(),
            updates,
            finished_at: at("2026-01-01T00:00:00Z"),
            seconds: None,
            kinds: Vec::new(),
            deployed: Vec::new(),
            steps: Vec::new(),
        };
        let last = vec![
            past(vec![action("back", Verb::Uninstall, true), action("failed", Verb::Install, false)]),
            past(vec![action("kept", Verb::Download, true)]),
            past(["kept", "back", "failed", "other"].map(|id| action(id, Verb::Install, true)).into()),
        ];
        let mut compliance = Compliance { last, ..Compliance::default() };
        assert_eq!(installed(&compliance), ["kept", "other"]);
        note_installed(&mut compliance, "new");
        assert_eq!(compliance.installed, ["new", "kept", "other"]);
        forget_installed(&mut compliance, Verb::Download, "new");
        forget_installed(&mut compliance, Verb::Install, "kept");
        assert_eq!(installed(&compliance), ["new", "other"]);
    }

    #[test]
    fn status_keeps_the_last_three_installs_newest_first() {
        let mut compliance = Compliance::default();
        for number in 1..=5 {
            let current = claimed(InstallPhase::Claimed).current.unwrap();
            compliance.current =
                Some(CurrentInstall { sequence: Sequence { epoch: 0, number }, not_after: at(DURING), ..current });
            let late = at(DURING) + SignedDuration::from_hours(1);
            settle(&device(&PrivateKey::generate(), None), JobPresence::Absent, &mut compliance, late);
        }
        assert_eq!(compliance.last.iter().map(|past| past.sequence.number).collect::<Vec<_>>(), [5, 4, 3]);
    }
}
