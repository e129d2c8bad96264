//! Whether a claimed install may begin now: the same gates, asked again at the last moment.

use jiff::Timestamp;

use super::device::Examiner;
use super::model::{Claim, Snapshot};
use super::outcome::Blocked;

/// Answers all devices of a snapshot that ask at one instant.
pub struct Grants<'a> {
    snapshot: &'a Snapshot,
    now: Timestamp,
    /// Made for the first that asks.
    answering: Option<Examiner<'a>>,
}

impl<'a> Grants<'a> {
    /// As of `now`. How far updates have come is as it was written down.
    pub fn new(snapshot: &'a Snapshot, now: Timestamp) -> Self {
        Self { snapshot, now, answering: None }
    }

    /// Whether `device` may begin with what it holds a claim for; else the first reason against it.
    ///
    /// Every gate of the plan is asked for every claimed update, with three differences. The claim itself is no obstacle,
    /// and neither concurrency nor the ledger is asked: it has its place. Nor is `DeviceOffline`: a device that asks has a
    /// session, and a record that does not show it yet is older than the question (one that was last seen days ago is
    /// refused all the same). And the window must have room for the time that the claim was expected to take,
    /// whatever was measured since.
    pub fn may_act(&mut self, device: &str) -> Result<(), Blocked> {
        let now = self.now;
        let (examiner, position, claim) = self.asked(device)?;
        if claim.updates.is_empty() {
            return Err(Blocked::NotClaimed);
        }
        if now > claim.not_after {
            return Err(Blocked::OrderExpired { not_after: claim.not_after });
        }
        let refusal = examiner.refusal_of_claimed(position, claim);
        refusal.map_or(Ok(()), |blocked| Err((*blocked).clone()))
    }

    /// Whether `device` may restart now, after what it holds a claim for and has had a grant to do; else the first reason
    /// against it. Only in a window of the policy's, while the policy governs it and restarts devices.
    pub fn may_restart(&mut self, device: &str) -> Result<(), Blocked> {
        let (examiner, position, claim) = self.asked(device)?;
        if !claim.granted {
            return Err(Blocked::NotClaimed);
        }
        let refusal = examiner.refusal_of_restart(position, claim);
        refusal.map_or(Ok(()), |blocked| Err((*blocked).clone()))
    }

    fn asked(&mut self, device: &str) -> Result<(&mut Examiner<'a>, usize, &'a Claim), Blocked> {
        let (snapshot, now) = (self.snapshot, self.now);
        let examiner = self.answering.get_or_insert_with(|| Examiner::new(snapshot, now));
        let (position, device) = examiner.device(device).ok_or(Blocked::UnknownDevice)?;
        let claim = device.current.as_ref().ok_or(Blocked::NotClaimed)?;
        Ok((examiner, position, claim))
    }
}

/// Answers one device, as [`Grants::may_act`] does.
pub fn may_act(snapshot: &Snapshot, device: &str, now: Timestamp) -> Result<(), Blocked> {
    Grants::new(snapshot, now).may_act(device)
}

/// Answers one device, as [`Grants::may_restart`] does.
pub fn may_restart(snapshot: &Snapshot, device: &str, now: Timestamp) -> Result<(), Blocked> {
    Grants::new(snapshot, now).may_restart(device)
}
