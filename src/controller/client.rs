//! One client's plan, kept from pass to pass.
//!
//! It is made anew when a spec changes, when the client's record was read, and once a day, so that nothing is kept of updates that
//! nobody offers any more. Else only devices that have changed are converted, verified and planned again, and those that the change
//! can affect.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use self_cell::self_cell;

use super::record::Decided;
use crate::api::device_inventory::Compliance;
use crate::api::{DeviceInventory, PatchPolicy};
use crate::convert::{self, Advice};
use crate::install::JobPresence;
use crate::plan::model::{Catalogue, Device, Name, Progress, Seen};
use crate::plan::outcome::PolicyPlan;
use crate::plan::{Planner, Snapshot};

/// A plan is kept for so long.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(24);

type DevicePlanner<'a> = Planner<'a, Device>;

self_cell! {
    /// The specs, without devices, and what is planned by them.
    struct Kept {
        owner: Snapshot,
        #[covariant]
        dependent: DevicePlanner,
    }
}

/// One client's plan.
pub struct ClientPlan {
    kept: Kept,
    made_from: MadeFrom,
    made: Timestamp,
    /// When it was planned last.
    planned: Timestamp,
    /// Devices as they were put.
    devices: BTreeMap<String, Put>,
    /// How far updates have come, as it was written down last.
    written: BTreeMap<Name, Arc<Progress>>,
    /// What status tells of it, and the version of the object.
    told: BTreeMap<String, (Option<String>, Progress)>,
    /// Policies of which status told less than the record.
    completed: BTreeSet<Name>,
    /// How far updates have come, as the record was told last, and what groups have seen.
    noted: BTreeMap<Name, Arc<Progress>>,
    noted_groups: BTreeMap<Name, Arc<[Seen]>>,
    /// What updates fix.
    advice: Advice,
}

/// What a plan was made from, beside devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeFrom {
    /// Kind, name, uid and generation of each object.
    pub objects: Vec<(&'static str, String, Option<String>, Option<i64>)>,
    /// How often the record was read.
    pub readings: u64,
    /// Which data on vulnerabilities.
    pub vulnerabilities: u64,
}

/// What of a device was put.
struct Put {
    object: Arc<DeviceInventory>,
    job: JobPresence,
    on_hold: bool,
}

impl ClientPlan {
    /// From specs with what was written down, and what the record knows besides of policies.
    pub fn new(
        specs: Snapshot,
        policies: &BTreeMap<String, Arc<PatchPolicy>>,
        made_from: MadeFrom,
        completed: BTreeSet<Name>,
        advice: Advice,
        now: Timestamp,
    ) -> Self {
        let told = policies.iter().map(|(name, object)| (name.clone(), told(object))).collect();
        let written = specs.policies.iter().map(|policy| (policy.name.clone(), policy.progress.clone())).collect();
        let kept = Kept::new(specs, |specs| Planner::new(specs.specs(), Cow::Owned(Catalogue::default()), [], now));
        Self {
            kept,
            made_from,
            made: now,
            planned: now,
            devices: BTreeMap::new(),
            written,
            told,
            completed,
            noted: BTreeMap::new(),
            noted_groups: BTreeMap::new(),
            advice,
        }
    }

    /// How often the store had been read when it was made.
    pub fn readings(&self) -> u64 {
        self.made_from.readings
    }

    /// Whether it goes on with these specs, and with what the status of the policies tells. Where the clock was set back all is
    /// planned anew: what has opened since then is closed again.
    pub fn is_current(
        &mut self,
        made_from: &MadeFrom,
        policies: &BTreeMap<String, Arc<PatchPolicy>>,
        now: Timestamp,
    ) -> bool {
        // Somebody else may have written it: what was restored from a backup, say.
        let is_told = |(name, object): (&String, &Arc<PatchPolicy>)| {
            let Some((version, known)) = self.told.get_mut(name) else { return false };
            if *version == object.metadata.resource_version {
                return true;
            }
            let (new_version, progress) = told(object);
            *version = new_version;
            *known == progress
        };
        let is_recent = self.planned <= now && now.duration_since(self.made) < KEPT_FOR;
        self.made_from == *made_from && is_recent && policies.iter().all(is_told)
    }

