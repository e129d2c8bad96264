//! Which updates are to be stopped everywhere.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use patchwarden_protocol::order::RESTART;

use super::{Judged, Place, Teller};
use crate::bits::Bits;
use crate::model::{Catalogue, Name};
use crate::moves::Moves;

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
    /// Devices, by their names, that tell no more that an update failed on them, since they are gone, and when it did last.
    gone: BTreeMap<usize, BTreeMap<Name, Timestamp>>,
    /// On which devices they fail anew, by the number of the id and as ...
    failed_anew: Moves<(usize, Failing)>,
    /// How often devices tell that it was installed.
    installed: Vec<u32>,
    /// Those that have failed, once more, and had when that was last judged: asked for each update that a device has installed.
    has_failed: Bits,
    /// Those that have failed and that devices have installed anew, by the numbers of both.
    installed_anew: Moves<(usize, usize)>,
    /// Those that have failed and of which something else has changed.
    doubtful: BTreeSet<usize>,
    /// Those that are to be stopped and of which no policy has written that down: none governs a device that offers them.
    unwritten: BTreeSet<usize>,
    /// Of those that have failed, on how many devices they are known to have been installed at least.
    marks: BTreeMap<usize, u32>,
}

/// ... a device tells it: its number, where it is, whether it is retired, and when it failed.
type Failing = (usize, Option<Place>, bool, Timestamp);

impl Stops {
    /// Counts what a device tells, or takes it back.
    pub(super) fn count(&mut self, catalogue: &Catalogue, teller: Teller<'_>, adds: bool) {
        let Teller { device, number, place, pardoned } = teller;
        self.installed.resize(catalogue.ids().max(self.installed.len()), 0);
        for id in device.installed.iter().map(|id| id.index()) {
            if let Some(installed) = self.installed.get_mut(id) {
                *installed = if adds { installed.saturating_add(1) } else { installed.saturating_sub(1) };
            }
            // Most updates have never failed: only of those that have it matters.
            if self.has_failed.contains(id) {
                self.installed_anew.note((id, number), adds);
            }
        }
        // A restart is no update that could be bad everywhere.
        let counts = device
            .failures
            .iter()
            .filter(|it| *it.update != *RESTART && it.cause.is_of_the_update() && it.attempts > 0);
        for failure in counts {
            let Some(id) = catalogue.number_of(&failure.update).filter(|id| !pardoned.contains(id)) else { continue };
            self.failed_anew.note((id, (number, place, device.retired, failure.last)), adds);
            let devices = self.failed.entry(id).or_default();
            if adds {
                self.has_failed.add(id);
                let last = devices.entry(number).or_insert(failure.last);
                *last = failure.last.max(*last);
            } else {
                devices.remove(&number);
                if devices.is_empty() {
                    self.failed.remove(&id);
                }
            }
        }
    }

    /// A device of a policy offers an update.
    pub(super) fn offered(&mut self, id: usize) {
        if self.unwritten.contains(&id) {
            self.doubtful.insert(id);
        }
    }

    /// That an update is stopped is written down.
    pub(super) fn set_written(&mut self, id: usize) {
        self.unwritten.remove(&id);
    }

    /// Those that fail on other devices, or in other places, than when this was last asked.
    pub(super) fn take_changed(&mut self) -> BTreeSet<usize> {
        let changed: BTreeSet<usize> = self.failed_anew.take().into_iter().map(|(id, _)| id).collect();
        self.doubtful.extend(&changed);
        changed
    }

    /// Devices, by their numbers, that tell that an update failed on them, and when it did last.
    pub(super) fn failing(&self, id: usize) -> impl Iterator<Item = (usize, Timestamp)> {
        self.failed.get(&id).into_iter().flatten().map(|(number, last)| (*number, *last))
    }

    /// Whether a device, by its number, tells that an update failed on it.
    pub(super) fn fails(&self, id: usize, number: usize) -> bool {
        self.failed.get(&id).is_some_and(|devices| devices.contains_key(&number))
    }

    /// Notes which devices are gone on which an update failed.
    pub(super) fn set_gone(&mut self, id: usize, gone: BTreeMap<Name, Timestamp>) {
        let before = self.gone.get(&id);
        if before.map_or(gone.is_empty(), |before| *before == gone) {
            return;
        }
        self.doubtful.insert(id);
        if gone.is_empty() {
            self.gone.remove(&id);
        } else {
            self.has_failed.add(id);
            self.gone.insert(id, gone);
        }
    }

    /// The numbers of the ids of all that devices tell to have failed; each is judged anew.
    pub(super) fn doubt_all(&mut self) -> Vec<usize> {
        self.doubtful.extend(self.failed.keys());
        self.failed.keys().copied().collect()
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
        self.doubtful.extend(self.installed_anew.take().into_iter().map(|(id, _)| id));
        for id in std::mem::take(&mut self.doubtful) {
            if !(self.failed.contains_key(&id) || self.gone.contains_key(&id)) {
                self.has_failed.remove(id);
            }
            let since = stopped(id);
            let failed = self.failed.get(&id).into_iter().flat_map(|devices| devices.values());
            let gone = self.gone.get(&id).into_iter().flat_map(|devices| devices.values());
            let counted = failed.chain(gone).filter(|last| since.is_none_or(|since| **last > since));
            let (failed, last) = counted.fold((0, now), |(failed, last), at| (failed + 1, last.max(*at)));
            let told = self.installed.get(id).copied().unwrap_or_default();
            let known = self.marks.get(&id).copied().unwrap_or_default();
            if is_bad(failed, told.max(known)) {
                judged.bad.insert(id, last);
                self.unwritten.insert(id);
            } else {
                self.unwritten.remove(&id);
            }
            if let (true, mark @ 1..) = (self.has_failed.contains(id), mark(told)) {
                judged.marks.push((id, mark.max(known), self.failing(id).map(|(number, _)| number).collect()));
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
