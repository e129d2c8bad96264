//! Which updates are to be stopped everywhere.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_protocol::order::RESTART;

use super::Teller;
use crate::bits::Bits;
use crate::model::Catalogue;

/// An update is stopped once it failed on so many devices ...
const BY_DEVICES: u32 = 3;
/// ... and on so many percent of those that tried it.
const BY_PERCENT: u32 = 5;

/// On how many devices updates were tried, by the numbers of their ids.
#[derive(Default)]
pub(super) struct Stops {
    /// Devices, by their numbers, on which an update failed by its own fault, and when last.
    failed: BTreeMap<usize, BTreeMap<usize, Timestamp>>,
    /// How often devices tell that it was installed.
    installed: Vec<u32>,
    /// Those that have failed, once more: asked for each update that a device has installed.
    has_failed: Bits,
    /// Those that have failed and of which something has changed.
    doubtful: BTreeSet<usize>,
}

impl Stops {
    /// Counts what a device tells, or takes it back.
    pub(super) fn count(&mut self, catalogue: &Catalogue, teller: Teller<'_>, adds: bool) {
        let Teller { device, number, pardoned, .. } = teller;
        self.installed.resize(catalogue.ids().max(self.installed.len()), 0);
        for id in device.installed.iter().map(|id| id.index()) {
            if let Some(installed) = self.installed.get_mut(id) {
                *installed = if adds { installed.saturating_add(1) } else { installed.saturating_sub(1) };
            }
            // Most updates have never failed: only of those that have it matters.
            if self.has_failed.contains(id) {
                self.doubtful.insert(id);
            }
        }
        // A restart is no update that could be bad everywhere.
        let counts = device
            .failures
            .iter()
            .filter(|it| *it.update != *RESTART && it.cause.is_of_the_update() && it.attempts > 0);
        for failure in counts {
            let Some(id) = catalogue.number_of(&failure.update).filter(|id| !pardoned.contains(id)) else { continue };
            self.doubtful.insert(id);
            let devices = self.failed.entry(id).or_default();
            if adds {
                self.has_failed.add(id);
                let last = devices.entry(number).or_insert(failure.last);
                *last = failure.last.max(*last);
            } else {
                devices.remove(&number);
                if devices.is_empty() {
                    self.failed.remove(&id);
                    self.has_failed.remove(id);
                }
            }
        }
    }

    /// Those that are to be stopped, and since when: not before the failures that are the reason, whatever the clock says, for
    /// they must not count again. What stopped one once, and was tried again since, does not stop it again.
    pub(super) fn bad(
        &mut self,
        now: Timestamp,
        stopped: impl Fn(usize) -> Option<Timestamp>,
    ) -> BTreeMap<usize, Timestamp> {
        let mut bad = BTreeMap::new();
        for id in std::mem::take(&mut self.doubtful) {
            let since = stopped(id);
            let failed = self.failed.get(&id).into_iter().flat_map(|devices| devices.values());
            let counted = failed.filter(|last| since.is_none_or(|since| **last > since));
            let (failed, last) = counted.fold((0, now), |(failed, last), at| (failed + 1, last.max(*at)));
            let installed = self.installed.get(id).copied().unwrap_or_default();
            if is_bad(failed, installed) {
                bad.insert(id, last);
            }
        }
        bad
    }
}

fn is_bad(failed: u32, installed: u32) -> bool {
    let tried = u64::from(failed) + u64::from(installed);
    failed >= BY_DEVICES && u64::from(failed) * 100 >= u64::from(BY_PERCENT) * tried
}
