//! The lasting record of a client's history, and how two accounts of it become one. Pure; the store keeps it, the controller
//! writes it.
//!
//! Every entry only goes forward, so that accounts may come late, twice, or from a backup:
//!
//! - A sighting: the earliest counts, and of the earliest by two different devices the later one counts for all. So it is with the
//!   vendor's dates that they tell.
//! - Progress: the ring that was opened later counts, with the time at which it reached its minimum, unless failures have undone
//!   that since. Where two were opened in the same second the account that came later counts.
//! - Of how many devices installed an update the largest number counts: of a ring while that is the ring, of the client always.
//! - A stop stays, and a later one replaces an earlier one: what lifts it is a decision (`Reprocess`), which is no part of this.
//! - Of the lists of devices on which an update failed the one that was decided last counts.
//! - A pause stays until it is over; which ones are over is kept, too.
//!
//! Each entry is signed by the controller, as a [`Statement`]: whoever holds the store can withhold what happened, and cannot
//! make up that an update was proved or known for long.
//!
//! Times are whole seconds, as in status.

mod wire;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patchwarden_protocol::canonical::NotCanonical;
use patchwarden_protocol::envelope::Signature;
use patchwarden_protocol::key::{PrivateKey, PublicKey};
use patchwarden_protocol::{Document, Envelope};
use serde::{Deserialize, Serialize};

pub use wire::{BadEntry, entries, to_wire};

/// Of how many devices on which an update failed a policy keeps the names.
pub const MAX_FAILED: usize = 16;

/// How many updates of a client, and how many of its policies together, are kept: no device may fill a disk.
pub const MAX_KEPT: usize = 20_000;

/// Since when an update is known in the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The first sighting.
    pub first: Timestamp,
    /// The device whose it was.
    pub by: String,
    /// The first by another device.
    pub shared: Option<Timestamp>,
    /// When the vendor published it.
    #[serde(default, skip_serializing_if = "Dates::is_empty")]
    pub dates: Dates,
}

/// When the vendor published an update: the earliest that devices tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dates {
    /// What several devices tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Timestamp>,
    /// An earlier date that a single one tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Alone>,
}

/// What a single device tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alone {
    /// The date.
    pub at: Timestamp,
    /// The device.
    pub by: String,
}

impl Dates {
    /// What was signed before there were any has none.
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Of two dates that different devices tell the later one is shared.
    fn and(&self, newer: &Self) -> Self {
        let mut alone: Vec<&Alone> = self.alone.iter().chain(&newer.alone).collect();
        alone.sort_unstable();
        let first = alone.first().copied();
        let other = alone.iter().find(|it| first.is_some_and(|first| it.by != first.by)).map(|it| it.at);
        let shared = [self.shared, newer.shared, other].into_iter().flatten().min();
        Self { shared, alone: first.filter(|first| shared.is_none_or(|shared| first.at < shared)).cloned() }
    }
}

/// How far an update has come in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Names of the policy's rings, in their order, when that was decided.
    pub rings: Vec<String>,
    /// The last ring that has it; none: the rest of the devices have it, too.
    pub ring: Option<String>,
    /// Since when.
    pub opened: Timestamp,
    /// When that ring reached its minimum, if that still holds.
    pub reached: Option<Timestamp>,
    /// When failures last undid that.
    pub undone: Option<Timestamp>,
    /// When it was last stopped.
    pub stopped: Option<Timestamp>,
    /// On how many devices of that ring it is known to have been installed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub installed: u32,
    /// On how many devices of the client, as far as that matters.
    #[serde(default, skip_serializing_if = "is_none")]
    pub anywhere: u32,
    /// On which devices it failed.
    #[serde(default, skip_serializing_if = "Failures::is_empty")]
    pub failed: Failures,
}

/// On which devices an update failed, also once they are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// When that was decided; none where nothing has been.
    pub as_of: Option<Timestamp>,
    /// Those, by name.
    pub on: Vec<FailedOn>,
}

