//! Conditions, whose times change only where they do.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::conditions as c;
use crate::convert::whole_seconds;

/// A list of conditions that keeps `lastTransitionTime` while a status stays the same.
pub(super) struct Conditions {
    pub(super) list: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

/// How far an object has come, with a reason and the words for it.
pub(super) enum Progress {
    /// It is accepted and in force.
    Enforced((&'static str, String)),
    /// What it waits for comes by itself.
    Waits((&'static str, String)),
    /// A person must act.
    Stalled((&'static str, String)),
}

impl Conditions {
    pub(super) fn of<K: kube::Resource>(old: Option<&[Condition]>, object: &K, now: Timestamp) -> Self {
        Self { list: old.unwrap_or_default().to_vec(), generation: object.meta().generation, now }
    }

    /// kstatus: `Stalled` is there only while a person must act, `Reconciling` only while something is waited for that comes by
    /// itself, never both, and `Ready` says the same.
    pub(super) fn set_progress(&mut self, progress: &Progress) {
        let (other, holds, (reason, message)) = match progress {
            Progress::Enforced(why) => (None, true, why),
            Progress::Waits(why) => (Some(c::RECONCILING), false, why),
            Progress::Stalled(why) => (Some(c::STALLED), false, why),
        };
        for type_ in [c::RECONCILING, c::STALLED] {
            if other == Some(type_) {
                self.set(type_, true, reason, message);
            } else {
                self.remove(type_);
            }
        }
        self.set(c::READY, holds, reason, message);
    }

    /// What the spec names that is not there, by reasons of which the first is the condition's; the condition is there only where
    /// there is any.
    pub(super) fn set_names_unknown(&mut self, told: impl Iterator<Item = (&'static str, String)>) {
        let (reasons, messages): (Vec<_>, Vec<_>) = told.unzip();
        match reasons.first() {
            Some(reason) => self.set(c::NAMES_UNKNOWN, true, reason, &messages.join("; ")),
            None => self.remove(c::NAMES_UNKNOWN),
        }
    }

    pub(super) fn set(&mut self, type_: &str, holds: bool, reason: &str, message: &str) {
        self.put(type_, if holds { "True" } else { "False" }, reason, message);
    }

    pub(super) fn remove(&mut self, type_: &str) {
        self.list.retain(|condition| condition.type_ != type_);
    }

    pub(super) fn put(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let since = self
            .list
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
            .map_or_else(|| Time(whole_seconds(self.now)), |condition| condition.last_transition_time.clone());
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(1024).collect(),
            last_transition_time: since,
            observed_generation: self.generation,
        };
        match self.list.iter_mut().find(|condition| condition.type_ == type_) {
            Some(old) => *old = condition,
            None => self.list.push(condition),
        }
    }
}
