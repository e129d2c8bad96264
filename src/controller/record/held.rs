//! What the controller holds of a client's record: it completes a snapshot, takes up what a plan decided, and knows what the store
//! has yet to be told. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::convert::whole_seconds;
use crate::plan::Snapshot;
use crate::plan::model::{self, Name, Policy, Seen, UpdateProgress};
use crate::plan::outcome::{GroupPlan, PolicyPlan};
use crate::record::{
    Alone, Dates, Entries, FailedOn, Failures, Forward, Kept, MAX_FAILED, MAX_KEPT, Pause, Progress, Sighting,
};

/// Of what is still offered the store is told again after so long, so that it does not drop it. Far below what it keeps it for.
const TOLD_AGAIN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What was decided, as far as it was written to status.
pub struct Decided<'d> {
    /// Policies, as they were planned with, and what was planned for them.
    pub policies: Vec<(&'d Policy, &'d PolicyPlan)>,
    /// Groups.
    pub groups: Vec<&'d GroupPlan>,
    /// Whether a device offers an update.
    pub is_offered: Box<dyn Fn(&Name) -> bool + 'd>,
}

/// A client's record.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Whether what the store has is in it.
    known: bool,
    all: Entries,
    unsent: Unsent,
    /// The sightings, as the planner takes them; none after a change.
    seen: Option<Vec<Seen>>,
}

/// Keys of the entries that the store has not, or has to be told of again.
#[derive(Clone, Debug, Default)]
struct Unsent {
    sightings: BTreeSet<String>,
    progress: BTreeSet<(String, String)>,
    pauses: BTreeSet<String>,
}

impl Held {
    /// Whether the store was read.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// How many entries the store has yet to be told of.
    pub fn unsent(&self) -> usize {
        self.unsent.sightings.len() + self.unsent.progress.len() + self.unsent.pauses.len()
    }

    /// Takes up all that the store has of the client.
    pub fn read(&mut self, stored: Entries) {
        let Entries { sightings, progress, pauses } = stored;
        // What was decided before that was known is no word on the devices that only the store knows.
        let known = self.all.progress.iter().filter(|_| !self.known);
        let both: Vec<_> = known
            .filter_map(|(key, held)| Some((key.clone(), held.entry.failed.with(&progress.get(key)?.entry.failed)?)))
            .collect();
        read(&mut self.all.sightings, &mut self.unsent.sightings, sightings);
        read(&mut self.all.progress, &mut self.unsent.progress, progress);
        read(&mut self.all.pauses, &mut self.unsent.pauses, pauses);
        for (key, failed) in both {
            if let Some(kept) = self.all.progress.get_mut(&key) {
                kept.entry.failed = failed;
                self.unsent.progress.insert(key);
            }
        }
        self.known = true;
        self.seen = None;
    }

    /// Adds to what status told what the record knows besides: sightings, and how far updates have come in each policy, also of
    /// what nobody offers at this moment. What was stopped in a policy that is gone is stopped in the others: a stop is the
    /// client's, and so is on how many devices an update was installed. Returns the policies of which status told less.
    pub fn complete(&mut self, snapshot: &mut Snapshot) -> BTreeSet<Name> {
        let mut completed = BTreeSet::new();
        let gone = self.known_of_others(snapshot);
        snapshot.seen.clone_from(self.seen.get_or_insert_with(|| self.all.sightings.iter().map(seen).collect()));
        for policy in &mut snapshot.policies {
            let rings = rings(policy);
            let from = (policy.name.to_string(), String::new());
            let of_policy = self.all.progress.range(from..).take_while(|((name, _), _)| **name == *policy.name);
            for ((_, update), kept) in of_policy {
                let id: Name = update.as_str().into();
                let status = policy.progress.updates.get(&id);
                let both = with_record(status, &kept.entry, rings.as_deref());
                if let Some(both) = both.filter(|both| status != Some(both)) {
                    Arc::make_mut(&mut policy.progress).updates.insert(id, both);
                    completed.insert(policy.name.clone());
                }
            }
            for (id, known) in &gone {
                let status = policy.progress.updates.get(id);
                let both = with_client(status, *known, &[], rings.as_deref());
                if let Some(both) = both.filter(|both| status != Some(both)) {
                    Arc::make_mut(&mut policy.progress).updates.insert(id.clone(), both);
                    completed.insert(policy.name.clone());
                }
            }
            let paused = self.all.pauses.get(&*policy.name).and_then(|kept| kept.entry.holds());
            if paused > policy.progress.paused {
                Arc::make_mut(&mut policy.progress).paused = paused;
                completed.insert(policy.name.clone());
            }
        }
        completed
    }

    /// Takes up what was decided and status tells.
    pub fn note(&mut self, decided: &Decided<'_>, now: Timestamp) {
        let now = whole_seconds(now);
        for GroupPlan { seen, .. } in &decided.groups {
            for seen in seen.iter() {
                self.note_sighting(seen, &decided.is_offered, now);
            }
        }
        for (policy, planned) in &decided.policies {
            let rings = rings(policy);
            for (id, progress) in &planned.progress.updates {
                self.note_progress((&planned.name, id), progress, rings.as_ref(), &decided.is_offered, now);
            }
            self.note_pause(planned, now);
        }
    }