/// A device on which an update failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FailedOn {
    /// Its name.
    pub device: String,
    /// When it failed last.
    pub last: Timestamp,
    /// The ring that it was in; none in the rest, or without rings.
    pub ring: Option<String>,
}

impl Failures {
    /// What was signed before there were any has none.
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These and those that somebody else has decided without knowing of them, as of a second after both; none where they are the same.
    #[must_use]
    pub fn with(&self, others: &Self) -> Option<Self> {
        let mut on: BTreeMap<&str, &FailedOn> = BTreeMap::new();
        for failed in others.on.iter().chain(&self.on) {
            let known = on.entry(&failed.device).or_insert(failed);
            if known.last <= failed.last {
                *known = failed;
            }
        }
        let last = self.max(others);
        let on = on.into_values().take(MAX_FAILED).cloned().collect();
        (self.on != others.on).then(|| last.later(on))
    }

    /// These, where they are not what is known: decided at `now`, or a second after that.
    #[must_use]
    pub fn anew(&self, on: Vec<FailedOn>, now: Timestamp) -> Self {
        if self.on == on {
            return self.clone();
        }
        let later = self.later(on);
        Self { as_of: Some(now).max(later.as_of), ..later }
    }

    /// As of a second after these.
    fn later(&self, on: Vec<FailedOn>) -> Self {
        Self { as_of: self.as_of.and_then(|as_of| as_of.checked_add(SignedDuration::from_secs(1)).ok()), on }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// The last time that a policy's rollout paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When.
    pub paused: Timestamp,
    /// Pauses until then are over.
    pub resumed: Option<Timestamp>,
}

/// An entry, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<T> {
    /// The entry.
    pub entry: T,
    /// When the store was last told of it; [`Timestamp::UNIX_EPOCH`] for never.
    pub told: Timestamp,
    /// Base64 of the controller's signature over its [`Statement`]; empty where there is none yet.
    pub signature: String,
}

impl<T> Kept<T> {
    /// An entry that the store was not told of.
    pub fn new(entry: T) -> Self {
        Self { entry, told: Timestamp::UNIX_EPOCH, signature: String::new() }
    }
}

/// What the controller signs of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Statement {
    /// Since when an update is known.
    Sighting {
        /// In this client's namespace.
        namespace: String,
        /// The update's id.
        update: String,
        /// That.
        entry: Sighting,
    },
    /// How far an update has come.
    Progress {
        /// In this client's namespace.
        namespace: String,
        /// In this policy.
        policy: String,
        /// The update's id.
        update: String,
        /// That.
        entry: Progress,
    },
    /// When a rollout paused.
    Pause {
        /// In this client's namespace.
        namespace: String,
        /// That of this policy.
        policy: String,
        /// That.
        entry: Pause,
    },
}

impl Document for Statement {
    const TYPE: &'static str = "application/vnd.patchwarden.record.v1+json";
}

impl Statement {
    fn sign(&self, key: &PrivateKey) -> Result<String, NotCanonical> {
        let signature = Envelope::seal(self, key)?.signatures.into_iter().next();
        Ok(signature.map(|signature| signature.sig).unwrap_or_default())
    }

    fn is_signed(&self, signature: &str, keys: &[PublicKey]) -> bool {
        keys.iter().any(|key| {
            let signature = Signature { keyid: key.fingerprint().into(), sig: signature.to_owned() };
            Envelope::reassemble(self, signature).is_ok_and(|envelope| envelope.open(key).is_ok())
        })
    }
}

/// Some or all entries of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// By the updates' ids.
    pub sightings: BTreeMap<String, Kept<Sighting>>,
    /// By the names of the policies and the updates' ids.
    pub progress: BTreeMap<(String, String), Kept<Progress>>,
    /// By the names of the policies.
    pub pauses: BTreeMap<String, Kept<Pause>>,
}

