//! Whether a claimed install may begin now: the same gates, asked again at the last moment.

use jiff::Timestamp;

use super::approval;
use super::device::zone;
use super::gates::{self, Case};
use super::model::Snapshot;
use super::outcome::Blocked;
use super::select::Selection;
use super::{governors, policy::Governor};

/// Whether `device` may begin with what it holds a claim for, as of `now`; else the first reason against it.
///
/// Every gate of the plan is asked for every claimed update, with three differences. The claim itself is no obstacle,
/// and concurrency is not asked: it has its place. Nor is `DeviceOffline`: a device that asks has a session, and a
/// record that does not show it yet is older than the question (one that was last seen days ago is refused all the same).
/// And the window must have room for the limit that the claim was made with, which is what the device goes by.
pub fn may_act(snapshot: &Snapshot, device: &str, now: Timestamp) -> Result<(), Blocked> {
    let device = snapshot.devices.iter().find(|one| one.name == device).ok_or(Blocked::UnknownDevice)?;
    let claim = device.current.as_ref().filter(|claim| !claim.updates.is_empty()).ok_or(Blocked::NotClaimed)?;
    if now > claim.not_after {
        return Err(Blocked::OrderExpired { not_after: claim.not_after });
    }
    let report = device.report.as_ref().map_err(|_| Blocked::NoReport)?;

    let selection = Selection::of(snapshot);
    let group = selection.group(device).winner;
    let policy = selection.policy(device, group).winner;
    if let Some(other) = policy.filter(|policy| policy.name != claim.policy) {
        return Err(Blocked::PolicyChanged { claimed: claim.policy.clone(), governs: other.name.clone() });
    }
    let governors = governors(snapshot);
    let governor: Option<&Governor<'_>> = policy.and_then(|policy| governors.get(policy.name.as_str()));
    let opening = governor
        .and_then(|governor| governor.resolved.as_ref().ok())
        .map(|resolved| resolved.opening(zone(device), claim.limit, now));

    for id in &claim.updates {
        let mut offered = report.updates.iter().filter(|update| update.id == *id).peekable();
        if offered.peek().is_none() {
            return Err(Blocked::NotOffered { update: id.clone() });
        }
        for update in offered {
            let verdict = group.map(|group| approval::decide(group, update, now));
            let refusal = gates::refusal(&Case {
                now,
                device,
                report,
                online: true,
                claim: None,
                update,
                verdict: verdict.as_ref(),
                governor,
                opening: opening.as_ref(),
            });
            if let Some((blocked, _)) = refusal {
                return Err(blocked);
            }
        }
    }
    Ok(())
}