    /// Some of what the store has yet to be told of, at most `count` entries.
    pub fn to_send(&self, count: usize) -> Entries {
        let Unsent { sightings, progress, pauses } = &self.unsent;
        // What stops something goes first.
        let pauses = pick(&self.all.pauses, pauses, count);
        let progress = pick(&self.all.progress, progress, count - pauses.len());
        let sightings = pick(&self.all.sightings, sightings, count - pauses.len() - progress.len());
        Entries { sightings, progress, pauses }
    }

    /// Notes that the store was told of these at `now`.
    pub fn sent(&mut self, entries: &Entries, now: Timestamp) {
        sent(&mut self.all.sightings, &mut self.unsent.sightings, &entries.sightings, now);
        sent(&mut self.all.progress, &mut self.unsent.progress, &entries.progress, now);
        sent(&mut self.all.pauses, &mut self.unsent.pauses, &entries.pauses, now);
    }

    /// What policies that are not there any more knew of updates for the client.
    fn known_of_others(&self, snapshot: &Snapshot) -> BTreeMap<Name, OfClient> {
        let policies: BTreeSet<&str> = snapshot.policies.iter().map(|policy| &*policy.name).collect();
        let mut known: BTreeMap<Name, OfClient> = BTreeMap::new();
        for ((policy, update), kept) in &self.all.progress {
            let of_client = OfClient::of(&kept.entry);
            if policies.contains(policy.as_str()) || of_client.is_nothing() {
                continue;
            }
            let latest = known.entry(update.as_str().into()).or_insert(of_client);
            *latest = OfClient {
                opened: latest.opened.min(of_client.opened),
                stopped: latest.stopped.max(of_client.stopped),
                anywhere: latest.anywhere.max(of_client.anywhere),
            };
        }
        known
    }

    fn note_sighting(&mut self, seen: &Seen, is_offered: &dyn Fn(&Name) -> bool, now: Timestamp) {
        let (first, shared) = (whole_seconds(seen.first), seen.shared.map(whole_seconds));
        let (published, alone) = (seen.dates.shared.map(whole_seconds), seen.dates.alone.as_ref());
        let alone = alone.map(|(at, by)| (whole_seconds(*at), by));
        let known = self.all.sightings.get(&*seen.id).map(|kept| &kept.entry);
        // Most are: nothing is copied for them.
        let is_known = known.is_some_and(|it| {
            let dated = (it.dates.shared, it.dates.alone.as_ref().map(|it| (it.at, &*it.by)));
            (it.first, &*it.by, it.shared) == (first, &*seen.by, shared)
                && dated == (published, alone.map(|(at, by)| (at, &**by)))
        });
        let dates = || Dates { shared: published, alone: alone.map(|(at, by)| Alone { at, by: by.to_string() }) };
        let entry = || Sighting { first, by: seen.by.to_string(), shared, dates: dates() };
        let changed = !is_known && note(&mut self.all.sightings, seen.id.to_string(), |_| entry());
        let again = || told_again(&self.all.sightings, &*seen.id, now) && is_offered(&seen.id);
        if changed || again() {
            self.unsent.sightings.insert(seen.id.to_string());
            if changed {
                self.seen = None;
            }
        }
    }

    fn note_progress(
        &mut self,
        (policy, id): (&Name, &Name),
        decided: &UpdateProgress,
        rings: Option<&Vec<String>>,
        is_offered: &dyn Fn(&Name) -> bool,
        now: Timestamp,
    ) {
        let key = (policy.to_string(), id.to_string());
        let changed = note(&mut self.all.progress, key.clone(), |known: Option<&Progress>| {
            let mut entry = Progress {
                // A policy that cannot be understood decides nothing about its rings.
                rings: rings.or(known.map(|known| &known.rings)).cloned().unwrap_or_default(),
                failed: failed_anew(known, decided, now),
                ..of_status(decided)
            };
            if let Some(known) = known.filter(|known| is_same_ring(known, &entry) && entry.reached.is_none()) {
                entry.undone = known.reached.map(|reached| reached.max(now)).max(known.undone);
            }
            entry
        });
        if changed || (told_again(&self.all.progress, &key, now) && is_offered(id)) {
            self.unsent.progress.insert(key);
        }
    }

    fn note_pause(&mut self, planned: &PolicyPlan, now: Timestamp) {
        let policy = planned.name.to_string();
        let known = self.all.pauses.get(&policy).map(|kept| kept.entry);
        let decided = match (planned.progress.paused, known) {
            (Some(paused), _) => Pause { paused: whole_seconds(paused), resumed: None },
            // The planner was told of the one that holds, and says that it is over.
            (None, Some(known)) => Pause { resumed: known.holds().or(known.resumed), ..known },
            (None, None) => return,
        };
        if note(&mut self.all.pauses, policy.clone(), |_| decided) || told_again(&self.all.pauses, &policy, now) {
            self.unsent.pauses.insert(policy);
        }
    }
}

