//! On which devices updates failed, also once these are gone.
//!
//! A device tells of its own failures as long as it is there. So that deleting it, retiring it or setting it up anew does not prove an
//! update which failed on it, a policy's progress keeps its name until it has the update, or a person has said to try that again.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Planner;
use crate::look::Look;
use crate::model::{Device, FailedOn, Name, Update};
use crate::rings::{Failed, Standing};

impl<D: Borrow<Device>> Planner<'_, D> {
    /// Writes down on which devices updates failed by their own fault, where that has changed.
    pub(super) fn note_failures(&mut self, now: Timestamp, look: &mut Look) {
        for number in self.examiner.around.rings.take_reviews(now) {
            self.review(number, now);
        }
        look.at(self.examiner.around.rings.next_review());
    }

    /// Writes down on which devices an update failed, by the number of its id.
    fn review(&mut self, number: usize, now: Timestamp) {
        let rings = &self.examiner.around.rings;
        let Some(id) = self.updates().id_at(number).cloned() else { return };
        // Also of policies for which that is written down and that have none any more.
        let mut failing: BTreeMap<usize, BTreeMap<Name, FailedOn>> =
            rings.failed_in(number).into_iter().map(|policy| (policy, BTreeMap::new())).collect();
        for (device, last) in rings.failing(number) {
            let Some(slot) = self.slot(device) else { continue };
            let place = slot.ruled.as_ref().and_then(|ruled| ruled.reign.place);
            let device = slot.device.borrow();
            if let Some(place) = place.filter(|_| !device.retired) {
                let failed = FailedOn { device: device.name.clone(), last, ring: rings.ring(place).cloned() };
                failing.entry(place.policy).or_default().insert(device.name.clone(), failed);
            }
        }
        if failing.is_empty() {
            return;
        }
        let mut lists: Vec<Failed> = Vec::with_capacity(failing.len());
        for (policy, failing) in failing {
            let others = rings.failed_on(policy, &id).iter().filter(|it| !failing.contains_key(&it.device));
            let gone = others.filter(|it| self.is_gone((number, &id), &it.device)).map(|it| {
                let tells = self.roster.find(&it.device).is_some_and(|device| rings.fails(number, device));
                (it.clone(), tells)
            });
            lists.push(Failed { policy, gone: gone.collect(), failing: failing.into_values().collect() });
        }
        let mut again = None;
        if lists.iter().any(|list| !list.gone.is_empty()) {
            let update = self.updates_mut().intern(Update::by_id(id.clone()));
            let (before, next) = self.examiner.tried_again(update);
            for list in &mut lists {
                list.gone.retain(|(failed, _)| before.is_none_or(|before| failed.last >= before));
            }
            again = next.filter(|_| lists.iter().any(|list| !list.gone.is_empty()));
        }
        self.examiner.around.rings.set_failed((number, &id), lists, again, now);
    }

    /// Whether a device on which an update failed, by the number of its id and the id, still counts as one though it is not counted with
    /// those that a policy governs: it is deleted or retired; no policy governs it; or it was made anew, and it is not known that it does
    /// without the update.
    fn is_gone(&self, (number, id): (usize, &Name), name: &str) -> bool {
        let Some(slot) = self.roster.find(name).and_then(|device| self.slot(device)) else { return true };
        match Standing::of(self.updates(), slot.device.borrow(), (number, id)) {
            Standing::Retired | Standing::MayLack => true,
            // Where a policy governs it, it counts there, unless somebody has said to try again.
            Standing::Fails => slot.ruled.as_ref().is_none_or(|ruled| ruled.reign.place.is_none()),
            Standing::DoesWithout => false,
        }
    }
}