impl Entries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.sightings.len() + self.progress.len() + self.pauses.len()
    }

    /// The latest time in any of them, but for vendors' dates: these may be to come.
    pub fn latest(&self) -> Option<Timestamp> {
        let sightings = self.sightings.values().flat_map(|Kept { entry, .. }| [Some(entry.first), entry.shared]);
        let progress = self.progress.values().flat_map(|Kept { entry, .. }| {
            [Some(entry.opened), entry.reached, entry.undone, entry.stopped, entry.failed.as_of]
        });
        let pauses = self.pauses.values().flat_map(|Kept { entry, .. }| [Some(entry.paused), entry.resumed]);
        sightings.chain(progress).chain(pauses).flatten().max()
    }

    /// Signs every one as an entry of the client's `namespace`.
    pub fn sign(&mut self, namespace: &str, key: &PrivateKey) -> Result<(), NotCanonical> {
        let namespace = || namespace.to_owned();
        for (update, kept) in &mut self.sightings {
            let (update, entry) = (update.clone(), kept.entry.clone());
            kept.signature = Statement::Sighting { namespace: namespace(), update, entry }.sign(key)?;
        }
        for ((policy, update), kept) in &mut self.progress {
            let (policy, update, entry) = (policy.clone(), update.clone(), kept.entry.clone());
            kept.signature = Statement::Progress { namespace: namespace(), policy, update, entry }.sign(key)?;
        }
        for (policy, kept) in &mut self.pauses {
            let (policy, entry) = (policy.clone(), kept.entry);
            kept.signature = Statement::Pause { namespace: namespace(), policy, entry }.sign(key)?;
        }
        Ok(())
    }

    /// Drops what none of `keys` has signed as an entry of the client's `namespace`. Returns how many those were.
    pub fn drop_unsigned(&mut self, namespace: &str, keys: &[PublicKey]) -> usize {
        let before = self.len();
        let namespace = || namespace.to_owned();
        self.sightings.retain(|update, kept| {
            let (update, entry) = (update.clone(), kept.entry.clone());
            Statement::Sighting { namespace: namespace(), update, entry }.is_signed(&kept.signature, keys)
        });
        self.progress.retain(|(policy, update), kept| {
            let (policy, update, entry) = (policy.clone(), update.clone(), kept.entry.clone());
            Statement::Progress { namespace: namespace(), policy, update, entry }.is_signed(&kept.signature, keys)
        });
        self.pauses.retain(|policy, kept| {
            let (policy, entry) = (policy.clone(), kept.entry);
            Statement::Pause { namespace: namespace(), policy, entry }.is_signed(&kept.signature, keys)
        });
        before - self.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What only goes forward.
pub trait Forward: Clone + PartialEq {
    /// What this and a `newer` account come to.
    #[must_use]
    fn and(&self, newer: &Self) -> Self;
}

impl Forward for Sighting {
    fn and(&self, newer: &Self) -> Self {
        let (earlier, later) =
            if (newer.first, &newer.by) < (self.first, &self.by) { (newer, self) } else { (self, newer) };
        // A device alone does not make it known to the others, however often it is told of.
        let other = (earlier.by != later.by).then_some(later.first);
        let shared = [earlier.shared, later.shared, other].into_iter().flatten().min();
        Self { first: earlier.first, by: earlier.by.clone(), shared, dates: self.dates.and(&newer.dates) }
    }
}

impl Forward for Progress {
    fn and(&self, newer: &Self) -> Self {
        let (stopped, anywhere) = (self.stopped.max(newer.stopped), self.anywhere.max(newer.anywhere));
        let failed = (&self.failed).max(&newer.failed).clone();
        if newer.opened < self.opened {
            return Self { stopped, anywhere, failed, ..self.clone() };
        }
        if newer.opened > self.opened || newer.ring != self.ring {
            return Self { stopped, anywhere, failed, ..newer.clone() };
        }
        let installed = self.installed.max(newer.installed);
        let undone = self.undone.max(newer.undone);
        let reached = self.reached.max(newer.reached).filter(|reached| undone.is_none_or(|undone| *reached > undone));
        Self { reached, undone, stopped, installed, anywhere, failed, ..newer.clone() }
    }
}

impl Pause {
    /// Since when the rollout is paused, if it is.
    pub fn holds(self) -> Option<Timestamp> {
        Some(self.paused).filter(|paused| self.resumed.is_none_or(|resumed| *paused > resumed))
    }
}

impl Forward for Pause {
    fn and(&self, newer: &Self) -> Self {
        Self { paused: self.paused.max(newer.paused), resumed: self.resumed.max(newer.resumed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn seen(first: i64, by: &str, shared: Option<i64>) -> Sighting {
        Sighting { first: at(first), by: by.into(), shared: shared.map(at), dates: Dates::default() }
    }

    fn progress(ring: Option<&str>, opened: i64, reached: Option<i64>) -> Progress {
        Progress {
            rings: vec!["pilot".into(), "most".into()],
            ring: ring.map(Into::into),
            opened: at(opened),
            reached: reached.map(at),
            undone: None,
            stopped: None,
            installed: 0,
            anywhere: 0,
            failed: Failures::default(),
        }
    }

    /// What accounts come to, in whatever order they come, and however often.
    fn all_orders<T: Forward + std::fmt::Debug>(accounts: &[T]) -> T {
        let together = |order: &[usize]| {
            order.iter().map(|index| accounts[*index].clone()).reduce(|so_far, next| so_far.and(&next)).unwrap()
        };
        let count = accounts.len();
        let first = together(&(0..count).collect::<Vec<_>>());
        let mut orders: Vec<Vec<usize>> = vec![vec![]];
        for _ in 0..count {
            let shorter = std::mem::take(&mut orders);
            for (order, next) in shorter.iter().flat_map(|order| (0..count).map(move |next| (order, next))) {
                if !order.contains(&next) {
                    orders.push([order.as_slice(), &[next]].concat());
                }
            }
        }
        for order in orders {
            assert_eq!(together(&order), first, "in the order {order:?}");
            assert_eq!(first.and(&together(&order)), first, "told twice");
        }
        first
    }

    #[test]
    fn the_earliest_sighting_counts_and_another_devices_counts_for_all() {
        let three = [seen(10, "a", None), seen(20, "b", None), seen(30, "c", Some(40))];
        assert_eq!(all_orders(&three), seen(10, "a", Some(20)));
        // Neither the same device again nor one that was told before starts the clock for the others.
        assert_eq!(all_orders(&[seen(10, "a", None), seen(20, "a", None)]), seen(10, "a", None));
        assert_eq!(all_orders(&[seen(10, "a", Some(15)), seen(5, "b", None)]), seen(5, "b", Some(10)));
        assert_eq!(all_orders(&[seen(10, "b", None), seen(10, "a", None)]), seen(10, "a", Some(10)));
    }

    #[test]
    fn the_earliest_dates_count_and_what_a_second_device_tells_counts_for_all() {
        let alone = |at: i64, by: &str| Some(Alone { at: self::at(at), by: by.into() });
        let dated = |shared: Option<i64>, alone| Sighting {
            dates: Dates { shared: shared.map(at), alone },
            ..seen(10, "a", Some(20))
        };
        let three = [dated(None, alone(10, "a")), dated(None, alone(20, "b")), dated(None, alone(30, "c"))];
        assert_eq!(all_orders(&three), dated(Some(20), alone(10, "a")));
        assert_eq!(all_orders(&[dated(None, alone(10, "a")), dated(None, alone(10, "b"))]), dated(Some(10), None));
        // Published again, as the same device tells it.
        assert_eq!(
            all_orders(&[dated(None, alone(10, "a")), dated(None, alone(20, "a"))]),
            dated(None, alone(10, "a"))
        );
        let again = [dated(Some(20), alone(10, "a")), dated(Some(30), alone(15, "a")), dated(None, None)];
        assert_eq!(all_orders(&again), dated(Some(20), alone(10, "a")));
        assert_eq!(all_orders(&[dated(Some(20), None), dated(None, alone(25, "a"))]), dated(Some(20), None));
    }

    #[test]
    fn what_was_signed_before_there_was_more_to_tell_is_the_same_text() {
        let of = |entry: Sighting| {
            let statement = Statement::Sighting { namespace: "acme".into(), update: "u".into(), entry };
            String::from_utf8(patchwarden_protocol::canonical::to_bytes(&statement).unwrap()).unwrap()
        };
        let before = r#"{"entry":{"by":"a","first":"1970-01-01T00:00:10Z","shared":null},"kind":"sighting","namespace":"acme","update":"u"}"#;
        assert_eq!(of(seen(10, "a", None)), before);
        let statement = Statement::Progress {
            namespace: "acme".into(),
            policy: "p".into(),
            update: "u".into(),
            entry: progress(None, 10, None),
        };
        let progressed = String::from_utf8(patchwarden_protocol::canonical::to_bytes(&statement).unwrap()).unwrap();
        let before = r#"{"entry":{"opened":"1970-01-01T00:00:10Z","reached":null,"ring":null,"rings":["pilot","most"],"stopped":null,"undone":null},"kind":"progress","namespace":"acme","policy":"p","update":"u"}"#;
        assert_eq!(progressed, before);
        let shared = Dates { shared: Some(at(20)), alone: None };
        let dated = of(Sighting { dates: shared, ..seen(10, "a", None) });
        assert!(dated.contains(r#""dates":{"shared":"1970-01-01T00:00:20Z"}"#), "{dated}");
    }

    #[test]
    fn the_list_of_failures_that_was_decided_last_counts() {
        let of =
            |failed: &Failures, ring, opened| Progress { failed: failed.clone(), ..progress(Some(ring), opened, None) };
        let on = |device: &str| FailedOn { device: device.into(), last: at(5), ring: Some("pilot".into()) };
        let none = Failures::default();
        let one = none.anew(vec![on("a")], at(20));
        let two = one.anew(vec![on("a"), on("b")], at(20));
        let over = two.anew(vec![], at(20));
        assert_eq!([&one, &two, &over].map(|it| it.as_of), [20, 21, 22].map(|second| Some(at(second))));
        assert_eq!(over.anew(vec![], at(90)), over, "the same is nothing new");
        let accounts = [of(&one, "pilot", 10), of(&two, "pilot", 10), of(&none, "most", 30)];
        assert_eq!(all_orders(&accounts), of(&two, "most", 30), "whatever ring it is in");
        assert_eq!(all_orders(&[of(&two, "pilot", 10), of(&over, "pilot", 10)]), of(&over, "pilot", 10));
    }

    #[test]
    fn a_ring_that_was_opened_later_counts_and_an_older_account_takes_nothing_back() {
        let (pilot, most) = (progress(Some("pilot"), 10, Some(15)), progress(Some("most"), 20, None));
        let rest = progress(None, 30, None);
        assert_eq!(all_orders(&[pilot.clone(), most.clone(), rest.clone()]), rest);
        assert_eq!(all_orders(&[pilot, most.clone()]), most);
        // In the same second the account that came later counts.
        let same = progress(Some("rest"), 20, None);
        assert_eq!(most.and(&same), same);
        assert_eq!(same.and(&most), most);
    }

    #[test]
    fn a_minimum_that_was_undone_counts_again_only_when_it_was_reached_again() {
        let reached = progress(Some("pilot"), 10, Some(15));
        let undone = Progress { undone: Some(at(20)), ..progress(Some("pilot"), 10, None) };
        assert_eq!(all_orders(&[reached.clone(), undone.clone()]), undone);
        assert_eq!(progress(Some("pilot"), 10, None).and(&reached), reached);
        let again = progress(Some("pilot"), 10, Some(25));
        assert_eq!(undone.and(&again), Progress { undone: Some(at(20)), ..again.clone() });
        assert_eq!(reached.and(&undone).and(&again).and(&reached).reached, Some(at(25)));
        assert_eq!(again.and(&undone).reached, Some(at(25)), "an older account");
        // What is true of one ring says nothing of the next.
        let next = progress(Some("most"), 30, Some(31));
        assert_eq!(all_orders(&[undone, next.clone()]), next);
    }

    #[test]
    fn the_most_installs_count_of_a_ring_while_it_is_the_ring_and_of_the_client_always() {
        let known = |ring, opened, installed: u32, anywhere: u32| Progress {
            installed,
            anywhere,
            ..progress(ring, opened, None)
        };
        let pilot = [known(Some("pilot"), 10, 5, 0), known(Some("pilot"), 10, 3, 77), known(Some("pilot"), 10, 4, 58)];
        assert_eq!(all_orders(&pilot), known(Some("pilot"), 10, 5, 77));
        let [first, ..] = pilot;
        let next = known(Some("most"), 20, 1, 58);
        assert_eq!(all_orders(&[first, known(Some("pilot"), 10, 9, 96), next]), known(Some("most"), 20, 1, 96));
    }

    #[test]
    fn a_stop_stays_whatever_ring_is_opened() {
        let stopped =
            |ring, opened, stopped: i64| Progress { stopped: Some(at(stopped)), ..progress(ring, opened, None) };
        let rest = progress(None, 30, None);
        assert_eq!(all_orders(&[stopped(Some("pilot"), 10, 12), rest.clone()]), stopped(None, 30, 12));
        assert_eq!(all_orders(&[stopped(None, 30, 12), stopped(Some("pilot"), 10, 40), rest]), stopped(None, 30, 40));
    }

    #[test]
    fn a_pause_holds_until_it_is_over_and_a_later_one_holds_again() {
        let pause = |paused: i64, resumed: Option<i64>| Pause { paused: at(paused), resumed: resumed.map(at) };
        let over = all_orders(&[pause(10, None), pause(10, Some(10))]);
        assert_eq!((over, over.holds()), (pause(10, Some(10)), None));
        assert_eq!(all_orders(&[over, pause(20, None)]).holds(), Some(at(20)));
    }

    #[test]
    fn an_entry_that_was_changed_or_brought_from_elsewhere_is_dropped() {
        let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
        let mut signed = Entries {
            sightings: [("u".to_owned(), Kept::new(seen(10, "a", None)))].into(),
            progress: [(("p".to_owned(), "u".to_owned()), Kept::new(progress(Some("pilot"), 10, None)))].into(),
            pauses: [("p".to_owned(), Kept::new(Pause { paused: at(10), resumed: None }))].into(),
        };
        signed.sign("acme", &key).unwrap();
        let dropped = |namespace: &str, key: &PrivateKey, change: &dyn Fn(&mut Entries)| {
            let mut entries = signed.clone();
            change(&mut entries);
            entries.drop_unsigned(namespace, &[key.public()])
        };
        assert_eq!(dropped("acme", &key, &|_| ()), 0);
        assert_eq!(dropped("acme", &other, &|_| ()), 3);
        assert_eq!(dropped("other", &key, &|_| ()), 3);
        let told = |it: &mut Entries| it.sightings.values_mut().for_each(|kept| kept.told = at(99));
        assert_eq!(dropped("acme", &key, &told), 0, "that is the store's word");
        assert_eq!(dropped("acme", &key, &|it| it.sightings.get_mut("u").unwrap().entry.first = at(1)), 1);
        let dated = |it: &mut Entries| it.sightings.get_mut("u").unwrap().entry.dates.shared = Some(at(1));
        assert_eq!(dropped("acme", &key, &dated), 1);
        let promoted = |it: &mut Entries| it.progress.values_mut().for_each(|kept| kept.entry.ring = None);
        assert_eq!(dropped("acme", &key, &promoted), 1);
        let of_another = |it: &mut Entries| {
            let kept = it.progress.pop_first().unwrap().1;
            it.progress.insert(("p".to_owned(), "v".to_owned()), kept);
        };
        assert_eq!(dropped("acme", &key, &of_another), 1);
        assert_eq!(dropped("acme", &key, &|it| it.pauses.get_mut("p").unwrap().signature.clear()), 1);
    }
}