/// Names of a policy's rings, if it can be understood.
fn rings(policy: &Policy) -> Option<Vec<String>> {
    let settings = policy.settings.as_ref().ok()?;
    Some(settings.rollout.rings.iter().map(|ring| ring.name.to_string()).collect())
}

fn seen((id, Kept { entry, .. }): (&String, &Kept<Sighting>)) -> Seen {
    let Sighting { first, by, shared, dates: Dates { shared: published, alone } } = entry;
    let alone = alone.as_ref().map(|Alone { at, by }| (*at, by.as_str().into()));
    let dates = model::Dates { shared: *published, alone };
    Seen { id: id.as_str().into(), first: *first, by: by.as_str().into(), shared: *shared, dates }
}

fn of_status(status: &UpdateProgress) -> Progress {
    Progress {
        rings: vec![],
        ring: status.ring.as_deref().map(str::to_owned),
        opened: whole_seconds(status.opened),
        reached: status.reached.map(whole_seconds),
        undone: None,
        stopped: status.stopped.map(whole_seconds),
        installed: status.installed,
        anywhere: status.anywhere,
        failed: Failures::default(),
    }
}

/// On which devices it was decided at `now` that an update failed.
fn failed_anew(known: Option<&Progress>, decided: &UpdateProgress, now: Timestamp) -> Failures {
    let on = decided.failed.iter().map(|it| FailedOn {
        device: it.device.to_string(),
        last: whole_seconds(it.last),
        ring: it.ring.as_deref().map(str::to_owned),
    });
    known.map_or(&Failures::default(), |known| &known.failed).anew(on.collect(), now)
}

/// On which devices an update failed by what status or the record tells: the planner finds out which of them do without it by now.
fn failed_in_either(status: Option<&UpdateProgress>, kept: &[FailedOn]) -> Vec<model::FailedOn> {
    let mut both: BTreeMap<Name, model::FailedOn> = BTreeMap::new();
    let kept = kept.iter().map(|FailedOn { device, last, ring }| model::FailedOn {
        device: device.as_str().into(),
        last: *last,
        ring: ring.as_deref().map(Into::into),
    });
    let told = status.into_iter().flat_map(|status| &status.failed).cloned();
    for failed in kept.chain(told) {
        match both.entry(failed.device.clone()) {
            Entry::Vacant(place) => drop(place.insert(failed)),
            Entry::Occupied(mut known) if known.get().last <= failed.last => drop(known.insert(failed)),
            Entry::Occupied(_) => (),
        }
    }
    both.into_values().take(MAX_FAILED).collect()
}

/// What is known of an update for the whole client, whatever policies and rings there are.
#[derive(Clone, Copy)]
struct OfClient {
    opened: Timestamp,
    stopped: Option<Timestamp>,
    anywhere: u32,
}

impl OfClient {
    fn of(entry: &Progress) -> Self {
        let Progress { opened, stopped, anywhere, .. } = entry;
        Self { opened: *opened, stopped: *stopped, anywhere: *anywhere }
    }

    fn is_nothing(self) -> bool {
        self.stopped.is_none() && self.anywhere == 0
    }
}

fn is_same_ring(one: &Progress, other: &Progress) -> bool {
    (&one.ring, one.opened) == (&other.ring, other.opened)
}

/// What status and the record come to, in a policy with these `rings` now. Where the rings were others, the record tells of what is
/// the client's only: that an update was proved in those says nothing about these.
fn with_record(status: Option<&UpdateProgress>, kept: &Progress, rings: Option<&[String]>) -> Option<UpdateProgress> {
    if rings != Some(kept.rings.as_slice()) {
        return with_client(status, OfClient::of(kept), &kept.failed.on, rings);
    }
    let failed = failed_in_either(status, &kept.failed.on);
    let both = match status.map(of_status) {
        None => kept.clone(),
        Some(status) => {
            let both = kept.and(&status);
            // One says that the minimum is lost: then it has to be reached again.
            let lost = is_same_ring(kept, &status) && status.reached.is_none();
            Progress { reached: both.reached.filter(|_| !lost), ..both }
        }
    };
    let Progress { ring, opened, reached, stopped, installed, anywhere, .. } = both;
    Some(UpdateProgress { ring: ring.map(Into::into), opened, reached, stopped, installed, anywhere, failed })
}

/// What status and what is the client's come to: an update of which status does not tell is at the beginning.
/// Those on which it failed do not count for it elsewhere than in the policy: `failed` are that policy's.
fn with_client(
    status: Option<&UpdateProgress>,
    known: OfClient,
    failed: &[FailedOn],
    rings: Option<&[String]>,
) -> Option<UpdateProgress> {
    let OfClient { opened, stopped, anywhere } = known;
    let failed = failed_in_either(status, failed);
    if let Some(status) = status {
        let (stopped, anywhere) = (status.stopped.max(stopped), status.anywhere.max(anywhere));
        return Some(UpdateProgress { stopped, anywhere, failed, ..status.clone() });
    }
    if known.is_nothing() && failed.is_empty() {
        return None;
    }
    let first = rings.and_then(|rings| rings.first()).map(String::as_str).unwrap_or_default();
    let opened = stopped.unwrap_or(opened);
    let ring = Some(first.into());
    Some(UpdateProgress { ring, opened, reached: None, stopped, installed: 0, anywhere, failed })
}

