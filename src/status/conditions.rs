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

impl Conditions {
    pub(super) fn of<K: kube::Resource>(old: Option<&[Condition]>, object: &K, now: Timestamp) -> Self {
        Self { list: old.unwrap_or_default().to_vec(), generation: object.meta().generation, now }
    }

    /// kstatus: `Stalled` is there only while a person must act, and `Ready` says the same.
    pub(super) fn set_ready(&mut self, stalled: Option<&(&'static str, String)>, enforced: &(&'static str, String)) {
        self.set_stalled(stalled);
        match stalled {
            Some((reason, message)) => self.set(c::READY, false, reason, message),
            None => self.set(c::READY, true, enforced.0, &enforced.1),
        }
    }

    pub(super) fn set_stalled(&mut self, stalled: Option<&(&'static str, String)>) {
        match stalled {
            Some((reason, message)) => self.set(c::STALLED, true, reason, message),
            None => self.list.retain(|condition| condition.type_ != c::STALLED),
        }
    }

    pub(super) fn set(&mut self, type_: &str, holds: bool, reason: &str, message: &str) {
        self.put(type_, if holds { "True" } else { "False" }, reason, message);
    }

    pub(super) fn set_unknown(&mut self, type_: &str, reason: &str, message: &str) {
        self.put(type_, "Unknown", reason, message);
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
