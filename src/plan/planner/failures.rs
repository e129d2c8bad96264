//! On which devices updates failed, also once these are gone.
//!
//! A device tells of its own failures as long as it is there. So that deleting it, retiring it or setting it up anew does not prove an
//! update which failed on it, a policy's progress keeps its name until it has the update, or a person has said to try that again.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Planner;
use crate::look::Look;
use crate::model::{Device, FailedOn, Name};
use crate::rings::Failed;

impl<D: Borrow<Device>> Planner<'_, D> {
    /// Writes down on which devices updates failed by their own fault, where that has changed.
    pub(super) fn note_failures(&mut self, now: Timestamp, look: &mut Look) {
        let around = &mut self.examiner.around;
        for number in around.rings.take_reviews(&around.updates, now) {
            self.review(number);
        }
        look.at(self.examiner.around.rings.next_review());
    }

    /// Writes down on which devices an update failed, by the number of its id.
    fn review(&mut self, number: usize) {
        let rings = &self.examiner.around.rings;
        let Some(id) = self.updates().id_at(number).cloned() else { return };
        let mut failing: BTreeMap<usize, BTreeMap<Name, Timestamp>> = BTreeMap::new();
        for (device, last) in rings.failing(number) {
            let Some(slot) = self.slot(device) else { continue };
            let place = slot.ruled.as_ref().and_then(|ruled| ruled.reign.place);
            let device = slot.device.borrow();
            if let Some(place) = place.filter(|_| !device.retired) {
                failing.entry(place.policy).or_default().insert(device.name.clone(), last);
            }
        }
        let mut lists: Vec<Failed> = Vec::new();
        for policy in 0..self.policies.len() {
            let known = rings.failed_on(policy, &id);
            let failing = failing.remove(&policy).unwrap_or_default();
            if known.is_empty() && failing.is_empty() {
                continue;
            }
            let others = known.iter().filter(|it| !failing.contains_key(&it.device));
            let gone = others.filter(|it| self.is_gone(policy, (number, &id), &it.device)).map(|it| {
                let tells = self.roster.find(&it.device).is_some_and(|device| rings.fails(number, device));
                (it.clone(), tells)
            });
            let gone = gone.collect();
            let failing = failing.into_iter().map(|(device, last)| FailedOn { device, last }).collect();
            lists.push(Failed { policy, failing, gone });
        }
        if lists.is_empty() {
            return;
        }
        let mut again = None;
        if lists.iter().any(|list| !list.gone.is_empty()) {
            let (before, next) = self.examiner.tried_again(number);
            for list in &mut lists {
                list.gone.retain(|(failed, _)| before.is_none_or(|before| failed.last >= before));
            }
            again = next.filter(|_| lists.iter().any(|list| !list.gone.is_empty()));
        }
        self.examiner.around.rings.set_failed(number, &id, lists, again);
    }

    /// Whether nothing more is to be had of a device on which an update failed, by the number of its id and the id: it is deleted or
    /// retired; or was made anew, and offers the update or has yet to report.
    fn is_gone(&self, policy: usize, (number, id): (usize, &Name), name: &str) -> bool {
        let Some(slot) = self.roster.find(name).and_then(|device| self.slot(device)) else { return true };
        let device = slot.device.borrow();
        if device.retired {
            return true;
        }
        let place = slot.ruled.as_ref().and_then(|ruled| ruled.reign.place);
        if place.is_some_and(|place| place.policy != policy) || device.failures.iter().any(|it| it.update == *id) {
            return false;
        }
        let mut offers = device.report.iter().flat_map(|report| &report.offers);
        device.report.is_err() || offers.any(|offer| self.updates().id_of(offer.update) == Some(number))
    }
}