/// Whether it changes an entry to add what `decided` makes of it. What is more than is kept is not.
fn note<K: Ord, T: Forward>(all: &mut BTreeMap<K, Kept<T>>, key: K, decided: impl FnOnce(Option<&T>) -> T) -> bool {
    if let Some(kept) = all.get_mut(&key) {
        let both = kept.entry.and(&decided(Some(&kept.entry)));
        let changed = both != kept.entry;
        kept.entry = both;
        return changed;
    }
    let fits = all.len() < MAX_KEPT;
    if fits {
        all.insert(key, Kept::new(decided(None)));
    }
    fits
}

fn told_again<Q: ?Sized + Ord, K: Ord + std::borrow::Borrow<Q>, T>(
    all: &BTreeMap<K, Kept<T>>,
    key: &Q,
    now: Timestamp,
) -> bool {
    all.get(key).is_some_and(|kept| kept.told.saturating_add(TOLD_AGAIN).is_ok_and(|due| due <= now))
}

fn read<K: Ord + Clone, T: Forward>(
    all: &mut BTreeMap<K, Kept<T>>,
    unsent: &mut BTreeSet<K>,
    stored: BTreeMap<K, Kept<T>>,
) {
    unsent.extend(all.keys().filter(|key| !stored.contains_key(key)).cloned());
    for (key, stored) in stored {
        let stored = Kept { signature: String::new(), ..stored };
        let both = all.get(&key).map_or_else(|| stored.entry.clone(), |held| stored.entry.and(&held.entry));
        if both == stored.entry {
            unsent.remove(&key);
        } else {
            unsent.insert(key.clone());
        }
        all.insert(key, Kept { entry: both, ..stored });
    }
}

fn pick<K: Ord + Clone, T: Clone>(
    all: &BTreeMap<K, Kept<T>>,
    unsent: &BTreeSet<K>,
    count: usize,
) -> BTreeMap<K, Kept<T>> {
    unsent
        .iter()
        .take(count)
        .filter_map(|key| all.get_key_value(key))
        .map(|(key, kept)| (key.clone(), kept.clone()))
        .collect()
}