    /// The plan.
    pub fn planner(&self) -> &Planner<'_, Device> {
        self.kept.borrow_dependent()
    }

    /// Plans as of `now`. Returns the names of the devices for which something else is planned than before.
    pub fn plan(&mut self, now: Timestamp) -> Vec<Name> {
        self.planned = now;
        self.kept.with_dependent_mut(|_, planner| planner.plan(now))
    }

    /// Asks the planner something that it may have to work out.
    pub fn ask<T>(&mut self, question: impl FnOnce(&mut Planner<'_, Device>) -> T) -> T {
        self.kept.with_dependent_mut(|_, planner| question(planner))
    }

    /// Whether a device is not as it was when it was put.
    pub fn is_new(&self, name: &str, object: &Arc<DeviceInventory>, job: JobPresence, on_hold: bool) -> bool {
        self.devices
            .get(name)
            .is_none_or(|put| !Arc::ptr_eq(&put.object, object) || (put.job, put.on_hold) != (job, on_hold))
    }

    /// A device as it is now, with what is true of its claim at this moment.
    pub fn put(
        &mut self,
        (object, compliance): (&Arc<DeviceInventory>, &Compliance),
        job: JobPresence,
        on_hold: bool,
        now: Timestamp,
    ) {
        let Self { kept, advice, .. } = self;
        kept.with_dependent_mut(|_, planner| {
            let device = convert::device(object, compliance, (planner.updates_mut(), advice), now);
            planner.put(Device { on_hold, ..device });
        });
        let name = object.metadata.name.clone().unwrap_or_default();
        self.devices.insert(name, Put { object: object.clone(), job, on_hold });
    }

    /// Forgets the devices that are not `present` any more.
    pub fn keep_only(&mut self, present: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.devices.keys().filter(|name| !present(name)).cloned().collect();
        for name in gone {
            self.devices.remove(&name);
            self.kept.with_dependent_mut(|_, planner| planner.remove(&name));
        }
    }

    /// The policies of which something is to be written down that is not: how far updates have come before, as status tells, and
    /// now.
    pub fn to_write(&self) -> Vec<(PolicyPlan, Arc<Progress>)> {
        let plans = self.planner().policies().filter_map(|planned| {
            let written = self.written.get(&planned.name)?;
            let is_news = !is_same(written, &planned.progress) || self.completed.contains(&planned.name);
            is_news.then(|| (planned.clone(), written.clone()))
        });
        plans.collect()
    }

    /// It is written down now, in this object.
    pub fn wrote(&mut self, planned: &PolicyPlan, object: &PatchPolicy) {
        self.written.insert(planned.name.clone(), planned.progress.clone());
        self.completed.remove(&planned.name);
        self.told.insert(planned.name.to_string(), told(object));
    }

    /// What the record was not told of yet; nothing of the policies that are `left_out`. It counts as told from then on.
    pub fn take_news(&mut self, left_out: &BTreeSet<Name>) -> Decided<'_> {
        let Self { kept, noted, noted_groups, .. } = self;
        let (specs, planner) = (kept.borrow_owner(), kept.borrow_dependent());
        let mut policies = Vec::new();
        for planned in planner.policies().filter(|planned| !left_out.contains(&planned.name)) {
            let is_noted = noted.get(&planned.name).is_some_and(|noted| Arc::ptr_eq(noted, &planned.progress));
            let policy = specs.policies.iter().find(|policy| policy.name == planned.name);
            if let Some(policy) = policy.filter(|_| !is_noted) {
                noted.insert(planned.name.clone(), planned.progress.clone());
                policies.push((policy, planned));
            }
        }
        let mut groups = Vec::new();
        for planned in planner.groups() {
            if noted_groups.get(&planned.name).is_none_or(|noted| !Arc::ptr_eq(noted, &planned.seen)) {
                noted_groups.insert(planned.name.clone(), planned.seen.clone());
                groups.push(planned);
            }
        }
        Decided { policies, groups, is_offered: Box::new(|id| planner.is_offered(id)) }
    }
}

fn told(object: &PatchPolicy) -> (Option<String>, Progress) {
    (object.metadata.resource_version.clone(), object.status.as_ref().map(convert::progress).unwrap_or_default())
}

