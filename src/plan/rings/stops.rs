//! Which updates are to be stopped everywhere.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_protocol::order::RESTART;

use super::{Judged, Teller};
use crate::bits::Bits;
use crate::model::Catalogue;

/// An update is stopped once it failed on so many devices ...
const BY_DEVICES: u32 = 3;
/// ... and on so many percent of those that tried it.
const BY_PERCENT: u32 = 5;
/// So many installs of an update stand one failure more.
const PER_FAILURE: u32 = 100 / BY_PERCENT - 1;

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
    /// Of those that have failed, on how many devices they are known to have been installed at least.
    marks: BTreeMap<usize, u32>,
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

    /// Notes what was written down of an update.
    pub(super) fn recall(&mut self, id: usize, anywhere: u32) {
        let mark = self.marks.entry(id).or_default();
        *mark = anywhere.max(*mark);
    }

    /// Those that are to be stopped, not before the failures that are the reason, whatever the clock says, for they must not
    /// count again. What stopped one once, and was tried again since, does not stop it again.
    pub(super) fn judge(&mut self, now: Timestamp, stopped: impl Fn(usize) -> Option<Timestamp>) -> Judged {
        let mut judged = Judged::default();
        for id in std::mem::take(&mut self.doubtful) {
            let since = stopped(id);
            let failed = self.failed.get(&id).into_iter().flat_map(|devices| devices.values());
            let counted = failed.filter(|last| since.is_none_or(|since| **last > since));
            let (failed, last) = counted.fold((0, now), |(failed, last), at| (failed + 1, last.max(*at)));
            let told = self.installed.get(id).copied().unwrap_or_default();
            let known = self.marks.get(&id).copied().unwrap_or_default();
            if is_bad(failed, told.max(known)) {
                judged.bad.insert(id, last);
            }
            if let (Some(devices), mark @ 1..) = (self.failed.get(&id), mark(told)) {
                judged.marks.push((id, mark.max(known), devices.keys().copied().collect()));
                self.recall(id, mark);
            }
        }
        judged
    }
}

/// As much of a number of installs as stands as many failures: what is written down so changes with one install in nineteen,
/// and says all that matters. None below what stands so few failures that they stop no update anyway.
fn mark(installed: u32) -> u32 {
    let stands = installed.saturating_sub(1) / PER_FAILURE;
    if stands < BY_DEVICES { 0 } else { stands * PER_FAILURE + 1 }
}

fn is_bad(failed: u32, installed: u32) -> bool {
    let tried = u64::from(failed) + u64::from(installed);
    failed >= BY_DEVICES && u64::from(failed) * 100 >= u64::from(BY_PERCENT) * tried
}