fn sent<K: Ord, T: Forward>(
    all: &mut BTreeMap<K, Kept<T>>,
    unsent: &mut BTreeSet<K>,
    entries: &BTreeMap<K, Kept<T>>,
    now: Timestamp,
) {
    for (key, sent) in entries {
        let Some(held) = all.get_mut(key) else { continue };
        held.told = now;
        // It may have gone on meanwhile.
        if held.entry == sent.entry {
            unsent.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use patchwarden_protocol::Envelope;
    use patchwarden_protocol::key::PrivateKey;
    use patchwarden_protocol::report::{Classification, Severity};
    use serde_json::json;

    use super::*;
    use crate::api::device_inventory::Compliance;
    use crate::api::{ApprovalGroup, DeviceInventory, PatchPolicy};
    use crate::convert;
    use crate::gateway::testing;
    use crate::plan::Plan;
    use crate::plan::model::{self, Catalogue, Update};
    use crate::plan::outcome::{ComplianceCounts, Decision, Others};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A policy with these rings, whose status tells nothing, among devices that offer `u`.
    fn snapshot(rings: &[&str]) -> Snapshot {
        let rings: Vec<_> = rings.iter().map(|name| json!({"name": name, "selector": {}, "soak": "0m"})).collect();
        let spec = json!({"rollout": {"maxConcurrent": 1, "rings": rings}});
        let policy = convert::policy(&PatchPolicy::new("servers", serde_json::from_value(spec).unwrap()));
        let mut snapshot = Snapshot { policies: vec![policy], ..Snapshot::default() };
        snapshot.updates.intern(Update {
            id: "u".into(),
            classification: Classification::Security,
            severity: Severity::Unknown,
            packages: vec![],
            cves: vec![],
            published: None,
        });
        snapshot
    }

    fn come(ring: Option<&str>, opened: i64, reached: Option<i64>, stopped: Option<i64>) -> UpdateProgress {
        UpdateProgress {
            ring: ring.map(Into::into),
            opened: at(opened),
            reached: reached.map(at),
            stopped: stopped.map(at),
            installed: 0,
            anywhere: 0,
            failed: vec![],
        }
    }

    /// The plan that decides so for the policy's updates.
    fn plan(updates: &[(&str, UpdateProgress)], paused: Option<i64>, seen: &[Seen]) -> Plan {
        let progress = model::Progress {
            updates: updates.iter().map(|(id, progress)| ((*id).into(), progress.clone())).collect(),
            paused: paused.map(at),
            ..model::Progress::default()
        };
        let policy = PolicyPlan {
            name: "servers".into(),
            devices: 0,
            compliant: 0,
            states: ComplianceCounts::default(),
            overdue: 0,
            forecast: None,
            installing: 0,
            failed: 0,
            open: false,
            next_window: None,
            stalled: None,
            never_opens: false,
            unprovable: None,
            too_short: None,
            missing_groups: Arc::default(),
            missing_excluded_groups: Arc::default(),
            unknown_devices: Others::default(),
            unlabelled: false,
            overlap: None,
            rings: vec![],
            progress: Arc::new(progress),
        };
        let group = GroupPlan {
            name: "all".into(),
            devices: 0,
            states: ComplianceCounts::default(),
            seen: seen.into(),
            invalid: None,
            stalled: None,
            failed: None,
            unknown_devices: Others::default(),
        };
        Plan { policies: vec![policy], groups: vec![group], windows: vec![], devices: vec![], next_look: None }
    }

    fn sighting(first: i64, by: &str, shared: Option<i64>) -> Seen {
        let dates = model::Dates::default();
        Seen { id: "u".into(), first: at(first), by: by.into(), shared: shared.map(at), dates }
    }

    /// What a plan for a policy with these rings left, as it comes back from the store.
    fn stored(rings: &[&str], plan: &Plan) -> Entries {
        let mut held = Held::default();
        note(&mut held, &snapshot(rings), plan, &BTreeSet::new(), at(1000));
        held.to_send(usize::MAX)
    }

    fn read(stored: Entries) -> Held {
        let mut held = Held::default();
        held.read(stored);
        held
    }

    fn note(held: &mut Held, world: &Snapshot, plan: &Plan, left_out: &BTreeSet<Name>, now: Timestamp) {
        let told = plan.policies.iter().filter(|planned| !left_out.contains(&planned.name));
        let policies = told.map(|planned| (&world.policies[0], planned)).collect();
        let is_offered = |id: &Name| world.updates.all().any(|update| update.id == *id);
        held.note(&Decided { policies, groups: plan.groups.iter().collect(), is_offered: Box::new(is_offered) }, now);
    }

    /// What is planned with when status tells `status` of `u`.
    fn completed(held: &mut Held, rings: &[&str], status: Option<&UpdateProgress>) -> Option<UpdateProgress> {
        let mut snapshot = snapshot(rings);
        let updates = &mut Arc::make_mut(&mut snapshot.policies[0].progress).updates;
        updates.extend(status.map(|status| ("u".into(), status.clone())));
        let told_less = held.complete(&mut snapshot);
        let both = snapshot.policies[0].progress.updates.get("u").cloned();
        assert_eq!(told_less.contains("servers"), both.as_ref() != status);
        both
    }

    #[test]
    fn a_policy_that_is_made_again_has_its_rings_and_stops_back() {
        let rest = come(None, 30, None, Some(35));
        let mut held = read(stored(&["pilot", "most"], &plan(&[("u", rest.clone())], None, &[])));
        assert_eq!(completed(&mut held, &["pilot", "most"], None), Some(rest.clone()));
        // Also while nobody offers it.
        let mut nobody = snapshot(&["pilot", "most"]);
        nobody.updates = Catalogue::default();
        assert!(!held.complete(&mut nobody).is_empty());
        // Later news of status counts; what is older than the record does not, and the stop stays in any case.
        let behind = come(Some("pilot"), 10, Some(20), None);
        assert_eq!(completed(&mut held, &["pilot", "most"], Some(&behind)), Some(rest.clone()));
        let ahead = come(Some("pilot"), 40, None, None);
        let with_stop = UpdateProgress { stopped: Some(at(35)), ..ahead.clone() };
        assert_eq!(completed(&mut held, &["pilot", "most"], Some(&ahead)), Some(with_stop));
    }

    #[test]
    fn what_was_stopped_in_a_policy_that_is_gone_is_stopped_in_the_others() {
        let mut decided =
            plan(&[("u", come(None, 30, None, Some(35))), ("v", come(None, 30, None, Some(35)))], None, &[]);
        decided.policies[0].name = "gone".into();
        let mut held = read(stored(&["pilot"], &decided));
        let stopped = come(Some("pilot"), 35, None, Some(35));
        assert_eq!(completed(&mut held, &["pilot"], None), Some(stopped), "and nothing else of it");
        let status = come(None, 10, None, None);
        let with_stop = UpdateProgress { stopped: Some(at(35)), ..status.clone() };
        assert_eq!(completed(&mut held, &["pilot"], Some(&status)), Some(with_stop));
    }

    #[test]
    fn what_other_rings_proved_does_not_count_and_a_stop_does() {
        let rest = come(None, 30, None, None);
        let proved = plan(&[("u", rest.clone())], None, &[]);
        let mut held = read(stored(&["pilot"], &proved));
        assert_eq!(completed(&mut held, &["pilot"], None), Some(rest.clone()));
        for others in [&["test", "pilot"][..], &["other"], &[]] {
            assert_eq!(completed(&mut held, others, None), None, "{others:?}");
            assert_eq!(completed(&mut held, others, Some(&rest)), Some(rest.clone()), "status is the planner's matter");
        }
        let stopped = plan(&[("u", come(None, 30, None, Some(35)))], None, &[]);
        let mut held = read(stored(&["pilot"], &stopped));
        assert_eq!(completed(&mut held, &["test", "pilot"], None), Some(come(Some("test"), 35, None, Some(35))));
    }

    #[test]
    fn how_many_devices_installed_an_update_is_known_whatever_status_tells() {
        let known = |ring, installed, anywhere| UpdateProgress { installed, anywhere, ..come(ring, 10, None, None) };
        let mut held = read(stored(&["pilot"], &plan(&[("u", known(Some("pilot"), 7, 58))], None, &[])));
        assert_eq!(completed(&mut held, &["pilot"], None), Some(known(Some("pilot"), 7, 58)));
        let status = known(Some("pilot"), 3, 77);
        assert_eq!(completed(&mut held, &["pilot"], Some(&status)), Some(known(Some("pilot"), 7, 77)));
        // In other rings the client's number counts, and no ring's.
        assert_eq!(completed(&mut held, &["test"], None), Some(known(Some("test"), 0, 58)));
        let mut gone = plan(&[("u", known(Some("pilot"), 7, 58))], None, &[]);
        gone.policies[0].name = "gone".into();
        let mut held = read(stored(&["pilot"], &gone));
        assert_eq!(completed(&mut held, &["pilot"], None), Some(known(Some("pilot"), 0, 58)));
    }

    #[test]
    fn on_which_devices_an_update_failed_is_known_until_that_is_over() {
        let on = |device: &str, last: i64, ring: Option<&str>| model::FailedOn {
            device: device.into(),
            last: at(last),
            ring: ring.map(Into::into),
        };
        let failed =
            |on: &[model::FailedOn]| UpdateProgress { failed: on.to_vec(), ..come(Some("pilot"), 10, None, None) };
        let one = on("web-1", 12, Some("pilot"));
        let mut held = read(stored(&["pilot"], &plan(&[("u", failed(std::slice::from_ref(&one)))], None, &[])));
        // A policy that is made again.
        assert_eq!(completed(&mut held, &["pilot"], None), Some(failed(std::slice::from_ref(&one))));
        // Also if its rings are others by now; not in another policy.
        let in_test = UpdateProgress { failed: vec![one.clone()], ..come(Some("test"), 10, None, None) };
        assert_eq!(completed(&mut held, &["test"], None), Some(in_test));
        let mut of_gone = plan(&[("u", failed(std::slice::from_ref(&one)))], None, &[]);
        of_gone.policies[0].name = "gone".into();
        assert_eq!(completed(&mut read(stored(&["pilot"], &of_gone)), &["pilot"], None), None);
        // What status tells besides, and when it failed last, whoever tells that.
        let (again, other) = (on("web-1", 20, Some("pilot")), on("web-2", 11, None));
        let both = failed(&[again.clone(), other.clone()]);
        assert_eq!(completed(&mut held, &["pilot"], Some(&both)), Some(both.clone()));
        let late = failed(&[on("web-1", 11, None), other]);
        let known = failed(&[one, on("web-2", 11, None)]);
        assert_eq!(completed(&mut held, &["pilot"], Some(&late)), Some(known));
        // Once it is over the record says so, whatever it was told before.
        let before = held.clone();
        for (decided, second) in [(&both, 1001), (&failed(&[]), 1001)] {
            note(
                &mut held,
                &snapshot(&["pilot"]),
                &plan(&[("u", decided.clone())], None, &[]),
                &BTreeSet::new(),
                at(second),
            );
        }
        let mut held = read(held.to_send(usize::MAX));
        held.read(before.to_send(usize::MAX));
        assert_eq!(completed(&mut held, &["pilot"], None), Some(failed(&[])));
    }

    #[test]
    fn what_is_decided_before_the_store_was_read_does_not_let_go_of_devices_that_only_it_knows() {
        let failed = |names: &[&str]| UpdateProgress {
            failed: names
                .iter()
                .map(|name| model::FailedOn { device: (*name).into(), last: at(12), ring: None })
                .collect(),
            ..come(Some("pilot"), 10, None, None)
        };
        let known = stored(&["pilot"], &plan(&[("u", failed(&["web-1"]))], None, &[]));
        for (decided, both) in [(&["web-2"][..], &["web-1", "web-2"][..]), (&[], &["web-1"]), (&["web-1"], &["web-1"])]
        {
            let mut held = Held::default();
            note(
                &mut held,
                &snapshot(&["pilot"]),
                &plan(&[("u", failed(decided))], None, &[]),
                &BTreeSet::new(),
                at(2000),
            );
            held.read(known.clone());
            assert_eq!(completed(&mut held, &["pilot"], None), Some(failed(both)), "{decided:?}");
            // What is decided from then on counts.
            note(&mut held, &snapshot(&["pilot"]), &plan(&[("u", failed(&[]))], None, &[]), &BTreeSet::new(), at(2001));
            held.read(known.clone());
            assert_eq!(completed(&mut held, &["pilot"], None), Some(failed(&[])), "{decided:?}");
        }
    }

    #[test]
    fn a_minimum_that_either_side_says_is_lost_has_to_be_reached_again() {
        let reached = |reached| plan(&[("u", come(Some("pilot"), 10, reached, None))], None, &[]);
        let (known, lost) = (stored(&["pilot"], &reached(Some(20))), come(Some("pilot"), 10, None, None));
        assert_eq!(completed(&mut read(known.clone()), &["pilot"], Some(&lost)), Some(lost.clone()));
        let mut held = read(known);
        note(&mut held, &snapshot(&["pilot"]), &reached(None), &BTreeSet::new(), at(25));
        let mut held = read(held.to_send(usize::MAX));
        // Status from a backup.
        assert_eq!(
            completed(&mut held, &["pilot"], Some(&come(Some("pilot"), 10, Some(20), None))),
            Some(lost.clone())
        );
        assert_eq!(completed(&mut held, &["pilot"], None), Some(lost));
        let again = come(Some("pilot"), 10, Some(30), None);
        assert_eq!(completed(&mut held, &["pilot"], Some(&again)), Some(again.clone()));
    }

    #[test]
    fn a_pause_comes_back_until_it_was_over() {
        let paused = |held: &mut Held| {
            let mut snapshot = snapshot(&["pilot"]);
            held.complete(&mut snapshot);
            snapshot.policies[0].progress.paused
        };
        let mut held = read(stored(&["pilot"], &plan(&[], Some(50), &[])));
        assert_eq!(paused(&mut held), Some(at(50)));
        note(&mut held, &snapshot(&["pilot"]), &plan(&[], None, &[]), &BTreeSet::new(), at(60));
        assert_eq!(paused(&mut held), None);
        assert_eq!(paused(&mut read(held.to_send(usize::MAX))), None);
        note(&mut held, &snapshot(&["pilot"]), &plan(&[], Some(70), &[]), &BTreeSet::new(), at(70));
        assert_eq!(paused(&mut read(held.to_send(usize::MAX))), Some(at(70)));
    }

    #[test]
    fn sightings_are_the_clients_whatever_groups_there_are() {
        let mut held = read(stored(&[], &plan(&[], None, &[sighting(10, "web-1", None)])));
        let mut snapshot = snapshot(&[]);
        held.complete(&mut snapshot);
        assert_eq!(snapshot.seen, [sighting(10, "web-1", None)]);
        note(&mut held, &snapshot, &plan(&[], None, &[sighting(10, "web-1", Some(20))]), &BTreeSet::new(), at(1000));
        held.complete(&mut snapshot);
        assert_eq!(snapshot.seen, [sighting(10, "web-1", Some(20))]);
        // So are the vendor's dates.
        let told = model::Dates { shared: Some(at(5)), alone: Some((at(3), "web-2".into())) };
        let dated = Seen { dates: told, ..sighting(10, "web-1", Some(20)) };
        held.sent(&held.to_send(usize::MAX), at(1000));
        note(&mut held, &snapshot, &plan(&[], None, std::slice::from_ref(&dated)), &BTreeSet::new(), at(1000));
        assert_eq!(held.unsent(), 1);
        let mut held = read(held.to_send(usize::MAX));
        held.complete(&mut snapshot);
        assert_eq!(snapshot.seen, std::slice::from_ref(&dated));
        note(&mut held, &snapshot, &plan(&[], None, &[dated]), &BTreeSet::new(), at(1000));
        assert_eq!(held.unsent(), 0);
    }

    #[test]
    fn an_update_that_the_client_has_known_for_long_does_not_age_anew() {
        let (key, now) = (PrivateKey::generate(), "2026-06-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let mut report = testing::report("acme", "web-9");
        let mut update = testing::update("u");
        // A second that is not over, as no record has it.
        update.published = Some(now - SignedDuration::from_hours(24) + SignedDuration::from_millis(400));
        report.updates = vec![update];
        let signature = Envelope::seal(&report, &key).unwrap().signatures.remove(0);
        let device = serde_json::from_value(json!({
            "apiVersion": "patchwarden.io/v1alpha1", "kind": "DeviceInventory",
            "metadata": {"name": "web-9", "namespace": "acme"}, "spec": {"acceptedKey": key.public().fingerprint()},
            "status": {"inventory": {
                "report": report, "signature": signature, "publicKey": key.public(), "online": true,
            }},
        }));
        let device: DeviceInventory = device.unwrap();
        let after_a_week = |clock: &str| {
            let spec = json!({
                "members": {"selector": {}}, "minArtifactAge": "0m",
                "rules": [{"name": "r", "action": "Approve", "after": "7d", "clock": clock}],
            });
            ApprovalGroup::new("all", serde_json::from_value(spec).unwrap())
        };
        let decision_by = |clock: &str, held: &mut Held| {
            let none = Compliance::default();
            let group = after_a_week(clock);
            let groups = vec![convert::group(&group, "patchwarden-system")];
            let devices = [(&device, &none)].into_iter();
            let mut snapshot = convert::snapshot(
                [].into_iter(),
                groups,
                [].into_iter(),
                devices,
                &crate::vulnerabilities::Vulnerabilities::default(),
                now,
            );
            held.complete(&mut snapshot);
            let plan = crate::plan::plan(&snapshot, now);
            let alone = plan.groups[0].seen[0].dates.alone.clone();
            assert!(alone.is_none_or(|(at, _)| at.subsec_nanosecond() == 0), "whole seconds");
            plan.devices[0].updates[0].decision
        };
        let decision = |held: &mut Held| decision_by("FirstSeen", held);
        assert_eq!(decision(&mut Held::default()), Decision::Aging);
        let month_ago = (now - SignedDuration::from_hours(30 * 24)).as_second();
        let alone = plan(&[], None, &[sighting(month_ago, "web-1", None)]);
        assert_eq!(decision(&mut read(stored(&[], &alone))), Decision::Aging, "one odd device ages nothing for others");
        let shared = plan(&[], None, &[sighting(month_ago - 1, "web-1", Some(month_ago))]);
        assert_eq!(decision(&mut read(stored(&[], &shared))), Decision::Approved);
        // Likewise by the vendor's date, which was another once.
        let dated = |dates| {
            let seen = Seen { dates, ..sighting(now.as_second() - 60, "web-1", Some(now.as_second())) };
            decision_by("Published", &mut read(stored(&[], &plan(&[], None, &[seen]))))
        };
        assert_eq!(dated(model::Dates::default()), Decision::Aging);
        let alone = |by: &str| model::Dates { shared: None, alone: Some((at(month_ago), by.into())) };
        assert_eq!((dated(alone("web-1")), dated(alone("web-9"))), (Decision::Aging, Decision::Approved));
        assert_eq!(dated(model::Dates { shared: Some(at(month_ago)), alone: None }), Decision::Approved);
    }

    #[test]
    fn the_store_is_told_of_differences_and_after_a_month_of_what_is_still_offered() {
        let decided = plan(&[("u", come(Some("pilot"), 10, Some(20), None))], Some(50), &[sighting(10, "web-1", None)]);
        let (world, nobody) = (snapshot(&["pilot"]), BTreeSet::new());
        let mut held = Held::default();
        note(&mut held, &world, &decided, &nobody, at(1000));
        assert_eq!((held.unsent(), held.to_send(2).len()), (3, 2));
        let (told, month) = (at(1000), at(1000) + TOLD_AGAIN);
        let sent = held.to_send(10);
        note(&mut held, &world, &plan(&[("u", come(None, 30, None, None))], Some(50), &[]), &nobody, at(1001));
        held.sent(&sent, told);
        assert_eq!(held.unsent(), 1, "what went on meanwhile is told, too");
        held.sent(&held.to_send(10), told);
        let decided = plan(&[("u", come(None, 30, None, None))], Some(50), &[sighting(10, "web-1", None)]);
        note(&mut held, &world, &decided, &nobody, month - SignedDuration::from_secs(1));
        assert_eq!(held.unsent(), 0);
        let offered_no_more = Snapshot { updates: Catalogue::default(), ..world.clone() };
        note(&mut held, &offered_no_more, &decided, &nobody, month);
        assert_eq!(held.unsent(), 1, "the pause: its policy is still there");
        note(&mut held, &world, &decided, &nobody, month);
        assert_eq!(held.unsent(), 3);
    }

    #[test]
    fn a_store_that_lacks_something_is_told_again_and_what_was_not_written_is_left_out() {
        let decided = plan(&[("u", come(None, 30, None, None))], None, &[sighting(10, "web-1", None)]);
        let mut held = Held::default();
        note(&mut held, &snapshot(&["pilot"]), &decided, &["servers".into()].into(), at(1000));
        assert_eq!((held.to_send(9).progress.len(), held.unsent()), (0, 1));
        note(&mut held, &snapshot(&["pilot"]), &decided, &BTreeSet::new(), at(1000));
        let sent = held.to_send(9);
        held.sent(&sent, at(1000));
        held.read(sent.clone());
        assert_eq!(held.unsent(), 0);
        // A backup of the store: one entry is older, the other not there yet.
        let mut older = stored(&["pilot"], &plan(&[("u", come(Some("pilot"), 10, None, None))], None, &[]));
        older.sightings.clear();
        held.read(older);
        assert_eq!(
            held.to_send(9).progress.values().next().unwrap().entry,
            sent.progress.values().next().unwrap().entry
        );
        assert_eq!(held.unsent(), 2);
    }

    #[test]
    fn more_than_is_kept_is_not_taken() {
        let many: Vec<Seen> = (0..=MAX_KEPT)
            .map(|number| Seen { id: format!("u{number}").into(), ..sighting(10, "web-1", None) })
            .collect();
        let mut held = Held::default();
        note(&mut held, &snapshot(&[]), &plan(&[], None, &many), &BTreeSet::new(), at(1000));
        assert_eq!(held.unsent(), MAX_KEPT);
        note(
            &mut held,
            &snapshot(&[]),
            &plan(&[], None, &[Seen { id: "u5".into(), ..sighting(5, "web-2", None) }]),
            &BTreeSet::new(),
            at(1000),
        );
        assert_eq!(held.to_send(usize::MAX).sightings["u5"].entry.by, "web-2");
    }
}