fn is_same(one: &Arc<Progress>, other: &Arc<Progress>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn policy(version: &str, updates: &[&str]) -> PatchPolicy {
        let rings = json!([{"name": "pilot", "selector": {}, "soak": "1h"}]);
        let updates: Vec<_> =
            updates.iter().map(|id| json!({"id": id, "ring": "pilot", "opened": "2026-01-01T00:00:00Z"})).collect();
        serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "PatchPolicy",
            "metadata": {"name": "servers", "namespace": "acme", "resourceVersion": version},
            "spec": {"mode": "Audit", "rollout": {"maxConcurrent": 1, "rings": rings}},
            "status": {"updates": updates},
        }))
        .unwrap()
    }

    fn device(name: &str) -> Arc<DeviceInventory> {
        let object = json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory",
            "metadata": {"name": name, "namespace": "acme"}, "spec": {"type": "Server"},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn policies(policy: PatchPolicy) -> BTreeMap<String, Arc<PatchPolicy>> {
        [("servers".to_owned(), Arc::new(policy))].into()
    }

    fn client(policy: &PatchPolicy) -> ClientPlan {
        let specs = Snapshot { policies: vec![convert::policy(policy)], ..Snapshot::default() };
        ClientPlan::new(
            specs,
            &policies(policy.clone()),
            MadeFrom::default(),
            BTreeSet::new(),
            Advice::default(),
            at(0),
        )
    }

    #[test]
    fn it_goes_on_until_a_spec_or_what_somebody_else_wrote_is_another_or_a_day_is_over() {
        let mut client = client(&policy("1", &["u"]));
        let made_from = MadeFrom::default();
        assert!(client.is_current(&made_from, &policies(policy("1", &["u"])), at(1)));
        assert!(client.is_current(&made_from, &policies(policy("2", &["u"])), at(1)), "something else was written");
        assert!(!client.is_current(
            &MadeFrom { readings: 1, ..made_from.clone() },
            &policies(policy("2", &["u"])),
            at(1)
        ));
        assert!(!client.is_current(&made_from, &policies(policy("2", &["u"])), at(24 * 3600)));
        assert!(!client.is_current(&made_from, &policies(policy("3", &[])), at(1)), "it was set back");
    }

    #[test]
    fn it_does_not_go_on_where_the_clock_was_set_back() {
        let mut client = client(&policy("1", &["u"]));
        client.plan(at(3600));
        let is_current = |client: &mut ClientPlan, second: i64| {
            client.is_current(&MadeFrom::default(), &policies(policy("1", &["u"])), at(second))
        };
        assert!(is_current(&mut client, 3600));
        assert!(!is_current(&mut client, 3599));
    }

    #[test]
    fn a_device_is_new_until_it_was_put_and_when_anything_of_it_is_another() {
        let mut client = client(&policy("1", &[]));
        let (absent, present) = (JobPresence::Absent, JobPresence::Present);
        let (a, b) = (device("a"), device("b"));
        assert!(client.is_new("a", &a, absent, false));
        client.put((&a, &Compliance::default()), absent, false, at(1));
        client.put((&b, &Compliance::default()), absent, false, at(1));
        assert!(!client.is_new("a", &a, absent, false));
        assert!(client.is_new("a", &device("a"), absent, false));
        assert!(client.is_new("a", &a, present, false));
        assert!(client.is_new("a", &a, absent, true));
        assert_eq!(client.plan(at(1)), ["a".into(), "b".into()]);
        assert_eq!(client.plan(at(2)), []);
        client.keep_only(|name| name == "b");
        client.plan(at(3));
        assert_eq!(client.planner().devices().map(|planned| &*planned.name).collect::<Vec<_>>(), ["b"]);
        assert!(client.is_new("a", &a, absent, false));
    }

    #[test]
    fn what_is_news_is_written_and_told_once() {
        let mut client = client(&policy("1", &["u"]));
        client.plan(at(1));
        // Which specs are in force was not written down yet.
        let [(planned, before)] = client.to_write().try_into().ok().unwrap();
        assert!(before.blast.accepted.is_none() && planned.progress.blast.accepted.is_some());
        assert_eq!(client.take_news(&["servers".into()].into()).policies.len(), 0, "it is not written");
        client.wrote(&planned, &policy("2", &["u"]));
        assert!(client.to_write().is_empty());
        assert_eq!(client.take_news(&BTreeSet::new()).policies.len(), 1);
        client.plan(at(2));
        assert_eq!(client.take_news(&BTreeSet::new()).policies.len(), 0);
    }
}
