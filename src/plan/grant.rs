//! Whether a claimed install may begin now: the same gates, asked again at the last moment.

use jiff::Timestamp;

use super::device::Examiner;
use super::model::Snapshot;
use super::outcome::Blocked;

/// Whether `device` may begin with what it holds a claim for, as of `now`; else the first reason against it.
///
/// Every gate of the plan is asked for every claimed update, with three differences. The claim itself is no obstacle,
/// and concurrency is not asked: it has its place. Nor is `DeviceOffline`: a device that asks has a session, and a
/// record that does not show it yet is older than the question (one that was last seen days ago is refused all the same).
/// And the window must have room for the limit that the claim was made with, which is what the device goes by.
pub fn may_act(snapshot: &Snapshot, device: &str, now: Timestamp) -> Result<(), Blocked> {
    let device = snapshot.devices.iter().find(|one| &*one.name == device).ok_or(Blocked::UnknownDevice)?;
    let claim = device.current.as_ref().filter(|claim| !claim.updates.is_empty()).ok_or(Blocked::NotClaimed)?;
    if now > claim.not_after {
        return Err(Blocked::OrderExpired { not_after: claim.not_after });
    }
    let refusal = Examiner::new(snapshot, now).refusal_of_claimed(device, claim);
    refusal.map_or(Ok(()), |blocked| Err((*blocked).clone()))
}
